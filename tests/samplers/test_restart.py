"""Restart: the published program's loop, the law of the jumps, what the contract promises, errors."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers
from sampler_cases import PROCESSES

from sgmjax import exact, metrics, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.samplers import plan as plans
from sgmjax.samplers._restart import ways_down
from sgmjax.samplers.grids import host_noise_level, host_time_at
from sgmjax.samplers.plan import Plan
from sgmjax.score import from_denoiser
from sgmjax.spec import Settings

EDM = sdes.edm(sigma_max=80.0)
INTERVALS = [(3, 1, 19.35, 40.79), (4, 3, 0.59, 1.09)]  # two of those published for ImageNet


def grid(sde, nfe: int, end: float = 0.02):
    return samplers.time_grid("rho", nfe, t_min=float(host_time_at(sde, np.asarray([end]))[0]), sde=sde)


def denoiser(y, sigma):
    s = sigma.reshape(-1, *(1,) * (y.ndim - 1))
    return 1.4 * jnp.tanh(y / (1 + s)) / (1 + 0.1 * s**2)


def published(latent: np.ndarray, levels: np.ndarray, noises: list[np.ndarray]) -> np.ndarray:
    """Alg. 1 of Xu et al. 2023 in noise levels, with Heun's method, in numpy. levels: of the grid."""

    def heun(x, levels):
        for sigma, below in zip(levels[:-1], levels[1:], strict=True):
            d = (x - np.asarray(denoiser(x, np.full(len(x), sigma)))) / sigma
            euler = x + (below - sigma) * d
            d_below = (euler - np.asarray(denoiser(euler, np.full(len(x), below)))) / below
            x = x + (below - sigma) * 0.5 * (d + d_below)
        return x

    x, at, draws = latent * levels[0], 0, iter(noises)
    for count, repeats, low, high in INTERVALS:
        end = int(np.argmin(abs(levels - low)))
        x, at = heun(x, levels[at : end + 1]), end
        again = np.linspace(high ** (1 / 7), levels[end] ** (1 / 7), count) ** 7
        for _ in range(repeats):
            x = heun(x + np.sqrt(high**2 - levels[end] ** 2) * next(draws), again)
    x = heun(x, levels[at:])
    return np.asarray(denoiser(x, np.full(len(x), levels[-1])))


def test_published_algorithm():
    """Heun's method of EDM with given noise, in float64; the official program gives the same to 1e-15 of its scale."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        latent, noises = rng.normal(size=(3, 4)), rng.normal(size=(4, 3, 4))
        times = grid(EDM, 18, 0.002)
        x, info = samplers.restart(
            samplers.edm, jax.random.key(0), from_denoiser(denoiser, EDM), EDM, (3, 4), times=times,
            intervals=INTERVALS, initial=jnp.asarray(latent * 80.0)[:, None], jump_noise=noises[:, :, None],
            dtype=jnp.float64,
        )  # fmt: skip
        true = published(latent, host_noise_level(EDM, times), list(noises))
    assert np.abs(true).max() > 0.3
    np.testing.assert_allclose(x, true, rtol=0, atol=1e-9 * np.abs(true).max())
    assert info.nfe == 2 * 17 + 1 + 2 * (2 * 1 + 3 * 3)


RING = exact.ring(std=0.3)


@pytest.mark.parametrize(
    "sampler, name",
    tiers.alike(itertools.product(["unipc", "sscs"], ["vp", "cld", "psld"]), [("unipc", "vp"), ("sscs", "psld")]),
)
def test_law_and_forgetting(name: str, sampler: str):
    """All start from one state, from which the flow reaches one point; restarts from a level of 3 give the ring's law.

    Two sets of 2,000 true draws are 0.04 apart.
    """
    sde = PROCESSES[name][0]
    options = {"times": grid(sde, 60), "denoise": "tweedie", "initial": jnp.zeros((2000, sde.k, 2)) + 0.3}
    run = {
        repeats: jax.jit(
            lambda key, repeats=repeats: samplers.restart(
                samplers.SAMPLERS[sampler], key, RING.score_fn(sde), sde, (2000, 2),
                intervals=[(40, repeats, 0.1, 3.0)] if repeats else [], **options,
            )[0]
        )
        for repeats in ((0, 4) if sampler == "unipc" else (4,))  # SSCS forgets where it began without restarts
    }  # fmt: skip
    true, _ = RING.sample(jax.random.key(1), 2000)
    off = {repeats: float(metrics.sliced_wasserstein(one(jax.random.key(0)), true)) for repeats, one in run.items()}
    assert off[4] < 0.1, off
    if sampler == "unipc":
        assert off[0] > 0.8, off


@pytest.mark.parametrize("name", tiers.alike(["ve", "psld"], ["psld"]))
def test_trajectory_progress_and_counts(name: str):
    sde, called, seen = PROCESSES[name][0], [], []

    def score_fn(z, t):
        jax.debug.callback(lambda: called.append(1))
        return sde.expand(sde.restrict(-jnp.tanh(z)))

    def run(**more):
        return samplers.restart(
            samplers.deis, jax.random.key(0), score_fn, sde, (2, 3), times=grid(sde, 9), intervals=[(3, 2, 0.5, 2.0)],
            denoise=True, **more,
        )  # fmt: skip

    x, info = jax.jit(lambda: run(trajectory=True, progress=lambda i: seen.append(int(i))))()
    jax.effects_barrier()
    way = ways_down(sde, grid(sde, 9), [(3, 2, 0.5, 2.0)])[0]
    assert info.nfe == len(called) == 8 + 2 * 2 + 1
    assert info.trajectory.shape == (1 + 8 + 2 * (2 + 1), 2, sde.k, 3)
    assert sorted(seen) == [way.last, way.last + 4, 12]
    assert not np.allclose(info.trajectory[way.last], info.trajectory[way.last + 1], atol=0.1)  # the jump
    np.testing.assert_array_equal(x, jax.jit(run)()[0])

    plain = samplers.deis(jax.random.key(3), score_fn, sde, (2, 3), times=grid(sde, 9))
    none = samplers.restart(
        samplers.deis, jax.random.key(3), score_fn, sde, (2, 3), times=grid(sde, 9), intervals=[], initial=None
    )
    assert none[0].shape == plain[0].shape
    assert none[1].nfe == plain[1].nfe == 9


def test_a_constraint_holds_on_every_way_down():
    sde, x0 = PROCESSES["psld"][0], jnp.asarray([1.0, 0.0])
    constraint = samplers.inpaint(sde, x0, jnp.asarray([1.0, 0.0]))

    @jax.jit
    def run(key):
        return samplers.restart(
            samplers.exponential_midpoint, key, RING.score_fn(sde), sde, (64, 2), times=grid(sde, 12),
            intervals=[(3, 2, 0.5, 2.0)], constraint=constraint, denoise="tweedie",
        )[0]  # fmt: skip

    np.testing.assert_allclose(run(jax.random.key(0))[:, 0], 1.0, atol=1e-5)


def test_a_plan_spends_its_budget():
    """Heun with the published interval for CIFAR-10: 18 levels and 43 evaluations."""
    plan = Plan(sampler="edm", grid="rho", steps=43, restarts=((3, 2, 0.06, 0.3),), t_min=2e-3)
    assert plans.grid_steps(plan) == 17
    plans.check(plan, sdes.vp())
    info = jax.jit(lambda: plans.draw(plan, jax.random.key(0), lambda z, t: -z, sdes.vp(), (2, 3))[1].nfe)()
    assert info == 43


def test_a_later_start_is_for_samplers_on_a_grid():
    plan, z = Plan(sampler="ode"), jnp.zeros((2, 1, 3))
    with pytest.raises(InputError, match="start = 0.5: ode chooses its own steps, from t = 1"):
        plans.draw(plan, jax.random.key(0), lambda z, t: -z, sdes.vp(), (2, 3), start=0.5, initial=z)


BAD = [
    ({"steps": 12}, "the restarts alone take 8 evaluations, and two steps and the last one 5; give 13 or more"),
    ({"sampler": "ode"}, "restarts are for samplers that step through a grid, and ode does not"),
    ({"options": Settings(S_churn=3.0)}, "edm cannot be restarted with these settings"),
    ({"sampler": "annealed_langevin"}, "annealed_langevin cannot be restarted"),
    ({"sampler": "pc", "grid": "score_sde"}, "grid 'score_sde' goes down once"),
    ({"restarts": ((3, 2, 0.06, 900.0),)}, "at most at its first, 152.1"),
    ({"restarts": ((3, 2, 0.06, 0.04),)}, "the noise levels must be positive, low below high"),
    ({"restarts": ((1, 2, 0.06, 0.3),)}, "with 2 levels or more"),
    ({"restarts": ((3, 2.5, 0.06, 0.3),)}, "at least 1 repeat"),
    ({"restarts": ((3, 2, 0.06),)}, r"an interval is \(levels, repeats, low, high\)"),
    ({"restarts": ((3, 2, 1e-4, 0.3),)}, "the grid's level nearest to low is its last"),
    ({"restarts": ((3, 2, 145.0, 150.0),)}, "the grid's level nearest to low is its first"),
    ({"restarts": ((3, 1, 0.06, 0.3), (3, 1, 0.061, 0.4))}, "another one starts from the same level"),
]


@pytest.mark.parametrize("settings, message", BAD, ids=[message for _, message in BAD])
def test_errors(settings: dict, message: str):
    base = {"sampler": "edm", "grid": "rho", "steps": 43, "restarts": ((3, 2, 0.06, 0.3),), "t_min": 2e-3}
    with pytest.raises(ValueError, match=message) as caught:
        plans.check(Plan(**(base | settings)), sdes.vp())
    assert "\n" not in str(caught.value)


def test_errors_of_the_function():
    def run(sde=EDM, **options):
        options = {"times": grid(EDM, 9), "intervals": [(3, 2, 0.5, 2.0)]} | options
        return samplers.restart(samplers.unipc, jax.random.key(0), lambda z, t: -z, sde, (2, 3), **options)

    for options, message in (
        ({"jump_noise": np.zeros((3, 2, 1, 3))}, r"jump_noise has shape \(3, 2, 1, 3\), expected \(2, 2, 1, 3\)"),
        ({"noise": np.zeros((3, 1, 2, 1, 3))}, "noise is of one way down a grid"),
        ({"S_noise": 0.0}, "S_noise = 0: must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**options)
    with pytest.raises(ValueError, match="the parameters of the process must be known"):
        jax.jit(lambda sde: run(sde)[0])(sdes.vp())
