"""`python -m sgmjax.export_checkpoint`; what it does is in `sgmjax.commands.export_checkpoint`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.export_checkpoint import main

    _cli.run(main, sys.argv)
