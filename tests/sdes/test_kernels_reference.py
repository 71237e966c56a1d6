"""Kernels, coefficients and reverse drifts against the recorded official programs and 60-digit values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import samplers, sdes

OPTIMIZED = True  # bounds of some roundings

PSLD = refdata.load_json("psld_kernels.json")
CLD = refdata.Recorded(
    {k.split("/")[0]: v for k, v in refdata.load_json("cld_kernels.json").items() if k.endswith("epsoff/")},
    "cld_kernels.json",
)
SCORESDE = refdata.load_json("scoresde_kernels.json")

pytestmark = pytest.mark.reference


def psld(name: str, factor: str = "auto", numerical_eps: float = 0.0) -> sdes.Recipe:
    c = PSLD[name]
    return sdes.psld(
        beta_min=c["beta_min"], beta_max=c["beta_max"], gamma=c["gamma"], nu=c["nu"], kappa=c["kappa"], factor=factor,
        numerical_eps=numerical_eps,
    )  # fmt: skip


def cld(name: str, numerical_eps: float = 0.0) -> sdes.Recipe:
    c = CLD[name]
    return sdes.cld(
        beta_min=c["beta0"], beta_max=c["beta0"] + c["beta1"], m_inv=c["m_inv"], kappa=c["gamma"],
        numerical_eps=numerical_eps,
    )  # fmt: skip


def scoresde(name: str) -> sdes.SDE:
    c = SCORESDE[name]
    if name == "ve":
        return sdes.ve(sigma_min=c["sigma_min"], sigma_max=c["sigma_max"])
    return {"vp": sdes.vp, "subvp": sdes.subvp}[name](beta_min=c["beta_0"], beta_max=c["beta_1"])


def split(u):
    """(batch, 2C, H, W) -> (batch, 2, C, H, W)."""
    return u.reshape(u.shape[0], 2, u.shape[1] // 2, *u.shape[2:])


def matrix(arrays: dict, prefix: str, names: str) -> np.ndarray:
    """(n, 2, 2) from entries named by pairs of the two letters."""
    a, b = names
    rows = [[arrays[prefix + i + j] for j in (a, b)] for i in (a, b)]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def symmetric(arrays: dict, prefix: str, names: str) -> np.ndarray:
    a, b = names
    xx, xy, yy = arrays[prefix + a + a], arrays[prefix + a + b], arrays[prefix + b + b]
    return np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)


def check_covariance(covariance, exact, tolerance: float) -> None:
    """Error of each entry against the standard deviations of its two variables."""
    std = np.sqrt(np.diagonal(exact, axis1=1, axis2=2))
    assert np.max(np.abs(np.asarray(covariance) - exact) / (std[:, :, None] * std[:, None, :])) < tolerance


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
@pytest.mark.parametrize("name", refdata.cases(PSLD))
def test_psld_kernels_in_float32_are_the_exact_ones(name, matching):
    arrays = refdata.load_npz("psld_kernels.npz")
    kernel = psld(name).transition(jnp.asarray(arrays["t"], jnp.float32), matching)
    check_covariance(kernel.covariance, symmetric(arrays, f"{name}/{matching}/exact_var_", "xm"), 1e-5)
    exact = matrix(arrays, f"{name}/exact_mean_", "xm")
    assert np.max(np.abs(kernel.mean - exact) / np.abs(exact).max(-1, keepdims=True)) < 1e-5


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
@pytest.mark.parametrize("name", refdata.cases(CLD))
def test_cld_kernels_in_float32_are_the_exact_ones(name, matching):
    arrays = refdata.load_npz("cld_kernels.npz")
    kernel = cld(name).transition(jnp.asarray(arrays["t"], jnp.float32), matching)
    check_covariance(kernel.covariance, symmetric(arrays, f"{name}/{matching}/exact_var_", "xv"), 1e-5)
    exact = matrix(arrays, f"{name}/exact_mean_", "xv")
    assert np.max(np.abs(kernel.mean - exact) / np.abs(exact).max(-1, keepdims=True)) < 1e-5


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
@pytest.mark.parametrize("factor", ["lower", "upper"])
@pytest.mark.parametrize("name", refdata.cases(PSLD))
def test_psld_factors_with_the_official_crutch(x64, name, factor, matching):
    """coeff is L, inv_coeff is L^-T. numerical_eps hides the official closed form's cancellation at small t; what of
    it is left there (1e-16 absolute against numerical_eps) bounds the comparison."""
    arrays = refdata.load_npz("psld_kernels.npz")
    eps = PSLD[name]["numerical_eps"]
    kernel = psld(name, factor, eps).transition(jnp.asarray(arrays["t"], jnp.float64), matching)
    prefix = f"{name}/{factor}/{matching}/epsoff/"
    for ours, theirs in ((kernel.factor, "coeff"), (kernel.inverse_transpose, "inv_coeff")):
        exact = matrix(arrays, prefix + theirs, "12")
        size = np.abs(exact).max(-1, keepdims=True)
        np.testing.assert_allclose(ours / size, exact / size, atol=1e-6)


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
@pytest.mark.parametrize("name", refdata.cases(CLD))
def test_cld_factors_and_noise_multiplier(x64, name, matching):
    arrays = refdata.load_npz("cld_kernels.npz")
    kernel = cld(name, CLD[name]["numerical_eps"]).transition(jnp.asarray(arrays["t"], jnp.float64), matching)
    prefix = f"{name}/{matching}/epsoff/"
    for (i, j), key in {(0, 0): "chol_xx", (1, 0): "chol_vx", (1, 1): "chol_vv"}.items():
        size = np.sqrt(np.sum(np.asarray(kernel.factor)[:, i] ** 2, axis=-1))
        np.testing.assert_allclose(kernel.factor[:, i, j] / size, arrays[prefix + key] / size, atol=1e-6)
    np.testing.assert_allclose(-kernel.inverse_transpose[:, 1, 1], arrays[prefix + "noise_multiplier"], rtol=1e-6)


@pytest.mark.parametrize("factor", ["lower", "upper"])
@pytest.mark.parametrize("name", refdata.cases(PSLD))
def test_psld_score_of_eps(x64, name, factor):
    arrays = refdata.load_npz("psld_kernels.npz")
    sde = psld(name, factor, PSLD[name]["numerical_eps"])
    kernel = sde.transition(jnp.asarray(arrays["fixed_t"]), "hsm")
    half = sde.num_noised == 1
    eps = arrays["fixed_eps_half"][:, None] if half else split(arrays["fixed_eps_full"])
    ours = kernel.score(jnp.asarray(eps, jnp.float64))
    np.testing.assert_allclose(ours, split(arrays[f"{name}/{factor}/f64/get_score"]), rtol=1e-8)
    np.testing.assert_allclose(ours, split(arrays[f"{name}/{factor}/official/get_score"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", refdata.cases(PSLD))
def test_psld_coefficients_and_prior(x64, name):
    arrays = refdata.load_npz("psld_kernels.npz")
    sde, t = psld(name), jnp.asarray(arrays["t"])
    np.testing.assert_allclose(sde.schedule.beta(t), arrays[f"{name}/beta"], rtol=1e-12)
    np.testing.assert_allclose(sde.schedule.integral(t), arrays[f"{name}/beta_int"], rtol=1e-12)
    rate = sde.diffusion_squared(t)
    for i, letter in enumerate("xm"):
        np.testing.assert_allclose(rate[:, i, i], arrays[f"{name}/likelihood_weighting_{letter}"], rtol=1e-12)
    u, t = jnp.asarray(split(arrays["fixed_u"]), jnp.float64), jnp.asarray(arrays["fixed_t"])
    np.testing.assert_allclose(sde.drift(u, t), split(arrays[f"{name}/sde_drift"]), rtol=1e-9, atol=1e-12)
    diffusion = jnp.diagonal(sde.diffusion(t), axis1=1, axis2=2)
    np.testing.assert_allclose(diffusion, split(arrays[f"{name}/sde_diffusion"])[:, :, 0, 0, 0], rtol=1e-12)


@pytest.mark.parametrize("name", refdata.cases(CLD))
def test_cld_coefficients_reverse_drifts_and_prior(x64, name):
    arrays = refdata.load_npz("cld_kernels.npz")
    sde, t = cld(name), jnp.asarray(arrays["t"])
    np.testing.assert_allclose(sde.schedule.beta(t), arrays[f"{name}/beta"], rtol=1e-12)
    np.testing.assert_allclose(sde.schedule.integral(t), arrays[f"{name}/beta_int"], rtol=1e-12)
    np.testing.assert_allclose(sde.diffusion_squared(t)[:, 1, 1] / 2, arrays[f"{name}/loss_multiplier"], rtol=1e-12)
    u, t = jnp.asarray(split(arrays["fixed_u"]), jnp.float64), jnp.asarray(arrays["fixed_t"])
    np.testing.assert_allclose(sde.drift(u, t), split(arrays[f"{name}/sde_drift"]), rtol=1e-9, atol=1e-12)
    score_v = jnp.asarray(arrays["fixed_score_v"], jnp.float64)
    score = jnp.stack([jnp.zeros_like(score_v), score_v], axis=1)
    for flow in (0, 1):  # recorded at the reverse time tau = fixed_t
        drift = samplers.reverse_drift(lambda z, t: score, sde, u, 1 - t, probability_flow=bool(flow))
        np.testing.assert_allclose(drift, split(arrays[f"{name}/reverse_pf{flow}_drift"]), rtol=1e-9, atol=1e-12)
    logp = arrays[f"{name}/prior_logp_x"] + arrays[f"{name}/prior_logp_v"]
    np.testing.assert_allclose(sde.prior_logp(u), logp, rtol=1e-12)


@pytest.mark.parametrize("name", refdata.cases(SCORESDE))
def test_scoresde_kernels(x64, name):
    arrays = refdata.load_npz("scoresde_kernels.npz")
    sde, t = scoresde(name), jnp.asarray(arrays["t"])
    kernel = sde.transition(t)
    np.testing.assert_allclose(kernel.mean[:, 0, 0], arrays[f"{name}/mean_coeff"], rtol=1e-10)
    np.testing.assert_allclose(kernel.factor[:, 0, 0], arrays[f"{name}/std"], rtol=1e-9)
    np.testing.assert_allclose(sde.diffusion(t)[:, 0, 0], arrays[f"{name}/diffusion"], rtol=1e-9)
    x, t = jnp.asarray(arrays["fixed_x"], jnp.float64)[:, None], jnp.asarray(arrays["fixed_t"], jnp.float64)
    np.testing.assert_allclose(sde.drift(x, t)[:, 0], arrays[f"{name}/sde_drift"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sde.prior_logp(x), arrays[f"{name}/prior_logp"], rtol=1e-10)
    score = jnp.asarray(arrays["fixed_score"], jnp.float64)[:, None]
    for flow in (0, 1):
        drift = -samplers.reverse_drift(lambda z, t: score, sde, x, t, probability_flow=bool(flow))[:, 0]
        np.testing.assert_allclose(drift, arrays[f"{name}/reverse_pf{flow}_drift"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", refdata.cases(SCORESDE))
def test_scoresde_kernels_in_float32(name):
    arrays = refdata.load_npz("scoresde_kernels.npz")
    kernel = jax.jit(scoresde(name).transition)(jnp.asarray(arrays["t"], jnp.float32))
    np.testing.assert_allclose(kernel.mean[:, 0, 0], arrays[f"{name}/mean_coeff"], rtol=2e-6)
    np.testing.assert_allclose(kernel.factor[:, 0, 0], arrays[f"{name}/std"], rtol=2e-6)
