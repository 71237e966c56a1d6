"""Gaussian data, where everything is known: marginals, scores, the law at any time of the reverse process.

Data are N(mu, s^2), independently in every element of the event. z_t is then N(E_t (mu, 0, ...), C_t) with
C_t = E_t diag(s^2, 0, ...) E_t^T + L_t L_t^T, L_t the kernel of hybrid score matching.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


PROCESSES = {
    "vp": sdes.vp(),
    "subvp": sdes.subvp(),
    "ve": sdes.ve(),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
    "recipe4": full_rank_recipe(),
    "oblique": oblique_recipe(),
}


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
