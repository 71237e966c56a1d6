"""Any linear process: drift and noise matrices that are functions of time, without a clock that they share.

    dz = f(t) z dt + g(t) dw,      f, g (k, k) functions of t in [0, 1].

The complete recipe (`_recipe`) has constant matrices and one rate beta(t). This has neither: the straight path of flow
matching, cosine schedules and frictions that change in time are each a few lines (`paths`). Its kernels come from
tables (`_table`), made on the host in float64, and are right in float32 at every t.

What samples it is the reverse process from its own law at t = 1, as for every process: so at t = 1 the data must be
forgotten, sigma(1) of `estimate` be large, or the prior be given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Matrices, Scalar, Square, Times
from sgmjax.sdes import _table, linalg
from sgmjax.sdes._estimate import BLIND
from sgmjax.sdes._recipe import _frame, check_variance, initial_factor, without_rounding
from sgmjax.sdes._table import Table
from sgmjax.sdes._types import Matrix
from sgmjax.sdes.base import SDE, Kernel, Matching

FORGOTTEN = (
    10.0  # noise level at t = 1 from which data of unit variance count as forgotten: a hundredth of the variance
)

_DATA = ["forward", "backward", "starts", "spread", "initial", "initial_in_frame", "prior", "frame", "sigma2_0"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Linear(SDE):
    """A linear process by its tables. Build it with `linear`.

    Attributes:
        forward: table of f and g, in the frame.
        backward: of f + g g^T P downwards, P the prior's precision, the linear part of the reverse process.
        starts: of `forward`, from t = 0 to each edge.
        spread: the integral of g g^T from 0 to each edge, (n, k, k).
        initial, initial_in_frame: factor of Cov[z_0 | x_0], (k, k), and the same in the frame.
        prior: factor of the prior's covariance, (k, k).
        frame: see `Kernel`.
        sigma2_0: variance of the data variable at t = 0.
    """

    forward: Table
    backward: Table
    starts: Any
    spread: Any
    initial: Any
    initial_in_frame: Any
    prior: Any
    frame: Any
    sigma2_0: Any
    k: int
    num_noised: int
    name: str = "linear"

    def __repr__(self) -> str:
        return f"<{self.name}: a linear process of {self.k} variables, {self.num_noised} of them with noise>"

    def _turn_back(self, matrix: Any) -> Any:
        return matrix if self.frame is None else linalg.conjugate(jnp.transpose(self.frame), matrix)

    def drift_matrix(self, t: Times) -> Matrices:
        pieces = self.forward.pieces
        return self._turn_back(_table.coefficient(pieces, pieces.drift, t))

    def diffusion(self, t: Times) -> Matrices:
        pieces = self.forward.pieces
        noise = _table.coefficient(pieces, pieces.noise, t)
        if self.frame is None:
            return noise
        return linalg.matmul(jnp.asarray(self.frame, t.dtype).T[None], noise)

    def diffusion_between(self, s: Times, t: Times) -> Matrices:
        pieces = self.forward.pieces
        inside = _table.place(pieces, s)[0] == _table.place(pieces, t)[0]
        return jnp.where(inside[:, None, None], self._noise_over(s, t), self._spread(t) - self._spread(s))

    def _spread(self, t: Times) -> Any:
        """The integral of g g^T from 0 to t."""
        which, _ = _table.place(self.forward.pieces, t)
        edges = jnp.asarray(self.forward.pieces.edges, t.dtype)
        return jnp.asarray(self.spread, t.dtype)[which] + self._noise_over(edges[which], t)

    def _noise_over(self, s: Times, t: Times) -> Any:
        """The integral of g g^T from s to t, within one piece."""
        nodes, weights = (jnp.asarray(v, t.dtype) for v in (_table.UNIT_NODES, _table.UNIT_WEIGHTS))
        each = self.diffusion_squared((s[:, None] + (t - s)[:, None] * nodes[None]).ravel())
        each = each.reshape(len(t), len(nodes), self.k, self.k)
        return (t - s)[:, None, None] * jnp.sum(weights[None, :, None, None] * each, axis=1)

    def _kernel(self, mean: Any, inner: Any) -> Kernel:
        return Kernel(mean=self._turn_back(mean), inner=inner, frame=self.frame, num_noised=self.num_noised)

    def transition(self, t: Times, matching: Matching = "hsm") -> Kernel:
        initial = self.initial_in_frame if matching == "hsm" or self.k == 1 else None
        return self._kernel(*_table.from_start(self.forward, self.starts, t, initial))

    def transition_between(self, s: Times, t: Times) -> Kernel:
        return self._kernel(*_table.between(self.forward, s, t))

    def reverse_linear(self, t: Times, s: Times) -> Kernel:
        return self._kernel(*_table.between(self.backward, t, s))

    def split_precision(self) -> Square:
        inverse = np.linalg.inv if linalg.is_concrete(self.prior) else jnp.linalg.inv
        return inverse(self.prior @ self.prior.T)

    def initial_factor(self) -> Square:
        return self.initial

    def initial_variance(self) -> Scalar:
        return self.sigma2_0

    def distance_to_prior(self, t: Times) -> Times:
        return jnp.ones_like(t)

    def prior_factor(self) -> Square:
        return self.prior


jax.tree_util.register_dataclass(Linear, _DATA, ["k", "num_noised", "name"])


def linear(
    f: Callable[[Any], Any],
    g: Callable[[Any], Any],
    *,
    Sigma_0: Matrix | None = None,
    sigma2_0: float = 0.0,
    prior: Matrix | None = None,
    variables: tuple[str, ...] | None = None,
    name: str = "linear",
) -> Linear:
    """The process dz = f(t) z dt + g(t) dw, z[:, 0] the data variable, the others independent of it at t = 0.

    Args:
        f: t -> drift matrix (k, k), or a number for k = 1; smooth on [0, 1], in numpy or jax.numpy. It is evaluated
            on the host, in float64, at some hundreds of times.
        g: t -> what multiplies dw, (k, r) with r at most k, or a number. It may begin as sqrt(t) at 0.
        Sigma_0: (k - 1, k - 1) covariance of the auxiliary variables at t = 0; needed for k > 1.
        sigma2_0: variance of the data variable about x_0 at t = 0.
        prior: (k, k) covariance of the Gaussian from which sampling starts; None: that of the kernel at t = 1, for
            which the data must be forgotten there.
        variables: names for error messages.
        name: of the process.

    Raises:
        InputError: one line: values that are not finite or of other shapes, a function that jumps, noise that never
            reaches a variable, a data column that vanishes, data that are not forgotten at t = 1 without a prior.

    Reference: Saerkkae & Solin 2019, Applied Stochastic Differential Equations, ch. 6 (the moments).

    Examples:
        >>> sde = sdes.linear(lambda t: -10.0 * t, lambda t: np.sqrt(20.0 * t))  # VP with beta = 20 t
        >>> kernel = sde.transition(jnp.array([0.5]))
        >>> round(float(kernel.mean[0, 0, 0]), 3), round(float(kernel.covariance[0, 0, 0]), 3)  # e^-1.25, 1 - e^-2.5
        (0.287, 0.918)
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        drift, noise, k = _on_host(f, g)
        names = list(variables or ["data"] + [f"auxiliary {i}" for i in range(1, k)])
        initial = _initial(k, Sigma_0, sigma2_0)
        pieces = _table.cut(drift, noise)
        spread = _spread_at_edges(pieces)
        turn, num_noised = _frame(spread[-1], "auto") if np.abs(spread[-1]).max() > 0 else (None, k)
        if turn is not None:
            T = np.asarray(turn)
            turned = np.einsum("ij,nmjl->nmil", T, pieces.noise)
            turned[:, :, : k - num_noised] = 0.0  # the turn leaves rounding errors where no noise enters
            pieces = dataclasses.replace(pieces, drift=np.einsum("ij,nmjl,pl->nmip", T, pieces.drift, T), noise=turned)
        forward = _table.tabulate(pieces)
        starts = _table.starts(forward)
        in_frame = initial if turn is None else np.asarray(turn) @ initial
        mean, factor = _end(forward, starts, in_frame, turn)
        _check_kernels(forward, starts, in_frame, turn, names)
        prior_factor = _prior(prior, k, mean, factor)
        P = np.linalg.inv(prior_factor @ prior_factor.T)
        P = P if turn is None else np.asarray(turn) @ P @ np.asarray(turn).T
        squared = _square_series(pieces.noise)
        pulled = np.einsum("nmij,jl->nmil", squared, P)
        pulled[:, : pieces.drift.shape[1]] += pieces.drift
        backward = _table.tabulate(pieces, pulled, down=True)
    return Linear(
        forward=forward, backward=backward, starts=starts, spread=spread[:-1], initial=initial,
        initial_in_frame=in_frame, prior=prior_factor, frame=turn, sigma2_0=sigma2_0, k=k, num_noised=num_noised,
        name=name,
    )  # fmt: skip


def _on_host(f: Callable, g: Callable) -> tuple[Callable, Callable, int]:
    """f and g as functions of a float that return (k, k) float64; and k."""

    def matrix(function: Callable, label: str, t: float) -> np.ndarray:
        value = np.asarray(function(np.float64(t)), np.float64)
        value = value.reshape(1, 1) if value.ndim == 0 else value
        if value.ndim != 2:
            raise InputError(f"{label}({t:g}) has shape {value.shape}: give a (k, k) matrix, or a number for k = 1.")
        return value

    k = matrix(f, "f", 0.5).shape[0]

    def drift(t: float) -> np.ndarray:
        value = matrix(f, "f", t)
        if value.shape != (k, k):
            raise InputError(f"f({t:g}) has shape {value.shape}: give a ({k}, {k}) matrix at every t.")
        return value

    def noise(t: float) -> np.ndarray:
        value = matrix(g, "g", t)
        if value.shape[0] != k or not 1 <= value.shape[1] <= k:
            raise InputError(f"g({t:g}) has shape {value.shape}: give ({k}, r), r from 1 to {k}, as f is ({k}, {k}).")
        return np.concatenate([np.zeros((k, k - value.shape[1])), value], axis=1)

    return drift, noise, k


def _initial(k: int, Sigma_0: Any, sigma2_0: float) -> np.ndarray:
    check_variance(sigma2_0)
    if k == 1 and Sigma_0 is not None:
        raise InputError("Sigma_0: is of auxiliary variables, and this process has none; leave it out.")
    known = np.zeros((0, 0)) if Sigma_0 is None else np.asarray(without_rounding(Sigma_0, singular=True))
    if known.shape != (k - 1, k - 1):
        raise InputError(f"Sigma_0 covers the {k - 1} auxiliary variables at t = 0: give a {k - 1} x {k - 1} matrix.")
    return np.asarray(initial_factor(k, known, float(sigma2_0)))


def _square_series(noise: np.ndarray) -> np.ndarray:
    """The power series of g g^T, (n, 2 DEGREE + 1, k, k)."""
    n, terms, k, _ = noise.shape
    out = np.zeros((n, 2 * terms - 1, k, k))
    for i in range(terms):
        out[:, i : i + terms] += noise[:, i, None] @ np.swapaxes(noise, 2, 3)
    return out


def _spread_at_edges(pieces: _table.Pieces) -> np.ndarray:
    """The integral of g g^T from 0 to each edge, (n + 1, k, k)."""
    squared = _square_series(pieces.noise)
    powers = np.arange(squared.shape[1])
    weights = np.where(powers % 2 == 0, 1 / (powers + 1), 0.0)[:, None, None]  # half the integrals of x^m
    each = np.diff(pieces.edges)[:, None, None] * np.sum(squared * weights, axis=1)
    return np.concatenate([np.zeros_like(each[:1]), np.cumsum(each, axis=0)])


def _end(forward: Table, starts: Any, initial: np.ndarray, turn: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance factor at t = 1, out of the frame."""
    n = len(forward.pieces.edges) - 1
    mean = forward.mean[n - 1] @ starts[0][-1]
    columns = [forward.mean[n - 1] @ starts[1][-1], forward.factor[n - 1], mean @ initial]
    factor = linalg.triangular_on_host(np.concatenate(columns, axis=1))
    if turn is None:
        return mean, factor
    T = np.asarray(turn)
    return T.T @ mean @ T, T.T @ factor


def _check_kernels(forward: Table, starts: Any, initial: np.ndarray, turn: Any, names: list[str]) -> None:
    """Raise for noise that does not reach a variable, and for a state that forgets the data before its end."""
    means, factors = starts
    edges, T = forward.pieces.edges[:-1], np.eye(len(initial)) if turn is None else np.asarray(turn)
    columns = np.concatenate([factors, means @ initial], axis=2)
    inner = linalg.triangular_on_host(columns)
    half = len(edges) * 3 // 4
    scale = np.sqrt(np.sum((T.T @ inner[half]) ** 2, axis=1))
    size = np.sqrt(np.sum((T.T @ means[half] @ T) ** 2, axis=1))
    missed = scale <= 1e-12 * np.maximum(size, 1e-300)
    if missed.any():
        lost = ", ".join(f"{i} ({names[i]})" for i in np.flatnonzero(missed))
        raise InputError(
            f"noise never reaches phase variable {lost}: couple it to a noised variable through f, or give it noise in "
            "g."
        )
    if np.any(np.diagonal(inner[half]) <= 1e-14 * np.abs(inner[half]).max()):
        raise InputError("the kernel's covariance is singular: noise does not reach some combination of the variables.")
    for i in range(1, len(edges)):
        column = T @ np.eye(len(T))[0]
        white = np.linalg.solve(inner[i], means[i] @ column) if np.all(np.diagonal(inner[i]) > 0) else np.ones(1)
        if not np.linalg.norm(white) > 1 / BLIND:
            raise InputError(
                f"the data column of the mean vanishes at t = {edges[i]:.4g}: from there on the state knows nothing of "
                "the data. End the process before, by stretching time."
            )


def _prior(prior: Any, k: int, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The factor of the prior's covariance, (k, k)."""
    covariance = factor @ factor.T
    if prior is None:
        level = 1 / np.linalg.norm(np.linalg.solve(factor, mean[:, 0]))
        if level < FORGOTTEN:
            raise InputError(
                f"the data are not forgotten at t = 1, where the noise level is {level:.3g}: let it grow beyond "
                f"{FORGOTTEN:g}, or give prior=, the covariance from which sampling starts."
            )
        return np.linalg.cholesky(covariance)
    prior = np.asarray(prior, np.float64)
    prior = prior.reshape(1, 1) if prior.ndim == 0 else prior
    if prior.shape != (k, k):
        raise InputError(f"prior has shape {prior.shape}: give a ({k}, {k}) covariance.")
    try:
        return np.linalg.cholesky(prior)
    except np.linalg.LinAlgError:
        raise InputError("prior must be a symmetric positive definite covariance.") from None
