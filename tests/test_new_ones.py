"""What CONTRIBUTING says of a new sampler, metric and data source: named in one table, it is there everywhere."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from sgmjax import data, samplers
from sgmjax.config import ConfigError, from_dict
from sgmjax.data.pipeline import SOURCES, Source
from sgmjax.evaluation import metrics
from sgmjax.samplers import registry
from sgmjax.samplers.common import scan_grid
from sgmjax.samplers.declaration import adaptive, on_grid
from sgmjax.training.train import train

pytestmark = pytest.mark.usefixtures("one_device")

TINY = {
    "model": {"name": "mlp", "width": 8, "depth": 1},
    "train": {"steps": 4, "batch_size": 8, "log_every": 2, "eval_every": 0, "sample_every": 0},
    "sampling": {"steps": 3, "num": 8, "batch_size": 8},
}


@on_grid()
def halving(key, score_fn, sde, shape, *, times, denoise=True, factor=0.5, **options):
    """Halves the state at every step: no sampler at all, but one by its contract."""

    def step(z, memory, node):
        return factor * z, memory

    return scan_grid(step, key, score_fn, sde, shape, times=times, draws=0, denoise=denoise, **options)


def test_a_sampler(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.SAMPLERS, "halving", halving)
    assert samplers.SAMPLERS is registry.SAMPLERS and "factor" in registry.settings("halving")
    settings = {**TINY, "data": {"name": "ring", "num_samples": 64}, "sde": {"name": "vp"}}
    settings["sampling"] = {**TINY["sampling"], "sampler": "halving", "denoise": False, "options": {"factor": 0.0}}
    with pytest.raises(ConfigError, match="sampling.rtol: .* means nothing for sampler 'halving'"):
        from_dict({**settings, "sampling": {**settings["sampling"], "rtol": 0.1}})
    train(from_dict(settings), tmp_path)
    with np.load(tmp_path / "samples" / "final.npz") as final:
        np.testing.assert_array_equal(final["samples"], np.zeros((8, 2)))


def test_what_a_sampler_declares(monkeypatch):
    """In its own file, on the function itself; one wrapped by `functools.wraps` declares the same."""

    @functools.wraps(halving)
    def logged(*args, **kwargs):
        return halving(*args, **kwargs)

    @on_grid(lambda settings: settings["inner"] + 1)
    def inner_steps(key, score_fn, sde, shape, *, times, inner=2, **options):
        """One of three evaluations a step by default."""

    @adaptive
    def own_steps(key, score_fn, sde, shape, *, rtol=1e-3):
        """One that has no grid."""

    def silent(key, score_fn, sde, shape, *, times, **options):
        """One that says nothing."""

    for name, function in {"logged": logged, "inner": inner_steps, "own": own_steps, "silent": silent}.items():
        monkeypatch.setitem(registry.SAMPLERS, name, function)
    assert [registry.is_adaptive(name) for name in ("logged", "inner", "own")] == [False, False, True]
    assert registry.evaluations_per_step("logged", {}) == 1
    assert registry.evaluations_per_step("inner", {}) == 3
    assert registry.evaluations_per_step("inner", {"inner": 4}) == 5
    with pytest.raises(TypeError, match="the sampler silent does not say .*: decorate it with .*on_grid"):
        registry.is_adaptive("silent")


def spread(subject, settings):
    """The standard deviation of the data, which is known."""
    value = float(np.std(subject.data.read(np.arange(subject.data.num_examples))["x"]))
    return metrics.Measured({"spread": value}, [f"spread {value:.3f}"], {"results": value})


def twos(settings, split):
    x = np.full((settings.num_samples, 2), 2.0, np.float32)
    x[::2] *= -1
    return data.arrays(x, name=f"twos ({split})")


def test_a_metric_and_a_data_source(monkeypatch, tmp_path, capsys):
    """In a configuration, during training, and by the command afterwards."""
    from sgmjax.commands import evaluate

    monkeypatch.setitem(SOURCES, "twos", Source(twos, ("num_samples",), "plus and minus two", "which hold out 'test'"))
    monkeypatch.setitem(metrics.METRICS, "spread", spread)
    assert data.load("twos", num_samples=6).num_examples == 6
    with pytest.raises(ConfigError, match="data.image_size: 8 means nothing for plus and minus two"):
        from_dict({"data": {"name": "twos", "image_size": 8}})
    settings = {**TINY, "data": {"name": "twos", "num_samples": 32}}
    settings["train"] = {**TINY["train"], "metrics": ("spread",), "metrics_every": 2}
    train(from_dict(settings), tmp_path)
    out = capsys.readouterr().out
    assert "step 2  spread 2.000" in out and "step 4  spread 2.000" in out
    assert (tmp_path / "metrics" / "spread_step4.json").is_file()
    assert evaluate.main(["evaluate", f"--workdir={tmp_path}", "--metrics=spread"]) == 0
    assert "spread 2.000" in capsys.readouterr().out
    settings["train"]["metrics"] = ("spraed",)
    with pytest.raises(ConfigError, match="train.metrics: no metric called 'spraed'; there are bpd, .*spread"):
        train(from_dict(settings), tmp_path / "other")
