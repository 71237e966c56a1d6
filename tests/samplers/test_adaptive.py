"""Adaptive solvers of the reverse SDE and of the probability flow: exact counts, one path for all, laws, errors."""

from __future__ import annotations

import functools
import itertools

import analytic
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import samplers, sdes
from sgmjax.samplers._adaptive_sde import brownian_increment, noise_factor, path_seeds
from sgmjax.sdes import linalg

MU, S, T_MIN = 0.3, 0.5, 0.01


def counted(score_fn, called: list):
    """The score, each evaluation of which is noted on the host."""

    def count(z, t):
        jax.debug.callback(lambda: called.append(1))
        return score_fn(z, t)

    return count


def own_copy(name: str) -> sdes.SDE:
    """A process with arrays of its own, to be used in double precision.

    jax 0.10.2 may hand a numpy array that a program compiled in single precision has closed over to one compiled in
    double precision as float32.
    """
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), analytic.PROCESSES[name])


# ---- probability flow


ODE_SOLVERS = {
    "ReversibleHeun": ("ReversibleHeun", False),
    "ReversibleHeun on a grid": ("ReversibleHeun", True),
    "LeapfrogMidpoint": ("LeapfrogMidpoint", True),
    "halved Euler": (diffrax.HalfSolver(diffrax.Euler()), False),
    "halved Ralston": (diffrax.HalfSolver(diffrax.Ralston()), False),
    "halved Dopri5": (diffrax.HalfSolver(diffrax.Dopri5()), False),
    "halved ReversibleHeun": (diffrax.HalfSolver(diffrax.ReversibleHeun()), False),
    "halved Dopri5 on a grid": (diffrax.HalfSolver(diffrax.Dopri5()), True),
}


@pytest.mark.parametrize("label", tiers.alike(ODE_SOLVERS, ("ReversibleHeun", "halved Dopri5 on a grid")))
def test_evaluations_and_end_points_of_ode_solvers(label):
    """Beside the Runge-Kutta ones of the contract. The end is Dopri5's at 1e-5 within what the tolerance leaves."""
    solver, fixed = ODE_SOLVERS[label]
    sde, called = analytic.PROCESSES["vp"], []
    grid = {"times": samplers.time_grid("quadratic", 400, t_min=T_MIN)} if fixed else {"rtol": 1e-3, "atol": 1e-3}

    def run(key, **options):
        score_fn = counted(analytic.gaussian_score(sde, MU, S), called)
        return samplers.ode(key, score_fn, sde, (2, 3), t_min=T_MIN, denoise=False, **options)

    x, info = jax.jit(lambda key: run(key, solver=solver, **grid))(jax.random.key(0))
    jax.effects_barrier()
    assert int(info.nfe) == len(called)
    exact, _ = jax.jit(lambda key: run(key))(jax.random.key(0))
    np.testing.assert_allclose(x, exact, atol=0.02)


# ---- reverse SDE


def test_noise_factor_is_a_factor():
    for sde in analytic.PROCESSES.values():
        t = jnp.asarray([0.02, 0.9])
        factor = noise_factor(sde, t)
        assert factor.shape == (2, sde.k, sde.num_noised)
        square = linalg.matmul(factor, factor.swapaxes(1, 2))
        exact = sde.diffusion_squared(t)
        np.testing.assert_allclose(square, exact, atol=2e-6 * np.abs(exact).max())


def test_increments_of_a_path():
    """They add up, each is N(0, h), and disjoint ones are independent: within 4.5 standard errors of 4,000 paths."""
    struct, tol = jax.ShapeDtypeStruct((1,), jnp.float32), 2.0**-12
    seeds = path_seeds(jax.random.key(0), 4000)
    u, v, w = -0.9, -0.9 + 5 * tol, -0.3  # rounded to the path's grid, as any time is

    @jax.jit
    def increments(seeds):
        between = functools.partial(brownian_increment, struct, tol)
        path = jax.vmap(lambda seed: (between(seed, u, v).W, between(seed, v, w).W, between(seed, u, w).W))
        return path(seeds)

    first, second, both = (np.asarray(a, np.float64)[:, 0] for a in increments(seeds))
    np.testing.assert_allclose(first + second, both, atol=1e-6)
    bound = 4.5 / np.sqrt(len(first))
    a, b = first / np.sqrt(5 * tol), second / np.sqrt(0.6 - 5 * tol)
    assert abs(a.mean()) < bound and abs(b.mean()) < bound and abs((a * b).mean()) < bound
    assert abs(a.var() - 1) < bound * np.sqrt(2) and abs(b.var() - 1) < bound * np.sqrt(2)


@functools.cache
def on_the_path(name: str, key_seed: int, shape) -> tuple[np.ndarray, np.ndarray]:
    """(start, end) of the reverse SDE solved on the path of a key: Euler-Maruyama in float64, 2^14 steps, by numpy."""
    sde, steps = own_copy(name), 2**14
    start_key, path_key = jax.random.split(jax.random.key(key_seed))
    z = start = np.asarray(sde.prior_sample(start_key, shape), np.float64)
    struct = jax.ShapeDtypeStruct((sde.num_noised, *shape[1:]), jnp.float32)
    u = -1.0 + (1 - T_MIN) * np.arange(steps + 1) / steps
    u = np.round(u * 2**20) / 2**20  # the path's grid

    @jax.jit
    def path(seeds, u):
        values = jax.vmap(lambda seed: brownian_increment(struct, 2.0**-20, seed, -1.0, u).W)
        return values(seeds)

    seeds = path_seeds(path_key, shape[0])
    w = np.asarray(jax.lax.map(lambda u: path(seeds, u), jnp.asarray(u, jnp.float32), batch_size=256), np.float64)
    with jax.enable_x64(True):
        factor = np.asarray(noise_factor(sde, jnp.asarray(-u[:-1])))
        drift = np.asarray(sde.drift_matrix(jnp.asarray(-u[:-1])))
        strength = np.asarray(sde.diffusion_squared(jnp.asarray(-u[:-1])))
        score = analytic.tabulated_score(sde, MU, S, T_MIN / 2).series(-u[:-1], np)
    for i in range(steps):
        slope = strength[i] @ score[i, :, :-1] - drift[i]
        push = np.einsum("ij,bj...->bi...", slope, z) + (strength[i] @ score[i, :, -1]).reshape(
            1, -1, *(1,) * (z.ndim - 2)
        )
        z = z + (u[i + 1] - u[i]) * push + np.einsum("ij,bj...->bi...", factor[i], w[i + 1] - w[i])
    return start, z


# strong order with additive noise
SDE_SOLVERS = {
    "SEA": 1.0, "Euler": 1.0, "EulerHeun": 1.0, "Heun": 1.0, "Midpoint": 1.0, "Ralston": 1.0,
    "ShARK": 1.5, "SRA1": 1.5, "SPaRK": 1.5, "GeneralShARK": 1.5, "SlowRK": 1.5,
}  # fmt: skip
SHAPE = (4, 3)


def solver_run(name: str, solver, called: list, **options):
    """run(tolerance) -> (final states, evaluations) of key 5."""
    sde = analytic.PROCESSES[name]
    score_fn = counted(analytic.gaussian_score(sde, MU, S), called)

    @jax.jit
    def run(key, tolerance):
        return samplers.adaptive_sde(
            key, score_fn, sde, SHAPE, solver=solver, t_min=T_MIN, rtol=tolerance, atol=tolerance, denoise=False,
            **options,
        )[1]  # fmt: skip

    def finished(tolerance):
        called.clear()
        info = run(jax.random.key(5), jnp.float32(tolerance))
        jax.effects_barrier()
        return np.asarray(info.state), np.asarray(info.nfe)

    return finished


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, solver", tiers.alike(itertools.product(("vp", "psld", "oblique"), SDE_SOLVERS), [("psld", "ShARK")])
)
def test_solvers_converge_to_the_solution_on_the_path(name, solver):
    """Strong convergence, with control and all, to an independent solution on the same path.

    The order is read from error against evaluations; 0.4 below theory is left to twelve samples and a noisy control.
    The tolerance bounds the errors of single steps: those of order 1 need a finer one for the same error at the end,
    while those of order 1.5 would soon meet the error of the reference, 1.5e-3.
    """
    _, exact = on_the_path(name, 5, SHAPE)
    called: list = []
    run, errors, counts = solver_run(name, solver, called), [], []
    for tolerance in (0.2, 0.001 if SDE_SOLVERS[solver] == 1 else 0.005):
        state, nfe = run(tolerance)
        assert nfe == len(called)
        errors.append(np.sqrt(np.mean((state - exact) ** 2)) / exact.std())
        counts.append(int(nfe))
    order = np.log(errors[0] / errors[1]) / np.log(counts[1] / counts[0])
    assert order > SDE_SOLVERS[solver] - 0.4 and errors[1] < 0.1, (order, errors, counts)


@pytest.mark.slow
def test_own_steps_converge_to_the_same_samples():
    _, exact = on_the_path("psld", 5, SHAPE)
    called: list = []
    state, nfe = solver_run("psld", "ShARK", called, per_sample=True)(0.01)
    assert nfe.shape == SHAPE[:1] and nfe.max() == len(called) and len(set(nfe.tolist())) > 1
    assert np.sqrt(np.mean((state - exact) ** 2)) < 0.02 * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", analytic.PROCESSES)
def test_law_of_gaussian_data(name):
    """Moments against the exact reverse SDE's within 4.5 standard errors and 2%, what the tolerance leaves."""
    sde, draws = analytic.PROCESSES[name], 4000
    score_fn = analytic.gaussian_score(sde, MU, S)
    _, info = jax.jit(
        lambda key: samplers.adaptive_sde(
            key,
            score_fn,
            sde,
            (draws // 100, 100),
            t_min=T_MIN,
            rtol=0.03,
            atol=0.03,
            denoise=False,
            brownian_tol=2.0**-15,
        )  # fmt: skip
    )(jax.random.key(2))
    z = np.asarray(info.state, np.float64).swapaxes(1, 2).reshape(-1, sde.k)
    with jax.enable_x64(True):
        mean, covariance = analytic.true_law(own_copy(name), MU, S, T_MIN)
    variance, bound = np.diag(covariance), 4.5 / np.sqrt(draws) + 0.02
    assert np.all(np.abs(z.mean(0) - mean) < bound * np.sqrt(variance))
    spread = np.sqrt(np.outer(variance, variance) + covariance**2)
    assert np.all(np.abs(np.cov(z.T, bias=True).reshape(sde.k, sde.k) - covariance) < bound * spread)


def nothing(z, t):
    raise AssertionError("the score must not be called")


BAD = {
    "unknown": ({"solver": "EM"}, "solver 'EM' is not one of .* try 'ShARK'"),
    "for ODEs": ({"solver": "Dopri5"}, "solver 'Dopri5' is not one of"),
    "undamped": ({"solver": "ReversibleHeun"}, "solver 'ReversibleHeun' is not one of"),
    "for Langevin": ({"solver": "ALIGN"}, "solver 'ALIGN' is not one of"),
    "implicit": ({"solver": diffrax.Kvaerno3()}, "solver 'Kvaerno3' is not one of"),
    "not a solver": ({"solver": 3}, "solver 'int' is not one of"),
    "t_min": ({"t_min": 0.0}, "t_min = 0: must lie between"),
    "rtol": ({"rtol": -1.0}, "rtol = -1: must be positive"),
    "brownian_tol": ({"brownian_tol": 0.0}, "brownian_tol = 0: must be positive"),
    "initial": ({"initial": np.zeros((2, 3))}, "initial has shape"),
    "denoise": ({"denoise": "mean"}, "denoise must be"),
}
BAD_ODE = {
    "implicit": (diffrax.ImplicitEuler(), "'ImplicitEuler' is implicit: diffrax does not count"),
    "implicit inside": (diffrax.HalfSolver(diffrax.Kvaerno3()), "'HalfSolver' is implicit"),
    "for SDEs": ("ShARK", "'ShARK' is not one of diffrax's explicit ODE solvers"),
    "two terms": ("SemiImplicitEuler", "'SemiImplicitEuler' is not one of"),
    "abstract": ("AbstractERK", "'AbstractERK' is not one of"),
    "no error estimate": ("LeapfrogMidpoint", "'LeapfrogMidpoint' has no error estimate"),
    "multistep in half": (diffrax.HalfSolver(diffrax.LeapfrogMidpoint()), "'HalfSolver' is not one of"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label):
    options, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        samplers.adaptive_sde(jax.random.key(0), nothing, sdes.psld(), (2, 3), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", BAD_ODE)
def test_ode_solvers_that_cannot_be_counted_are_refused(label):
    solver, message = BAD_ODE[label]
    with pytest.raises(ValueError, match=message) as caught:
        samplers.ode(jax.random.key(0), nothing, sdes.psld(), (2, 3), solver=solver)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"max_steps": 5}, pytest.param({"brownian_tol": 0.005, "rtol": 1e-4, "atol": 1e-4}, marks=pytest.mark.slow)],
)
def test_unsolved_is_an_error(options):
    """Too few steps, or steps that would have to be finer than the path."""
    sde = analytic.PROCESSES["vp"]
    with pytest.raises(RuntimeError, match="the reverse SDE was not solved within max_steps"):
        jax.block_until_ready(
            samplers.adaptive_sde(jax.random.key(0), analytic.gaussian_score(sde, MU, S), sde, (2, 3), **options)
        )


def test_a_last_step_may_be_as_short_as_what_is_left():
    """Of 256 paths some come within a tenth of `brownian_tol` of the end before their last step."""
    sde = analytic.PROCESSES["vp"]
    options = {"per_sample": True, "t_min": 0.1, "rtol": 0.3, "atol": 0.3, "brownian_tol": 2.0**-7}
    x, _ = samplers.adaptive_sde(
        jax.random.key(0), analytic.gaussian_score(sde, MU, S), sde, (256, 1), **options
    )  # fmt: skip
    assert np.isfinite(x).all()
