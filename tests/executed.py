"""Notebooks, executed from the first cell to the last in a folder of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import refdata

NOTEBOOKS = refdata.ROOT / "notebooks"


class Executed(NamedTuple):
    """A notebook that ran.

    Attributes:
        cells: of the notebook, with their outputs.
        report: arrays that the notebook left in memory, by name.
    """

    cells: list[Any]
    report: dict[str, np.ndarray]

    def printed(self, cell_id: str) -> str:
        """What a cell printed."""
        (cell,) = (cell for cell in self.cells if cell.get("id") == cell_id)
        return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")


def execute(name: str, folder: Path, **report: str) -> Executed:
    """Run notebooks/<name>.ipynb, short where the notebook knows how (SGMJAX_NOTEBOOK_QUICK), in `folder`.

    Args:
        name, folder: of the notebook, and where it runs.
        report: expressions of the notebook's own variables, evaluated after its last cell, that are handed over as
            arrays.

    Raises:
        AssertionError: a cell that wrote to stderr, or draws and left no picture.
        CellExecutionError: a cell that raised.
    """
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    values = ", ".join(f"{key}=({expression})" for key, expression in report.items())
    notebook.cells.append(nbformat.v4.new_code_cell(f'import numpy\nnumpy.savez("report.npz", {values})'))
    path = os.pathsep.join(filter(None, [str(refdata.ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {
        "SGMJAX_NOTEBOOK_QUICK": "1",
        "PYTHONPATH": path,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "TMPDIR": str(folder),
    }
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    for cell in code:
        if "plt.subplots(" in cell.source and "def " not in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.id
    with np.load(folder / "report.npz") as found:
        return Executed(notebook.cells, dict(found))
