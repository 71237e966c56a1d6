"""Held-out likelihoods and the command that reports them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from unittest.mock import ANY

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.flags import FlagValues
from scipy.stats import norm

from sgmjax import exact, sdes
from sgmjax import sharding as sh
from sgmjax.commands import evaluate, export_checkpoint, sampling, train
from sgmjax.data import ArrayDataset, DataError, DataSettings, load
from sgmjax.data.dequantize import bits_per_dim, dequantize
from sgmjax.evaluation import metrics
from sgmjax.evaluation.likelihood import LikelihoodSettings, held_out_likelihood
from sgmjax.evaluation.statistics_file import Convention, write_statistics
from sgmjax.metrics import frechet_distance, pixel_frechet, statistics
from sgmjax.samplers.plan import Plan

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("centered", [True, False])
def test_bits_per_dim_of_known_codes(centered: bool):
    """The uniform density costs 8 bits exactly; a Gaussian its probabilities of the 256 bins, by quadrature over u."""
    log_uniform = -5 * np.log(2.0) if centered else 0.0  # five dimensions, on an interval of length 2 or 1
    np.testing.assert_allclose(bits_per_dim(log_uniform, 5, centered=centered), 8.0, rtol=1e-12)
    np.testing.assert_allclose(bits_per_dim(log_uniform, 5, levels=16, centered=centered), 4.0, rtol=1e-12)
    law = norm(0.1, 0.3) if centered else norm(0.55, 0.15)
    edges = np.linspace(-1, 1, 257) if centered else np.linspace(0, 1, 257)
    code = -np.log2(np.diff(law.cdf(edges)))
    nodes, weights = np.polynomial.legendre.leggauss(8)
    y = edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1) / 2
    spread = bits_per_dim(law.logpdf(y) @ weights / 2, 1, centered=centered)
    central = np.abs(edges[:-1] - law.mean()) < 3 * law.std()
    assert (spread >= code - 1e-9).all()  # Jensen
    np.testing.assert_allclose(spread[central], code[central], atol=5e-4)


def test_dequantisation():
    x = np.arange(256, dtype=np.uint8).reshape(16, 4, 2, 2)
    for centered in (True, False):
        y = dequantize(jax.random.key(0), x, centered=centered)
        unit = (np.asarray(y, np.float64) + 1) / 2 if centered else np.asarray(y, np.float64)
        u = unit * 256 - x
        assert u.min() > -1e-4 and u.max() < 1 + 1e-4 and abs(u.mean() - 0.5) < 0.1 and 0.25 < u.std() < 0.33
    with pytest.raises(DataError, match="integers"):
        dequantize(jax.random.key(0), x.astype(np.float32), centered=True)


class Task:
    """Images whose dequantised pixels are Gaussian, with the exact score: bits/dim are known."""

    sde = sdes.vp()
    event_shape, discrete, centered, num_classes = (2, 2, 1), True, True, 2
    mixture = exact.mixture(np.full((1, 2, 2, 1), 0.1), 0.2)

    def score_fn(self, variables, *, labels):
        score = self.mixture.score_fn(self.sde)
        return lambda z, t: score(z - variables, t) * (1 + 0.0 * labels[0])


def held_out(devices: int, batch_size: int, num: int = 37):
    """Codes of images that follow the task's law, with their true lengths in bits/dim, (num,)."""
    draws = np.random.default_rng(0).normal(0.1, 0.2, (num, 2, 2, 1))
    x = np.clip(np.floor((draws + 1) * 128), 0, 255).astype(np.uint8)
    dataset = ArrayDataset("pixels", x, np.arange(num) % 2, num_classes=2)
    mesh = sh.make_mesh(1, jax.devices()[:devices])
    everywhere, seen = sh.replicated(mesh), []
    found = held_out_likelihood(
        Task(), jax.device_put(jnp.zeros(()), everywhere), jax.device_put(jax.random.key(0), everywhere), dataset,
        num=100, batch_size=batch_size, settings=LikelihoodSettings(dequantizations=2, draws=8), mesh=mesh,
        shardings=everywhere, progress=seen.append,
    )  # fmt: skip
    assert seen[-1] == 2 * num and np.array_equal(found.indices, np.arange(num)) and found.ode.shape == (num,)
    edges = np.linspace(-1, 1, 257)
    return found, -np.log2(np.diff(norm(0.1, 0.2).cdf(edges)))[x].mean(axis=(1, 2, 3))


def test_held_out_bits_per_dim():
    """Labelled images on eight devices, a last batch that is not full: as the density says."""
    found, code = held_out(8, 16)
    ode, bound = (bits_per_dim(-nats, 4) for nats in (found.ode, found.bound))
    assert (np.abs(ode - code) < 0.1).all()  # two uniform numbers a pixel
    np.testing.assert_allclose(ode.mean(), code.mean(), atol=0.01)
    assert abs(bound.mean() - code.mean()) < 4.5 * bound.std() / np.sqrt(len(bound))


@pytest.mark.slow
def test_held_out_bits_do_not_depend_on_batch_or_devices():
    (eight, _), (one, _) = held_out(8, 16), held_out(1, 37)
    np.testing.assert_allclose(one.ode, eight.ode, atol=1e-3)
    np.testing.assert_allclose(one.bound, eight.bound, rtol=1e-4, atol=1e-2)


TOY = {
    "data": {"name": "ring", "num_samples": 500},
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "optimizer": {"warmup_steps": 5},
    "train": {"steps": 4, "batch_size": 32, "log_every": 4, "eval_every": 0, "sample_every": 0, "checkpoint_every": 0},
    "sampling": {"steps": 6, "num": 20, "grid_images": 8, "batch_size": 16},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder made by the command itself."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "toy.py"
    config.write_text(f"from sgmjax.config import complete\n\n\ndef get_config():\n    return complete({TOY!r})\n")
    assert train.main(["train", f"--config={config}", f"--workdir={folder}/run"]) == 0
    return folder / "run"


def test_bpd_of_a_run(finished, capsys):
    """A barely trained network: no better than the truth, and every setting written down."""
    words = ["--num=24", "--rtol=1e-3", "--atol=1e-3", "--draws=4", "--momenta=2", "--trace=exact", "--seed=3"]
    command = ["evaluate", f"--workdir={finished}", "--metrics=bpd", *words]
    assert evaluate.main(command) == 0
    out = capsys.readouterr().out
    assert "probability-flow ODE: " in out and "variational bound (SDE): " in out and "nats/example" in out
    assert "24 examples, NFE " in out and "true density of the data: " in out
    path = finished / "metrics" / "bpd_step4.json"
    result = json.loads(path.read_text())
    assert result["settings"] == {
        "t_min": 1e-5, "rtol": 1e-3, "atol": 1e-3, "solver": "Dopri5", "trace": "exact", "probes": 1,
        "probing": "blocks", "momenta": 2, "truncation": "ignore", "dequantizations": 1, "draws": 4,
    }  # fmt: skip
    assert (result["unit"], result["num"], result["step"], result["seed"]) == ("nats/example", 24, 4, 3)
    assert result["parameters"] == "ema" and result["split"] == "test" and "dequantization" not in result
    results = result["results"]
    assert results["ode"]["mean"] > results["exact"]["mean"] + 0.2
    assert results["variational_bound"]["mean"] > results["exact"]["mean"] + 0.2
    assert 0 < results["exact"]["standard_error"] < 1 and result["nfe"]["max"] >= result["nfe"]["mean"] > 0


def test_results_of_other_settings_stay(finished, capsys):
    """Those of the same settings are written again."""
    command = ["evaluate", f"--workdir={finished}", "--metrics=kid", "--features=pixels", "--steps=2", "--grid=uniform"]
    folder, found = finished / "metrics", []
    for flags in (["--num=8"], ["--num=8", "--seed=1"], ["--num=8", "--batch_size=4"], ["--num=12"]):
        assert evaluate.main([*command, *flags]) == 0
        files = [path for kind in ("kid", "report") for path in folder.glob(f"{kind}_step4_2_uniform*.json")]
        found.append({path.name: json.loads(path.read_text()) for path in files})
    capsys.readouterr()
    assert [len(files) for files in found] == [2, 4, 4, 6]
    for earlier, later in zip(found, found[1:], strict=False):
        assert all(later[name]["flags"] == earlier[name]["flags"] for name in earlier)
    assert {"kid_step4_2_uniform.json", "report_step4_2_uniform.json"} == found[0].keys()
    assert len({json.dumps(record["flags"]) for record in found[-1].values()}) == 6


@pytest.mark.slow
def test_bpd_with_another_process(finished, capsys):
    """Its likelihood is that of the same denoiser; beside the run's own, not in its place."""
    words = ["--num=8", "--rtol=1e-2", "--atol=1e-2", "--draws=2", "--process=vp", "--process.beta_max=12"]
    assert evaluate.main(["evaluate", f"--workdir={finished}", "--metrics=bpd", *words]) == 0
    result = json.loads((finished / "metrics" / "bpd_step4_as_vp_beta_max12.json").read_text())
    assert result["process"] == {"name": "vp", "beta_max": 12} and np.isfinite(result["results"]["ode"]["mean"])
    capsys.readouterr()


BAD = [
    ([], "--workdir: which run?"),
    (["--workdir=/nowhere"], "no run in /nowhere"),
    (["--workdir=RUN", "--metrics=lpips"], "--metrics: no metric called 'lpips'; there are bpd, nelbo, frechet"),
    (["--workdir=RUN", "--metrics=fid"], "features 'inception' are of images of 1 or 3 channels"),
    (
        ["--workdir=RUN", "--metrics=fd", "--features=pixels", "--num=1"],
        "--metrics: fd compares sets of samples, and one is none",
    ),
    (["--workdir=RUN", "--metrics=pr", "--features=pixels", "--num=3"], "--metrics: pr looks for the 3 nearest of"),
    (["--workdir=RUN", "--metrics=is", "--features=pixels"], "--metrics: is needs a classifier, and features"),
    (["--workdir=RUN", "--metrics=fd", "--features=nothing"], "no features called 'nothing'; there are inception"),
    (["--workdir=RUN", "--metrics=fd", "--features=RUN"], "is no run of a feature network"),
    (["--workdir=RUN", "--metrics=fd", "--features=pixels", "--reference=RUN/x.npz"], "statistics: cannot read"),
    (["--workdir=RUN", "--metrics=fd,kid", "--features=pixels", "--reference=x"], "kid needs the features of the data"),
    (["--workdir=RUN", "--metrics=fid", "--features=pixels"], "fid is of the published Inception features"),
    (["--workdir=RUN", "--metrics=memorisation", "--features=pixels", "--against=test"], "memorisation compares"),
    (["--workdir=RUN", "--restarts=3,2,0.06,0.3"], "--restarts: is of metrics that draw samples"),
    (
        ["--workdir=RUN", "--metrics=fd", "--features=pixels", "--steps=5", "--restarts=3,2,0.06,0.3"],
        "the restarts alone take 4 evaluations",
    ),
    (["--workdir=RUN", "--steps=5"], "--steps: is of metrics that draw samples, and there is none here"),
    (["--workdir=RUN", "--metrics=bpd,frechet"], "--metrics: frechet is for images"),
    (["--workdir=RUN", "--metrics=neighbours"], "--metrics: neighbours is for images"),
    (["--workdir=RUN", "--nearest=0"], "--nearest: must be positive"),
    (["--workdir=RUN", "--num=0"], "--num: must be positive, got 0"),
    (["--workdir=RUN", "--rtol=-1"], "--rtol: must be above 0 and at most 1, got -1"),
    (["--workdir=RUN", "--t_min=2"], "--t_min: must be between 0 and 1, both excluded, got 2"),
    (["--workdir=RUN", "--trace=hutch"], "--trace=hutch"),
    (["--workdir=RUN", "--solver=Euler"], "solver 'Euler' has no error estimate"),
    (["--workdir=RUN", "--metrics=bpd,frechet", "--out=x"], "--out: is for one metric"),
    (["--workdir=RUN", "--metrics=fd", "--features=pixels", "--k=3"], "--k: is of pr and dc; leave it out"),
    (["--workdir=RUN", "--metrics=fd", "--features=pixels", "--rtol=0.1"], "--rtol: is of bpd and nelbo, or of an ad"),
    (
        ["--workdir=RUN", "--metrics=fd", "--features=pixels", "--preprocessing=tf1"],
        "--preprocessing: is of --reference",
    ),
    (["--workdir=RUN", "--truncation=bound", "--metrics=nelbo"], "--truncation: is of bpd; leave it out"),
    (["--workdir=RUN", "--features=pixels"], "--features: is of metrics in features, as fid; leave it out"),
    (["--workdir=RUN", "--seed=-1"], "--seed: must be zero or positive, got -1"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=range(len(BAD)))
def test_evaluate_refuses_in_one_line(finished, capsys, words, message):
    assert evaluate.main(["evaluate", *(word.replace("RUN", str(finished)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_frechet():
    """The distance of samples to the data, by the metric's own function."""
    x = np.random.default_rng(0).integers(0, 256, (30, 2, 2, 1)).astype(np.uint8)

    class Draws(Task):
        def sample(self, variables, key, num, plan):
            which = jax.random.randint(key, (num,), 0, len(x))
            return jnp.asarray(x)[which].astype(jnp.float32) / 127.5 - 1, {"nfe": 7}

    subject = metrics.Subject(
        task=Draws(), variables=jnp.zeros(()), data=ArrayDataset("pixels", x), plan=Plan(), mesh=sh.make_mesh()
    )
    found = metrics.METRICS["frechet"](subject, metrics.Settings(num=24, batch_size=24))
    assert "24 samples to 30 images, NFE 7" in found.lines[0] and found.record["nfe"] == 7
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(24))  # each sample's is its index's
    which = [int(jax.random.randint(key, (1,), 0, len(x))[0]) for key in keys]
    expected = pixel_frechet(x[which], x)
    assert found.record["results"]["pixel_frechet"] == found.numbers["frechet"] == expected
    assert set(found.numbers) == {"frechet"}  # there are no others
    none = metrics.METRICS["frechet"](dataclasses.replace(subject, others=lambda: None), metrics.Settings(num=24))
    assert none.numbers == found.numbers
    apart = np.random.default_rng(1).integers(0, 256, (12, 2, 2, 1)).astype(np.uint8)
    subject = dataclasses.replace(subject, others=lambda: ArrayDataset("others", apart))
    beside = metrics.METRICS["frechet"](subject, metrics.Settings(num=24, batch_size=24))
    floor = pytest.approx(pixel_frechet(apart, x))
    assert beside.numbers == {"frechet": expected, "frechet_floor": floor}
    assert "of 12 other real images" in beside.lines[0] and beside.record["results"]["pixel_frechet_floor"] == floor


def test_only_what_needs_a_part_of_the_data_asks_for_it(finished, tmp_path, capsys):
    """Held-out or training data alone, or a file of statistics and no data: the same distance, without a floor."""
    record = json.loads((finished / "config.json").read_text())
    data = record["config"]["data"]
    train_data = load(DataSettings(name="ring", num_samples=500), "train").read(np.arange(500))["x"]

    def fd(section, *words, metric="fd"):
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(finished, run, ignore=shutil.ignore_patterns("metrics"))
        (run / "config.json").write_text(json.dumps(record | {"config": record["config"] | {"data": data | section}}))
        flags = [f"--workdir={run}", f"--metrics={metric}", "--features=pixels", "--num=16", *words]
        assert evaluate.main(["evaluate", *flags]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        (samples,) = (run / "metrics").glob("samples_*/samples/00000000.npy")
        result = json.loads((run / "metrics" / f"{metric}_step4.json").read_text())["results"]
        assert result["fd"] == pytest.approx(frechet_distance(np.load(samples)[:16], train_data), rel=1e-5)
        return set(result), out

    assert fd({}) == ({"fd", "fd_floor"}, ANY)
    found, out = fd({"eval_split": None})
    assert found == {"fd"} and "going on without the test data: data.eval_split is None" in out
    assert fd({"eval_split": None}, "--split=train") == ({"fd"}, ANY)

    np.savez(tmp_path / "held_out.npz", x=train_data)
    found, out = fd({}, f"--data={tmp_path}/held_out.npz", "--against=test")
    assert found == {"fd"} and "going on without the train data: --data: " in out
    flags = [f"--workdir={finished}", "--metrics=fd", "--features=pixels", f"--data={tmp_path}/held_out.npz"]
    assert evaluate.main(["evaluate", *flags]) == 2  # against the training part
    captured = capsys.readouterr()
    assert "has no training part" in captured.err and "samples" not in captured.out

    write_statistics(tmp_path / "stats.npz", statistics(train_data), Convention("pixels"))
    del data["num_samples"]
    assert fd({"name": "mnist", "data_dir": str(tmp_path / "none")}, f"--reference={tmp_path}/stats.npz")[0] == {"fd"}


@pytest.mark.slow
def test_a_file_is_evaluated_as_its_folder(finished, tmp_path):
    file = tmp_path / "one.safetensors"
    words = [f"--workdir={finished}", "--format=safetensors", f"--out={file}"]
    assert export_checkpoint.main(["export_checkpoint", *words]) == 0
    results = []
    for place, folder in ((finished, finished), (file, tmp_path / "one")):
        flags = [f"--workdir={place}", "--metrics=fd", "--features=pixels", "--num=16"]
        assert evaluate.main(["evaluate", *flags]) == 0
        (report,) = (folder / "metrics").glob("fd_step*.json")
        results.append(json.loads(report.read_text())["results"])
    assert results[0] == results[1] and results[0]


def test_every_flag_of_a_plan_is_read_by_evaluate():
    """A flag that `sampling.define` makes is one of the plan's, or says which run and which process."""
    values = FlagValues()
    sampling.define(values)
    assert set(values) - {"process", "checkpoint", "params"} == set(sampling.PLAN)
