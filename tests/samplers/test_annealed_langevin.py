"""Annealed Langevin dynamics: its law in closed form, the sampler it shares its steps with, the recorded chains."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata
import tiers

from sgmjax import samplers, score, sdes
from sgmjax.samplers._annealed_langevin import annealed_langevin, annealed_langevin_interpolation, technique_4
from sgmjax.samplers.grids import host_noise_level
from sgmjax.sdes import noise_level
from sgmjax.sdes import noise_levels as nl

MU, S = 0.7, 0.5
VE = sdes.ve(sigma_max=3.0, sigma_min=0.05)
L, T, EPS = 6, 3, 1.5e-3
TIMES, SIGMAS = sdes.level_times(L), sdes.geometric_levels(3.0, 0.05, L)


def fresh():
    """A key that no other run has used up."""
    return jax.random.key(0)


def chain_law(sde, score_fn, times, step_size, steps, *, denoise=False):
    """Mean and covariance of the state at the end, from what the chain does to zero, to unit states and unit noises.

    On Gaussian data it is affine in the start and linear in every noise. (Needs x64.)
    """
    k, count = sde.k, len(times) * steps
    batch = 1 + k + k * count
    initial, noise = np.zeros((batch, k, 1)), np.zeros((count, 1, batch, k, 1))
    for i in range(k):
        initial[1 + i, i] = 1
        noise[np.arange(count), 0, 1 + k + i * count + np.arange(count), i, 0] = 1
    _, info = annealed_langevin(
        fresh(), score_fn, sde, (batch, 1), times=times, denoise=denoise, step_size=step_size, steps_per_level=steps,
        initial=initial, noise=noise, dtype=jnp.float64,
    )  # fmt: skip
    state = np.asarray(info.state)[..., 0]
    prior = np.asarray(sde.prior_factor()) @ np.asarray(sde.prior_factor()).T
    A, N = (state[1 : 1 + k] - state[0]).T, (state[1 + k :] - state[0]).T
    return state[0], A @ prior @ A.T + N @ N.T


@pytest.mark.parametrize("denoise", [False, True])
def test_law_by_the_recursion_of_the_variance(x64, denoise):
    """x <- x + a_i (mu - x) / (s^2 + sigma_i^2) + sqrt(2 a_i) n, a_i = eps sigma_i^2 / sigma_L^2, written out."""
    mean, variance = 0.0, SIGMAS[0] ** 2
    for sigma in SIGMAS:
        step = EPS * sigma**2 / SIGMAS[-1] ** 2
        pull = step / (S**2 + sigma**2)
        for _ in range(T):
            mean, variance = mean + pull * (MU - mean), (1 - pull) ** 2 * variance + 2 * step
    if denoise:  # x + sigma_L^2 score: the posterior mean
        pull = SIGMAS[-1] ** 2 / (S**2 + SIGMAS[-1] ** 2)
        mean, variance = mean + pull * (MU - mean), (1 - pull) ** 2 * variance
    law = chain_law(VE, analytic.gaussian_score(VE, MU, S), TIMES, EPS, T, denoise=denoise)
    np.testing.assert_allclose(law[0], [mean], rtol=1e-12)
    np.testing.assert_allclose(law[1], [[variance]], rtol=1e-12)


def test_variance_of_a_level_is_technique_4s(x64):
    """Data that are one point, two levels, the first with so many steps that it has reached its own law."""
    ratio, steps = 1.3, 4
    sde = sdes.ve(sigma_max=0.1 * ratio, sigma_min=0.1)
    step = nl.best_step_size(sigma_min=0.1, ratio=ratio, steps=steps)
    law = chain_law(sde, analytic.gaussian_score(sde, 0.0, 0.0), sdes.level_times(2), step, steps)
    # from N(0, sigma_1^2) the first level ends at a variance v sigma_1^2, v = (1 - a)^2T (1 - b) + b, not sigma_1^2
    a = step / 0.1**2
    decay, limit = (1 - a) ** (2 * steps), 2 / (2 - a)
    first = decay * (1 - limit) + limit
    assert law[1][0, 0] / 0.01 == pytest.approx(decay * (ratio**2 * first - limit) + limit, rel=1e-12)
    expected = nl.variance_ratio(step, sigma_min=0.1, ratio=ratio * np.sqrt(first), steps=steps)
    assert law[1][0, 0] / 0.01 == pytest.approx(expected, rel=1e-12)
    assert technique_4(sde, sdes.level_times(2), steps_per_level=steps) == pytest.approx(step, rel=1e-9)


def recursion(sde, times, alpha: float, steps: int):
    """Mean and covariance by the matrix form of the recursion: with K_t the kernel's covariance and C_t the marginal's,

    z <- z + a K_t C_t^-1 (m_t - z) + sqrt(2 a) K_t^1/2 n, and E_s E_t^-1 from a level to the next.
    """
    marginals, kernels = analytic.moments(sde, times, MU, S), analytic.moments(sde, times, MU, 0.0)
    prior = np.asarray(sde.prior_factor())
    mean, covariance = np.zeros(sde.k), prior @ prior.T
    for i, (at, K) in enumerate(zip(marginals, (kernel.covariance for kernel in kernels), strict=True)):
        pull = alpha * np.linalg.solve(at.covariance, K).T
        A = np.eye(sde.k) - pull
        for _ in range(steps):
            mean, covariance = mean + pull @ (at.mean - mean), A @ covariance @ A.T + 2 * alpha * K
        if i + 1 < len(times):
            B = marginals[i + 1].E @ np.linalg.inv(at.E)
            mean, covariance = B @ mean, B @ covariance @ B.T
    return mean, covariance


SLOW_TOO = tiers.alike(("vp", "psld", "subvp", "recipe4"), ("vp", "psld"))


@pytest.mark.parametrize("name", SLOW_TOO)
def test_law_of_any_process(x64, name: str):
    """The chain is the recursion, and the recursion, at many levels for long, ends in the marginal of the last.

    A step of relative size a leaves a covariance too large by a / (2 - a), 2.6% here. What was too wide at the level
    before has had 180 relaxation times a unit of log sigma to shrink by e^2 in: 1%.
    """
    sde = analytic.PROCESSES[name]
    times = samplers.time_grid("logsnr", 4, t_min=0.02, denoise=False, sde=sde)
    law = chain_law(
        sde, analytic.gaussian_score(sde, MU, S), times, 0.2 * host_noise_level(sde, times[-1:])[0] ** 2, 3
    )  # fmt: skip
    mean, covariance = analytic.errors([law], recursion(sde, times, 0.2, 3))
    assert mean[0] < 1e-8 and covariance[0] < 1e-8
    times = samplers.time_grid("logsnr", 30, t_min=0.02, denoise=False, sde=sde)
    exact = analytic.moments(sde, times[-1:], MU, S)[0]
    mean, covariance = analytic.errors([recursion(sde, times, 0.05, 1000)], (exact.mean, exact.covariance))
    assert mean[0] < 0.01 and covariance[0] < 0.04


def noise_like(seed: int, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def network_like(z, t):
    return -jnp.tanh(z) * (1 + t).reshape(-1, *(1,) * (z.ndim - 1))


def corrector_alone(sde, times, steps: int, alpha: float, **options):
    """States of pc without a predictor: its annealed corrector at snr^2 = alpha / 2. No steps at the grid's end."""
    return samplers.pc(
        fresh(), network_like, sde, (2, 4), times=times, predictor="none", corrector="annealed_langevin",
        corrector_steps=steps, snr=(alpha / 2) ** 0.5, denoise=False, **options,
    )[1]  # fmt: skip


def test_is_the_annealed_corrector_alone():
    """VE: the same chain, with snr^2 = eps / (2 sigma_L^2)."""
    times, alpha = samplers.time_grid("uniform", 5, t_min=0.2, denoise=False), 0.08
    noise, initial = noise_like(0, 5, T, 2, 1, 4), noise_like(1, 2, 1, 4)
    theirs = corrector_alone(VE, times, T, alpha, noise=noise, initial=initial)
    _, ours = annealed_langevin(
        fresh(), network_like, VE, (2, 4), times=times[:-1], steps_per_level=T, noise=noise.reshape(-1, 1, 2, 1, 4),
        step_size=alpha * float(VE.sigma(times[-2])) ** 2, initial=initial, denoise=False,
    )  # fmt: skip
    np.testing.assert_allclose(ours.state, theirs.state, rtol=1e-5, atol=1e-5)
    assert ours.nfe == theirs.nfe == 5 * T


def test_is_the_annealed_corrector_alone_in_phase_space():
    """PSLD: within a level; to the next one the annealed sampler takes the state along the forward mean, as pc not."""
    sde, alpha, times = sdes.psld(), 0.08, [0.5, 0.4]
    noise, initial = noise_like(0, T - 1, 2, 2, 4), noise_like(1, 2, 2, 4)
    theirs = corrector_alone(sde, times, T - 1, alpha, noise=noise[None], initial=initial)
    step_size = alpha * host_noise_level(sde, [0.4])[0] ** 2
    _, ours = annealed_langevin(
        fresh(), network_like, sde, (2, 4), times=times, steps_per_level=T, step_size=step_size, initial=initial,
        noise=jnp.concatenate([noise, noise_like(2, T + 1, 2, 2, 4)])[:, None], trajectory="steps",
    )  # fmt: skip
    np.testing.assert_allclose(ours.trajectory[T - 1], theirs.state, rtol=1e-5, atol=1e-5)
    back = np.linalg.inv(sde.transition_between(jnp.asarray([0.4]), jnp.asarray([0.5])).mean)
    last = corrector_alone(sde, times, 1, alpha, noise=noise_like(2, T + 1, 2, 2, 4)[None, :1], initial=theirs.state)
    np.testing.assert_allclose(ours.trajectory[T], sdes.linalg.apply(back, last.state), rtol=1e-4, atol=1e-4)


def test_vp_is_ve_at_the_same_noise_levels():
    """x = mean(t) y, with y the chain of VE: the same images from the same noises."""
    vp, times = sdes.vp(), np.array([0.8, 0.6, 0.5, 0.3])
    kernel = vp.transition(jnp.asarray(times, jnp.float32))
    mean = kernel.mean[:, 0, 0]
    sigmas = np.asarray(kernel.factor[:, 0, 0] / mean, np.float64)
    ve = sdes.ve(sigma_max=float(sigmas[0]), sigma_min=float(sigmas[-1]))

    def vp_score(z, t):  # of x = mean y, from a score of y and sigma
        m = column(vp.transition(t).mean[:, 0, 0], z)
        return by_sigma(z / m, noise_level(vp, t)) / m

    noise, initial = noise_like(0, 4 * T, 1, 2, 1, 3), 3 * noise_like(1, 2, 1, 3)
    options = {"steps_per_level": T, "step_size": 0.1 * sigmas[-1] ** 2, "noise": noise}
    ours, _ = annealed_langevin(fresh(), vp_score, vp, (2, 3), times=times, initial=mean[0] * initial, **options)
    theirs, _ = annealed_langevin(
        fresh(), lambda z, t: by_sigma(z, ve.sigma(t)), ve, (2, 3), times=nl.times_of_levels(sigmas), initial=initial,
        **options,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def column(v, x):
    return v.reshape(-1, *(1,) * (x.ndim - 1))


def by_sigma(y, sigma):
    return -y / (0.3 + column(sigma, y) ** 2) + 0.1 * jnp.cos(y)


def run(score_fn=network_like, sde=VE, shape=(3, 4), **options):
    options = {"times": TIMES, "step_size": EPS, "steps_per_level": T} | options
    return jax.jit(lambda: annealed_langevin(fresh(), score_fn, sde, shape, **options))()


def test_snapshots():
    """All steps, or those at which a level ends; neither changes the samples."""
    x, info = run()
    levels, steps = (run(trajectory=kind) for kind in (True, "steps"))
    assert info.trajectory is None and info.nfe == L * T + 1
    assert levels[1].trajectory.shape == (L + 1, 3, 1, 4) and steps[1].trajectory.shape == (L * T + 1, 3, 1, 4)
    np.testing.assert_allclose(levels[1].trajectory, steps[1].trajectory[::T], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(levels[0], x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(steps[0], x, rtol=1e-5, atol=1e-5)


def test_one_program_whatever_the_number_of_levels_and_steps():
    """The network is traced twice, in the loop and in the denoising step, and the program has the same size."""
    sizes = []
    for levels, steps in [(5, 2), (232, 5)]:
        traces: list = []

        def score_fn(z, t):
            traces.append(1)  # noqa: B023
            return network_like(z, t)

        program = jax.make_jaxpr(lambda: run(score_fn, times=sdes.level_times(levels), steps_per_level=steps)[0])()  # noqa: B023
        sizes.append((len(program.eqns), len(str(program).splitlines()), len(traces)))
    assert sizes[0][0] == sizes[1][0] and sizes[0][2] == sizes[1][2] == 2
    assert abs(sizes[0][1] - sizes[1][1]) < 5


def test_published_start_and_start_from_data():
    at_once = {"trajectory": True, "step_size": EPS}
    start = run(start="uniform", shape=(64, 16), **at_once)[1].trajectory[0]
    assert 0 <= start.min() < 0.02 and 0.98 < start.max() <= 1 and abs(start.mean() - 0.5) < 0.03
    prior = run(shape=(64, 16), **at_once)[1].trajectory[0]
    assert abs(prior.std() / SIGMAS[0] - 1) < 0.1
    x0 = jnp.full((3, 4), 100.0)
    initial = samplers.noised(jax.random.key(1), VE, x0, 1.0)
    first = run(initial=initial, start="uniform", **at_once)[1].trajectory[0]
    assert np.array_equal(first, initial) and abs(first.mean() - 100) < 4 * SIGMAS[0] / 12**0.5


@pytest.mark.parametrize("start", ["prior", "uniform"])
def test_inpainting_keeps_what_is_known(start: str):
    """At each level the known part has that level's noise; in the end it is exact."""
    x0, mask = noise_like(4, 3, 64), np.arange(64) < 32
    constraint = samplers.inpaint(VE, x0, mask)
    x, info = run(shape=(3, 64), constraint=constraint, start=start, trajectory="steps")
    assert np.array_equal(x[:, :32], x0[:, :32]) and not np.allclose(x[:, 32:], x0[:, 32:], atol=0.1)
    off = np.asarray(info.trajectory[:, :, 0, :32] - x0[None, :, :32]).std(axis=(1, 2))
    expected = np.append(np.repeat(SIGMAS, T), SIGMAS[-1])  # the start, then the level that comes next
    np.testing.assert_allclose(off, expected, rtol=0.3)  # 96 numbers each: four standard errors


def test_resampling_of_stretches():
    x0 = noise_like(4, 3, 4)
    constraint = samplers.inpaint(VE, x0, [1, 1, 0, 0], repeats=2, jump=T)
    x, info = run(constraint=constraint, trajectory=True)
    assert info.nfe == 2 * L * T + 1 and info.trajectory.shape == (L + 1, 3, 1, 4)
    assert np.array_equal(x[:, :2], x0[:, :2]) and np.isfinite(x).all()


def test_interpolation_goes_from_one_chain_to_another():
    """The ends of a row are the chains of p and of q, alone; what lies between has noises of unit variance."""
    rows, num = 2, 5
    p, q = noise_like(0, L * T, rows, 1, 4), noise_like(1, L * T, rows, 1, 4)
    noise = jnp.repeat(jnp.stack([p, q], axis=1), num, axis=2)
    initial = noise_like(2, rows, 1, 4)
    options = {"times": TIMES, "step_size": EPS, "steps_per_level": T, "initial": initial}
    x, info = annealed_langevin_interpolation(fresh(), network_like, VE, (rows, 4), num=num, noise=noise, **options)
    assert x.shape == (rows, num, 4) and info.nfe == L * T + 1
    for end, draws in ((0, p), (-1, q)):
        alone, _ = annealed_langevin(fresh(), network_like, VE, (rows, 4), noise=draws[:, None], **options)
        np.testing.assert_allclose(x[:, end], alone, rtol=1e-4, atol=1e-4)
    middle, _ = annealed_langevin(
        fresh(), network_like, VE, (rows, 4), noise=((p + q) / 2**0.5)[:, None], **options
    )  # fmt: skip
    np.testing.assert_allclose(x[:, 2], middle, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["prior", "uniform"])
def test_interpolation_of_fresh_chains(start: str):
    """One start a row, rows that differ, neighbours nearer to each other than the ends."""
    x, _ = annealed_langevin_interpolation(
        fresh(), lambda z, t: -z / (1 + column(VE.sigma(t), z) ** 2), VE, (8, 16), num=6, times=TIMES, start=start
    )
    steps = np.linalg.norm(np.diff(x, axis=1), axis=-1)
    assert steps.max() < 0.5 * np.linalg.norm(x[:, 0] - x[:, -1], axis=-1).min()
    assert np.abs(x[0] - x[1]).max() > 0.1


def nothing(z, t):
    raise AssertionError("the score must not be called")


BAD = {
    "one level": ({"times": [1.0]}, "at least two"),
    "no levels": ({"times": 1.0}, "at least two"),
    "increasing": ({"times": TIMES[::-1]}, "times must be"),
    "diverges": ({"step_size": 2 * 0.05**2}, r"diverges at eps >= 2 sigma_L\^2 = 0\.005"),
    "negative": ({"step_size": -1e-5}, "must be positive"),
    "no steps": ({"steps_per_level": 0}, "at least 1"),
    "start": ({"start": "data"}, "must be 'prior' or 'uniform'"),
    "cld": ({"sde": sdes.cld(), "times": [1.0, 0.5]}, "needs noise in every variable.*use sampler 'pc'"),
    "no noise": ({"sde": sdes.vp()}, "times must end above 0"),
    "uniform momentum": (
        {"sde": sdes.psld(), "times": [1.0, 0.5], "start": "uniform"}, "the process has 2 variables: use 'prior'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    options, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        run(nothing, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="its two ends"):
        annealed_langevin_interpolation(fresh(), nothing, VE, (2, 4), times=TIMES, num=1)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda sde: run(nothing, sde=sde, step_size=None))(VE)


# ---- against the recorded chains of the official program

ARRAYS = refdata.load_npz("ncsnv2_samplers.npz")
BOUND = {"f64": 1e-9, "official": 1e-5}  # relative to the largest entry


def last(x):
    """NCHW as NHWC, in float64."""
    return jnp.moveaxis(jnp.asarray(x, jnp.float64), -3, -1)


def recorded(divide: bool):
    """The process, its levels and the stand-in network, which is given the index of the level."""
    sigmas = np.asarray(ARRAYS["sigmas"], np.float64)
    sde = sdes.ve(sigma_max=float(sigmas[0]), sigma_min=float(sigmas[-1]))

    def network(x, label):
        out = 0.1 * jnp.sin(x) + 0.05 * jnp.cos(0.01 * column(label, x))
        return out / column(jnp.asarray(sigmas)[label], x) if divide else out

    conditioning = {"time_conditioning": "level", "num_levels": len(sigmas)}
    score_fn = score.score_from_network(network, sde, parameterization="score", **conditioning)
    steps = int(ARRAYS["n_steps_each"])
    options = {"step_size": float(ARRAYS["step_lr"]), "steps_per_level": steps, "dtype": jnp.float64}
    return sde, score_fn, options | {"times": nl.times_of_levels(sigmas)}, steps * len(sigmas)


def close(ours, theirs, mode: str) -> None:
    theirs = np.asarray(theirs, np.float64)
    assert np.abs(np.asarray(ours) - theirs).max() <= BOUND[mode] * max(np.abs(theirs).max(), 1.0)


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(f64/div[01]/denoise[01]/final)"))
def test_recorded_chains(x64, key):
    """Every image of the chain, and the last."""
    _, divide, denoise, _ = key.split("/")
    sde, score_fn, options, count = recorded(divide == "div1")
    initial, noise = last(ARRAYS["x_init"])[:, None], last(ARRAYS["noises"])[:count, None, :, None]
    x, info = annealed_langevin(
        fresh(), score_fn, sde, initial[:, 0].shape, initial=initial, noise=noise, denoise=denoise == "denoise1",
        trajectory="steps", **options,
    )  # fmt: skip
    images = (
        jnp.concatenate([info.trajectory[1:, :, 0], x[None]]) if denoise == "denoise1" else info.trajectory[1:, :, 0]
    )
    for mode in BOUND:
        close(x, last(ARRAYS[key.replace("f64", mode, 1)]), mode)
        close(images, last(ARRAYS[key.replace("f64", mode, 1).replace("final", "all_images")]), mode)


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(f64/interpolation\d+/final)"))
def test_recorded_interpolation(x64, key):
    num = int(key.split("/")[1].removeprefix("interpolation"))
    sde, score_fn, options, count = recorded(True)
    initial, draws = last(ARRAYS["x_init"])[:, None], last(ARRAYS["noises"])[: 2 * count]
    noise = jnp.repeat(draws.reshape(count, 2, *draws.shape[1:])[:, :, :, None], num, axis=2)
    x, _ = annealed_langevin_interpolation(
        fresh(), score_fn, sde, initial[:, 0].shape, num=num, initial=initial, noise=noise, denoise=False, **options
    )
    for mode in BOUND:
        close(x.reshape(-1, *x.shape[2:]), last(ARRAYS[key.replace("f64", mode, 1)]), mode)
