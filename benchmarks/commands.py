"""The commands of sgmjax, called by a benchmark as a user would call them."""

from __future__ import annotations

import subprocess
import sys


def call(command: str, *words: str) -> None:
    """`python -m sgmjax.COMMAND WORDS`, whose output is seen here; ends the benchmark where it fails."""
    line = [sys.executable, "-m", f"sgmjax.{command}", *words]
    print("$ python", *line[1:], flush=True)
    if status := subprocess.run(line, check=False).returncode:
        raise SystemExit(f"stopped, as sgmjax.{command} ended with status {status}; the same line goes on")
