"""`python -m sgmjax.sample`; what it does is in `sgmjax.commands.sample`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.sample import main

    _cli.run(main, sys.argv)
