"""Processes with a variance at t = 0, and the geometric schedule: 50-digit arithmetic, identities, LSGM's numbers."""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import refdata
import tiers

from sgmjax import sdes
from sgmjax.config import ConfigError, from_dict
from sgmjax.samplers import linear_flow
from sgmjax.sdes import schedules
from sgmjax.tasks import build

OPTIMIZED = True  # bounds of some roundings

SETTINGS = refdata.load_json("lsgm_diffusion.json")
T = np.concatenate([[1e-6, 1e-5], np.geomspace(1e-4, 1, 9), [0.49, 0.5, 0.51, 0.999]]).astype(np.float32)

PROCESSES = {
    "vp": sdes.vp(sigma2_0=1e-4),
    "geometric_vp": sdes.geometric_vp(),
    "geometric_vp_0": sdes.geometric_vp(sigma2_min=1e-3, sigma2_max=0.9, sigma2_0=0.0),
    "subvp": sdes.subvp(sigma2_0=1e-4),
    "ve": sdes.ve(sigma_min=0.01, sigma_max=13.0, sigma2_0=1e-6),
}


def lsgm_process(c: dict) -> sdes.SDE:
    """The process of LSGM's settings."""
    if c["sde_type"] == "geometric_sde":
        return sdes.geometric_vp(sigma2_min=c["sigma2_min"], sigma2_max=c["sigma2_max"], sigma2_0=c["sigma2_0"])
    if c["sde_type"] == "vesde":
        return sdes.ve(sigma_min=c["sigma2_min"] ** 0.5, sigma_max=c["sigma2_max"] ** 0.5, sigma2_0=c["sigma2_0"])
    make = {"vpsde": sdes.vp, "sub_vpsde": sdes.subvp}[c["sde_type"]]
    return make(beta_min=c["beta_start"], beta_max=c["beta_end"], sigma2_0=c["sigma2_0"])


def exact(name: str, t: float):
    """Mean coefficient, variance, f and g^2 in 50 digits, from the papers' formulas."""
    mp = mpmath.mp.clone()
    mp.dps = 50
    t = mp.mpf(float(t))
    if name == "ve":
        low, high, first = mp.mpf(0.01) ** 2, mp.mpf(13.0) ** 2, mp.mpf(1e-6)
        return mp.one, first + low * ((high / low) ** t - 1), mp.zero, low * (high / low) ** t * mp.log(high / low)
    if name.startswith("geometric"):
        low, high, first = (3e-5, 0.999, 3e-5) if name == "geometric_vp" else (1e-3, 0.9, 0.0)
        low, high, first = (mp.mpf(v) for v in (low, high, first))
        level = low * (high / low) ** t
        beta = level * mp.log(high / low) / (1 - first + low - level)
        variance = level - low + first
        return mp.sqrt((1 - variance) / (1 - first)), variance, -beta / 2, beta
    low, high, first = mp.mpf(0.1), mp.mpf(20), mp.mpf(1e-4)
    beta, B = low + t * (high - low), low * t + t * t * (high - low) / 2
    if name == "vp":
        return mp.exp(-B / 2), 1 - (1 - first) * mp.exp(-B), -beta / 2, beta
    return mp.exp(-B / 2), (1 - mp.exp(-B)) ** 2 + first * mp.exp(-B), -beta / 2, beta * (1 - mp.exp(-2 * B))


@jax.jit
def coefficients(sde, t):
    kernel = sde.transition(t)
    return (
        kernel.mean[:, 0, 0], kernel.factor[:, 0, 0] ** 2, sde.drift_matrix(t)[:, 0, 0],
        sde.diffusion_squared(t)[:, 0, 0], sde.distance_to_prior(t),
    )  # fmt: skip


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_against_50_digits(name):
    """Every coefficient to a few roundings at every t; e^x at x = 10 costs ten of them."""
    ours = [np.asarray(v, np.float64) for v in coefficients(PROCESSES[name], jnp.asarray(T))]
    truth = np.array([[float(v) for v in exact(name, t)] for t in T]).T
    for value, expected in zip(ours, truth):
        np.testing.assert_allclose(value, expected, rtol=4e-6, atol=1e-30)
    prior = 1.0 if name != "ve" else np.inf
    mp_distance = [float(1 - exact(name, t)[1] / prior) for t in T]
    np.testing.assert_allclose(ours[-1], mp_distance, rtol=2e-5)  # e^{-10}: the exponent's rounding, ten times


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_no_variance_at_zero_is_the_process_as_it_was(name):
    plain = analytic.PROCESSES[name]
    first = 0.0 if name != "ve" else plain.sigma_min**2
    again = {"vp": sdes.vp, "subvp": sdes.subvp, "ve": sdes.ve}[name](sigma2_0=first)
    for ours, before in zip(coefficients(again, jnp.asarray(T)), coefficients(plain, jnp.asarray(T)), strict=True):
        np.testing.assert_allclose(ours, before, rtol=3e-6 if name == "ve" else 0)
    np.testing.assert_allclose(again.prior_factor(), plain.prior_factor(), rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_two_steps_are_one(name):
    """The kernel to t is that to s followed by the transition from s to t, down to s = 0."""
    sde, t = PROCESSES[name], jnp.asarray(T)
    for s in (jnp.zeros_like(t), 0.4 * t):
        first, second = sde.transition(s), sde.transition_between(s, t)
        np.testing.assert_allclose(
            second.covariance + second.mean**2 * first.covariance, sde.transition(t).covariance, rtol=6e-6
        )
    np.testing.assert_allclose(sde.transition(jnp.zeros(1)).covariance[0, 0, 0], sde.initial_variance(), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(sde.initial_factor())[0, 0] ** 2, sde.initial_variance(), rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_inverse_variance(x64, name):
    sde, t = PROCESSES[name], jnp.asarray(T, jnp.float64)
    variance = sde.transition(t).covariance[:, 0, 0]
    if name == "subvp":
        with pytest.raises(ValueError, match="has no inverse"):
            sde.inverse_variance(variance)
        sde = sdes.subvp()
        variance = sde.transition(t).covariance[:, 0, 0]
    np.testing.assert_allclose(sde.inverse_variance(variance), t, rtol=1e-8)


def test_inverse_variance_of_phase_space_is_refused():
    for sde in (sdes.psld(), sdes.cld()):
        with pytest.raises(ValueError, match="2 phase variables"):
            sde.inverse_variance(jnp.ones(1))


@pytest.mark.parametrize("name", tiers.alike(["psld", "cld", "third_order", "recipe4", "oblique"], ["psld"]))
def test_distance_to_prior_in_phase_space(name):
    """1 - Sigma_t / Sigma_inf in the data entry, which cancels at late times: 1e-13 there in float64."""
    sde = analytic.PROCESSES[name]
    ours = jax.jit(lambda sde, t: sde.distance_to_prior(t))(sde, jnp.asarray(T))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.array(leaf, np.float64), sde)
        _, _, factor = jax.jit(analytic.marginal)(wide, np.asarray(T, np.float64), 0.0, 0.0)
    variance = np.sum(np.asarray(factor)[:, 0] ** 2, axis=-1) / np.asarray(sde.Sigma_inf)[0, 0]
    np.testing.assert_allclose(ours, 1 - variance, rtol=1e-4, atol=1e-9)


def test_variance_at_zero_in_phase_space():
    """sigma2_0 enters hybrid score matching's kernel as E diag(sigma2_0, 0) E^T, and dsm's through the draw of z_0."""
    matrices = {"D": [[0.0, 0.0], [0.0, 1.0]], "Q": [[0.0, -1.0], [1.0, 0.0]]}
    plain, noisy = sdes.recipe(**matrices), sdes.recipe(**matrices, sigma2_0=0.01)
    t = jnp.asarray([0.01, 0.3, 1.0])
    kernel = noisy.transition(t)
    data = np.asarray(kernel.mean)[:, :, :1]
    expected = np.asarray(plain.transition(t).covariance) + 0.01 * data * np.swapaxes(data, 1, 2)
    np.testing.assert_allclose(kernel.covariance, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(noisy.transition(t, "dsm").covariance, plain.transition(t, "dsm").covariance)
    z0 = noisy.augment(jnp.ones((20000, 1)), jax.random.key(0))
    np.testing.assert_allclose(np.var(np.asarray(z0[:, 0])), 0.01, rtol=0.05)  # 5 standard errors


def test_geometric_schedule_on_the_host_is_float64():
    schedule = sdes.geometric_vp().schedule
    t = np.linspace(0, 1, 7)
    B = schedule.integral(t)
    assert isinstance(B, np.ndarray) and B.dtype == np.float64
    np.testing.assert_allclose(schedule.inverse(B), t, atol=1e-12)
    level = 3e-5 * (0.999 / 3e-5) ** t
    np.testing.assert_allclose(np.exp(-B), (1 - level) / (1 - 3e-5), rtol=1e-12)
    np.testing.assert_allclose(schedule.between(t[:-1], t[1:]), np.diff(B), rtol=1e-12)
    step = 1e-6
    slope = (schedule.integral(t[1:-1] + step) - schedule.integral(t[1:-1] - step)) / (2 * step)
    np.testing.assert_allclose(schedule.beta(t[1:-1]), slope, rtol=1e-7)


def test_geometric_schedule_drives_any_process(x64):
    """CLD with a geometric rate has CLD's kernel at the same B."""
    schedule = schedules.geometric(sigma2_min=1e-3, sigma2_max=0.99, sigma2_0=0.0)
    matrices = {"D": [[0.0, 0.0], [0.0, 1.0]], "Q": [[0.0, -1.0], [1.0, 0.0]]}
    ours = sdes.recipe(**matrices, schedule=schedule)
    unit = sdes.recipe(**matrices, schedule=sdes.LinearSchedule(beta_min=5.0, beta_max=5.0))
    t = jnp.asarray([0.2, 0.9])
    B = schedule.integral(t)
    np.testing.assert_allclose(ours.transition(t).covariance, unit.transition(B / 5).covariance, rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_exponential_integrators_see_the_same_kernel(x64, name):
    sde, tau = PROCESSES[name], np.asarray(T, np.float64)
    host = linear_flow.evaluate(linear_flow.float64_process(sde), tau)
    kernel = sde.transition(jnp.asarray(tau))
    np.testing.assert_allclose(host.factor[:, 0, 0], kernel.factor[:, 0, 0], rtol=1e-9)
    np.testing.assert_allclose(host.ggT[:, 0, 0], sde.diffusion_squared(jnp.asarray(tau))[:, 0, 0], rtol=1e-9)


def test_processes_are_pytrees_that_do_not_recompile():
    traces = []

    @jax.jit
    def variance(sde):
        traces.append(1)
        return sde.transition(jnp.asarray([0.3])).covariance

    values = [float(variance(sdes.vp(sigma2_0=first))[0, 0, 0]) for first in (0.0, 0.1, 0.2)]
    assert len(traces) == 1 and values[0] < values[1] < values[2]
    slope = jax.grad(lambda first: jnp.sum(sdes.vp(sigma2_0=first).transition(jnp.asarray([0.3])).covariance))(0.1)
    np.testing.assert_allclose(slope, np.exp(-(0.1 * 0.3 + 19.9 * 0.045)), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sdes.vp(sigma2_0=1.0), "sigma2_0 = 1: must be at least 0 and below 1"),
        (lambda: sdes.subvp(sigma2_0=-0.1), "sigma2_0 = -0.1: must be at least 0"),
        (lambda: sdes.ve(sigma2_0=-1.0), "sigma2_0 = -1: a variance"),
        (lambda: sdes.recipe(D=[[1.0]], Q=[[0.0]], sigma2_0=float("nan")), "a variance must be zero or positive"),
        (lambda: sdes.geometric_vp(sigma2_min=0.5, sigma2_max=0.1), "below sigma2_max = 0.1"),
        (lambda: sdes.geometric_vp(sigma2_max=1.0), "must start at 0 or above and end below 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_configurations_reach_them():
    for section in (
        {"name": "geometric_vp", "sigma2_min": 1e-4}, {"name": "vp", "sigma2_0": 0.01},
        {"name": "subvp", "sigma2_0": 0.01}, {"name": "ve", "sigma2_0": 0.01},
    ):  # fmt: skip
        sde = build.process(from_dict({"sde": section}).sde)
        np.testing.assert_allclose(sde.initial_variance(), section.get("sigma2_0", 1e-4))
    with pytest.raises(ConfigError, match="sde: sigma2_min = 0.5 must be positive and below sigma2_max = 0.1"):
        build.process(from_dict({"sde": {"name": "geometric_vp", "sigma2_min": 0.5, "sigma2_max": 0.1}}).sde)


# ---- the official program


@pytest.mark.parametrize("name", refdata.cases(SETTINGS))
def test_official_coefficients(x64, reference, name):
    arrays = refdata.load_npz("lsgm_diffusion.npz")
    sde, t = lsgm_process(SETTINGS[name]), jnp.asarray(arrays["t"])
    mean, variance, f, g2, _ = coefficients(sde, t)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-15)
    close(mean, arrays[f"{name}/e2int_f"])
    # the official variance of VP and its kin is 1 - e^{-B}: 1e-16 absolute
    np.testing.assert_allclose(variance, arrays[f"{name}/var"], rtol=1e-9, atol=4e-16)
    close(f, arrays[f"{name}/f"])
    np.testing.assert_allclose(g2, arrays[f"{name}/g2"], rtol=1e-9, atol=1e-14)
    if f"{name}/inv_var_of_var" in arrays:
        np.testing.assert_allclose(sde.inverse_variance(variance), arrays[f"{name}/inv_var_of_var"], rtol=1e-8)


@pytest.mark.parametrize("name", refdata.cases(SETTINGS))
def test_official_variance_in_float32(reference, name):
    """Where float32 as published is 20% off."""
    arrays = refdata.load_npz("lsgm_diffusion.npz")
    variance = coefficients(lsgm_process(SETTINGS[name]), jnp.asarray(arrays["t"], jnp.float32))[1]
    np.testing.assert_allclose(variance, arrays[f"{name}/var"], rtol=4e-6)
