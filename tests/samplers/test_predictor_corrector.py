"""Predictors and correctors on Gaussian data, where their laws are known; what the sampler makes of its settings.

Agreement with the program of Song et al. is in `test_scoresde_reference`.
"""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import samplers, sdes
from sgmjax.samplers import _predictor_corrector as pc
from sgmjax.samplers import predictors
from sgmjax.samplers._euler_maruyama import em_step
from sgmjax.samplers.common import Constraint
from sgmjax.sdes import linalg

MU, S, T_MIN = 0.7, 0.5, 1e-3
SNR = 0.1
FAST = ("ve", "psld")
ALL_NOISED = ("vp", "subvp", "ve", "psld", "recipe4")


def names(which):
    return tiers.alike(which, [n for n in which if n in FAST])


def reverse_diffusion(score_fn, sde, z, t, s, noises):
    return predictors.reverse_diffusion_step(score_fn, sde, z, t, s, noises[0])[0]


def ancestral(score_fn, sde, z, t, s, noises):
    return predictors.ancestral_step(score_fn, sde, z, t, s, noises[0])[0]


def ancestral_upper(score_fn, sde, z, t, s, noises):
    return predictors.ancestral_step(score_fn, sde, z, t, s, noises[0], variance="upper")[0]


def annealed(score_fn, sde, z, t, s, noises):
    return pc.langevin_step(score_fn, sde, z, t, noises[0], snr=SNR, annealed=True)[0]


# ---- predictors


GRIDS = [samplers.time_grid("quadratic", n, t_min=T_MIN, denoise=False) for n in (512, 1024, 2048)]
COARSE = [np.array([1.0, 0.4, 0.02])]


@pytest.mark.parametrize("name", names(analytic.PROCESSES))
def test_order_of_reverse_diffusion(x64, name):
    """Every term is right to first order in the step, none to second: weak order 1.

    For VE the mean is exact: z + (sigma_t^2 - sigma_s^2) score is Tweedie's formula for z_s.
    """
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    laws = analytic.laws(reverse_diffusion, 1, sde, score_fn, GRIDS)
    mean, covariance = analytic.errors(laws, analytic.true_law(sde, MU, S, T_MIN))
    analytic.check_order(covariance, 1, tolerance=0.1)
    if name == "ve":
        assert mean.max() < 1e-9
    else:
        analytic.check_order(mean, 1, tolerance=0.1)


@pytest.mark.parametrize("name", names(ALL_NOISED))
def test_order_of_the_ancestral_predictor(x64, name):
    """The mean is exact: E^-1 (z + L L^T score) is E[z_s | z_t]. The noise is Cov[z_s | z_t, z_0] in place of Cov[z_s |
    z_t]: less by h^2 in a step, so order 1. For data that are a point they agree, and any grid is exact."""
    sde = analytic.PROCESSES[name]
    score_fn = analytic.tabulated_score(sde, MU, S, T_MIN)
    exact = analytic.true_law(sde, MU, S, T_MIN)
    mean, covariance = analytic.errors(analytic.laws(ancestral, 1, sde, score_fn, GRIDS), exact)
    assert mean.max() < 1e-8
    analytic.check_order(covariance, 1, tolerance=0.1)
    t_min = COARSE[0][-1]
    score_fn = analytic.tabulated_score(sde, MU, 0.0, t_min)
    laws = analytic.laws(ancestral, 1, sde, score_fn, COARSE)
    # the table's error, which is relative to the score at t_min: 3e4 times that at 1 for sub-VP
    assert max(e.max() for e in analytic.errors(laws, analytic.true_law(sde, MU, 0.0, t_min))) < 1e-6


STATIONARY = {
    "vp": sdes.vp(),
    "cld": sdes.cld(kappa=1.0),
    "psld": sdes.psld(kappa=1.0),
    "third_order": sdes.third_order(kappa=1.0),
    "oblique": analytic.oblique_recipe(Sigma_0=1.0),
}


@pytest.mark.parametrize("name", names(STATIONARY))
def test_exact_in_the_stationary_law(x64, name):
    """Data and auxiliaries as the prior: score = -P z, and what is left of a step is the exact reverse recipe."""
    sde = STATIONARY[name]
    score_fn = analytic.tabulated_score(sde, 0.0, 1.0, COARSE[0][-1])
    steps = ([reverse_diffusion] if sde.k > 1 else []) + ([ancestral_upper] if name in ALL_NOISED else [])
    for step in steps:
        [(mean, covariance)] = analytic.laws(step, 1, sde, score_fn, COARSE)
        np.testing.assert_allclose(mean, 0.0, atol=1e-9)
        np.testing.assert_allclose(covariance, sde.Sigma_inf, atol=1e-8)


def smooth_score(sde):
    return lambda z, t: sde.expand(sde.restrict(-jnp.tanh(z * linalg.expand_to(1 + t, z.ndim))))


@pytest.mark.parametrize("name", names(("subvp", "psld", "oblique")))
def test_euler_maruyama_is_the_mirrored_euler_step(x64, name):
    sde = analytic.PROCESSES[name]
    z, noise = np.random.default_rng(0).normal(size=(2, 3, sde.k, 5))
    one = lambda v: jnp.asarray([v])  # noqa: E731
    for flow in (False, True):
        ours, mean = jax.jit(
            lambda z, noise: predictors.reverse_diffusion_step(
                smooth_score(sde), sde, z, 0.5, 0.4, noise, kernel=predictors.euler_kernel(sde, one(0.5), one(0.1)),
                probability_flow=flow,  # noqa: B023
            )
        )(z, noise)  # fmt: skip
        drift = samplers.reverse_drift(smooth_score(sde), sde, z, jnp.full(3, 0.5), probability_flow=flow)
        np.testing.assert_allclose(mean, z + 0.1 * drift, rtol=1e-10, atol=1e-12)
        if flow:
            assert np.array_equal(ours, mean)
        else:
            np.testing.assert_allclose(ours, em_step(smooth_score(sde), sde, z, 0.5, 0.4, noise)[0], rtol=1e-10)


@pytest.mark.parametrize("name", names(("vp", "ve", "psld", "third_order")))
def test_probability_flow_of_reverse_diffusion(x64, name):
    """Halving a short step's difference from the flow's Euler step quarters it: the same ODE."""
    sde = analytic.PROCESSES[name]
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, sde.k, 5)))
    drift = samplers.reverse_drift(smooth_score(sde), sde, z, jnp.full(3, 0.5), probability_flow=True)
    step = jax.jit(
        lambda s: predictors.reverse_diffusion_step(smooth_score(sde), sde, z, 0.5, s, None, probability_flow=True)
    )
    gap = [np.abs(step(0.5 - h)[0] - z - h * drift).max() for h in (2e-4, 1e-4)]
    assert abs(np.log2(gap[0] / gap[1]) - 2) < 0.02


@pytest.mark.parametrize("name", names(analytic.PROCESSES))
def test_steps_in_single_precision(name):
    """The matrices of a step against the same in double precision, at a long and at a short, early step.

    A few roundings, and for the posterior of a short step their growth by sqrt(Cov[z_s] / Cov[z_s | z_t])."""
    sde = analytic.PROCESSES[name]

    @functools.partial(jax.jit, static_argnums=3)
    def matrices(sde, t, s, dtype):
        t, s, z = t.astype(dtype), s.astype(dtype), jnp.zeros((1, sde.k), dtype)
        kernel = predictors.kernel_between(sde, z, t, s)
        block = pc._noised_block(sde.transition(t[None], "hsm"))
        return (
            predictors._push(sde, z, t, s),
            predictors.posterior_factor(kernel, sde.transition(s[None], "hsm").factor),
            block.factor,
        )

    for t, s in ((0.9, 0.7), (1.1e-3, 1e-3)):
        t, s = np.float32(t), np.float32(s)
        single = [np.asarray(v[0]) for v in matrices(sde, t, s, jnp.float32)]
        with jax.enable_x64(True):
            double = [np.asarray(v[0]) for v in matrices(sde, t, s, jnp.float64)]
        for ours, exact in zip(single, double):
            size = np.linalg.norm(exact, axis=1, keepdims=True)
            assert np.all(np.abs(ours - exact) <= 2e-4 * size)


# ---- correctors


def noised_covariance(sde, t):
    """B (k, k): the kernel's covariance of the noised variables given the others, by a Schur complement in numpy."""
    factor = np.asarray(sde.transition(jnp.asarray([t]), "hsm").factor)[0]
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    C, q = T @ factor @ factor.T @ T.T, sde.k - sde.num_noised
    schur = C[q:, q:] - C[q:, :q] @ np.linalg.solve(C[:q, :q], C[:q, q:]) if q else C
    return T[q:].T @ schur @ T[q:]


@pytest.mark.parametrize("name", names(analytic.PROCESSES))
def test_correctors_leave_the_marginal_law(x64, name):
    """From N(m, C): the mean stays, and C goes to (I - h B C^-1) C (I - h B C^-1)^T + 2 h B = C + h^2 B C^-1 B.

    So p_t is invariant but for the square of the step, whatever the process; variables without noise do not move. And
    it attracts: repeated for ever, the step has one law, within h of p_t where all variables are noised.
    """
    sde, h = analytic.PROCESSES[name], 2 * SNR**2
    score_fn = analytic.tabulated_score(sde, MU, S, 1e-2)
    times = np.array([1.0, 0.3, 0.01])
    maps = analytic.step_maps(sde, score_fn, times, times, step=annealed, draws=1)
    for t, law, A, b, N in zip(times, analytic.moments(sde, times, MU, S), *map(np.asarray, maps)):
        B, C = noised_covariance(sde, t), law.covariance
        scale = np.sqrt(np.diag(C))
        np.testing.assert_allclose((A @ law.mean + b - law.mean) / scale, 0.0, atol=1e-8)
        left = A @ C @ A.T + N @ N.T - C
        size = np.outer(scale, scale)
        np.testing.assert_allclose(left / size, h**2 * B @ np.linalg.solve(C, B) / size, atol=1e-8)
        if sde.num_noised == sde.k:
            limit, power = np.zeros_like(C), A
            noise = N @ N.T
            for _ in range(40):  # doubling: the law after 2^40 steps
                noise, power = noise + power @ noise @ power.T, power @ power
            limit = noise
            assert np.abs(limit - C).max() < 2 * h * np.abs(C).max() and np.abs(power).max() < 1e-12
        else:
            q = sde.k - sde.num_noised
            T = np.asarray(sde.frame) if sde.frame is not None else np.eye(sde.k)
            np.testing.assert_allclose((T @ (A - np.eye(sde.k)))[:q], 0.0, atol=1e-12)
            np.testing.assert_allclose((T @ N)[:q], 0.0, atol=1e-12)


@pytest.mark.parametrize("norms", ["batch", "sample"])
@pytest.mark.parametrize("name", ["ve", "cld", "oblique"])
def test_langevin_step_from_the_norms(x64, name, norms):
    """h = 2 alpha (r |eps| / |score|)^2, norms in units of the kernel; sigma^2 of it for VE, whatever sigma is."""
    sde, rng, alpha, t = analytic.PROCESSES[name], np.random.default_rng(0), 0.7, 0.4
    z, noise = rng.normal(size=(2, 5, sde.k, 3, 2)) * rng.uniform(0.5, 2, size=(1, 5, 1, 1, 1))
    score_fn = smooth_score(sde)
    after, mean = jax.jit(
        lambda z, noise: pc.langevin_step(score_fn, sde, z, t, noise, snr=0.2, alpha=alpha, norms=norms)
    )(z, noise)
    g, B = np.asarray(score_fn(z, jnp.full(5, t))), noised_covariance(sde, t)
    if name == "ve":
        size, push = (np.sqrt((v**2).sum(axis=(1, 2, 3))) for v in (noise, g))
        B = np.eye(1)  # the published formula knows no sigma
    else:
        T = np.asarray(sde.frame) if sde.frame is not None else np.eye(sde.k)
        P = T[sde.k - sde.num_noised :]
        size = np.sqrt((np.einsum("ij,bj...->bi...", P, noise) ** 2).sum(axis=(1, 2, 3)))
        push = np.sqrt(np.einsum("bixy,ij,bjxy->b", g, B, g))
    if norms == "batch":
        size, push = size.mean(keepdims=True), push.mean(keepdims=True)
    h = (2 * alpha * (0.2 * size / push) ** 2)[:, None, None, None]
    np.testing.assert_allclose(mean, z + h * np.einsum("ij,bj...->bi...", B, g), rtol=1e-9, atol=1e-11)
    if name == "ve":
        np.testing.assert_allclose(after, mean + np.sqrt(2 * h) * noise, rtol=1e-9)
    else:  # sqrt(2 h) A eps with A A^T = B: as large as eps in the units of B
        left = np.asarray(after - mean) / np.sqrt(2 * h)
        square = np.einsum("bixy,ij,bjxy->b", left, np.linalg.pinv(B, rcond=1e-10), left)
        np.testing.assert_allclose(square, (np.einsum("ij,bj...->bi...", P, noise) ** 2).sum(axis=(1, 2, 3)), rtol=1e-7)


def test_no_step_where_the_score_vanishes():
    """A network with a zero last layer has score 0 at the start of training."""
    sde = sdes.psld()
    z = jnp.ones((2, 2, 3))
    after, _ = pc.langevin_step(lambda z, t: 0 * z, sde, z, 0.5, z)
    assert np.array_equal(after, z)


# ---- the sampler


GRID = np.array([1.0, 0.6, 0.3, 0.1])
SHAPE = (2, 3)


def draw(sde, score_fn=None, **options):
    """A jitted run on the small grid."""
    options = {"times": GRID} | options
    noise = {k: options.pop(k) for k in ("noise", "initial") if k in options}
    run = jax.jit(lambda noise: samplers.pc(
        jax.random.key(0), score_fn or smooth_score(sde), sde, SHAPE, **noise, **options
    ))  # fmt: skip
    return run(noise)


def test_last_step_without_noise():
    """denoise="x_mean" leaves out the last noise of the predictor, at no evaluation."""
    sde = sdes.vp()
    noise = np.random.default_rng(0).normal(size=(3, 3, 2, 1, 3)).astype(np.float32)
    silent = noise.copy()
    silent[-1, 2] = 0.0  # two draws of the corrector come first
    options = {"corrector_steps": 2, "initial": noise[0, 0], "trajectory": True}
    x, info = draw(sde, denoise="x_mean", noise=noise, **options)
    expected, other = draw(sde, denoise=False, noise=silent, **options)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.trajectory, other.trajectory, rtol=1e-5, atol=1e-6)
    assert info.nfe == other.nfe == 9
    assert np.abs(x - draw(sde, denoise=False, noise=noise, **options)[0]).max() > 1e-2


@pytest.mark.parametrize("lagging", [False, True])
@pytest.mark.parametrize("denoise", ["x_mean", True])
def test_constraint_holds_whenever_the_score_is_asked(denoise, lagging):
    """After the corrector at t, after the predictor at s (at t if lagging), and at the end at 0 (at the last t)."""
    sde, seen = sdes.psld(), []

    def score_fn(z, t):
        jax.debug.callback(lambda t, v: seen.append((float(t), float(v))), t[0], z[0, 0, 0], ordered=True)
        return smooth_score(sde)(z, t)

    constraint = Constraint(project=lambda z, t, noises: z.at[:, 0, 0].set(t), draws=1, lagging=lagging)
    x, info = draw(sde, score_fn, denoise=denoise, constraint=constraint)
    jax.effects_barrier()
    at = np.asarray([t for t, _ in seen])
    expected_t = [t for t in GRID[:-1] for _ in range(2)] + ([GRID[-1]] if denoise is True else [])
    np.testing.assert_allclose(at, expected_t, rtol=1e-6)
    held = np.asarray([v for _, v in seen])
    expected = np.asarray(expected_t)
    if lagging:  # the corrector, and the denoising step, see what was imposed before the step they follow
        expected[2::2] = expected_t[0:-1:2][: len(expected[2::2])]
    np.testing.assert_allclose(held, expected, rtol=1e-6)
    end = {True: GRID[-1], "x_mean": GRID[-2]}[denoise] if lagging else 0.0
    np.testing.assert_allclose(x[:, 0], end, rtol=1e-6)
    assert info.nfe == len(seen)


def test_draws_of_the_constraint():
    """The corrector's draws, the predictor's, the constraint's in between, the constraint's after the step."""
    sde, draws = sdes.ve(), []

    def project(z, t, noises):
        jax.debug.callback(lambda v: draws.append(np.asarray(v)), noises[:, 0, 0, 0], ordered=True)
        return z

    constraint = Constraint(project=project, draws=2)
    noise = np.broadcast_to(np.arange(6.0, dtype=np.float32).reshape(1, 6, 1, 1, 1), (3, 6, 2, 1, 3))
    draw(sde, noise=noise, initial=np.ones((2, 1, 3)), denoise=False, constraint=constraint)
    jax.effects_barrier()
    assert [list(d) for d in draws] == [[2, 3], [4, 5]] * 3
    with pytest.raises(ValueError, match="noise has shape"):
        draw(sde, noise=noise[:, :5], initial=np.ones((2, 1, 3)), denoise=False, constraint=constraint)


@pytest.mark.parametrize("t_min", [1e-3, 1e-5])
@pytest.mark.parametrize("num_scales", [25, 1000])
def test_levels_of_score_sde(x64, num_scales, t_min):
    """Its grid meets each level once; for VE a level's step is the exact one between levels, except to the level 0."""
    times = samplers.score_sde_times(num_scales, t_min=t_min)
    np.testing.assert_array_equal(pc._indices(times, num_scales), np.arange(num_scales)[::-1])
    assert times[0] == 1 and times[-2] == t_min and times[-1] == 0
    sde, level = sdes.ve(), jnp.arange(num_scales)
    tau = level / (num_scales - 1)
    kernel, factor, alpha = jax.jit(lambda *at: predictors.discrete_step(sde, *at, num_scales))(tau, level)
    exact = sde.transition_between(tau[:-1], tau[1:])
    np.testing.assert_allclose(kernel.factor[1:], exact.factor, rtol=1e-9)
    np.testing.assert_allclose(kernel.factor[0, 0, 0], sde.sigma_min, rtol=1e-12)
    assert alpha == 1 and factor[0, 0, 0] == 0


def call(sde=None, **options):
    def nothing(z, t):
        raise AssertionError("the score must not be called")

    return samplers.pc(jax.random.key(0), nothing, sde or sdes.vp(), SHAPE, **({"times": GRID} | options))


BAD = {
    "predictor": ({"predictor": "euler"}, "predictor must be one of 'reverse_diffusion', .* not 'euler'"),
    "corrector": ({"corrector": "ald"}, "corrector must be one of 'langevin', .* not 'ald'"),
    "norms": ({"norms": "event"}, "norms must be one of"),
    "variance": ({"ancestral_variance": "fixed"}, "ancestral_variance must be one of"),
    "nothing": ({"predictor": "none", "corrector": "none"}, "leaves nothing to do"),
    "no last step": ({"predictor": "none", "denoise": "x_mean"}, "denoise='x_mean' is the predictor's last step"),
    "no steps": ({"corrector_steps": 0}, "corrector_steps = 0: at least 1; corrector='none'"),
    "snr": ({"snr": 0.0}, "snr = 0: must be positive"),
    "partly noised": ({"predictor": "ancestral", "sde": sdes.cld()}, "needs the score of all 2"),
    "flow": ({"predictor": "ancestral", "probability_flow": True}, "has no probability flow"),
    "levels": ({"num_scales": 1}, "num_scales = 1"),
    "levels in phase space": ({"num_scales": 25, "sde": sdes.psld()}, "score_sde's VP, sub-VP and VE"),
    "sub-VP": (
        {"num_scales": 25, "predictor": "ancestral", "sde": sdes.subvp(), "denoise": False}, "VP and VE alone"
    ),
    "denoise": ({"denoise": "mean"}, "denoise must be"),
    "denoise of score_sde": ({"num_scales": 25}, "denoise must be 'x_mean' or False"),
    "times": ({"times": GRID[::-1]}, "times must be"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label):
    options, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        call(**options)
    assert "\n" not in str(caught.value)


def test_bad_grids_of_score_sde():
    with pytest.raises(ValueError, match="num_scales = 1: at least 2"):
        samplers.score_sde_times(1)
    with pytest.raises(ValueError, match="t_min = 1"):
        samplers.score_sde_times(10, t_min=1.0)
