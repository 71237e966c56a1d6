"""`python -m sgmjax.import_checkpoint`; what it does is in `sgmjax.commands.import_checkpoint`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.import_checkpoint import main

    _cli.run(main, sys.argv)
