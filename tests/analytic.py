"""Gaussian data, where everything is known: marginals, scores, the law at any time of the reverse process.

Data are N(mu, s^2), independently in every element of the event. z_t is then N(E_t (mu, 0, ...), C_t) with
C_t = E_t diag(s^2, 0, ...) E_t^T + L_t L_t^T, L_t the kernel of hybrid score matching.
"""

from __future__ import annotations

import collections.abc
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from sgmjax import sdes
from sgmjax.sdes import linalg


def full_rank_recipe() -> sdes.Recipe:
    """Four variables, all noised and coupled, with correlations in the stationary law and a rate that changes."""
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(4, 4)), 0.3 * rng.normal(size=(4, 4))
    return sdes.recipe(
        D=np.diag([0.3, 0.5, 1.0, 0.7]), Q=a - a.T, Sigma_inf=np.eye(4) + c @ c.T, Sigma_0=0.1 * np.eye(3),
        schedule=sdes.LinearSchedule(beta_min=1.0, beta_max=6.0),
    )  # fmt: skip


def oblique_recipe(Sigma_0=0.1, beta=4.0) -> sdes.Recipe:
    """Four variables, noise in two directions that are not aligned with them: the frame is a rotation."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(4, 4)), rng.normal(size=(4, 2))
    Sigma_inf = np.diag([1.0, 0.5, 2.0, 1.0])
    return sdes.recipe(
        D=b @ b.T, Q=a - a.T, Sigma_inf=Sigma_inf, Sigma_0=Sigma_0 * Sigma_inf[1:, 1:],
        schedule=sdes.LinearSchedule(beta_min=beta, beta_max=beta),
    )  # fmt: skip


class Fresh(collections.abc.Mapping):
    """Processes by name, each time with arrays of its own.

    A NumPy array that one program held as a constant without double precision cannot be an argument of another with it
    (JAX 0.10.2 hands the latter the former's buffer).
    """

    def __init__(self, processes):
        self._processes = processes

    def __getitem__(self, name):
        return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, self._processes[name])

    def __iter__(self):
        return iter(self._processes)

    def __len__(self):
        return len(self._processes)

    def __or__(self, others):
        return Fresh({**self._processes, **others})


PROCESSES = Fresh(
    {
        "vp": sdes.vp(),
        "subvp": sdes.subvp(),
        "ve": sdes.ve(),
        "cld": sdes.cld(),
        "psld": sdes.psld(),
        "third_order": sdes.third_order(),
        "recipe4": full_rank_recipe(),
        "oblique": oblique_recipe(),
    }
)


def friction(nu: float = 4.0) -> sdes.Linear:
    """PSLD with a friction of the data that sets in and one of the momentum that fades."""
    return sdes.psld_friction(lambda t: 0.3 * t, lambda t: nu - 2 * t)


# by tables, and of higher order
NEW = Fresh({"flow": sdes.flow(), "friction": friction(), "hold4": sdes.hold(order=4), "cosine": sdes.cosine()})


def marginal(sde, t, mu, s):
    """E_t, the mean (batch, k) and a triangular factor (batch, k, k) of the covariance of z_t, for t (batch,)."""
    kernel = sde.transition(t, "hsm")
    factor = linalg.triangular_factor(jnp.concatenate([s * kernel.mean[:, :, :1], kernel.factor], axis=-1))
    return kernel.mean, mu * kernel.mean[:, :, 0], factor


def gaussian_score(sde, mu, s):
    """Exact score_fn(z, t): of the noised variables, zero for the others."""

    def score_fn(z, t):
        _, mean, factor = marginal(sde, t, mu, s)
        inverse = linalg.inverse_transpose(factor)
        offset = z - linalg.expand_to(mean, z.ndim)
        return sde.expand(sde.restrict(-linalg.apply(inverse, linalg.apply(inverse.swapaxes(1, 2), offset))))

    return score_fn


NODES = 320
_marginal = jax.jit(marginal)


class Moments(NamedTuple):
    E: np.ndarray  # (k, k)
    mean: np.ndarray  # (k,)
    covariance: np.ndarray  # (k, k)


def moments(sde, times, mu: float, s: float) -> list[Moments]:
    """`Moments` at each time, in float64 (needs x64). At most NODES times, so that all calls share a compilation."""
    # jax 0.10.2 may hand an array that a program in single precision has closed over to this one as float32
    sde = jax.tree.map(lambda leaf: np.array(leaf, np.float64), sde)
    padded = np.full(NODES, times[0], np.float64)
    padded[: len(times)] = times
    E, mean, factor = (np.asarray(v) for v in _marginal(sde, padded, mu, s))
    return [Moments(E[i], mean[i], factor[i] @ factor[i].T) for i in range(len(times))]


class TabulatedScore(NamedTuple):
    """The exact score as a Chebyshev series in log t on [t_min, 1]: the same numbers to 1e-10, cheap to compile."""

    coefficients: Any  # (NODES, k, k + 1): matrix and offset of the affine score
    log_t_min: Any

    def series(self, t, xp):
        x = 1 - 2 * xp.log(t) / self.log_t_min
        angle = xp.arccos(xp.clip(x, -1.0, 1.0))
        return xp.tensordot(xp.cos(np.arange(NODES)[None] * angle[..., None]), self.coefficients, axes=1)

    def __call__(self, z, t):
        affine = self.series(t, jnp)
        return linalg.apply(affine[:, :, :-1], z) + linalg.expand_to(affine[:, :, -1], z.ndim)


def tabulated_score(sde, mu: float, s: float, t_min: float) -> TabulatedScore:
    """`gaussian_score` as a table (needs x64)."""
    angle = np.pi * (np.arange(NODES) + 0.5) / NODES
    times = np.exp(0.5 * (1 - np.cos(angle)) * np.log(t_min))
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    projection = T[sde.k - sde.num_noised :].T @ T[sde.k - sde.num_noised :]
    values = []
    for at in moments(sde, times, mu, s):
        matrix = -projection @ np.linalg.inv(at.covariance)
        values.append(np.column_stack([matrix, -matrix @ at.mean]))
    basis = np.cos(np.arange(NODES)[:, None] * angle) * np.where(np.arange(NODES) == 0, 1, 2)[:, None] / NODES
    return TabulatedScore(np.tensordot(basis, np.stack(values), axes=1), np.log(t_min))


def reverse_law(top: Moments, end: Moments, mean, covariance) -> tuple[np.ndarray, np.ndarray]:
    """Where the exact reverse SDE carries N(mean, covariance) from one time down to another.

    z_t given z_T is Gaussian with the regression matrix R = C_t E^T C_T^-1, E = E_T E_t^-1 the forward mean from t to
    T, so N(m_T + d, C_T + X) goes to N(m_t + R d, C_t + R X R^T).
    """
    E = top.E @ np.linalg.inv(end.E)
    R = np.linalg.solve(top.covariance, E @ end.covariance).T
    return end.mean + R @ (mean - top.mean), end.covariance + R @ (covariance - top.covariance) @ R.T


# ---- laws of fixed-grid samplers without Monte Carlo: every step is an affine map of the state, linear in its noise


@functools.partial(jax.jit, static_argnames=("step", "draws"))
def step_maps(sde, score_fn, t, s, *, step, draws: int):
    """A (n, k, k), b (n, k), N (n, k, draws k) with z_s = A z_t + b + N noise, for n steps from t to s.

    step(score_fn, sde, z, t, s, noises) -> z is one step of a sampler that makes the same kind of step everywhere.
    """
    k = sde.k
    z = jnp.concatenate([jnp.zeros((1, k)), jnp.eye(k), jnp.zeros((draws * k, k))])[..., None]
    noise = jnp.concatenate([jnp.zeros((1 + k, draws * k)), jnp.eye(draws * k)])
    noise = noise.reshape(-1, draws, k, 1).swapaxes(0, 1)

    def maps(t, s):
        out = step(score_fn, sde, z, t, s, noise)
        offset, rest = out[0, :, 0], (out[1:, :, 0] - out[0, :, 0][None]).T
        return rest[:, :k], offset, rest[:, k:]

    return jax.vmap(maps)(t, s)


def laws(step, draws: int, sde, score_fn, grids):
    """Mean and covariance at the end of each grid, started from the prior; `step` and `draws` as `step_maps`."""
    t, s = np.concatenate([g[:-1] for g in grids]), np.concatenate([g[1:] for g in grids])
    steps = zip(*(np.asarray(v) for v in step_maps(sde, score_fn, t, s, step=step, draws=draws)))
    out = []
    for grid in grids:
        prior = np.asarray(sde.prior_factor())
        mean, covariance = np.zeros(sde.k), prior @ prior.T
        for _ in grid[1:]:
            A, b, N = next(steps)
            mean, covariance = A @ mean + b, A @ covariance @ A.T + N @ N.T
        out.append((mean, covariance))
    return out


def errors(laws, exact) -> tuple[np.ndarray, np.ndarray]:
    """Errors of means and covariances against the exact law, in its standard deviations."""
    std = np.sqrt(np.diag(exact[1]))
    mean = [np.max(np.abs(m - exact[0]) / std) for m, _ in laws]
    return np.asarray(mean), np.asarray([np.max(np.abs(C - exact[1]) / np.outer(std, std)) for _, C in laws])


def true_law(sde, mu: float, s: float, t_min: float):
    """The law to which the exact reverse SDE carries the prior: it includes the prior's mismatch."""
    top, end = moments(sde, (1.0, t_min), mu, s)
    prior = np.asarray(sde.prior_factor())
    return reverse_law(top, end, np.zeros(sde.k), prior @ prior.T)


def check_order(sizes, order: float, *, tolerance: float) -> None:
    slopes = np.log2(sizes[:-1] / sizes[1:])
    assert abs(slopes[-1] - order) < tolerance, f"observed orders {slopes}, errors {sizes}"
    assert abs(slopes[-1] - order) <= abs(slopes[0] - order) + 0.01, f"orders move away: {slopes}"


def flow_map(sde, score: TabulatedScore, t_min: float) -> np.ndarray:
    """(k, k + 1), matrix and offset of the exact probability flow from 1 to t_min, by scipy's DOP853 at 1e-12."""
    k = sde.k
    if isinstance(sde, sdes.Recipe):
        F, GGT, rate = np.asarray(sde.F), np.asarray(sde.GGT), sde.schedule.beta
    elif isinstance(sde, sdes.SubVP):  # dx = -beta x / 2 dt + sqrt(beta (1 - e^{-2 B})) dw
        F, GGT, rate = -0.5 * np.eye(1), None, sde.schedule.beta
    else:  # VE: g^2 = d sigma^2 / dt
        F, GGT, rate = np.zeros((1, 1)), None, lambda t: 2 * np.log(5000) * 0.01**2 * 5000 ** (2 * t)

    def field(t, y):
        affine = score.series(np.float64(t), np)[0]
        strength = GGT
        if strength is None:
            B = sde.schedule.integral(t) if isinstance(sde, sdes.SubVP) else np.inf
            strength = (1 - np.exp(-2 * B)) * np.eye(1)
        y = y.reshape(k, k + 1)
        push = affine[:, :-1] @ y
        push[:, -1] += affine[:, -1]
        return (rate(t) * (F @ y - 0.5 * strength @ push)).ravel()

    start = np.eye(k, k + 1).ravel()
    return scipy.integrate.solve_ivp(
        field, (1.0, t_min), start, method="DOP853", rtol=1e-12, atol=1e-13
    ).y[:, -1].reshape(k, k + 1)  # fmt: skip
