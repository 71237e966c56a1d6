"""Time grids: closed forms, end points, and the noise level of a process of any number of variables."""

from __future__ import annotations

import json

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import tiers

from sgmjax import samplers, sdes
from sgmjax.samplers.grids import AUTO_GRID, GRIDS, host_noise_level
from sgmjax.sdes import noise_level, time_at_noise_level

SCALAR = {"vp": sdes.vp(), "subvp": sdes.subvp(), "ve": sdes.ve()}
T_MIN = 1e-3


def sigma_by_formula(sde, t):
    """The noise level of the scalar processes, float64 in closed form."""
    if isinstance(sde, sdes.VE):
        return 0.01 * 5000.0**t
    B = 0.1 * t + 0.5 * 19.9 * t**2
    return 2 * np.sinh(B / 2) if isinstance(sde, sdes.SubVP) else np.sqrt(np.expm1(B))


@pytest.mark.parametrize("kind", ["uniform", "quadratic"])
def test_time_grids(kind: str):
    """From 1 to t_min in the steps the budget leaves; quadratic steps shrink linearly to the data."""
    for denoise in (True, False):
        grid = samplers.time_grid(kind, 10, t_min=0.01, denoise=denoise)
        assert len(grid) - 1 + denoise == 10 and grid[0] == 1.0
        np.testing.assert_allclose(grid[-1], 0.01, rtol=1e-12)
        second = np.diff(grid, 2)
        np.testing.assert_allclose(second, 0.0 if kind == "uniform" else 2 * 0.99 / (len(grid) - 1) ** 2, atol=1e-12)


def test_powers():
    for power, kind in ((1.0, "uniform"), (2.0, "quadratic")):
        np.testing.assert_allclose(samplers.time_grid("power", 7, power=power), samplers.time_grid(kind, 7), rtol=1e-13)
    grid = samplers.time_grid("power", 5, power=3.0, t_min=0.1)  # four steps with the denoising one
    np.testing.assert_allclose(grid, [0.1 + 0.9 * u**3 for u in (1, 0.75, 0.5, 0.25, 0)], rtol=1e-13)


@pytest.mark.parametrize("name", SCALAR)
def test_noise_levels_of_the_rho_and_logsnr_grids(name: str):
    """Karras et al. 2022, eq. (5), and its limit, in the sigma of closed formulas."""
    sde = SCALAR[name]
    high, low = sigma_by_formula(sde, np.array([1.0, T_MIN]))
    i = np.arange(10) / 9
    for rho in (1.0, 7.0):
        grid = samplers.time_grid("rho", 10, t_min=T_MIN, sde=sde, rho=rho)
        expected = (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        np.testing.assert_allclose(sigma_by_formula(sde, grid), expected, rtol=1e-9)
    grid = samplers.time_grid("logsnr", 10, t_min=T_MIN, sde=sde)
    np.testing.assert_allclose(sigma_by_formula(sde, grid), high * (low / high) ** i, rtol=1e-9)
    np.testing.assert_allclose(
        samplers.time_grid("rho", 10, t_min=T_MIN, sde=sde, rho=1e6)[1:-1], grid[1:-1], rtol=1e-4
    )  # fmt: skip


def test_logsnr_of_ve_is_uniform():
    grid = samplers.time_grid("logsnr", 12, sde=sdes.ve())
    np.testing.assert_allclose(grid, samplers.time_grid("uniform", 12), atol=1e-12)


FAST = ("vp", "subvp", "ve", "psld", "oblique")


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, FAST))
def test_noise_level_of_any_process(x64, name: str):
    """Monotone; and the variance of the best linear estimate of x_0 from z_t, from the moments' own ODE.

    dE/dt = f E, dC/dt = f C + C f^T + g g^T from C_0 (the auxiliaries' initial law), by scipy at 1e-12.
    """
    sde = analytic.PROCESSES[name]
    level = jax.jit(noise_level)
    t = np.geomspace(1e-5, 1.0, 500)
    sigma = np.asarray(level(sde, t))
    assert (np.diff(sigma) > 0).all()
    np.testing.assert_allclose(jax.jit(noise_level)(sde, t.astype(np.float32)), sigma, rtol=5e-6)
    at = np.linspace(1e-2, 1.0, 128)
    times = np.asarray(jax.jit(time_at_noise_level)(sde, level(sde, at)))
    np.testing.assert_allclose(times, at, rtol=1e-9)
    if name == "ve":  # its kernel starts with sigma_min: not the solution of the ODE from zero
        return
    k, until = sde.k, 0.3
    X = np.asarray(sde.initial_factor()) if k > 1 else np.zeros((1, 1))
    coefficients = jax.jit(lambda sde, t: (sde.drift_matrix(t)[0], sde.diffusion_squared(t)[0]))

    def field(t, y):
        f, GGT = (np.asarray(v) for v in coefficients(sde, np.asarray([t])))
        E, C = y.reshape(2, k, k)
        return np.stack([f @ E, f @ C + C @ f.T + GGT]).ravel()

    start = np.stack([np.eye(k), X @ X.T]).ravel()
    y = scipy.integrate.solve_ivp(field, (0.0, until), start, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    E, C = y.reshape(2, k, k)
    information = E[:, 0] @ np.linalg.solve(C, E[:, 0])
    np.testing.assert_allclose(float(level(sde, np.full(500, until))[0]), information**-0.5, rtol=1e-7)


@pytest.mark.parametrize("name", ["ve", "psld", "oblique"])
def test_ends_and_steps_of_every_grid(name: str):
    """Also from inside a function that is being compiled, where only the process must be known; all in one program."""
    sde, grids = analytic.PROCESSES[name], {}

    def trace():
        for kind in GRIDS:
            for denoise, evaluations, entries in ((True, 1, 10), (False, 1, 11), (True, 2, 5), (False, 2, 6)):
                grid = samplers.time_grid(
                    kind, 10, t_min=1e-5, denoise=denoise, evaluations=evaluations, sde=sde
                )  # fmt: skip
                assert isinstance(grid, np.ndarray) and grid.dtype == np.float64
                assert len(grid) == entries and grid[0] == 1.0
                assert np.isclose(grid[-1], 1e-5, rtol=1e-12) or (kind == "auto" and denoise and grid[-1] > 1e-5)
                assert (np.diff(grid) < 0).all()
                grids[kind, denoise, evaluations] = grid

    trace()
    outside = dict(grids)
    jax.eval_shape(trace)
    assert all(np.array_equal(outside[k], grids[k]) for k in grids)


@pytest.mark.parametrize("name", ["vp", "ve", "psld", "third_order"])
def test_the_grid_auto_is_one_jump_and_equal_steps_of_the_logarithm(name: str):
    """The two levels are those of the package's table where it was measured, and between them elsewhere."""
    sde = sdes.ve() if name == "ve" else analytic.PROCESSES[name]
    table = json.loads(AUTO_GRID.read_text())[str(sde.k)]
    first = float(host_noise_level(sde, np.array([1.0]))[0])
    for nfe in (2, 3, 4, 5, 7, 10, 20, 30, 100):
        levels = host_noise_level(sde, samplers.time_grid("auto", nfe, t_min=1e-5, sde=sde))
        assert len(levels) == nfe and levels[0] == pytest.approx(first)
        if nfe > 3:
            np.testing.assert_allclose(np.diff(np.log(levels[1:]), 2), 0.0, atol=1e-6)
        if str(nfe) in table:
            np.testing.assert_allclose(levels[[1, -1]], table[str(nfe)][:2], rtol=1e-6)
    higher, levels, lower = (
        host_noise_level(sde, samplers.time_grid("auto", nfe, t_min=1e-5, sde=sde))[-1] for nfe in (5, 7, 10)
    )
    assert higher >= levels >= lower
    # without a denoising step the last step goes to t_min; and a late end is kept
    bare = samplers.time_grid("auto", 9, t_min=1e-5, denoise=False, sde=sde)
    np.testing.assert_allclose(bare[:-1], samplers.time_grid("auto", 9, t_min=1e-5, sde=sde), rtol=1e-9)
    assert bare[-1] == 1e-5
    late = samplers.time_grid("auto", 9, t_min=0.5, sde=sde)
    assert late[-1] == pytest.approx(0.5)


def test_after_a_float32_function_has_closed_over_the_process():
    """JAX 0.10 then keeps float32 buffers of the process's numpy arrays, and would hand them to a float64 program."""
    sde = sdes.vp()

    @jax.jit
    def closes_over(z):
        step = lambda z, _: (sde.transition(jnp.full(2, 0.5)).perturb(z, z), None)  # noqa: E731
        return jax.lax.scan(step, z, None, length=2)[0]

    jax.block_until_ready(closes_over(jnp.ones((2, 1, 3))))
    grid = samplers.time_grid("logsnr", 5, sde=sde)
    np.testing.assert_allclose(np.diff(np.log(sigma_by_formula(sde, grid)), 2), 0.0, atol=1e-9)


def test_bad_input_is_refused_in_one_line():
    grid = samplers.time_grid
    bad = [
        (lambda: grid("uniform", 1), "steps = 1: at least 2 evaluations are needed with denoising"),
        (lambda: grid("uniform", 2, evaluations=2), "steps = 2: at least 3"),
        (lambda: grid("uniform", -3, denoise=False), "steps = -3: at least 1"),
        (lambda: grid("cubic", 10), "grid must be one of 'uniform', .*, not 'cubic'"),
        (lambda: grid("uniform", 10, t_min=1.0), "t_min = 1:"),
        (lambda: grid("rho", 10), "give time_grid the sde"),
        (lambda: grid("rho", 10, sde=sdes.vp(), rho=0.0), "rho = 0: must be positive"),
        (lambda: grid("power", 10, power=-1.0), "power = -1: must be positive"),
        (lambda: grid("logsnr", 3000, sde=sdes.vp(), t_min=1e-9), "equal times"),
        (lambda: jax.eval_shape(lambda sde: jnp.asarray(grid("logsnr", 10, sde=sde)), sdes.vp()), "outside of jit"),
    ]
    for make, message in bad:
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
