"""NCSN and NCSNv2 as runs: discrete levels, what the networks are told, the variants of the paper, what cannot work."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import data, objectives, sdes
from sgmjax.config import ConfigError, from_dict
from sgmjax.samplers import plan
from sgmjax.tasks import Variables, build

LEVELS = {
    "weighting": "annealed", "parameterization": "score", "time_conditioning": "sigma", "time_sampling": "levels",
    "num_levels": 6, "reduce": "half_sum",
}  # fmt: skip
SETTINGS = {
    "data": {"name": "digits", "centered": False},
    "sde": {"name": "ve", "sigma_min": 0.1, "sigma_max": 4.0},
    "model": {"name": "ncsnv2", "ngf": 2},
    "objective": LEVELS,
    "sampling": {
        "sampler": "annealed_langevin", "options": {"steps_per_level": 2, "start": "uniform"}, "grid": "levels",
        "steps": 6 * 2 + 1,
    },
}  # fmt: skip
NCSN = {"name": "ncsn", "ngf": 2, "num_levels": 6}
SHAPE = (8, 8, 1)


def config(**sections):
    """`SETTINGS`, with sections updated; a model or a process of another name replaces its section."""
    merged = {}
    for name in {*SETTINGS, *sections}:
        ours, theirs = SETTINGS.get(name, {}), sections.get(name, {})
        other = "name" in theirs and theirs["name"] != ours.get("name")
        merged[name] = theirs if other else {**ours, **theirs}
    return from_dict(merged)


VARIANTS = {
    "ncsnv2": {},
    "ncsn": {"model": NCSN, "objective": {"time_conditioning": "level"}},
    "continuous": {"objective": {"time_sampling": "uniform", "num_levels": None}},
    "importance": {"objective": {"time_sampling": "importance", "anneal_power": 1.0, "num_levels": None}},
    "not divided": {"model": {"scale_by_sigma": False}, "objective": {"parameterization": "eps"}},
}


WHOLE = [pytest.param("ncsnv2", True, marks=pytest.mark.slow), pytest.param("ncsn", True, marks=pytest.mark.slow)]


def with_network(task, network):
    """The task with network(params, x, cond) in place of its own, which takes long to compile."""
    return dataclasses.replace(task, model=dataclasses.replace(task.model, network=network))


AT_ONCE = ("ncsnv2", "ncsn", "continuous")
STUBS = tiers.alike([(n, False) for n in VARIANTS], [(n, False) for n in AT_ONCE])


@pytest.mark.parametrize("name, whole", STUBS + WHOLE)
def test_trains_and_samples(name: str, whole: bool):
    settings = config(**VARIANTS[name])
    task = build.task(settings, SHAPE)
    told = []

    def network(params, x, cond):
        told.append(cond.dtype)
        return -params["w"] * x / (1.0 + cond.astype(x.dtype)[:, None, None, None])

    init = task.init if whole else lambda key: Variables({"w": jnp.ones(())}, {})
    task = task if whole else with_network(task, network)
    batch = {"x": np.full((4, *SHAPE), 100, np.uint8), "label": np.zeros(4, np.int32)}

    @jax.jit
    def evaluate(key):
        variables = init(jax.random.key(0))
        loss, grads = jax.value_and_grad(lambda v: task.loss(v, key, batch, train=True)[0])(variables)
        samples, info = task.sample(variables, jax.random.fold_in(key, 1), 3, settings.sampling)
        return loss, grads, samples, info.nfe

    loss, grads, samples, nfe = evaluate(jax.random.key(1))
    assert np.isfinite(loss) and loss > 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads))
    assert samples.shape == (3, *SHAPE) and np.isfinite(samples).all() and nfe == 13
    if not whole:
        assert set(told) == {jnp.dtype(jnp.int32 if name == "ncsn" else jnp.float32)}  # an index, or sigma


def test_loss_of_a_run_is_annealed_dsm():
    task = build.task(config(objective={"anneal_power": 1.0}), SHAPE)
    probe = with_network(task, lambda _, x, sigma: -x / sigma[:, None, None, None] ** 2)
    x, key = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8), jax.random.key(3)
    none = Variables({}, {})
    loss, *_ = probe.loss(none, key, {"x": x}, train=False)
    theirs = objectives.annealed_dsm(
        jax.random.split(jax.random.key(3))[0], probe.model.eps_fn(none.params), task.sde,
        data.to_float(jnp.asarray(x), False), num_levels=6, anneal_power=1.0,
    )  # fmt: skip
    np.testing.assert_allclose(loss, jnp.mean(theirs), rtol=1e-5)


@pytest.mark.parametrize("denoise, steps, levels", [(True, 13, 6), (False, 12, 6), (True, 14, 6), (True, 5, 2)])
def test_levels_that_a_budget_gives(denoise, steps, levels):
    sampling = config(sampling={"denoise": denoise, "steps": steps}).sampling
    times, _ = plan.times(sampling, sdes.ve())
    np.testing.assert_allclose(times, sdes.level_times(levels))


@pytest.mark.parametrize("sigma_dist", ["geometric", "uniform"])
def test_levels_of_a_run_in_training_and_sampling(sigma_dist):
    """The levels drawn in training and those of the sampler are the published table."""
    table = np.linspace(4, 0.1, 6) if sigma_dist == "uniform" else np.geomspace(4, 0.1, 6)
    settings = config(sde={"sigma_dist": sigma_dist})
    task = build.task(settings, SHAPE)
    for times in (task.model.time_law.times, plan.times(settings.sampling, task.sde)[0]):
        np.testing.assert_allclose(task.sde.sigma(jnp.asarray(times, jnp.float32)), table, rtol=2e-6)


def test_other_grids_and_other_samplers():
    """The annealed sampler takes any grid, with one time for each level; others take the grid of levels."""
    times, _ = plan.times(config(sampling={"grid": "quadratic"}).sampling, sdes.vp())
    assert len(times) == 6 and times[0] == 1 and times[-1] == pytest.approx(1e-3)
    sampling = config(sampling={"sampler": "em", "options": {}, "steps": 6}).sampling
    np.testing.assert_allclose(plan.times(sampling, sdes.ve())[0], sdes.level_times(6))


TOLD = "level"
BAD = [
    ({"objective": {"num_levels": None}}, "objective.num_levels: time_sampling 'levels' needs their number"),
    ({"sde": {"sigma_dist": "cosine"}}, "sde.sigma_dist: "),
    ({"sde": {"name": "vp", "sigma_dist": "uniform"}}, "sde.sigma_dist: "),
    ({"objective": {"num_levels": 1}}, "objective.num_levels: 1, but annealing needs at least two"),
    ({"sde": {"sigma_min": 5.0}}, "sde.sigma_min: 5.0 is above sde.sigma_max=4.0"),
    (
        {"sde": {"name": "vp"}, "objective": {"time_conditioning": "t999"}, "model": {"scale_by_sigma": False}},
        "grid 'levels' ends at VE's sigma_min",
    ),
    (
        {
            "sde": {"name": "vp"}, "objective": {"time_conditioning": "t999", "parameterization": "eps"},
            "model": {"scale_by_sigma": False}, "sampling": {"grid": "logsnr"},
        },
        "objective.time_sampling: 'levels' are those of sde.name 've'",
    ),
    (
        {
            "sde": {"name": "psld"},
            "objective": {"time_sampling": "uniform", "time_conditioning": "t", "num_levels": None},
            "model": {"scale_by_sigma": False}, "sampling": {"sampler": "sscs", "options": {}, "grid": "uniform"},
        },
        "objective.weighting: 'annealed' needs one noise level",
    ),
    (
        {"model": NCSN, "objective": {"time_conditioning": TOLD, "time_sampling": "uniform"}},
        "objective.time_conditioning: 'level' is for discrete levels",
    ),
    ({"model": NCSN}, "model.name: 'ncsn' has parameters for each noise level"),
    (
        {"model": {**NCSN, "num_levels": 7}, "objective": {"time_conditioning": TOLD}},
        "objective.num_levels to model.num_levels=7, not 6",
    ),
    ({"objective": {"parameterization": "eps"}}, "objective.parameterization: the output of 'ncsnv2' is the score"),
    (
        {"model": NCSN, "objective": {"time_conditioning": TOLD}, "sampling": {"steps": 12}},
        "sampling.steps: the network knows 6 noise levels, so with 2 steps at each use 13",
    ),
    ({"sampling": {"steps": 4}}, "sampling: steps = 4: at least 5 evaluations are needed for two noise levels"),
    ({"sampling": {"options": {"step_size": 0.03}}}, r"sampling: step_size = 0.03: .* diverges at eps >= 2 sigma_L\^2"),
    ({"sampling": {"options": {"steps_per_level": 0}}}, "sampling: steps_per_level = 0: at least 1"),
    ({"sampling": {"options": {"T": 5}}}, "sampling.options.T: sampler 'annealed_langevin' has no such setting"),
]  # fmt: skip


@pytest.mark.parametrize("sections, message", BAD, ids=[message for _, message in BAD])
def test_bad_settings_are_one_line_before_any_compilation(sections, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build.task(config(**sections), SHAPE)
    assert "\n" not in str(caught.value)
