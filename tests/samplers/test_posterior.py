"""Sampling given a measurement: normal data in closed form, mixtures, calibration, operators, errors."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiers

from sgmjax import exact, metrics, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.samplers import measurements as operators
from sgmjax.samplers import posterior
from sgmjax.sdes import estimate

PROCESSES = {
    "vp": sdes.vp(),
    "ve": sdes.ve(sigma_max=20.0),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
    "oblique": analytic.PROCESSES["oblique"],
}


class Normal:
    """Normal data of d numbers with any covariance, and a linear measurement of them; everything in closed form."""

    def __init__(self, seed: int = 0, size: int = 5, measured: int = 3, noise_std: float = 0.3):
        draws = np.random.default_rng(seed)
        root = draws.normal(size=(size, size))
        self.cov = root @ root.T / size + 0.1 * np.eye(size)
        self.mean = draws.normal(size=size)
        self.A, self.noise_std = draws.normal(size=(measured, size)), noise_std
        self.y = draws.normal(size=measured)
        self.measurement = samplers.measurement(operators.matrix(self.A), self.y, noise_std)

    def gain(self, y, prior=None):
        """Mean and covariance of the posterior, of a prior of covariance `prior` in place of the data's."""
        cov = self.cov if prior is None else prior
        gain = cov @ self.A.T @ np.linalg.inv(self.A @ cov @ self.A.T + self.noise_std**2 * np.eye(len(self.A)))
        return self.mean + gain @ (y - self.A @ self.mean), cov - gain @ self.A @ cov

    def score_fn(self, sde, mean=None, cov=None):
        """The score of z_t for normal data; the data's own by default."""
        mean, cov = (self.mean if mean is None else mean), (self.cov if cov is None else cov)
        size, k = len(mean), sde.k

        def score(z, t):  # the batch shares its time
            kernel = sde.transition(t[:1], "hsm")
            m = kernel.mean[0, :, 0]
            whole = jnp.einsum("i,j,ab->iajb", m, m, jnp.asarray(cov, z.dtype))
            whole = whole + jnp.einsum("ij,ab->iajb", kernel.covariance[0], jnp.eye(size, dtype=z.dtype))
            off = z - m[None, :, None] * jnp.asarray(mean, z.dtype)[None, None]
            solved = jnp.linalg.solve(whole.reshape(k * size, k * size), off.reshape(len(z), -1).T)
            return sde.expand(sde.restrict(-solved.T.reshape(z.shape)))

        return score


def test_a_deviation_for_each_value():
    """Two numbers, standard normal, each measured with its own noise: the posterior of each is known."""
    sde, std, y = sdes.vp(), np.array([0.5, 2.0]), jnp.array([0.3, 0.4])
    z, t = jax.random.normal(jax.random.key(1), (3, 1, 2)), jnp.full(3, 0.4)
    m = samplers.measurement(samplers.measurements.inpainting(np.array([1, 1])), y, noise_std=std)
    given = samplers.posterior_score(lambda z, t: -z, sde, m, iterations=2)(z, t)
    kernel = sde.transition(t)
    mean, variance = float(kernel.mean[0, 0, 0]), float(kernel.covariance[0, 0, 0])
    posterior_mean, posterior_variance = np.asarray(y) / (1 + std**2), std**2 / (1 + std**2)
    expected = -(np.asarray(z) - mean * posterior_mean) / (mean**2 * posterior_variance + variance)
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["psld"]))
def test_mmps_is_exact_for_normal_data(name, x64):
    """The score of z_t given the measurement is that of the closed posterior, which is normal data too."""
    sde, data = PROCESSES[name], Normal()
    given = samplers.posterior_score(data.score_fn(sde), sde, data.measurement, method="mmps", iterations=3)
    true = data.score_fn(sde, *data.gain(data.y))
    draws = np.random.default_rng(1)
    for t in (1e-2, 0.3, 1.0):
        z, times = jnp.asarray(draws.normal(size=(4, sde.k, 5))), jnp.full(4, t)
        expected = true(z, times)
        assert float(jnp.abs(expected - data.score_fn(sde)(z, times)).max()) > 1e-4
        np.testing.assert_allclose(given(z, times), expected, rtol=0, atol=1e-9 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["vp", "psld"]))
def test_pigdm_and_tmpd_are_what_they_assume(name, x64):
    """PiGDM is exact for white data of the deviation it is told, TMPD for some numbers of a diagonal covariance."""
    sde, data, picked = PROCESSES[name], Normal(), Normal()
    picked.A = np.eye(5)[[0, 2, 3]] * np.array([[1.0], [-2.0], [0.5]])
    picked.measurement = samplers.measurement(operators.matrix(picked.A), picked.y, picked.noise_std)
    z, t = jnp.asarray(np.random.default_rng(1).normal(size=(4, sde.k, 5))), jnp.full(4, 0.2)
    for method, data, cov, options in (
        ("pigdm", data, 0.49 * np.eye(5), {"data_std": 0.7, "iterations": 3}),
        ("tmpd", picked, np.diag([0.1, 0.5, 1.0, 2.0, 0.3]), {}),
    ):
        score_fn = data.score_fn(sde, cov=cov)
        given = samplers.posterior_score(score_fn, sde, data.measurement, method=method, **options)
        expected = data.score_fn(sde, *data.gain(data.y, cov))(z, t)
        np.testing.assert_allclose(given(z, t), expected, rtol=0, atol=1e-9 * float(jnp.abs(expected).max()))
        off = samplers.posterior_score(data.score_fn(sde), sde, data.measurement, method=method, **options)(z, t)
        assert float(jnp.abs(off - data.score_fn(sde, *data.gain(data.y))(z, t)).max()) > 1e-3


@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["vp", "psld"]))
def test_tmpd_sums_over_what_is_measured(name, x64):
    """Boys et al. 2023: of a few pixels of an image the rows of their own covariance, not those of all its pixels."""
    sde, data, t = PROCESSES[name], Normal(size=40, measured=4), 0.2
    data.cov = data.cov + 3.0  # all numbers go together, and a row's sum grows with their count
    data.A = np.eye(40)[[3, 11, 12, 30]]
    known = samplers.measurement(operators.matrix(data.A), data.y, data.noise_std)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(3, sde.k, 40)))
    _, look, _ = posterior.linearised(data.score_fn(sde), sde, known)(z, jnp.full(3, t))
    variance = float(look.sigma[0]) ** 2
    posterior_cov = np.linalg.inv(np.linalg.inv(data.cov) + np.eye(40) / variance)
    sums = np.maximum(data.A @ posterior_cov @ data.A.T @ np.ones(4), 0)
    expected = np.asarray(look.residual) / (data.noise_std**2 + sums)
    np.testing.assert_allclose(posterior.tmpd(look), expected, rtol=1e-8)


@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["vp", "psld"]))
def test_pigdm_does_not_overshoot_where_the_data_are_wider_than_it_is_told(name, x64):
    """Its step ends where the normal equations' energy is least along it; nothing is shortened for narrower data."""
    sde, data = PROCESSES[name], Normal()
    z, t = jnp.asarray(np.random.default_rng(1).normal(size=(4, sde.k, 5))), jnp.full(4, 0.7)
    noise = data.noise_std**2 * np.eye(3)
    for width in (0.1, 30.0):
        _, look, _ = posterior.linearised(data.score_fn(sde, cov=width**2 * data.cov), sde, data.measurement)(z, t)
        operator = [np.asarray(look.push(look.covariance(look.pull(jnp.tile(w, (4, 1)))))) for w in jnp.eye(3)]
        matrix = np.stack(operator, -1) + noise
        variance = np.asarray(posterior.white_variance(look.sigma, 1.0))[0]
        published = np.linalg.solve(noise + variance * data.A @ data.A.T, np.asarray(look.residual).T).T
        plain = np.asarray(posterior.pigdm(look, iterations=3, shorten=False))
        np.testing.assert_allclose(plain, published, rtol=1e-9)
        found = np.asarray(posterior.pigdm(look, iterations=3))
        share = found / published
        np.testing.assert_allclose(share, share[:, :1] * np.ones(3), rtol=1e-9)
        energy = np.einsum("bi,bij,bj->b", found, matrix, found), np.einsum("bi,bi->b", found, look.residual)
        if width > 1:
            assert (share < 0.9).all()
            np.testing.assert_allclose(*energy, rtol=1e-9)
        else:
            np.testing.assert_allclose(share, 1, rtol=1e-9)
            assert (energy[0] < energy[1]).all()


def test_dps_moves_the_estimate_by_its_scale_along_the_slope(x64):
    sde, data = sdes.psld(), Normal()
    score_fn, scale = data.score_fn(sde), 0.4
    z, t = jnp.asarray(np.random.default_rng(1).normal(size=(4, sde.k, 5))), jnp.full(4, 0.2)
    look = estimate(sde, t)
    moved = samplers.posterior_score(score_fn, sde, data.measurement, method="dps", scale=scale)(z, t)

    def x0(score):
        noise = look.noise(z, look.kernel.restrict(look.kernel.eps(score)))
        return look.of(z) - look.sigma[:, None] * noise

    # of normal data: D = mean + V / sigma^2 (y - mean), V (1 / cov + 1 / sigma^2) = 1
    sigma = float(look.sigma[0])
    V = np.linalg.inv(np.linalg.inv(data.cov) + np.eye(5) / sigma**2)
    D = np.asarray(x0(score_fn(z, t)))
    residual = data.y - D @ data.A.T
    slope = (residual / np.linalg.norm(residual, axis=1, keepdims=True)) @ data.A @ V / sigma**2
    np.testing.assert_allclose(x0(moved) - D, scale * slope, atol=1e-9)


@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["psld"]))
@pytest.mark.parametrize("sampler", tiers.alike(["unipc", "sscs"], ["unipc"]))
def test_samples_have_the_mean_and_the_covariance_of_the_posterior(name, sampler):
    """5,000 samples in float32; five standard errors, and 0.01 (the mean) and 0.02 for the steps.

    They start from the posterior's own states at t = 1: VE of sigma_max 20 and the oblique process have not forgotten
    the data by then, and from the prior's the exact posterior score is 0.06 and 0.1 deviations off.
    """
    sde, data = PROCESSES[name], Normal()
    given = samplers.posterior_score(data.score_fn(sde), sde, data.measurement, iterations=3)
    kind, steps = ("auto", 41) if sampler == "unipc" else ("quadratic", 300)
    times = samplers.time_grid(kind, steps, t_min=1e-3, sde=sde)
    mean, cov = data.gain(data.y)
    mean = np.ravel(mean)
    x0 = np.random.default_rng(0).multivariate_normal(mean, cov, size=5000).astype(np.float32)
    start = samplers.noised(jax.random.key(1), sde, x0, 1.0)
    draw = jax.jit(
        lambda key: samplers.SAMPLERS[sampler](
            key, given, sde, (5000, 5), times=times, denoise="tweedie", initial=start
        )[0]
    )  # fmt: skip
    x = np.asarray(draw(jax.random.key(0)), np.float64)
    deviation = np.sqrt(np.diag(cov))
    assert np.abs((x.mean(0) - mean) / deviation).max() < 5 / np.sqrt(len(x)) + 0.01
    off = (np.cov(x.T) - cov) / np.outer(deviation, deviation)
    assert np.abs(off).max() < 5 * np.sqrt(2 / len(x)) + 0.02


def looking(residual, noise_variance=0.01):
    """A `posterior.Look` of which only what `posterior.solve` reads is there."""
    return posterior.Look(jnp.asarray(residual), None, None, None, None, noise_variance, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("iterations", [1, 3, 8, 20])
def test_what_a_network_gets_wrong_does_not_run_away(iterations, x64):
    """Symmetric and positive matrices are solved; whatever else a network makes of them, no remainder grows."""
    draws = np.random.default_rng(3)
    root = draws.normal(size=(50, 8, 8))
    right, residual = root @ np.swapaxes(root, 1, 2), draws.normal(size=(50, 8))
    exact = np.linalg.solve(right + 0.01 * np.eye(8), residual[..., None])[..., 0]
    wrong = {"not symmetric": right + 0.5 * draws.normal(size=right.shape), "not positive": right - np.eye(8)}
    for name, matrices in ({"right": right} | wrong).items():
        product = lambda w, m=jnp.asarray(matrices): jnp.einsum("bij,bj->bi", m, w)  # noqa: E731
        found = np.asarray(posterior.solve(product, looking(residual), iterations))
        rest = residual - 0.01 * found - np.einsum("bij,bj->bi", matrices, found)
        sizes = np.linalg.norm(rest, axis=1) / np.linalg.norm(residual, axis=1)
        assert (sizes <= 1).all(), name
        if name == "right":
            assert (sizes < 1).all() and (iterations < 20 or np.abs(found - exact).max() < 1e-5 * np.abs(exact).max())


def test_ranks_of_posterior_samples_are_uniform():
    """Simulation-based calibration: of x_0 from the data among 19 samples given a measurement of it, 500 times.

    By the closed posterior's samples the statistic is chi-squared with 19 degrees of freedom. The score of data that
    vary less than these do is too sure, and must fail the same test.
    """
    sde, count, each = sdes.vp(), 500, 19
    data = Normal(noise_std=0.05)
    data.A, data.cov = np.eye(5)[:2], 0.1 * np.eye(5) + 0.9
    draws = np.random.default_rng(0)
    truth = draws.multivariate_normal(data.mean, data.cov, size=count)
    y = truth @ data.A.T + data.noise_std * draws.normal(size=(count, 2))
    values = np.repeat(y, each, axis=0).astype(np.float32)
    measured = samplers.measurement(operators.matrix(data.A), values, data.noise_std)
    score_fn, times = data.score_fn(sde), samplers.time_grid("rho", 31, t_min=1e-3, sde=sde)
    given = samplers.posterior_score(score_fn, sde, measured, iterations=2)
    sure = samplers.posterior_score(data.score_fn(sde, cov=0.3 * data.cov), sde, measured, iterations=2)
    unlikely = {}
    for method, of in (("mmps", given), ("sure", sure)):
        draw = jax.jit(
            lambda key, of=of: samplers.unipc(key, of, sde, (count * each, 5), times=times, denoise="tweedie")[0]
        )
        x = np.asarray(draw(jax.random.key(2))).reshape(count, each, 5)
        along = np.array([0.0, 0.0, 1.0, 0.0, 0.0])
        ranks = np.sum(x @ along < (truth @ along)[:, None], axis=1)
        unlikely[method] = scipy.stats.chisquare(np.bincount(ranks, minlength=each + 1)).pvalue
    assert unlikely["mmps"] > 1e-3, unlikely
    assert unlikely["sure"] < 1e-4, unlikely


# ---- mixtures


class Mixture:
    """Six normal components in 4-D, two linear measurements: the posterior is a mixture in closed form."""

    def __init__(self):
        draws = np.random.default_rng(3)
        self.data = exact.mixture(0.8 * draws.normal(size=(6, 4)), 0.3)
        A, noise = draws.normal(size=(2, 4)) * np.array([[1.0], [0.3]]), 0.4
        self.y = A @ (self.data.means[0] + self.data.means[1]) / 2
        self.measurement = samplers.measurement(operators.matrix(A), self.y.astype(np.float32), noise)
        inner = 0.09 * A @ A.T + noise**2 * np.eye(2)
        gain = 0.09 * A.T @ np.linalg.inv(inner)
        self.cov = 0.09 * np.eye(4) - 0.09 * gain @ A
        off = self.y - self.data.means @ A.T
        self.means = self.data.means + off @ gain.T
        logs = -0.5 * np.sum(off * np.linalg.solve(inner, off.T).T, axis=1)
        self.weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
        self.log_evidence = float(np.log(np.mean(np.exp(logs))) - 0.5 * np.log(np.linalg.det(2 * np.pi * inner)))

    def sample(self, num: int, seed: int):
        draws = np.random.default_rng(seed)
        which = draws.choice(6, num, p=self.weights)
        return self.means[which] + draws.normal(size=(num, 4)) @ np.linalg.cholesky(self.cov).T


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "cld", "psld", "oblique"])
@pytest.mark.parametrize("method, number", [("none", 16000), ("mmps", 4000)])
def test_twisted_particles_have_the_law_of_the_posterior(name, method, number):
    """Three modes of a tenth of the mass and more; sliced W2 of their particles. Two true sets are 0.03 apart.

    What is left of bias is the chain's: with 60 steps the distance is 0.10 to 0.14. The oblique process is twice as
    fast as elsewhere, so that it has forgotten the data at t = 1 (noise level 77, not 8).
    """
    sde, mixture = analytic.oblique_recipe(beta=8.0) if name == "oblique" else PROCESSES[name], Mixture()
    assert np.sum(mixture.weights > 0.1) == 3
    times = samplers.time_grid("rho", 200, t_min=1e-3, sde=sde)
    draw = jax.jit(
        lambda key: samplers.twisted(
            key, mixture.data.score_fn(sde), sde, (number, 4), times=times, measurement=mixture.measurement,
            method=method, data_std=0.5,
        )
    )  # fmt: skip
    x, info = draw(jax.random.key(0))
    assert x.shape == (number, 4) and info.state.shape == (number, sde.k, 4) and info.nfe == 200
    assert info.effective.shape == info.resampled.shape == (200,) and bool(info.resampled[-1])
    distance = metrics.sliced_wasserstein(np.asarray(x), mixture.sample(number, 1).astype(np.float32))
    assert distance < 0.1, distance
    assert abs(float(info.log_evidence) - mixture.log_evidence) < 0.3


# ---- operators


@pytest.mark.parametrize(
    "make, event, measured",
    [
        (lambda: operators.inpainting(np.array([1, 0, 1, 1])[:, None, None]), (4, 3, 2), (18,)),
        (operators.colorization, (4, 6, 3), (4, 6)),
        (lambda: operators.super_resolution(2), (4, 6, 3), (2, 3, 3)),
        (lambda: operators.super_resolution(4), (16, 2), (4, 2)),
        (lambda: operators.blur(1.0), (8, 8, 1), (8, 8, 1)),
        (lambda: operators.fourier(np.arange(16).reshape(4, 4) % 3 == 0), (4, 4, 2), (2, 6, 2)),
        (lambda: operators.matrix(np.ones((3, 8))), (4, 2), (3,)),
    ],
    ids=["inpainting", "colorization", "super_resolution", "signal", "blur", "fourier", "matrix"],
)
def test_operators_are_linear_with_the_adjoint_that_jax_finds(make, event, measured):
    operator = make()
    draws = np.random.default_rng(0)
    x, w = draws.normal(size=event).astype(np.float32), draws.normal(size=measured).astype(np.float32)
    found = operator(jnp.asarray(x))
    assert found.shape == measured
    _, push = jax.linearize(operator, jnp.asarray(x))
    (back,) = jax.linear_transpose(push, jnp.asarray(x))(jnp.asarray(w))
    np.testing.assert_allclose(np.sum(found * w), np.sum(x * back), rtol=1e-4)
    assert samplers.measurement(operator, w, 0.1).is_linear(event)


def test_operators_by_their_formulas():
    x = np.random.default_rng(0).normal(size=(4, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(operators.super_resolution(2)(x)[0, 1], x[:2, 2:].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(operators.colorization()(x), x.mean(-1), rtol=1e-5)
    mask = np.array([[1, 0, 0, 1]] * 4)[..., None]
    np.testing.assert_array_equal(operators.inpainting(mask)(jnp.asarray(x)), x[:, [0, 3]].reshape(-1))
    np.testing.assert_allclose(operators.blur(0.7)(np.ones((5, 5, 1))), 1.0, rtol=1e-6)
    line = np.zeros((9, 1))
    line[4] = 1.0
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 1.2) ** 2) * (abs(np.arange(-4, 5)) <= 4)
    np.testing.assert_allclose(operators.blur(1.2)(jnp.asarray(line))[:, 0], weights / weights.sum(), atol=1e-6)
    full = operators.fourier(np.ones((4, 4)))(jnp.asarray(x))
    np.testing.assert_allclose(np.sum(np.asarray(full) ** 2), np.sum(x**2), rtol=1e-4)  # unitary


def test_a_nonlinear_operator():
    """Magnitudes: linearised where the estimate is; samples then agree with what was measured to its noise."""
    sde = sdes.vp()
    data = exact.mixture(np.zeros((1, 6)), 1.0)
    operator = lambda x: jnp.abs(x[:3])  # noqa: E731
    y = np.array([1.2, 0.4, 2.0], np.float32)
    m = samplers.measurement(operator, y, 0.1)
    assert not m.is_linear((6,))
    given = samplers.posterior_score(data.score_fn(sde), sde, m, iterations=3)
    times = samplers.time_grid("rho", 60, t_min=1e-3, sde=sde)
    draw = jax.jit(lambda key: samplers.sscs(key, given, sde, (500, 6), times=times, denoise="tweedie")[0])
    x = np.asarray(draw(jax.random.key(0)))
    residual = np.abs(x[:, :3]) - y
    assert np.median(np.abs(residual)) < 0.2
    assert 0.3 < np.mean(x[:, 0] > 0) < 0.7 and abs(x[:, 4].std() - 1) < 0.15


# ---- errors

SDE = sdes.vp()
POINT = samplers.measurement(operators.matrix(np.ones((1, 3))), np.zeros(1), 0.1)


def drawn(m, method="mmps", **options):
    given = samplers.posterior_score(lambda z, t: -z, SDE, m, method=method, **options)
    return jax.eval_shape(given, jnp.zeros((2, 1, 3)), jnp.ones(2))


BAD = [
    (lambda: drawn(POINT, "ddrm"), "'ddrm' is unknown; choose one of mmps, tmpd, pigdm, dps"),
    (lambda: drawn(POINT, scale=2.0), "scale: method 'mmps' has no such setting; there are iterations"),
    (lambda: drawn(samplers.measurement(POINT.operator, np.zeros(1))), "noise_std = 0.0: 'mmps' needs noise"),
    (
        lambda: drawn(samplers.measurement(POINT.operator, np.zeros(2), 0.1)),
        r"has shape \(2,\), and the operator gives",
    ),
    (lambda: samplers.measurement(POINT.operator, np.zeros(2), [0.1, -1.0]), r"noise_std = \[0.1, -1.0\]: must be 0"),
    (
        lambda: samplers.twisted(
            jax.random.key(0),
            None,
            sdes.vp(),
            (2, 1),
            times=[1.0, 0.1],
            measurement=samplers.measurement(POINT.operator, np.zeros(2), [0.1, 0.2]),
        ),
        "noise_std: twisted weighs particles by one number",
    ),
    (lambda: samplers.measurement(POINT.operator, np.zeros(1), -1.0), "noise_std = -1.0: must be 0 or positive"),
    (lambda: samplers.measurement(POINT.operator, np.array([np.nan]), 1.0), "not finite"),
    (lambda: samplers.measurement(3, np.zeros(1), 1.0), "must be a function of one example"),
    (lambda: operators.super_resolution(3)(np.zeros((4, 4, 1))), "factor = 3 does not divide"),
    (lambda: operators.super_resolution(0), "must be a whole number from 1 on"),
    (lambda: operators.blur(0.0), "must be positive"),
    (lambda: operators.inpainting([0.5, 1]), "the mask must be 0 or 1"),
    (lambda: operators.inpainting(np.ones((2, 2, 2)))(np.zeros((2, 2))), r"the mask has shape \(2, 2, 2\)"),
    (lambda: operators.fourier(np.ones((2, 2)))(np.zeros((3, 2, 1))), r"the mask has shape \(2, 2\)"),
    (lambda: operators.matrix(np.ones(3)), "give \\(measured, size of an example\\)"),
    (lambda: operators.matrix(np.ones((1, 3)))(np.zeros(4)), "A has 3 columns, an example 4 numbers"),
    (lambda: _twisted(noise_std=0.0), "particles are weighed by the likelihood"),
    (lambda: _twisted(ess=1.5), "ess = 1.5: must lie in"),
    (lambda: _twisted(method="gibbs"), "'gibbs' is unknown"),
]


def _twisted(noise_std=0.1, **options):
    m = samplers.measurement(POINT.operator, np.zeros(1), noise_std)
    times = samplers.time_grid("rho", 4, sde=SDE)
    return samplers.twisted(
        jax.random.key(0), lambda z, t: -z, SDE, (4, 3), times=times, measurement=m, **({"method": "none"} | options)
    )


@pytest.mark.parametrize("make, message", BAD, ids=[message for _, message in BAD])
def test_errors_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
