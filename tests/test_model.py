"""`ScoreModel`: its parts agree because it holds them all, and each answer is that of the functions it is made of."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgmjax
from sgmjax import exact, models, objectives, samplers, score, sdes

SDE = sdes.psld()


def key():
    return jax.random.key(0)


def network(params, x, cond, labels=None):
    shift = 0.0 if labels is None else labels[:, None].astype(x.dtype)
    return params["w"] * x + jnp.tanh(cond)[:, None] + shift


PARAMS = {"w": jnp.asarray(0.3)}


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
@pytest.mark.parametrize("parameterization", ["eps", "mixed", "score"])
def test_loss_is_that_of_the_functions(matching, parameterization):
    options = {"weighting": "likelihood", "reduce": "half_sum"}
    law = objectives.importance(SDE, weighting="likelihood", matching=matching)
    model = sgmjax.ScoreModel(
        SDE, network, parameterization=parameterization, time_conditioning="t999", matching=matching, time_law=law,
        **options,
    )  # fmt: skip
    x0 = jax.random.normal(jax.random.key(1), (6, 2))
    eps_fn = score.eps_from_network(
        lambda x, cond: network(PARAMS, x, cond), SDE, parameterization=parameterization, time_conditioning="t999",
        matching=matching,
    )  # fmt: skip
    theirs = objectives.score_matching(key(), eps_fn, SDE, x0, time_law=law, matching=matching, **options)
    np.testing.assert_array_equal(model.losses(PARAMS, key(), x0), theirs)
    ours = model.loss(PARAMS, key(), x0)
    np.testing.assert_allclose(ours, jnp.mean(model.losses(PARAMS, jax.random.split(key())[0], x0)), rtol=1e-6)


def test_scores_and_samples_are_those_of_the_functions():
    model = sgmjax.ScoreModel(SDE, network)
    z, t = jax.random.normal(key(), (4, 2, 2)), jnp.linspace(0.1, 1.0, 4)
    score_fn = score.score_from_network(lambda x, cond: network(PARAMS, x, cond), SDE)
    np.testing.assert_array_equal(model.score_fn(PARAMS)(z, t), score_fn(z, t))
    labels = jnp.arange(4)
    cond, none, both = (
        model.score_fn(PARAMS, **kwargs)(z, t)
        for kwargs in ({"labels": labels}, {}, {"labels": labels, "guidance": 3.0})
    )
    np.testing.assert_allclose(both, none + 3 * (cond - none), rtol=1e-4, atol=1e-4)
    x, info = model.sample(PARAMS, key(), (5, 2), sampler="em", nfe=7, grid="uniform")
    times = samplers.time_grid("uniform", 7, denoise=True)
    expected, _ = samplers.em(key(), score_fn, SDE, (5, 2), times=times)
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert info.nfe == 7


def test_the_exact_score_in_the_shape_of_a_network_draws_the_mixture():
    """A function that knows the answer, told x and t as networks are, is a model like any other."""
    sde, mixture = sdes.vp(), exact.mixture(np.asarray([[-1.0], [1.0]]), 0.1)
    exact_fn = mixture.score_fn(sde)

    def knows(params, x, cond):
        return -sde.transition(cond).factor[:, 0] * exact_fn(x[:, None], cond)[:, 0]

    model = sgmjax.ScoreModel(sde, knows)
    x, _ = jax.jit(lambda key: model.sample(None, key, (2000, 1), sampler="dpm_solver_pp", nfe=20))(key())
    assert abs(np.mean(np.abs(x)) - 1) < 0.02 and abs(np.mean(x > 0) - 0.5) < 4 * 0.5 / 2000**0.5


def test_flax_networks_as_modules_or_by_their_apply():
    net = models.MLP(out_channels=4, width=8, depth=1, num_classes=3)
    module, applied = sgmjax.ScoreModel(SDE, net), sgmjax.ScoreModel(SDE, net.apply)
    params = module.init(key(), (2,), labels=True)
    x0, labels = jnp.ones((3, 2)), jnp.arange(3)
    ours = module.loss(params, key(), x0, labels=labels)
    assert ours == applied.loss(params, key(), x0, labels=labels) and np.isfinite(ours)
    assert ours != module.loss(params, key(), x0, labels=labels[::-1])
    with pytest.raises(ValueError, match="network: is a function"):
        sgmjax.ScoreModel(SDE, network).init(key(), (2,))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: sgmjax.ScoreModel(SDE, "mlp"), "network: expected a Flax module or a function"),
        (lambda: sgmjax.ScoreModel(SDE, network, parameterization="epsilon"), "parameterization must be"),
        (lambda: sgmjax.ScoreModel("psld", network), r"sde: expected a process, sdes.psld\(\) say, got 'psld'"),
        (lambda: sgmjax.ScoreModel(SDE, network, trained_as="vp"), "trained_as: expected a process"),
        (lambda: sgmjax.ScoreModel(SDE, network, time_law="uniform"), "time_law: expected a law of times"),
        (
            lambda: sgmjax.ScoreModel(SDE, network, time_law=objectives.log_normal()),
            "time_law: expected a law of times",
        ),
        (lambda: sgmjax.ScoreModel(SDE, network, weighting="typo"), "weighting must be one of simple, .* not 'typo'"),
        (lambda: sgmjax.ScoreModel(SDE, network, reduce="typo"), "reduce must be 'mean', .* not 'typo'"),
        (lambda: sgmjax.ScoreModel(SDE, network, matching="typo"), "matching must be 'hsm' or 'dsm', not 'typo'"),
        (lambda: sgmjax.ScoreModel(sdes.ve(), network, time_conditioning="level"), "'level' needs num_levels"),
        (
            lambda: sgmjax.ScoreModel(sdes.ve(), models.NCSN(num_levels=3), time_conditioning="level", num_levels=10),
            "network: takes the index of one of its 3 noise levels; set time_conditioning='level' and num_levels=3",
        ),
        (lambda: sgmjax.ScoreModel(sdes.vp(), models.NCSN()), "network: takes the index of one of its 10 noise levels"),
        (lambda: sgmjax.ScoreModel(sdes.vp(), models.NCSNv2()), "network: divides its output by its time input"),
        (
            lambda: sgmjax.DenoiserModel(sdes.vp(), models.NCSNv2(), time_conditioning="sigma"),
            "network: takes the index .* or divides its output .* take another, or scale_by_sigma=False",
        ),
        (lambda: sgmjax.DenoiserModel(sdes.vp(), models.NCSN()), "network: takes the index of a noise level"),
        (
            lambda: sgmjax.ScoreModel(SDE, network).sample(PARAMS, key(), (2, 2), guidance=2.0),
            "guidance: towards which classes\\? give labels, or leave it 1",
        ),
        (
            lambda: sgmjax.timestep_embedding(jnp.ones(2), 3),
            "dim = 3: an embedding by sines and cosines has at least 4",
        ),
        (lambda: sgmjax.DenoiserModel("vp", network), "sde: expected a process"),
        (
            lambda: sgmjax.DenoiserModel(SDE, network, sigma_law=objectives.uniform()),
            "sigma_law: expected a law of noi",
        ),
        (lambda: sgmjax.DenoiserModel(SDE, network, reduce="typo"), "reduce must be"),
        (lambda: objectives.hears("typo"), "weighting must be one of"),
        (lambda: sgmjax.ScoreModel(sdes.psld(gamma=4.0, nu=0.0), network, parameterization="mixed"), "come last"),
        (lambda: sgmjax.ScoreModel(SDE, network).sample(PARAMS, key(), (2, 2), sampler="sssc"), "'sssc' is unknown"),
        (lambda: sgmjax.ScoreModel(SDE, network).sample(PARAMS, key(), (2, 2), options={"snr": 1}), "no such setting"),
    ],
)
def test_parts_that_do_not_fit_are_refused(build, words):
    with pytest.raises(ValueError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


def test_a_model_is_a_value():
    model = sgmjax.ScoreModel(SDE, network)
    assert dataclasses.replace(model, matching="dsm").matching == "dsm" and model.matching == "hsm"


def test_what_a_notebook_needs_is_at_the_top():
    for name in sgmjax.__all__:
        assert getattr(sgmjax, name) is not None
    average = sgmjax.moving_average({"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": jnp.zeros(2), "b": jnp.zeros(1)}, 0.75)
    np.testing.assert_allclose(average["a"], 0.75)
    groups = sgmjax.moving_average(average, {"a": jnp.zeros(2), "b": jnp.zeros(1)}, {"a": 1.0, "b": 0.0})
    np.testing.assert_array_equal(groups["a"], average["a"])
    np.testing.assert_array_equal(groups["b"], 0.0)
    assert sgmjax.timestep_embedding(jnp.ones(3), 8).shape == (3, 8)
