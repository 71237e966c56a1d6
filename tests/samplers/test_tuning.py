"""Grids by measurement: the errors of single steps, the cheapest selection by trying all, and grids that are better."""

from __future__ import annotations

import dataclasses
import itertools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.samplers import refinement, tuning
from sgmjax.samplers.plan import Plan, check, draw, starts_analytically
from sgmjax.spec import Settings

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


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers.alike(["vp", "cld", "psld", "third_order", "friction"], ["psld"]))
def test_errors_of_steps_are_those_of_the_sampler(name):
    """From the teacher's own states, DPM-Solver++ 2M with the level before, and gDDIM without: where they end."""
    sde = PROCESSES[name]
    run = refinement.Run(lambda _: RING.score_fn(sde), (), sde, True)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers.alike(["vp", "cld", "psld", "flow"], ["psld"]))
def test_a_tuned_grid_is_nearer_than_the_plain_ones(name):
    sde, lines = PROCESSES[name], []
    found = samplers.tune_grid(
        jax.random.key(0), RING.score_fn(sde), sde, (64, 2), steps=6, denoise="tweedie", levels=40, refine=3,
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


@pytest.mark.parametrize(
    "name, method, options",
    tiers.alike(
        [(name, method, {"order": 2}) for name in ("vp", "cld", "psld") for method in ("unipc", "deis")]
        + [("third_order", "unipc", {"order": 2})],
        [("cld", "unipc", {"order": 2})],
    ),
)
def test_slopes_are_those_of_what_is_missed(name, method, options):
    """By levels and by weights, against differences of `miss` along the slope.

    Not DEIS for third order: on this grid float32 alone moves its samples by a tenth (docs/samplers.md).
    """
    sde = PROCESSES[name]
    run = refinement.Run(lambda _: RING.score_fn(sde), (), sde, True)
    teacher = tuning.follow(jax.random.key(0), run, sde, (64, 2), t_min=1e-3, levels=12)
    times = samplers.time_grid("rho", 6, t_min=1e-2, sde=sde)
    known = samplers.exponential_coefficients(sde, times, method=method, **options)
    size = float(np.std(teacher.samples))

    def missed(weights, times=times):
        c = samplers.exponential_coefficients(sde, times, method=method, weights=weights, **options)
        return run.miss(teacher.start, teacher.samples, size, c, times)

    value, by_matrix, by_time = run.slope(teacher.start, teacher.samples, size, known, times)
    by_weight = samplers.exponential.slope_by_weights(known, by_matrix)
    unit = refinement._unit(known)
    assert value == pytest.approx(missed(0 * by_weight), rel=1e-5)
    assert np.all(unit[0, 1:] == 0.0) and np.all(unit[2:].max(axis=(2, 3)) > 0.0)
    way = unit**2 * by_weight
    size_of_step = 0.02 * value / np.sum(way * by_weight)
    change = missed(size_of_step * way) - missed(-size_of_step * way)
    assert change == pytest.approx(0.04 * value, rel=0.05)
    for i in range(1, len(times)):
        moved = [times.copy(), times.copy()]
        for one, sign in zip(moved, (1, -1)):
            one[i] *= 1 + sign * 1e-3
        ends = [samplers.exponential_coefficients(sde, one, method=method, **options) for one in moved]
        slope = by_time[i] * (moved[0][i] - moved[1][i])
        slope += sum(np.sum(d * (b - a)) for d, b, a in zip(by_matrix, *ends) if d is not None)
        change = missed(0 * by_weight, moved[0]) - missed(0 * by_weight, moved[1])
        assert change == pytest.approx(slope, rel=0.05, abs=2e-5 * value)


def test_weights_turn_one_method_into_another():
    """UniPC with one of its variants is that without, and the difference of their weights."""
    sde = PROCESSES["psld"]
    times = samplers.time_grid("rho", 8, sde=sde)
    one, other = (samplers.exponential_coefficients(sde, times, method="unipc", variant=v) for v in ("exact", "bh2"))
    toward = np.swapaxes(one.from_score, 1, 2)
    total = (other.push - one.push) @ toward / np.sum(toward**2, axis=1, keepdims=True)
    older = other.weights - one.weights
    weights = np.concatenate([(total - older.sum(axis=1))[:, None], older], axis=1)
    for given in (weights, weights.ravel(), tuple(weights.ravel())):
        found = samplers.exponential_coefficients(sde, times, method="unipc", weights=given)
        for a, b in zip(found, other):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12) if a is not None else None
    with pytest.raises(InputError, match=r"weights have shape \(7, 3, 2, 1\): .* have \(8, 3, 2, 1\)"):
        samplers.exponential_coefficients(sde, np.append(times, 1e-4), method="unipc", weights=weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "cld", "psld"])
def test_learned_weights_are_nearer_still(name):
    """To the teacher, and in law: of four evaluations and the last step, on starts that they have not seen.

    In phase space by 15% and more. For VP by 1 to 12%, as rounding leads the search: the grid alone does nearly all.
    """
    sde = PROCESSES[name]
    score_fn, options = RING.score_fn(sde), {"order": 3}
    found = [
        samplers.tune_grid(
            jax.random.key(0), score_fn, sde, (256, 2), steps=4, options=options, denoise="tweedie", levels=40,
            refine=20, weights=weights,
        )
        for weights in (False, True)
    ]  # fmt: skip
    assert found[0].weights is None and found[1].weights.shape == (4, 4, sde.k, 1)
    assert found[1].error < (0.95 if sde.k > 1 else 1.0) * found[0].error

    def missed(one):
        c = samplers.exponential_coefficients(sde, one.times, method="unipc", weights=one.weights, **options)
        draw = {"times": one.times, "coefficients": c, "denoise": "tweedie", "initial": start}
        x = samplers.unipc(jax.random.key(0), score_fn, sde, (2000, 2), **draw)[0]
        return float(refinement.miss(x, many, float(np.std(many))))

    start = samplers.common.start_state(jax.random.key(5), sde, (2000, 2), None, jnp.float32)
    grid = samplers.time_grid("logsnr", 200, sde=sde)
    many = samplers.dpm_solver_pp(jax.random.key(0), score_fn, sde, (2000, 2), times=grid, order=3, initial=start)[0]
    assert missed(found[1]) < missed(found[0]) < 2 * found[0].error


@pytest.mark.parametrize("name", tiers.alike(["vp", "psld"], ["psld"]))
def test_the_analytic_start_is_found_and_free(name):
    """Of normal data it is their score: the same samples for an evaluation less."""
    sde, mean = PROCESSES[name], np.array([1.0, -2.0])
    data = exact.mixture(mean[None], 0.3)
    found = samplers.tune_grid(
        jax.random.key(0), data.score_fn(sde), sde, (64, 2), steps=5, levels=30, denoise="tweedie", analytic_start=True
    )
    np.testing.assert_allclose(found.mean, mean, atol=0.01)
    np.testing.assert_allclose(found.std, 0.3, atol=0.06)  # of 64 samples: 4 standard errors
    plan = Plan(sampler="unipc", steps=5, grid="tuned", denoise="tweedie", times=tuple(map(float, found.times)))
    free = dataclasses.replace(plan, data_mean=tuple(map(float, found.mean)), data_std=found.std)
    full = dataclasses.replace(plan, steps=6)
    draws = [draw(one, jax.random.key(1), data.score_fn(sde), sde, (32, 2)) for one in (free, full)]
    assert [info.nfe for _, info in draws] == [5, 6]
    np.testing.assert_allclose(draws[0][0], draws[1][0], atol=0.01)


def test_an_analytic_start_has_errors_of_one_line():
    given = {"sampler": "unipc", "steps": 3, "grid": "tuned", "times": (1.0, 0.5, 0.1, 0.05), "data_mean": (0.0, 1.0)}
    check(Plan(**given), sdes.vp())
    for other, message in (
        ({"sampler": "em"}, "em does not ask for the score at t = 1"),
        ({"times": (1.0, 0.5, 0.1)}, "takes `times`, 4 of them for steps = 3, and has 3"),
    ):
        with pytest.raises(InputError, match=message):
            check(Plan(**given | other), sdes.vp())
    with pytest.raises(InputError, match="it was tuned to examples of 2 numbers"):
        draw(Plan(**given), jax.random.key(0), lambda z, t: -z, sdes.vp(), (2, 3))
    with pytest.raises(InputError, match="analytic_start: 'em'"):
        samplers.tune_grid(
            jax.random.key(0), lambda z, t: -z, sdes.vp(), (2, 3), sampler="em", steps=3, analytic_start=True
        )


def test_a_given_grid_is_where_it_begins():
    sde = sdes.vp()
    low = float(samplers.grids.host_time_at(sde, np.array([0.03]))[0])
    times = samplers.time_grid("rho", 4, t_min=low, denoise=False, sde=sde)
    tune = {"steps": 4, "levels": 20, "times": times}
    found = samplers.tune_grid(jax.random.key(0), RING.score_fn(sde), sde, (32, 2), **tune)
    np.testing.assert_array_equal(found.times, times)
    assert found.error == found.plain["rho to 0.03"] and found.weights is None
    moved = samplers.tune_grid(jax.random.key(0), RING.score_fn(sde), sde, (32, 2), refine=2, **tune)
    assert moved.error < found.error and moved.plain == found.plain


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
    "other times": ({"times": [1.0, 0.5]}, "times has 1 steps, and steps = 3"),
    "times": ({"times": [1.0, 0.5, 0.3, 0.1], "sampler": "em"}, "times: 'em' is not tried out"),
    "weights": ({"weights": True}, "weights: they are learned in the iterations of `refine`, and refine = 0"),
    "t_min": ({"t_min": 0.0}, "t_min = 0"),
    "option": ({"options": {"order": 9}}, "order = 9"),
    "sampler": ({"sampler": "unicp"}, "sampler: 'unicp' is unknown; choose one of"),
    "no grid": ({"sampler": "ode"}, "sampler: 'ode' chooses its own steps and takes no grid"),
    "setting": ({"options": {"ordr": 3}}, "options.ordr: sampler 'unipc' has no such setting; there are order"),
    "setting, not tried": ({"sampler": "sscs", "options": {"ordr": 3}}, "options.ordr: sampler 'sscs' has no such"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label):
    options, message = BAD[label]
    with pytest.raises(InputError, match=message) as caught:
        samplers.tune_grid(
            jax.random.key(0), RING.score_fn(sdes.vp()), sdes.vp(), (4, 2), **({"steps": 3, "levels": 20} | options)
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", ["repeats", "restarts"])
def test_a_free_start_is_free_as_often_as_it_is_made(more):
    """Of steps that are repeated, and of restarts from the top: the network's calls are counted."""
    sde, called = sdes.psld(), []

    def score_fn(z, t):
        jax.debug.callback(lambda: called.append(1))
        return sde.expand(sde.restrict(-z))

    plan, control = Plan(sampler="unipc", steps=6, grid="auto"), {}
    if more == "repeats":
        control["constraint"] = samplers.inpaint(sde, jnp.zeros((2, 2)), jnp.array([1, 0]), repeats=3, jump=2)
    else:
        top = float(sdes.noise_level(sde, jnp.ones(1, jnp.float32))[0])
        plan = dataclasses.replace(plan, steps=9, restarts=((2, 2, 1.0, top),))
    info = jax.jit(lambda: draw(plan, jax.random.key(0), score_fn, sde, (2, 2), **control)[1].nfe)()
    jax.effects_barrier()
    assert info == len(called)


@pytest.mark.parametrize("name", tiers.alike(["vp", "psld"], ["psld"]))
def test_the_grid_auto_starts_analytically(name):
    """A step more for the same evaluations; of standard normal data the first score is the very same."""
    sde, data = PROCESSES[name], exact.mixture(np.zeros((1, 3)), 1.0)
    called: list = []

    def score_fn(z, t):
        jax.debug.callback(lambda: called.append(1))
        return data.score_fn(sde)(z, t)

    plan = Plan(sampler="unipc", steps=6, grid="auto", options=Settings(order=3), t_min=1e-5)
    x, info = jax.jit(lambda: draw(plan, jax.random.key(0), score_fn, sde, (16, 3)))()
    jax.effects_barrier()
    assert info.nfe == 6 == len(called)
    off = dataclasses.replace(plan, analytic_start=False)
    other = draw(dataclasses.replace(off, steps=7), jax.random.key(0), data.score_fn(sde), sde, (16, 3))
    assert other[1].nfe == 7
    np.testing.assert_allclose(x, other[0], atol=1e-4)
    # from a later start there is none, nor near the data, nor for samplers that do not ask at t = 1
    later = draw(
        plan, jax.random.key(0), data.score_fn(sde), sde, (16, 3), start=0.5, initial=jnp.zeros((16, sde.k, 3))
    )
    assert later[1].nfe == 6
    assert not starts_analytically(plan, sdes.ve(sigma_max=5.0)) and starts_analytically(plan, sdes.ve())
    assert not starts_analytically(dataclasses.replace(plan, sampler="sscs", options=Settings()), sde)
    with pytest.raises(InputError, match="analytic_start: with grid 'auto' and one of ddim"):
        check(Plan(sampler="unipc", steps=6, grid="rho", analytic_start=True), sde)
