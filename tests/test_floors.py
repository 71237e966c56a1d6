"""The order of the floors: no room imports one that stands above it, and no two import each other."""

from __future__ import annotations

import subprocess
import sys

import refdata


def test_no_room_imports_one_above_it():
    """The contracts of pyproject.toml, by import-linter; every room stands on a floor."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=refdata.ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "floors KEPT" in run.stdout, run.stdout
