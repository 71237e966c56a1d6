"""From networks to scores: channel layout, parameterisations, conditioning, errors."""

from __future__ import annotations

import itertools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import objectives, samplers, score, sdes
from sgmjax._inputs import InputError
from sgmjax.samplers import registry

T = np.array([0.05, 0.4, 1.0])


@pytest.mark.parametrize("event", [(3,), (4, 5, 3)])
def test_channels_are_phase_major(event):
    z = jnp.asarray(np.arange(2 * 2 * np.prod(event), dtype=np.float32).reshape(2, 2, *event))
    x = score.to_channels(z)
    assert x.shape == (2, *event[:-1], 2 * event[-1])
    assert np.array_equal(x, np.concatenate([z[:, 0], z[:, 1]], axis=-1))  # all data channels, then all momentum
    assert np.array_equal(score.from_channels(x, 2), z)


def test_one_variable_passes_through():
    z = jnp.arange(24.0).reshape(2, 1, 3, 4)
    assert np.array_equal(score.to_channels(z), z[:, 0])
    assert np.array_equal(score.from_channels(z[:, 0], 1), z)


def state(sde, event=(2, 3)):
    z = jax.random.normal(jax.random.key(0), (3, sde.k, *event))
    return z, jax.random.normal(jax.random.key(1), (3, sde.num_noised, *event))


EACH = list(itertools.product(("vp", "ve", "cld", "psld", "third_order", "oblique"), ("hsm", "dsm")))
AT_ONCE = [("vp", "hsm"), ("ve", "dsm"), ("cld", "hsm"), ("psld", "dsm"), ("oblique", "hsm")]


@pytest.mark.parametrize("name, matching", tiers.alike(EACH, AT_ONCE))
def test_parameterizations_of_one_score(x64, name: str, matching: str):
    """Networks that return eps, the score and the mixed residual of the same prediction give the same score."""
    sde = analytic.PROCESSES[name]
    z, eps = state(sde)
    t = jnp.asarray(T)
    L = np.asarray(jax.jit(lambda sde, t: sde.transition(t, matching).factor)(sde, t))
    frame = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    rows = frame[sde.k - sde.num_noised :]  # noised directions
    # score of the noised directions: their block of -L^-T, which is closed
    block = -np.stack([np.linalg.inv(rows @ factor @ rows.T).T for factor in L])
    expected = np.einsum("ik,bij,bj...->bk...", rows, block, eps)

    flat = np.asarray(eps).reshape(3, sde.num_noised, -1)
    outputs = {"eps": flat, "score": block @ flat}
    if sde.frame is None:  # score = -z / variance - L^-T out, the data variable's variance being that of unit data
        moments = analytic.moments(sde, T, 0.0, 1.0)
        variance = np.stack([np.diag(law.covariance) - law.E[:, 0] ** 2 for law in moments])  # x_0 a point
        variance[:, 0] += [law.E[0, 0] ** 2 for law in moments]
        gaussian = rows @ np.asarray(z / variance[:, :, None, None]).reshape(3, sde.k, -1)
        outputs["mixed"] = flat + np.linalg.solve(block, gaussian)

    @jax.jit
    def scores(sde, z, t, outputs):
        def one(parameterization, out):
            out = score.to_channels(out)
            options = {"parameterization": parameterization, "matching": matching}
            return score.score_from_network(lambda x, cond: out, sde, **options)(z, t)

        return {name: one(name, out) for name, out in outputs.items()}

    outputs = {name: out.reshape(eps.shape) for name, out in outputs.items()}
    for value in scores(sde, z, t, outputs).values():
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_mixed_score_of_a_silent_network_is_the_gaussians():
    """VP with data of unit variance: the marginal is N(0, 1), and a network that returns 0 predicts -z exactly."""
    z, _ = state(sdes.vp())
    score_fn = score.score_from_network(lambda x, cond: 0 * x, sdes.vp(), parameterization="mixed")
    np.testing.assert_allclose(score_fn(z, jnp.asarray(T, z.dtype)), -z, rtol=1e-5)


def test_what_the_network_receives():
    seen = {}

    def network(x, cond):
        seen["x"], seen["cond"] = x, cond
        return jnp.zeros((*x.shape[:-1], 3))

    sde = sdes.cld()
    z, _ = state(sde)
    for kind, sde, expected in (
        ("t", sdes.cld(), T),
        ("t999", sdes.cld(), 999 * T),
        ("sigma", sdes.ve(), 0.01 * 5000.0**T),
    ):
        z, _ = state(sde)
        out = score.eps_from_network(network, sde, time_conditioning=kind)(z, jnp.asarray(T, z.dtype))
        assert out.shape == (3, 1, 2, 3)
        assert np.array_equal(seen["x"], score.to_channels(z))
        np.testing.assert_allclose(seen["cond"], expected, rtol=1e-5)


def test_the_state_keeps_its_dtype():
    z, _ = state(sdes.psld())
    eps_fn = score.eps_from_network(lambda x, cond: x.astype(jnp.bfloat16), sdes.psld())
    assert eps_fn(z, jnp.asarray(T, z.dtype)).dtype == jnp.float32


def test_scores_of_variables_without_noise_are_zero():
    sde = sdes.third_order()
    z, eps = state(sde)
    value = score.score_from_eps(lambda z, t: eps, sde)(z, jnp.asarray(T, z.dtype))
    assert np.all(np.asarray(value)[:, :2] == 0) and np.all(np.asarray(value)[:, 2] != 0)
    sde = analytic.PROCESSES["oblique"]
    z, eps = state(sde)
    value = score.score_from_eps(lambda z, t: eps, sde)(z, jnp.asarray(T, z.dtype))
    missing = np.asarray(sde.frame)[: sde.k - sde.num_noised]  # directions without noise
    np.testing.assert_allclose(np.einsum("ik,bk...->bi...", missing, value), 0.0, atol=1e-4)


def test_gaussian_variance():
    """By hand for VP: unit data keeps unit variance. CLD's momentum: the kernel's own."""
    np.testing.assert_allclose(
        score.gaussian_variance(sdes.vp(), jnp.asarray(T, jnp.float32)), np.ones((3, 1)), rtol=1e-6
    )
    kernel = sdes.cld().transition(jnp.asarray(T, jnp.float32), "hsm")
    expected = np.array(np.diagonal(np.asarray(kernel.covariance), axis1=1, axis2=2))
    expected[:, 0] += np.asarray(kernel.mean)[:, 0, 0] ** 2
    np.testing.assert_allclose(score.gaussian_variance(sdes.cld(), jnp.asarray(T, jnp.float32)), expected, rtol=1e-6)


def evaluate(network, sde=None, **options):
    sde = sde or sdes.psld()
    return score.eps_from_network(network, sde, **options)(state(sde)[0], jnp.asarray(T, jnp.float32))


BAD = {
    "channels": (lambda: evaluate(lambda x, cond: x[..., :3]), "returned 3 channels, which 2 phase variables"),
    "shape": (lambda: evaluate(lambda x, cond: x, sdes.cld()), r"output channels must be 1 \(noised variables\) x 3"),
    "space": (lambda: evaluate(lambda x, cond: x[:, :1]), "for a state"),
    "parameterization": (lambda: evaluate(lambda x, cond: x, parameterization="x0"), "parameterization must be"),
    "conditioning": (lambda: evaluate(lambda x, cond: x, time_conditioning="log"), "time_conditioning must be"),
    "mixed": (
        lambda: evaluate(lambda x, cond: x, analytic.oblique_recipe(), parameterization="mixed"),
        "mixed score needs",
    ),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_networks_are_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- what is taken for what
def _eps_fn(matching="hsm", **options):
    return score.eps_from_network(lambda x, cond: x, sdes.psld(), matching=matching, **options)


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
def test_no_sampler_takes_an_eps_for_a_score(name):
    sde = sdes.vp() if name in ("edm", "annealed_langevin", "ggf", "conjugate") else sdes.psld()
    eps_fn = score.eps_from_network(lambda x, cond: x, sde)
    options = {} if registry.is_adaptive(name) else {"times": samplers.time_grid("uniform", 4)}
    with pytest.raises(InputError, match="score_fn: the function that was given predicts the noise eps; score.score_"):
        jax.eval_shape(lambda key: samplers.SAMPLERS[name](key, eps_fn, sde, (2, 3), **options), jax.random.key(0))


def test_no_likelihood_takes_an_eps_for_a_score():
    for measure in (samplers.likelihood, samplers.variational_bound):
        with pytest.raises(InputError, match="score_fn: the function that was given predicts the noise eps"):
            measure(jax.random.key(0), _eps_fn(), sdes.psld(), jnp.zeros((2, 3)))


@pytest.mark.parametrize("ours, theirs", [("hsm", "dsm"), ("dsm", "hsm")])
def test_hybrid_and_denoising_score_matching_are_not_mixed_up(ours, theirs):
    sde, x0 = sdes.psld(), jnp.zeros((2, 3))
    arguments = {"time_law": objectives.uniform(), "matching": theirs}
    with pytest.raises(InputError, match=f"made for matching='{ours}', and here it is '{theirs}'"):
        objectives.score_matching(jax.random.key(0), _eps_fn(ours), sde, x0, **arguments)
    with pytest.raises(InputError, match="eps_fn: the function that was given predicts the score; give the eps_fn"):
        score_fn = score.score_from_eps(_eps_fn(ours), sde)
        objectives.score_matching(jax.random.key(0), score_fn, sde, x0, **arguments)
    if theirs == "dsm":  # a mixed score is made with a kernel, said or not; where nothing depends on it nothing is held
        with pytest.raises(InputError, match="made for matching='hsm'"):
            eps_fn = _eps_fn(None, parameterization="mixed")
            objectives.score_matching(jax.random.key(0), eps_fn, sde, x0, **arguments)
        losses = objectives.score_matching(jax.random.key(0), _eps_fn(None), sde, x0, **arguments)
        assert np.isfinite(losses).all()
    z, t = jnp.ones((2, 2, 3)), jnp.full(2, 0.4)
    kernel = sde.transition(t, ours)
    np.testing.assert_array_equal(score.score_from_eps(_eps_fn(ours), sde)(z, t), kernel.score(_eps_fn(ours)(z, t)))
    other = score.score_from_eps(_eps_fn(ours), sde, matching=theirs)  # as official codes do, when it is said
    np.testing.assert_array_equal(other(z, t), sde.transition(t, theirs).score(_eps_fn(ours)(z, t)))


@pytest.mark.parametrize("name", tiers.alike(["vp", "cld", "psld", "friction"], ["vp", "psld"]))
def test_the_first_evaluation_is_known(name: str, x64):
    """At t = 1 the exact score of normal data, by a mean and a deviation of each element, without the network."""
    sde = (analytic.PROCESSES | analytic.NEW)[name]
    called: list = []

    def network(z, t):
        jax.debug.callback(lambda: called.append(1))
        return sde.expand(sde.restrict(jnp.tanh(z)))

    mean, std = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    started = jax.jit(score.analytic_start(network, sde, mean, std))
    z = jax.random.normal(jax.random.key(0), (3, sde.k, 2), jnp.float64)
    parts = [
        analytic.gaussian_score(sde, m, s)(z[..., i : i + 1], jnp.ones(3)) for i, (m, s) in enumerate(zip(mean, std))
    ]
    np.testing.assert_allclose(started(z, jnp.ones(3)), jnp.concatenate(parts, axis=-1), rtol=1e-9, atol=1e-12)
    jax.effects_barrier()
    assert not called
    np.testing.assert_array_equal(started(z, jnp.full(3, 0.999)), network(z, None))
    samplers.unipc(jax.random.key(0), started, sde, (3, 2), times=np.array([1.0, 0.6, 0.3, 0.1]), denoise=False)
    jax.effects_barrier()
    assert len(called) == 2 + 2  # of three steps two ask the network
    with pytest.raises(InputError, match="std = 0"):
        score.analytic_start(network, sde, 0.0, 0.0)
