"""The notebooks run from the first cell to the last, and what they train has learnt its data."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import refdata

from sgmjax import data, metrics

QUICKSTART = refdata.ROOT / "notebooks" / "quickstart.ipynb"

# Runs after the notebook's own cells: hands over what they left in memory.
REPORT = """
import numpy as np
sets = {name: x for name, (x, _, _) in panels.items()}
np.savez("report.npz", mine=my_samples, run=run_samples, run_step=run.step, losses=losses,
         initial_loss=losses[0], nfe_ode=panels["ode"][1], **sets)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The executed notebook, and the arrays of `REPORT`."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
    folder = tmp_path_factory.mktemp("notebook")
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
    client.execute(env=environment)  # raises CellExecutionError, with the traceback, if a cell does
    with np.load(folder / "report.npz") as report:
        return notebook, dict(report)


@pytest.mark.slow
def test_every_cell_ran_and_nothing_complained(executed):
    notebook, _ = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.slow
def test_every_figure_is_drawn(executed):
    notebook, _ = executed
    drawing = [cell for cell in notebook.cells if "plt.subplots(" in cell.source]
    assert len(drawing) == 8
    for cell in drawing:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.id


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["em", "sscs", "ode"])
def test_samples_are_close_to_the_data(executed, sampler):
    _, report = executed
    held_out = data.toy.load("pinwheel", "eval").arrays()["x"]
    samples = report[sampler]
    assert samples.shape == (2000, 2) and samples.dtype == np.float32
    # A Gaussian with the data's mean and covariance, which is all that an untrained score gives, is at 0.18.
    gaussian = np.random.default_rng(0).multivariate_normal(held_out.mean(0), np.cov(held_out.T), 2000)
    assert metrics.sliced_wasserstein(samples, held_out) < 0.6 * metrics.sliced_wasserstein(gaussian, held_out)


@pytest.mark.slow
def test_the_printed_distances_are_those_of_the_samples(executed):
    notebook, report = executed
    (cell,) = (cell for cell in notebook.cells if cell.get("id") == "samplers")
    printed = "".join(output.get("text", "") for output in cell.outputs)
    held_out = data.toy.load("pinwheel", "eval").arrays()["x"]
    for sampler in ("em", "sscs", "ode"):
        (value,) = re.findall(rf"^{sampler} .*W2 ([\d.]+)$", printed, flags=re.MULTILINE)
        assert float(value) == pytest.approx(metrics.sliced_wasserstein(report[sampler], held_out), abs=6e-4)


@pytest.mark.slow
def test_the_process_of_ones_own_and_the_run_folder_give_samples(executed):
    _, report = executed
    assert report["run_step"] == 200
    for name in ("mine", "run"):  # trained too briefly here to be sharp; an error would show as a wrong scale
        assert report[name].shape == (2000, 2)
        np.testing.assert_allclose(report[name].std(axis=0), 1.0, atol=0.2)
        np.testing.assert_allclose(report[name].mean(axis=0), 0.0, atol=0.2)


def test_notebooks_are_stored_without_outputs():
    for path in (refdata.ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        ids = [cell["id"] for cell in cells]
        assert len(ids) == len(set(ids))
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if "outputs" in cell), path
