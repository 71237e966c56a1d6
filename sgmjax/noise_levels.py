"""`python -m sgmjax.noise_levels`; what it does is in `sgmjax.commands.noise_levels`."""

if __name__ == "__main__":
    import sys

    from sgmjax import _cli
    from sgmjax.commands.noise_levels import main

    _cli.run(main, sys.argv)
