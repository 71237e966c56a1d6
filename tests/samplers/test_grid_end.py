"""Grids that end at t = 0, where most processes have no score: every sampler is right there, or says one sentence."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers
from sampler_cases import CASES, PROCESSES

from sgmjax import samplers, score, sdes

ALL = {name: pair[0] for name, pair in PROCESSES.items()} | {
    "geometric_vp": sdes.geometric_vp(),
    "cld_ridge": sdes.cld(numerical_eps=1e-6),
}
NOISY = ("ve", "geometric_vp", "cld_ridge")  # their kernel at 0 is no point: they have a score there
KIN = {"geometric_vp": "vp", "cld_ridge": "cld"}  # works for what these work for
MESSAGE = re.compile(r"times must end above 0: at the end, t = \S+, this run asks for the score, which is not finite")
GRID = np.array([0.5, 0.0])


def point_score(sde):
    """Through eps, as networks are: the exact score where all data are 0. NaN at t = 0 without noise there."""

    def eps_fn(z, t):
        kernel = sde.transition(t)
        white = jnp.swapaxes(kernel.inverse_transpose, 1, 2)
        return sde.restrict(sdes.linalg.apply(white, z))

    return score.score_from_eps(eps_fn, sde)


def draw(label: str, name: str, *, times=GRID, **options):
    """A run of a line of the table on two numbers, compiled, by the exact score of data that are all 0."""
    case, sde = CASES[label], ALL[name]
    initial = sde.prior_sample(jax.random.key(1), (2, 1))
    options = case.options | {"times": times, "initial": initial} | options
    run = functools.partial(samplers.SAMPLERS[case.sampler], score_fn=point_score(sde), sde=sde, shape=(2, 1))
    return jax.jit(lambda key: run(key, **options)[0])


ON_GRID = [label for label, case in CASES.items() if "times" in case.options]
COMBINATIONS = [(label, name) for label in ON_GRID for name in ALL if KIN.get(name, name) in CASES[label].processes]
# What asks for no score at the end of a grid, and what does; all others are made of functions of log t.
REACH = ("em", "sscs", "pc", "pc_ancestral", "pc_em_annealed", "splitting_oba", "splitting_naive")
ASK = ("edm", "edm_churn", "ode_fixed", "splitting", "annealed_langevin")


def accepted(label: str, name: str, denoise) -> bool:
    return label in REACH + ASK if name in NOISY else label in REACH and not denoise


@pytest.mark.parametrize(
    "name, denoise",
    tiers.alike(
        itertools.product(ALL, [False, True]),
        [("vp", False), ("ve", True), ("geometric_vp", False), ("psld", True), ("third_order", False)],
    ),
)
def test_refused_by_the_one_error_or_traced(name: str, denoise):
    for label in [label for label, process in COMBINATIONS if process == name]:
        run = draw(label, name, denoise=denoise)
        if accepted(label, name, denoise):
            jax.eval_shape(run, jax.random.key(0))
            continue
        with pytest.raises(ValueError, match=MESSAGE) as caught:
            jax.eval_shape(run, jax.random.key(0))
        assert "\n" not in str(caught.value)


FINITE = [(*pair, denoise) for pair in COMBINATIONS for denoise in (False, True) if accepted(*pair, denoise)]
AT_ONCE = {("em", "third_order", False), ("splitting_naive", "cld", False)}


@pytest.mark.parametrize("label, name, denoise", tiers.alike(FINITE, AT_ONCE))
def test_what_is_accepted_is_finite(label: str, name: str, denoise):
    assert np.isfinite(draw(label, name, denoise=denoise)(jax.random.key(0))).all()


# ---- values: one step of exact data 0, or from a grid's last time to 0, by hand

Z, NOISE, T = 0.7, -0.4, 0.5
VP_B = 0.1 * T + 0.5 * 19.9 * T**2  # of sdes.vp() up to T
VP_BETA = 0.1 + 19.9 * T
VE_HIGH, VE_LOW = 0.01 * 500**T, 0.01  # noise levels of sdes.ve(sigma_max=5) at T and 0
VALUES = {
    # z + t (beta z / 2 + beta score) + sqrt(t beta) n, score = -z / (1 - e^-B)
    "em": ("vp", {}, Z + T * VP_BETA * (Z / 2 - Z / -np.expm1(-VP_B)) + NOISE * np.sqrt(T * VP_BETA)),
    # the posterior of z_0 = 0 given z_T
    "pc_ancestral": ("vp", {}, 0.0),
    # (2 - E) z + L^2 score + L n = (1 - E) z + L n
    "pc": ("vp", {"corrector": "none"}, -np.expm1(-VP_B / 2) * Z + NOISE * np.sqrt(-np.expm1(-VP_B))),
    # no linear part: z + (s_T^2 - s_0^2) score = (s_0 / s_T)^2 z; with the mean of the noise of its two halves
    "sscs": ("ve", {}, (VE_LOW / VE_HIGH) ** 2 * (Z + NOISE * np.sqrt(VE_HIGH**2 - 0.01**2 * 500 ** (2 * T / 2)))
             + NOISE * np.sqrt(0.01**2 * 500 ** (2 * T / 2) - VE_LOW**2)),
    # D = 0, so that x / sigma is constant along the flow, and Heun's two slopes are equal
    "edm": ("ve", {}, VE_LOW / VE_HIGH * Z),
}  # fmt: skip


@pytest.mark.parametrize("label", VALUES)
def test_a_step_to_zero_by_hand(label: str):
    name, options, expected = VALUES[label]
    draws = {"sscs": 2, "edm": 0}.get(label, 1)
    given = {"initial": np.full((2, 1, 1), Z), "noise": np.full((1, draws, 2, 1, 1), NOISE)}
    x = draw(label, name, times=[T, 0.0], denoise=False, **options, **given)(jax.random.key(0))
    np.testing.assert_allclose(x, expected, rtol=2e-5, atol=1e-6)


def test_denoising_where_there_is_noise_at_zero():
    """VE at sigma_min: Tweedie's formula gives the data, 0; a step of length 0 of the drift gives the state itself."""
    given = {"initial": np.full((2, 1, 1), Z), "noise": np.full((1, 1, 2, 1, 1), NOISE), "times": [T, 0.0]}
    before, drift, mean = (draw("em", "ve", denoise=d, **given)(jax.random.key(0)) for d in (False, "sde", "tweedie"))
    np.testing.assert_allclose(mean, 0.0, atol=1e-6)
    np.testing.assert_array_equal(drift, before)
    assert np.abs(before).min() > 0.1


SDE = sdes.psld()
SHAPE = (2, 1)


def key():
    return jax.random.key(0)


ENDS = {
    "what rounds to 0": lambda: draw("em", "psld", times=[0.5, 1e-60])(key()),
    "third order runs out of float32": lambda: draw("em", "third_order", times=[0.5, 1e-25])(key()),
    "coefficients of another grid": lambda: samplers.deis(
        key(), None, SDE, SHAPE, times=[1.0, 0.0], denoise=False,
        coefficients=samplers.exponential_coefficients(SDE, [1.0, 0.1], order=1),
    ),
    "a traced process": lambda: jax.eval_shape(
        lambda sde: samplers.em(key(), point_score(sde), sde, SHAPE, times=[1.0, 0.0]), SDE
    ),
    "interpolation": lambda: samplers.annealed_langevin_interpolation(
        key(), None, sdes.vp(), SHAPE, times=[1.0, 0.0], step_size=1e-3
    ),
    "levels of a traced process": lambda: jax.eval_shape(
        lambda sde: samplers.annealed_langevin(key(), None, sde, SHAPE, times=[1.0, 0.0], step_size=1e-3), sdes.vp()
    ),
    "technique 4": lambda: samplers.technique_4(sdes.vp(), [1.0, 0.0]),
}  # fmt: skip


@pytest.mark.parametrize("label", ENDS)
def test_siblings_are_refused_by_the_same_error(label: str):
    with pytest.raises(ValueError, match=MESSAGE):
        ENDS[label]()


T_MIN = {
    "ode": lambda t: samplers.ode(key(), None, SDE, SHAPE, t_min=t),
    "adaptive_sde": lambda t: samplers.adaptive_sde(key(), None, SDE, SHAPE, t_min=t),
    "ggf": lambda t: samplers.ggf(key(), None, SDE, SHAPE, t_min=t),
    "encode": lambda t: samplers.encode(None, SDE, np.zeros((2, 2, 1), np.float32), t_min=t),
    "likelihood": lambda t: samplers.likelihood(key(), None, SDE, np.zeros((2, 1), np.float32), t_min=t),
    "bound": lambda t: samplers.variational_bound(key(), None, SDE, np.zeros((2, 1), np.float32), t_min=t),
}


@pytest.mark.parametrize("label", T_MIN)
def test_where_an_integration_ends(label: str):
    for t, message in ((0.0, "must lie between 0 and 1"), (np.nan, "must lie between"), (1e-50, "not finite so near")):
        with pytest.raises(ValueError, match=f"t_min = .*: .*{message}"):
            T_MIN[label](t)


def test_a_traced_grid_is_refused():
    with pytest.raises(ValueError, match="times are traced"):
        jax.eval_shape(lambda times: samplers.em(key(), None, SDE, SHAPE, times=times), jnp.asarray(GRID))


@pytest.mark.parametrize("sampler", ["ode", "ggf", "adaptive_sde"])
def test_a_constraint_is_for_samplers_on_a_grid(sampler: str):
    constraint = samplers.inpaint(SDE, np.zeros(1), np.ones(1))
    with pytest.raises(
        ValueError, match=f"{sampler} chooses its own steps and takes no constraint; these do: em, sscs"
    ):
        samplers.SAMPLERS[sampler](key(), None, SDE, SHAPE, constraint=constraint)


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0, -1.0])
def test_tolerances_are_positive_and_finite(value: float):
    calls = {
        "rtol": lambda: samplers.ode(key(), None, SDE, SHAPE, rtol=value),
        "atol": lambda: samplers.ggf(key(), None, SDE, SHAPE, atol=value),
        "brownian_tol": lambda: samplers.adaptive_sde(key(), None, SDE, SHAPE, brownian_tol=value),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name} = .*: must be positive and finite"):
            call()
