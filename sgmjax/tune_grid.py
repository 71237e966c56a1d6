"""`python -m sgmjax.tune_grid`; what it does is in `sgmjax.commands.tune_grid`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.tune_grid import main

    _cli.run(main, sys.argv)
