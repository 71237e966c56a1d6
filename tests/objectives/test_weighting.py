"""Weightings by hand, one convention of weights for all laws of times, and what a new weighting takes: one line."""

from __future__ import annotations

import typing

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import config, objectives, sdes
from sgmjax.objectives.time_law import Mode, TimeDraw, normal_data_loss, unit_error_loss
from sgmjax.objectives.weighting import WEIGHTINGS, Options, Weighted, Weighting, weigh, weighted_square

sample = jax.jit(lambda law, u: law.sample(u))
T = np.array([0.02, 0.5, 0.9])
B = 0.1 * T + 9.95 * T**2  # of VP
BETA, DECAY, VARIANCE = 0.1 + 19.9 * T, np.exp(-B), 1 - np.exp(-B)
OF_VP = {
    "simple": 1.0, "reweightedv2": 1.0, "drop_all": 1.0, "reweightedv1": BETA, "likelihood": BETA / VARIANCE,
    "annealed": VARIANCE**-0.5, "ll": BETA / (2 * VARIANCE), "drop_sigma2t": BETA / 2, "rescale": 1 / (2 * DECAY),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_of_vp_by_hand(x64, name: str):
    """Multiplies e^2, here 9; anneal_power = 1."""
    sde, options = sdes.vp(), Options(anneal_power=1.0)
    eps = jnp.full((3, 1, 2), 3.0)

    @jax.jit
    def run(t):
        settings = {"weighting": name, "anneal_power": 1.0, "reduce": "sum"}
        losses = objectives.score_matching_loss(lambda z, t: 0 * z, sde, eps, t, eps, **settings)
        return weighted_square(sde, t, eps, name, options)[:, 0], unit_error_loss(sde, t, name, options), losses

    square, unit, losses = run(jnp.asarray(T))
    np.testing.assert_allclose(square, 9 * OF_VP[name] * np.ones(3), rtol=1e-12)
    np.testing.assert_allclose(unit, OF_VP[name] * np.ones(3), rtol=1e-12)
    np.testing.assert_allclose(losses, 18 * OF_VP[name] * np.ones(3), rtol=1e-12)


def test_weightings_in_phase_space_by_hand(x64):
    """CLD, e = 2 on the momentum: g = sqrt(2 Gamma beta) = sqrt(8) there, L_vv^2 the variance of v given x."""
    sde, t = sdes.cld(), np.array([0.1, 0.7])
    covariance = np.asarray(jax.jit(lambda t: sde.transition(t).covariance)(jnp.asarray(t)))
    given = covariance[:, 1, 1] - covariance[:, 0, 1] ** 2 / covariance[:, 0, 0]
    error = jnp.full((2, 1, 1), 2.0)
    for name, expected in {
        "simple": 4.0, "reweightedv1": 32.0, "drop_sigma2t": 16.0, "likelihood": 32 / given, "ll": 16 / given,
    }.items():  # fmt: skip
        found = jax.jit(lambda t: weighted_square(sde, t, error, name)[:, 0])(jnp.asarray(t))  # noqa: B023
        np.testing.assert_allclose(found, expected * np.ones(2), rtol=1e-9, err_msg=name)


def test_one_convention_of_weights(x64):
    """The mean of weight * f is the mean of f over the range, or its integral: f = e^t here."""
    sde, low, high = sdes.vp(), 0.1, 0.5
    laws = {
        "uniform": objectives.uniform(low, high),
        "importance": objectives.importance(sde, t_min=low, t_max=high),
        "bins": objectives.Bins(edges=np.array([low, 0.2, high]), cdf=np.array([0.0, 0.7, 1.0]), integral=True),
        "equal bins": objectives.EqualBins(edges=np.array([low, 0.2, high]), widths=np.array([0.1, 0.3])),
        "ll_uniform": objectives.lsgm_mode(sde, "ll_uniform", t_min=low, t_max=high).law,
        "official": objectives.lsgm_mode(sde, "ll_uniform", t_min=low, t_max=high, official=True).law,
        "ll_iw": objectives.lsgm_mode(sde, "ll_iw", t_min=low, t_max=high).law,
        "reweightedv1_iw": objectives.lsgm_mode(sde, "reweightedv1_iw", t_min=low, t_max=high).law,
    }
    u = (jnp.arange(100_000) + 0.5) / 100_000
    integral = np.exp(high) - np.exp(low)
    means = {"uniform", "importance", "equal bins", "official"}
    for name, law in laws.items():
        t, weight = sample(law, u)
        assert law.integral == (name not in means), name
        np.testing.assert_allclose(law.span, 0.4, rtol=1e-12)
        expected = integral if law.integral else integral / law.span
        np.testing.assert_allclose(jnp.mean(weight * jnp.exp(t)), expected, rtol=1e-6, err_msg=name)
    t, weight = objectives.levels(10).sample(u)
    np.testing.assert_allclose(jnp.mean(weight * jnp.exp(t)), np.mean(np.exp(sdes.level_times(10))), rtol=1e-9)
    with pytest.raises(ValueError, match=r"levels do not cover an interval .* use objectives.importance"):
        objectives.levels(10).span  # noqa: B018


# ---- a new weighting


def late(sde, t, error, options: Options) -> Weighted:
    """A = t, d = 4: t^2 e^2 / 4."""
    return Weighted(error * t[:, None, None], 4.0)


@pytest.fixture
def toy(monkeypatch) -> str:
    """The one line that makes it known."""
    monkeypatch.setitem(WEIGHTINGS, "late", late)
    return "late"


def test_a_new_weighting_is_known_everywhere(toy):
    """In the loss, in the law that importance-samples it, and as a mode of LSGM."""
    sde, t = sdes.vp(), jnp.asarray([0.5, 1.0])
    eps = jnp.ones((2, 1, 8))
    zero = lambda z, t: jnp.zeros_like(z)  # noqa: E731
    losses = jax.jit(lambda t: objectives.score_matching_loss(zero, sde, eps, t, eps, weighting=toy))(t)
    np.testing.assert_allclose(losses, [1 / 16, 1 / 4], rtol=1e-6)

    u = jnp.asarray([0.1, 0.5, 0.9])
    law = objectives.importance(sde, weighting=toy, t_min=0.01)
    np.testing.assert_allclose(sample(law, u).t, (1e-6 + u * (1 - 1e-6)) ** (1 / 3), rtol=1e-2)  # p = 3 t^2

    for how in ("uniform", "iw"):
        p = objectives.lsgm_mode(sde, f"{toy}_{how}", t_min=0.01)
        u = (jnp.arange(4096, dtype=jnp.float32) + 0.5) / 4096
        t, weight = sample(p, u)
        loss = normal_data_loss(sde, t, p.weighting)
        np.testing.assert_allclose(jnp.mean(weight * jnp.exp(t)), np.exp(1.0) - np.exp(0.01), rtol=2e-3)
        spread = np.std(weight * loss) / np.mean(weight * loss)
        assert spread < 0.25 if how == "iw" else spread > 0.5
    z0, draw = jnp.zeros((2, 8)), TimeDraw(jnp.asarray([0.5, 1.0]), jnp.asarray([1.0, 2.0]))

    @jax.jit
    def run(draw):
        settings = {"weighting": toy, "cross_entropy": False}
        return objectives.lsgm_losses(lambda params, z, t: jnp.zeros_like(z), {}, sde, z0, draw, eps, **settings)

    losses = run(draw)
    np.testing.assert_allclose(losses.p_objective, [0.5, 4.0], rtol=1e-6)


def test_configs_take_the_names_of_the_table():
    """Types that a config is checked against are made of the table."""
    assert typing.get_args(Weighting) == tuple(WEIGHTINGS)
    assert set(typing.get_args(Mode)) == {f"{name}_{how}" for name in WEIGHTINGS for how in ("uniform", "iw")}
    for name in WEIGHTINGS:
        assert config.from_dict({"objective": {"weighting": name}}).objective.weighting == name
    with pytest.raises(config.ConfigError, match="objective.weighting: .*late") as caught:
        config.from_dict({"objective": {"weighting": "late"}})
    assert all(name in str(caught.value) for name in WEIGHTINGS)


BAD = {
    "name": (lambda sde: weigh("un", sde, jnp.ones(1), jnp.ones((1, 1, 1))), "weighting must be one of simple, "),
    "frame": (lambda sde: weigh("reweightedv1", sde, jnp.ones(1), jnp.ones((1, 1, 1))), "reweightedv1 needs"),
    "annealed": (lambda sde: weigh("annealed", sde, jnp.ones(1), jnp.ones((1, 1, 1))), "'annealed' needs one noise"),
    "mode": (lambda sde: objectives.lsgm_mode(sde, "ll_is"), "mode must be one of simple_uniform, "),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_names_are_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        make(analytic.oblique_recipe())
    assert "\n" not in str(caught.value)


def test_laws_pass_through_jit_without_another_compilation():
    """A law is a pytree: other numbers of the same kind run the same program."""
    traced = []
    run = jax.jit(lambda law, u: traced.append(law) or law.sample(u))
    u = jnp.linspace(0.0, 0.9, 5)
    for t_min in (1e-3, 1e-2):
        run(objectives.uniform(t_min), u)
        run(objectives.lsgm_mode(sdes.vp(), "ll_iw", t_min=t_min), u)
        run(objectives.lsgm_mode(sdes.psld(), "ll_iw", t_min=t_min), u)
    assert len(traced) == 3
