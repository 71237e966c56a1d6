"""GGF: whole runs against the official program and against the algorithm written out by hand; laws; errors."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import samplers, sdes


def replayed(i: int, shape) -> np.ndarray:
    """The i-th noise of the recorded runs."""
    return (1.4 * np.sin(7.0 * np.arange(1, 1 + np.prod(shape)) + 13.0 * (i + 1) ** 1.5)).reshape(shape)


def steep(z, t):
    return -3 * jnp.tanh((1 + t).reshape(-1, *(1,) * (z.ndim - 1)) * z)


# What AdaptivePredictor.update_fn of AlexiaJM/score_sde_fast_sampling (sde_sampling_torch.py, commit 5da8f3f) does with
# score_sde_pytorch's processes in float64, with `steep` for a score and `replayed` for randn_like, on three samples of
# shape (1, 2, 2) that start from cos(0), ..., cos(11) times a scale, at reltol 0.3, abstol 0.05, eps 1e-3: process,
# scale, first step, calls until each sample was at its end, and the end state without denoising.
OFFICIAL = {
    "vp": (sdes.vp(), 1.0, 0.01, [129, 121, 121], [
        0.887313906, 0.497083420, -0.208401799, -0.784409484, -0.092648263, -0.197489386,
        -0.164152632, -0.052789800, 0.271225425, 0.211421405, 0.071871979, -0.177838637
    ]),
    "ve": (sdes.ve(sigma_max=5.0), 5.0, 0.2, [418, 441, 436], [
        -0.443515838, -0.395199175, -0.160081928, 0.152865642, -0.325455549, -0.569414524,
        -0.529751479, -0.232824909, -0.180985636, -0.024820326, 0.218517423, 0.378152780
    ]),
    "subvp": (sdes.subvp(), 1.0, 0.01, [124, 119, 116], [
        -0.235145417, 0.528287504, 1.179629414, 1.040582353, -0.598438409, -1.202614529,
        -0.975461418, -0.283741599, 0.868144610, 0.421543782, -0.356687129, -0.882055134
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_whole_runs_of_the_official_program(x64, name):
    sde, scale, first_step, steps, expected = OFFICIAL[name]
    shape = (3, 1, 2, 2)
    noise = np.stack([replayed(i, shape) for i in range(450)])
    initial = scale * np.cos(np.arange(12.0)).reshape(shape)

    @jax.jit
    def run(sde, noise):
        return samplers.ggf(
            jax.random.key(0), steep, sde, (3, 2, 2), rtol=0.3, atol=0.05, first_step=first_step, initial=initial,
            noise=noise, denoise=False, dtype=jnp.float64,
        )  # fmt: skip

    x, info = run(sde, noise)
    assert np.array_equal(info.nfe, 2 * np.asarray(steps))
    np.testing.assert_allclose(np.ravel(x), expected, atol=1e-8)


BETA, GAMMA, NU, M_INV = 8.0, 0.01, 4.01, 4.0  # PSLD: critical damping makes m_inv = (gamma - nu)^2 / 4


def by_hand(z, noise, members, *, rtol, atol, norm, extrapolation, t_min, h=0.01):
    """The paper's algorithm for PSLD in numpy; the samples `members` share their steps. -> (end states, steps)."""
    forward = BETA / 2 * np.array([[-GAMMA, M_INV], [-1.0, -NU]])
    g = np.array([np.sqrt(BETA * GAMMA), np.sqrt(BETA * NU / M_INV)])[:, None]
    smallest = atol * np.array([1.0, M_INV**-0.5])[:, None]

    def drift(z, t):
        return -np.einsum("ij,bjn->bin", forward, z) - g**2 * 3 * np.tanh((1 + t) * z)

    z, t, steps = z[members], 1.0, 0
    previous = z
    while t > t_min:
        n = noise[steps, members]
        steps += 1
        euler = z + h * drift(z, t) + np.sqrt(h) * g * n
        heun = z + h / 2 * (drift(z, t) + drift(euler, t - h)) + np.sqrt(h) * g * n
        candidate, check = (heun, euler) if extrapolation else (euler, heun)
        scaled = np.abs(heun - euler) / np.maximum(smallest, rtol * np.maximum(np.abs(check), np.abs(previous)))
        error = scaled.max() if norm == "linf" else np.sqrt((scaled**2).mean())
        if error <= 1:
            z, previous, t = candidate, check, t - h
        if t - t_min < 1e-9:
            break
        h = min(t - t_min, 0.9 * h * error**-0.9)
    return z, steps


@pytest.mark.parametrize(
    "norm, extrapolation, per_sample", [("l2", True, True), ("linf", False, True), ("l2", False, False)]
)
def test_against_the_algorithm_by_hand(x64, norm, extrapolation, per_sample):
    """In phase space: noise in both variables, the absolute tolerance of the momentum in units of its own std."""
    rng = np.random.default_rng(0)
    noise, initial = rng.normal(size=(500, 3, 2, 5)), rng.normal(size=(3, 2, 5)) * np.array([1.0, 0.5])[:, None]
    options = {"rtol": 0.2, "atol": 0.05, "norm": norm, "extrapolation": extrapolation, "t_min": 0.01}
    _, info = jax.jit(
        lambda noise: samplers.ggf(
            jax.random.key(0),
            steep,
            sdes.psld(),
            (3, 5),
            initial=initial,
            noise=noise,
            per_sample=per_sample,
            denoise=False,
            dtype=jnp.float64,
            **options,
        )  # fmt: skip
    )(noise)
    for members in ([0], [1], [2]) if per_sample else ([0, 1, 2],):
        state, steps = by_hand(initial, noise, members, **options)
        np.testing.assert_allclose(info.state[np.asarray(members)], state, atol=1e-9)
        assert (info.nfe[members[0]] if per_sample else info.nfe) == 2 * steps


MU, S, T_MIN = 0.3, 0.5, 0.01


def moments(sde, batch: int, **options):
    """Sample mean (k,), covariance (k, k) and evaluations of GGF with the exact score of N(MU, S^2)."""
    score_fn = analytic.gaussian_score(sde, MU, S)
    _, info = jax.jit(
        lambda key: samplers.ggf(key, score_fn, sde, (batch, 4), t_min=T_MIN, denoise=False, **options)
    )(jax.random.key(2))  # fmt: skip
    z = np.asarray(info.state, np.float64).swapaxes(1, 2).reshape(-1, sde.k)
    return z.mean(0), np.cov(z.T, bias=True).reshape(sde.k, sde.k), info.nfe


@pytest.mark.slow
@pytest.mark.parametrize("name", analytic.PROCESSES)
def test_law_of_gaussian_data(name):
    """Moments against the exact reverse SDE's within 4.5 standard errors and 2%, what the tolerance leaves."""
    sde, batch = analytic.PROCESSES[name], 1000
    mean, covariance, _ = moments(sde, batch, rtol=0.03, atol=0.03, brownian_tol=2.0**-14)
    with jax.enable_x64(True):
        exact_mean, exact = analytic.true_law(sde, MU, S, T_MIN)
    variance = np.diag(exact)
    assert np.all(np.abs(mean - exact_mean) < (4.5 / np.sqrt(4 * batch) + 0.02) * np.sqrt(variance))
    spread = np.sqrt(np.outer(variance, variance) + exact**2)
    assert np.all(np.abs(covariance - exact) < (4.5 / np.sqrt(4 * batch) + 0.02) * spread)


def test_noise_drawn_afresh_is_biased():
    """The accepted noise opposes the drift: the official treatment widens the law, at any tolerance.

    The standard error of the ratio is sqrt(2 / 4000) = 0.022; measured 1.21 and 1.23, against 0.98 with the noise kept.
    """
    sde = analytic.PROCESSES["vp"]
    with jax.enable_x64(True):
        _, exact = analytic.true_law(sde, MU, S, T_MIN)
    for tolerance in (0.02, 0.005):
        _, covariance, _ = moments(sde, 1000, rtol=tolerance, atol=tolerance, rejected="redraw")
        assert covariance[0, 0] / exact[0, 0] > 1.1


def test_a_sample_of_its_own_steps_does_not_depend_on_the_batch():
    sde = sdes.psld()
    initial = sde.prior_sample(jax.random.key(0), (3, 4))
    crowd = initial.at[1:].multiply(5.0)
    run = jax.jit(lambda z: samplers.ggf(jax.random.key(0), steep, sde, (3, 4), rtol=0.2, atol=0.05, initial=z))
    (a, a_info), (b, b_info) = run(initial), run(crowd)
    assert np.array_equal(a[0], b[0]) and a_info.nfe[0] == b_info.nfe[0]
    assert not np.array_equal(a[1:], b[1:]) and not np.array_equal(a_info.nfe[1:], b_info.nfe[1:])


def test_too_few_steps_is_an_error():
    with pytest.raises(RuntimeError, match="within max_steps = 5"):
        jax.block_until_ready(samplers.ggf(jax.random.key(0), steep, sdes.vp(), (2, 3), max_steps=5))


def test_a_score_that_overflows_is_rejected():
    """An error that is not a number shortens the step instead of stopping the run."""

    def score_fn(z, t):
        return jnp.where(jnp.abs(z) > 8, jnp.nan, -jnp.sign(z) * z**2)

    start = jnp.full((2, 1, 3), 6.0)
    x, info = jax.jit(lambda: samplers.ggf(jax.random.key(0), score_fn, sdes.vp(), (2, 3), initial=start))()
    assert np.all(np.isfinite(x)) and np.all(info.nfe > 10)


def nothing(z, t):
    raise AssertionError("the score must not be called")


BAD = {
    "t_min": ({"t_min": 1.0}, "t_min = 1: must lie between 0 and 1"),
    "rtol": ({"rtol": 0.0}, "rtol = 0: must be positive"),
    "atol": ({"atol": -1.0}, "atol = -1: must be positive"),
    "norm": ({"norm": "l1"}, "norm must be 'l2' or 'linf', not 'l1'"),
    "rejected": ({"rejected": "forget"}, "rejected must be"),
    "initial": ({"initial": np.zeros((2, 3))}, "initial has shape"),
    "noise": ({"noise": np.zeros((9, 2, 1, 3))}, "noise has shape"),
    "denoise": ({"denoise": "mean"}, "denoise must be"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label):
    options, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        samplers.ggf(jax.random.key(0), nothing, sdes.psld(), (2, 3), **options)
    assert "\n" not in str(caught.value)
