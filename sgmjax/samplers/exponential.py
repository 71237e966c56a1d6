"""Exponential integrators: the linear part of the reverse process exactly, what the network predicts extrapolated.

Every one of them here (`ddim`, `gddim`, `deis`, `dpm_solver_pp`) makes the same step with other matrices,

    z_s = transition z_t + sum_j weights_j e_j + noise xi,      e_0 = from_state z_t + from_score score(z_t, t),

where e_0, e_1, ... are the predictions made at this and the last grid points: eps or the estimate of the data. The
matrices (k x k at most) come from float64 quadrature on the host (`sgmjax.samplers.linear_flow`), so the process and
the grid must be known numbers. To sample with a process that is an argument of jit compute them outside,

    coefficients = samplers.exponential_coefficients(sde, times, method="deis", order=3)
    run = jax.jit(lambda key, sde, coefficients: samplers.deis(..., times=times, coefficients=coefficients))

and the compiled function serves processes of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax.samplers.common import batch_time, check_times, scan_grid
from sgmjax.samplers.linear_flow import Flow, float64_process, flow
from sgmjax.sdes import SDE, linalg


class ExponentialCoefficients(NamedTuple):
    """The matrices of every step; a pytree of float64 numpy arrays.

    Attributes:
        transition: (steps, k, k).
        from_state, from_score: (steps, m, k): m = k for eps in the process's frame, 1 for an estimate of the data.
        weights: (steps, order, k, m), the newest prediction's first; zero for predictions that a step lacks yet.
        noise: None, or (steps, k, k), a factor of the covariance of the noise that is added.
    """

    transition: Any
    from_state: Any
    from_score: Any
    weights: Any
    noise: Any = None


def host_flow(sde: SDE, times) -> Flow:
    """The process along a grid, in float64 on the host.

    Raises:
        ValueError: for a traced process, a bad grid, or one that ends at 0, where the kernel has no density.
    """
    process, times = float64_process(sde), check_times(times)
    if times[-1] <= 0:
        raise ValueError("times must end above 0 for an exponential integrator: the kernel has no density at 0.")
    return flow(process, times)


def in_process_order(flow: Flow, transition, from_state, from_score, weights, noise=None) -> ExponentialCoefficients:
    """Matrices given in the frame, turned to act on states in the process's own order; predictions stay in the frame.

    from_state and from_score are given at all times, the last of which is dropped.
    """
    T = np.eye(flow.sde.k) if flow.sde.frame is None else np.asarray(flow.sde.frame)
    return ExponentialCoefficients(
        transition=T.T @ transition @ T, from_state=from_state[:-1] @ T, from_score=from_score[:-1] @ T,
        weights=T.T @ weights, noise=None if noise is None else T.T @ noise,
    )  # fmt: skip


def sample(key, score_fn: Callable, sde: SDE, shape, *, times, coefficients: ExponentialCoefficients, denoise, options):
    """Run the step of the module's docstring over a grid.

    Raises:
        ValueError: for coefficients of another grid or another number of variables.
    """
    steps, order, k, m = np.shape(coefficients.weights)
    if steps != len(times) - 1 or k != sde.k:
        raise ValueError(
            f"coefficients are for {steps} steps of {k} variables, but times has {len(times) - 1} steps and the "
            f"process {sde.k} variables: compute them from these."
        )
    dtype = options.get("dtype", jnp.float32)

    def step(z, memory, node):
        c = node.extra
        score = score_fn(z, batch_time(node.t, z))
        newest = linalg.apply(c.from_state, z) + linalg.apply(c.from_score, score)
        predictions = (newest, *memory)
        out = linalg.apply(c.transition, z)
        for j in range(order):
            out = out + linalg.apply(c.weights[j], predictions[j])
        if c.noise is not None:
            out = out + linalg.apply(c.noise, node.noises[0])
        return out, predictions[: order - 1]

    def memory(z):
        return tuple(jnp.zeros_like(z[:, :m]) for _ in range(order - 1))

    per_step = jax.tree.map(lambda v: jnp.asarray(v, dtype), coefficients)
    draws = 0 if coefficients.noise is None else 1
    return scan_grid(
        step, key, score_fn, sde, shape, times=times, draws=draws, denoise=denoise, memory=memory, per_step=per_step,
        **options,
    )  # fmt: skip
