"""`python -m sgmjax.train`; what it does is in `sgmjax.commands.train`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.train import main

    _cli.run(main, sys.argv)
