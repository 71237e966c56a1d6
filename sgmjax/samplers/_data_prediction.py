"""The reverse process while the estimate of the data is a polynomial: `dpm_solver_pp`, `unipc`, `sa_solver`, `er_sde`.

With x0_hat = E[x_0 | z_t], which `linear_flow` eq. (5) reads off the noised scores for any k, the score of the whole
state is Sigma^-1 (E_0 x0_hat - z), E_0 the mean's data column. The reverse process with noise of strength lam, in
reversed time dz = [-f z + (1 + lam^2)/2 g g^T score] dt + lam g dw, is then linear in z and x0_hat, and its part linear
in z has the transition matrix

    T(s, t) = R_s C(s, t) R_t^-1 = L_s W(s, t) L_t^-1,    C, W of `ddim` eq. (3) and `linear_flow.damped`.         (1)

For lam = 0, the probability flow, C = 1. As d/dtau [T(s, tau) E_0(tau)] = -T (1 + lam^2)/2 g g^T Sigma^-1 E_0, while
x0_hat is the polynomial through its values D_j at some points, in lambda = half the log of the information that z_t
has on x_0 (log alpha / sigma for k = 1) or in another variable of `variable`, by parts

    z_s = T z_t + sum_j W_j D_j + L_s (1 - W W^T)^1/2 xi,                                                          (2)
    W_j = E_0(s) l_j(s) - T E_0(t) l_j(t) - int_t^s T(s, tau) E_0(tau) l_j'(tau) dtau,

l_j the points' Lagrange polynomials. A constant D has the weight E_0(s) - T E_0(t): for k = 1 and lam = 0
x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D, h = lambda_s - lambda_t.

**Variants.** Where one difference of estimates is taken, the papers give its rise over the step half of the weight of a
constant, alpha_s (1 - e^-h) for k = 1 ("bh2", DPM-Solver++ 2M and UniPC), or half of that weight's first order in h,
(1 + lam^2) alpha_s h ("bh1", UniPC and SA-Solver with few steps), in place of the exact one. For more variables it is
the vectors E_0(s) - T E_0(t) and (1 + lam^2) E_0(s) h.

"taylor" is the polynomial of second degree that ER-SDE-Solver-3 takes: D + d (x - x_t) + d' (x - x_t)^2 with the
divided differences d, d' of the last estimates, where the one through all of them has (x - x_t) (x - x_{t-1}).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Numbers
from sgmjax.samplers._ddim import complement
from sgmjax.samplers._deis import Variable, lagrange, variable_of
from sgmjax.samplers.exponential import ExponentialCoefficients, assemble
from sgmjax.samplers.linear_flow import Flow, damped, data_matrices

Variant = Literal["exact", "bh1", "bh2"]


class DataPrediction:
    """The matrices of eq. (2) for every step of a grid, in the process's frame, float64.

    Attributes:
        level: lambda, or the variable in its place, at the times of the grid, (steps + 1,).
        transition: T of every step, (steps, k, k).
        pull: its weight of a constant estimate, (steps, k, 1).
        noise: the factor in front of xi, (steps, k, k); None where lam = 0.
    """

    def __init__(
        self,
        path: Flow,
        lam: Numbers = 0.0,
        variant: Variant | Literal["taylor"] = "exact",
        variable: Variable = "log_snr",
    ):
        """lam: the strength of the noise, a number, one for each step (steps,), or for each node; see `damped`.

        Raises:
            ValueError: for an unknown variant.
        """
        if variant not in ("exact", "bh1", "bh2", "taylor"):
            raise InputError(f"variant must be 'exact', 'bh1' or 'bh2', not {variant!r}.")
        self._path, self._variant = path, variant
        self.level, _ = variable_of(variable, path.times, path.at)
        self._inner_level, self._rate = variable_of(variable, path.tau, path.inside)
        whole, inner = damped(path, lam)
        end = path.at.factor[1:]
        self.transition = end @ whole @ path.at.inverse[:-1]
        self._column = path.at.data_mean[:, :, None]
        self.pull = self._column[1:] - self.transition @ self._column[:-1]
        self._half = 0.5 * self.pull
        if variant == "bh1":
            strength = np.broadcast_to(lam, len(self.pull))[:, None, None]
            self._half = 0.5 * (1 + strength**2) * self._column[1:] * np.diff(self.level)[:, None, None]
        self.noise = end @ complement(whole) if np.any(lam) else None
        self._carried = inner @ (path.inside.inverse @ path.inside.data_mean[..., None])  # W L^-1 E_0

    def steps(self, weights: np.ndarray) -> ExponentialCoefficients:
        """The steps, given the weights of all, (steps, points, k, 1)."""
        path = self._path
        return assemble(path, self.transition, *data_matrices(path.sde, path.at), weights, self.noise)

    def predictor(self, i: int, order: int) -> np.ndarray:
        """W of D at t_i, t_{i-1}, ..., (order, k, 1)."""
        if order == 2 and self._variant in ("bh1", "bh2"):
            rise = self._half[i] * (self.level[i + 1] - self.level[i]) / (self.level[i] - self.level[i - 1])
            return np.stack([self.pull[i] + rise, -rise])
        return self._weights(i, self.level[i::-1][:order])

    def corrector(self, i: int, order: int) -> np.ndarray:
        """W of D at t_{i+1}, t_i, t_{i-1}, ..., (order + 1, k, 1)."""
        if order == 1 and self._variant in ("bh1", "bh2"):
            return np.stack([self._half[i], self.pull[i] - self._half[i]])
        return self._weights(i, np.concatenate([self.level[i + 1 : i + 2], self.level[i::-1][:order]]))

    def _weights(self, i: int, points: np.ndarray) -> np.ndarray:
        panels = self._path.step == i
        _, slope = lagrange(points, self._inner_level[panels])
        if self._variant == "taylor" and len(points) == 3:
            slope = slope + (points[1] - points[0]) * _second_difference(points)
        weight = self._path.weight[panels] * self._rate[panels]
        inner = np.einsum("pn,pnj,pnab->jab", weight, slope, self._carried[panels])
        at_end, _ = lagrange(points, self.level[i + 1])
        at_start, _ = lagrange(points, self.level[i])
        if self._variant == "taylor" and len(points) == 3:
            at_end = at_end + (self.level[i + 1] - points[0]) * (points[1] - points[0]) * _second_difference(points)
        carried = self.transition[i] @ self._column[i]
        ends = at_end[:, None, None] * self._column[i + 1] - at_start[:, None, None] * carried
        return ends + self._path.at.factor[i + 1] @ inner  # the integral runs downwards


def _second_difference(points: np.ndarray) -> np.ndarray:
    """The weights of three values in their second divided difference."""
    return np.array([1 / np.prod(points[j] - np.delete(points, j)) for j in range(3)])
