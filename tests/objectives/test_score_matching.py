"""Losses on Gaussian data, where the best prediction, the loss it leaves and what it means in nats are known."""

from __future__ import annotations

import functools
from typing import NamedTuple

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import objectives, samplers, score, sdes
from sgmjax._inputs import InputError
from sgmjax.objectives.time_law import unit_error_loss


def key():
    return jax.random.key(0)


MU, S, T_MIN = 0.7, 0.5, 0.02
BATCH, EVENT = 200, 200  # 40,000 independent terms
WEIGHTINGS = ["simple", "reweightedv1", "likelihood"]


def exact_eps(sde, matching: str):
    """E[eps | z_t], from the exact score through the kernel of the objective."""
    score_fn = analytic.gaussian_score(sde, MU, S)

    def eps_fn(z, t):
        kernel = sde.transition(t, matching)
        return kernel.restrict(kernel.eps(score_fn(z, t)))

    return eps_fn


@functools.partial(jax.jit, static_argnames="matching")
def losses(key, sde, t, direction, *, matching: str):
    """Simple loss and likelihood loss, (2, BATCH), of E[eps | z_t] + direction * (a nonlinear function of z_t)."""
    best = exact_eps(sde, matching)

    def eps_fn(z, t):
        return best(z, t) + direction * jnp.sin(2 * sde.restrict(z) + 1.0)

    data_key, momentum_key, noise_key = jax.random.split(key, 3)
    x0 = MU + S * jax.random.normal(data_key, (BATCH, EVENT))
    z0 = sde.augment(x0, momentum_key if matching == "dsm" else None)
    eps = jax.random.normal(noise_key, z0.shape)
    loss = functools.partial(objectives.score_matching_loss, eps_fn, sde, z0, t, eps, matching=matching, reduce="sum")
    return jnp.stack([loss(weighting="simple"), loss(weighting="likelihood")]) / EVENT


class Exact(NamedTuple):
    """At some time, float64: what the kernel of the objective is there."""

    marginal: np.ndarray  # C, covariance of z_t
    kernel: np.ndarray  # Sigma = L L^T
    factor: np.ndarray  # L
    rate: np.ndarray  # g g^T


def exact(sde, times, matching: str) -> list[Exact]:
    """Sigma = C - E Cov(what is conditioned on) E^T, harmless in float64 at these times (needs x64)."""
    conditioned = np.diag(np.append(S**2, np.zeros(sde.k - 1)))
    if matching == "dsm":
        auxiliary = np.array(sde.initial_factor())
        auxiliary[0] = 0.0  # the data variable's own initial variance (of VE, sigma_min^2) is in the kernel either way
        conditioned = conditioned + auxiliary @ auxiliary.T
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    rates = np.asarray(sde.diffusion_squared(jnp.asarray(times, jnp.float64)))
    out = []
    for (E, _, C), rate in zip(analytic.moments(sde, times, MU, S), rates):
        kernel = C - E @ conditioned @ E.T
        out.append(Exact(C, kernel, T.T @ np.linalg.cholesky(T @ kernel @ T.T) @ T, rate))
    return out


def noised_rows(sde) -> np.ndarray:
    """(r, k): the directions whose eps is predicted."""
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    return T[sde.k - sde.num_noised :]


def mean_and_error(values) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    return values.mean(), values.std() / np.sqrt(len(values))


KERNELS = [(name, matching) for name in analytic.PROCESSES for matching in ("hsm", "dsm")]


@pytest.mark.parametrize(
    "name, matching",
    tiers.alike(
        KERNELS, [("vp", "hsm"), ("ve", "dsm"), ("cld", "hsm"), ("psld", "hsm"), ("psld", "dsm"), ("oblique", "hsm")]
    ),
)
def test_the_exact_score_is_the_minimum_and_leaves_the_conditional_variance(name: str, matching: str):
    """Through both kernels, with one score. What is left, in closed form at every t:

    simple: tr Cov[eps | z_t] of the noised variables, Cov[eps | z_t] = 1 - L^T C^-1 L;
    likelihood: tr g^T (Sigma^-1 - C^-1) g. Half its integral over t is, in nats, the information about z_0 (dsm) or
    x_0 (hsm) that the noise destroys: d/dt I = -1/2 E |g^T (score - kernel score)|^2, I = log det (C / Sigma) / 2.
    """
    sde = analytic.PROCESSES[name]
    u = (jnp.arange(BATCH, dtype=jnp.float32) + 0.5) / BATCH
    t, weight = objectives.importance(sde, matching=matching, t_min=T_MIN).sample(u)
    weight = np.asarray(weight, np.float64)
    with jax.enable_x64(True):
        laws = exact(sde, np.asarray(t, np.float64), matching)
        ends = exact(sde, [T_MIN, 1.0], matching)
    rows = noised_rows(sde)
    simple = [np.trace(rows @ (np.eye(sde.k) - L.T @ np.linalg.solve(C, L)) @ rows.T) for C, _, L, _ in laws]
    likelihood = [np.trace(rate @ (np.linalg.inv(K) - np.linalg.inv(C))) for C, K, _, rate in laws]
    at = {d: np.asarray(losses(jax.random.key(0), sde, t, d, matching=matching), np.float64) for d in (-0.1, 0.0, 0.1)}
    for values, expected in zip(at[0.0], (simple, likelihood)):
        difference, error = mean_and_error(weight * (values - expected))
        assert abs(difference) < 4 * error
        assert error < 0.02 * np.mean(weight * expected)

    information = [0.5 * (np.linalg.slogdet(C)[1] - np.linalg.slogdet(K)[1]) for C, K, _, _ in ends]
    nats = 0.5 * (1 - T_MIN) * np.mean(weight * likelihood)
    np.testing.assert_allclose(nats, information[0] - information[1], rtol=2e-3)

    for minus, best, plus in zip(at[-0.1], at[0.0], at[0.1]):
        slope, error = mean_and_error(weight * (plus - minus) / 0.2)
        curvature = np.mean(weight * (plus + minus - 2 * best)) / 0.01
        assert abs(slope) < 4 * error
        assert curvature > 0 and error < 0.05 * curvature


@pytest.mark.parametrize("name, matching", [("vp", "dsm"), ("psld", "hsm"), ("psld", "dsm")])
def test_score_matching_draws_times_noise_and_momenta(name: str, matching: str):
    """The function that training calls has that expectation, with either sampler of times."""
    sde = analytic.PROCESSES[name]

    @jax.jit
    def run(key, time_law):
        x0 = MU + S * jax.random.normal(jax.random.fold_in(key, 1), (4000, 8))
        key = jax.random.fold_in(key, 2)
        return objectives.score_matching(key, exact_eps(sde, matching), sde, x0, time_law=time_law, matching=matching)

    nodes, weights = np.polynomial.legendre.leggauss(100)
    t = np.exp(0.5 * (1 - nodes) * np.log(T_MIN))
    with jax.enable_x64(True):
        laws = exact(sde, t, matching)
    simple = [np.trace(np.eye(sde.k) - L.T @ np.linalg.solve(C, L)) / sde.num_noised for C, _, L, _ in laws]
    expected = np.sum(0.5 * weights * -np.log(T_MIN) * t / (1 - T_MIN) * simple)
    for time_law in (objectives.uniform(T_MIN), objectives.importance(sde, matching=matching, t_min=T_MIN)):
        values = run(jax.random.key(0), time_law)
        assert values.shape == (4000,)
        mean, error = mean_and_error(values)
        assert abs(mean - expected) < 4 * error and error < 0.05 * expected


CASES = [
    (name, matching, weighting)
    for name, sde in analytic.PROCESSES.items()
    for matching in (("hsm", "dsm") if sde.k > 1 else ("hsm",))  # else there is one kernel
    for weighting in WEIGHTINGS
    if weighting != "reweightedv1" or sde.frame is None  # refused, below
]


@pytest.mark.parametrize(
    "name, matching, weighting",
    tiers.alike(CASES, [case for case in CASES if case[0] in ("vp", "ve", "cld", "psld", "oblique")]),
)
def test_importance_sampled_times(name: str, matching: str, weighting: str):
    """For a prediction off by unit noise: the same expectation as uniform times, and almost no variance over t.

    Its loss in closed form: r; the trace of the noised part of g g^T; |g^T L^-T|^2 over the noised variables' eps.
    """
    sde = analytic.PROCESSES[name]
    rows, n = noised_rows(sde), 300
    proposal = objectives.importance(sde, weighting=weighting, matching=matching, t_min=T_MIN)
    u = (jnp.arange(n, dtype=jnp.float32) + 0.5) / n  # stratified: sums over u are quadratures
    found = {}
    for label, sampler in (("uniform", objectives.uniform(T_MIN)), ("importance", proposal)):
        t, weight = sampler.sample(u)
        with jax.enable_x64(True):
            laws = exact(sde, np.asarray(t, np.float64), matching)
        if weighting == "simple":
            loss = [sde.num_noised for _ in laws]
        elif weighting == "reweightedv1":
            loss = [np.trace(rows @ rate @ rows.T) for *_, rate in laws]
        else:
            blocks = [np.linalg.inv(rows @ L @ rows.T).T for _, _, L, _ in laws]
            loss = [np.trace(b.T @ rows @ law.rate @ rows.T @ b) for b, law in zip(blocks, laws)]
        found[label] = np.asarray(weight, np.float64) * np.asarray(loss)
    np.testing.assert_allclose(found["importance"].mean(), found["uniform"].mean(), rtol=5e-3)
    relative = {label: value.std() / value.mean() for label, value in found.items()}
    assert relative["importance"] < 0.02
    if relative["uniform"] > 1e-3:  # what does not depend on t has nothing to gain
        assert relative["importance"] < 0.2 * relative["uniform"]


def test_unit_error_loss_is_the_loss_of_white_noise():
    """By hand for VP: simple 1, reweightedv1 beta, likelihood beta / sigma^2 (Song et al. 2021b)."""
    sde, t = sdes.vp(), jnp.asarray([0.1, 0.7])
    beta = 0.1 + 19.9 * np.asarray(t)
    sigma2 = 1 - np.exp(-(0.1 * np.asarray(t) + 0.5 * 19.9 * np.asarray(t) ** 2))
    for weighting, expected in (("simple", 1 + 0 * beta), ("reweightedv1", beta), ("likelihood", beta / sigma2)):
        value = unit_error_loss(sde, t, weighting)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["vp", "psld", "oblique"])
def test_density_and_inverse_of_a_time_sampler(x64, name: str):
    """The density implied by the weights integrates to 1, and its integral up to sample(u) is u."""
    sampler = objectives.importance(analytic.PROCESSES[name], t_min=1e-4)
    u = jnp.linspace(0.0, 1.0, 4001)[:-1] + 0.5 / 4000
    t, weight = sampler.sample(u)
    density = 1 / (np.asarray(weight) * (1 - 1e-4))
    assert np.all(np.diff(t) > 0) and t[0] >= 1e-4 and t[-1] <= 1.0
    edges, cdf = np.asarray(sampler.edges), np.asarray(sampler.cdf)
    assert edges[0] == 1e-4 and edges[-1] == 1.0 and cdf[0] == 0.0 and cdf[-1] == 1.0
    middle = 0.5 * (edges[1:] + edges[:-1])
    at_middle = 1 / (np.asarray(sampler.sample(jnp.asarray(0.5 * (cdf[1:] + cdf[:-1]))).weight) * (1 - 1e-4))
    np.testing.assert_allclose(at_middle @ np.diff(edges), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.interp(t, edges, cdf), u, atol=1e-12)
    np.testing.assert_allclose(sampler.sample(jnp.asarray(0.5 * (cdf[1:] + cdf[:-1]))).t, middle, rtol=1e-12)
    # proportional to the loss it is made for, by Song et al.'s closed form for VP
    if name == "vp":
        beta, B = 0.1 + 19.9 * np.asarray(t), 0.1 * np.asarray(t) + 0.5 * 19.9 * np.asarray(t) ** 2
        ratio = density / (beta / -np.expm1(-B))
        np.testing.assert_allclose(ratio / ratio.mean(), 1.0, atol=0.02)


def test_importance_is_built_inside_jit_as_outside():
    """Of a process that is not traced."""
    u = jnp.asarray([0.1, 0.5, 0.9])
    inside = jax.jit(lambda u: objectives.importance(VP).sample(u))(u)
    for ours, outside in zip(inside, objectives.importance(VP).sample(u)):
        np.testing.assert_allclose(ours, outside, rtol=1e-5)


def test_importance_times_in_float32_reach_both_ends():
    t, weight = objectives.importance(sdes.cld()).sample(jnp.asarray([0.0, 1 - 2**-24], jnp.float32))
    np.testing.assert_allclose(t, [1e-5, 1.0], rtol=1e-2)
    assert np.all(np.isfinite(weight)) and np.all(weight > 0)


VP = sdes.vp()
ESTIMATES = {
    "score matching": lambda x0: objectives.score_matching(
        key(), lambda z, t: 0.5 * z, VP, x0, time_law=objectives.importance(VP), weighting="likelihood"
    ),
    "denoising": lambda x0: objectives.denoising(
        key(), lambda y, sigma: 0.5 * y, x0, sigma_law=objectives.log_uniform(0.01, 100.0)
    ),
    "classifier": lambda x0: objectives.classifier(
        key(), lambda z, t: z[:, 0], VP, x0, jnp.zeros(16, jnp.int32), time_law=objectives.importance(VP)
    )[0],
    "lsgm": lambda x0: objectives.lsgm(
        key(), lambda _, z, t: 0.5 * z, {}, VP, x0, p=objectives.lsgm_mode(VP)
    ).cross_entropy,
    "bound": lambda x0: samplers.variational_bound(key(), lambda z, t: -0.9 * z, VP, x0)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", tiers.alike(ESTIMATES, ["score matching", "denoising", "lsgm"]))
def test_data_in_bfloat16_are_estimated_in_float32(name: str):
    """Numbers that bfloat16 holds exactly: the same times, weights and losses as in float32."""
    x0 = (jnp.arange(48.0).reshape(16, 3) - 24) / 8
    ours = ESTIMATES[name](x0.astype(jnp.bfloat16))
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, ESTIMATES[name](x0))


def test_weights_have_the_mean_one_whatever_the_type_of_the_data():
    """Of 40,000 draws, whose weights are below 2.5: six deviations of their mean, at the very most, are 0.04."""
    _, weight = objectives.importance(VP).draw(key(), 40_000, jnp.bfloat16)
    assert weight.max() < 2.5
    np.testing.assert_allclose(np.mean(np.asarray(weight, np.float64)), 1.0, atol=0.04)


def test_reductions_and_norms():
    """One example by hand: VP predicts 0, so the loss is that of eps."""
    sde, t = sdes.vp(), jnp.asarray([0.3])
    eps = jnp.asarray([[[1.0, -2.0, 3.0]]])
    loss = functools.partial(objectives.score_matching_loss, lambda z, t: 0 * z, sde, jnp.ones((1, 1, 3)), t, eps)
    np.testing.assert_allclose(loss(reduce="sum"), [14.0], rtol=1e-6)
    np.testing.assert_allclose(loss(reduce="half_sum"), [7.0], rtol=1e-6)
    np.testing.assert_allclose(loss(reduce="mean"), [14 / 3], rtol=1e-6)
    np.testing.assert_allclose(loss(reduce="sum", norm="l1"), [6.0], rtol=1e-6)
    np.testing.assert_allclose(loss(reduce="sum", weighting="reweightedv2"), [14.0], rtol=1e-6)
    sigma2 = np.asarray(sde.transition(t).covariance)[0, 0, 0]
    beta = np.asarray(sde.schedule.beta(t))[0]
    np.testing.assert_allclose(loss(reduce="sum", weighting="likelihood"), [14 * beta / sigma2], rtol=1e-5)


PSLD, T = sdes.psld(), jnp.asarray([0.1, 0.2, 0.3, 0.4])
LAW = objectives.lsgm_mode(PSLD, "drop_all_uniform")


FUNCTIONS = {  # of what a function of the user's returns, where states are (4, 2, 4) and data (4, 4)
    "score matching": lambda f: objectives.score_matching(
        key(), f, PSLD, jnp.ones((4, 4)), time_law=objectives.uniform()
    ),
    "lsgm": lambda f: objectives.lsgm(key(), lambda _, z, t: f(z, t), {}, PSLD, jnp.ones((4, 4)), p=LAW),
    "mixed": lambda f: score.learned_mixed_eps(f, jnp.zeros((2, 4)), PSLD)(jnp.ones((4, 2, 4)), T),
    "score": lambda f: score.score_from_eps(f, PSLD)(jnp.ones((4, 2, 4)), T),
    "denoising": lambda f: objectives.denoising(key(), f, jnp.ones((4, 4)), sigma_law=objectives.log_normal()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_could_broadcast_is_refused(name: str):
    """JAX broadcasts by rank unless it is told not to, as it is in these tests."""
    call, inner = FUNCTIONS[name], r"\(4, 2, 4\)" if name != "denoising" else r"\(4, 4\)"
    with jax.numpy_rank_promotion("allow"):
        call(lambda z, t: 0.5 * z)
        for wrong, shape in ((lambda z: z[:, :1], r"\(4, 1"), (lambda z: z[:, 0], r"\(4"), (lambda z: z[:1], r"\(1, ")):
            with pytest.raises(InputError, match=rf"returned {shape}.*{inner}") as caught:
                call(lambda z, t, wrong=wrong: wrong(z))
            assert "\n" not in str(caught.value)


def call(**options):
    sde = options.pop("sde", sdes.psld())
    zeros = lambda z, t: jnp.zeros((z.shape[0], sde.num_noised, *z.shape[2:]))  # noqa: E731
    z = jnp.ones((2, sde.k, 3))
    return objectives.score_matching_loss(zeros, sde, z, jnp.asarray([0.1, 0.2]), z, **options)


def drawn(time_law):
    return objectives.score_matching(key(), lambda z, t: z, VP, jnp.ones((2, 3)), time_law=time_law)


BAD = {
    "weighting": (lambda: call(weighting="nll"), "weighting must be"),
    "reduce": (lambda: call(reduce="max"), "reduce must be"),
    "norm": (lambda: call(norm="L1"), "norm must be 'l2' or 'l1', not 'L1'"),
    "matching": (lambda: call(matching="ism"), "matching must be"),
    "frame": (lambda: call(sde=analytic.oblique_recipe(), weighting="reweightedv1"), "reweightedv1 needs"),
    "range": (lambda: objectives.uniform(0.5, 0.1), "t_min = 0.5, t_max = 0.1"),
    "zero": (lambda: objectives.importance(sdes.vp(), t_min=0.0), "needs t_min > 0"),
    "traced": (lambda: jax.jit(lambda sde: objectives.importance(sde).cdf)(sdes.vp()), "the process is traced: build"),
    "mode": (lambda: drawn(objectives.lsgm_mode(sdes.vp(), "ll_iw")), "give time_law=mode.law and weighting='ll'"),
    "no law": (lambda: drawn("uniform"), "time_law: expected a law of times, .* got 'uniform'"),
    "no law of levels": (lambda: objectives.of_process(VP, objectives.uniform), "time_law: expected a law"),
    "importance weighting": (lambda: objectives.importance(sdes.vp(), weighting="fid"), "weighting must be"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
