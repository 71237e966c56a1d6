"""A linear process along a grid, in float64 on the host: what the exponential integrators are made of.

Along the probability flow dz = f z dt - 1/2 g g^T score dt the linear part is known and solved exactly. For a factor
K_t K_t^T = Sigma_t of the perturbation kernel's covariance let eps_K = -K^T score. Then

    z_s = Psi(s, t) z_t + int_t^s Psi(s, tau) 1/2 g g^T K^-T eps_K dtau,     Psi the transition matrix of f,      (1)

and a multistep method replaces eps_K by the polynomial through its last values (Zhang & Chen 2023, eq. (14)).

**Which factor.** K = L, the triangular one, is what networks are trained with. gDDIM's K = R solves

    dR/dt = (f + 1/2 g g^T Sigma^-1) R.                                                                           (2)

Where the data are a point, eps_R is constant along the flow (Zhang, Tao & Chen 2023, sec. 4), so that one step of any
size is exact. R = L O with O orthogonal, and (2) becomes the rotation

    dO/dt = A O,   A = U - U^T,   U the strict upper triangle of M = L^-1 f L + 1/2 L^-1 g g^T L^-T,             (3)

(for L' = L N with N the lower triangle of M + M^T, its diagonal halved). Nothing is stiff or singular in (3) with
log t for time, Sigma is right to rounding, and any constant rotation of R gives the same integrator, so that t = 0 is
never touched. For k = 1, R = L = sigma.

By (2), Psi(s, tau) 1/2 g g^T R^-T = d/dtau [Psi(s, tau) R_tau], so (1) is integrated by parts:

    int_t^s Psi 1/2 g g^T R^-T l dtau = [Psi(s, tau) R_tau l(tau)]_t^s - int_t^s Psi(s, tau) R_tau l'(tau) dtau,  (4)

without an inverse, and in closed form, R_s - Psi R_t, at first order.

**The score of variables without noise.** A network gives the score of the noised variables alone, but eps_R mixes all.
The others are known all the same: as z_t = E_0 x_0 + L eps with E_0 the first column of the mean matrix (hybrid score
matching: the auxiliaries are integrated out), Tweedie's formula says, for any data,

    eps_L = w - v x0_hat,    w = L^-1 z_t,    v = L^-1 E_0,    x0_hat = E[x_0 | z_t].                              (5)

The last r rows, whose eps_L follows from the noised scores (L^-T is upper triangular in the process's frame), determine
x0_hat; the first k - r rows then give the rest.

**Time.** Everything is smooth in log t, at t = 1e-5 as at 1: integrals are composite Gauss-Legendre rules there, and
(3) is solved by collocation at the same nodes (order 20, orthogonal to rounding).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from sgmjax.sdes import SDE, VE, Recipe, SubVP, linalg

NODES = 10  # Gauss-Legendre nodes of a panel
WIDTH = 0.35  # of a panel in log t
STRENGTH = 2.0  # largest |f| dt over a panel

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def _integration_matrix(x: np.ndarray) -> np.ndarray:
    """S with S[i, j] the integral from 0 to x_i of the Lagrange polynomial l_j of the nodes x."""
    powers = np.arange(len(x))
    vandermonde = np.polynomial.legendre.legvander(2 * x - 1, len(x) - 1)
    integrals = np.stack(
        [np.polynomial.legendre.legval(2 * x - 1, np.polynomial.legendre.legint(np.eye(len(x))[n], lbnd=-1)) / 2
         for n in powers], axis=1,
    )  # fmt: skip
    return integrals @ np.linalg.inv(vandermonde)


_COLLOCATION = _integration_matrix(_NODES)


# ---- the process on the host


class HostProcess(NamedTuple):
    """A process at times tau (n,), in its frame (noised variables last), float64.

    Attributes:
        f, ggT: coefficients of dz = f z dt + g dw, (n, k, k).
        data_mean: E_0, first column of the mean matrix, (n, k).
        factor, inverse: lower triangular L of the HSM kernel's covariance and its inverse, (n, k, k).
    """

    f: np.ndarray
    ggT: np.ndarray
    data_mean: np.ndarray
    factor: np.ndarray
    inverse: np.ndarray


def float64_process(sde: SDE) -> SDE:
    """The process with float64 numpy leaves.

    Raises:
        ValueError: if it is traced, so that the host cannot look at it.
    """
    if not linalg.is_concrete(sde):
        raise ValueError(
            "the process is traced (an argument of jit): compute samplers.exponential_coefficients(sde, times, ...) "
            "outside and pass it as coefficients=."
        )
    # copies: jax 0.10.2 remembers the float32 form of a numpy array that a program has closed over
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), sde)


def evaluate(sde: SDE, tau: np.ndarray) -> HostProcess:
    """`HostProcess` of a process with numpy leaves; the covariance is the true one, without `numerical_eps`."""
    if isinstance(sde, Recipe):
        T = _frame(sde)
        B, beta = np.asarray(sde.schedule.integral(tau)), np.asarray(sde.schedule.beta(tau))[:, None, None]
        f, ggT = beta * (T @ sde.F @ T.T), beta * (T @ (2 * sde.D) @ T.T)
        ggT[:, : sde.k - sde.num_noised], ggT[:, :, : sde.k - sde.num_noised] = 0.0, 0.0
        if sde.k == 1:
            mean = np.exp(sde.F * B[:, None, None])
            factor = np.sqrt(sde.D / sde.F * np.expm1(2 * sde.F * B[:, None, None]) + sde.sigma2_0 * mean**2)
        else:
            mean, factor = host_kernel(sde.forward, B, sde.initial_in_frame)
        return HostProcess(f, ggT, mean @ T[:, 0], factor, inverse_lower(factor))
    if isinstance(sde, SubVP):
        B, beta = np.asarray(sde.schedule.integral(tau)), np.asarray(sde.schedule.beta(tau))
        f, variance_rate, mean = -0.5 * beta, beta * -np.expm1(-2 * B), np.exp(-0.5 * B)
        std = np.sqrt(np.expm1(-B) ** 2 + sde.sigma2_0 * np.exp(-B))
    elif isinstance(sde, VE):
        if sde.sigma_dist == "uniform":
            slope = sde.sigma_max - sde.sigma_min
            level = sde.sigma_min + tau * slope
            rise, variance_rate = tau * slope * (sde.sigma_min + level), 2 * slope * level
        else:
            ratio = np.log(sde.sigma_max / sde.sigma_min)
            level = sde.sigma_min * np.exp(tau * ratio)
            rise, variance_rate = sde.sigma_min**2 * np.expm1(2 * tau * ratio), 2 * ratio * level**2
        std = level if sde.sigma2_0 is None else np.sqrt(sde.sigma2_0 + rise)
        f, mean = np.zeros_like(tau), np.ones_like(tau)
    else:
        raise TypeError(f"exponential integrators know recipes, VP, sub-VP and VE, not a {type(sde).__name__}.")
    f, variance_rate, std = (v[:, None, None] for v in (f, variance_rate, std))
    return HostProcess(f, variance_rate, mean[:, None], std, 1 / std)


def transitions(sde: SDE, tau: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Psi(s, tau) in the frame, from tau down to s, (n, k, k)."""
    if isinstance(sde, Recipe):
        T = _frame(sde)
        gap = np.asarray(sde.schedule.between(s, tau))
        return _expm(-(T @ sde.F @ T.T)[None] * gap[:, None, None])
    return (evaluate(sde, s).data_mean / evaluate(sde, tau).data_mean)[:, :, None]


def _frame(sde: Recipe) -> np.ndarray:
    return np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)


def host_kernel(dynamics: linalg.LinearDynamics, B: np.ndarray, initial) -> tuple[np.ndarray, np.ndarray]:
    """`linalg.linear_transition` in numpy: mean (n, k, k) and lower triangular factor (n, k, k)."""
    index = np.clip(np.floor(B / dynamics.step), 0, len(dynamics.mean) - 1).astype(int)
    rest = np.maximum(B - index * dynamics.step, 0.0)
    short = _expm(dynamics.F[None] * rest[:, None, None])
    mean = short @ dynamics.mean[index]
    flows = _expm(dynamics.F * (rest[:, None] * _NODES)[..., None, None])
    columns = np.sqrt(rest[:, None] * _WEIGHTS)[..., None, None] * (flows @ dynamics.G)  # (n, NODES, k, r)
    columns = np.moveaxis(columns, 1, -1).reshape(len(B), len(dynamics.F), -1)
    return mean, triangular(np.concatenate([short @ dynamics.factor[index], columns, mean @ initial], axis=-1))


def _expm(a: np.ndarray) -> np.ndarray:
    """e^A of small matrices (n, k, k) at once: a Taylor series and squarings, to a few roundings."""
    norm = np.abs(a).sum(axis=-1).max(initial=0.0)
    squarings = max(0, math.ceil(math.log2(max(norm, 1e-300))))
    a, eye = a / 2.0**squarings, np.eye(a.shape[-1])
    out = eye + np.zeros_like(a)
    for j in range(20, 0, -1):
        out = eye + a @ out / j
    for _ in range(squarings):
        out = out @ out
    return out


def triangular(a: np.ndarray) -> np.ndarray:
    """Lower triangular L with a positive diagonal and L L^T = A A^T, (n, k, m) -> (n, k, k)."""
    factor = np.swapaxes(np.linalg.qr(np.swapaxes(a, -1, -2), mode="r"), -1, -2)
    return factor * np.where(np.diagonal(factor, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[:, None, :]


def inverse_lower(L: np.ndarray) -> np.ndarray:
    """L^-1 by substitution, which keeps every entry's relative accuracy however the rows are scaled."""
    k = L.shape[-1]
    out = np.zeros_like(L)
    for c in range(k):
        out[:, c, c] = 1 / L[:, c, c]
        for r in range(c + 1, k):
            out[:, r, c] = -np.sum(L[:, r, c:r] * out[:, c:r, c], axis=-1) / L[:, r, r]
    return out


# ---- the flow on a grid


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of a process along a grid t_0 > ... > t_n: at its times, and at the nodes of panels between them.

    Attributes:
        times: (n + 1,) the grid.
        at: the process at the times.
        rotation: O at the times, (n + 1, k, k): R = L O. It is 1 at t_n.
        step: which step a panel belongs to, (P,).
        tau: nodes, (P, NODES). weight: their weights for integrals in tau, (P, NODES).
        inside: the process at the nodes, leading axes (P, NODES). inner_rotation: O at the nodes.
    """

    sde: SDE
    times: np.ndarray
    at: HostProcess
    rotation: np.ndarray
    step: np.ndarray
    tau: np.ndarray
    weight: np.ndarray
    inside: HostProcess
    inner_rotation: np.ndarray

    @functools.cached_property
    def psi(self) -> np.ndarray:
        """Psi(t_{i+1}, t_i), (n, k, k)."""
        return transitions(self.sde, self.times[:-1], self.times[1:])

    @functools.cached_property
    def R(self) -> np.ndarray:
        return self.at.factor @ self.rotation

    def integrate(self, values: np.ndarray) -> np.ndarray:
        """Integrals from t_i down to t_{i+1} of values (P, NODES, ...) -> (n, ...)."""
        sums = np.einsum("pn,pn...->p...", self.weight, values)
        out = np.zeros((len(self.times) - 1, *sums.shape[1:]))
        np.add.at(out, self.step, -sums)
        return out

    @functools.cached_property
    def to_end_of_step(self) -> np.ndarray:
        """Psi(t_{i+1}, tau) at every node, (P, NODES, k, k)."""
        ends = np.repeat(self.times[1:][self.step], NODES)
        return transitions(self.sde, self.tau.ravel(), ends).reshape(*self.tau.shape, self.sde.k, self.sde.k)


def flow(sde: SDE, times: np.ndarray) -> Flow:
    """Follow the process along a grid. `sde` has numpy leaves; times > 0."""
    edges, step = _panels(sde, times)
    left, right = np.log(edges[:, 0]), np.log(edges[:, 1])
    tau = np.exp(left[:, None] + (right - left)[:, None] * _NODES)
    weight = (right - left)[:, None] * _WEIGHTS * tau
    inside = evaluate(sde, tau.ravel())
    inside = HostProcess(*(v.reshape(*tau.shape, *v.shape[1:]) for v in inside))
    ends, nodes = propagate(rotation_rate(inside) * tau[..., None, None], right - left)
    # panels run downwards step by step; O is carried upwards from 1 at the lowest time
    current, at_time, starts = np.eye(sde.k), [np.eye(sde.k)], np.empty((len(step), sde.k, sde.k))
    for p in range(len(step) - 1, -1, -1):
        starts[p] = current
        current = ends[p] @ current
        if p == 0 or step[p - 1] != step[p]:
            at_time.append(current)
    return Flow(
        sde=sde, times=times, at=evaluate(sde, times), rotation=np.stack(at_time[::-1]), step=step, tau=tau,
        weight=weight, inside=inside, inner_rotation=nodes @ starts[:, None],
    )  # fmt: skip


def _panels(sde: SDE, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intervals (P, 2), downwards, on which log t and the process's rates change little; and the step of each."""
    edges, step = np.stack([times[1:], times[:-1]], axis=1), np.arange(len(times) - 1)
    while True:
        at = evaluate(sde, edges.ravel())
        rate = np.maximum(np.linalg.norm(at.f, axis=(1, 2)), np.linalg.norm(whitened_noise(at), axis=(1, 2)))
        strength = rate.reshape(edges.shape).min(axis=1) * (edges[:, 1] - edges[:, 0])
        split = (np.log(edges[:, 1] / edges[:, 0]) > WIDTH) | (strength > STRENGTH)
        if not split.any():
            return edges, step
        middle = np.sqrt(edges[:, 0] * edges[:, 1])
        halves = [
            np.array([[m, b], [a, m]]) if cut else np.array([[a, b]]) for (a, b), m, cut in zip(edges, middle, split)
        ]
        edges, step = np.concatenate(halves), np.repeat(step, 1 + split)


def whitened_noise(at: HostProcess) -> np.ndarray:
    """H = L^-1 g g^T L^-T, (..., k, k)."""
    return at.inverse @ at.ggT @ np.swapaxes(at.inverse, -1, -2)


def rotation_rate(at: HostProcess) -> np.ndarray:
    """A of eq. (3), (..., k, k)."""
    upper = np.triu(at.inverse @ at.f @ at.factor + 0.5 * whitened_noise(at), 1)
    return upper - np.swapaxes(upper, -1, -2)


def propagate(rate: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve dW/du = rate W, W = 1 at the start, on each panel by Gauss collocation.

    Args:
        rate: (P, NODES, k, k). width: (P,).

    Returns:
        W at the ends (P, k, k) and at the nodes (P, NODES, k, k).
    """
    panels, nodes, k, _ = rate.shape
    rate = width[:, None, None, None] * rate
    system = np.eye(nodes * k) - np.einsum("ij,pjab->piajb", _COLLOCATION, rate).reshape(panels, nodes * k, nodes * k)
    start = np.broadcast_to(np.tile(np.eye(k), (nodes, 1)), (panels, nodes * k, k))
    inner = np.linalg.solve(system, start).reshape(panels, nodes, k, k)
    return np.eye(k) + np.einsum("j,pjab,pjbc->pac", _WEIGHTS, rate, inner), inner


def damped(flow: Flow, lam: float) -> np.ndarray:
    """W(t_{i+1}, t_i), (n, k, k), with dW/dtau = (A + lam^2 / 2 H) W: see `gddim`. Orthogonal for lam = 0."""
    rate = (rotation_rate(flow.inside) + 0.5 * lam**2 * whitened_noise(flow.inside)) * flow.tau[..., None, None]
    widths = flow.weight[:, 0] / (_WEIGHTS[0] * flow.tau[:, 0])
    downwards, _ = propagate(-rate[:, ::-1], widths)
    out = np.tile(np.eye(flow.sde.k), (len(flow.times) - 1, 1, 1))
    for p, i in enumerate(flow.step):
        out[i] = downwards[p] @ out[i]
    return out


# ---- what is read off a state and its score


def eps_matrices(sde: SDE, at: HostProcess) -> tuple[np.ndarray, np.ndarray]:
    """Mz and Ms (n, k, k) with eps_L = Mz z + Ms score, by eq. (5) where scores are missing. In the frame."""
    rest = sde.k - sde.num_noised
    from_state, from_score = np.zeros_like(at.factor), -np.swapaxes(at.factor, 1, 2)
    if rest:
        v = np.einsum("nij,nj->ni", at.inverse, at.data_mean)
        ratio = v[:, :rest, None] * v[:, None, rest:] / np.sum(v[:, rest:] ** 2, axis=1)[:, None, None]
        from_state[:, :rest] = at.inverse[:, :rest] - ratio @ at.inverse[:, rest:]
        from_score[:, :rest] = ratio @ from_score[:, rest:]
    return from_state, from_score


def data_matrices(sde: SDE, at: HostProcess) -> tuple[np.ndarray, np.ndarray]:
    """Mz and Ms (n, 1, k) with x0_hat = Mz z + Ms score: the least squares solution of eq. (5)'s last r rows."""
    v = np.einsum("nij,nj->ni", at.inverse, at.data_mean)
    v[:, : sde.k - sde.num_noised] = 0.0
    v = (v / np.sum(v**2, axis=1, keepdims=True))[:, None]
    return v @ at.inverse, v @ np.swapaxes(at.factor, 1, 2)


def log_snr(at: HostProcess) -> np.ndarray:
    """lambda = 1/2 log E_0^T Sigma^-1 E_0, half the log of the information on x_0 in z_t; log(a / sigma) for k = 1."""
    v = np.einsum("...ij,...j->...i", at.inverse, at.data_mean)
    return 0.5 * np.log(np.sum(v**2, axis=-1))


def log_snr_rate(at: HostProcess) -> np.ndarray:
    """d lambda / dt = -1/2 v^T H v / |v|^2 <= 0."""
    v = np.einsum("...ij,...j->...i", at.inverse, at.data_mean)
    return -0.5 * np.einsum("...i,...ij,...j->...", v, whitened_noise(at), v) / np.sum(v**2, axis=-1)
