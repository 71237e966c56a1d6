"""The commands: flags in, files out. Each is run as `python -m sgmjax.<name>`."""
