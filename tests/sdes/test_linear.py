"""Processes by tables: against constant matrices, an integration of their moments, closed forms, and themselves."""

from __future__ import annotations

import math

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import tiers

from sgmjax import sdes
from sgmjax._inputs import InputError

OPTIMIZED = True  # bounds about rounding
TIMES = np.concatenate([np.geomspace(1e-5, 1.0, 21), [0.37, 0.999]])


def chain(t):
    """Three variables, of which two are noised, coupled by functions of time."""
    return np.array(
        [[-1.0 - t, 2 + np.sin(5 * t), 0.0], [-2.0, -0.5, 3 * np.exp(-t)], [0.3, -3 * np.exp(-t), -2 - t**2]]
    )


def chain_noise(t):
    return np.array([[0.0, 0.0], [0.8 + 0.5 * np.cos(3 * t), 0.1], [0.0, 2.0 + t]])


def some_chain():
    return sdes.linear(
        chain, chain_noise, Sigma_0=[[0.1, 0.02], [0.02, 0.2]], sigma2_0=1e-3, prior=np.diag([3.0, 2, 1])
    )


PROCESSES = analytic.NEW | {"chain": some_chain()}


def relative(found, expected) -> float:
    """The largest error of covariances, in units of the deviations of the two variables."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    size = np.sqrt(np.einsum("nii,njj->nij", expected, expected))
    return float(np.max(np.abs(found - expected) / np.where(size > 0, size, 1)))


@pytest.mark.parametrize("name", tiers.alike(["vp", "cld", "psld", "third_order", "oblique"], ["cld"]))
def test_constant_matrices_are_the_recipe(name, x64):
    """Every method, where the two share no code but the QR decomposition."""
    recipe = analytic.PROCESSES[name]
    beta = recipe.schedule.beta
    initial = recipe.initial @ recipe.initial.T
    linear = sdes.linear(
        lambda t: beta(t) * recipe.F, lambda t: np.sqrt(beta(t)) * recipe.G,
        Sigma_0=None if recipe.k == 1 else initial[1:, 1:], prior=recipe.Sigma_inf,
    )  # fmt: skip
    assert (linear.k, linear.num_noised) == (recipe.k, recipe.num_noised)
    t = jnp.asarray(TIMES)
    s = 0.3 * t
    for matching in ("hsm", "dsm"):
        ours, theirs = linear.transition(t, matching), recipe.transition(t, matching)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=0, atol=1e-12)
        assert relative(ours.covariance, theirs.covariance) < 1e-11
    for ours, theirs in (
        (linear.transition_between(s, t), recipe.transition_between(s, t)),
        (linear.reverse_linear(t, s), recipe.reverse_linear(t, s)),
    ):
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=0, atol=1e-11)
        assert relative(ours.covariance, theirs.covariance) < 1e-11
    np.testing.assert_allclose(linear.drift_matrix(t), recipe.drift_matrix(t), rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(linear.diffusion_squared(t), recipe.diffusion_squared(t), rtol=1e-11, atol=1e-11)
    ours, theirs = linear.diffusion_between(s, t), recipe.diffusion_between(s, t)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(linear.split_precision(), recipe.split_precision(), rtol=1e-12)


@pytest.mark.parametrize("name", tiers.alike(["chain", "friction"], ["friction"]))
def test_kernels_obey_the_equations_of_their_moments(name, x64):
    """dE/dt = f E, dS/dt = f S + S f^T + g g^T, by an integrator of order 8 at 1e-12, upwards and back."""
    sde = PROCESSES[name]
    k = sde.k

    def coefficients(t):
        if name == "chain":
            return chain(t), chain_noise(t) @ chain_noise(t).T
        gamma, nu, M = 0.3 * t, 4.0 - 2 * t, 0.25
        return 4.0 * np.array([[-gamma, 4.0], [-1.0, -nu]]), 8.0 * np.diag([gamma, nu * M])

    def moments(start, end, mean, covariance, matrices):
        def slope(t, y):
            E, S = y.reshape(2, k, k)
            A, GGT = matrices(t)
            return np.concatenate([(A @ E).ravel(), (A @ S + S @ A.T + GGT).ravel()])

        y = np.concatenate([mean.ravel(), covariance.ravel()])
        found = scipy.integrate.solve_ivp(slope, (start, end), y, method="DOP853", rtol=1e-12, atol=1e-15)
        return found.y[:, -1].reshape(2, k, k)

    P, zero = np.asarray(sde.split_precision()), np.zeros((k, k))
    for s, t in ((0.0, 1e-3), (0.0, 0.4), (0.0, 1.0), (1e-3, 0.03), (0.2, 0.200001), (0.123, 0.97)):
        E, S = moments(s, t, np.eye(k), zero, coefficients)
        kernel = sde.transition_between(jnp.asarray([s]), jnp.asarray([t]))
        np.testing.assert_allclose(kernel.mean[0], E, rtol=0, atol=1e-10)
        assert relative(kernel.covariance, S[None]) < 1e-8
        if s == 0:
            initial = np.asarray(sde.initial_factor())
            kernel = sde.transition(jnp.asarray([t]))
            np.testing.assert_allclose(kernel.covariance[0], S + E @ initial @ initial.T @ E.T, rtol=1e-8, atol=1e-12)

        def reversed_time(u):
            A, GGT = coefficients(t - u)
            return -(A + GGT @ P), GGT

        E, S = moments(0.0, t - s, np.eye(k), zero, reversed_time)
        kernel = sde.reverse_linear(jnp.asarray([t]), jnp.asarray([s]))
        np.testing.assert_allclose(kernel.mean[0], E, rtol=0, atol=1e-9 * max(1, np.abs(E).max()))
        assert relative(kernel.covariance, S[None]) < 1e-8


CLOSED = {
    "flow": (sdes.flow(), lambda t: 1 - 0.999 * t, lambda t: t),
    "cosine": (
        sdes.cosine(sigma_max=50.0),
        lambda t: np.cos(np.arctan(50.0) * t),
        lambda t: np.sin(np.arctan(50.0) * t),
    ),
    "edm": (sdes.edm(), np.ones_like, lambda t: 80.0 * t),
}


@pytest.mark.parametrize("name", CLOSED)
def test_paths_are_what_they_are_called(name):
    sde, alpha, s = CLOSED[name]
    with jax.enable_x64(True):
        kernel = sde.transition(jnp.asarray(TIMES))
        np.testing.assert_allclose(kernel.mean[:, 0, 0], alpha(TIMES), rtol=0, atol=1e-13)
        np.testing.assert_allclose(kernel.factor[:, 0, 0], s(TIMES), rtol=1e-11)
    t = TIMES.astype(np.float32).astype(np.float64)
    kernel = sde.transition(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(kernel.mean[:, 0, 0], alpha(t), rtol=0, atol=2e-7)
    np.testing.assert_allclose(kernel.factor[:, 0, 0], s(t), rtol=1e-6)


@pytest.mark.slow
def test_a_path_is_its_two_functions(x64):
    """The straight one and a curved one, of functions in jax.numpy."""
    straight = sdes.gaussian_path(lambda t: 1 - 0.999 * t, lambda t: t, prior=1.0)
    t = jnp.asarray(TIMES)
    np.testing.assert_allclose(straight.transition(t).factor, sdes.flow().transition(t).factor, rtol=1e-10)
    curved = sdes.gaussian_path(lambda t: jnp.exp(-3 * t**2), lambda t: jnp.sqrt(-jnp.expm1(-6 * t**2) + 1e-9 * t))
    kernel = curved.transition(t)
    np.testing.assert_allclose(kernel.mean[:, 0, 0], np.exp(-3 * TIMES**2), rtol=1e-11)
    np.testing.assert_allclose(kernel.factor[:, 0, 0] ** 2, -np.expm1(-6 * TIMES**2) + 1e-9 * TIMES, rtol=1e-8)


@pytest.mark.parametrize("name", tiers.alike(PROCESSES, ["flow"]))
def test_float32_is_float64_rounded(name):
    """All kernels at every t from 1e-5 to 1, of steps of all sizes; covariances by their factors."""
    sde = PROCESSES[name]
    t = TIMES[1:].astype(np.float32)
    for share in (0.0, 0.3, 0.9, 0.999):
        s = (share * t).astype(np.float32)
        with jax.enable_x64(True):
            wide = [np.asarray(v, np.float64) for v in (s, t)]
            exactly = (PROCESSES[name].transition(jnp.asarray(wide[1])),
                       PROCESSES[name].transition_between(*map(jnp.asarray, wide)),
                       PROCESSES[name].reverse_linear(*map(jnp.asarray, wide[::-1])))  # fmt: skip
        ours = sde.transition(t), sde.transition_between(s, t), sde.reverse_linear(t, s)
        for found, expected in zip(ours, exactly):
            scale = np.maximum(1, np.abs(expected.mean).max(axis=(1, 2), keepdims=True))
            assert found.mean.dtype == jnp.float32
            assert np.max(np.abs(np.asarray(found.mean) - np.asarray(expected.mean)) / scale) < 4e-6
            rows = np.sqrt(np.sum(np.asarray(expected.factor) ** 2, axis=2, keepdims=True))
            error = np.abs(np.asarray(found.factor) - np.asarray(expected.factor)) / np.where(rows > 0, rows, 1)
            # of a tiny step to a rounding of its length: 1e-3 t has three digits less
            assert error.max() < 1e-5 + (2e-7 / (1 - share) if share else 0)


@pytest.mark.parametrize("name", tiers.alike(PROCESSES, ["cosine"]))
def test_transitions_compose(name, x64):
    sde = PROCESSES[name]
    s, u, t = (jnp.asarray(v) for v in ([0.0, 1e-4, 0.1, 0.3], [1e-3, 0.2, 0.15, 0.6], [0.5, 0.9, 0.2, 1.0]))
    for first, then, whole in (
        (sde.transition_between(s, u), sde.transition_between(u, t), sde.transition_between(s, t)),
        (sde.reverse_linear(t, u), sde.reverse_linear(u, s), sde.reverse_linear(t, s)),
    ):
        mean = then.mean @ first.mean
        np.testing.assert_allclose(whole.mean, mean, rtol=0, atol=1e-10 * max(1, np.abs(mean).max()))
        covariance = then.mean @ first.covariance @ jnp.swapaxes(then.mean, 1, 2) + then.covariance
        assert relative(whole.covariance, covariance) < 1e-10


def test_a_friction_moves_no_stationary_law(x64):
    """The prior of PSLD is carried into itself, whatever the frictions do."""
    sde = analytic.NEW["friction"]
    kernel = sde.transition_between(jnp.asarray([0.0, 0.2]), jnp.asarray([0.7, 1.0]))
    prior = np.asarray(sde.prior_factor()) @ np.asarray(sde.prior_factor()).T
    carried = kernel.mean @ prior @ jnp.swapaxes(kernel.mean, 1, 2) + kernel.covariance
    np.testing.assert_allclose(carried, np.broadcast_to(prior, carried.shape), rtol=0, atol=1e-12)
    constant = sdes.psld_friction(lambda t: 0.01, lambda t: 4.01)
    t = jnp.asarray(TIMES)
    np.testing.assert_allclose(constant.transition(t).covariance, sdes.psld().transition(t).covariance, atol=1e-12)


@pytest.mark.parametrize("order", range(2, 9))
def test_higher_orders_are_critically_damped(order):
    """The characteristic polynomial is (lambda + lambda_0)^n, and orders 2 and 3 are the processes there were."""
    sde = sdes.hold(order=order, m_inv=3.0)
    found = np.poly(np.asarray(sde.F))
    root = found[1] / order
    np.testing.assert_allclose(found, [math.comb(order, i) * root**i for i in range(order + 1)], rtol=1e-9)
    assert sde.num_noised == 1 and sde.k == order
    if order <= 3:
        known = sdes.cld(m_inv=3.0) if order == 2 else sdes.third_order(m_inv=3.0)
        np.testing.assert_allclose(sde.F, known.F, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(sde.D, known.D, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(sde.initial, known.initial, rtol=1e-13)


def test_another_process_of_its_form_compiles_nothing():
    kernel = jax.jit(lambda sde, t: (sde.transition(t).factor, sde.reverse_linear(t, t / 2).factor))
    t = jnp.asarray([0.1, 0.5])
    first = kernel(sdes.flow(), t)
    other = kernel(sdes.flow(alpha_end=2e-3), t)
    assert kernel._cache_size() == 1 and not np.array_equal(first[1], other[1])
    each = jax.vmap(lambda t: sdes.flow().transition(t[None]).factor[0])(t)
    np.testing.assert_allclose(each, first[0], rtol=1e-6)


REFUSED = {
    "shape": (lambda: sdes.linear(lambda t: np.ones(3), lambda t: 1.0), r"f\(0.5\) has shape \(3,\): give a \(k, k\)"),
    "another k": (
        lambda: sdes.linear(lambda t: np.eye(2), lambda t: np.eye(3), Sigma_0=[[1.0]]),
        r"g\(.*has shape \(3, 3\): give \(2, r",
    ),
    "infinite": (lambda: sdes.linear(lambda t: -1 / (1 - t), lambda t: 1.0), r"f\(.* is not finite|changes too fast"),
    "trembling": (lambda: sdes.linear(lambda t: -9 + np.sin(1e5 * t), lambda t: 3.0), "f or g changes too fast at t ="),
    "no Sigma_0": (lambda: sdes.linear(lambda t: -np.eye(2), lambda t: np.eye(2)), "Sigma_0 covers the 1 auxiliary"),
    "Sigma_0 of none": (lambda: sdes.linear(lambda t: -1, lambda t: 1, Sigma_0=[[1.0]]), "this process has none"),
    "indefinite": (
        lambda: sdes.linear(lambda t: -np.eye(2), lambda t: np.eye(2), Sigma_0=[[-1.0]]),
        "Sigma_0 must be symmetric positive semi-definite",
    ),
    "sigma2_0": (
        lambda: sdes.linear(lambda t: -9.0, lambda t: 4.0, sigma2_0=-1.0),
        "sigma2_0 = -1: a variance must be",
    ),
    "no noise": (
        lambda: sdes.linear(lambda t: -9 * np.eye(2), lambda t: np.diag([4.0, 0]), Sigma_0=[[0.0]]),
        r"noise never reaches phase variable 1 \(auxiliary 1\): couple it",
    ),
    "remembered": (
        lambda: sdes.linear(lambda t: -0.5, lambda t: 1.0),
        "the data are not forgotten at t = 1, where the noise level is 1.31: let it grow beyond 10, or give prior=",
    ),
    "vanished": (
        lambda: sdes.linear(lambda t: -60 * t, lambda t: 10.0),
        "the data column of the mean vanishes at t = 0.7.*: from there on the state knows nothing of the data",
    ),
    "prior": (lambda: sdes.linear(lambda t: -0.5, lambda t: 1.0, prior=np.eye(2)), r"prior has shape \(2, 2\): give a"),
    "no prior": (lambda: sdes.linear(lambda t: -0.5, lambda t: 1.0, prior=-1.0), "prior must be a symmetric positive"),
    "start": (
        lambda: sdes.gaussian_path(lambda t: 2 - t, lambda t: t),
        r"alpha\(0\) = 2, s\(0\) = 0: a path starts at",
    ),
    "denoising": (
        lambda: sdes.gaussian_path(lambda t: 1 + 0 * t, lambda t: jnp.sin(3 * t)),
        "noise is taken away at t",
    ),
    "friction": (lambda: sdes.psld_friction(lambda t: 0.5 - t, lambda t: 4.0), r"gamma\(.* frictions must be >= 0"),
    "order": (lambda: sdes.hold(order=1), "order: must be 2 or more, got 1"),
    "traced": (lambda: jax.jit(lambda a: sdes.flow(alpha_end=a).starts)(0.01), "alpha_end: is traced"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_process_is_refused(what):
    make, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
