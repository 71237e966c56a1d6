"""A linear process along a grid, in float64 on the CPU: what the exponential integrators are made of.

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

**The process.** f, g g^T, E, L and Psi are what its own methods return for float64 times, so any linear process will
do, whoever wrote it. They must compute in the type of the times that they are given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Numbers
from sgmjax.sdes import SDE, linalg

NODES = 10  # Gauss-Legendre nodes of a panel
WIDTH = 0.35  # of a panel in log t
STRENGTH = 2.0  # largest |f| dt over a panel
PIECE = 256  # times at which a process is evaluated at once

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
    """The process with float64 numpy leaves, and with its true covariance (see `SDE.without_ridge`).

    Raises:
        ValueError: if it is traced, so that the host cannot look at it, or no pytree, so that its numbers are hidden.
    """
    if not linalg.is_concrete(sde):
        raise InputError(
            "the process is traced (an argument of jit): compute samplers.exponential_coefficients(sde, times, ...) "
            "outside and pass it as coefficients=."
        )
    if any(leaf is sde for leaf in jax.tree.leaves(sde)):
        raise InputError(
            f"{type(sde).__name__} is no pytree: decorate the class with @jax.tree_util.register_dataclass."
        )
    return jax.tree.map(_float64, sde.without_ridge())


def _float64(leaf) -> np.ndarray:
    """A copy: jax 0.10.2 remembers the float32 form of a numpy array that a program has closed over."""
    number = isinstance(leaf, (int, float)) or jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return np.array(leaf, np.float64 if number else None)


def evaluate(sde: SDE, tau: np.ndarray) -> HostProcess:
    """`HostProcess` by the process's own methods. sde: from `float64_process`. tau: (n,)."""
    f, ggT, data_mean, factor = on_host(_coefficients, sde, tau)
    return HostProcess(f, ggT, data_mean, factor, inverse_lower(factor))


def forward(sde: SDE, s: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
    """Mean and factor of z_t given z_s, s <= t, in the frame, (n, k, k) each."""
    return on_host(_between, sde, s, t)


def backward(sde: SDE, t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Psi(s, t) in the frame, from t down to s, (n, k, k). For gaps over which it is well conditioned."""
    [mean] = on_host(_mean_between, sde, s, t)
    return np.linalg.inv(mean)


def on_host(function: Callable, sde: SDE, *times: np.ndarray) -> list[np.ndarray]:
    """function(sde, *times) in float64 on the CPU, whatever is traced, or sharded over a mesh, around the call.

    The times go in pieces of one size, so that a process is compiled once and not for every grid.
    """
    n = len(times[0])
    padded = [np.append(t, np.full(-n % PIECE, t[-1])).reshape(-1, PIECE) for t in times]

    def run() -> list[np.ndarray]:
        with jax.enable_x64(True):
            here = jax.device_put(sde, _host())
            pieces = [jax.device_get(function(here, *jax.device_put(piece, _host()))) for piece in zip(*padded)]
        return [np.concatenate(values)[:n] for values in zip(*pieces)]

    with ThreadPoolExecutor(1) as own:  # a new thread has neither the caller's trace nor its mesh
        return own.submit(run).result()


@functools.cache
def _host() -> Any:
    """The first CPU device; where JAX was told to have none, whatever it has."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


@jax.jit
def _coefficients(sde: SDE, tau) -> tuple:
    T, rest = _frame(sde), sde.k - sde.num_noised
    f = _double(sde, "drift_matrix", sde.drift_matrix(tau))
    ggT = _double(sde, "diffusion", sde.diffusion_squared(tau))
    kernel = sde.transition(tau, "hsm")
    mean, factor = _double(sde, "transition", kernel.mean), _double(sde, "transition", kernel.inner)
    # the turn leaves rounding errors where no noise enters, which would pass for noise
    ggT = linalg.conjugate(T, ggT).at[:, :rest].set(0.0).at[:, :, :rest].set(0.0)
    return linalg.conjugate(T, f), ggT, linalg.apply(T, mean[:, :, 0]), factor


@jax.jit
def _between(sde: SDE, s, t) -> tuple:
    return *_mean_between(sde, s, t), _double(sde, "transition_between", sde.transition_between(s, t).inner)


@jax.jit
def _mean_between(sde: SDE, s, t) -> tuple:
    """Apart, since it compiles in a tenth of the time."""
    mean = _double(sde, "transition_between", sde.transition_between(s, t).mean)
    return (linalg.conjugate(_frame(sde), mean),)


def _frame(sde: SDE) -> Any:
    return jnp.eye(sde.k) if sde.frame is None else sde.frame


def _double(sde: SDE, method: str, value) -> Any:
    """The value of a process's method, refused unless it has one (k, k) matrix of float64 for each time."""
    name = f"{type(sde).__name__}.{method}"
    if value.shape != (PIECE, sde.k, sde.k):
        raise InputError(f"{name} has shape {value.shape} at {PIECE} times: it must be (batch, k, k), k = {sde.k}.")
    if value.dtype != jnp.float64:
        raise InputError(f"{name} is {value.dtype} at float64 times: compute in t.dtype, as jnp.asarray(x, t.dtype).")
    return value


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
        step: which step a panel belongs to, (P,). edges: of the panels, lower and upper, (P, 2).
        tau: nodes, (P, NODES). weight: their weights for integrals in tau, (P, NODES).
        inside: the process at the nodes, leading axes (P, NODES). inner_rotation: O at the nodes.
    """

    sde: SDE
    times: np.ndarray
    at: HostProcess
    rotation: np.ndarray
    step: np.ndarray
    edges: np.ndarray
    tau: np.ndarray
    weight: np.ndarray
    inside: HostProcess
    inner_rotation: np.ndarray

    @functools.cached_property
    def _to_end(self) -> tuple[np.ndarray, np.ndarray]:
        """Psi(t_{i+1}, .) at the edges of every panel, lower and upper, (P, k, k) each.

        Psi over a long step may be ill conditioned; it is the product of those over its panels, which are not.
        """
        panels = backward(self.sde, self.edges[:, 1], self.edges[:, 0])
        lower, upper = np.empty_like(panels), np.empty_like(panels)
        for p in range(len(panels) - 1, -1, -1):
            last = p + 1 == len(panels) or self.step[p + 1] != self.step[p]
            lower[p] = np.eye(self.sde.k) if last else upper[p + 1]
            upper[p] = lower[p] @ panels[p]
        return lower, upper

    @functools.cached_property
    def psi(self) -> np.ndarray:
        """Psi(t_{i+1}, t_i), (n, k, k)."""
        return self._to_end[1][np.searchsorted(self.step, np.arange(len(self.times) - 1))]

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
        inner = backward(self.sde, self.tau.ravel(), np.repeat(self.edges[:, 0], NODES))
        return self._to_end[0][:, None] @ inner.reshape(*self.tau.shape, self.sde.k, self.sde.k)


def flow(sde: SDE, times: np.ndarray) -> Flow:
    """Follow the process along a grid. `sde` is from `float64_process`; times > 0."""
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
        sde=sde, times=times, at=evaluate(sde, times), rotation=np.stack(at_time[::-1]), step=step, edges=edges,
        tau=tau, weight=weight, inside=inside, inner_rotation=nodes @ starts[:, None],
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


def damped(flow: Flow, lam: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """W(t_{i+1}, tau) with dW/ds = (A + lam^2 / 2 H) W: see `gddim`. Orthogonal for lam = 0.

    Args:
        lam: a number, one for each step (n,), or one for each node (P, NODES).

    Returns:
        W at the start of every step, (n, k, k), and at the nodes, (P, NODES, k, k).
    """
    if np.ndim(lam) < 2:
        lam = np.broadcast_to(lam, len(flow.times) - 1)[flow.step, None]
    strength = np.asarray(lam)[..., None, None] ** 2
    rate = (rotation_rate(flow.inside) + 0.5 * strength * whitened_noise(flow.inside)) * flow.tau[..., None, None]
    widths = flow.weight[:, 0] / (_WEIGHTS[0] * flow.tau[:, 0])
    # the transpose, from 1 at the lower end upwards: it shrinks
    ends, nodes = propagate(-np.swapaxes(rate, -1, -2), widths)
    whole = np.tile(np.eye(flow.sde.k), (len(flow.times) - 1, 1, 1))
    for p in range(len(flow.step) - 1, -1, -1):
        i = flow.step[p]
        nodes[p] = nodes[p] @ whole[i]
        whole[i] = ends[p] @ whole[i]
    return np.swapaxes(whole, -1, -2), np.swapaxes(nodes, -1, -2)


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
