"""UniPC for any linear process: a multistep exponential integrator of the data estimate, and its corrector for free.

While the data estimate D(lambda) is a polynomial in lambda, half the log of the information z_t has on x_0
(log alpha / sigma for k = 1), the probability flow is integrated exactly: with the transition R_s R_t^-1 of
`_dpm_solver` and the mean column E_0,

    z_s = R_s R_t^-1 z_t + sum_j W_j D_j,                                                                         (1)
    W_j = E_0(s) l_j(s) - R_s R_t^-1 E_0(t) l_j(t) - int_t^s R_s R_tau^-1 E_0(tau) l_j'(tau) dtau,

l_j the Lagrange polynomials of the points at which D_j was taken, by parts as `linear_flow` eq. (4). Of order p the
predictor takes the last p of them. **The corrector** integrates the same step again once D is known where it ended,
through p + 1 points, and the next step starts from there; no evaluation is spent on it. As both weights of a step sum
up to the same, what the corrector adds is

    sum_j (W^c_j - W_j) D_j,                                                                                      (2)

a combination of estimates that the next step has too. So predictor and corrector together are one multistep method of
p + 1 estimates, whose weights are those of (1) and, carried through the next step, those of (2).

For k = 1 these are the paper's UniP-p and UniC-p, but for the cases in which it takes one difference of estimates and
the weight 1/2 in place of the exact one: `variant` "bh1" and "bh2", its two B(h). In phase space, where there is no
such rule, they take the vector that stands in the place of alpha_s B(h): E_0(s) h, and the first-order W.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._deis import lagrange
from sgmjax.samplers.common import Denoise, SampleInfo
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.exponential import ExponentialCoefficients, assemble, host_flow
from sgmjax.samplers.linear_flow import Flow, data_matrices, log_snr, log_snr_rate
from sgmjax.sdes import SDE

Variant = Literal["exact", "bh1", "bh2"]
HIGHEST = 4


def unipc_coefficients(
    sde: SDE,
    times: TimeGrid,
    *,
    order: int = 2,
    corrector: bool = True,
    variant: Variant = "exact",
    lower_order_final: bool = False,
) -> ExponentialCoefficients:
    """See `unipc`."""
    if order not in range(1, HIGHEST + 1):
        raise InputError(f"order = {order}: must be 1 to {HIGHEST}.")
    if variant not in ("exact", "bh1", "bh2"):
        raise InputError(f"variant must be 'exact', 'bh1' or 'bh2', not {variant!r}.")
    path = host_flow(sde, times)
    steps, k = len(path.times) - 1, path.sde.k
    data = _Data(path, variant)
    weights = np.zeros((steps, order + corrector, k))
    correction = None  # of the step before: of the newest estimate and those before it
    for i in range(steps):
        now = min(order, i + 1, steps - i if lower_order_final else order)
        predicted = data.predictor(i, now)
        weights[i, :now] = predicted
        if correction is not None:
            weights[i, : len(correction)] += correction @ data.transition[i].T
        if corrector:
            correction = data.corrector(i, now)
            correction[1 : now + 1] -= predicted
    return assemble(path, data.transition, *data_matrices(path.sde, path.at), weights[..., None])


class _Data:
    """What the weights of all steps are made of, in the process's frame, float64.

    Attributes:
        transition: R_s R_t^-1 of every step, (steps, k, k).
        pull: its weight of a constant estimate, (steps, k).
    """

    def __init__(self, path: Flow, variant: Variant):
        self.path, self.variant = path, variant
        self.level, self._inner_level = log_snr(path.at), log_snr(path.inside)
        self._rate = log_snr_rate(path.inside)
        inverse = np.swapaxes(path.rotation, 1, 2) @ path.at.inverse  # R^-1
        self.transition = path.R[1:] @ inverse[:-1]
        self.column = path.at.data_mean
        self.pull = self.column[1:] - np.einsum("nij,nj->ni", self.transition, self.column[:-1])
        inner = np.swapaxes(path.inner_rotation, -1, -2) @ path.inside.inverse
        self._carried = np.einsum("pnij,pnj->pni", inner, path.inside.data_mean)  # R^-1 E_0

    def predictor(self, i: int, order: int) -> np.ndarray:
        """Weights of D at t_i, t_{i-1}, ..., (order, k)."""
        if order == 2 and self.variant != "exact":
            ratio = (self.level[i + 1] - self.level[i]) / (self.level[i] - self.level[i - 1])
            half = 0.5 * ratio * self._scale(i)
            return np.stack([self.pull[i] + half, -half])
        return self._weights(i, self.level[i::-1][:order])

    def corrector(self, i: int, order: int) -> np.ndarray:
        """Weights of D at t_{i+1}, t_i, t_{i-1}, ..., (order + 1, k)."""
        if order == 1 and self.variant != "exact":
            half = 0.5 * self._scale(i)
            return np.stack([half, self.pull[i] - half])
        return self._weights(i, np.concatenate([self.level[i + 1 : i + 2], self.level[i::-1][:order]]))

    def _scale(self, i: int) -> np.ndarray:
        """What stands for -alpha_s B(h), (k,)."""
        if self.variant == "bh2":
            return self.pull[i]
        return self.column[i + 1] * (self.level[i + 1] - self.level[i])

    def _weights(self, i: int, points: np.ndarray) -> np.ndarray:
        """Eq. (1), (points, k)."""
        panels = self.path.step == i
        _, slope = lagrange(points, self._inner_level[panels])
        inner = np.einsum("pn,pnj,pna->ja", self.path.weight[panels] * self._rate[panels], slope, self._carried[panels])
        at_end, _ = lagrange(points, self.level[i + 1])
        at_start, _ = lagrange(points, self.level[i])
        carried = self.transition[i] @ self.column[i]
        ends = at_end[:, None] * self.column[i + 1] - at_start[:, None] * carried
        return ends + inner @ self.path.R[i + 1].T  # the integral runs downwards


@on_grid()
def unipc(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    order: int = 2,
    corrector: bool = True,
    variant: Variant = "exact",
    lower_order_final: bool = False,
    coefficients: ExponentialCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by UniPC: one evaluation a step, deterministic, of order `order`, and one more with the corrector.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times must end above 0.
        order: 1 to 4, of the predictor. Without the corrector 2 and 3 are DPM-Solver++ 2M and 3M with exact weights.
        corrector: UniC, of the same order.
        variant: "exact", or the paper's B(h) where it takes one difference of estimates: "bh1", "bh2".
        lower_order_final: fall to order 1 towards the last step, as the official code does.
        coefficients: from `exponential_coefficients(sde, times, method="unipc", ...)`; needed where sde is traced.
        options: as `em`; it draws no noise.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Reference: Zhao et al. 2023, "UniPC", algorithms 5 to 8 (multistep, data prediction).
    """
    if coefficients is None:
        coefficients = unipc_coefficients(
            sde, times, order=order, corrector=corrector, variant=variant, lower_order_final=lower_order_final
        )
    return exponential.sample(
        key, score_fn, sde, shape, times=times, coefficients=coefficients, denoise=denoise, options=options
    )
