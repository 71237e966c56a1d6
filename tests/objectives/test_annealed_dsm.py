"""Annealed denoising score matching: the paper's formula by hand, the levels that are drawn, what networks are told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import objectives, score, sdes

L = 7
VE = sdes.ve(sigma_max=3.0, sigma_min=0.1)
SIGMAS = sdes.geometric_levels(3.0, 0.1, L)
EVENT = (2, 3)


def column(v, x):
    return v.reshape(-1, *(1,) * (x.ndim - 1))


def scores(x, sigma):
    """A score network of sigma."""
    return jnp.sin(x) / column(sigma, x) - 0.1


@pytest.mark.parametrize("power", [2.0, 1.0, 0.0, 3.5])
def test_loss_is_the_papers(power: float):
    rng = np.random.default_rng(0)
    x, noise, level = rng.normal(size=(4, *EVENT)), rng.normal(size=(4, *EVENT)), np.array([0, 2, 5, L - 1])
    sigma = SIGMAS[level]
    perturbed = x + column(sigma, x) * noise
    error = np.sin(perturbed) / column(sigma, x) - 0.1 + (perturbed - x) / column(sigma, x) ** 2
    by_hand = 0.5 * np.sum(error**2, axis=(1, 2)) * sigma**power
    eps_fn = score.eps_from_network(scores, VE, parameterization="score", time_conditioning="sigma")
    t = jnp.asarray(sdes.level_times(L)[level], jnp.float32)
    z0, eps = (jnp.asarray(v, jnp.float32)[:, None] for v in (x, noise))
    loss = objectives.annealed_dsm_loss(eps_fn, VE, z0, t, eps, anneal_power=power)
    np.testing.assert_allclose(loss, by_hand, rtol=2e-5)  # float32: rounding of 20 operations
    if power == 2:
        simple = objectives.score_matching_loss(eps_fn, VE, z0, t, eps, reduce="half_sum")
        np.testing.assert_allclose(loss, simple, rtol=1e-6)


def test_weighting_exists_where_there_is_one_noise_level():
    x0, t = jnp.ones((2, 3)), jnp.full((2,), 0.5)
    for sde in (sdes.vp(), sdes.subvp()):  # sigma^1 |score error|^2 = |eps error|^2 / sigma
        sigma = sde.transition(t).factor[:, 0, 0]
        loss = [
            objectives.score_matching_loss(
                lambda z, t: jnp.zeros_like(z), sde, sde.augment(x0), t, jnp.ones((2, 1, 3)), weighting=weighting,
                anneal_power=1.0,
            )
            for weighting in ("annealed", "simple")
        ]  # fmt: skip
        np.testing.assert_allclose(loss[0], loss[1] / sigma, rtol=1e-6)
    psld = sdes.psld()
    with pytest.raises(ValueError, match="'annealed' needs one noise level"):
        objectives.score_matching_loss(
            lambda z, t: z, psld, psld.augment(x0), t, jnp.ones((2, 2, 3)), weighting="annealed"
        )  # fmt: skip


def test_levels_are_drawn_alike_with_weight_one():
    times = objectives.levels(L)
    u = jnp.asarray((np.arange(70 * L) + 0.5) / (70 * L), jnp.float32)
    t, weight = times.sample(u)
    found, counts = np.unique(np.asarray(t), return_counts=True)
    np.testing.assert_allclose(found, sdes.level_times(L)[::-1], atol=1e-7)
    assert (counts == 70).all() and (weight == 1).all()
    assert times.sample(jnp.asarray([0.0, 1.0 - 2**-24])).t.tolist() == [1.0, 0.0]  # the ends of what uniform gives
    with pytest.raises(ValueError, match="at least two noise levels"):
        objectives.levels(1)


def test_whole_objective_draws_levels_and_can_be_transformed():
    def eps_fn(z, t):
        return jnp.tanh(z) * column(t, z)

    x0 = jax.random.normal(jax.random.key(0), (64, *EVENT))
    run = jax.jit(lambda key, sde, x0: objectives.annealed_dsm(key, eps_fn, sde, x0, num_levels=L, anneal_power=1.0))
    losses = run(jax.random.key(1), VE, x0)
    assert losses.shape == (64,) and np.isfinite(losses).all()
    seen: list = []

    def record(z, t):
        seen.extend(np.asarray(t).tolist())
        return z

    objectives.annealed_dsm(jax.random.key(1), record, VE, x0, num_levels=L)
    assert {round((1 - t) * (L - 1), 5) for t in seen} == set(range(L))


def test_networks_are_told_the_nearest_level():
    t = jnp.asarray(sdes.level_times(2311), jnp.float32)
    level = score.condition(VE, t, "level", 2311)
    assert level.dtype == jnp.int32 and level.tolist() == list(range(2311))
    between = score.condition(VE, jnp.asarray([0.99, 0.6, 0.01]), "level", 3)
    assert between.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="needs num_levels"):
        score.condition(VE, t, "level")


# ---- against the recorded losses of the official program

ARRAYS = refdata.load_npz("ncsnv2_losses.npz")


def state(x):
    """NCHW as (batch, 1, H, W, C)."""
    return jnp.moveaxis(jnp.asarray(x, jnp.float64), 1, -1)[:, None]


@pytest.mark.parametrize("case", refdata.cases(ARRAYS, r"(f64/.*)/per_example"))
def test_recorded_losses(x64, case):
    """Of a network that is given the index of the level, with and without technique 3's division."""
    sigmas, labels = np.asarray(ARRAYS["sigmas"], np.float64), ARRAYS["labels"]
    _, divide, power = case.split("/")

    def network(x, label):
        out = 0.1 * jnp.sin(x) + 0.05 * jnp.cos(0.01 * column(label, x))
        return out / column(jnp.asarray(sigmas)[label], x) if divide.endswith("1") else out

    sde = sdes.ve(sigma_max=float(sigmas[0]), sigma_min=float(sigmas[-1]))
    eps_fn = score.eps_from_network(
        network, sde, parameterization="score", time_conditioning="level", num_levels=len(sigmas)
    )
    t = jnp.asarray(sdes.noise_levels.times_of_levels(sigmas)[labels])
    losses = objectives.annealed_dsm_loss(
        eps_fn, sde, state(ARRAYS["samples"]), t, state(ARRAYS["noise"]),
        anneal_power=float(power.removeprefix("anneal_power")),
    )  # fmt: skip
    np.testing.assert_allclose(losses, ARRAYS[f"{case}/per_example"], rtol=1e-9)
    np.testing.assert_allclose(jnp.mean(losses), ARRAYS[case], rtol=1e-9)
    official = case.replace("f64", "official", 1)
    np.testing.assert_allclose(losses, ARRAYS[f"{official}/per_example"], rtol=1e-5)
