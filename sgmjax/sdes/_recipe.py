"""The complete recipe: every linear SDE with a given Gaussian stationary law, for any number of phase variables.

    dz = beta(t) F z dt + sqrt(beta(t)) G dw,    F = -(D + Q) Sigma_inf^-1,    G G^T = 2 D,

with D symmetric positive semi-definite and Q skew-symmetric, leaves N(0, Sigma_inf) invariant. VP, CLD, PSLD and third-
order Langevin dynamics are members (`sgmjax.sdes.processes`).

Reference: Ma et al. 2015 (the recipe); Pandey & Mandt 2023, sec. 3.1 (its use for diffusion models).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._ranges import NON_NEGATIVE, NonNegativeFloat, check_range
from sgmjax._types import Matrices, Scalar, Square, Times
from sgmjax.sdes import linalg
from sgmjax.sdes._types import Frame, Matrix, NonNegative, Positive, check_one_number
from sgmjax.sdes.base import SDE, Kernel, Matching
from sgmjax.sdes.schedules import LinearSchedule, Schedule

_DATA = [
    "D", "Q", "Sigma_inf", "schedule", "F", "G", "initial", "prior", "frame", "forward", "backward", "initial_in_frame",
    "sigma2_0",
]  # fmt: skip
_META = ["k", "num_noised", "numerical_eps", "name"]


def _derived() -> Any:
    """A field that follows from the others, or is a table: not printed."""
    return dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe(SDE):
    """A process of the complete recipe. Build it with `recipe` or a named constructor, which fill the derived fields.

    Attributes:
        D, Q, Sigma_inf: the recipe, (k, k) each.
        schedule: beta(t) and its integral.
        F, G: drift matrix and diffusion factor, (k, k).
        initial: (k, k) factor of Cov[z_0 | x_0]: sigma2_0 for the data variable, Sigma_0 for the others.
        prior: (k, k) factor of Sigma_inf.
        frame: None, or an orthogonal T whose last `num_noised` rows span the range of D.
        forward: dynamics of the process in the frame, (T F T^-1, T G), with their table.
        backward: the same of the reverse process's linear part, F = -(D - Q) Sigma_inf^-1: the recipe with Q negated.
        initial_in_frame: T initial.
        numerical_eps: added to the diagonal of the perturbation kernel's covariance, as the official CLD and PSLD
            codes do. Not needed for precision here; so that their checkpoints sample identically.
        sigma2_0: variance of the data variable at t = 0 (LSGM's small noise on the latent); otherwise zero.
    """

    D: Any
    Q: Any
    Sigma_inf: Any
    schedule: Schedule
    F: Any = _derived()
    G: Any = _derived()
    initial: Any
    prior: Any = _derived()
    frame: Any = _derived()
    forward: linalg.LinearDynamics = _derived()
    backward: linalg.LinearDynamics = _derived()
    initial_in_frame: Any = _derived()
    k: int
    num_noised: int
    numerical_eps: float = 0.0
    name: str = "recipe"
    sigma2_0: Any = 0.0

    @property
    def GGT(self) -> Square:
        """G G^T = 2 D, (k, k)."""
        return 2 * self.D

    def drift_matrix(self, t: Times) -> Matrices:
        return linalg.expand_to(self.schedule.beta(t), 3) * jnp.asarray(self.F, t.dtype)[None]

    def diffusion(self, t: Times) -> Matrices:
        return linalg.expand_to(jnp.sqrt(self.schedule.beta(t)), 3) * jnp.asarray(self.G, t.dtype)[None]

    def diffusion_squared(self, t: Times) -> Matrices:
        return linalg.expand_to(self.schedule.beta(t), 3) * jnp.asarray(self.GGT, t.dtype)[None]

    def diffusion_between(self, s: Times, t: Times) -> Matrices:
        return linalg.expand_to(self.schedule.between(s, t), 3) * jnp.asarray(self.GGT, t.dtype)[None]

    def transition(self, t: Times, matching: Matching = "hsm") -> Kernel:
        initial = self.initial_in_frame if matching == "hsm" or self.k == 1 else None
        kernel = self._kernel(self.forward, self.schedule.integral(t), initial)
        return kernel.with_ridge(self.numerical_eps) if self.numerical_eps else kernel

    def without_ridge(self) -> Recipe:
        return dataclasses.replace(self, numerical_eps=0.0)

    def transition_between(self, s: Times, t: Times) -> Kernel:
        return self._kernel(self.forward, self.schedule.between(s, t))

    def reverse_linear(self, t: Times, s: Times) -> Kernel:
        return self._kernel(self.backward, self.schedule.between(s, t))

    def split_precision(self) -> Square:
        precision = np.linalg.inv(self.Sigma_inf) if linalg.is_concrete(self.Sigma_inf) else None
        return jnp.linalg.inv(self.Sigma_inf) if precision is None else precision

    def initial_factor(self) -> Square:
        return self.initial

    def initial_variance(self) -> Scalar:
        return self.sigma2_0

    def prior_factor(self) -> Square:
        return self.prior

    def inverse_variance(self, variance: Times) -> Times:
        if self.k > 1:
            raise InputError(f"{self.name} has {self.k} phase variables: the inverse variance is for one.")
        stationary, first = jnp.asarray(self.Sigma_inf)[0, 0], self.sigma2_0
        decay = -(variance - first) / (stationary - first)  # e^{2 F B} - 1
        return self.schedule.inverse(jnp.log1p(decay) / (2 * jnp.asarray(self.F)[0, 0]))

    def distance_to_prior(self, t: Times) -> Times:
        # Sigma_inf - Sigma_t = E (Sigma_inf - Sigma_0) E^T, in its data entry
        row = linalg.linear_transition(self.forward, self.schedule.integral(t))[0]
        if self.frame is not None:
            row = linalg.conjugate(jnp.transpose(self.frame), row)
        row, stationary = row[:, :1], jnp.asarray(self.Sigma_inf, t.dtype)
        initial = jnp.asarray(self.initial, t.dtype)
        excess = (stationary - linalg.matmul(initial, initial.T))[None]
        return linalg.matmul(linalg.matmul(row, excess), jnp.swapaxes(row, 1, 2))[:, 0, 0] / stationary[0, 0]

    def _kernel(self, dynamics: linalg.LinearDynamics, B, initial=None) -> Kernel:
        """Mean and factor over the process's own time B."""
        mean, inner = linalg.linear_transition(dynamics, B, initial)
        if self.frame is not None:
            mean = linalg.conjugate(jnp.transpose(self.frame), mean)
        return Kernel(mean=mean, inner=inner, frame=self.frame, num_noised=self.num_noised)


jax.tree_util.register_dataclass(Recipe, _DATA, _META)


def recipe(
    *,
    D: Matrix,
    Q: Matrix,
    Sigma_inf: Matrix | None = None,
    Sigma_0: Matrix | None = None,
    sigma2_0: NonNegative = 0.0,
    beta_min: NonNegative = 4.0,
    beta_max: Positive = 4.0,
    schedule: Schedule | None = None,
    frame: Frame = "auto",
    num_noised: int | None = None,
    numerical_eps: NonNegativeFloat = 0.0,
    variables: Sequence[str] | None = None,
    name: str = "recipe",
) -> Recipe:
    """Any process of the complete recipe, checked.

    Args:
        D: (k, k) symmetric positive semi-definite: where and how strongly noise enters (G G^T = 2 D).
        Q: (k, k) skew-symmetric: the conservative coupling.
        Sigma_inf: (k, k) symmetric positive definite covariance of the stationary law, the prior; None: identity.
        Sigma_0: (k-1, k-1) covariance of the auxiliary variables at t = 0, independent of the data; None: 0.04 of
            their stationary covariance, the published choice of CLD and PSLD.
        sigma2_0: variance of the data variable about x_0 at t = 0, as in LSGM.
        beta_min, beta_max: rate at t = 0 and t = 1, linear between.
        schedule: another rate, in place of those two.
        frame: "auto" puts the variables without noise first, so that the score of the noised ones depends on their
            own eps alone; "lower" and "upper" force a lower or upper triangular factor in the given order.
        num_noised: needed only when D is traced (inside jit or grad), where it cannot be looked at: the number of
            variables with noise, which must come last there (frame "upper": first); None: all.
        numerical_eps: see `Recipe`.
        variables: names for error messages.
        name: name of the process.

    Raises:
        ValueError: one line, for a D that is not PSD, a Q that is not skew, shapes that differ, a Sigma_inf that is
            not positive definite, a schedule beside beta_min or beta_max, or a D whose noise can never reach some
            variable (which is named): then the stationary law is never reached and the kernel stays singular.

    Reference: Pandey & Mandt 2023, eqs. (6)-(8).

    Examples:
        >>> sde = sdes.recipe(D=np.diag([0.05, 0.5, 0.2]), Q=[[0.0, -0.5, -0.3], [0.5, 0.0, 0.0], [0.3, 0.0, 0.0]])
        >>> sde.k, sde.num_noised
        (3, 3)
        >>> np.allclose(sde.F @ sde.Sigma_inf + sde.Sigma_inf @ sde.F.T + sde.GGT, 0)  # Sigma_inf is stationary
        True
    """
    D, Q = without_rounding(D, singular=True), without_rounding(Q, sign=-1)
    k = _square("D", D)
    Sigma_inf = np.eye(k) if Sigma_inf is None else without_rounding(Sigma_inf)
    for label, value in (("Q", Q), ("Sigma_inf", Sigma_inf)):
        if _square(label, value) != k:
            raise InputError(f"{label} is {value.shape[0]} x {value.shape[0]} but D is {k} x {k}: give equal sizes.")
    if schedule is None:
        schedule = LinearSchedule(beta_min=beta_min, beta_max=beta_max)
    elif not linalg.is_concrete(beta_min, beta_max) or (beta_min, beta_max) != (4.0, 4.0):
        raise InputError("beta_min, beta_max: a schedule has its own rate; leave them out, or the schedule.")
    variables = list(variables or ["data"] + [f"auxiliary {i}" for i in range(1, k)])
    Sigma_0 = 0.04 * Sigma_inf[1:, 1:] if Sigma_0 is None else without_rounding(Sigma_0, singular=True)
    if Sigma_0.shape != (k - 1, k - 1):
        raise InputError(f"Sigma_0 covers the {k - 1} auxiliary variables: give a {k - 1} x {k - 1} matrix.")
    check_one_number(numerical_eps=numerical_eps)
    check_range(numerical_eps, NON_NEGATIVE, "numerical_eps")
    if frame not in ("auto", "lower", "upper"):
        raise InputError(f"frame must be 'auto', 'lower' or 'upper', not {frame!r}.")
    check_schedule(schedule)

    # what is known is computed on the host in float64, whatever else is traced
    known_D, known_F = linalg.is_concrete(D), linalg.is_concrete(D, Q, Sigma_inf)
    if known_F:
        _check(D, Q, Sigma_inf, variables)
    xp = np if linalg.is_concrete(Sigma_inf) else jnp
    prior, precision = xp.linalg.cholesky(Sigma_inf), xp.linalg.inv(Sigma_inf)
    F = -(D + Q) @ precision if known_F else -linalg.matmul(D + Q, precision)
    G = linalg.semidefinite_factor(2 * D) if known_D else _traced_factor(2 * D)
    initial = initial_factor(k, Sigma_0, sigma2_0)
    if known_D:
        turn, num_noised = _frame(D, frame)
    else:
        turn, num_noised = np.eye(k)[::-1].copy() if frame == "upper" else None, num_noised or k

    T = np.eye(k) if turn is None else turn

    def turned(matrix):
        return T @ matrix @ T.T if linalg.is_concrete(matrix) else linalg.conjugate(T, matrix)

    D_in_frame, Q_in_frame, precision = turned(D), turned(Q), turned(precision)
    if known_D:  # the turn leaves rounding errors where no noise enters, which would pass for noise
        D_in_frame[: k - num_noised], D_in_frame[:, : k - num_noised] = 0.0, 0.0
    G_in_frame = linalg.semidefinite_factor(2 * D_in_frame) if known_D else _traced_factor(2 * D_in_frame)
    forward, backward = D_in_frame + Q_in_frame, D_in_frame - Q_in_frame
    product = np.matmul if known_F else linalg.matmul
    B_max = schedule.integral(1.0)
    return Recipe(
        D=D, Q=Q, Sigma_inf=Sigma_inf, schedule=schedule, F=F, G=G, initial=initial, prior=prior, frame=turn,
        forward=linalg.linear_dynamics(-product(forward, precision), G_in_frame, B_max),
        backward=linalg.linear_dynamics(-product(backward, precision), G_in_frame, B_max),
        initial_in_frame=T @ initial if linalg.is_concrete(initial) else linalg.matmul(T, initial),
        k=k, num_noised=num_noised, numerical_eps=float(numerical_eps), name=name, sigma2_0=sigma2_0,
    )  # fmt: skip


def initial_factor(k: int, Sigma_0, sigma2_0):
    """The factor of Cov[z_0 | x_0], (k, k)."""
    check_variance(sigma2_0)
    if linalg.is_concrete(Sigma_0, sigma2_0):
        initial = np.zeros((k, k))
        initial[0, 0] = np.sqrt(float(sigma2_0))
        try:
            initial[1:, 1:] = linalg.semidefinite_factor(Sigma_0) if k > 1 else 0.0
        except ValueError:
            raise InputError("Sigma_0 must be symmetric positive semi-definite.") from None
        return initial
    first, rest = jnp.reshape(sigma2_0, (1, 1)), jnp.asarray(Sigma_0)
    kind = jnp.result_type(first, rest, float)
    initial = jnp.zeros((k, k), kind).at[:1, :1].set(_traced_factor(first.astype(kind)))
    return initial.at[1:, 1:].set(_traced_factor(rest.astype(kind))) if k > 1 else initial


def _matrix(value):
    """float64 numpy when concrete (so that nothing is rounded before it must be), JAX otherwise."""
    if isinstance(value, (list, tuple)) and not linalg.is_concrete(value):
        return jnp.stack([jnp.stack([jnp.asarray(v) for v in row]) for row in value])
    return np.asarray(value, dtype=np.float64) if linalg.is_concrete(value) else jnp.asarray(value)


def without_rounding(value, *, sign=1, singular=False):
    """`_matrix` of a symmetric (sign 1) or skew (-1) matrix that may have been computed in float32 or less.

    What is symmetric or skew up to the rounding of that type becomes so; where the matrix may be singular, so do
    eigenvalues that are zero up to it. Float64, Python's numbers and what is traced stay as they are.
    """
    matrix = _matrix(value)
    kinds = [v.dtype for v in jax.tree.leaves(value) if hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.floating)]
    tolerance = 10 * max((float(jnp.finfo(kind).eps) for kind in kinds), default=0.0)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not linalg.is_concrete(matrix) or tolerance < 1e-10 or not square or not np.isfinite(matrix).all():
        return matrix
    size = np.abs(matrix).max(initial=0.0)
    if np.abs(matrix - sign * matrix.T).max(initial=0.0) > tolerance * size:
        return matrix
    matrix = (matrix + sign * matrix.T) / 2
    if singular and matrix[~np.eye(len(matrix), dtype=bool)].any():  # the numbers of a diagonal matrix are exact
        values, vectors = np.linalg.eigh(matrix)
        zero = np.abs(values) <= tolerance * np.abs(values).max()
        if zero.any():
            rows = matrix.any(axis=1)
            matrix = (vectors * np.where(zero, 0.0, values)) @ vectors.T * np.outer(rows, rows)
    return matrix


def _square(label: str, value) -> int:
    if value.ndim != 2 or value.shape[0] != value.shape[1] or not value.size:
        raise InputError(f"{label} has shape {tuple(value.shape)}: give a square k x k matrix.")
    return value.shape[0]


def _check(D, Q, Sigma_inf, variables) -> None:
    """Raise for a recipe that is not one. numpy float64 inputs."""
    for label, value in (("D", D), ("Q", Q), ("Sigma_inf", Sigma_inf)):
        if not np.isfinite(value).all():
            raise InputError(f"{label} has entries that are not finite.")
    size = max(np.abs(D).max(), np.finfo(np.float64).tiny)
    if np.abs(D - D.T).max() > 1e-10 * size:
        raise InputError("D is not symmetric: the complete recipe needs D = D^T; put the skew part into Q.")
    smallest = np.linalg.eigvalsh(D).min()
    if smallest < -1e-10 * size:
        raise InputError(f"D is not positive semi-definite (smallest eigenvalue {smallest:.3g}): use a D = R R^T.")
    if np.abs(Q + Q.T).max() > 1e-10 * max(np.abs(Q).max(), 1e-300):
        raise InputError("Q is not skew-symmetric: the complete recipe needs Q = -Q^T.")
    size = np.abs(Sigma_inf).max()
    if np.abs(Sigma_inf - Sigma_inf.T).max() > 1e-10 * size:
        raise InputError("Sigma_inf is not symmetric: it is a covariance.")
    smallest = np.linalg.eigvalsh(Sigma_inf).min()
    if smallest <= 1e-12 * size:
        raise InputError(f"Sigma_inf is not positive definite (smallest eigenvalue {smallest:.3g}).")

    # Kalman's controllability: the noise reaches span [G, F G, ..., F^{k-1} G]. With it and Sigma_inf > 0, Lyapunov's
    # theorem makes every eigenvalue of F lie left of zero, so the stationary law is reached from anywhere. In units of
    # the stationary law, a basis of what is new at each power: the powers themselves grow alike.
    root = np.linalg.cholesky(Sigma_inf)
    half = np.linalg.inv(root)
    F, white = -half @ (D + Q) @ half.T, half @ D @ half.T
    F = F / max(np.linalg.norm(F, 2), 1e-300)
    values, vectors = np.linalg.eigh(white)
    new = reached = vectors[:, values > 1e-12 * max(values.max(), 1e-300)]
    while new.shape[1]:
        new = F @ new
        for _ in range(2):  # orthogonal to rounding
            new = new - reached @ (reached.T @ new)
        left, singular, _ = np.linalg.svd(new, full_matrices=False)
        new = left[:, singular > 1e-10]
        reached = np.concatenate([reached, new], axis=1)
    reached = np.linalg.qr(root @ reached / np.sqrt(np.diag(Sigma_inf))[:, None])[0]
    missed = 1.0 - np.sum(reached**2, axis=1) > 1e-8
    if missed.any():
        names = ", ".join(f"{i} ({variables[i]})" for i in np.flatnonzero(missed))
        raise InputError(
            f"noise can never reach phase variable {names}: couple it to a noised variable through Q, or give it a "
            "positive entry in D."
        )


def check_variance(sigma2_0) -> None:
    """Raise for a sigma2_0 that is none; a traced one passes."""
    check_one_number(sigma2_0=sigma2_0)
    if linalg.is_concrete(sigma2_0) and not (np.isfinite(sigma2_0) and sigma2_0 >= 0):
        raise InputError(f"sigma2_0 = {sigma2_0:g}: a variance must be zero or positive.")


def check_schedule(schedule) -> None:
    """It must have a rate; beta must be non-negative and not identically zero."""
    if not hasattr(schedule, "integral"):
        raise InputError(
            f"schedule = {schedule!r}: must have beta(t) and its integral, as LinearSchedule(beta_min=8, beta_max=8); "
            "for a constant rate give beta_min and beta_max alone"
        )
    if not isinstance(schedule, LinearSchedule):
        return
    check_one_number(beta_min=schedule.beta_min, beta_max=schedule.beta_max)
    if not linalg.is_concrete(schedule):
        return
    low, high = float(schedule.beta_min), float(schedule.beta_max)
    if not (0 <= low < np.inf and 0 <= high < np.inf and low + high > 0):
        raise InputError(f"beta_min = {low:g}, beta_max = {high:g}: both must be finite and >= 0, and one positive.")


def _frame(D, choice: str):
    """(frame, number of noised variables) of a concrete D; None is the identity frame."""
    k = len(D)
    flip = np.eye(k)[::-1].copy()
    noised = np.abs(D).max(axis=1) > 1e-12 * np.abs(D).max()
    if choice == "lower":  # usable as one block only if the variables without noise already come first
        first = int(np.argmax(noised))
        return None, (k - first if noised[first:].all() and _rank(D) == k - first else k)
    if choice == "upper":
        count = int(noised.sum())
        return flip, (count if noised[:count].all() and _rank(D) == count else k)
    rank = _rank(D)
    if rank == k:
        return None, k
    if rank == noised.sum():
        T = np.concatenate([np.eye(k)[~noised], np.eye(k)[noised]])
        return (None if (np.eye(k) == T).all() else T), rank
    _, vectors = np.linalg.eigh(D)  # ascending: the null space first
    return vectors.T.copy(), rank


def _rank(D) -> int:
    values = np.linalg.eigvalsh(D)
    return int(np.sum(values > 1e-12 * values.max()))


def _traced_factor(matrix):
    """Lower triangular factor of a traced PSD matrix; pivots that are zero up to rounding give zero columns."""
    k = matrix.shape[0]
    tolerance = max(1e-12, 10 * float(jnp.finfo(matrix.dtype).eps))
    a, columns = matrix, []
    for j in range(k):
        pivot = a[j, j]
        positive = pivot > tolerance * matrix[j, j]
        root = jnp.sqrt(jnp.where(positive, pivot, 1.0))
        column = jnp.where(positive, jnp.where(jnp.arange(k) >= j, a[:, j] / root, 0.0), 0.0)
        a = a - column[:, None] * column[None, :]
        columns.append(column)
    return jnp.stack(columns, axis=1)
