"""Likelihoods against the recorded official programs: CLD, score-SDE, LSGM, on Gaussian data with exact scores.

Ours are solved at 1e-7, so that a difference is the error of the recorded solve, at 1e-5: about 2e-3 nats. Evaluations
are compared at equal tolerances.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import exact, sdes
from sgmjax.data.dequantize import bits_per_dim
from sgmjax.samplers import likelihood

CLD = refdata.Recorded(
    {k.split("/")[0]: v for k, v in refdata.load_json("cld_kernels.json").items() if k.endswith("epsoff/")},
    "cld_kernels.json",
)
SCORESDE = refdata.load_json("scoresde_kernels.json")
LSGM = refdata.load_json("lsgm_diffusion.json")

pytestmark = pytest.mark.reference


def gaussian(arrays) -> exact.GaussianMixture:
    """The data of `gauss/...`, events flattened (every official sum is over all dimensions)."""
    return exact.mixture(arrays["gauss/mu"].reshape(1, -1), float(arrays["gauss/s"]))


def flat(x, phases: int):
    """(batch, phases C, H, W) -> (batch, phases, C H W)."""
    return jnp.asarray(x, jnp.float64).reshape(len(x), phases, -1)


@functools.partial(jax.jit, static_argnames=("probing", "solver"))
def run(sde, mixture, x0, momentum, noise, *, t_min, tolerance, probing, solver="Dopri5"):
    """The batch solved as one, as recorded."""
    return likelihood(
        jax.random.key(0), mixture.score_fn(sde), sde, x0, t_min=t_min, rtol=tolerance, atol=tolerance, solver=solver,
        probing=probing, momentum=momentum, noise=noise, per_sample=False, dtype=jnp.float64,
    )  # fmt: skip


@pytest.mark.parametrize(
    "prefix", refdata.cases(refdata.load_npz("cld_samplers.npz"), "(.+)/lik_joint_nll_mean_of_both")
)
def test_cld(x64, reference, prefix):
    """Published is one probe of the whole drift. Its mean over the momentum's signs is the default here."""
    arrays = refdata.load_npz("cld_samplers.npz")
    c = CLD[prefix.split("/")[1]]
    sde = sdes.cld(beta_min=c["beta0"], beta_max=c["beta0"] + c["beta1"], m_inv=c["m_inv"], kappa=c["gamma"])
    mixture = gaussian(arrays)
    part = lambda name: arrays[f"{prefix}/lik_{name}"]  # noqa: E731
    x0, momentum = flat(part("x0"), 1)[:, 0], flat(part("v0"), 1)[None]
    size = x0[0].size
    probes = flat(part("rademacher"), 2)
    solve = functools.partial(run, sde, mixture, x0, momentum, t_min=1e-5)
    for name, signs in (("joint_nll", (1, 1)), ("joint_nll_flipped_v_rademacher", (1, -1))):
        noise = (probes * jnp.asarray(signs)[None, :, None])[None]
        _, info = solve(noise, probing="drift", tolerance=1e-7)
        np.testing.assert_allclose(-info.log_joint[0], part(name), atol=5e-3)
        if name == "joint_nll":
            np.testing.assert_allclose(info.latent[0], flat(part("u_T"), 2), atol=5e-4)
            np.testing.assert_allclose(-info.bound, part("nll_bound"), atol=5e-3)
            np.testing.assert_allclose(bits_per_dim(info.bound, size), part("bpd"), atol=2e-4)
    _, loose = solve(probes[None, :, 1:], probing="blocks", tolerance=1e-5)
    assert refdata.same_count(loose.nfe, part("nfe"))
    _, info = solve(probes[None, :, 1:], probing="blocks", tolerance=1e-7)
    np.testing.assert_allclose(-info.log_joint[0], part("joint_nll_mean_of_both"), atol=5e-3)
    # The closed form at t = 0 differs by the prior's mismatch at the end and by what t_min leaves, both known here; the
    # auxiliary starts with its own variance, so that the law at t_min is that of hybrid score matching.
    ones, start = jnp.ones(len(x0)), jnp.stack([x0, momentum[0, :, 0]], axis=1)
    mismatch = sde.prior_logp(info.latent[0]) - mixture.log_prob_t(sde, info.latent[0], ones)
    at_t_min, rate = jax.jvp(lambda t: mixture.log_prob_t(sde, start, t), (1e-5 * ones,), (ones,))
    np.testing.assert_allclose(info.log_joint[0] - mismatch, at_t_min, atol=1e-4)
    variance = c["gamma"] / c["m_inv"]
    log_v0 = -0.5 * jnp.sum(start[:, 1] ** 2 / variance + jnp.log(2 * jnp.pi * variance), axis=1)
    np.testing.assert_allclose(-(mixture.log_prob(x0) + log_v0), part("exact_joint_nll_t0"), rtol=1e-9)
    # how fast that changes at t_min, for as long as t_min, and half as much for the curvature
    assert (np.abs(at_t_min + part("exact_joint_nll_t0")) <= 1.5e-5 * np.abs(rate) + 1e-9).all()


@pytest.mark.parametrize("prefix", refdata.cases(refdata.load_npz("scoresde_samplers.npz"), "(gauss/.+)/bpd"))
def test_scoresde(x64, reference, prefix):
    arrays = refdata.load_npz("scoresde_samplers.npz")
    _, mode, name, kind = prefix.split("/")
    c = SCORESDE[name]
    if name == "ve":
        sde: sdes.SDE = sdes.ve(sigma_min=c["sigma_min"], sigma_max=c["sigma_max"])
    else:
        sde = {"vp": sdes.vp, "subvp": sdes.subvp}[name](beta_min=c["beta_0"], beta_max=c["beta_1"])
    key = {"Rademacher": "gauss/rademacher", "Gaussian": "gauss/hutchinson_gaussian"}[kind.split("_")[1]]
    mixture, x0 = gaussian(arrays), flat(arrays["gauss/data"], 1)[:, 0]
    solve = functools.partial(run, sde, mixture, x0, None, flat(arrays[key], 1)[None], t_min=1e-5, probing="drift")
    _, loose = solve(tolerance=1e-5)
    assert refdata.same_count(loose.nfe, arrays[f"{prefix}/nfev"], 0.3)
    log_prob, info = solve(tolerance=1e-7)
    size = x0[0].size
    np.testing.assert_allclose(bits_per_dim(log_prob, size), arrays[f"{prefix}/bpd"], atol=2e-4)
    latent, scale = flat(arrays[f"{prefix}/z"], 1), float(np.asarray(sde.prior_factor())[0, 0])
    np.testing.assert_allclose(info.latent[0] / scale, latent / scale, atol=1e-4)
    if key == "gauss/rademacher":  # exact here, since the score's Jacobian is a multiple of the identity
        mismatch = sde.prior_logp(info.latent[0]) - mixture.log_prob_t(sde, info.latent[0], jnp.ones(len(x0)))
        exact_bpd = arrays[f"gauss/{name}/exact_bpd_t_eps"]
        np.testing.assert_allclose(bits_per_dim(log_prob - mismatch, size), exact_bpd, atol=1e-4)
    # [0, 1]: the same density of half the width, one bit more, is the same code
    halved = bits_per_dim(log_prob + size * math.log(2), size, centered=False)
    np.testing.assert_allclose(halved, bits_per_dim(log_prob, size), rtol=1e-12)


def lsgm(c: dict) -> sdes.SDE:
    """The process of LSGM's settings."""
    if c["sde_type"] == "geometric_sde":
        return sdes.geometric_vp(sigma2_min=c["sigma2_min"], sigma2_max=c["sigma2_max"], sigma2_0=c["sigma2_0"])
    if c["sde_type"] == "vesde":
        return sdes.ve(sigma_min=c["sigma2_min"] ** 0.5, sigma_max=c["sigma2_max"] ** 0.5, sigma2_0=c["sigma2_0"])
    make = {"vpsde": sdes.vp, "sub_vpsde": sdes.subvp}[c["sde_type"]]
    return make(beta_min=c["beta_start"], beta_max=c["beta_end"], sigma2_0=c["sigma2_0"])


@pytest.mark.parametrize("prefix", refdata.cases(refdata.load_npz("lsgm_ode.npz"), "(gauss/.+)/nll_nfe"))
def test_lsgm(x64, reference, prefix):
    """Recorded at a cut-off of 1e-3."""
    arrays = refdata.load_npz("lsgm_ode.npz")
    _, name, mode = prefix.split("/")
    sde = lsgm(LSGM[name])
    mixture, x0 = gaussian(arrays), flat(arrays["gauss/data"], 1)[:, 0]
    noise = flat(arrays["hutchinson"], 1)[None]
    log_prob, info = run(sde, mixture, x0, None, noise, t_min=1e-3, tolerance=1e-7, probing="drift")
    np.testing.assert_allclose(-log_prob, arrays[f"{prefix}/nll"], atol=5e-3)
    mismatch = sde.prior_logp(info.latent[0]) - mixture.log_prob_t(sde, info.latent[0], jnp.ones(len(x0)))
    np.testing.assert_allclose(mismatch - log_prob, arrays[f"gauss/{name}/exact_nll_at_ode_eps"], atol=1e-3)
