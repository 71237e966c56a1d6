"""Grids and weights moved downhill: what few steps miss of a teacher's samples, made less.

An exponential integrator (`exponential`) is a table of matrices, which the host computes from the grid, and what it
misses is a differentiable function of these matrices and of the times at which the score is asked. So

    d miss / d level_i = d miss / d matrices . d matrices / d level_i + d miss / d time_i . d time_i / d level_i,

the first factors by one run backwards, the second, in float64 on the host, by differences. Weights of its own for every
prediction in every step, V_j of

    z_s = A z_t + sum_j (W_j + V_j) e_j,                                                                           (1)

enter linearly. The levels are parametrised by the logarithms of the distances between their logarithms, which keeps
their order; weights relative to the entries of sum_j W_j; L-BFGS moves both.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from sgmjax._types import HostGrid, Samples, Scalar, ScoreFn, State
from sgmjax.samplers import exponential
from sgmjax.samplers.common import Denoise, batch_time, denoise_step
from sgmjax.samplers.exponential import ExponentialCoefficients
from sgmjax.samplers.grids import host_noise_level, host_time_at
from sgmjax.sdes import SDE

DIFFERENCE = 1e-5  # of a logarithm, in derivatives of the host's matrices
NEAR = 0.1  # s of `miss`
WORST = 1e3  # for grids that cannot be


def miss(samples: Any, truth: Any, size: Scalar) -> Any:
    """sqrt mean s^2 log(1 + r^2 / s^2) over samples, s = NEAR.

    r is the root mean square distance of the numbers of a sample (batch, *event) to those of the true one, in units of
    `size`. While r is small that is its root mean square; but a sample that went to another mode, which is as good a
    sample, hardly counts, where by the mean square it would pull all others towards the mean.
    """
    square = jnp.mean(((samples - truth) / size) ** 2, axis=tuple(range(1, samples.ndim)))
    return NEAR * jnp.sqrt(jnp.mean(jnp.log1p(square / NEAR**2)))


class Run:
    """A sampler from given states, a step at a time: so one step is compiled, whatever the grid, and one backwards.

    (As a loop of XLA's, the derivatives of a network take five times as long on CPUs.)
    """

    def __init__(self, make: Callable[[Any], ScoreFn], variables: Any, sde: SDE, denoise: Denoise):
        """make: the score function, of the variables."""
        self._make, self._variables, self._sde = make, variables, sde
        self._denoise: Denoise = denoise
        self._step, self._back = jax.jit(self._one), jax.jit(self._one_back)
        self._end, self._miss = jax.jit(self._finish), jax.jit(self._missed)
        self._slope = jax.jit(jax.value_and_grad(self._missed, argnums=(1, 2)))

    def path(self, start: State, coefficients: ExponentialCoefficients, times: HostGrid) -> tuple[Samples, Any]:
        """Samples (batch, *event), and states (steps, batch, k, *event) with the predictions made of them."""
        end, states = self._walk(start, _steps(coefficients, times), keep=True)
        samples = self._end(self._variables, end, np.float32(times[-1]))
        return samples, tuple(np.stack(values) for values in zip(*((z, newest) for z, _, newest in states)))

    def miss(self, start: State, truth: np.ndarray, size: float, coefficients: Any, times: HostGrid) -> float:
        """`miss` of the samples."""
        end, _ = self._walk(start, _steps(coefficients, times))
        return float(self._miss(self._variables, end, np.float32(times[-1]), truth, size))

    def slope(
        self, start: State, truth: np.ndarray, size: float, coefficients: Any, times: HostGrid
    ) -> tuple[float, ExponentialCoefficients, np.ndarray]:
        """`miss`, and its derivatives by the coefficients and by the times, float64."""
        steps = _steps(coefficients, times)
        end, states = self._walk(start, steps, keep=True)
        value, (by_z, by_last) = self._slope(self._variables, end, np.float32(times[-1]), truth, size)
        by_memory = jax.tree.map(jnp.zeros_like, states[-1][1])
        by_time, by_matrix = [by_last], []
        for (z, memory, _), (t, c) in zip(reversed(states), reversed(steps)):
            by_z, by_memory, by_t, by_c = self._back(self._variables, z, memory, t, c, (by_z, by_memory))
            by_time.append(by_t)
            by_matrix.append(by_c)
        double = functools.partial(np.asarray, dtype=np.float64)
        matrices = jax.tree.map(lambda *each: np.stack([double(v) for v in each]), *reversed(by_matrix))
        return float(value), matrices, np.stack([double(v) for v in reversed(by_time)])

    def _walk(self, z: State, steps: list[tuple[Any, Any]], *, keep: bool = False) -> tuple[State, list]:
        """Where the steps end, and with `keep` the state, the memory and the prediction at the start of each."""
        memory, states = exponential.no_memory(jax.tree.map(lambda v: v[None], steps[0][1]), z), []
        for t, c in steps:
            (out, after), newest = self._step(self._variables, z, memory, t, c)
            if keep:
                states.append((z, memory, newest))
            z, memory = out, after
        return z, states

    def _one(self, variables: Any, z: State, memory: Any, t: Any, c: ExponentialCoefficients) -> Any:
        score = self._make(variables)(z, batch_time(t, z))
        out, newest, memory = exponential.step(score, c, z, memory)
        return (out, memory), newest

    def _one_back(self, variables: Any, z: State, memory: Any, t: Any, c: Any, slopes: Any) -> Any:
        return jax.vjp(lambda *given: self._one(variables, *given)[0], z, memory, t, c)[1](slopes)

    def _finish(self, variables: Any, z: State, t: Any) -> Any:
        if self._denoise:
            z = denoise_step(self._make(variables), self._sde, z, batch_time(t, z), self._denoise)
        return z[:, 0]

    def _missed(self, variables: Any, z: State, t: Any, truth: Any, size: Any) -> Any:
        return miss(self._finish(variables, z, t), truth, size)


def _steps(coefficients: Any, times: HostGrid) -> list[tuple[Any, Any]]:
    """The time and the matrices of every step, float32."""
    single = jax.tree.map(lambda v: np.asarray(v, np.float32), (np.asarray(times)[:-1], coefficients))
    return [jax.tree.map(operator.itemgetter(i), single) for i in range(len(times) - 1)]


class Descent:
    """Moves the grid and the weights of one method towards a teacher's samples."""

    def __init__(
        self,
        run: Run,
        start: State,
        truth: np.ndarray,
        sde: SDE,
        coefficients_of: Callable[[HostGrid], ExponentialCoefficients],
    ):
        """start, truth: where the paths begin and should end. coefficients_of: the method's, of a grid."""
        self._run, self._start, self._truth, self._sde, self._of = run, start, truth, sde, coefficients_of
        self._size = float(np.std(truth))

    def error(self, times: HostGrid) -> float:
        """`miss` on a grid; inf for one that cannot be."""
        try:
            coefficients = self._of(times)
        except ValueError:  # two times that are one
            return np.inf
        value = self._run.miss(self._start, self._truth, self._size, coefficients, times)
        return value if np.isfinite(value) else np.inf

    def __call__(
        self, times: HostGrid, iterations: int, *, weights: bool = False
    ) -> tuple[float, HostGrid, np.ndarray | None]:
        """The least `miss` found from a grid on, its grid, and, with `weights`, V of eq. (1), (steps, order, k, m)."""
        logs = np.log(host_noise_level(self._sde, times))
        steps = len(times) - 1
        known = _unit(self._of(times)) if weights else np.zeros((0, 0))  # only its shape is needed
        best = (self.error(times), times, None)

        def at(x: np.ndarray) -> tuple[HostGrid, ExponentialCoefficients, Any, Any]:
            inner = logs[0] + np.cumsum(np.exp(x[:steps]) * np.diff(logs))
            grid = np.concatenate([[1.0], host_time_at(self._sde, np.exp(inner))])
            coefficients = self._of(grid)
            if not weights:
                return grid, coefficients, None, None
            unit = _unit(coefficients)
            V = x[steps:].reshape(known.shape) * unit
            return grid, exponential.with_weights(coefficients, V), V, unit

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best
            try:
                grid, coefficients, V, unit = at(x)
            except (ValueError, FloatingPointError):  # two times that are one
                return WORST, np.zeros_like(x)
            value, by_matrix, by_time = self._run.slope(self._start, self._truth, self._size, coefficients, grid)
            if not np.isfinite(value):
                return WORST, np.zeros_like(x)
            if value < best[0]:
                best = (value, grid, V)
            slope = np.zeros_like(x)
            for i in range(steps):
                moved = x.copy()
                moved[i] += DIFFERENCE
                other, matrices, *_ = at(moved)
                change = sum(np.sum(d * (b - a)) for d, a, b in zip(by_matrix, coefficients, matrices) if d is not None)
                slope[i] = (change + np.sum(by_time * (other - grid))) / DIFFERENCE
            if weights:
                slope[steps:] = (exponential.slope_by_weights(coefficients, by_matrix) * unit).ravel()
            return np.log(value), np.nan_to_num(slope) / value

        start = np.zeros(steps + known.size)
        scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
        return best


def _unit(c: ExponentialCoefficients) -> np.ndarray:
    """What weights are measured by, |sum_j W_j|, (steps, order, k, m); 0 for predictions that a step does not have."""
    total = np.abs(c.push @ np.linalg.pinv(c.from_score))
    order = 1 + c.weights.shape[1]
    there = np.arange(order) <= np.arange(len(total))[:, None]
    return total[:, None] * there[..., None, None]
