"""LSGM's objectives: the cross entropy in closed form for every process, unbiased times, gradients, the mixed score.

Everything Gaussian: posterior N(a, s^2), aggregate N(mu, S^2), independent latent variables. Expectations over the
latent and the noise are of quadratic functions, exact by a cubature of degree 3; those over t are composite
Gauss-Legendre rules in log t.
"""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import tiers

from sgmjax import objectives, score, sdes
from sgmjax.objectives.time_law import Clock, EqualBins, TimeDraw, normal_data_loss
from sgmjax.objectives.weighting import WEIGHTINGS, weighted_square

PROCESSES = analytic.PROCESSES | {
    "geometric_vp": sdes.geometric_vp(),
    "subvp_0": sdes.subvp(sigma2_0=1e-3),
    "ve_latent": sdes.ve(sigma_min=0.01, sigma_max=13.0, sigma2_0=2e-4),
}
FAST = ("vp", "ve_latent", "psld")
NAMES = tiers.alike(PROCESSES, FAST)
MODES = [
    f"{weighting}_{how}" for weighting in ("ll", "drop_all", "drop_sigma2t", "rescale") for how in ("uniform", "iw")
]
A, S_POSTERIOR, MU, S = 0.7, 0.3, 0.2, 1.3


def exact_eps(sde, mu, s):
    """The exact prediction for data N(mu, s^2), as the prior's function of (parameters, z, t)."""
    score_fn = analytic.gaussian_score(sde, mu, s)

    def eps_fn(params, z, t):
        kernel = sde.transition(t)
        return kernel.restrict(kernel.eps(score_fn(z, t)))

    return eps_fn


def log_rule(low: float, high: float = 1.0):
    """Nodes and weights of a composite Gauss-Legendre rule in log t."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    panels = np.linspace(np.log(low), np.log(high), int(np.ceil(np.log(high / low) / 0.25)) + 1)
    x = (panels[:-1, None] + np.diff(panels)[:, None] * (nodes + 1) / 2).ravel()
    return np.exp(x), np.exp(x) * (np.diff(panels)[:, None] * weights / 2).ravel()


@functools.partial(jax.jit, static_argnames="k")
def diffusion_at(sde, t, *, k):
    """E of the cross entropy's integrand at times t (n,), over z_0 ~ N(a, s^2) and the noise: (n,)."""
    n = k + 1
    points = np.concatenate([np.sqrt(n) * np.eye(n), -np.sqrt(n) * np.eye(n)])  # each of weight 1 / (2 n)
    count = len(points)
    z0 = jnp.tile(jnp.asarray(A + S_POSTERIOR * points[:, :1]), (t.shape[0], 1))
    noise = jnp.tile(jnp.asarray(points[:, 1:, None]), (t.shape[0], 1, 1))
    times = jnp.repeat(t, count)
    losses = objectives.lsgm_losses(
        exact_eps(sde, MU, S), {}, sde, z0, TimeDraw(times, jnp.ones_like(times)), noise, weighting="ll"
    )
    return jnp.mean(losses.cross_entropy.reshape(-1, count), axis=1)


def cross_entropy(mean, covariance, other_mean, other_covariance) -> float:
    """-E log N(other) under N(mean, covariance), in nats."""
    d = np.asarray(mean - other_mean)
    inverse = np.linalg.inv(other_covariance)
    log_det = np.linalg.slogdet(2 * np.pi * other_covariance)[1]
    return 0.5 * (log_det + np.trace(inverse @ covariance) + d @ inverse @ d)


def entropy(covariance) -> float:
    return 0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.asarray(covariance))[1]


def laws(sde, t: float, mean: float, std: float):
    law = analytic.moments(sde, (t,), mean, std)[0]
    return law.mean, law.covariance


def auxiliary_entropy(sde) -> float:
    factor = np.asarray(sde.initial_factor(), np.float64)[1:, 1:]
    return entropy(factor @ factor.T) if sde.k > 1 else 0.0


def wide(sde):
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), sde)


# ---- the cross entropy


@pytest.mark.parametrize("name", NAMES)
def test_cross_entropy_in_closed_form(x64, name):
    """At any cut-off the objective is the cross entropy of the states there, and at a small one that of the latents."""
    sde = wide(PROCESSES[name])
    first = float(sde.initial_variance())
    for t_min, limit in ((1e-2, False), (1e-6, True)):
        t, weights = log_rule(t_min)
        diffusion = float(np.sum(weights * np.asarray(diffusion_at(sde, t, k=sde.k))))
        constant = float(objectives.cross_entropy_constant(sde, t_min, jnp.float64))
        # E KL(q(u_1 | z_0) || p_1), p_1 the exact law at the end
        end, point = laws(sde, 1.0, MU, S), laws(sde, 1.0, 0.0, 0.0)
        spread = laws(sde, 1.0, A, S_POSTERIOR)
        terminal = cross_entropy(*spread, *end) - entropy(point[1])
        states = cross_entropy(*laws(sde, t_min, A, S_POSTERIOR), *laws(sde, t_min, MU, S)) - auxiliary_entropy(sde)
        np.testing.assert_allclose(diffusion + constant + terminal, states, atol=1e-7)
        if limit:  # sigma2_0 belongs to the latents' law; the rest is what t_min = 1e-6 leaves
            posterior, prior = S_POSTERIOR**2 + first, S**2 + first
            latents = 0.5 * (np.log(2 * np.pi * prior) + (posterior + (A - MU) ** 2) / prior)
            rate = float(np.abs(np.asarray(sde.drift_matrix(jnp.full(1, t_min)))).max())
            rate += float(np.abs(np.asarray(sde.diffusion_squared(jnp.full(1, t_min)))).max())
            np.testing.assert_allclose(states, latents, atol=20 * max(rate, 1.0) * t_min)


@pytest.mark.parametrize("name", NAMES)
def test_constant_and_terminal_divergence(x64, name):
    sde = wide(PROCESSES[name])
    point = laws(sde, 0.01, 0.0, 0.0)[1]
    ours = objectives.cross_entropy_constant(sde, 0.01, jnp.float64)
    np.testing.assert_allclose(ours, entropy(point) - auxiliary_entropy(sde), rtol=1e-9)
    prior = np.asarray(sde.prior_factor(), np.float64)
    z0 = np.array([[0.3, -1.2]])
    expected = [
        cross_entropy(*laws(sde, 1.0, z, 0.0), np.zeros(sde.k), prior @ prior.T) - entropy(laws(sde, 1.0, 0.0, 0.0)[1])
        for z in z0[0]
    ]
    np.testing.assert_allclose(objectives.terminal_divergence(sde, jnp.asarray(z0))[0], expected, rtol=1e-8, atol=1e-12)


def test_a_wrong_auxiliary_model_is_paid_for(x64):
    """The bound is strict where the prior's momentum is not the posterior's: KL of the momenta is what it adds.

    The joint prior with Var m_0 = 4 kappa M has the same law of z_0; the exact score of it leaves the bound at the
    cross entropy plus KL(q(m_0) || p(m_0)).
    """
    sde, other = wide(sdes.psld()), wide(sdes.psld(kappa=0.16))
    t, weights = log_rule(1e-6)
    points = np.concatenate([np.sqrt(3) * np.eye(3), -np.sqrt(3) * np.eye(3)])

    @jax.jit
    def integrand(t):
        z0 = jnp.tile(jnp.asarray(A + S_POSTERIOR * points[:, :1]), (t.shape[0], 1))
        noise = jnp.tile(jnp.asarray(points[:, 1:, None]), (t.shape[0], 1, 1))
        times = jnp.repeat(t, 6)
        score_fn = analytic.gaussian_score(other, MU, S)

        def eps_fn(params, z, t):
            kernel = sde.transition(t)
            return kernel.restrict(kernel.eps(score_fn(z, t)))

        draw = TimeDraw(times, jnp.ones_like(times))
        losses = objectives.lsgm_losses(eps_fn, {}, sde, z0, draw, noise, weighting="ll")
        return jnp.mean(losses.cross_entropy.reshape(-1, 6), axis=1)

    total = np.sum(weights * np.asarray(integrand(jnp.asarray(t))))
    total += objectives.cross_entropy_constant(sde, 1e-6, jnp.float64)
    spread, end, point = laws(sde, 1.0, A, S_POSTERIOR), laws(other, 1.0, MU, S), laws(sde, 1.0, 0.0, 0.0)
    total += cross_entropy(*spread, *end) - entropy(point[1])
    latents = 0.5 * (np.log(2 * np.pi * S**2) + (S_POSTERIOR**2 + (A - MU) ** 2) / S**2)
    np.testing.assert_allclose(total - latents, 0.5 * (np.log(4) + 1 / 4 - 1), atol=1e-3)


CASES = [("ll_iw", "same"), ("drop_all_iw", "same"), ("drop_all_iw", "ll_iw")]


@pytest.mark.parametrize(
    ("name", "p_mode", "q"),
    [
        pytest.param(
            name, *case, marks=() if (name, case) in (("psld", CASES[1]), ("vp", CASES[0])) else pytest.mark.slow
        )
        for name in PROCESSES
        for case in CASES
    ],
)
def test_estimates_are_unbiased(name, p_mode, q):
    """Algorithms 1, 3 and 2 in float32: the mean over draws is the closed form, within five standard errors."""
    sde, t_min, count = PROCESSES[name], 0.01, 40_000
    p = objectives.lsgm_mode(sde, p_mode, t_min=t_min)
    q_times = None if q == "same" else objectives.lsgm_mode(sde, q, t_min=t_min)

    @jax.jit
    def draw(key, sde, p, q_times):
        latent_key, key = jax.random.split(key)
        z0 = A + S_POSTERIOR * jax.random.normal(latent_key, (count, 1))
        how = "reweight_p_samples" if q_times is None else q_times
        return objectives.lsgm(key, exact_eps(sde, MU, S), {}, sde, z0, p=p, q=how, terminal=False)

    losses = draw(jax.random.key(1), sde, p, q_times)
    with jax.enable_x64(True):
        t, weights = log_rule(t_min)
        expected = np.sum(weights * np.asarray(diffusion_at(wide(sde), t, k=sde.k)))
        expected += float(objectives.cross_entropy_constant(wide(sde), t_min, jnp.float64))
    values = np.asarray(losses.cross_entropy, np.float64)[:, 0]
    assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(count)
    assert values.std() / np.sqrt(count) < 0.1  # of a diffusion term of about five: the comparison says something
    if p_mode == "ll_iw":  # one objective for both
        constant = float(objectives.cross_entropy_constant(sde, t_min))
        np.testing.assert_allclose(losses.p_objective, values - constant, atol=1e-4)


# ---- times


@jax.jit
def sample(times, u):
    return times.sample(u)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_every_mode_for_every_process(name, mode):
    """The mean of weight * f(t) over the proposal is the integral of f; under "iw" the objective of normal data is
    the same at every t."""
    sde = PROCESSES[name]
    times = objectives.lsgm_mode(sde, mode, t_min=0.01)
    u = (np.arange(4096, dtype=np.float32) + 0.5) / 4096
    t, weight = (np.asarray(v, np.float64) for v in sample(times, u))
    assert (t >= 0.01).all() and (t <= 1).all() and (weight > 0).all() and np.isfinite(weight).all()
    nodes, weights = log_rule(0.01)
    loss, at_nodes = np.ones_like(t), np.ones_like(nodes)
    if mode.endswith("_iw"):
        padded = np.concatenate([t, nodes]).astype(np.float32)
        both = np.asarray(normal_data_loss(sde, jnp.asarray(padded), times.weighting), np.float64)
        loss, at_nodes = both[: len(t)], both[len(t) :]
    integral = np.sum(weights * at_nodes * np.cos(2 * nodes))
    size = np.sum(weights * at_nodes)
    np.testing.assert_allclose(np.mean(weight * loss * np.cos(2 * t)), integral, atol=2e-3 * size)
    if isinstance(times.law, Clock):  # float32 of 1 - e^{-B} near 1
        np.testing.assert_allclose(weight * loss, weight[0] * loss[0], rtol=5e-3)
    elif mode.endswith("_iw"):  # flat in all but the defensive share of the draws
        assert isinstance(times.law, EqualBins)
        assert np.mean(np.abs(weight * loss / np.median(weight * loss) - 1) < 0.1) > 0.8


def test_closed_forms_where_there_are_some():
    kinds = {
        ("vp", "ll_iw"): "clock", ("vp", "drop_all_iw"): "clock", ("vp", "drop_sigma2t_iw"): "clock",
        ("geometric_vp", "ll_iw"): "clock", ("geometric_vp", "drop_sigma2t_iw"): "clock",
        ("geometric_vp", "drop_all_iw"): "table", ("ve_latent", "ll_iw"): "clock",
        ("ve_latent", "drop_all_iw"): "clock", ("ve_latent", "reweightedv1_iw"): "clock", ("vp", "simple_iw"): "clock",
        ("ve_latent", "rescale_iw"): "table", ("subvp", "ll_iw"): "table", ("psld", "ll_iw"): "table",
        ("vp", "ll_uniform"): "one bin",
    }  # fmt: skip
    for (name, mode), kind in kinds.items():
        law = objectives.lsgm_mode(PROCESSES[name], mode).law
        found = "clock" if isinstance(law, Clock) else "one bin" if len(law.widths) == 1 else "table"
        assert found == kind, (name, mode)


VES = {
    "geometric": sdes.ve(),
    "uniform": sdes.ve(sigma_dist="uniform"),
    "geometric latent": sdes.ve(sigma_min=0.01, sigma_max=13.0, sigma2_0=2e-4),
    "uniform latent": sdes.ve(sigma_min=0.01, sigma_max=13.0, sigma2_0=2e-4, sigma_dist="uniform"),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", VES)
def test_every_weighting_of_ve_by_its_own_clock(name, weighting):
    """weight * loss of normal data is its integral, by quadrature of the closed form, at every draw.

    Of a table 5% of the times are uniform, where it may be less: a deviation of sqrt(0.05) at most.
    """
    sde, t_min = VES[name], 1e-3
    low, high = float(sde.sigma_min), float(sde.sigma_max)
    first = low**2 if sde.sigma2_0 is None else float(sde.sigma2_0)
    log_ratio = np.log(high / low)

    def of_data(t):
        uniform = sde.sigma_dist == "uniform"
        sigma = low + t * (high - low) if uniform else low * np.exp(t * log_ratio)
        rate = 2 * sigma * (high - low) if uniform else 2 * sigma**2 * log_ratio  # d sigma^2 / dt
        variance = first + sigma**2 - low**2
        factor = {
            "likelihood": rate / variance, "ll": rate / variance / 2, "reweightedv1": rate, "drop_sigma2t": rate / 2,
            "rescale": 0.5,
        }.get(weighting, 1.0)  # fmt: skip
        return factor * (1 - first) / (1 - first + variance)

    law = objectives.lsgm_mode(sde, f"{weighting}_iw", t_min=t_min)
    t, weight = (np.asarray(v, np.float64) for v in law.sample((jnp.arange(4096) + 0.5) / 4096))
    weighted = weight * of_data(t)
    integral, _ = scipy.integrate.quad(lambda x: np.exp(x) * of_data(np.exp(x)), np.log(t_min), 0.0, limit=200)
    np.testing.assert_allclose(weighted.mean(), integral, rtol=2e-3)
    assert weighted.std() < (1e-3 if isinstance(law.law, Clock) else 0.23) * weighted.mean()


def test_times_down_to_zero():
    """LSGM's geometric VP trains at t_min = 0: everything is finite there in float32."""
    sde = sdes.geometric_vp()

    @jax.jit
    def weighed(sde, times):
        t, weight = times.sample(jnp.asarray([0.0, 1e-7, 0.3, 1 - 2.0**-24]))
        return t, weight * weighted_square(sde, t, jnp.ones((4, 1, 1)), "ll")[:, 0]

    for mode in MODES:
        t, values = weighed(sde, objectives.lsgm_mode(sde, mode, t_min=0.0))
        assert np.isfinite(np.asarray(values)).all() and (np.asarray(t) >= 0).all(), mode
    assert np.isfinite(objectives.cross_entropy_constant(sde, 0.0))


def test_likelihood_weighting_is_that_of_score_matching():
    """Half the sum of `score_matching_loss`'s likelihood weighting, and k = 1's scalar forms."""
    for name in ("vp", "psld"):
        sde = PROCESSES[name]
        t = jnp.asarray([0.02, 0.5, 0.9])
        noise = jax.random.normal(jax.random.key(0), (3, sde.k, 2))
        z0 = jax.random.normal(jax.random.key(1), (3, 2))
        zero = lambda z, t: jnp.zeros((3, sde.num_noised, 2))  # noqa: E731
        expected = objectives.score_matching_loss(
            zero, sde, sde.augment(z0), t, noise, weighting="likelihood", reduce="half_sum"
        )
        ours = weighted_square(sde, t, -sde.restrict(noise), "ll")
        assert ours.shape == (3, 2)
        np.testing.assert_allclose(jnp.sum(ours, axis=1), expected, rtol=1e-6)
    one = jnp.ones((3, 1, 1))
    sde, t = PROCESSES["vp"], jnp.asarray([0.02, 0.5, 0.9])
    beta, B = 0.1 + 19.9 * np.asarray(t), 0.1 * np.asarray(t) + 9.95 * np.asarray(t) ** 2
    for weighting, expected in (
        ("ll", beta / (2 * (1 - np.exp(-B)))),
        ("drop_all", np.ones(3)),
        ("drop_sigma2t", beta / 2),
        ("rescale", np.exp(B) / 2),
    ):
        np.testing.assert_allclose(weighted_square(sde, t, one, weighting)[:, 0], expected, rtol=1e-5)


# ---- gradients


def network(params, z, t):
    """Three dense layers on each latent variable's phase vector; (batch, k, n) -> (batch, r = k, n)."""
    h = jnp.moveaxis(z, 1, -1)
    for w in params:
        h = jnp.tanh(jnp.einsum("bni,ij->bnj", h, w))
    return jnp.moveaxis(h, -1, 1)


def weights_of(k: int, width: int = 32):
    sizes = [k, width, width, width, k]
    return [
        np.asarray(jax.random.normal(jax.random.key(i), pair)) * 0.3 for i, pair in enumerate(zip(sizes, sizes[1:]))
    ]


def both_losses(vae, params, key, *, sde, p, q="reweight_p_samples", eps_fn=network, q_params=None):
    z0 = jnp.tanh(vae[None] + jnp.asarray(np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)))
    losses = objectives.lsgm(key, eps_fn, params, sde, z0, p=p, q=q, q_params=q_params, shared_noise=True)
    q_loss = jnp.mean(jnp.sum(losses.cross_entropy * jnp.asarray([[1.0, 2.0, 3.0]]), axis=1))  # as of KL balancing
    return jnp.mean(losses.p_objective), q_loss


@pytest.mark.parametrize("algorithm", tiers.alike([1, 2, 3], [1]))
def test_one_gradient_gives_each_its_own(algorithm):
    sde = sdes.psld()
    p = objectives.lsgm_mode(sde, "ll_iw" if algorithm == 1 else "drop_all_iw")
    q = objectives.lsgm_mode(sde, "ll_iw") if algorithm == 2 else "reweight_p_samples"
    vae, params = jnp.asarray([0.1, -0.3, 0.5]), weights_of(2)

    @jax.jit
    def gradients(vae, params, key):  # a dropout-like key inside, as of the training step
        dropped = lambda params, z, t: network(params, z, t) * jax.random.bernoulli(key_2, 0.8, z.shape)  # noqa: E731
        key, key_2 = jax.random.split(key)
        losses = functools.partial(both_losses, key=key, sde=sde, p=p, q=q, eps_fn=dropped)
        ours = jax.grad(lambda v, w: sum(losses(v, w)), argnums=(0, 1))(vae, params)
        of_vae = jax.grad(lambda v: losses(v, params)[1])(vae)
        of_prior = jax.grad(lambda w: losses(vae, w)[0])(params)
        nothing = jax.grad(lambda v: losses(v, params)[0])(vae), jax.grad(lambda w: losses(vae, w)[1])(params)
        return ours, (of_vae, of_prior), nothing

    with jax.debug_key_reuse(False):  # the same draws for all
        ours, expected, nothing = gradients(vae, params, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.abs(np.asarray(a)).max() > 0
    for leaf in jax.tree.leaves(nothing):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@pytest.mark.parametrize("remat", [False, True])
def test_the_network_is_evaluated_once(remat):
    """FLOPs of the compiled gradients: one forward, two backward chains, one set of weight gradients are 4 forwards
    (5 with rematerialised blocks); two calls of the network that nobody merges would be 5 or more (7)."""
    sde = sdes.psld()
    p = objectives.lsgm_mode(sde, "drop_all_iw")
    vae, params = jnp.asarray([0.1, -0.3, 0.5]), weights_of(2, 128)
    evaluate = jax.checkpoint(network) if remat else network

    def flops(f, *args):
        cost = jax.jit(f).lower(*args).compile().cost_analysis()
        return cost["flops"] if isinstance(cost, dict) else cost[0]["flops"]

    z, t = jnp.zeros((8, 2, 3)), jnp.full((8,), 0.5)
    forward = flops(network, params, z, t)
    with jax.debug_key_reuse(False):
        gradient = flops(
            jax.grad(lambda v, w, key: sum(both_losses(v, w, key, sde=sde, p=p, eps_fn=evaluate)), (0, 1)),
            vae, params, jax.random.key(0),
        )  # fmt: skip
    assert gradient < (5.4 if remat else 4.4) * forward, gradient / forward


def test_moving_average_and_frozen_vae():
    sde = sdes.vp()
    p = objectives.lsgm_mode(sde, "ll_iw")
    vae, params, averaged = jnp.asarray([0.1, -0.3, 0.5]), weights_of(1), [0.5 * w for w in weights_of(1)]

    @jax.jit
    def run(vae, params, averaged):
        key = jax.random.key(0)
        plain = both_losses(vae, params, key, sde=sde, p=p)
        other = both_losses(vae, averaged, key, sde=sde, p=p)
        mixed = both_losses(vae, params, key, sde=sde, p=p, q_params=averaged)
        slope = jax.grad(lambda w: both_losses(vae, params, key, sde=sde, p=p, q_params=w)[1])(averaged)
        return plain, other, mixed, slope

    with jax.debug_key_reuse(False):
        plain, other, mixed, slope = run(vae, params, averaged)
    np.testing.assert_allclose(mixed[0], plain[0], rtol=1e-6)  # p by the parameters
    np.testing.assert_allclose(mixed[1], other[1], rtol=1e-6)  # q by their average
    assert all(not np.asarray(leaf).any() for leaf in slope)
    losses = objectives.lsgm(jax.random.key(0), network, params, sde, jnp.zeros((4, 3)), p=p, q=None)
    assert losses.cross_entropy is None and losses.t_q is None and losses.p_objective.shape == (4,)


# ---- the learned mixed score


@pytest.mark.parametrize("name", NAMES)
def test_normal_eps_is_exact(name):
    """Against the marginal of normal data from float64 moments, sigma2_0 included in the unit variance; float32."""
    sde = PROCESSES[name]
    t = np.array([1e-5, 1e-3, 0.1, 0.6, 1.0])
    z = np.random.default_rng(0).normal(size=(5, sde.k, 2))
    ours = jax.jit(lambda sde, z, t: score.normal_eps(sde)(z, t))(
        sde, jnp.asarray(z, jnp.float32), jnp.asarray(t, jnp.float32)
    )
    assert ours.shape == (5, sde.num_noised, 2)
    first = float(np.asarray(sde.initial_variance()))
    with jax.enable_x64(True):
        point = analytic.moments(sde, t, 0.0, 0.0)
        L = np.asarray(jax.jit(lambda sde, t: sde.transition(t).factor)(wide(sde), t))
    frame = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    for i, law in enumerate(point):
        covariance = law.covariance + (1 - first) * np.outer(law.E[:, 0], law.E[:, 0])
        expected = frame @ (L[i].T @ np.linalg.solve(covariance, z[i]))
        size = np.abs(expected[sde.k - sde.num_noised :]).max()
        np.testing.assert_allclose(ours[i], expected[sde.k - sde.num_noised :], atol=2e-5 * size)


def test_mixed_score_weighs_channels():
    sde = sdes.psld()
    logit = score.initial_mixing_logit(sde, 3, init=-6.0, active=[True, True, False])
    assert logit.shape == (2, 3)
    np.testing.assert_array_equal(logit[:, 2], [-15, -15])
    z, t = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3)), jnp.asarray([0.1, 0.8])
    seen = []

    def eps_fn(z, t):
        seen.append(z)
        return jnp.ones_like(z)

    logit = logit.at[0, 0].set(20.0)
    mixed = score.learned_mixed_eps(eps_fn, logit, sde, active=[1, 1, 0])(z, t)
    normal = score.normal_eps(sde)(z, t)
    np.testing.assert_allclose(mixed[:, 0, ..., 0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(mixed[..., 2], normal[..., 2], atol=1e-5)
    weight = 1 / (1 + np.exp(6.0))
    np.testing.assert_allclose(mixed[:, 1, ..., 1], weight + (1 - weight) * normal[:, 1, ..., 1], rtol=1e-5, atol=1e-6)
    assert not np.asarray(seen[0][..., 2]).any() and np.asarray(seen[0][..., 1]).any()


@pytest.mark.parametrize("name", ["vp", "psld"])
def test_mixed_score_of_normal_latents_costs_their_entropy(x64, name):
    """With the network switched off, N(0, I) latents have the cross entropy of N(0, I): the objective starts there."""
    sde = wide(PROCESSES[name])
    t, weights = log_rule(1e-6)
    points = np.concatenate([np.sqrt(sde.k + 1) * np.eye(sde.k + 1), -np.sqrt(sde.k + 1) * np.eye(sde.k + 1)])

    @jax.jit
    def integrand(t):
        z0 = jnp.tile(jnp.asarray(points[:, :1]), (t.shape[0], 1))
        noise = jnp.tile(jnp.asarray(points[:, 1:, None]), (t.shape[0], 1, 1))
        mix = score.learned_mixed_eps(lambda z, t: jnp.ones_like(z), jnp.full((sde.num_noised, 1), -50.0), sde)
        times = jnp.repeat(t, len(points))
        draw = TimeDraw(times, jnp.ones_like(times))
        losses = objectives.lsgm_losses(lambda w, z, t: mix(z, t), {}, sde, z0, draw, noise, weighting="ll")
        return jnp.mean(losses.cross_entropy.reshape(-1, len(points)), axis=1)

    total = np.sum(weights * np.asarray(integrand(jnp.asarray(t))))
    total += objectives.cross_entropy_constant(sde, 1e-6, jnp.float64)
    np.testing.assert_allclose(total, 0.5 * np.log(2 * np.pi * np.e), atol=1e-3)  # less the terminal divergence


# ---- bad input


def test_errors():
    sde = sdes.vp()
    for arguments, message in (
        ({"mode": "ll"}, "mode must be one of .*ll_uniform, ll_iw, .* not 'll'"),
        ({"t_min": 0.0}, "t_min = 0 needs a process of one variable with sigma2_0 > 0"),
        ({"t_min": 0.5, "t_max": 0.4}, "need 0 <= t_min < t_max <= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            objectives.lsgm_mode(sde, **arguments)
    with pytest.raises(ValueError, match="the process is traced"):
        jax.jit(lambda sde: objectives.lsgm_mode(sde).t_min)(sde)
    p = objectives.lsgm_mode(sde)
    with pytest.raises(ValueError, match="q must be a weighted law of times .lsgm_mode., 'reweight_p_samples' or None"):
        objectives.lsgm(jax.random.key(0), network, weights_of(1), sde, jnp.zeros((2, 3)), p=p, q="ll_iw")
    point = sdes.recipe(D=[[0.0, 0.0], [0.0, 1.0]], Q=[[0.0, -1.0], [1.0, 0.0]], Sigma_0=[[0.0]])
    with pytest.raises(ValueError, match="start from a point"):
        objectives.cross_entropy_constant(point, 0.01)
    with pytest.raises(ValueError, match="normal data of variance 1 cannot hold it"):
        score.normal_eps(sdes.ve(sigma_min=2.0, sigma_max=9.0))
    mixed = score.learned_mixed_eps(lambda z, t: z, jnp.zeros((1, 4)), sde)
    with pytest.raises(ValueError, match=r"needs \(1, 3\)"):
        mixed(jnp.zeros((2, 1, 3)), jnp.full((2,), 0.5))
    with pytest.raises(ValueError, match="weighting must be one of .*ll, drop_all"):
        weighted_square(sde, jnp.ones(1), jnp.ones((1, 1, 1)), "un")
