"""What all notebooks keep to."""

from __future__ import annotations

import json

from executed import NOTEBOOKS


def test_notebooks_are_stored_without_outputs():
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        ids = [cell["id"] for cell in cells]
        assert len(ids) == len(set(ids))
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if "outputs" in cell), path


def test_notebooks_open_in_colab_and_install_the_library_in_one_way():
    """The badge of the notebook's own name, and the same cell that installs."""
    stored = {path.stem: json.loads(path.read_text())["cells"] for path in NOTEBOOKS.glob("*.ipynb")}
    installs = set()
    for name, cells in stored.items():
        assert f"blob/main/notebooks/{name}.ipynb" in "".join(cells[0]["source"]), name
        (install,) = (cell for cell in cells if cell["id"] == "install")
        installs.add("".join(install["source"]))
    assert len(installs) == 1


def test_every_notebook_is_executed_by_a_test():
    here = {path.stem.removeprefix("test_") for path in (NOTEBOOKS.parent / "tests" / "notebooks").glob("test_*.py")}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == here - {"all"}
