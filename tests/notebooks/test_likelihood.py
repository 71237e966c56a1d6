"""Likelihood's notebook: closed forms, bounds on the right side, and what the distances of sets see."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    columns = "['W2', 'FD', 'KID', 'precision', 'recall', 'nearest']"
    report = {
        "errors": "list(errors.values())",
        "bpd": "list(bpd.values())",
        "spreads": "[spreads[name] for name in ('drift', 'joint', 'blocks')]",
        "true": "ring.log_prob(ring.sample(jax.random.key(10), NUM)[0])",
        "momenta": "[by_momenta[k] for k in (1, 2, 8)]",
        "over_momenta": "over_momenta",
        "elbos": "list(elbos.values())",
        "accuracy": "accuracy",
        "names": "list(table)",
        "table": f"[[row[c] for c in {columns}] for row in table.values()]",
        "size_real": "[mean for mean, _ in curves['real']]",
        "size_error": "[error for _, error in curves['real']]",
    }
    return execute("likelihood", tmp_path_factory.mktemp("notebook"), **report)


@pytest.mark.slow
def test_densities_are_those_of_the_closed_forms(executed):
    worst, mean = np.transpose(executed.report["errors"])  # nats of two dimensions
    assert len(mean) == 6 and (worst < 0.05).all() and (np.abs(mean) < 0.01).all()
    for mean, error in executed.report["elbos"]:  # noise apart, an equality too
        assert abs(mean) < 4 * error + 0.02


@pytest.mark.slow
def test_bits_of_integers_lie_above_their_code_length(executed):
    code, bits, difference, error = executed.report["bpd"].T
    assert (difference > -4 * error).all()
    # coarse levels leave a gap, fine ones next to none; a wrong offset of units would be a whole bit
    assert difference[0] > 0.1 and abs(difference[2]) < 0.01
    np.testing.assert_allclose(bits - code, difference, atol=1e-3)


@pytest.mark.slow
def test_probing_by_blocks_spreads_least(executed):
    spread = executed.report["spreads"][:, 0]
    assert spread[2] < 0.5 * spread[1] < 0.25 * spread[0]


@pytest.mark.slow
def test_more_momenta_raise_the_bound_which_stays_below_the_law(executed):
    one, two, eight = (values.mean() for values in executed.report["momenta"])
    assert one < two < eight
    gap = executed.report["true"] - executed.report["momenta"][2]
    assert gap.mean() > -3 * gap.std() / len(gap) ** 0.5 and gap.mean() < 1.5
    weights, bound = executed.report["over_momenta"]
    assert weights < bound


@pytest.mark.slow
def test_the_table_of_sets(executed):
    found = executed.report
    row = {name: dict(zip(("W2", "FD", "KID", "precision", "recall", "nearest"), values, strict=True))
           for name, values in zip(found["names"], found["table"], strict=True)}  # fmt: skip
    floor = row["held-out (floor)"]
    assert found["accuracy"] > 0.8 and floor["nearest"] == 1
    for name in ("noise of 0.5", "digits 0 to 4 only"):
        assert row[name]["FD"] > 3 * floor["FD"], name
    assert row["noise of 0.5"]["precision"] < floor["precision"] - 0.1
    assert row["digits 0 to 4 only"]["recall"] < floor["recall"] - 0.1
    assert row["training images"]["nearest"] < 1e-6 and row["training images"]["precision"] == 1


@pytest.mark.slow
def test_frechet_distances_fall_with_the_number_and_kernel_distances_do_not(executed):
    fd, kid = executed.report["size_real"].T
    assert (np.diff(fd) < 0).all() and fd[0] > 3 * fd[-1]
    assert (np.abs(kid) < 4 * executed.report["size_error"][:, 1]).all()
