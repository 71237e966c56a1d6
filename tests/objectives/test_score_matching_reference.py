"""Losses, example by example, against the recorded official programs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import objectives, score, sdes

CLD = refdata.load_json("cld_kernels.json")
PSLD = refdata.load_json("psld_kernels.json")
SCORESDE = refdata.load_json("scoresde_kernels.json")
CLD_VP = refdata.load_json("cld_losses.json")  # the repository's VP, by name

pytestmark = pytest.mark.reference

T_MIN = 1e-5  # the official programs' smallest training time


def nhwc(x, phases: int = 1):
    """(batch, k C, H, W) -> (batch, k, H, W, C)."""
    x = jnp.asarray(x, jnp.float64)
    x = x.reshape(x.shape[0], phases, x.shape[1] // phases, *x.shape[2:])
    return jnp.moveaxis(x, 2, -1)


def t_column(t, ndim: int):
    return t.reshape(-1, *(1,) * (ndim - 1))


def half_network(x, t):
    """Stand-in that predicts the momentum's noise from u = [x, m]."""
    x, m = jnp.split(x, 2, axis=-1)
    return 0.1 * jnp.sin(m) + 0.07 * jnp.cos(x) + 0.05 * jnp.cos(t_column(t, x.ndim))


def full_network(x, t):
    return 0.1 * jnp.sin(x) + 0.05 * jnp.cos(t_column(t, x.ndim))


def label_network(x, label):
    return 0.1 * jnp.sin(x) + 0.05 * jnp.cos(0.01 * t_column(label, x.ndim))


@pytest.mark.parametrize(
    "name, matching, weighting, mixed",
    refdata.cases(
        refdata.load_npz("cld_losses.npz"),
        r"(.+)/f64/(hsm|dsm)/(\w+)/mixed([01])",
        at_once=lambda name, matching, weighting, mixed: (matching == "hsm") == (mixed == "1"),
    ),
)
def test_cld_losses(x64, name, matching, weighting, mixed):
    arrays, mixed = refdata.load_npz("cld_losses.npz"), int(mixed)
    key = f"{name}/f64/{matching}/{weighting}/mixed{mixed}"
    c = CLD[f"{name}/{matching}/epsoff/"]
    sde = sdes.cld(
        beta_min=c["beta0"], beta_max=c["beta0"] + c["beta1"], m_inv=c["m_inv"], kappa=c["gamma"],
        numerical_eps=c["numerical_eps"],
    )  # fmt: skip
    t = jnp.asarray(arrays["rand_t"], jnp.float64) * (1 - T_MIN) + T_MIN
    x0 = nhwc(arrays["x0"])
    v0 = nhwc(arrays["noise_v0"]) * np.sqrt(c["gamma"] / c["m_inv"]) if matching == "dsm" else 0 * x0
    eps_fn = score.eps_from_network(half_network, sde, parameterization="mixed" if mixed else "eps", matching=matching)
    z0, eps = jnp.concatenate([x0, v0], axis=1), nhwc(arrays["noise_batch"], 2)
    perturbed = sde.transition(t, matching).perturb(z0, eps)
    np.testing.assert_allclose(perturbed, nhwc(arrays[f"{name}/f64/{matching}/perturbed"], 2), rtol=1e-7, atol=1e-8)
    score_fn = score.score_from_eps(eps_fn, sde, matching=matching)
    official = nhwc(arrays[f"{name}/f64/{matching}/score_mixed{mixed}"])[:, 0]
    np.testing.assert_allclose(score_fn(perturbed, t)[:, 1], official, rtol=1e-6, atol=1e-7)
    loss = objectives.score_matching_loss(
        eps_fn, sde, z0, t, eps, matching=matching, weighting=weighting,
        reduce="sum" if weighting == "reweightedv2" else "half_sum",
    )  # fmt: skip
    np.testing.assert_allclose(loss, arrays[key], rtol=1e-7)
    np.testing.assert_allclose(loss, arrays[key.replace("f64", "official")], rtol=1e-5)


@pytest.mark.parametrize(
    "name, weighting, mixed", refdata.cases(refdata.load_npz("cld_losses.npz"), r"([^/]+)/f64/(\w+)/mixed([01])")
)
def test_cld_repository_vp_losses(x64, name, weighting, mixed):
    arrays, mixed, c = refdata.load_npz("cld_losses.npz"), int(mixed), CLD_VP[name]
    sde = sdes.vp(beta_min=c["beta0"], beta_max=c["beta0"] + c["beta1"])
    t = jnp.asarray(arrays["rand_t"], jnp.float64) * (1 - T_MIN) + T_MIN
    x0 = nhwc(arrays["x0"])
    eps = nhwc(arrays["noise_batch"], 2)[:, :1]
    eps_fn = score.eps_from_network(full_network, sde, parameterization="mixed" if mixed else "eps")
    loss = objectives.score_matching_loss(
        eps_fn, sde, x0, t, eps, weighting=weighting, reduce="sum" if weighting == "reweightedv2" else "half_sum"
    )
    np.testing.assert_allclose(loss, arrays[f"{name}/f64/{weighting}/mixed{mixed}"], rtol=1e-9)


@pytest.mark.parametrize(
    "name, factor, matching",
    refdata.cases(refdata.load_npz("psld_losses.npz"), r"(.+)/(lower|upper)/f64/(hsm|dsm)/perturbed"),
)
def test_psld_losses(x64, name, factor, matching):
    arrays = refdata.load_npz("psld_losses.npz")
    prefix = f"{name}/{factor}/f64/{matching}"
    c = PSLD[name]
    sde = sdes.psld(
        beta_min=c["beta_min"], beta_max=c["beta_max"], gamma=c["gamma"], nu=c["nu"], kappa=c["kappa"], factor=factor,
        numerical_eps=c["numerical_eps"],
    )  # fmt: skip
    t, x0 = jnp.asarray(arrays["t"], jnp.float64), nhwc(arrays["x0"])
    m0 = nhwc(arrays["noise_m0"]) * np.sqrt(c["mm_0"]) if matching == "dsm" else 0 * x0
    z0, eps = jnp.concatenate([x0, m0], axis=1), nhwc(arrays["noise_eps"], 2)
    perturbed = sde.transition(t, matching).perturb(z0, eps)
    np.testing.assert_allclose(perturbed, nhwc(arrays[f"{prefix}/perturbed"], 2), rtol=1e-6, atol=1e-7)
    eps_fn = score.eps_from_network(half_network if sde.num_noised == 1 else full_network, sde)
    for reduce, label, combine in (("mean", 1, jnp.mean), ("sum", 0, jnp.sum)):
        loss = objectives.score_matching_loss(eps_fn, sde, z0, t, eps, matching=matching, reduce=reduce)
        np.testing.assert_allclose(combine(loss), arrays[f"{prefix}/reduce_mean{label}"], rtol=1e-7)


@pytest.mark.parametrize(
    "name, weighting, norm",
    refdata.cases(refdata.load_npz("psld_losses.npz"), r"([^/]+)/f64/(fid|nll)/(l1|l2)/reduce_mean1"),
)
def test_psld_repository_vp_losses(x64, name, weighting, norm):
    arrays = refdata.load_npz("psld_losses.npz")
    sde = sdes.vp(beta_min=0.1, beta_max=20.0)  # as the folder's README says; no .json does
    t, x0, eps = jnp.asarray(arrays["t"], jnp.float64), nhwc(arrays["x0"]), nhwc(arrays["noise_m0"])
    eps_fn = score.eps_from_network(full_network, sde)
    for reduce, label, combine in (("mean", 1, jnp.mean), ("sum", 0, jnp.sum)):
        loss = objectives.score_matching_loss(
            eps_fn,
            sde,
            x0,
            t,
            eps,
            reduce=reduce,
            norm=norm,
            weighting="simple" if weighting == "fid" else "likelihood",
        )
        expected = arrays[f"{name}/f64/{weighting}/{norm}/reduce_mean{label}"]
        np.testing.assert_allclose(combine(loss), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "name, likelihood, reduce_mean",
    refdata.cases(
        refdata.load_npz("scoresde_losses.npz"),
        r"f64/(\w+)/sde_loss/likelihood_weighting([01])/reduce_mean([01])/continuous1",
    ),
)
def test_scoresde_losses(x64, name, likelihood, reduce_mean):
    arrays, likelihood, reduce_mean = refdata.load_npz("scoresde_losses.npz"), int(likelihood), int(reduce_mean)
    key = f"f64/{name}/sde_loss/likelihood_weighting{likelihood}/reduce_mean{reduce_mean}/continuous1"
    c = SCORESDE[name]
    if name == "ve":
        sde = sdes.ve(sigma_min=c["sigma_min"], sigma_max=c["sigma_max"])
    else:
        sde = {"vp": sdes.vp, "subvp": sdes.subvp}[name](beta_min=c["beta_0"], beta_max=c["beta_1"])
    t = jnp.asarray(arrays["rand_t"], jnp.float64) * (1 - T_MIN) + T_MIN
    x0, eps = nhwc(arrays["x0"]), nhwc(arrays["z"])
    eps_fn = score.eps_from_network(
        label_network, sde, parameterization="score" if name == "ve" else "eps",
        time_conditioning="sigma" if name == "ve" else "t999",
    )  # fmt: skip
    loss = objectives.score_matching_loss(
        eps_fn, sde, x0, t, eps, weighting="likelihood" if likelihood else "simple",
        reduce="mean" if reduce_mean else "half_sum",
    )  # fmt: skip
    np.testing.assert_allclose(jnp.mean(loss), arrays[key], rtol=1e-8)
    expected = arrays[f"f64/{name}/score_fn/continuous1"]
    ours = score.score_from_eps(eps_fn, sde)(x0, t)
    np.testing.assert_allclose(ours[:, 0], nhwc(expected)[:, 0], rtol=1e-7, atol=1e-9)
