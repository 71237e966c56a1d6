"""score_sde's predictors, correctors, whole predictor-corrector chains and ODE end points, on recorded noise."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import samplers, score, sdes
from sgmjax.samplers import _predictor_corrector as pc
from sgmjax.samplers import predictors
from sgmjax.samplers.common import batch_time

pytestmark = pytest.mark.reference

PARAMETERS = refdata.load_json("scoresde_kernels.json")
ARRAYS = refdata.load_npz("scoresde_samplers.npz")
SNR, CORRECTOR_STEPS = 0.16, 2  # of the recorded runs: the README's
T_MIN = {"ve": 1e-5}  # others 1e-3
PREDICTORS = {"euler_maruyama": "em", "reverse_diffusion": "reverse_diffusion", "ancestral_sampling": "ancestral"}
CORRECTORS = {"langevin": "langevin", "ald": "annealed_langevin"}
BOUND = {"f64": 1e-9, "official": 1e-5}  # relative to the largest entry


def process(name: str) -> sdes.SDE:
    c = PARAMETERS[name]
    if name == "ve":
        return sdes.ve(sigma_min=c["sigma_min"], sigma_max=c["sigma_max"])
    return {"vp": sdes.vp, "subvp": sdes.subvp}[name](beta_min=c["beta_0"], beta_max=c["beta_1"])


def state(x):
    """Recorded NCHW as (batch, 1, H, W, C)."""
    return jnp.moveaxis(jnp.asarray(x, jnp.float64), 1, -1)[:, None]


def column(t, x):
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def network(x, label):
    return 0.1 * jnp.sin(x) + 0.05 * jnp.cos(0.01 * column(label, x))


def sigma_network(x, label):
    s = column(label, x)
    return -x / (1 + s**2) + 0.1 * jnp.sin(x / (1 + s)) / (1 + s)


def score_function(name: str, num_scales: int, *, continuous: bool = True, net=network):
    """What score_sde makes of a network. Networks trained at discrete levels (VP: DDPM, VE: SMLD) get a level."""
    sde = process(name)
    if continuous or name == "subvp":
        if name == "ve":
            return score.score_from_network(net, sde, parameterization="score", time_conditioning="sigma")
        return score.score_from_network(net, sde, parameterization="eps", time_conditioning="t999")
    if name == "ve":
        return lambda z, t: net(z, jnp.round((1 - t) * (num_scales - 1)))
    tau = np.arange(num_scales) / (num_scales - 1)
    alphas = 1 - np.asarray(sde.schedule.beta(tau)) / num_scales
    std = jnp.asarray(np.sqrt(1 - np.cumprod(alphas)))

    def score_fn(z, t):
        label = t * (num_scales - 1)
        return -net(z, label) / column(std[label.astype(int)], z)

    return score_fn


def close(ours, theirs, mode: str) -> None:
    theirs = np.asarray(theirs, np.float64)
    assert np.abs(np.asarray(ours) - theirs).max() <= BOUND[mode] * max(np.abs(theirs).max(), 1.0)


@functools.partial(jax.jit, static_argnames=("name", "predictor", "flow", "continuous", "num_scales"))
def predict(z, noise, t, level, *, name, predictor, flow, continuous, num_scales):
    sde, score_fn = process(name), score_function(name, num_scales, continuous=continuous)
    kernel, factor, _ = predictors.discrete_step(sde, t[None], level[None], num_scales)
    s = t  # not used
    if PREDICTORS[predictor] == "ancestral":
        return predictors.ancestral_step(score_fn, sde, z, t, s, noise, kernel=kernel, factor=factor)
    if PREDICTORS[predictor] == "em":
        kernel = predictors.euler_kernel(sde, t[None], jnp.full((1,), 1 / num_scales))
    return predictors.reverse_diffusion_step(score_fn, sde, z, t, s, noise, kernel=kernel, probability_flow=flow)


def start(name: str):
    return state(ARRAYS["x"] * (3 if name == "ve" else 1))


def at(key: str, num_scales: int):
    t = float(re.search(r"/t([\d.e-]+)$", key)[1])
    return jnp.asarray(t), jnp.asarray(int(t * (num_scales - 1)))


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(f64/\w+/predictor/.*)/x"))
def test_predictors(x64, key):
    """One update with 1,000 levels: x and x_mean."""
    _, name, _, predictor, flow, continuous, _ = key.split("/")
    scales = PARAMETERS[name]["N"]
    out = predict(
        start(name), state(ARRAYS["noises"][0]), *at(key, scales), name=name, predictor=predictor, flow=flow == "pf1",
        continuous=continuous == "cont1", num_scales=scales,
    )  # fmt: skip
    for mode in BOUND:
        for ours, theirs in zip(out, ("x", "x_mean")):
            close(ours, state(ARRAYS[f"{key.replace('f64', mode, 1)}/{theirs}"]), mode)


@functools.partial(jax.jit, static_argnames=("name", "corrector", "continuous", "num_scales"))
def correct(z, noises, t, level, *, name, corrector, continuous, num_scales):
    sde, score_fn = process(name), score_function(name, num_scales, continuous=continuous)
    _, _, alpha = predictors.discrete_step(sde, t[None], level[None], num_scales)
    mean = z
    for noise in noises:
        z, mean = pc.langevin_step(
            score_fn, sde, z, t, noise, snr=SNR, alpha=alpha, annealed=CORRECTORS[corrector] == "annealed_langevin"
        )
    return z, mean


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(f64/\w+/corrector/.*)/x"))
def test_correctors(x64, key):
    """Two Langevin steps with 1,000 levels."""
    _, name, _, corrector, continuous, _ = key.split("/")
    scales = PARAMETERS[name]["N"]
    noises = jnp.stack([state(n) for n in ARRAYS["noises"][:CORRECTOR_STEPS]])
    out = correct(
        start(name), noises, *at(key, scales), name=name, corrector=corrector, continuous=continuous == "cont1",
        num_scales=scales,
    )  # fmt: skip
    for mode in BOUND:
        for ours, theirs in zip(out, ("x", "x_mean")):
            close(ours, state(ARRAYS[f"{key.replace('f64', mode, 1)}/{theirs}"]), mode)


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(f64/\w+/pc_N\d+/.*)/x"))
def test_chains(x64, key):
    """Whole chains from the recorded prior, and what they cost.

    The program reports N (1 + corrector steps) whatever it runs; a part that is "none" evaluates nothing.
    """
    _, name, scales, parts, denoise = key.split("/")
    scales = int(scales.removeprefix("pc_N"))
    predictor, corrector = parts.rsplit("_", 1)
    steps = int(ARRAYS[f"{key}/nfe"]) // scales - 1
    sde, draws = process(name), iter(ARRAYS["noises"])
    initial = state(next(draws)) * (PARAMETERS[name]["sigma_max"] if name == "ve" else 1)
    each = (corrector != "none") * steps + (predictor != "none")
    noise = jnp.stack([jnp.stack([state(next(draws)) for _ in range(each)]) for _ in range(scales)])
    called: list = []

    def score_fn(z, t):
        jax.debug.callback(lambda: called.append(1))
        return score_function(name, scales, net=sigma_network if name == "ve" else network)(z, t)

    _, info = jax.jit(
        lambda noise, initial: samplers.pc(
            jax.random.key(0), score_fn, sde, (initial.shape[0], *initial.shape[2:]),
            times=samplers.score_sde_times(scales, t_min=T_MIN.get(name, 1e-3)), num_scales=scales, snr=SNR,
            predictor=PREDICTORS.get(predictor, "none"), corrector=CORRECTORS.get(corrector, "none"),
            corrector_steps=steps, denoise="x_mean" if denoise == "denoise1" else False, noise=noise, initial=initial,
            dtype=jnp.float64,
        )
    )(noise, initial)  # fmt: skip
    jax.effects_barrier()
    assert info.nfe == len(called) == scales * each
    for mode in BOUND:
        close(info.state, state(ARRAYS[f"{key.replace('f64', mode, 1)}/x"]), mode)


def gaussian_score(sde, mu, s):
    def score_fn(z, t):
        kernel = sde.transition(t)
        variance = s**2 * kernel.mean**2 + kernel.covariance
        return -(z - column(kernel.mean, z) * mu) / column(variance, z)

    return score_fn


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(gauss/f64/\w+/ode_denoise0)/x"))
def test_ode_end_points(x64, key):
    """The flow at 1e-10 against the closed form, RK45 at 1e-5 against RK45 at 1e-5, and the last step of score_sde:
    one mean of reverse diffusion with 1,000 levels."""
    name = key.split("/")[2]
    sde, t_min, scales = process(name), T_MIN.get(name, 1e-3), PARAMETERS[name]["N"]
    score_fn = gaussian_score(sde, state(ARRAYS["gauss/mu"][None]), float(ARRAYS["gauss/s"]))
    initial = state(ARRAYS["x"]) * (PARAMETERS[name]["sigma_max"] if name == "ve" else 1)
    shape = (initial.shape[0], *initial.shape[2:])

    @jax.jit
    def run(tolerance):
        return samplers.ode(
            jax.random.key(0), score_fn, sde, shape, t_min=t_min, rtol=tolerance, atol=tolerance, denoise=False,
            initial=initial, dtype=jnp.float64,
        )[1]  # fmt: skip

    np.testing.assert_allclose(run(1e-10).state, state(ARRAYS[f"gauss/{name}/ode_exact_x"]), atol=1e-7)
    info = run(1e-5)
    level = jnp.asarray([int(t_min * (scales - 1))])
    kernel, _, _ = predictors.discrete_step(sde, batch_time(t_min, level.astype(jnp.float64)), level, scales)
    _, mean = predictors.reverse_diffusion_step(score_fn, sde, info.state, t_min, 0.0, 0 * initial, kernel=kernel)
    for denoise, ours in enumerate((info.state, mean)):
        for mode in BOUND:
            np.testing.assert_allclose(ours, state(ARRAYS[f"gauss/{mode}/{name}/ode_denoise{denoise}/x"]), atol=1e-3)
        # indicative: round-off moves the program's own count by a fifth between float32 and float64
        assert refdata.same_count(info.nfe, ARRAYS[f"gauss/f64/{name}/ode_denoise{denoise}/nfev"])
