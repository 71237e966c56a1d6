"""Data whose score is known: mixtures of isotropic Gaussians, under any linear process, to rounding error.

The oracle of this library: samplers, likelihoods and guidance can be judged on it without a network.

Given component j, x_0 ~ N(mu_j, s_j^2) independently in every element of the event, and so z_t ~ N(E_t (mu_j, 0, ...),
C_j(t)) with C_j = s_j^2 E_t e_0 e_0^T E_t^T + L_t L_t^T, L_t the kernel of hybrid score matching.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from sgmjax._inputs import InputError, check_floats, check_numbers
from sgmjax._ranges import COUNT, FINITE, check_range
from sgmjax._types import AnyArray, Data, DType, Key, Numbers, PerExample, Samples, ScoreFn, State, Times
from sgmjax.sdes import SDE, Denoiser, linalg


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """sum_j w_j N(mu_j, s_j^2 I). A pytree. With one component it is Gaussian data.

    Attributes:
        means: (m, *event).
        stds: (m,).
        log_weights: (m,), normalised.
    """

    means: Any
    stds: Any
    log_weights: Any

    def sample(self, key: Key, num: int, dtype: DType = jnp.float32) -> tuple[Samples, Int[jax.Array, " batch"]]:
        """`num` draws (num, *event) and their components (num,)."""
        label_key, noise_key = jax.random.split(key)
        label = jax.random.categorical(label_key, jnp.asarray(self.log_weights, dtype), shape=(num,))
        means, stds = jnp.asarray(self.means, dtype)[label], jnp.asarray(self.stds, dtype)[label]
        noise = jax.random.normal(noise_key, means.shape, dtype)
        return means + linalg.expand_to(stds, means.ndim) * noise, label

    def _check(self, x: Any, what: str, *variables: int) -> None:
        """Raise InputError for an array that is not (batch, *variables, *event) of floats."""
        check_floats(x, what)
        expected = (*variables, *np.shape(self.means)[1:])
        if x.shape[1:] != expected or not x.ndim:
            raise InputError(f"{what} has shape {x.shape}, expected (batch, {', '.join(map(str, expected))})")

    def log_prob(self, x0: Data) -> PerExample:
        """log p(x_0) in nats. (batch, *event) -> (batch,)."""
        self._check(x0, "x0")
        means, stds = jnp.asarray(self.means, x0.dtype), jnp.asarray(self.stds, x0.dtype)
        offset = x0[:, None] - means[None]
        size = offset[0, 0].size
        square = jnp.sum(offset**2, axis=tuple(range(2, offset.ndim))) / stds[None] ** 2
        log_each = -0.5 * (square + size * jnp.log(2 * jnp.pi)) - size * jnp.log(stds)[None]
        return jax.nn.logsumexp(log_each + jnp.asarray(self.log_weights, x0.dtype)[None], axis=1)

    def _components(self, sde: SDE, z, t):
        """White offsets (batch, m, k, *event) and L_j^-T (batch, m, k, k) and log densities (batch, m) of z_t."""
        self._check(z, "z", sde.k)
        kernel = sde.transition(t, "hsm")
        stds = jnp.asarray(self.stds, z.dtype)
        data = stds[None, :, None, None] * kernel.mean[:, None, :, :1]
        noise = jnp.broadcast_to(kernel.factor[:, None], (*data.shape[:2], sde.k, sde.k))
        factor = linalg.triangular_factor(jnp.concatenate([data, noise], axis=-1))
        inverse = linalg.inverse_transpose(factor)
        means = jnp.asarray(self.means, z.dtype)[None, :, None]  # (1, m, 1, *event)
        moved = linalg.expand_to(kernel.mean[:, None, :, 0], means.ndim) * means
        offset = z[:, None] - moved
        batch, m = offset.shape[:2]
        flat = offset.reshape(batch * m, *offset.shape[2:])
        white = linalg.apply(inverse.swapaxes(-1, -2).reshape(batch * m, sde.k, sde.k), flat).reshape(offset.shape)
        size = offset[0, 0, 0].size
        log_det = size * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
        square = jnp.sum(white**2, axis=tuple(range(2, white.ndim)))
        log_each = -0.5 * (square + sde.k * size * jnp.log(2 * jnp.pi)) - log_det
        return white, inverse, log_each + jnp.asarray(self.log_weights, z.dtype)[None]

    def log_prob_t(self, sde: SDE, z: State, t: Times) -> PerExample:
        """log p_t(z) in nats, of the whole state. z (batch, k, *event), t (batch,) -> (batch,)."""
        return jax.nn.logsumexp(self._components(sde, z, t)[2], axis=1)

    def classify(self, sde: SDE, z: State, t: Times) -> Float[jax.Array, "batch components"]:
        """log p(component | z_t), (batch, m): the exact noise-conditioned classifier."""
        return jax.nn.log_softmax(self._components(sde, z, t)[2], axis=1)

    def score_fn(self, sde: SDE, *, noised_only: bool = True) -> ScoreFn:
        """The exact score_fn(z, t) of p_t.

        Args:
            sde: the process.
            noised_only: zero for variables without noise, as of a network; False: of all variables.
        """

        def score(z, t):
            white, inverse, log_each = self._components(sde, z, t)
            batch, m = log_each.shape
            flat = white.reshape(batch * m, *white.shape[2:])
            each = -linalg.apply(inverse.reshape(batch * m, sde.k, sde.k), flat).reshape(white.shape)
            weight = jax.nn.softmax(log_each, axis=1)
            total = jnp.sum(linalg.expand_to(weight, each.ndim) * each, axis=1)
            return sde.expand(sde.restrict(total)) if noised_only else total

        return score

    def denoiser(self) -> Denoiser:
        """The exact D(y; sigma): the mean of x_0 given y = x_0 + sigma n."""

        def noise(y, sigma):
            self._check(y, "y")
            means, stds = jnp.asarray(self.means, y.dtype)[None], jnp.asarray(self.stds, y.dtype)[None]
            variance = stds**2 + sigma[:, None] ** 2
            offset = y[:, None] - means
            square = jnp.sum(offset**2, axis=tuple(range(2, offset.ndim))) / variance
            log_weights = jnp.asarray(self.log_weights, y.dtype)[None]
            log_each = -0.5 * (square + offset[0, 0].size * jnp.log(variance)) + log_weights
            each = jax.nn.softmax(log_each, axis=1) * sigma[:, None] / variance
            return jnp.sum(linalg.expand_to(each, offset.ndim) * offset, axis=1)

        return Denoiser(noise=noise)


jax.tree_util.register_dataclass(GaussianMixture, ["means", "stds", "log_weights"], [])


def mixture(
    means: Sequence[Any] | Real[AnyArray, " components *event"],
    stds: Numbers | Sequence[float],
    weights: Sequence[float] | Real[AnyArray, " components"] | None = None,
) -> GaussianMixture:
    """A checked `GaussianMixture`, in float64 on the host.

    Args:
        means: (m, *event). stds: (m,) or a scalar, positive. weights: (m,) positive, normalised here; None: equal.

    Raises:
        ValueError: shapes that do not fit, or values that are not positive.

    Examples:
        >>> two = exact.mixture([[-1.0, 0.0], [1.0, 0.0]], 0.5, weights=[1.0, 3.0])
        >>> x0, component = two.sample(jax.random.key(0), 5)
        >>> x0.shape, np.exp(two.log_weights).round(2).tolist()
        ((5, 2), [0.25, 0.75])
        >>> one = exact.mixture([[0.0]], 1.0).score_fn(sdes.vp())  # of white normal data: -z
        >>> round(float(one(jnp.full((1, 1, 1), 2.0), jnp.full(1, 0.5))[0, 0, 0]), 3)
        -2.0
    """
    means = np.asarray(means, np.float64)
    if means.ndim < 2:
        raise InputError(f"means has shape {means.shape}: give (components, *event).")
    stds = np.broadcast_to(np.asarray(stds, np.float64), (len(means),)).copy()
    weights = np.ones(len(means)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(means),):
        raise InputError(f"weights has shape {weights.shape}: give one for each of the {len(means)} components.")
    check_numbers(means, "means")
    if not (np.isfinite(stds) & (stds > 0)).all() or not (np.isfinite(weights) & (weights > 0)).all():
        raise InputError("stds and weights must be positive.")
    return GaussianMixture(means=means, stds=stds, log_weights=np.log(weights / weights.sum()))


def ring(components: int = 8, *, radius: float = 1.5, std: float = 0.17) -> GaussianMixture:
    """The 2-D ring of `sgmjax.data.toy`: Gaussians on a circle.

    Examples:
        >>> ring = exact.ring()
        >>> np.linalg.norm(ring.means, axis=1).round(3).tolist()
        [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]
        >>> score_fn = ring.score_fn(sdes.vp())  # for samplers
        >>> np.allclose(score_fn(jnp.zeros((4, 1, 2)), jnp.full(4, 0.5)), 0, atol=1e-5)  # in the middle, by symmetry
        True
    """
    check_range(components, COUNT, "components")
    check_range(radius, FINITE, "radius")
    angle = 2 * np.pi * np.arange(components) / components
    return mixture(radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1), std)
