"""`python -m sgmjax`: which commands there are, from the first lines of their own texts, and which runs come along."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

from sgmjax import _files

HERE = Path(__file__).resolve().parent
COMMANDS = {  # in the order in which they are wanted, with the file that says what each does
    "train": "commands/train.py",
    "sample": "commands/sample.py",
    "evaluate": "commands/evaluate.py",
    "tune_grid": "commands/tune_grid.py",
    "noise_levels": "commands/noise_levels.py",
    "import_checkpoint": "commands/import_checkpoint.py",
    "export_checkpoint": "commands/export_checkpoint.py",
    "data.prepare": "data/prepare.py",
}


def page() -> str:
    """What is printed."""
    lines = [f"sgmjax {importlib.metadata.version('sgmjax')}: score-based generative models in JAX", ""]
    for command, file in COMMANDS.items():
        text = ast.get_docstring(ast.parse((HERE / file).read_text(encoding="utf-8"))) or ""
        lines.append(f"  python -m sgmjax.{command:<18} {text.splitlines()[0]}")
    runs = ", ".join(f"zoo:{name}" for name in _files.zoo())
    return "\n".join([*lines, "", f"Each says more with --help. Trained runs that come along, for --workdir: {runs}"])


if __name__ == "__main__":
    if wrong := [word for word in sys.argv[1:] if word not in ("--help", "-h")]:
        known = wrong[0] if wrong[0] in COMMANDS else "COMMAND"
        sys.exit(f"{wrong[0]}: commands are modules; write python -m sgmjax.{known}\n\n{page()}")
    print(page())
