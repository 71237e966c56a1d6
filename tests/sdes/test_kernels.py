"""Perturbation kernels: right in float32 at every t, against 60-digit arithmetic, and consistent with their SDE."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import tiers

from sgmjax import exact, objectives, sdes
from sgmjax._inputs import InputError

OPTIMIZED = True  # bounds of some roundings

TIMES = np.geomspace(1e-5, 1.0, 6).astype(np.float32)


def random_recipe(seed: int, rank: int = 4, aligned: bool = True, **kwargs) -> sdes.Recipe:
    rng = np.random.default_rng(seed)
    a, c, e = rng.normal(size=(4, 4)), rng.normal(size=(4, 4)), rng.normal(size=(3, 3))
    b = np.diag(np.arange(4) >= 4 - rank).astype(float) if aligned else rng.normal(size=(4, rank))
    return sdes.recipe(
        D=b @ b.T + (0.3 * np.eye(4) if rank == 4 else 0.0),
        Q=a - a.T,
        Sigma_inf=c @ c.T + np.eye(4),
        Sigma_0=0.05 * (e @ e.T + np.eye(3)),
        **kwargs,
    )


MULTI = {
    "psld": sdes.psld(),
    "psld_cld_like": sdes.psld(gamma=0.0, nu=4.0),
    "psld_upper": sdes.psld(gamma=0.25, nu=4.25, factor="upper"),
    "psld_score_x": sdes.psld(gamma=4.0, nu=0.0),
    "psld_linear_beta": sdes.psld(beta_min=0.1, beta_max=16.0),
    "cld": sdes.cld(),
    "third_order": sdes.third_order(),
    "recipe4": random_recipe(0),
    "recipe4_rank2": random_recipe(1, rank=2),
    "recipe4_oblique": random_recipe(2, rank=2, aligned=False),
    "chain4": sdes.recipe(
        D=np.diag([0, 0, 0, 1.0]),
        Q=1.5 * (np.diag([1.0] * 3, -1) - np.diag([1.0] * 3, 1)),
        Sigma_0=0.09 * np.eye(3),
    ),
}
SCALAR = {"vp": sdes.vp(), "subvp": sdes.subvp(), "ve": sdes.ve()}
ALL = MULTI | SCALAR
MANY = tiers.alike(ALL, ("vp", "subvp", "ve", "psld", "psld_upper", "recipe4_oblique"))
TWO = tiers.alike(ALL, ("vp", "psld"))


def exact_transition(sde: sdes.Recipe, t: np.float32, matching: str, digits: int = 60):
    """E and Sigma by the matrix exponential of Van Loan's block matrix, and triangular factor and its L^-T."""
    k = sde.k
    with mpmath.workdps(digits):
        low, high = mpmath.mpf(float(sde.schedule.beta_min)), mpmath.mpf(float(sde.schedule.beta_max))
        t = mpmath.mpf(float(t))
        B = low * t + (high - low) * t**2 / 2
        D, Q, Sigma_inf = (mpmath.matrix(np.asarray(m).tolist()) for m in (sde.D, sde.Q, sde.Sigma_inf))
        F = -(D + Q) * mpmath.inverse(Sigma_inf)
        block = mpmath.zeros(2 * k)
        for i in range(k):
            for j in range(k):
                block[i, j], block[i, k + j], block[k + i, k + j] = -F[i, j], 2 * D[i, j], F[j, i]
        power = mpmath.expm(block * B, method="taylor")
        E = power[k:, k:].T
        covariance = E * power[:k, k:]
        if matching == "hsm":
            X = mpmath.matrix(np.asarray(sde.initial).tolist())
            covariance = covariance + E * X * X.T * E.T
        T = mpmath.matrix((np.eye(k) if sde.frame is None else sde.frame).tolist())
        inner = mpmath.cholesky((T * covariance * T.T + (T * covariance * T.T).T) / 2)
        factor, inverse = T.T * inner * T, T.T * mpmath.inverse(inner).T * T
        return tuple(np.array(m.tolist(), dtype=np.float64) for m in (E, covariance, factor, inverse))


def row_error(value, exact) -> float:
    """Largest error of an element against the largest element of its row."""
    return float(np.max(np.abs(np.asarray(value, np.float64) - exact) / np.abs(exact).max(axis=-1, keepdims=True)))


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
@pytest.mark.parametrize("name", tiers.alike(MULTI, ("psld", "psld_score_x", "recipe4_oblique")))
def test_kernel_in_float32_against_60_digits(name: str, matching: str):
    sde = MULTI[name]
    kernel = jax.jit(lambda t: sde.transition(t, matching))(jnp.asarray(TIMES))
    assert kernel.mean.dtype == kernel.factor.dtype == jnp.float32
    inverse = kernel.inverse_transpose
    for i, t in enumerate(TIMES):
        E, _, factor, inv = exact_transition(sde, t, matching)
        assert row_error(kernel.mean[i], E) < 1e-5
        assert row_error(kernel.factor[i], factor) < 1e-5
        assert row_error(inverse[i], inv) < 1e-5


def test_kernels_of_a_long_chain_against_120_digits():
    """What noise does to the farthest of ten variables in a short time is its ninth integral."""
    sde, t = sdes.hold(order=10), np.float32(1e-3)
    for matching, bound, inverse_bound in (("dsm", 1e-6, 1e-4), ("hsm", 4e-5, 8e-4)):
        kernel = sde.transition(jnp.asarray(t)[None], matching)
        E, _, factor, inverse = exact_transition(sde, t, matching, digits=120)
        assert row_error(kernel.mean[0], E) < 1e-6
        assert row_error(kernel.factor[0], factor) < bound
        np.testing.assert_allclose(np.diag(kernel.factor[0]), np.diag(factor), rtol=10 * bound)
        assert row_error(kernel.inverse_transpose[0], inverse) < inverse_bound


def test_chains_of_every_order_are_reached_by_their_noise(monkeypatch):
    monkeypatch.setattr(sdes.linalg, "linear_dynamics", lambda *args: None)  # no tables, which take time
    for order in range(2, 11):
        for m_inv in (1e-4, 1.0, 1e4):
            assert sdes.hold(order=order, m_inv=m_inv).num_noised == 1
    with pytest.raises(InputError, match="order: must be at most 10, got 11"):
        sdes.hold(order=11)


@pytest.mark.parametrize("matching", ["hsm", "dsm"])
def test_kernel_in_float64_keeps_its_digits(x64, matching: str):
    sde = sdes.third_order()
    kernel = sde.transition(jnp.asarray(TIMES, jnp.float64), matching)
    for i, t in enumerate(TIMES):
        E, covariance, _, _ = exact_transition(sde, t, matching)
        assert row_error(kernel.mean[i], E) < 1e-12
        assert row_error(kernel.covariance[i], covariance) < 1e-12


@pytest.mark.parametrize("name", MANY)
def test_kernel_solves_the_moment_equations(x64, name: str):
    """dE/dt = f E and d Sigma/dt = f Sigma + Sigma f^T + g g^T, by forward-mode differentiation."""
    sde = ALL[name]
    t = jnp.asarray([1e-3, 0.02, 0.3, 0.7, 0.95])
    moments = lambda t: (lambda k: (k.mean, k.covariance))(sde.transition(t))  # noqa: E731
    (E, Sigma), (dE, dSigma) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
    f, ggt = sde.drift_matrix(t), sde.diffusion_squared(t)
    flow = f @ Sigma
    np.testing.assert_allclose(dE, f @ E, rtol=1e-8, atol=1e-8 * np.abs(f).max())
    expected = flow + flow.swapaxes(1, 2) + ggt
    np.testing.assert_allclose(dSigma, expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("name", TWO)
def test_transitions_compose(x64, name: str):
    """The law at t from 0 is that at s carried on from s to t (Chapman-Kolmogorov)."""
    sde = ALL[name]
    s, t = jnp.asarray([0.0, 1e-4, 0.1, 0.5]), jnp.asarray([1e-4, 0.2, 0.1001, 1.0])
    first, second, whole = sde.transition(s), sde.transition_between(s, t), sde.transition(t)
    np.testing.assert_allclose(second.mean @ first.mean, whole.mean, rtol=1e-9, atol=1e-12)
    carried = second.mean @ first.covariance @ second.mean.swapaxes(1, 2) + second.covariance
    size = np.abs(whole.covariance).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(carried / size, whole.covariance / size, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_the_diffusion_between_two_times_is_the_integral(x64, name: str):
    sde = ALL[name]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    s, t = jnp.asarray([0.1]), jnp.asarray([0.4])
    rate = sde.diffusion_squared(jnp.asarray(0.25 + 0.15 * nodes))
    exact = np.tensordot(0.15 * weights, rate, axes=1)
    np.testing.assert_allclose(sde.diffusion_between(s, t)[0], exact, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", TWO)
def test_reverse_linear_part_solves_its_own_moment_equations(x64, name: str):
    """In reversed time: dE = -(f + g g^T P) E, d Sigma = a Sigma + Sigma a^T + g g^T, with a the same matrix."""
    sde = ALL[name]
    top = jnp.asarray([0.5, 0.9])
    s = jnp.asarray([0.3, 0.88])
    moments = lambda s: (lambda k: (k.mean, k.covariance))(sde.reverse_linear(top, s))  # noqa: E731
    (E, Sigma), (dE, dSigma) = jax.jvp(moments, (s,), (-jnp.ones_like(s),))
    ggt = sde.diffusion_squared(s)
    a = -(sde.drift_matrix(s) + ggt @ jnp.asarray(sde.split_precision())[None])
    np.testing.assert_allclose(dE, a @ E, rtol=1e-8, atol=1e-8 * np.abs(a).max())
    flow = a @ Sigma
    expected = flow + flow.swapaxes(1, 2) + ggt
    np.testing.assert_allclose(dSigma, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("name", MULTI)
def test_the_stationary_law_is_reached_and_kept(x64, name: str):
    sde = MULTI[name]
    np.testing.assert_allclose(sde.F @ sde.Sigma_inf + sde.Sigma_inf @ sde.F.T + sde.GGT, 0.0, atol=1e-12)
    kernel = sde.transition_between(jnp.zeros(1), jnp.ones(1))
    kept = kernel.mean[0] @ sde.Sigma_inf @ kernel.mean[0].T + kernel.covariance[0]
    np.testing.assert_allclose(kept, sde.Sigma_inf, atol=1e-11 * np.abs(sde.Sigma_inf).max())
    assert np.linalg.eigvals(sde.F).real.max() < 0


@pytest.mark.parametrize("name", TWO)
def test_score_is_the_gradient_of_the_log_density(x64, name: str):
    sde = ALL[name]
    t = jnp.asarray([0.05, 0.4, 1.0])
    kernel = sde.transition(t)
    key = jax.random.key(0)
    x0 = jax.random.normal(key, (3, 5))
    eps = jax.random.normal(jax.random.fold_in(key, 1), (3, sde.k, 5))
    z0 = sde.augment(x0)
    z = kernel.perturb(z0, eps)

    def log_density(z):
        d = z - jnp.einsum("bij,bje->bie", kernel.mean, z0)
        return -0.5 * jnp.sum(d * jnp.einsum("bij,bje->bie", jnp.linalg.inv(kernel.covariance), d))

    exact = jax.grad(log_density)(z)
    np.testing.assert_allclose(kernel.score(eps), exact, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(kernel.eps(exact), eps, rtol=1e-6, atol=1e-8)
    # what is predicted, the noised variables' eps, determines all of the score that the reverse process uses
    part = kernel.score(kernel.restrict(eps))
    ggt = sde.diffusion_squared(t)
    np.testing.assert_allclose(
        jnp.einsum("bij,bje->bie", ggt, part), jnp.einsum("bij,bje->bie", ggt, exact), rtol=1e-6, atol=1e-8
    )


def test_denoise_inverts_perturb(x64):
    sde = sdes.psld()
    kernel = sde.transition(jnp.asarray([0.01, 0.3]))
    z0 = sde.augment(jnp.ones((2, 4)), jax.random.key(0))
    eps = jax.random.normal(jax.random.key(1), z0.shape)
    np.testing.assert_allclose(kernel.denoise(kernel.perturb(z0, eps), eps), z0, rtol=1e-9)
    np.testing.assert_allclose(kernel.log_det_factor(), jnp.linalg.slogdet(kernel.factor)[1], rtol=1e-12)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_scalar_kernels_in_float32(name: str):
    """Against the textbook formulas in 60 digits."""
    sde = ALL[name]
    kernel = sde.transition(jnp.asarray(TIMES))
    with mpmath.workdps(60):
        for i, t in enumerate(TIMES):
            t = mpmath.mpf(float(t))
            B = mpmath.mpf("0.1") * t + (20 - mpmath.mpf("0.1")) * t**2 / 2
            mean, std = {
                "vp": (mpmath.exp(-B / 2), mpmath.sqrt(1 - mpmath.exp(-B))),
                "subvp": (mpmath.exp(-B / 2), 1 - mpmath.exp(-B)),
                "ve": (mpmath.mpf(1), mpmath.mpf("0.01") * mpmath.mpf(5000) ** t),
            }[name]
            assert abs(float(kernel.mean[i, 0, 0]) / mean - 1) < 1e-6
            assert abs(float(kernel.factor[i, 0, 0]) / std - 1) < 1e-6


@pytest.mark.parametrize("beta_max", [20.0, 60.0])
def test_the_linear_part_of_sub_vps_reverse_process_over_any_gap(beta_max: float):
    """Against quadrature in 30 digits: z' = (1/2 - (1 - e^{-2b})) z downwards in b, with noise 1 - e^{-2b}."""
    sde, ends = sdes.subvp(beta_max=beta_max), [(1.0, 0.0), (1.0, 0.3), (0.5, 0.01), (0.01, 0.009)]
    kernel = sde.reverse_linear(*(jnp.asarray(v, jnp.float32) for v in zip(*ends)))
    with mpmath.workdps(30):

        def clock(t):
            t = mpmath.mpf(float(np.float32(t)))
            return mpmath.mpf("0.1") * t + (mpmath.mpf(beta_max) - mpmath.mpf("0.1")) * t**2 / 2

        for i, (t, s) in enumerate(ends):
            low, top = clock(s), clock(t)

            def growth(b, low=low):
                return (mpmath.exp(-2 * low) - mpmath.exp(-2 * b)) / 2 - (b - low) / 2

            edges = mpmath.linspace(low, top, 8)
            noise = mpmath.quad(lambda b: (1 - mpmath.exp(-2 * b)) * mpmath.exp(2 * growth(b)), edges)
            np.testing.assert_allclose(float(kernel.factor[i, 0, 0]), float(mpmath.sqrt(noise)), rtol=2e-6)
            np.testing.assert_allclose(float(kernel.mean[i, 0, 0]), float(mpmath.exp(growth(top))), rtol=5e-6)


def test_the_score_of_what_is_noised_where_the_rest_is_certain():
    """At t = 0 the auxiliary is known, and x has the variance sigma2_0: its score is -eps / 0.1, with a frame too."""
    sde = sdes.recipe(
        D=[[0.5, 0.0], [0.0, 0.0]], Q=[[0.0, -0.5], [0.5, 0.0]], Sigma_0=[[0.0]], sigma2_0=0.01, beta_max=8.0
    )
    assert sde.frame is not None
    score = sde.transition(jnp.zeros(1)).score(jnp.full((1, 1, 2), 3.0))
    np.testing.assert_allclose(score, [[[-30.0, -30.0], [0.0, 0.0]]], rtol=1e-6)


def test_cld_is_psld_at_twice_the_beta():
    t = jnp.asarray(TIMES)
    a, b = sdes.cld(beta_min=4.0, beta_max=4.0), sdes.psld(gamma=0.0, nu=4.0, beta_min=8.0, beta_max=8.0)
    np.testing.assert_allclose(a.transition(t).factor, b.transition(t).factor, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(a.drift_matrix(t), b.drift_matrix(t), rtol=1e-6)


def test_a_recipe_takes_the_ends_of_a_linear_rate_or_a_schedule():
    """With the matrices of VP, dx = -beta x / 2 dt + sqrt(beta) dw, it is VP; nothing said is beta = 4."""
    t, matrices = jnp.asarray(TIMES), {"D": ((0.5,),), "Q": ((0.0,),)}
    ends = {"beta_min": 0.1, "beta_max": 20.0}
    for one in (sdes.recipe(**matrices, **ends), sdes.recipe(**matrices, schedule=sdes.LinearSchedule(**ends))):
        np.testing.assert_array_equal(one.transition(t).factor, sdes.vp(**ends).transition(t).factor)
    constant = sdes.recipe(**matrices).drift_matrix(t)
    np.testing.assert_allclose(constant, np.full((len(TIMES), 1, 1), -2.0), rtol=1e-6)
    jax.jit(lambda b: sdes.recipe(**matrices, beta_max=b).drift_matrix(t))(3.0)


def test_the_inverse_of_a_rate_that_starts_at_zero():
    """B = 10 t^2, so t = sqrt(B / 10), at 0 too, and no gradient is NaN; elsewhere the slope is 1 / beta."""
    schedule = sdes.LinearSchedule(beta_min=0.0, beta_max=20.0)
    B = jnp.array([0.0, 0.1, 10.0])
    np.testing.assert_allclose(schedule.inverse(B), [0.0, 0.1, 1.0], rtol=1e-6)
    gradient = jax.vmap(jax.grad(schedule.inverse))(B)
    np.testing.assert_allclose(gradient[1:], 0.5 / np.sqrt(10 * B[1:]), rtol=1e-6)
    assert np.isfinite(gradient[0])
    assert float(jax.grad(sdes.LinearSchedule(beta_min=2.0, beta_max=20.0).inverse)(0.0)) == 0.5


def test_third_order_is_critically_damped():
    """A triple eigenvalue -sqrt(3 m_inv): the characteristic polynomial is (x + sqrt(3 m_inv))^3."""
    np.testing.assert_allclose(np.poly(sdes.third_order(m_inv=4.0).F), np.poly([-np.sqrt(12.0)] * 3), rtol=1e-12)


def test_monte_carlo_simulation_has_the_kernels_moments():
    """Euler-Maruyama of the forward SDE, 20,000 paths: an oracle that shares no code with the kernel."""
    sde, n, steps = sdes.third_order(beta_min=1.0, beta_max=3.0), 20_000, 400
    rng = np.random.default_rng(0)
    z = np.zeros((n, 3))
    z[:, 0] = 1.0
    z[:, 1:] = rng.normal(size=(n, 2)) * np.sqrt(0.04 / 4)
    F, G = np.asarray(sde.F), np.asarray(sde.G)
    for i in range(steps):
        rate = (1.0 + 2.0 * (i + 0.5) / steps) / steps
        z = z + rate * z @ F.T + np.sqrt(rate) * rng.normal(size=(n, 3)) @ G.T
    kernel = sde.transition(jnp.ones(1))
    std = np.sqrt(np.diagonal(np.asarray(kernel.covariance[0])))
    # 4 standard errors, and 2% for the discretisation
    assert np.all(np.abs(z.mean(0) - np.asarray(kernel.mean[0, :, 0])) < 4 * std / np.sqrt(n) + 0.02 * std)
    assert np.all(np.abs(z.std(0) / std - 1) < 4 / np.sqrt(2 * n) + 0.02)


def test_changing_parameters_does_not_recompile():
    compiled = jax.jit(lambda sde, t: sde.transition(t).factor)
    t = jnp.asarray(TIMES)
    first = compiled(sdes.psld(), t)
    second = compiled(sdes.psld(beta_min=4.0, beta_max=9.0, gamma=0.02, nu=4.02), t)
    assert compiled._cache_size() == 1
    assert not np.allclose(first, second)


def test_parameters_can_be_differentiated_and_traced(x64):
    """Inside a transformation nothing can be looked at; the values are the same, and gradients are right."""
    t = jnp.asarray([0.01, 0.4])

    def total(gamma):
        return jnp.sum(sdes.psld(gamma=gamma, nu=gamma + 4.0).transition(t).covariance)

    value, gradient = jax.jit(jax.value_and_grad(total))(0.05)
    np.testing.assert_allclose(value, total(0.05), rtol=1e-10)
    difference = (total(0.05 + 1e-5) - total(0.05 - 1e-5)) / 2e-5
    np.testing.assert_allclose(gradient, difference, rtol=1e-6)


@pytest.mark.parametrize("D", [[[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 4.0]]], ids=["first", "oblique"])
def test_known_noise_has_its_frame_whatever_is_traced(D):
    """A D that can be looked at says which variables have noise, beside a traced covariance, prior or coupling."""
    t, z = jnp.asarray([0.01, 0.4]), jnp.array([[[1.0], [2.0]]])

    def make(s=0.04, prior=1.0, q=0.5):
        return sdes.recipe(D=D, Q=[[0, -q], [q, 0]], Sigma_inf=[[1, 0], [0, prior]], Sigma_0=[[s]], num_noised=1)

    def parts(sde):
        return sde.restrict(z), sde.transition(t).factor, sde.reverse_linear(t, t / 2).factor, sde.transition(t).mean

    expected = parts(make())
    for name, value in (("s", 0.04), ("prior", 1.0), ("q", 0.5)):
        found = jax.jit(lambda v, name=name: parts(make(**{name: v})))(value)
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    with pytest.raises(InputError, match="'auto', 'lower' or 'upper', not 'banana'"):
        jax.eval_shape(lambda g: sdes.psld(gamma=g, factor="banana").F, 0.1)  # type: ignore[arg-type]


def test_vmap_over_processes():
    t = jnp.asarray([0.1, 0.5])
    compute = jax.vmap(lambda beta: sdes.vp(beta_min=0.1, beta_max=beta).transition(t).factor)
    values = compute(jnp.asarray([10.0, 20.0]))
    np.testing.assert_allclose(values[1], sdes.vp().transition(t).factor, rtol=1e-6)


@pytest.mark.parametrize("name", TWO)
def test_prior_sample_and_density(name: str):
    sde = ALL[name]
    z = np.asarray(sde.prior_sample(jax.random.key(0), (4000, 3)))
    assert z.shape == (4000, sde.k, 3)
    factor = np.asarray(sde.prior_factor(), np.float64)
    covariance = factor @ factor.T
    flat = z.transpose(0, 2, 1).reshape(-1, sde.k)
    error = np.abs(flat.T @ flat / len(flat) - covariance)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.all(error / scale < 5 * np.sqrt(2 / len(flat)))
    from scipy.stats import multivariate_normal

    exact = multivariate_normal(np.zeros(sde.k), covariance).logpdf(z[:5].transpose(0, 2, 1)).reshape(5, 3).sum(1)
    np.testing.assert_allclose(sde.prior_logp(jnp.asarray(z[:5])), exact, rtol=1e-4)


def test_augment():
    sde = sdes.psld(kappa=0.04)
    x0 = jnp.ones((5000, 2))
    assert np.all(np.asarray(sde.augment(x0)) == np.stack([np.ones((5000, 2)), np.zeros((5000, 2))], axis=1))
    z0 = np.asarray(sde.augment(x0, jax.random.key(0)))
    assert np.all(z0[:, 0] == 1)
    np.testing.assert_allclose(z0[:, 1].var(), 0.04 / 4, rtol=5 * np.sqrt(2 / 10_000))


BAD = [
    (lambda: sdes.recipe(D=[[1.0, 2.0], [2.0, 1.0]], Q=[[0, 1], [-1, 0]]), "D is not positive semi-definite"),
    (lambda: sdes.recipe(D=[[1.0, 0.5], [0.0, 1.0]], Q=[[0, 1], [-1, 0]]), "D is not symmetric"),
    (lambda: sdes.recipe(D=np.eye(2), Q=[[0, 1], [1, 0]]), "Q is not skew"),
    (lambda: sdes.recipe(D=np.eye(2), Q=np.zeros((3, 3))), "Q is 3 x 3 but D is 2 x 2"),
    (lambda: sdes.recipe(D=np.ones((2, 3)), Q=np.zeros((2, 2))), "square"),
    (lambda: sdes.recipe(D=np.eye(2), Q=np.zeros((2, 2)), Sigma_inf=np.diag([1.0, 0.0])), "Sigma_inf is not positive"),
    (lambda: sdes.recipe(D=np.eye(2), Q=np.zeros((2, 2)), Sigma_0=np.eye(2)), "1 x 1"),
    (lambda: sdes.recipe(D=np.eye(2), Q=np.zeros((2, 2)), Sigma_0=[[-1.0]]), "Sigma_0 must be"),
    (lambda: sdes.recipe(D=np.diag([0.0, 1.0]), Q=np.zeros((2, 2)), variables=("x", "m")), r"variable 0 \(x\)"),
    (lambda: sdes.recipe(D=np.zeros((2, 2)), Q=np.zeros((2, 2))), "never reach"),
    (
        lambda: sdes.recipe(
            D=np.diag([0.0, 0.0, 1.0]), Q=[[0, 0, -1.0], [0, 0, 0], [1.0, 0, 0]], variables=("x", "a", "b")
        ),
        r"variable 1 \(a\)",
    ),
    (
        lambda: sdes.recipe(D=[[1.0]], Q=[[0.0]], beta_min=1.0, schedule=sdes.LinearSchedule(beta_min=1, beta_max=2)),
        "beta_min, beta_max: a schedule has its own rate; leave them out",
    ),
    (lambda: sdes.recipe(D=[[1.0]], Q=[[0.0]], schedule=8.0), r"schedule = 8.0: must have beta\(t\) and its integral"),
    (lambda: sdes.psld(gamma=4.0, nu=4.0), "gamma = nu"),
    (lambda: sdes.psld(gamma=-1.0), ">= 0"),
    (lambda: sdes.psld(kappa=0.0), "kappa"),
    (lambda: sdes.psld(factor="middle"), "'auto', 'lower' or 'upper'"),
    (lambda: sdes.cld(m_inv=-4.0), "m_inv"),
    (lambda: sdes.vp(beta_min=-1.0), "beta_min"),
    (lambda: sdes.subvp(beta_min=0.0, beta_max=0.0), "one positive"),
    (lambda: sdes.ve(sigma_min=50.0, sigma_max=0.01), "below sigma_max"),
    (lambda: sdes.psld().transition(jnp.ones(1), "ism"), "matching"),
    (lambda: sdes.ve().transition(jnp.ones(1), "isme"), "matching must be 'hsm' or 'dsm', not 'isme'"),
    (lambda: sdes.subvp().transition(jnp.ones(1), matching="ismp"), "matching must be 'hsm' or 'dsm', not 'ismp'"),
    (lambda: sdes.flow().transition(jnp.ones(1), "ismf"), "matching must be 'hsm' or 'dsm', not 'ismf'"),
    (lambda: sdes.vp(beta_max=np.inf), "beta_max = inf: both must be finite"),
    (lambda: sdes.subvp(beta_max=np.inf), "beta_max = inf: both must be finite"),
    (lambda: sdes.psld(beta_max=np.inf), "beta_max = inf: both must be finite"),
    (lambda: sdes.psld(numerical_eps=-1e-9), "numerical_eps: must be zero or positive, got -1e-09"),
    (lambda: sdes.psld(numerical_eps=np.nan), "numerical_eps: must be zero or positive, got nan"),
    (lambda: sdes.psld(nu=np.inf), "nu = inf: frictions must be finite"),
    (lambda: sdes.vp(beta_min=[0.1, 0.2]), r"beta_min: must be one number, got \[0.1, 0.2\]"),
    (lambda: sdes.vp(sigma2_0=None), "sigma2_0: must be one number, got None"),
    (lambda: sdes.subvp(beta_max=np.ones(2)), "beta_max: must be one number"),
    (lambda: sdes.ve(sigma_max=[50.0]), r"sigma_max: must be one number, got \[50.0\]"),
    (lambda: sdes.ve(sigma2_0="0"), "sigma2_0: must be one number, got '0'"),
    (lambda: sdes.cld(m_inv="4"), "m_inv: must be one number, got '4'"),
    (lambda: sdes.third_order(xi=-1.0), "xi = -1: must be positive"),
    (lambda: sdes.geometric_vp(sigma2_min=[0.1]), "sigma2_min: must be one number"),
    (lambda: sdes.flow(alpha_end=2.0), "alpha_end: must be between 0 and 1, both excluded, got 2.0"),
    (lambda: sdes.edm(sigma_max=np.ones(1)), "sigma_max: must be one number"),
    (lambda: sdes.hold(kappa=-0.04), "kappa: must be positive, got -0.04"),
    (lambda: sdes.hold(order=4.5), "order = 4.5: must be a whole number"),
    (lambda: objectives.log_normal(std=np.inf), "std: must be finite, got inf"),
    (lambda: objectives.log_normal(mean=np.nan), "mean: must be finite, got nan"),
    (lambda: objectives.log_uniform(1.0, np.inf), "sigma_max: must be finite, got inf"),
    (lambda: objectives.importance(sdes.vp(), bins=0), "bins: must be positive, got 0"),
    (lambda: exact.mixture([[np.nan, 0.0]], 1.0), r"means\[0, 0\] is nan: it must be finite"),
    (lambda: exact.mixture([[0.0, 0.0]], np.inf), "stds and weights must be positive"),
    (lambda: exact.ring(0), "components: must be positive, got 0"),
    (lambda: sdes.psld().transition(jnp.ones(1)).score(jnp.ones((1, 3, 2))), "3 phase variables"),
    (lambda: sdes.cld().transition(jnp.ones(1)).restrict(jnp.ones((1, 3, 2))), "3 phase variables"),
]


@pytest.mark.parametrize("make, message", BAD, ids=[message for _, message in BAD])
def test_bad_processes_are_refused_in_one_line(make, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


STATES: dict = {
    "drift": lambda sde, z: sde.drift(z, jnp.full(4, 0.5)),
    "perturb": lambda sde, z: sde.transition(jnp.full(4, 0.5)).perturb(z, z),
    "noise": lambda sde, z: sde.transition(jnp.full(4, 0.5)).perturb(jnp.ones((4, sde.k, 2)), z),
    "eps": lambda sde, z: sde.transition(jnp.full(4, 0.5)).eps(z),
    "denoise": lambda sde, z: sde.transition(jnp.full(4, 0.5)).denoise(z, z),
    "prior_logp": lambda sde, z: sde.prior_logp(z),
}


@pytest.mark.parametrize("door", STATES)
def test_states_have_the_variables_of_their_process(door: str):
    """Data that are not augmented, and states of another process; while tracing, and where arrays may broadcast."""
    cases = ((sdes.vp(), (4, 2), 1), (sdes.vp(), (4, 8, 8, 3), 1), (sdes.psld(), (4, 1, 2), 2),
             (sdes.psld(), (4, 3, 2), 2))  # fmt: skip
    for sde, shape, k in cases:
        message = rf"{shape[1]} phase variables? and the process {k}; sde.augment\(x0\) makes states"
        with jax.numpy_rank_promotion("allow"), pytest.raises(InputError, match=message):
            jax.eval_shape(lambda z, sde=sde: STATES[door](sde, z), jnp.ones(shape))
    with jax.numpy_rank_promotion("allow"), pytest.raises(InputError, match="no axis of phase variables"):
        STATES[door](sdes.vp(), jnp.ones(4))


def test_singular_matrices_of_float32_are_singular():
    """A rank that rounding hides: the process is that of the same matrices in float64."""
    a = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    Q = np.array([[0.0, -0.5, 0.2], [0.5, 0.0, -0.4], [-0.2, 0.4, 0.0]])
    t = jnp.asarray([0.01, 1.0])
    for i, row in enumerate(a):
        wide = row.astype(np.float64)
        one = sdes.recipe(D=jnp.outer(row, row), Q=jnp.asarray(Q), Sigma_0=jnp.outer(row[1:], row[1:]))
        other = sdes.recipe(D=np.outer(wide, wide), Q=Q, Sigma_0=np.outer(wide[1:], wide[1:]))
        assert one.num_noised == other.num_noised == 1
        np.testing.assert_allclose(one.F, other.F, atol=1e-6 * np.abs(other.F).max())
        if i == 0:
            kernels = one.transition(t), other.transition(t)
            np.testing.assert_allclose(*(k.covariance for k in kernels), atol=1e-5)
            G = jax.jit(lambda r: sdes.recipe(D=jnp.outer(r, r), Q=Q, num_noised=3).G)(row)
            np.testing.assert_allclose(G @ G.T, 2 * np.outer(wide, wide), atol=1e-5)
            assert not G[:, 1:].any()
    assert sdes.recipe(D=jnp.diag(jnp.array([1e-9, 1.0])), Q=[[0, -0.5], [0.5, 0]]).num_noised == 2  # no rounding there


def test_what_a_network_must_predict():
    assert [MULTI[n].num_noised for n in ("psld", "psld_cld_like", "psld_score_x", "cld", "third_order")] == [
        2,
        1,
        1,
        1,
        1,
    ]
    assert random_recipe(2, rank=2, aligned=False).num_noised == 2
    assert sdes.psld(gamma=4.0, nu=0.0, factor="lower").num_noised == 2


@pytest.mark.parametrize("name", tiers.alike(["cld", "psld", "third_order", "flow", "friction"], ["cld", "flow"]))
def test_kernels_have_derivatives_in_time_at_every_time(name, x64):
    """At t = 1, where samplers start, and where a table has its entries, too; against differences of order 4."""
    sde = (analytic.PROCESSES | analytic.NEW)[name]
    t = jnp.asarray([1 / 1024, 0.25, 0.5, 1 - 1e-3, 1.0])
    edges = getattr(getattr(sde, "forward", None), "pieces", None)
    if edges is not None:
        t = jnp.concatenate([t, jnp.asarray(edges.edges[[20, 60, -2]])])

    def covariance(t):
        return sde.transition(t).covariance

    _, found = jax.jvp(covariance, (t,), (jnp.ones_like(t),))
    h = 1e-4 * t
    inside = jnp.minimum(t, 1 - 2 * h)  # the difference stays in [0, 1]
    _, there = jax.jvp(covariance, (inside,), (jnp.ones_like(t),))
    a, b, c, d = (covariance(inside + i * h) for i in (-2, -1, 1, 2))
    expected = (8 * (c - b) - (d - a)) / (12 * h)[:, None, None]
    scale = np.abs(np.asarray(expected)).max(axis=(1, 2), keepdims=True)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(there / scale, expected / scale, rtol=0, atol=1e-5)  # a difference of what hardly grows
    np.testing.assert_allclose(found / scale, there / scale, rtol=0, atol=0.02)


def test_a_process_is_printed_by_what_it_was_made_of():
    """And not by its tables, which are thousands of numbers."""
    shown = repr(sdes.third_order())
    assert "schedule=LinearSchedule(" in shown and "name='third_order'" in shown and len(shown) < 1000
