"""Exponential integrators: the linear part of the reverse process exactly, what the network predicts extrapolated.

Every one of them here (`ddim`, `gddim`, `deis`, `ipndm`, `dpm_solver_pp`, `unipc`, `sa_solver`, `er_sde`) makes the
same step,

    z_s = A z_t + sum_j W_j e_j + noise xi,      e_0 = Mz z_t + Ms score(z_t, t),

where e_0, e_1, ... are the predictions made at this and the last grid points: eps or the estimate of the data. It is
computed as

    z_s = (A + W Mz) z_t + W Ms score + sum_j>0 W_j (e_j - e_0) + noise xi,      W = sum_j W_j,

with the products from the host: A grows exponentially over long steps backwards, and W Mz cancels it. (Third-order
Langevin on a ring of Gaussians in float32: an error of 1e5 at 5 evaluations and 1e9 at 20 without.) The matrices
come from float64 quadrature on the host (`sgmjax.samplers.linear_flow`), so the process and the grid must be known
numbers. To sample with a process that is an argument of jit compute them outside,

    coefficients = samplers.exponential_coefficients(sde, times, method="deis", order=3)
    run = jax.jit(lambda key, sde, coefficients: samplers.deis(..., times=times, coefficients=coefficients))

and the compiled function serves processes of all parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Key, Samples, ScoreFn, Shape, State, TimeGrid
from sgmjax.samplers.common import (
    Denoise,
    SampleInfo,
    batch_time,
    check_end,
    check_grid_of,
    check_known,
    check_times,
    scan_grid,
    steps_of,
)
from sgmjax.samplers.linear_flow import Flow, float64_process, flow
from sgmjax.score import agreed
from sgmjax.sdes import SDE, linalg

HIGHEST = 4  # order of a multistep method


class ExponentialCoefficients(NamedTuple):
    """The matrices of every step; a pytree of float64 numpy arrays.

    Attributes:
        transition, push: A + W Mz and W Ms of the module's docstring, (steps, k, k).
        from_state, from_score: Mz and Ms, (steps, m, k): m = k for eps in the process's frame, 1 for the data estimate.
        weights: W_1, W_2, ..., (steps, order - 1, k, m), the newest first; zero for what a step lacks yet.
        noise: None, or (steps, k, k), a factor of the covariance of the noise that is added.
        times: where each step starts and ends, (steps, 2).
    """

    transition: Any
    push: Any
    from_state: Any
    from_score: Any
    weights: Any
    noise: Any
    times: Any


def host_flow(sde: SDE, times: TimeGrid) -> Flow:
    """The process along a grid, in float64 on the host.

    Raises:
        ValueError: for a traced process, a bad grid, or one that ends at 0, where the kernel has no density.
    """
    process, times = float64_process(sde), check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    return flow(process, times)


def assemble(
    flow: Flow, A: np.ndarray, Mz: np.ndarray, Ms: np.ndarray, W: np.ndarray, noise: np.ndarray | None = None
) -> ExponentialCoefficients:
    """The step of the module's docstring, given in the process's frame, to act on states in its own order.

    Args:
        A: (steps, k, k). Mz, Ms: (steps + 1, m, k), at all times of the grid. W: (steps, order, k, m).
        noise: None or (steps, k, k).
    """
    T = np.eye(flow.sde.k) if flow.sde.frame is None else np.asarray(flow.sde.frame)
    Mz, Ms, total = Mz[:-1], Ms[:-1], W.sum(axis=1)
    return ExponentialCoefficients(
        transition=T.T @ (A + total @ Mz) @ T, push=T.T @ (total @ Ms) @ T, from_state=Mz @ T, from_score=Ms @ T,
        weights=T.T @ W[:, 1:], noise=None if noise is None else T.T @ noise, times=steps_of(flow.times),
    )  # fmt: skip


def with_weights(coefficients: ExponentialCoefficients, weights: Any) -> ExponentialCoefficients:
    """A method whose weights differ from the known ones by V_j: W_j + V_j of the module's docstring, on the host.

    Args:
        coefficients: in float64.
        weights: V_0, V_1, ..., (steps, order, k, m), the newest first, or flat; in the order of the state's variables.

    Raises:
        ValueError: weights of another size.
    """
    c, V = coefficients, np.asarray(weights, np.float64)
    steps, older, k, m = c.weights.shape
    shape = (steps, 1 + older, k, m)
    if V.size != np.prod(shape) or V.shape not in (shape, (V.size,)):
        raise InputError(f"weights have shape {V.shape}: those of this method on this grid have {shape}.")
    V = V.reshape(shape)
    total = V.sum(axis=1)
    return c._replace(
        transition=c.transition + total @ c.from_state, push=c.push + total @ c.from_score, weights=c.weights + V[:, 1:]
    )  # fmt: skip


def slope_by_weights(coefficients: ExponentialCoefficients, slope: ExponentialCoefficients) -> np.ndarray:
    """The derivative by the V of `with_weights` of what has the derivative `slope` by the coefficients."""
    c = coefficients
    total = slope.transition @ np.swapaxes(c.from_state, 1, 2) + slope.push @ np.swapaxes(c.from_score, 1, 2)
    out = np.repeat(total[:, None], 1 + c.weights.shape[1], axis=1)
    out[:, 1:] += slope.weights
    return out


def check_order(order: int) -> None:
    """Raise ValueError for an order of a multistep method that there is not."""
    check_known(order=order)
    if order not in range(1, HIGHEST + 1):
        raise InputError(f"order = {order}: must be 1 to {HIGHEST}.")


def multistep(
    steps: int,
    carry: np.ndarray,
    predictor: Callable[[int, int], np.ndarray],
    corrector: Callable[[int, int], np.ndarray] | None = None,
    *,
    order: int,
    corrector_order: int = 0,
    lower_order_final: bool = False,
) -> np.ndarray:
    """The W of every step of a method that predicts, and corrects without an evaluation of its own (UniC).

    Once the prediction e is known where a step has ended, the step is made again through one point more, and the next
    starts from there. What that adds to z is a combination of predictions which the next step has too, as both take
    the same share of z_t: so predictor and corrector together are one multistep method, with the weights of the
    predictor and, carried through the next step, the difference of the two.

    Args:
        steps: how many.
        carry: the predictor's share of z_t, (steps, k, k): the A of `assemble`.
        predictor: predictor(i, p) -> weights of e at t_i, t_{i-1}, ..., (p, k, m).
        corrector: corrector(i, p) -> weights of e at t_{i+1}, t_i, t_{i-1}, ..., (p + 1, k, m).
        order, corrector_order: of both; the first steps, which know fewer points, have less. No corrector if 0.
        lower_order_final: fall to order 1 towards the last step.

    Returns:
        (steps, points, k, m), the newest first.
    """
    out, correction = [], np.zeros((0, *predictor(0, 1).shape[1:]))
    for i in range(steps):
        here = min(i + 1, steps - i if lower_order_final else i + 1)
        predicted = predictor(i, min(order, here))
        out.append(_sum(predicted, carry[i] @ correction))
        if corrector_order and corrector is not None:
            correction = _sum(corrector(i, min(corrector_order, here)), np.insert(-predicted, 0, 0.0, axis=0))
    points = max(order, corrector_order) + 1 if corrector_order else order
    return np.stack([_sum(w, np.zeros((points, *w.shape[1:]))) for w in out])


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of two arrays of unequal length."""
    out = np.zeros((max(len(a), len(b)), *np.broadcast_shapes(a.shape[1:], b.shape[1:])))
    out[: len(a)] += a
    out[: len(b)] += b
    return out


def sample(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    coefficients: ExponentialCoefficients,
    denoise: Denoise,
    options: dict[str, Any],
) -> tuple[Samples, SampleInfo]:
    """Run the step of the module's docstring over a grid.

    Raises:
        ValueError: for coefficients of another number of steps or variables, or of another grid (traced ones of
            as many steps and variables pass).
    """
    times = check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    steps, _, k, _ = np.shape(coefficients.weights)
    if steps != len(times) - 1 or k != sde.k:
        raise InputError(
            f"coefficients are for {steps} steps of {k} variables, but times has {len(times) - 1} steps and the "
            f"process {sde.k} variables: compute them from these."
        )
    check_grid_of(coefficients.times, times)
    dtype = options.get("dtype", jnp.float32)

    def take(z, memory, node):
        out, _, memory = step(score_fn(z, batch_time(node.t, z)), node.extra, z, memory)
        if node.extra.noise is not None:
            out = out + linalg.apply(node.extra.noise, node.noises[0])
        return out, memory

    if np.shape(coefficients.from_state)[1] != sde.num_noised:  # it reads the data off the score
        score_fn = agreed(score_fn, sde)
    per_step = jax.tree.map(lambda v: jnp.asarray(v, dtype), coefficients)
    draws = 0 if coefficients.noise is None else 1
    return scan_grid(
        take, key, score_fn, sde, shape, times=times, draws=draws, denoise=denoise,
        memory=functools.partial(no_memory, coefficients), per_step=per_step, **options,
    )  # fmt: skip


def step(
    score: State, c: ExponentialCoefficients, z: State, memory: tuple[AnyArray, ...]
) -> tuple[State, AnyArray, tuple[AnyArray, ...]]:
    """The step of the module's docstring, without its noise.

    Args:
        score: at z. c: the matrices of this step. z: (batch, k, *event).
        memory: e_1, e_2, ..., (batch, m, *event) each.

    Returns:
        z_s, e_0, and the memory of the next step.
    """
    out = linalg.apply(c.transition, z) + linalg.apply(c.push, score)
    newest = linalg.apply(c.from_state, z) + linalg.apply(c.from_score, score)
    for weight, older in zip(c.weights, memory, strict=True):
        out = out + linalg.apply(weight, older - newest)
    return out, newest, (newest, *memory)[: len(memory)]


def no_memory(coefficients: ExponentialCoefficients, z: State) -> tuple[AnyArray, ...]:
    """What the first step remembers. coefficients: of all steps."""
    _, older, _, m = np.shape(coefficients.weights)
    return tuple(jnp.zeros_like(z[:, :m]) for _ in range(older))
