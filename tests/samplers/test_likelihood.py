"""Likelihoods against densities in closed form: exact scores of Gaussians and mixtures, every process."""

from __future__ import annotations

import functools
import itertools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, samplers, sdes
from sgmjax.samplers import likelihood
from sgmjax.samplers._likelihood import auxiliary_entropy, auxiliary_log_prob, flow_and_divergence

T_MIN = 1e-5
# of one structure, so that they share a compilation; the first is a Gaussian
DATA = {
    "gaussian": exact.mixture([[0.4, -0.3], [0.4, -0.3]], [0.4, 0.4]),
    "mixture": exact.mixture([[-0.5, 0.4], [0.7, -0.5]], [0.3, 0.5], [0.4, 0.6]),
}


@functools.partial(jax.jit, static_argnames=("options",))
def run(key, sde, mixture, x0, momentum=None, noise=None, t_min=T_MIN, *, options=()):
    """With the exact score of the mixture."""
    return likelihood(
        key, mixture.score_fn(sde), sde, x0, t_min=t_min, momentum=momentum, noise=noise, **dict(options)
    )  # fmt: skip


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ("psld",)))
def test_density_of_data(name: str):
    """To 1e-3 nats/dim, in float32, at tolerances of 1e-5.

    The exact flow carries p_t_min to p_1, and the model puts the prior in the place of p_1: its log density is that of
    the data, plus log prior / p_1 at the end point. That mismatch is at most 0.01 nats/dim for the published
    processes; the recipes here end with some of the data left.
    """
    sde = analytic.PROCESSES[name]
    for mixture in DATA.values():
        x0, _ = mixture.sample(jax.random.key(0), 6)
        z0 = sde.augment(x0, jax.random.key(1))
        momentum = z0[None, :, 1:]
        log_prob, info = run(jax.random.key(2), sde, mixture, x0, momentum, options=(("trace", "exact"),))
        last = jnp.ones(len(x0))
        mismatch = sde.prior_logp(info.latent[0]) - mixture.log_prob_t(sde, info.latent[0], last)
        assert np.abs(mismatch).max() / 2 < (0.2 if name in ("recipe4", "oblique") else 0.02)
        expected = mixture.log_prob_t(sde, z0, T_MIN * last)
        np.testing.assert_allclose(info.log_joint[0] - mismatch, expected, atol=2e-3)  # two dimensions
        weights = info.log_joint[0] - auxiliary_log_prob(sde, z0[:, 1:])
        np.testing.assert_allclose(info.log_weights[0], weights, atol=1e-5)
        np.testing.assert_allclose(log_prob, weights, atol=1e-5)
        np.testing.assert_allclose(info.bound, info.log_joint[0] + auxiliary_entropy(sde, 2), atol=1e-5)
        if name == "vp":  # where no mismatch is left, the density itself
            log_prob, _ = run(
                jax.random.key(2), sdes.vp(beta_max=40.0), mixture, x0, momentum, options=(("trace", "exact"),)
            )
            np.testing.assert_allclose(log_prob, mixture.log_prob(x0), atol=2e-3)


@pytest.mark.slow
def test_many_dimensions_at_a_loose_tolerance():
    """Steps are rejected for the error of the log density too, which is one number beside 2,048 of the state.

    A Gaussian in 1,024 dimensions at a tolerance of 1e-4: 1e-3 nats/dim. The momenta of PSLD leave their initial law
    within t = 1e-3, less than the first step; where the density counts as one element of many, 0.02 nats/dim are lost.
    """
    sde, mixture = sdes.psld(), exact.mixture(np.zeros((1, 1024)), [0.5])
    x0, _ = mixture.sample(jax.random.key(0), 2)
    z0 = sde.augment(x0, jax.random.key(1))
    _, info = run(
        jax.random.key(2), sde, mixture, x0, z0[None, :, 1:], options=(("rtol", 1e-4), ("atol", 1e-4))
    )  # fmt: skip
    mismatch = sde.prior_logp(info.latent[0]) - mixture.log_prob_t(sde, info.latent[0], jnp.ones(2))
    expected = mixture.log_prob_t(sde, z0, jnp.full(2, T_MIN))
    np.testing.assert_allclose((info.log_joint[0] - mismatch) / 1024, expected / 1024, atol=1e-3)


def test_auxiliary_law():
    """Density and entropy of momenta with correlations, by numpy."""
    sde, size = analytic.PROCESSES["oblique"], 3
    covariance = np.asarray(sde.initial_factor() @ sde.initial_factor().T)[1:, 1:]
    m = sde.augment(jnp.zeros((2, size)), jax.random.key(0))[:, 1:]
    square = np.einsum("bie,ij,bje->b", m, np.linalg.inv(covariance), m)
    log_det = size * np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(auxiliary_log_prob(sde, m), -0.5 * (square + log_det), rtol=1e-5)
    np.testing.assert_allclose(auxiliary_entropy(sde, size), 0.5 * (log_det + 3 * size), rtol=1e-6)
    assert auxiliary_entropy(sdes.vp(), 3) == 0


def signs(*shape):
    """All vectors of signs, (2^n, *shape)."""
    n = int(np.prod(shape))
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n))).reshape(-1, *shape)


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ("psld",)))
def test_divergence_and_its_estimates(x64, name: str):
    """Exact against the Jacobian; estimates averaged over all sign vectors, and over a set of probes of unit
    covariance, as Gaussian ones have. Blocks are the mean over the blocks' signs."""
    sde, event = analytic.PROCESSES[name], (2,)
    k, r = sde.k, sde.num_noised
    score_fn = DATA["mixture"].score_fn(sde)
    z = sde.prior_sample(jax.random.key(0), (1, *event), jnp.float64)
    t = jnp.asarray([0.1])

    def flow(z):
        return sde.drift(z, t) - 0.5 * jnp.einsum("bij,bj...->bi...", sde.diffusion_squared(t), score_fn(z, t))

    value, jacobian = jax.jit(lambda z: (flow(z), jax.jacobian(flow)(z)))(z)
    trace = np.trace(np.asarray(jacobian).reshape(k * 2, k * 2))
    found, divergence = jax.jit(lambda z: flow_and_divergence(score_fn, sde, z, t, None))(z)
    np.testing.assert_allclose(found, value, rtol=1e-10)
    np.testing.assert_allclose(divergence, [trace], rtol=1e-10)

    flipped = signs(r, *event)[1] * signs(r)[:, :, None]  # a probe and its copies with other signs of the blocks
    for probing, width in (("blocks", r), ("joint", r), ("drift", k)):
        n = 2 * width
        spread = np.sqrt(n) * np.eye(n).reshape(n, width, *event)
        every = signs(width, *event) if n <= 8 else spread
        copies = flipped if width == r else every
        each = jax.jit(jax.vmap(lambda v: flow_and_divergence(score_fn, sde, z, t, v[None, None], probing)))
        flows, values = each(jnp.concatenate([spread, every, copies]))
        np.testing.assert_allclose(flows, np.broadcast_to(value, flows.shape), rtol=1e-10)
        np.testing.assert_allclose(values[:n].mean(), trace, rtol=1e-10)
        np.testing.assert_allclose(values[n : n + len(every)].mean(), trace, rtol=1e-10)
        if probing == "blocks":
            block = values[-1]
        elif probing == "joint":
            np.testing.assert_allclose(values[-len(flipped) :].mean(), block, rtol=1e-10)


def test_estimates_are_unbiased():
    """Drawn probes: means of 512 estimates within 4.5 standard errors of the exact value; and they differ."""
    sde, mixture = sdes.vp(), DATA["mixture"]
    x0 = jnp.broadcast_to(jnp.asarray([[0.2, -0.4]]), (512, 2))
    for trace, probes in (("rademacher", 1), ("gaussian", 2)):
        estimates, _ = run(jax.random.key(0), sde, mixture, x0, options=(("trace", trace), ("probes", probes)))
        error = np.mean(estimates) - mixture.log_prob(x0[:1])[0]
        assert np.std(estimates) > 0.05
        assert abs(error) < 4.5 * np.std(estimates) / np.sqrt(512) + 2e-3


def test_importance_weighted_momenta():
    """A model that has learnt another momentum: everything is known.

    Its joint density is p(x) N(m; 0, kappa M / 2), while momenta are drawn with kappa. CLD's bound misses log p(x) by
    the divergence of the two Gaussians; K momenta by about var(w) / 2 K, var(w) = (4 / 3) - 1 in two dimensions.
    """
    sde, other, mixture = sdes.cld(), sdes.cld(kappa=0.02), DATA["mixture"]
    K, batch = 16, 64
    x0 = jnp.broadcast_to(jnp.asarray([[0.2, -0.4]]), (batch, 2))
    draw = jax.jit(
        lambda key: likelihood(
            key, mixture.score_fn(other), sde, x0, t_min=T_MIN, trace="exact", momenta=K, rtol=1e-4, atol=1e-4
        )
    )
    log_prob, info = draw(jax.random.key(0))
    truth = float(mixture.log_prob(x0[:1])[0])
    weights = np.asarray(info.log_weights, np.float64)
    groups = [np.split(weights, K // n) for n in (1, 4, K)]
    levels = [np.mean([np.logaddexp.reduce(g, axis=0) - np.log(len(g)) for g in group]) for group in groups]
    np.testing.assert_allclose(np.mean(log_prob), levels[-1], atol=1e-4)
    assert levels[0] < levels[1] < levels[2] < truth + 0.01
    divergence = 2 * 0.5 * (2 - 1 - np.log(2))
    error = 4.5 * weights.std() / np.sqrt(weights.size)
    assert abs(levels[0] - (truth - divergence)) < error + 5e-3
    error = 4.5 * np.std(log_prob) / np.sqrt(batch)
    assert abs(levels[2] - (truth - 1 / (6 * K))) < error + 5e-3 < 0.1
    bound = np.asarray(info.bound)
    assert abs(bound.mean() - (truth - divergence)) < 4.5 * bound.std() / np.sqrt(batch) + 5e-3
    assert info.latent.shape == (K, batch, 2, 2) and info.nfe.shape == (batch,)


@pytest.mark.parametrize("name, t_min", [("vp", 0.01), pytest.param("psld", 2e-3, marks=pytest.mark.slow)])
def test_what_t_min_leaves(name: str, t_min: float):
    """The density at t = 0 is bounded from below, closely, in the mean over data; and the more closely for more draws.

    Taking the data for a draw at t_min loses more in phase space, whose momenta have left their initial law by then.
    """
    sde, mixture, K = analytic.PROCESSES[name], DATA["gaussian"], 8
    x0 = jnp.asarray(mixture.means[:1] + 0.4 * signs(2), jnp.float32)  # their mean density is minus the entropy
    x0 = jnp.tile(x0, (16, 1))
    truth = float(jnp.mean(mixture.log_prob(x0)))
    options = (("trace", "exact"), ("truncation", "bound"), ("momenta", K))
    log_prob, info = run(jax.random.key(0), sde, mixture, x0, t_min=jnp.float32(t_min), options=options)
    error = np.std(info.log_weights) / np.sqrt(info.log_weights.size)
    gap = truth - np.mean(info.log_weights)
    assert -4.5 * error - 2e-3 < gap < 0.06 + 4.5 * error, (gap, error)
    assert gap - 4.5 * error - 2e-3 < truth - np.mean(log_prob) <= gap + 1e-5
    error = np.std(info.bound) / np.sqrt(len(x0))
    assert abs(np.mean(info.bound) - (truth - gap)) < 4.5 * error
    if name == "psld":
        plain, _ = run(jax.random.key(0), sde, mixture, x0, t_min=jnp.float32(t_min), options=options[:1])
        assert truth - np.mean(plain) > gap + 0.1


def test_evaluations_batch_mates_and_replay():
    """Evaluations are counted; a sample by itself is not changed by its batch-mates, in a shared solve it is."""
    sde, mixture, called = sdes.vp(), DATA["mixture"], []

    def score_fn(z, t):
        jax.debug.callback(lambda: called.append(1))
        return mixture.score_fn(sde)(z, t)

    noise = np.ones((1, 3, 1, 2), np.float32)
    for per_sample in (True, False):
        solve = jax.jit(
            lambda x0: likelihood(jax.random.key(0), score_fn, sde, x0, noise=noise, per_sample=per_sample)
        )  # fmt: skip
        results = []
        for far in (0.5, 40.0):
            called.clear()
            log_prob, info = solve(jnp.asarray([[0.2, -0.4], [0.3, 0.3], [far, 0.0]]))
            jax.effects_barrier()
            assert np.max(info.nfe) == len(called) and np.shape(info.nfe) == ((3,) if per_sample else ())
            results.append((np.asarray(log_prob)[:2], np.asarray(info.nfe)))
        difference = np.abs(results[0][0] - results[1][0]).max()
        assert difference == 0 if per_sample else 0 < difference < 0.05


def test_a_score_with_labels_is_solved_as_a_batch_or_mapped_over():
    """The density of a class by its classifier's guidance: the class is a normal law."""
    sde, data, variance = sdes.vp(), exact.mixture([[-1.0, 0.5], [1.0, 0.0]], 0.3), 0.3**2
    labels, x0 = jnp.array([0, 1, 1]), jnp.array([[-0.8, 0.4], [1.1, 0.3], [0.6, 0.1]])
    square = np.sum((np.asarray(x0) - np.array([[-1.0, 0.5], [1.0, 0.0]])[labels]) ** 2, axis=1)
    expected = -0.5 * square / variance - np.log(2 * np.pi * variance)

    def given(labels):
        return samplers.guided_score(data.score_fn(sde), lambda z, t: data.classify(sde, z, t), labels, sde=sde)

    def solve(labels, x0, **options):
        return likelihood(jax.random.key(0), given(labels), sde, x0, trace="exact", **options)[0]

    message = "per_sample=True shows score_fn one example at a time, .* for 3 of them: give per_sample=False"
    with pytest.raises(ValueError, match=message):
        solve(labels, x0)
    for run in (samplers.ode, samplers.adaptive_sde):
        with pytest.raises(ValueError, match=message):
            run(jax.random.key(0), given(labels), sde, (3, 2), per_sample=True)
    with pytest.raises(ZeroDivisionError):  # what is wrong with the function itself is not hidden
        likelihood(jax.random.key(0), lambda z, t: 1 / 0, sde, x0)
    mapped = jax.vmap(lambda label, x: solve(label, x[None], per_sample=False)[0])
    np.testing.assert_allclose(mapped(labels, x0), expected, atol=0.015)  # the prior is not quite the law at t = 1


def test_data_with_an_initial_variance_are_taken_as_they_are():
    """sigma2_0 with an auxiliary variable: nothing is added to the data; of normal data the density is known."""
    sde = sdes.recipe(D=np.diag([0.0, 2.0]), Q=[[0, -1.0], [1.0, 0]], beta_min=6.0, beta_max=6.0, sigma2_0=0.04)
    score_fn, x0, variance = exact.mixture([[0.7, -0.2]], 0.5).score_fn(sde), jnp.array([[1.5, -0.7]]), 0.25 + 0.04
    expected = -0.5 * (0.8**2 + 0.5**2) / variance - np.log(2 * np.pi * variance)
    log_prob, _ = likelihood(
        jax.random.key(0), score_fn, sde, jnp.tile(x0, (64, 1)), trace="exact", per_sample=False
    )  # fmt: skip
    assert np.std(log_prob) < 0.02  # of the momenta; it was 0.49
    np.testing.assert_allclose(np.mean(log_prob), expected, atol=0.05)  # the prior is not quite the law at t = 1
    ends, _ = samplers.interpolate(jax.random.key(0), score_fn, sde, x0, -x0, num=2)
    np.testing.assert_allclose(ends[:, 0], x0, atol=1e-3)


def nothing(z, t):
    raise AssertionError("the score must not be called")


def call(sde=None, size=4, **options):
    x0 = options.pop("x0", jnp.zeros((2, size)))
    return likelihood(jax.random.key(0), nothing, sde or sdes.psld(), x0, **options)


POINT = {"D": [[0, 0], [0, 1]], "Q": [[0, -1], [1, 0]], "Sigma_0": [[0]]}
BAD = {
    "trace": ({"trace": "hutch"}, "trace must be one of 'rademacher', 'gaussian', 'exact', not 'hutch'"),
    "probing": ({"probing": "x"}, "probing must be"),
    "truncation": ({"truncation": "x"}, "truncation must be"),
    "t_min": ({"t_min": 0.0}, "t_min = 0"),
    "probes": ({"probes": 0}, "probes = 0: at least 1"),
    "momenta": ({"momenta": 0}, "momenta = 0: at least 1"),
    "no momenta": ({"momenta": 2, "sde": sdes.vp()}, "no auxiliary variables"),
    "too large": ({"trace": "exact", "size": 3072}, "6144 Jacobian products"),
    "noise": ({"noise": np.zeros((1, 2, 1, 4))}, "noise has shape"),
    "bytes": ({"x0": np.zeros((2, 4), np.uint8)}, "x0 is uint8: give floats in the network's range"),
    "noise, a list": ({"noise": [[[[1.0]]]]}, r"noise has shape \(1, 1, 1, 1\)"),
    "momentum": ({"momentum": np.zeros((2, 1, 4))}, "momentum has shape"),
    "momentum at t_min": ({"momentum": np.zeros((1, 2, 1, 4)), "truncation": "bound"}, "momentum: is not drawn"),
    "a point": ({"sde": sdes.recipe(**POINT)}, "no density"),
    "solver": ({"solver": "Euler"}, "solver 'Euler' has no error estimate"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    options, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        call(**options)
    assert "\n" not in str(caught.value)
