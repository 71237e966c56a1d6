"""What every sampler promises, for every process: shapes, NFE, one compilation, replay, split batches, errors."""

from __future__ import annotations

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers
from sampler_cases import CASES, FINE, GRID, PROCESSES, STEPS, T_MIN

from sgmjax import exact, metrics, samplers, score, sdes, sharding
from sgmjax.samplers._euler_maruyama import em_step
from sgmjax.samplers._sscs import sscs_step

BATCH, EVENT = 3, (4, 2)


def network_like(sde, called=None):
    """A bounded score of the noised variables that depends on z and t; `called` counts evaluations on the host."""

    def score_fn(z, t):
        if called is not None:
            jax.debug.callback(lambda: called.append(1))
        slope = (1 + t).reshape(-1, *(1,) * (z.ndim - 1))
        return sde.expand(sde.restrict(-jnp.tanh(slope * z)))

    return score_fn


def prepared(label: str, sde, times=GRID) -> dict:
    case = CASES[label]
    return case.prepare(sde, times) if case.prepare else {}


def draw(label: str, key, sde, *, called=None, batch=BATCH, event=EVENT, **options):
    case = CASES[label]
    return samplers.SAMPLERS[case.sampler](
        key, network_like(sde, called), sde, (batch, *event), **(case.options | options)
    )  # fmt: skip


BASIC = ("em", "sscs", "pc", "deis", "exponential_midpoint", "ode")  # one of each kind, for more processes


FIRST = list({case.sampler: label for label, case in reversed(CASES.items())}.values())  # line of each sampler


def in_turn(*others: str, labels):
    """All of the table: `labels` with PSLD (or what comes first) at once, BASIC with `others` too, the rest slow."""
    at_once = {label: CASES[label].processes for label in labels}
    cases = {(label, "psld" if "psld" in names else names[0]) for label, names in at_once.items()}
    cases |= {(label, name) for label in BASIC for name in others}
    every = [(label, name) for label, case in CASES.items() for name in case.processes]
    return pytest.mark.parametrize("label, name", tiers.alike(every, cases))


@in_turn("ve", labels=FIRST)
def test_samples_counts_and_compilations(label: str, name: str):
    """One compiled function serves a process of other parameters, and reports the evaluations it makes."""
    sde, other = PROCESSES[name]
    called: list = []
    run = jax.jit(lambda key, sde, host: draw(label, key, sde, called=called, **host))
    results = []
    for process in (sde, other):
        called.clear()
        x, info = run(jax.random.key(0), process, prepared(label, process))
        jax.effects_barrier()
        assert x.shape == (BATCH, *EVENT) and x.dtype == jnp.float32
        assert info.state.shape == (BATCH, sde.k, *EVENT) and info.trajectory is None
        assert np.all(np.isfinite(info.state)) and np.array_equal(info.state[:, 0], x)
        assert np.max(info.nfe) == len(called)
        assert np.shape(info.nfe) == ((BATCH,) if label.endswith("per_sample") else ())
        if CASES[label].nfe is not None:
            assert info.nfe == CASES[label].nfe
        results.append(np.asarray(x))
    assert run._cache_size() == 1
    assert np.abs(results[0] - results[1]).max() > 1e-4
    again, _ = run(jax.random.key(0), other, prepared(label, other))
    assert np.array_equal(again, results[1])


@pytest.mark.parametrize("label", tiers.alike(CASES, ("em", "deis", "edm")))
def test_jit_equals_eager(label: str):
    name = CASES[label].processes[-1]
    sde, _ = PROCESSES[name]
    eager, eager_info = draw(label, jax.random.key(3), sde, **prepared(label, sde))
    compiled, info = jax.jit(functools.partial(draw, label))(jax.random.key(3), sde, **prepared(label, sde))
    np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-5)
    assert np.array_equal(info.nfe, eager_info.nfe)


RING = exact.ring(std=0.3)
LAWS = ("exponential_midpoint", "ggf", "pc", "conjugate")


@in_turn(labels=LAWS)  # adaptive_sde has test_adaptive.py
def test_law_of_a_mixture(label: str, name: str):
    """Exact score of a ring of eight Gaussians, 2,000 samples: their sliced distance to true draws.

    Two sets of true draws are 0.04 apart; the bound leaves room for the prior's mismatch, the rest to t_min and 200
    steps of the lowest order. A wrong drift, a wrong noise or a wrong time gives 0.2 and more.

    Of a process of third order `splitting` has twice the steps: its distance halves with them (0.21, 0.14, 0.07, 0.04
    at 100, 200, 400, 800 steps).
    """
    sde, case = PROCESSES[name][0], CASES[label]
    times = FINE
    if (case.sampler, name) == ("splitting", "third_order"):
        times = np.sort(np.concatenate([times, (times[1:] + times[:-1]) / 2]))[::-1]
    options = case.options | ({"times": times} if "times" in case.options else {})
    host = prepared(label, sde, times)

    @jax.jit
    def run(key, sde, host):
        score_fn = RING.score_fn(sde)
        return samplers.SAMPLERS[case.sampler](key, score_fn, sde, (2000, 2), **options, **host)[0]

    x = run(jax.random.key(0), sde, host)
    true, _ = RING.sample(jax.random.key(1), 2000)
    distance = metrics.sliced_wasserstein(x, true)
    assert distance < 0.12, distance


SOLVERS = ["Heun", "Midpoint", "Bosh3", "Dopri5", "Tsit5", "Dopri8"]


@pytest.mark.parametrize(
    "solver, adaptive",
    tiers.alike(
        [("Euler", False)] + [(s, a) for s in SOLVERS for a in (False, True)],
        [("Heun", False), ("Dopri5", True)],
    ),
)
def test_evaluations_of_every_solver(solver: str, adaptive: bool):
    """Counted on the host, rejected steps included, here even of the first step."""
    sde, called = sdes.ve(), []
    grid = {"t_min": T_MIN, "rtol": 1e-3, "atol": 1e-3} if adaptive else {"times": GRID}

    def run(key, denoise):
        score_fn = network_like(sde, called)
        return samplers.ode(key, score_fn, sde, (2, 3), solver=solver, denoise=denoise, **grid)[1].nfe

    for denoise in (False, True):
        called.clear()
        nfe = jax.jit(run, static_argnums=1)(jax.random.key(0), denoise)
        jax.effects_barrier()
        assert int(nfe) == len(called)


@pytest.mark.parametrize("name", ["ve", "psld"])
@pytest.mark.parametrize("label", ["em", "sscs"])
def test_replay_trajectory_and_progress(label: str, name: str):
    """Given noise and start decide everything, and the run is the steps one after the other."""
    sde, _ = PROCESSES[name]
    rng, draws = np.random.default_rng(0), {"em": 1, "sscs": 2}[label]
    steps = len(GRID) - 1
    noise = jnp.asarray(rng.normal(size=(steps, draws, BATCH, sde.k, *EVENT)), jnp.float32)
    initial = jnp.asarray(rng.normal(size=(BATCH, sde.k, *EVENT)), jnp.float32)
    seen: list = []

    @jax.jit
    def run(key, noise, initial):
        return draw(
            label, key, sde, noise=noise, initial=initial, trajectory=True, progress=lambda i: seen.append(int(i))
        )

    x, info = run(jax.random.key(0), noise, initial)
    jax.effects_barrier()
    assert sorted(seen) == list(range(1, steps + 1))
    same, _ = run(jax.random.key(1), noise, initial)
    assert np.array_equal(x, same)
    assert not np.allclose(x, run(jax.random.key(0), noise[::-1], initial)[0], atol=1e-3)

    @jax.jit
    def one(z, t, s, noises):
        score_fn = network_like(sde)
        return (
            em_step(score_fn, sde, z, t, s, noises[0])[0]
            if label == "em"
            else sscs_step(score_fn, sde, z, t, s, noises)
        )

    z, path = initial, [initial]
    for t, s, noises in zip(GRID[:-1], GRID[1:], noise):
        z = one(z, jnp.float32(t), jnp.float32(s), noises)
        path.append(z)
    assert info.trajectory.shape == (steps + 1, BATCH, sde.k, *EVENT)
    np.testing.assert_array_equal(info.trajectory[0], initial)
    np.testing.assert_allclose(info.trajectory, np.stack(path), rtol=1e-4, atol=1e-4)
    options = {"noise": noise, "initial": initial, "denoise": False}
    end, end_info = jax.jit(lambda: draw(label, jax.random.key(0), sde, **options))()
    np.testing.assert_allclose(end_info.state, info.trajectory[-1], rtol=1e-5, atol=1e-5)
    assert end_info.nfe == info.nfe - 1 and not np.array_equal(end, x)


def test_ode_starts_from_the_state_given():
    sde, _ = PROCESSES["psld"]
    initial = sde.prior_sample(jax.random.key(7), (BATCH, *EVENT))
    run = jax.jit(lambda key, initial: draw("ode", key, sde, initial=initial)[0])
    x = run(jax.random.key(0), initial)
    assert np.array_equal(x, run(jax.random.key(1), initial))
    np.testing.assert_allclose(x, jax.jit(lambda key: draw("ode", key, sde)[0])(jax.random.key(7)), atol=1e-6)
    assert not np.allclose(x, run(jax.random.key(0), 0.5 * initial), atol=1e-3)


def test_a_sample_of_its_own_steps_does_not_depend_on_the_batch():
    sde, _ = PROCESSES["psld"]
    initial = sde.prior_sample(jax.random.key(0), (BATCH, *EVENT))
    crowd = initial.at[1:].multiply(30.0)  # same first sample among harder ones
    results = {}
    for label in ("ode", "ode_per_sample"):
        run = jax.jit(lambda initial: draw(label, jax.random.key(0), sde, initial=initial))  # noqa: B023
        (a, a_info), (b, b_info) = run(initial), run(crowd)
        results[label] = np.abs(np.asarray(a[0] - b[0])).max(), a_info.nfe, b_info.nfe
    difference, nfe, crowd_nfe = results["ode_per_sample"]
    assert difference == 0 and nfe[0] == crowd_nfe[0] and crowd_nfe[1] != nfe[1]
    assert results["ode"][0] > 1e-7  # while shared steps differ, within the tolerance


# Not what conftest.py chooses for quick compiles: it rounds a program by how it is divided, and steps that are chosen
# by a tolerance then differ.
FLAG = "xla_cpu_use_fusion_emitters"
XLAS_OWN = {FLAG: True} if FLAG in os.environ.get("XLA_FLAGS", "") else None


@pytest.mark.parametrize("label", tiers.alike(CASES, ("em", "deis")))
def test_work_is_split_over_devices(label: str):
    """Read in the compiled module: no array on a device has the batch's full size anywhere, so neither in the loop."""
    name = "psld" if "psld" in CASES[label].processes else CASES[label].processes[0]
    mesh, sde, full = sharding.make_mesh(), PROCESSES[name][0], 8 * 13
    assert mesh.size == 8
    split = sharding.batch_sharding(mesh)

    def run(key, sde, host, sharding=None):
        return draw(label, key, sde, batch=full, event=(7,), sharding=sharding, **host)[0]

    split_run = jax.jit(functools.partial(run, sharding=split), out_shardings=split)
    compiled = split_run.lower(jax.random.key(0), sde, prepared(label, sde)).compile(XLAS_OWN)
    text = compiled.as_text()
    dimensions = {int(d) for shape in re.findall(r"\w\[([\d,]+)\]", text) for d in shape.split(",") if d}
    assert not [d for d in dimensions if d % full == 0], "the whole batch is on one device"
    loops = [line for line in text.splitlines() if re.search(r"= .*\bwhile\(", line)]
    assert any(re.search(rf"f32\[13,(1,)?{sde.k},7\]", line) for line in loops), loops
    x = compiled(jax.random.key(0), sde, prepared(label, sde))
    assert {s.data.shape for s in x.addressable_shards} == {(13, 7)}
    whole = jax.jit(run, compiler_options=XLAS_OWN)(jax.random.key(0), sde, prepared(label, sde))
    # rounding is relative to the largest numbers: an accurate solver follows a bounded score to states of 1e4
    np.testing.assert_allclose(x, whole, rtol=1e-4, atol=max(1e-4, 1e-6 * np.abs(whole).max()))


def nothing(z, t):
    raise AssertionError("the score must not be called")


def call(sampler="em", sde=None, **options):
    options = {"times": GRID} | options if sampler != "ode" else options
    return samplers.SAMPLERS[sampler](jax.random.key(0), nothing, sde or sdes.psld(), (BATCH, *EVENT), **options)


SHAPE = (BATCH, 2, *EVENT)
BAD = {
    "increasing": (lambda: call(times=GRID[::-1]), "times must be"),
    "above one": (lambda: call(times=[2.0, 0.5]), "times must be"),
    "one time": (lambda: call(times=[1.0]), "times must be"),
    "ode times": (lambda: call("ode", times=GRID[::-1]), "times must be"),
    "noise steps": (lambda: call(noise=np.zeros((9, 1, *SHAPE))), "noise has shape"),
    "noise draws": (lambda: call("sscs", noise=np.zeros((STEPS - 1, 1, *SHAPE))), "noise has shape"),
    "noise batch": (lambda: call(noise=np.zeros((STEPS - 1, 1, 1, *SHAPE[1:]))), "noise has shape"),
    "noise, a list": (lambda: call(noise=[[[0.0]]]), r"noise has shape \(1, 1, 1\)"),
    "initial": (lambda: call(initial=np.zeros((BATCH, *EVENT))), "initial has shape"),
    "ode initial": (lambda: call("ode", initial=np.zeros((1, 2, *EVENT))), "initial has shape"),
    "precision": (lambda: call("sscs", precision="data"), "precision must be 'prior' or 'none', not 'data'"),
    "precision of the official": (
        lambda: call("sscs", precision="none", official=True),
        "'none' is not in the official programs: leave official",
    ),
    "unknown solver": (lambda: call("ode", solver="RK45"), "solver 'RK45' is not .* try 'Dopri5'"),
    "not a solver": (lambda: call("ode", solver="ODETerm"), "solver 'ODETerm' is not"),
    "implicit solver": (lambda: call("ode", solver="Kvaerno5"), "solver 'Kvaerno5' is implicit"),
    "no error estimate": (lambda: call("ode", solver="Euler"), "solver 'Euler' has no error estimate"),
    "late start": (lambda: call(times=[0.5, 0.1]), r"times start at 0.5, .* give initial, as samplers.noised"),
    "ode late start": (lambda: call("ode", times=[0.5, 0.1]), r"times start at 0.5, .* give initial"),
    "ode t_min": (lambda: call("ode", t_min=0.0), "t_min = 0"),
    "denoise": (lambda: call(denoise="mean"), "denoise must be"),
    "ode denoise": (lambda: call("ode", denoise="mean"), "denoise must be"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_score_of_another_shape_is_refused_everywhere():
    """Where it would be broadcast: of one variable, or with an axis of one element."""
    sde, key, x0 = sdes.psld(), functools.partial(jax.random.key, 0), jnp.zeros((5, 2))
    z, m = sde.augment(x0), samplers.measurement(samplers.measurements.inpainting(np.array([1, 0])), jnp.zeros(1), 0.1)
    grids = {name: {} if samplers.registry.is_adaptive(name) else {"times": GRID} for name in samplers.SAMPLERS}
    special = ("edm", "annealed_langevin")  # of one variable, of its own grid
    runs = {
        name: functools.partial(lambda name, fn: samplers.SAMPLERS[name](key(), fn, sde, (5, 2), **grids[name]), name)
        for name in samplers.SAMPLERS
        if name not in special
    } | {
        "restart": lambda fn: samplers.restart(
            samplers.em, key(), fn, sde, (5, 2), times=GRID, intervals=[(2, 1, 0.5, 1.0)]
        ),
        "likelihood": lambda fn: samplers.likelihood(key(), fn, sde, x0, per_sample=False),
        "variational_bound": lambda fn: samplers.variational_bound(key(), fn, sde, x0),
        "encode": lambda fn: samplers.encode(fn, sde, z),
        "posterior_score": lambda fn: samplers.posterior_score(fn, sde, m)(z, jnp.ones(5)),
        "denoiser": lambda fn: score.denoiser(fn, sde)(x0, jnp.ones(5)),
    }
    for name, run in runs.items():
        for wrong, shape in ((lambda z, t: -z[:, 1:], (5, 1, 2)), (lambda z, t: -z[..., :1], (5, 2, 1))):
            with pytest.raises(ValueError) as caught:
                run(wrong)
            assert str(caught.value).startswith(f"score_fn returned {shape} for a state (5, 2, 2):"), name


def test_states_in_half_precision_are_refused_and_scores_in_it_taken_everywhere():
    """Of 1,000 times of a grid bfloat16 holds 256, float16 loses small steps; what a network computes in is its own."""

    def refused(run, name):
        with pytest.raises(ValueError, match="^dtype: times and states of a sampler need float32") as caught:
            run()
        assert "\n" not in str(caught.value), name

    for label in FIRST:
        case = CASES[label]
        sde = PROCESSES[case.processes[0]][0]
        host = prepared(label, sde)

        def run(score_fn, **options):
            options |= case.options | host
            return samplers.SAMPLERS[case.sampler](jax.random.key(0), score_fn, sde, (2, 3), **options)

        for half in (jnp.bfloat16, "float16"):
            refused(lambda: run(nothing, dtype=half), label)
        x, _ = jax.eval_shape(lambda: run(lambda z, t: (-z).astype(jnp.bfloat16)))
        assert x.dtype == jnp.float32, label
    a, key, sde = jnp.zeros((1, 2)), functools.partial(jax.random.key, 0), sdes.vp()
    refused(lambda: samplers.likelihood(key(), nothing, sde, a, dtype=jnp.bfloat16), "likelihood")
    refused(lambda: samplers.interpolate(key(), nothing, sde, a, a, num=3, dtype=jnp.bfloat16), "interpolate")
    refused(lambda: samplers.encode(nothing, sde, sde.augment(a).astype(jnp.bfloat16)), "encode")


TRACED = {
    "eta": lambda v: samplers.ddim(jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, eta=v),
    "lam": lambda v: samplers.gddim(jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, lam=v),
    "tau": lambda v: samplers.sa_solver(jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, tau=v),
    "order": lambda v: samplers.deis(jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, order=v),
    "S_churn": lambda v: samplers.edm(jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, S_churn=v),
    "numerical_eps": lambda v: samplers.sscs(
        jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, numerical_eps=v
    ),
    "S_noise": lambda v: samplers.restart(
        samplers.em, jax.random.key(0), nothing, sdes.vp(), (2, 1), times=GRID, intervals=[(2, 1, 0.5, 1.0)], S_noise=v
    ),
    "rho": lambda v: samplers.time_grid("rho", 5, sde=sdes.vp(), rho=v),
    "guidance: its interval": lambda v: samplers.cfg_score(
        nothing, nothing, samplers.Guidance(2.0, low=v), sde=sdes.vp()
    )(jnp.zeros((2, 1, 1)), jnp.ones(2)),
}


@pytest.mark.parametrize("name", TRACED)
def test_settings_that_must_be_known_say_so_where_they_are_traced(name: str):
    with pytest.raises(ValueError, match=f"^{name} is traced \\(an argument of jit\\)") as caught:
        jax.eval_shape(lambda v: TRACED[name](v)[0], 1.0)
    assert "\n" not in str(caught.value)
