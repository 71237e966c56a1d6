"""`benchmarks/`: that they run to the end, that what they write is whole, and that operations are counted rightly."""

from __future__ import annotations

import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata
from PIL import Image

from sgmjax import _cli, exact
from sgmjax import config as settings
from sgmjax.samplers import plan as plans
from sgmjax.tasks import build

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
BATCH = 128  # at which Winograd's algorithm takes part on a CPU


@pytest.fixture(scope="module")
def timed():
    """The module of that name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("timed")


def run(tmp_path: Path, script: str, *words: str) -> tuple[dict[str, Any], str]:
    """What a benchmark writes as JSON, and prints."""
    out = tmp_path / "found.json"
    command = [sys.executable, str(FOLDER / script), *words, f"--out={out}"]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text()), done.stdout


# ----------------------------------------------------------------------------------------------------------- operations
def digits_by_hand() -> tuple[float, float]:
    """Operations of the network of `psld_digits` on one example, forward and in a training step, two a multiplication.

    Two levels of 8 x 8 and 4 x 4 pixels and 32 channels, a block each, attention at 4 x 4; two channels in and out.
    """

    def conv(side: int, c_in: int, c_out: int, window: int = 3) -> float:
        return 2.0 * window**2 * side**2 * c_in * c_out

    def block(side: int, c_in: int, shortcut: bool) -> float:
        time = 2.0 * 128 * 32
        return conv(side, c_in, 32) + time + conv(side, 32, 32) + shortcut * conv(side, c_in, 32, 1)

    attention = 4 * 2.0 * 16 * 32 * 32 + 2 * 2.0 * 16 * 16 * 32
    first, time = conv(8, 2, 32), 2.0 * 32 * 128
    forward = (
        first
        + time
        + 2.0 * 128 * 128
        + block(8, 32, False)  # down
        + block(4, 32, True)  # to half the side
        + block(4, 32, False)
        + attention
        + 2 * block(4, 32, False)  # middle
        + attention
        + 2 * block(4, 64, True)  # up, with the skip connections
        + attention
        + block(8, 32, True)  # to twice the side
        + 2 * block(8, 64, True)
        + conv(8, 32, 2)
    )
    # Backward: both factors of every product have a gradient, but for the image and the features of time.
    return forward, 3 * forward - first - time


def model_of(timed, **settings: Any):
    config, _ = _cli.read_config("psld_digits", [])
    config = timed.with_settings(config, batch=BATCH, dtype="float32", **settings)
    return timed.Model(config, timed.example_shape(config))


@pytest.mark.usefixtures("one_device")
def test_operations_are_those_of_the_network_by_hand(timed):
    model = model_of(timed)
    network = model.task.network
    forward, step = digits_by_hand()
    x, t = jnp.zeros((BATCH, 8, 8, 2)), jnp.ones(BATCH)
    call = jax.jit(lambda params: network.apply({"params": params}, x, t))
    assert timed.operations(call, model.state.params) == BATCH * forward
    # Without `native` it is Winograd's count on a CPU, which is smaller.
    assert timed.count_flops(call.trace(model.state.params).jaxpr) < 0.95 * BATCH * forward

    with jax.set_mesh(model.run.mesh):
        batch = model.batches()[0]
        counted = timed.operations(model.stage.step_fn, model.state, batch, model.key)
    # Besides the network's, products of the process's 2 x 2 matrices: with 64 pixels a thousandth at most.
    assert 1.0 <= counted / (BATCH * step) < 1.001


@pytest.fixture(scope="module")
def full_runs(timed):
    """The module of that name, whose neighbours are found as those of `timed`."""
    return importlib.import_module("full_runs")


@pytest.mark.usefixtures("one_device")
def test_a_training_costs_its_steps(full_runs):
    config, _ = _cli.read_config("psld_digits", [])
    found = full_runs.cost(config)
    assert (found.batch, found.steps) == (config.train.batch_size, config.train.steps)
    _, step = digits_by_hand()
    assert 1.0 <= found.operations / (found.steps * found.batch * step) < 1.001


def test_published_trainings_have_times_of_what_was_measured(full_runs):
    step = full_runs.MEASURED["psld_cifar"]
    psld = full_runs.Cost(97_600_000, 128, 1000, 1000 * step * 3e14)
    costs = {"psld_cifar": psld, "ve_cifar": psld._replace(steps=4000, operations=2 * psld.operations)}
    lines = full_runs.table(costs | {"lsgm_mnist": psld})[2:]
    assert [line.split(" | ")[-1] for line in lines] == [
        f"{1000 * step / 3600:.3g} h |", f"about {2000 * step / 3600:.2g} h |", " |",
    ]  # fmt: skip
    assert full_runs.table({"ve_cifar": psld})[2].endswith("|  |")


def test_the_page_has_what_the_published_trainings_cost(full_runs):
    page = (FOLDER.parent / "docs" / "results.md").read_text().splitlines()
    lines = {line.split("`")[1]: line.split(" | ") for line in page if line.startswith("| `configs/")}
    assert list(lines) == [f"configs/{name}.py" for name in full_runs.CONFIGS]
    for name, cells in lines.items():
        config, _ = _cli.read_config(str(FOLDER.parent / name), [])
        assert cells[2:4] == [str(config.train.batch_size), f"{config.train.steps:,}"]


@pytest.mark.usefixtures("one_device")
def test_a_dispatch_of_three_steps_counts_three(timed):
    one, three = (model_of(timed, dispatch=count) for count in (1, 3))
    counts = []
    for model in (one, three):
        with jax.set_mesh(model.run.mesh):
            counts.append(timed.operations(model.stage.step_fn, model.state, model.batches()[0], model.key))
    assert counts[1] == 3 * counts[0]


# ------------------------------------------------------------------------------------------------------------- settings
def test_annealed_steps_are_cut_to_whole_noise_levels(timed):
    config, _ = _cli.read_config("ncsnv2_cifar", [])
    assert timed.with_settings(config, batch=2, dtype="float32", evaluations=100).sampling.steps == 19 * 5 + 1
    assert timed.with_settings(config, batch=2, dtype="float32", evaluations=3).sampling.steps == 2 * 5 + 1
    assert timed.with_settings(config, batch=2, dtype="float32", evaluations=9999).sampling.steps == 232 * 5 + 1


# ------------------------------------------------------------------------------------------------------------- commands
@pytest.mark.slow
def test_throughput_runs_and_what_it_writes_is_whole(tmp_path):
    found, printed = run(tmp_path, "throughput.py", "--quick")
    torch = "torch" in found["versions"]
    assert {"python", "jax", "jaxlib", "sgmjax"} <= found["versions"].keys()
    assert {"device", "backend", "cores", "load"} <= found["hardware"].keys()
    assert found["not_reached"] == []

    entries = {(entry["what"], entry["name"]): entry for entry in found["measurements"]}
    ours = {
        ("train", "sgmjax"),
        ("sample", "sgmjax network"),
        ("sample", "sgmjax sampler"),
        ("variants", "sgmjax"),
        ("variants", "dispatch=2"),
    }
    names = [name for name in ("torch", "diffusers") if name in found["versions"]]
    theirs = {f"{ {'torch': 'PyTorch'}.get(name, name) } eager" for name in names}
    assert entries.keys() == ours | {(what, name) for what in ("train", "sample") for name in theirs}
    left = " ".join(entry["item"] for entry in found["skipped"])
    assert not found["skipped"] if len(names) == 2 else "diffusers" in left  # said, not passed over

    for entry in found["measurements"]:
        assert len(entry["turns"]) == 2 and not entry["provisional"]
        assert entry["ms"] == statistics.median(entry["turns"]) > 0
        assert (entry["low"], entry["high"]) == (min(entry["turns"]), max(entry["turns"]))
        assert entry["load"] >= 0 and entry["batch"] == 2 and entry["parameters"] > 0
        each = entry.get("nfe_of_config", 1)
        assert entry["images_per_s"] == pytest.approx(2000 / entry["ms"] / each)
    for what, name in ours:
        entry = entries[what, name]
        assert entry["compile_s"] > 0 and entry["memory_bytes"] > 0 and entry["trace_s"] > 0
    for name in ("sgmjax", "dispatch=2"):
        entry = entries["variants", name]
        assert entry["finite"] and entry["host_ms"] > 0 and entry["blocked_ms"] > 0
    assert entries["variants", "dispatch=2"]["flops"] == entries["variants", "sgmjax"]["flops"]

    for ratio in found["ratios"]:
        one, other = (
            next(e for e in found["measurements"] if (e["item"], e["name"]) == (ratio["item"], ratio[which]))
            for which in ("one", "other")
        )
        rates = [b / a for a, b in zip(one["turns"], other["turns"], strict=True)]
        assert ratio["ratio"] == statistics.median(rates)
        assert ratio["low"] <= other["ms"] / one["ms"] <= ratio["high"]  # true of medians of any positive numbers
    assert len(found["ratios"]) == (2 + len(theirs) * 3)

    if torch:  # an independent count of the same network, and of its gradient
        for what, name in (("train", "sgmjax"), ("sample", "sgmjax network")):
            counted = entries[what, "PyTorch eager"]["flops_by_torch"]
            assert entries[what, name]["flops"] == pytest.approx(counted, rel=1e-3)
    if "diffusers" in found["versions"]:
        share = entries["train", "diffusers eager"]["parameters"] / entries["train", "sgmjax"]["parameters"]
        assert 0.8 < share < 1.25
    (trace,) = found["traces"]
    assert trace["busy_ms"] > 0 and trace["kernels"]
    assert {part["by"] for part in found["parts"]} == {"JAX"} | ({"PyTorch"} if torch else set())
    for entry in found["measurements"]:
        assert f"| {entry['item']} | {entry['name']}" in printed


@pytest.mark.slow
def test_what_the_budget_leaves_no_time_for_is_listed(tmp_path):
    found, printed = run(tmp_path, "throughput.py", "--quick", "--budget=0.001", "--configs=psld_cifar,lsgm_cifar_fid")
    left = {entry["item"]: entry["why"] for entry in found["skipped"]}
    # Training first, the VAE of the LSGM by itself.
    assert list(left)[:3] == [
        "train psld_cifar bfloat16",
        "sample psld_cifar bfloat16",
        "train lsgm_cifar_fid bfloat16",
    ]
    assert "vae lsgm_cifar_fid bfloat16" in left
    assert set(left.values()) == {"no time left"} and found["measurements"] == []
    assert all(item in printed for item in left)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vp_cifar", "ncsnv2_cifar", "lsgm_digits", "psld_mnist", "digits:cld"])
def test_the_training_step_of_other_networks(tmp_path, config):
    words = ["--quick", "--only=train", "--peers=", "--dtypes=float32", f"--configs={config}"]
    found, _ = run(tmp_path, "throughput.py", *words)
    wanted = ["sgmjax", "sgmjax VAE alone"] if config.startswith("lsgm") else ["sgmjax"]
    assert [entry["name"] for entry in found["measurements"]] == wanted
    assert found["skipped"] == []
    assert all(entry["finite"] and entry["flops"] > 0 for entry in found["measurements"])


@pytest.mark.slow
def test_sampling_cost_runs_and_its_lines_are_those_of_its_points(tmp_path):
    found, printed = run(tmp_path, "sampling_cost.py", "--quick")
    points = found["points"]
    assert [(p["num"], p["steps"]) for p in points] == [(8, 4), (16, 4), (32, 4), (8, 8), (8, 16)]
    assert all(p["nfe"] == p["steps"] and p["seconds"] > 0 and p["peak_bytes"] > 2**20 for p in points)
    # one is the kernel's exact sum of its counters on all processors, the other an estimate of it: 0.1% apart
    assert all(p["peak_bytes"] <= 1.01 * p["maxrss_bytes"] for p in points)
    by_num, by_steps = found["lines"]
    assert (by_num["by"], by_steps["by"]) == ("num", "steps")
    # Least squares through (8, a), (16, b), (32, c) by hand.
    a, b, c = (p["seconds"] for p in points[:3])
    slope = ((8 - 56 / 3) * a + (16 - 56 / 3) * b + (32 - 56 / 3) * c) / (8**2 + 16**2 + 32**2 - 56**2 / 3)
    assert by_num["seconds"]["slope"] == pytest.approx(slope)
    assert "| em | samples |" in printed


# ---------------------------------------------------------------------------------------------------- grids, posteriors
def test_the_package_has_the_plain_grids_that_were_measured():
    from sgmjax.samplers.grids import AUTO_GRID

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        found = importlib.import_module("plain_grids").chosen(json.loads((FOLDER / "plain_grids.json").read_text()))
    assert json.loads(AUTO_GRID.read_text()) == found
    assert set(found) == {"1", "2", "3", "4"} and all({"5", "10", "20"} <= set(of) for of in found.values())


@pytest.mark.parametrize("process", ["vp", "psld"])
def test_the_scores_of_the_benchmark_of_posteriors_are_exact(process):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        posterior = importlib.import_module("posterior")
    problem, sde = posterior.mixture16(), posterior.PROCESSES[process]
    z = jax.random.normal(jax.random.key(0), (6, sde.k, 16))
    t = jnp.full(6, 0.3)
    true = exact.mixture(problem.means, 0.3).score_fn(sde)(z, t)
    np.testing.assert_allclose(problem.score_fn(sde)(z, t), true, rtol=0, atol=2e-4 * float(jnp.abs(true).max()))
    # and the posterior of normal data is Kalman's
    normal, y = posterior.normal5(), posterior.normal5().draw(0)
    x = normal.posterior(y, 200_000, 0)
    precision = np.linalg.inv(normal.cov) + normal.A.T @ normal.A / normal.noise_std**2
    pull = np.linalg.solve(normal.cov, normal.means[0]) + normal.A.T @ y / normal.noise_std**2
    np.testing.assert_allclose(x.mean(0), np.linalg.solve(precision, pull), atol=0.01)
    np.testing.assert_allclose(np.cov(x.T), np.linalg.inv(precision), atol=0.01)


# ----------------------------------------------------------------------------------------------------------- the study
@pytest.fixture(scope="module")
def study():
    """The module benchmarks.study, which is called from the root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER.parent))
        yield importlib.import_module("benchmarks.study")


@pytest.fixture(scope="module")
def page(study):
    """The module benchmarks.study_page."""
    return importlib.import_module("benchmarks.study_page")


@pytest.mark.parametrize("traced", [("psld", "ncsnv2"), pytest.param(None, marks=pytest.mark.slow)], ids=["two", "all"])
def test_every_system_of_the_study_has_a_valid_training_and_valid_ways_to_sample(study, traced):
    from sgmjax.commands import evaluate, sampling

    for data in study.study.DATA:
        for system in study.study.SYSTEMS:
            config = settings.from_dict(study.study.get_config(f"{system},{data}"))
            assert (config.train.steps, config.train.batch_size) == (8000, 32)
            assert config.data.name == ("mnist" if data == "mnist" else "idx")
            if data != "mnist" or system not in (traced or study.study.SYSTEMS):
                continue
            for flags in study.ways(system).values():
                words = [f"--{key}={value}" for key, value in flags.items()]
                values, _, _ = evaluate.read_flags(["evaluate", "--workdir=x", *words])
                given = sampling.given(values)
                chosen = {key: given[key] for key in ("sampler", "steps", "grid", "denoise", "options") if key in given}
                plan = settings.from_dict(settings.to_dict(config) | {"sampling": chosen}).sampling
                plans.check(plan, build.process(config.sde))


def test_the_table_of_the_study_says_means_spreads_and_floors(page):
    row = {"data": "mnist", "system": "psld", "seed": 0, "way": "unipc, 10", "nfe": 10, "seconds": 20.0, "num": 1000}
    row |= {"fd": 0.5, "fd_floor": 0.1, "kid": 0.002, "kid_floor": 0.0}
    rows = [row | {"draw": 0}, row | {"draw": 1, "fd": 0.7}]
    rows += [
        {"data": "mnist", "system": "psld", "seed": seed, "way": "likelihood", "ode": bits, "error": 0.01, "nfe": 99.4}
        for seed, bits in ((1, 1.6), (0, 1.5))
    ]
    lines = page.table(rows, "mnist")
    assert "| PSLD | UniPC | 10 | 20 | 0.6 ± 0.1 | 2 |  |  |  |  |  |  |" in lines
    assert "| *held-out images* | | | | 0.1 | 0 |  |  |  |  |  |  |" in lines
    assert lines[-3:-1] == ["| PSLD | 1.500 ± 0.010 |  | 99 |", "| PSLD, training 2 | 1.600 ± 0.010 |  | 99 |"]
    assert page.table(rows, "fashion_mnist") == []
    lines = page.table([*rows, row | {"system": "vp", "draw": 0, "features": "another", "fd_floor": 0.2}], "mnist")
    assert "| PSLD† | UniPC | 10 | 20 | 0.6 ± 0.1 | 2 |  |  |  |  |  |  |" in lines
    assert "| VP | UniPC | 10 | 20 | 0.5 | 2 |  |  |  |  |  |  |" in lines
    assert "| *held-out images* | | | | 0.2 | 0 |  |  |  |  |  |  |" in lines
    assert any(line.startswith("† in the features of another network") for line in lines)


def test_the_study_of_cifar_trains_what_there_is_for_it(study, monkeypatch, capsys):
    assert list(study.trainings("mnist")) == list(study.study.SYSTEMS)
    assert list(study.trainings("cifar10")) == ["psld", "vp"]
    for system, name in study.trainings("cifar10").items():
        config, _ = _cli.read_config(str(FOLDER.parent / name), ())
        assert config.sde.name == system
        assert {key: getattr(config.data, key) for key in study.DATA["cifar10"]} == study.DATA["cifar10"]
    monkeypatch.setattr(sys, "argv", ["study", "--data=cifar10", "--only", "cld"])
    with pytest.raises(SystemExit):
        study.main()
    assert "--only: no cld on cifar10; psld vp" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["study", "--only", "cdl"])
    with pytest.raises(SystemExit):
        study.main()
    assert "--only: no cdl on mnist; ncsnv2 vp" in capsys.readouterr().err


def test_the_page_of_results_has_the_tables_and_pictures_of_the_study(study, page):
    rows = study.read(page.HERE / "study.json")
    text = page.PAGE.read_text()
    assert "| UniPC | 10 |" in text and page.with_tables(text, rows) == text
    assert set(page.SYSTEMS) == set(study.study.SYSTEMS)
    assert {way.partition(",")[0] for system in page.SYSTEMS for way in study.ways(system)} == set(page.SAMPLERS)
    for name, grids in page.BESIDE.items():
        assert f"(images/study_{name}.png)" in text
        there = np.asarray(Image.open(page.IMAGES / f"study_{name}.png"))
        np.testing.assert_array_equal(page.beside(grids), there, err_msg=name)
    assert all(f"(images/study_{name}.png)" in text for name in page.LOSSES)


def test_the_losses_of_kept_runs_are_drawn(page, tmp_path):
    page.draw_losses("mnist", tmp_path / "losses.png")
    image = np.asarray(Image.open(tmp_path / "losses.png").convert("L"))
    assert image.shape[0] > 400 and image.std() > 10  # rows of axes with lines in them


def test_grids_stand_beside_each_other_and_keep_their_colors(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "KEPT", tmp_path)
    gray, colored = np.full((8, 8, 3), 7, np.uint8), np.zeros((8, 4, 3), np.uint8)
    colored[..., 1] = 9
    for name, image in {"a.png": gray, "b.png": colored}.items():
        Image.fromarray(image).save(tmp_path / name)
    found = page.beside(["a.png", "a.png"], gap=2)
    assert found.shape == (8, 12) and found[0].tolist() == [7] * 5 + [255] * 2 + [7] * 5
    found = page.beside(["a.png", "b.png"], gap=1)
    assert found.shape == (8, 10, 3) and found[0, -1].tolist() == [0, 9, 0]


def test_a_command_that_fails_ends_the_study_with_its_status(study, capfd):
    with pytest.raises(SystemExit, match=r"sgmjax\.nothing ended with status 1; the same line goes on"):
        study.call("nothing", "--word")
    assert "$ python -m sgmjax.nothing --word" in capfd.readouterr().out


@pytest.mark.slow
def test_the_study_trains_measures_and_goes_on(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(study, "ways", lambda system: {"unipc, 2": study.UNIPC | {"steps": "2"}})
    monkeypatch.chdir(FOLDER.parent)
    words = ["study", "--only", "psld", "--steps=2", "--samples=200", "--likelihood=2", "--draws=1"]
    words += [f"--runs={tmp_path / 'runs'}", f"--data-dir={refdata.DATA}", f"--out={tmp_path / 'study.json'}"]
    monkeypatch.setattr(sys, "argv", [*words, "--afresh"])
    monkeypatch.setattr(study.Study, "FEATURES", ("--config.train.steps=2", "--config.model.widths=(8, 16)"))
    study.main()
    rows = json.loads((tmp_path / "study.json").read_text())
    assert [row["way"] for row in rows] == ["unipc, 2", "likelihood"]
    assert rows[0]["fd"] > 0 and rows[0]["nfe"] == 2 and rows[0]["seconds"] > 0
    kept = tmp_path / "kept" / "mnist" / "psld_0"
    assert (kept / "unipc_2.png").is_file() and (kept / "final.png").is_file()
    assert json.loads((kept / "config.json").read_text())["config"]["data"]["data_dir"] is None
    study.main()
    assert json.loads((tmp_path / "study.json").read_text()) == rows

    again = [f"--runs={tmp_path / 'others'}", f"--out={tmp_path / 'again.json'}"]  # without any training
    monkeypatch.setattr(sys, "argv", [*words, *again])
    monkeypatch.setattr(study, "call", functools.partial(_no_training, study.call))
    study.main()
    same = json.loads((tmp_path / "again.json").read_text())
    assert [row.keys() for row in same] == [row.keys() for row in rows]
    for found, first in zip(same, rows, strict=True):
        for key in ("features", "step", "nfe"):
            assert found.get(key) == first.get(key)
    assert same[0]["fd"] == pytest.approx(rows[0]["fd"], rel=0.05)  # the network is kept in half precision


def _no_training(call, command, *words):
    assert command != "train"
    call(command, *words)
