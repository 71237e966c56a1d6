"""The order of the floors: no room imports one that stands above it, and no two import each other."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import refdata

import sgmjax


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


def test_no_function_hides_the_module_it_is_in():
    """`sgmjax.samplers.sscs` is one thing: a module that shares the name of what it defines starts with `_`."""

    def hidden(package: ModuleType) -> list[str]:
        found = []
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            if not isinstance(getattr(package, info.name.rpartition(".")[2]), ModuleType):
                found.append(info.name)
            found += hidden(module) if info.ispkg else []
        return found

    assert hidden(sgmjax) == []
