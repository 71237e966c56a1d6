"""One denoiser gives the exact score of every linear process, and every score function a denoiser, to rounding."""

from __future__ import annotations

import dataclasses
import itertools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import ScoreModel, exact, models, samplers, score, sdes, sharding
from sgmjax._inputs import InputError
from sgmjax.samplers.plan import Plan, draw
from sgmjax.score import denoiser, from_denoiser
from sgmjax.sdes import estimate

PROCESSES = analytic.PROCESSES | analytic.NEW
NAMES = ("vp", "subvp", "ve", "cld", "psld", "third_order", "recipe4", "oblique", *analytic.NEW)
FEW = ("vp", "psld", "friction")  # one of each kind
TIMES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.6, 1.0)
MIXTURES = {
    "ring": exact.ring(),
    "unequal": exact.mixture([[1.5, -0.3, 0.2], [-0.7, 0.9, 0.1]], [0.1, 0.6], [0.3, 0.7]),  # in 3-D
}
# What is exact: 1e-10 in float64, 2e-5 of a variable's root mean square in float32.
BOUNDS = {np.float64: 1e-10, np.float32: 2e-5}


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def states(name: str, mixture, dtype, num: int = 16):
    """States of the process at all TIMES, rounded to the type, their times, and their exact score in float64."""
    with jax.enable_x64(True):
        sde = PROCESSES[name]
        draws = np.random.default_rng(0)
        t = np.repeat(np.asarray(TIMES, dtype), num)
        x0, _ = mixture.sample(jax.random.key(1), len(t), jnp.float64)
        eps = draws.standard_normal((len(t), sde.k, *x0.shape[1:]))
        times = jnp.asarray(t, jnp.float64)
        z = np.asarray(sde.transition(times).perturb(sde.augment(x0), jnp.asarray(eps)), dtype)
        exactly = mixture.score_fn(sde, noised_only=False)(jnp.asarray(z, jnp.float64), times)
    return z, t, np.asarray(exactly)


def relative(found, expected, num: int = 16) -> float:
    """The largest error, of each variable at each time in units of its root mean square there."""
    error, size = (v.reshape(len(TIMES), num, *v.shape[1:]) for v in (np.abs(found - expected), expected**2))
    axes = (1, *range(3, error.ndim))
    return float(np.max(np.max(error, axis=axes) / np.sqrt(np.mean(size, axis=axes))))


@pytest.mark.parametrize(
    "name, mixture",
    tiers.alike(itertools.product(NAMES, MIXTURES), [("psld", "unequal"), *((name, "ring") for name in FEW)]),
)
def test_the_score_of_every_process_is_that_of_one_denoiser(name, mixture, dtype):
    mixture = MIXTURES[mixture]
    z, t, expected = states(name, mixture, dtype)
    sde = PROCESSES[name]
    found = jax.jit(from_denoiser(mixture.denoiser(), sde, noised_only=False))(jnp.asarray(z), jnp.asarray(t))
    assert found.dtype == dtype and relative(np.asarray(found, np.float64), expected) < BOUNDS[dtype]
    noised = from_denoiser(mixture.denoiser(), sde)(jnp.asarray(z), jnp.asarray(t))
    error, size = (np.abs(v).reshape(len(TIMES), -1).max(1) for v in (noised - sde.expand(sde.restrict(found)), found))
    assert (error < BOUNDS[dtype] * size).all()


@pytest.mark.parametrize("name", tiers.alike(NAMES, FEW))
def test_a_denoiser_of_data_alone_is_right_to_rounding_over_sigma(name, dtype):
    """As of one that was written without its noise: x_0 (batch, *event) and no more."""
    mixture = MIXTURES["ring"]
    z, t, expected = states(name, mixture, dtype)
    sde = PROCESSES[name]
    known = mixture.denoiser()
    found = from_denoiser(lambda y, sigma: known(y, sigma), sde, noised_only=False)(jnp.asarray(z), jnp.asarray(t))
    sigma = np.asarray(sdes.noise_level(sde, jnp.asarray(t)), np.float64)[:: len(t) // len(TIMES)]
    size = np.sqrt(np.mean(expected.reshape(len(TIMES), -1) ** 2, axis=1))
    error = np.max(np.abs(np.asarray(found, np.float64) - expected).reshape(len(TIMES), -1), axis=1)
    assert (error < 50 * np.finfo(dtype).eps * (1 + 1 / sigma) * np.maximum(size, 1 / sigma)).all()


@pytest.mark.parametrize(
    "name, noised_only",
    tiers.alike(itertools.product(NAMES, [True, False]), [("psld", False), *((name, True) for name in FEW)]),
)
def test_a_score_function_is_a_denoiser(name, noised_only, dtype):
    """Also where it knows the noised variables alone, as a network does."""
    mixture, sde = MIXTURES["ring"], PROCESSES[name]
    with jax.enable_x64(True):
        t = jnp.repeat(jnp.asarray(TIMES), 16)
        sigma = np.asarray(sdes.noise_level(PROCESSES[name], t), dtype)
        x0, _ = mixture.sample(jax.random.key(2), len(t), jnp.float64)
        y = np.asarray(x0 + sigma[:, None] * np.random.default_rng(3).standard_normal(x0.shape), dtype)
        expected = np.asarray(mixture.denoiser().noise(jnp.asarray(y, jnp.float64), jnp.asarray(sigma, jnp.float64)))
    known = denoiser(mixture.score_fn(sde, noised_only=noised_only), sde)
    found = jax.jit(known.noise)(jnp.asarray(y), jnp.asarray(sigma))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUNDS[dtype] * max(1.0, np.abs(expected).max()))
    x0 = known(jnp.asarray(y), jnp.asarray(sigma))
    wide = np.maximum(1, sigma)[:, None]  # to rounding, which in float32 is that of sigma n
    np.testing.assert_allclose(x0 / wide, (y - sigma[:, None] * found) / wide, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "here, there",
    tiers.alike(
        itertools.product(["vp", "cld", "psld", "third_order"], NAMES),
        [("vp", "psld")],
    ),
)
def test_a_score_of_one_process_is_one_of_every_other(here, there, x64):
    """Both ways by functions alone: the exact score of one as a denoiser, and that as the score of the other.

    At noise levels that both have: VP's prior has one of 150, CLD's one of 60. What passes between them is y = x_0 +
    sigma n, whose own rounding is one of n of eps / sigma: at t = 1e-5 third order has sigma 1e-10, HOLD 1e-14.
    """
    mixture = MIXTURES["ring"]
    known = denoiser(mixture.score_fn(PROCESSES[here]), PROCESSES[here])
    z, t, expected = states(there, mixture, np.float64)
    highest = sdes.noise_level(PROCESSES[here], jnp.ones(1))
    lowest = sdes.noise_level(PROCESSES[here], jnp.full(1, 1e-7))
    sigma = sdes.noise_level(PROCESSES[there], jnp.asarray(t))
    inside = np.asarray((sigma <= highest) & (sigma >= lowest))
    assert inside.sum() >= 48
    found = from_denoiser(known, PROCESSES[there], noised_only=False)(jnp.asarray(z), jnp.asarray(t))
    error = np.abs(np.asarray(found) - expected)[inside]
    error = np.max(error / np.sqrt(np.mean(expected[inside] ** 2, axis=(1, 2), keepdims=True)), axis=(1, 2))
    rounding = np.finfo(np.float64).eps / np.asarray(sigma)[inside]
    assert (error < 1e-8 + rounding).all()


@pytest.mark.parametrize("name", tiers.alike(NAMES, ["psld"]))
def test_gradients_are_those_of_the_exact_score(name, x64):
    mixture, sde = MIXTURES["unequal"], PROCESSES[name]
    z, t, _ = states(name, mixture, np.float64, num=2)
    z, t = jnp.asarray(z[4:-2]), jnp.asarray(t[4:-2])  # from t = 1e-3 to 0.6

    def total(score_fn):
        return jax.jit(jax.grad(lambda z, t: jnp.sum(jnp.sin(1e-3 * score_fn(z, t))), (0, 1)))(z, t)

    ours = total(from_denoiser(mixture.denoiser(), sde, noised_only=False))
    theirs = total(mixture.score_fn(sde, noised_only=False))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.abs(b).max())


@pytest.mark.slow
def test_images_and_their_channels(x64):
    """Any shape of an event: the estimate is element by element."""
    mixture = exact.mixture(np.random.default_rng(0).standard_normal((3, 4, 5, 2)), 0.3)
    for name in ("vp", "psld", "third_order"):
        sde = PROCESSES[name]
        z, t = jax.random.normal(jax.random.key(0), (6, sde.k, 4, 5, 2)), jnp.full(6, 0.2)
        found = from_denoiser(mixture.denoiser(), sde, noised_only=False)(z, t)
        np.testing.assert_allclose(found, mixture.score_fn(sde, noised_only=False)(z, t), rtol=1e-9, atol=1e-9)


def test_what_cannot_be():
    with pytest.raises(InputError, match="Denoiser: give x0 or noise"):
        sdes.Denoiser()
    score_fn = from_denoiser(lambda y, sigma: jnp.concatenate([y, y], axis=-1), sdes.psld())
    with pytest.raises(InputError, match=r"denoiser returned \(3, 4\) for data of shape \(3, 2\)"):
        score_fn(jnp.zeros((3, 2, 2)), jnp.full(3, 0.5))
    with pytest.raises(InputError, match="score_fn: the function that was given predicts the noise eps"):

        def eps_fn(z, t):
            return z

        eps_fn.kind = "eps"
        denoiser(eps_fn, sdes.vp())


@pytest.mark.parametrize("name", tiers.alike(["cld", "psld", "third_order"], ["psld"]))
def test_a_denoiser_asks_about_states_as_the_kernel_makes_them(name):
    """Of law N(m y, Sigma - sigma^2 m m^T), which is that of z given its estimate y; and their estimate is y."""
    sde, asked = PROCESSES[name], []

    def score_fn(z, t):
        asked.append((z, t))
        return -z

    y, sigma = jnp.broadcast_to(jnp.asarray([1.0, -2.0]), (20000, 2)), jnp.full(20000, 0.7)
    for typical in (True, False):
        denoiser(score_fn, sde, typical=typical)(y, sigma)
    (z, t), (line, _) = asked
    look = estimate(sde, t)
    m, factor = look.kernel.mean[0, :, 0], np.asarray(look.kernel.factor[0], np.float64)
    np.testing.assert_allclose(line, m[None, :, None] * y[:, None], rtol=1e-6)
    np.testing.assert_allclose(look.of(z), y, atol=1e-4)
    true = factor @ factor.T - 0.49 * np.outer(m, m)
    for i in range(2):
        off = np.asarray(z[:, :, i] - line[:, :, i], np.float64)
        scale = np.sqrt(np.diag(factor @ factor.T))
        assert np.abs(off.mean(0) / scale).max() < 5 / np.sqrt(len(off))
        assert np.abs((np.cov(off.T) - true) / np.outer(scale, scale)).max() < 5 * np.sqrt(2 / len(off))


def test_a_process_that_forgets_the_data_has_no_denoiser():
    """Its own exact kernel, but for a mean that ends at zero: x_0 cos(pi t / 2)."""

    class Ends(sdes.VE):
        def transition(self, t, matching="hsm"):
            kernel = super().transition(t, matching)
            fall = jnp.where(t < 1, jnp.cos(0.5 * jnp.pi * t), 0.0)
            return dataclasses.replace(kernel, mean=kernel.mean * fall[:, None, None])

    with pytest.raises(InputError, match=r"data column of the process's mean vanishes at t = 1 \(noise level inf\)"):
        from_denoiser(exact.ring().denoiser(), Ends(sigma_min=0.01, sigma_max=50.0))


@pytest.mark.parametrize("name", ["psld", "friction"])
def test_the_score_is_the_same_on_many_devices(name):
    """The batch split over all of them, and no number sent from one to another."""
    mixture, sde = MIXTURES["ring"], PROCESSES[name]
    z, t, _ = states(name, mixture, np.float32)
    mesh = sharding.make_mesh()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.BATCH_AXES))
    score_fn = jax.jit(from_denoiser(mixture.denoiser(), sde, noised_only=False))
    alone = score_fn(jnp.asarray(z), jnp.asarray(t))
    compiled = score_fn.lower(jax.device_put(z, place), jax.device_put(t, place)).compile()
    split = compiled(jax.device_put(z, place), jax.device_put(t, place))
    assert len(mesh.devices.ravel()) > 1 and split.sharding.is_equivalent_to(place, split.ndim)
    assert not any(word in compiled.as_text() for word in ("all-reduce", "all-gather", "collective-permute"))
    scale = np.abs(np.asarray(alone)).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.asarray(split) / scale, np.asarray(alone) / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", tiers.alike(["cld", "psld", "third_order", "recipe4", "oblique", "friction"], ["psld"])
)
@pytest.mark.parametrize("hears", ["eps", "drift"])
def test_of_scores_that_agree_the_nearest_is_found(name, hears):
    """By numpy's least squares, in eps of the noised variables and in g^T score."""
    with jax.enable_x64(True):
        sde, draws = PROCESSES[name], np.random.default_rng(3)
        t = np.array([1.0, 0.6, 0.3, 0.1, 0.03, 0.01])
        times = jnp.asarray(t)
        kernel, noise = sde.transition(times), np.asarray(sde.diffusion(times))
        mean, factor = (np.asarray(v, np.float64) for v in (kernel.mean[:, :, 0], kernel.factor))
        z = np.einsum("nij,nj->ni", factor, draws.standard_normal((len(t), sde.k))) + mean
        told, by_one = (np.linalg.solve(factor @ np.swapaxes(factor, 1, 2), v[:, :, None])[:, :, 0] for v in (z, mean))
        off = by_one - told + draws.standard_normal(z.shape) * np.abs(by_one)  # of x_0 = 1, and an error
        found = score.consistent(lambda z, t: jnp.asarray(off)[:, :, None], sde, hears=hears)
        found = np.asarray(found(jnp.asarray(z)[:, :, None], times))[:, :, 0]
        for i in range(len(t)):
            if hears == "drift":
                look_at = noise[i].T
            else:
                frame = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
                look_at = (frame @ factor[i].T)[sde.k - sde.num_noised :]
            [x0], *_ = np.linalg.lstsq((look_at @ by_one[i])[:, None], look_at @ (off[i] + told[i]), rcond=None)
            np.testing.assert_allclose(found[i], x0 * by_one[i] - told[i], rtol=1e-5, atol=1e-5 * np.abs(off[i]).max())


def off_where_likelihood_does_not_see(sde):
    """The score of a ring in phase space whose data variable is off, as likelihood leaves it; and where to start."""
    truth = exact.ring().score_fn(sde)
    off = lambda z, t: truth(z, t) + 0.6 * jnp.stack([jnp.sin(3 * z[:, 1]), jnp.zeros_like(z[:, 1])], axis=1)  # noqa: E731
    said = score.score_from_eps(lambda z, t: sde.transition(t).eps(off(z, t)), sde, hears="drift")
    return off, said, sde.prior_sample(jax.random.key(0), (64, 2))


def guided(said, sde):
    """The same score through what may be put around one."""
    return {
        "a classifier that knows nothing": samplers.guided_score(said, lambda z, t: jnp.zeros((len(z), 2)), 0, sde=sde),
        "the same network as guide": samplers.cfg_score(said, said, 2.0),
    }


@pytest.mark.parametrize("around", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_network_that_learnt_by_likelihood_is_read_as_it_was_trained(around):
    """Where nobody says so, UniPC by least squares in eps is off ten times as far from the probability flow."""
    sde = sdes.psld()
    off, said, z = off_where_likelihood_does_not_see(sde)
    end = {"initial": z, "denoise": False}
    flow, _ = samplers.ode(jax.random.key(1), off, sde, z.shape[::2], t_min=0.01, rtol=1e-6, atol=1e-6, **end)
    times = samplers.time_grid("quadratic", 60, t_min=0.01, denoise=False)

    def error(score_fn):
        run = jax.jit(lambda z: samplers.unipc(jax.random.key(1), score_fn, sde, z.shape[::2], times=times, **end)[0])
        return float(jnp.sqrt(jnp.mean((run(z) - flow) ** 2)))

    found = error(off)
    for name, score_fn in (guided(said, sde) if around else {"alone": said}).items():
        assert error(score_fn) < 0.1 * found, name


def test_what_a_score_hears_is_kept_by_what_is_put_around_it():
    sde = sdes.psld()
    _, said, _ = off_where_likelihood_does_not_see(sde)
    for name, score_fn in guided(said, sde).items():
        assert score_fn.hears == "drift", name


@pytest.mark.slow
def test_the_analytic_start_follows_what_a_score_hears():
    sde = sdes.psld()
    _, said, z = off_where_likelihood_does_not_see(sde)
    plan = Plan(sampler="unipc", steps=12, grid="auto", analytic_start=True)  # the first score is known
    drawn = [
        draw(plan, jax.random.key(2), fn, sde, z.shape[::2])[0]
        for fn in (said, score.consistent(said, sde, hears="drift"))
    ]
    np.testing.assert_allclose(*drawn, atol=1e-4)


def test_models_say_what_their_training_heard():
    net = models.MLP(out_channels=4, width=8)
    heard = {
        weighting: ScoreModel(sdes.psld(), net, weighting=weighting).score_fn({}).hears
        for weighting in ("simple", "likelihood", "ll", "reweightedv1", "rescale")
    }
    assert heard == {"simple": "eps", "likelihood": "drift", "ll": "drift", "reweightedv1": "drift", "rescale": "eps"}
    with pytest.raises(InputError, match="hears must be 'eps' or 'drift', not 'score'"):
        score.consistent(lambda z, t: z, sdes.psld(), hears="score")
