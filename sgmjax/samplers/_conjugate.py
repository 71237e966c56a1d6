"""Conjugate integrators: the probability flow in coordinates that move with its linear part, for any linear process.

Write the score as C_skip(t) z + C_out(t) u(z, t), u being the prediction that is held fixed over a step, and let

    z_hat = A_t z,    dA/dt = A (B - f + 1/2 g g^T C_skip),    dPhi/dt = -1/2 A g g^T C_out.                      (1)

The flow dz/dt = f z - 1/2 g g^T score becomes

    dz_hat/dt = A B A^-1 z_hat + dPhi/dt u,                                                                       (2)

and Euler's step from t down to s is  z_hat_s = z_hat_t + (s - t) A B A^-1 z_hat_t + (Phi_s - Phi_t) u.           (3)

B is free. With B = 0 the linear part is solved exactly and (3) is the exponential integrator of the prediction u: DDIM
for k = 1 and u = eps. With B = lambda I ("identity", the paper's lambda-DDIM-I) or lambda times the matrix of ones
("ones", lambda-DDIM-II) a known linear term is left to the integrator on purpose, which moves the eigenvalues of the
step (the paper's theorem 2). Any lambda converges to the same flow at the same order; the best one for few steps is
found by trying, positive values of order 1 first. B is in units of 1 / t, t in [0, 1].

A only matters up to a constant factor from the left, so each step starts at A = 1 and only what happens between t and s
is computed: (1) on the host in float64, by collocation of order 20 in log t (`samplers.linear_flow`). The paper's
A = exp(int B - f + ...) is the same where the exponents commute; elsewhere only (1) makes (2) true.

**Predictions.** u = "R": gDDIM's eps_R, constant along the flow where the data are a point, so that one step is exact
there; the default. "cholesky": eps_L = -L^T score, as networks predict it and as in the paper; the same for k = 1.
"data": E[x_0 | z_t], with C_skip = -Sigma^-1.

**Schemes.** "euler" (3) and "heun", its second order version. Where there are auxiliary variables y the two splittings
of `samplers.splitting` apply in the new coordinates: "symplectic_euler" (the paper's CSE; y, then x, sharing u) and
"velocity_verlet" (CVV; y/2, x, y/2, the last with u at the end of the step). For B = lambda I the linear term of (2)
couples nothing, and CSE is the Euler step. CVV is of first order, as x sees u at the start of the step alone; on
Gaussian data its error was measured to be larger than that of the Euler step, which treats x and y alike.

Reference: Pandey, Rudolph & Mandt 2024 (arXiv 2310.07894), sec. 3.1 (eqs. (1)-(3) here), 3.2 and 3.4. Written from the
definitions; that lambda is used as here can be seen in the authors' code of 2405.17673 (mandt-lab/c-pigdm).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import Key, Samples, Scalar, ScoreFn, Shape, State, States, TimeGrid
from sgmjax.samplers import linear_flow
from sgmjax.samplers._splitting import check_phase_space
from sgmjax.samplers.common import (
    Denoise,
    SampleInfo,
    batch_time,
    check_end,
    check_grid_of,
    check_times,
    scan_grid,
    steps_of,
)
from sgmjax.samplers.declaration import on_grid
from sgmjax.score import agreed
from sgmjax.sdes import SDE, linalg

Scheme = Literal["euler", "heun", "symplectic_euler", "velocity_verlet"]
Prediction = Literal["R", "cholesky", "data"]
EVALUATIONS = {"euler": 1, "symplectic_euler": 1, "heun": 2, "velocity_verlet": 2}


class ConjugateCoefficients(NamedTuple):
    """The steps of a grid as matrices on the state and its score, in the state's own coordinates.

        z' = first[0] z + first[1] score(z, t)
        z_s = second[0] z + second[1] score(z, t) + second[2] z' + second[3] score(z', s)

    Attributes:
        first: (steps, 2, k, k).
        second: (steps, 4, k, k), or None for schemes with one evaluation, where z_s = z'.
        times: where each step starts and ends, (steps, 2).
    """

    first: Any
    second: Any
    times: Any


def conjugate_coefficients(
    sde: SDE,
    times: TimeGrid,
    *,
    lam: float = 0.0,
    B: Literal["identity", "ones"] = "identity",
    scheme: Scheme = "euler",
    prediction: Prediction = "R",
) -> ConjugateCoefficients:
    """What `conjugate` computes on the host before it samples.

    Args:
        sde: the process, not traced.
        times: the grid of the sampler, ending above 0.
        lam, B, scheme, prediction: as `conjugate`.

    Raises:
        ValueError: see `conjugate`.

    Examples:
        >>> times = samplers.time_grid("quadratic", 5)
        >>> coefficients = samplers.conjugate_coefficients(sdes.psld(), times, scheme="heun")
        >>> coefficients.first.shape, coefficients.second.shape  # (steps, matrices, k, k)
        ((4, 2, 2, 2), (4, 4, 2, 2))
    """
    if scheme not in EVALUATIONS:
        raise InputError(f"scheme must be one of {', '.join(repr(s) for s in EVALUATIONS)}, not {scheme!r}.")
    if B not in ("identity", "ones"):
        raise InputError(f"B must be 'identity' or 'ones', not {B!r}.")
    if prediction not in ("R", "cholesky", "data"):
        raise InputError(f"prediction must be 'R', 'cholesky' or 'data', not {prediction!r}.")
    if not (linalg.is_concrete(lam) and np.isfinite(lam)):
        raise InputError(f"lam = {lam}: must be a finite number known before compilation.")
    times = check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    if scheme in ("symplectic_euler", "velocity_verlet"):
        check_phase_space(sde, f"the conjugate scheme {scheme!r}")
    if not linalg.is_concrete(sde):
        raise InputError(
            "the process is traced (an argument of jit): compute samplers.conjugate_coefficients(sde, times, ...) "
            "outside and pass it as coefficients=."
        )
    k = sde.k
    free = lam * (np.eye(k) if B == "identity" else np.ones((k, k)))
    pieces = 2 if scheme == "velocity_verlet" else 1
    parts = _conjugation(linear_flow.float64_process(sde), times, free, prediction, pieces)
    return ConjugateCoefficients(*_steps(scheme, times, free, parts), times=steps_of(times))


class _Parts(NamedTuple):
    """Eqs. (1) over each step, with A = 1 at its start, in the state's coordinates.

    Attributes:
        A: at the ends of the steps, (n, k, k).
        first_half, second_half: of Phi_s - Phi_t, cut at the middle of the step; (all, 0) if it was not cut. (n, k, m).
        from_state, from_score: u = from_state z + from_score score at the times of the grid, (n + 1, m, k) each.
    """

    A: np.ndarray
    first_half: np.ndarray
    second_half: np.ndarray
    from_state: np.ndarray
    from_score: np.ndarray


def _conjugation(sde: SDE, times: np.ndarray, free: np.ndarray, prediction: Prediction, pieces: int) -> _Parts:
    """Solve (1) on the grid; with two pieces to a step, also at the middles of its steps."""
    T = np.eye(sde.k) if sde.frame is None else np.asarray(sde.frame)
    cut = np.linspace(0.0, 1.0, pieces + 1)[:-1]
    cuts = np.append((times[:-1, None] + cut * np.diff(times)[:, None]).ravel(), times[-1])
    flow = linear_flow.flow(sde, cuts)
    held = hold(flow, prediction)
    A, phi = conjugated(flow, T @ free @ T.T, held.skip, held.out, pieces)
    phi = T.T @ phi  # its rows turned; u keeps its own coordinates
    halves = (phi, np.zeros_like(phi)) if pieces == 1 else (phi[::2], phi[1::2])
    from_state, from_score = (v[::pieces] @ T for v in (held.from_state, held.from_score))
    return _Parts(T.T @ A @ T, *halves, from_state, from_score)


class Held(NamedTuple):
    """score = skip z + out u: what is held over a step, in the process's frame, m numbers.

    Attributes:
        skip, out: at the nodes of the flow's panels, (..., k, k) and (..., k, m).
        from_state, from_score: u = from_state z + from_score score at the times of the grid, (n + 1, m, k) each.
    """

    skip: np.ndarray
    out: np.ndarray
    from_state: np.ndarray
    from_score: np.ndarray


def hold(flow: linear_flow.Flow, prediction: Prediction) -> Held:
    """The matrices of a prediction along a flow."""
    inside = flow.inside
    inverse_transpose = np.swapaxes(inside.inverse, -1, -2)
    if prediction == "data":
        precision = inverse_transpose @ inside.inverse
        out = precision @ inside.data_mean[..., None]
        return Held(-precision, out, *linear_flow.data_matrices(flow.sde, flow.at))
    readout, out = linear_flow.eps_matrices(flow.sde, flow.at), -inverse_transpose
    if prediction == "R":  # R = L O, eps_R = O^T eps_L and R^-T = L^-T O
        out = out @ flow.inner_rotation
        readout = tuple(np.swapaxes(flow.rotation, 1, 2) @ v for v in readout)
    return Held(np.zeros_like(inverse_transpose), out, *readout)


def conjugated(
    flow: linear_flow.Flow, free: np.ndarray, skip: np.ndarray, out: np.ndarray, pieces: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Eqs. (1) along a flow, with A = 1 at the start of every step, in the process's frame.

    Args:
        free: B, (k, k).
        skip, out: C_skip and C_out at the nodes, (P, NODES, k, k) and (P, NODES, k, m).
        pieces: intervals of the flow's grid that make a step.

    Returns:
        A at the ends of the steps, (n, k, k), and Phi_s - Phi_t over every interval, (n pieces, k, m).
    """
    rate = free - flow.inside.f + 0.5 * flow.inside.ggT @ skip
    # A^T solves dA^T/dt = rate^T A^T, downwards on every panel; all panels of a step are chained
    backwards = -np.swapaxes(rate, -1, -2)[:, ::-1] * flow.tau[:, ::-1, None, None]
    ends, nodes = linear_flow.propagate(backwards, np.sum(flow.weight / flow.tau, axis=1))
    k, steps = len(free), (len(flow.times) - 1) // pieces
    A_ends, A_nodes, current = np.empty((steps, k, k)), np.empty_like(nodes), np.eye(k)
    for panel, step in enumerate(flow.step // pieces):
        if panel == 0 or flow.step[panel - 1] // pieces != step:
            current = np.eye(k)
        A_nodes[panel] = current @ np.swapaxes(nodes[panel, ::-1], -1, -2)
        current = A_ends[step] = current @ ends[panel].T
    return A_ends, flow.integrate(-0.5 * A_nodes @ flow.inside.ggT @ out)


def _steps(scheme: Scheme, times: np.ndarray, free: np.ndarray, parts: _Parts):
    """The matrices of `ConjugateCoefficients`; z_hat = z at the start of a step and z_hat = A z at its end."""
    A, half, rest, from_state, from_score = parts
    k = A.shape[-1]
    one, h = np.eye(k), np.diff(times)[:, None, None]
    x = np.diag(np.arange(k) == 0).astype(float)  # projections on the data variable and on the others
    y = one - x
    back = np.linalg.inv(A)
    linear, phi = h * free, half + rest
    start = from_state[:-1], from_score[:-1]
    end = from_state[1:], from_score[1:]

    def stage(state, prediction):
        """z' = A^-1 (state z + prediction u) -> (n, 2, k, k)."""
        return np.stack([back @ (state + prediction @ start[0]), back @ prediction @ start[1]], axis=1)

    if scheme in ("euler", "heun"):
        first = stage(one + linear, phi)
        if scheme == "euler":
            return first, None
        before = stage(one + 0.5 * linear, 0.5 * phi)
        after = [back @ (0.5 * A @ linear + 0.5 * phi @ end[0]), back @ (0.5 * phi @ end[1])]
        return first, np.concatenate([before, np.stack(after, axis=1)], axis=1)

    # y by the first half (or all), then x with the new y
    part, kick = (linear, phi) if scheme == "symplectic_euler" else (0.5 * linear, half)
    first = stage((one + x @ linear) @ (one + y @ part), (one + x @ linear) @ y @ kick + x @ phi)
    if scheme == "symplectic_euler":
        return first, None
    state = one + back @ y @ (0.5 * A @ linear + rest @ end[0])
    zero = np.zeros_like(A)
    return first, np.stack([zero, zero, state, back @ y @ rest @ end[1]], axis=1)


@on_grid(lambda settings: EVALUATIONS.get(settings["scheme"], 1))  # an unknown one is refused later
def conjugate(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    lam: float = 0.0,
    B: Literal["identity", "ones"] = "identity",
    scheme: Scheme = "euler",
    prediction: Prediction = "R",
    coefficients: ConjugateCoefficients | None = None,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by a conjugate integrator on a fixed grid.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; times ends above 0.
        lam: the paper's lambda. 0 is the exponential integrator (DDIM).
        B: "identity" (lambda-DDIM-I) or "ones" (lambda-DDIM-II). Equal for k = 1.
        scheme: "euler" (order 1, 1 evaluation a step), "heun" (order 2, 2 evaluations), and for processes with
            auxiliary variables "symplectic_euler" (order 1, 1 evaluation) or "velocity_verlet" (order 1, 2).
        prediction: "R", "cholesky" or "data". In phase space "cholesky", the paper's, needs small steps near the data.
        coefficients: from `conjugate_coefficients` with this process, grid and settings; None computes them. They must
            be given where the process is an argument of jit; lam and B are then not read.
        options: as `em`; `noise` has no draws.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Raises:
        ValueError: for an unknown scheme, B or prediction; lam that is not finite; a grid that reaches 0; a splitting
            of a process without auxiliary variables; a traced process without `coefficients`, or `coefficients` of
            another number of steps or variables, or of a scheme of other stages.

    Examples:
        >>> sde, times = sdes.vp(), samplers.time_grid("quadratic", 5, evaluations=2)  # two steps of Heun's
        >>> score_fn = exact.ring().score_fn(sde)
        >>> samples, info = samplers.conjugate(jax.random.key(0), score_fn, sde, (3, 2), times=times, scheme="heun")
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    settings = {"lam": lam, "B": B, "scheme": scheme, "prediction": prediction}
    if coefficients is None:
        coefficients = conjugate_coefficients(sde, times, **settings)
    times = check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    steps = len(times) - 1
    if scheme not in EVALUATIONS:
        raise InputError(f"scheme must be one of {', '.join(repr(s) for s in EVALUATIONS)}, not {scheme!r}.")
    twice = EVALUATIONS[scheme] == 2
    if np.shape(coefficients.first) != (steps, 2, sde.k, sde.k) or (coefficients.second is not None) != twice:
        raise InputError(
            f"coefficients belong to another grid or scheme: expected {steps} steps of {scheme!r}, {sde.k} variables."
        )
    check_grid_of(coefficients.times, times)

    if prediction == "data" or sde.num_noised < sde.k:  # it reads the data off the score
        score_fn = agreed(score_fn, sde)

    def step(z, memory, node):
        return conjugate_step(score_fn, z, node.t, node.s, node.extra), memory

    return scan_grid(
        step, key, score_fn, sde, shape, times=times, draws=0, denoise=denoise, evaluations=EVALUATIONS[scheme],
        per_step=jax.tree.map(jnp.asarray, coefficients), **options,
    )  # fmt: skip


def conjugate_step(score_fn: ScoreFn, z: State, t: Scalar, s: Scalar, step: ConjugateCoefficients) -> States:
    """One step from t down to s; `step` holds its matrices, (2, k, k) and (4, k, k). z: (batch, k, *event)."""
    score = score_fn(z, batch_time(t, z))

    def combine(matrices, values) -> Any:
        return sum(linalg.apply(jnp.asarray(m, z.dtype), v) for m, v in zip(matrices, values))

    middle = combine(step.first, (z, score))
    if step.second is None:
        return middle
    return combine(step.second, (z, score, middle, score_fn(middle, batch_time(s, z))))
