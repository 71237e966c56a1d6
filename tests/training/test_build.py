"""From settings to functions: every process trains and samples, and what cannot work is refused by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import objectives
from sgmjax.config import ConfigError, from_dict
from sgmjax.samplers import plan
from sgmjax.tasks import Variables, build

RECIPE = {"name": "recipe", "D": ((0.1, 0.0), (0.0, 1.0)), "Q": ((0.0, -1.0), (1.0, 0.0))}
PROCESSES = {
    "vp": {"name": "vp"},
    "subvp": {"name": "subvp"},
    "ve": {"name": "ve"},
    "cld": {"name": "cld"},
    "psld": {"name": "psld"},
    "third_order": {"name": "third_order"},
    "recipe": RECIPE,
}


def config(**sections):
    settings = {
        "data": {"name": "ring"},
        "model": {"name": "mlp", "width": 8, "depth": 1},
        "sampling": {"steps": 3},
    }
    return from_dict({name: {**settings.get(name, {}), **sections.get(name, {})} for name in {*settings, *sections}})


LOSSES = [(name, weighting) for name in PROCESSES for weighting in ("simple", "likelihood")]
AT_ONCE = [("ve", "likelihood"), ("psld", "simple"), ("recipe", "simple")]


@pytest.mark.parametrize("name, weighting", tiers.alike(LOSSES, AT_ONCE))
def test_every_process_has_a_finite_loss_with_gradients_and_draws_samples(name, weighting):
    objective = {"weighting": weighting, "time_sampling": "importance" if weighting == "likelihood" else "uniform"}
    settings = config(sde=PROCESSES[name], objective=objective)
    task = build.task(settings, (2,))
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = {"x": np.ones((4, 2), np.float32), "label": np.zeros(4, np.int32)}

    @jax.jit
    def evaluate(variables, key):
        loss, grads = jax.value_and_grad(lambda v: task.loss(v, key, batch, train=True)[0])(variables)
        samples, info = task.sample(variables, jax.random.fold_in(key, 1), 5, settings.sampling)
        return loss, grads, samples, info.nfe

    loss, grads, samples, nfe = evaluate(variables, jax.random.key(1))
    assert np.isfinite(loss) and loss > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads))
    assert samples.shape == (5, 2) and np.isfinite(samples).all()
    assert nfe == 3


def test_initial_loss_of_a_zero_prediction_is_the_noise_variance():
    """eps_hat = 0 has simple loss E eps^2 = 1; 4 standard errors of a mean of chi-squared variables."""
    task = build.task(config(), (2,))
    variables = jax.tree.map(jnp.zeros_like, jax.jit(task.init)(jax.random.key(0)))
    batch = {"x": np.zeros((2000, 2), np.float32), "label": np.zeros(2000, np.int32)}
    loss = jax.jit(lambda v: task.loss(v, jax.random.key(1), batch, train=False)[0])(variables)
    assert abs(loss - 1) < 4 * np.sqrt(2 / 8000)


def test_labels_reach_a_class_conditional_network():
    task = build.task(config(model={"num_classes": 3}), (2,), 3)
    leaves, structure = jax.tree.flatten(jax.jit(task.init)(jax.random.key(0)))
    draws = np.random.default_rng(0)
    variables = jax.tree.unflatten(structure, [jnp.asarray(draws.normal(size=p.shape), p.dtype) for p in leaves])
    predict = jax.jit(lambda labels: task.score_fn(variables, labels=labels)(jnp.ones((1, 2, 2)), jnp.ones(1)))
    assert not np.allclose(predict(jnp.asarray([0])), predict(jnp.asarray([1])))


def test_images_are_scaled_as_configured():
    model = {"name": "ncsnpp", "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    settings = {"data": {"name": "digits", "centered": False}, "model": model, "sde": {"name": "ve"}}
    task = build.task(from_dict(settings), (4, 4, 1))
    assert not task.centered and not task.network.centered


def test_training_on_dequantised_images():
    """The network then sees (x + u) / 128 - 1: seen here at t = t_min, where the kernel adds almost nothing."""
    model = {"name": "ncsnpp", "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    seen = {}
    for dequantized in (False, True):
        settings = {"data": {"uniform_dequantization": dequantized}, "model": model, "sde": {"name": "vp"}}
        task = build.task(from_dict(settings), (4, 4, 1))

        def network(params, x, cond):
            seen.setdefault(dequantized, x)  # noqa: B023
            return x * 0.0

        probed = dataclasses.replace(task.model, network=network, time_law=objectives.uniform(1e-7, 2e-7))
        probe = dataclasses.replace(task, model=probed)
        batch = {"x": np.full((64, 4, 4, 1), 100, np.uint8)}
        probe.loss(Variables({}, {}), jax.random.key(0), batch, train=False)
    assert np.abs(np.asarray(seen[False]) - (100 / 127.5 - 1)).max() < 2e-3
    inside = (np.asarray(seen[True]) + 1) * 128 - 100
    assert inside.min() < 0.1 and inside.max() > 0.9 and np.abs(inside - 0.5).max() < 0.7


BAD = [
    ({"sde": {"gamma": 4.01}}, "sde: gamma = nu"),
    ({"sde": {**RECIPE, "D": ((1.0, 2.0), (2.0, 1.0))}}, "sde: D is not positive semi-definite"),
    ({"sde": {**RECIPE, "D": ((0.0, 0.0), (0.0, 1.0)), "Q": ((0.0, 0.0), (0.0, 0.0))}}, r"variable 0 \(data\)"),
    ({"sampling": {"sampler": "leapfrog"}}, "sampling.sampler: 'leapfrog' is unknown; choose one of adaptive_sde, "),
    (
        {"sampling": {"options": {"snr": 0.2}}},
        "sampling.options.snr: sampler 'sscs' has no such setting; there are precision, ",
    ),
    ({"sampling": {"sampler": "pc", "options": {"snr": -1.0}}}, "sampling: snr = -1: must be positive"),
    ({"sampling": {"sampler": "pc", "options": {"predictor": "euler"}}}, "sampling: predictor must be one of"),
    ({"sampling": {"sampler": "edm"}}, "sampling: edm is written for processes of one variable"),
    (
        {"sde": {"name": "vp"}, "sampling": {"sampler": "pc", "grid": "score_sde", "denoise": "x_mean", "steps": 8}},
        "sampling: num_scales = 4: beta / num_scales reaches 5; take more levels",
    ),
    ({"sampling": {"sampler": "em", "grid": "score_sde"}}, "sampling: grid 'score_sde' is for sampler 'pc'"),
    ({"sampling": {"sampler": "conjugate", "options": {"scheme": "heun"}, "steps": 2}}, "at least 3 evaluations"),
    ({"sde": {"gamma": 4.0, "nu": 0.0}, "objective": {"parameterization": "mixed"}}, "noised variables to come last"),
    ({"objective": {"time_conditioning": "sigma"}}, "'sigma' is for sde.name 've'"),
    ({"model": {"num_classes": 10}}, "model.num_classes: 10, but the data have no labels"),
    (
        {"model": {"name": "ncsnpp"}, "data": {"name": "digits"}},
        "model.name: 'ncsnpp' needs images and the data are vectors",
    ),
]


@pytest.mark.parametrize("sections, message", BAD, ids=[message for _, message in BAD])
def test_bad_settings_are_one_line_before_any_compilation(sections, message):
    sections = {name: dict(values) for name, values in sections.items()}
    if sections.get("model", {}).get("name") == "ncsnpp":
        settings = from_dict(sections)
    else:
        settings = config(**sections)
    with pytest.raises(ConfigError, match=message) as caught:
        build.task(settings, (2,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampling, nfe",
    [
        ({"sampler": "pc", "steps": 11}, 11),
        ({"sampler": "pc", "steps": 50, "grid": "score_sde", "denoise": "x_mean", "options": {"snr": 0.1}}, 50),
        ({"sampler": "edm", "steps": 11, "grid": "rho", "denoise": "tweedie"}, 11),
        ({"sampler": "deis", "steps": 10, "grid": "logsnr", "options": {"order": 2}}, 10),
        ({"sampler": "exponential_midpoint", "steps": 10, "denoise": False}, 10),
        ({"sampler": "ggf", "rtol": 0.5}, None),
    ],
)
def test_a_sampling_section_reaches_its_sampler(sampling, nfe):
    """The budget counts evaluations of the network, whatever a step costs; options change what is drawn."""
    settings = from_dict({"sde": {"name": "vp"}, "sampling": sampling}).sampling
    sde = build.process(from_dict({"sde": {"name": "vp"}}).sde)
    run = jax.jit(lambda key: plan.draw(settings, key, lambda z, t: -z, sde, (2, 3)))
    x, info = run(jax.random.key(0))
    assert x.shape == (2, 3) and np.all(np.isfinite(x))
    assert nfe is None or info.nfe == nfe


def test_non_square_images_are_refused():
    with pytest.raises(ConfigError, match="set data.image_size"):
        build.task(from_dict({"data": {"name": "digits"}}), (8, 6, 1))


def test_scale_by_sigma_with_a_positional_embedding_is_refused():
    settings = {
        "sde": {"name": "ve"},
        "model": {"name": "ncsnpp", "scale_by_sigma": True},
        "objective": {"time_conditioning": "sigma", "parameterization": "score"},
    }
    with pytest.raises(ConfigError, match="embedding_type 'fourier'"):
        build.task(from_dict(settings), (32, 32, 3))
