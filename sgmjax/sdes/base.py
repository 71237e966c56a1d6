"""What every forward process offers, and the Gaussian perturbation kernel they share.

A state z has shape (batch, k, *event): z[:, 0] is the data variable, the rest are auxiliary (momentum, ...). Every
process is a linear SDE whose coefficients act on the phase axis alone and are shared over the event axes:

    dz = f(t) z dt + g(t) dw,      z_t | z_s ~ N(E z_s, L L^T).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError, check_floats
from sgmjax._types import Data, DType, Key, Matrices, Noise, PerExample, Scalar, Shape, Square, State, States, Times
from sgmjax.sdes import linalg

Matching = Literal["hsm", "dsm"]


def check_time(*times: Any, name: str = "t") -> None:
    """Raise ValueError unless each time is a floating array (batch,); of a traced one shape and type are known, too.

    A number would broadcast in some formulas and fail in others, and integers would round the coefficients to integers.
    """
    for t in times:
        shape = getattr(t, "shape", () if np.isscalar(t) else type(t).__name__)  # type: ignore[arg-type]
        if not isinstance(shape, tuple) or len(shape) != 1:
            what = "time" if name == "t" else "level"
            raise InputError(
                f"{name} must have shape (batch,), got {shape}: one {what} for each state (jnp.full(batch, {name}))."
            )
        dtype = jnp.result_type(t)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"{name} must be floating, got {dtype}.")


def _typed(method: Callable) -> Callable:
    """A method whose result has the type of its times, where a setting is of a wider one (NumPy's float64, say)."""

    @functools.wraps(method)
    def typed(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        dtype = jnp.result_type(*(v for v in (*args, *kwargs.values()) if not isinstance(v, str)))

        def narrow(value):
            return value if value.dtype.itemsize <= dtype.itemsize else value.astype(dtype)

        if isinstance(result, Kernel):
            mean, inner = narrow(result.mean), narrow(result.inner)
            same = mean is result.mean and inner is result.inner
            return result if same else dataclasses.replace(result, mean=mean, inner=inner)
        return narrow(result)

    return typed


def _timed(method: Callable) -> Callable:
    """A method whose arguments are times and perhaps the kind of matching, which are checked; `_typed` too."""
    typed = _typed(method)

    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        check_time(*(v for v in (*args, *kwargs.values()) if not isinstance(v, str)))
        for word in (*args, *kwargs.values()):
            if isinstance(word, str) and word not in get_args(Matching):
                raise InputError(f"matching must be 'hsm' or 'dsm', not {word!r}.")
        return typed(self, *args, **kwargs)

    return checked


_TIMED = (
    "drift_matrix", "diffusion", "diffusion_squared", "diffusion_between", "transition", "transition_between",
    "reverse_linear", "distance_to_prior",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """z_t ~ N(mean z_0, factor factor^T), for a batch of times.

    Attributes:
        mean: E, (batch, k, k).
        inner: the factor in the process's frame, (batch, k, k), lower triangular.
        frame: None for the identity, or T (k, k) orthogonal: L = T^T inner T. A permutation puts the variables without
            noise first; a rotation, the directions without noise.
        num_noised: r; the last r variables of the frame receive noise and are the only ones whose score is needed.
    """

    mean: Any
    inner: Any
    frame: Any = None
    num_noised: int

    @property
    def factor(self) -> Matrices:
        """L, (batch, k, k), with L L^T the covariance."""
        return self._turn_back(self.inner)

    @property
    def inverse_transpose(self) -> Matrices:
        """L^-T, (batch, k, k): the score of the kernel is -L^-T eps."""
        return self._turn_back(linalg.inverse_transpose(self.inner))

    def _turn_back(self, matrix):
        return matrix if self.frame is None else linalg.conjugate(jnp.transpose(self.frame), matrix)

    @property
    def covariance(self) -> Matrices:
        """L L^T, (batch, k, k)."""
        factor = self.factor
        return linalg.matmul(factor, jnp.swapaxes(factor, 1, 2))

    def with_ridge(self, numerical_eps: float) -> Kernel:
        """The kernel with `numerical_eps` added to the diagonal of its covariance (a crutch of official codes)."""
        ridge = jnp.asarray(numerical_eps**0.5 * np.eye(self.inner.shape[-1]), self.inner.dtype)
        stacked = jnp.concatenate([self.inner, jnp.broadcast_to(ridge, self.inner.shape)], axis=-1)
        return dataclasses.replace(self, inner=linalg.triangular_factor(stacked))

    def perturb(self, z0: State, eps: State) -> States:
        """E z_0 + L eps. z0, eps: (batch, k, *event)."""
        return linalg.apply(self.mean, z0) + linalg.apply(self.factor, eps)

    def expand(self, eps: Noise) -> State:
        """Noise of the noised variables alone, (batch, r, *event), as a full (batch, k, *event) with zeros."""
        return expand(eps, self.mean.shape[-1], self.num_noised, self.frame)

    def restrict(self, eps: State) -> Noise:
        """The part of eps (batch, k, *event) that belongs to the noised variables, (batch, r, *event)."""
        return restrict(eps, self.mean.shape[-1], self.num_noised, self.frame)

    def score(self, eps: Noise) -> State:
        """-L^-T eps, the score of the kernel at z_t = E z_0 + L eps.

        Args:
            eps: (batch, k, *event), or (batch, r, *event) for the noised variables alone. Then only their score is
                determined, and the rest is returned as zero: no reverse process here needs it.

        Returns:
            (batch, k, *event).
        """
        if eps.shape[1] == self.mean.shape[-1]:
            return -linalg.apply(self.inverse_transpose, eps)
        first = self.mean.shape[-1] - self.num_noised  # of the frame's noised variables, whose block is closed
        block = linalg.inverse_transpose(self.inner[:, first:, first:])
        eps = eps if eps.shape[1] == self.num_noised else self.restrict(eps)  # which refuses it
        return self.expand(-linalg.apply(block, eps))

    def eps(self, score: State) -> States:
        """-L^T score, the noise that has this score: inverse of `score`. (batch, k, *event) both.

        For the noised variables it needs only their score.
        """
        return -linalg.apply(jnp.swapaxes(self.factor, 1, 2), score)

    def denoise(self, z_t: State, eps: State) -> States:
        """E^-1 (z_t - L eps): the z_0 that eps would have perturbed into z_t. eps: (batch, k, *event)."""
        return linalg.apply(jnp.linalg.inv(self.mean), z_t - linalg.apply(self.factor, eps))

    def log_det_factor(self) -> PerExample:
        """log |det L|, (batch,)."""
        return jnp.sum(jnp.log(jnp.diagonal(self.inner, axis1=1, axis2=2)), axis=1)


jax.tree_util.register_dataclass(Kernel, ["mean", "inner", "frame"], ["num_noised"])


class SDE(abc.ABC):
    """A linear forward process on t in [0, 1]. Concrete processes are frozen dataclasses and pytrees.

    Attributes:
        k: number of phase variables.
        num_noised: r, the number of (frame) variables that receive noise: what a score network has to predict.
        frame: None or (k, k) orthogonal; see `Kernel`.
    """

    k: int
    num_noised: int
    frame: Any

    def __init_subclass__(cls, **kwargs) -> None:
        """Puts check and type of time around each method of time that a process writes: one door for all processes."""
        super().__init_subclass__(**kwargs)
        for name in _TIMED:
            if name in cls.__dict__:
                setattr(cls, name, _timed(cls.__dict__[name]))
        if "inverse_variance" in cls.__dict__:
            cls.inverse_variance = _typed(cls.__dict__["inverse_variance"])

    # ---- coefficients of the forward process
    @abc.abstractmethod
    def drift_matrix(self, t: Times) -> Matrices:
        """f(t), (batch, k, k), for t (batch,)."""

    @abc.abstractmethod
    def diffusion(self, t: Times) -> Matrices:
        """g(t), the matrix that multiplies dw: (batch, k, k), for t (batch,)."""

    def drift(self, z: State, t: Times) -> States:
        """f(t) z. z: (batch, k, *event), t: (batch,)."""
        return linalg.apply(self.drift_matrix(t), z)

    def diffusion_squared(self, t: Times) -> Matrices:
        """g(t) g(t)^T, (batch, k, k)."""
        g = self.diffusion(t)
        return linalg.matmul(g, jnp.swapaxes(g, 1, 2))

    @abc.abstractmethod
    def diffusion_between(self, s: Times, t: Times) -> Matrices:
        """The integral of g g^T from s to t, (batch, k, k)."""

    # ---- the perturbation kernel
    @abc.abstractmethod
    def transition(self, t: Times, matching: Matching = "hsm") -> Kernel:
        """The law of z_t given what the objective conditions on.

        Args:
            t: (batch,) in [0, 1].
            matching: "dsm" conditions on the whole of z_0; "hsm" on x_0 alone, the auxiliaries' own initial law being
                part of the covariance (hybrid score matching, Dockhorn et al. 2022, sec. 3.2). Equal for k = 1.
        """

    @abc.abstractmethod
    def transition_between(self, s: Times, t: Times) -> Kernel:
        """The law of z_t given z_s, 0 <= s <= t <= 1; both (batch,)."""

    def without_ridge(self) -> SDE:
        """The process with its true covariance, where official codes add something to it (`Recipe.numerical_eps`)."""
        return self

    # ---- the exactly solvable part of the reverse process, for splitting samplers
    @abc.abstractmethod
    def reverse_linear(self, t: Times, s: Times) -> Kernel:
        """The linear part of the reverse SDE from t down to s <= t: z_s | z_t ~ N(E z_t, L L^T); both (batch,).

        The reverse SDE in reversed time is dz = [-f z + g g^T score] dt + g dw. With the precision P of
        `split_precision` it splits into dz = [-(f + g g^T P) z] dt + g dw, given here, and
        dz = g g^T (score + P z) dt.
        """

    @abc.abstractmethod
    def split_precision(self) -> Square:
        """P, (k, k): the precision added and subtracted by `reverse_linear` (zero or the stationary law's)."""

    # ---- ends
    @abc.abstractmethod
    def initial_factor(self) -> Square:
        """(k, k) factor of the covariance of z_0 given x_0: the auxiliaries' initial law, and sqrt(sigma2_0) for x."""

    @abc.abstractmethod
    def initial_variance(self) -> Scalar:
        """sigma2_0, the variance of the data variable given x_0 at t = 0: zero, or LSGM's small positive number."""

    def inverse_variance(self, variance: Times) -> Times:
        """The time at which the kernel has this variance, for processes of one variable. (batch,) -> (batch,).

        Raises:
            ValueError: for a process without a closed form, or of more than one variable.
        """
        raise InputError("the kernel's variance has a closed inverse for VP, sub-VP without sigma2_0 and VE alone.")

    @abc.abstractmethod
    def distance_to_prior(self, t: Times) -> Times:
        """1 - (kernel variance of x at t) / (its variance in the prior), (batch,), without cancellation.

        VP: (1 - sigma2_0) e^{-B}. 1 for a process without a stationary law (VE), whose prior is as wide as wanted.
        """

    @abc.abstractmethod
    def prior_factor(self) -> Square:
        """(k, k) factor of the covariance of the prior."""

    def augment(self, x0: Data, key: Key | None = None) -> States:
        """Data x0 (batch, *event) as a state z0 (batch, k, *event).

        Args:
            x0: data.
            key: None puts the auxiliaries at their mean, zero (what "hsm" conditions on); a key draws them from their
                initial law (what "dsm" conditions on).
        """
        rest = jnp.zeros((x0.shape[0], self.k - 1, *x0.shape[1:]), x0.dtype)
        z0 = jnp.concatenate([x0[:, None], rest], axis=1)
        if key is None or self.k == 1:
            return z0
        noise = jax.random.normal(key, z0.shape, z0.dtype)
        return z0 + linalg.apply(jnp.asarray(self.initial_factor(), z0.dtype), noise)

    def prior_sample(self, key: Key, shape: Shape, dtype: DType = jnp.float32) -> States:
        """Draw from the prior. shape: (batch, *event) -> (batch, k, *event)."""
        noise = jax.random.normal(key, (shape[0], self.k, *shape[1:]), dtype)
        return linalg.apply(jnp.asarray(self.prior_factor(), dtype), noise)

    def prior_logp(self, z: State) -> PerExample:
        """Log density of the prior in nats, summed over variables and event. (batch, k, *event) -> (batch,)."""
        check_floats(z, "z")
        factor = jnp.asarray(self.prior_factor(), z.dtype)[None]
        white = linalg.apply(linalg.inverse_transpose(factor).swapaxes(1, 2), z)
        size = z.size // z.shape[0]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor[0]))) * (size // self.k)
        return -0.5 * (jnp.sum(white**2, axis=tuple(range(1, z.ndim))) + size * jnp.log(2 * jnp.pi)) - log_det

    # ---- the noised variables
    def restrict(self, eps: State) -> Noise:
        """Noise (batch, k, *event) -> the noised variables' part (batch, r, *event)."""
        return restrict(eps, self.k, self.num_noised, self.frame)

    def expand(self, eps: Noise) -> State:
        """Inverse of `restrict`, zeros elsewhere."""
        return expand(eps, self.k, self.num_noised, self.frame)


def restrict(eps: State, k: int, num_noised: int, frame: Square | None) -> Noise:
    """The last `num_noised` variables of eps in the frame, (batch, k, *event) -> (batch, r, *event); these pass."""
    check_floats(eps, "eps")
    if eps.shape[1] == num_noised:
        return eps
    if eps.shape[1] != k:
        raise InputError(f"eps has {eps.shape[1]} phase variables; this process takes {num_noised} (noised) or {k}.")
    if frame is not None:
        eps = linalg.apply(jnp.asarray(frame, eps.dtype), eps)
    return eps[:, k - num_noised :]


def expand(eps: Noise, k: int, num_noised: int, frame: Square | None) -> State:
    """Right inverse of `restrict`, zeros in the other variables; a full eps passes through."""
    check_floats(eps, "eps")
    if eps.shape[1] == k:
        return eps
    if eps.shape[1] != num_noised:
        raise InputError(f"eps has {eps.shape[1]} phase variables; this process takes {num_noised} (noised) or {k}.")
    zeros = jnp.zeros((eps.shape[0], k - num_noised, *eps.shape[2:]), eps.dtype)
    eps = jnp.concatenate([zeros, eps], axis=1)
    return eps if frame is None else linalg.apply(jnp.asarray(frame, eps.dtype).T, eps)
