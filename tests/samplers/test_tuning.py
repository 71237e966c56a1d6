"""Grids by measurement: the errors of single steps, the cheapest selection by trying all, and grids that are better."""

from __future__ import annotations

import itertools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.samplers import tuning

RING = exact.ring()
PROCESSES = analytic.PROCESSES | analytic.NEW
OPTIMIZED = True


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_of_all_selections(seed):
    n, steps = 8, 4
    draws = np.random.default_rng(seed)
    i, j, k = np.ogrid[:n, :n, :n]
    cost = np.where((i <= j) & (j < k), draws.uniform(size=(n, n, n)), np.inf)
    last = draws.uniform(size=n)

    def total(levels):
        found = cost[0, 0, levels[1]] + last[levels[-1]]
        return found + sum(cost[levels[m - 1], levels[m], levels[m + 1]] for m in range(1, steps))

    every = [(0, *rest) for rest in itertools.combinations(range(1, n), steps)]
    assert tuple(tuning.cheapest(cost, last, steps)) == min(every, key=total)


@pytest.mark.parametrize("name", tiers.alike(["vp", "cld", "psld", "third_order", "friction"], ["psld"]))
def test_errors_of_steps_are_those_of_the_sampler(name):
    """From the teacher's own states, DPM-Solver++ 2M with the level before, and gDDIM without: where they end."""
    sde = PROCESSES[name]
    run = tuning._Run(lambda _: RING.score_fn(sde), (), sde, True)
    teacher = tuning.follow(jax.random.key(0), run, sde, (64, 2), t_min=1e-3, levels=12)
    errors = tuning.step_errors(teacher)
    flow = samplers.exponential.host_flow(sde, np.append(teacher.times, 1e-3))  # which fixes the rotation in R
    R = flow.R if sde.frame is None else np.asarray(sde.frame).T @ flow.R
    states = np.einsum("nij,njbs->nbis", R[:-1], teacher.eta)
    size = np.std(teacher.samples)
    for i, j, k in ((2, 4, 7), (4, 5, 6), (3, 3, 9), (0, 0, 2)):
        times = teacher.times[[i, j, k] if i < j else [j, k]]
        c = samplers.exponential_coefficients(sde, times, method="dpm_solver_pp", order=2)
        c = jax.tree.map(lambda v: jnp.asarray(v[-1], jnp.float32), c)
        z = jnp.asarray(states[j], jnp.float32)
        score = RING.score_fn(sde)(z, jnp.full(len(z), times[-2]))
        out, _, _ = samplers.exponential.step(score, c, z, (jnp.asarray(teacher.data[i], jnp.float32)[:, None],))
        inverse = np.linalg.inv(R[k])
        missed = np.einsum("ij,bjs->bis", inverse, np.asarray(out, np.float64)) - np.swapaxes(teacher.eta[k], 0, 1)
        weight = teacher.levels[k] / np.sqrt(1 + (teacher.levels[k] / size) ** 2)
        expected = weight * np.sqrt(np.mean(np.sum(missed**2, axis=1)))
        np.testing.assert_allclose(errors[i, j, k], expected, rtol=2e-2, atol=2e-4)
    assert np.isinf(errors[3, 2, 5]) and np.isinf(errors[2, 5, 4])


@pytest.mark.parametrize("name", tiers.alike(["vp", "cld", "psld", "flow"], ["psld"]))
def test_a_tuned_grid_is_nearer_than_the_plain_ones(name):
    sde, lines = PROCESSES[name], []
    found = samplers.tune_grid(
        jax.random.key(0), RING.score_fn(sde), sde, (64, 2), steps=6, denoise="tweedie", levels=40, refine=30,
        progress=lines.append,
    )  # fmt: skip
    assert found.times.shape == (7,) and found.times[0] == 1.0 and (np.diff(found.times) < 0).all()
    assert found.error < 0.8 * min(found.plain.values()) and len(lines) == 2
    # the error is what it says, of other starts too
    score_fn = RING.score_fn(sde)
    start = samplers.common.start_state(jax.random.key(5), sde, (64, 2), None, jnp.float32)

    def draw(times, sampler, **options):
        options = {"denoise": "tweedie", "initial": start} | options
        return np.asarray(
            samplers.SAMPLERS[sampler](jax.random.key(0), score_fn, sde, (64, 2), times=times, **options)[0]
        )

    many = draw(samplers.time_grid("logsnr", 200, sde=sde), "dpm_solver_pp", order=3)
    error = np.sqrt(np.mean((draw(found.times, "unipc") - many) ** 2)) / np.std(many)
    assert error < 2 * found.error


def test_of_a_sampler_that_is_not_tried():
    """SSCS: the best grid for a step of first order, by the teacher alone."""
    sde = sdes.vp()
    found = samplers.tune_grid(jax.random.key(0), RING.score_fn(sde), sde, (32, 2), steps=5, sampler="sscs", levels=20)
    assert found.error is None and found.plain == {} and len(found.times) == 6


def test_variables_are_arguments():
    """The grid is that of the score that they make."""
    sde = sdes.vp()
    known = RING.score_fn(sde)
    for scale in (0.5, 1.0):
        two = [
            samplers.tune_grid(jax.random.key(0), score_fn, sde, (32, 2), steps=4, levels=20, variables=variables)
            for score_fn, variables in (
                (lambda z, t, scale=scale: scale * known(z, t), None),
                (lambda scale: lambda z, t: scale * known(z, t), scale),
            )
        ]
        np.testing.assert_allclose(two[0].times, two[1].times, rtol=1e-12)


BAD = {
    "steps": ({"steps": 20}, "steps = 20: must be from 1 to levels - 1 = 19"),
    "refine": ({"sampler": "em", "refine": 5}, "refine = 5: 'em' .* is no exponential integrator without noise"),
    "noise": ({"sampler": "sa_solver", "refine": 5}, "refine = 5: 'sa_solver'"),
    "t_min": ({"t_min": 0.0}, "t_min = 0"),
    "option": ({"options": {"order": 9}}, "order = 9"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label):
    options, message = BAD[label]
    with pytest.raises(InputError, match=message) as caught:
        samplers.tune_grid(
            jax.random.key(0), RING.score_fn(sdes.vp()), sdes.vp(), (4, 2), **({"steps": 3, "levels": 20} | options)
        )
    assert "\n" not in str(caught.value)
