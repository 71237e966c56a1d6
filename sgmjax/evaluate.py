"""`python -m sgmjax.evaluate`; what it does is in `sgmjax.commands.evaluate`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.evaluate import main

    _cli.run(main, sys.argv)
