"""C-PiGDM: conditional conjugate integrators, samples given a measurement in a handful of steps, for any process.

Pseudo-inverse guidance (`posterior`, "pigdm") adds to the score, with D the estimate of x_0 and w = A^T (y - A D),

    gain (d D / d z)^T w = gain rho D'^T w,      D'^T w = c w + kappa q,      D = c rho^T z + d^T u,                (1)

rho^T z the noisy look of level sigma that a state is (`sdes.estimate`). Where A A^T = a 1, the data have two parts,
what was measured, P = A^T A / a, and the rest, and in each the flow under (1) is linear in the state but for three
things: the prediction u of the network, what was measured, and what its derivative adds, q. They are held over a step,
and all else is solved exactly: (1)-(3) of `_conjugate`, with C_skip less a gain c^2 rho rho^T in what was measured. To
another integrator the stiff pull towards the measurement is part of a score; here its linear part is none of the error.

What is held is a matter of c, the share of the look in the estimate, and two are here:

    published   u = gDDIM's eps_R, c = 1, kappa = -sigma mu, gain = weight mu^2 / a, mu = 1 / sqrt(1 + sigma^2)
    white       u the residual of the estimate for white data of deviation s, c = s^2 / (s^2 + sigma^2), in units of
                s sigma / sqrt(s^2 + sigma^2); kappa = s sigma / (s^2 + sigma^2); gain = 1 / (noise_std^2 + a c sigma^2)

For VP without noise the first is the paper's algorithm. Its gain is not that of "pigdm", with which eps would be a bad
thing to hold: far from the data the estimate is a small difference of rho^T z and sigma n, and n is all but linear in
z. The second has that gain. Where the data are white and normal u and q vanish, and one step of any size is exact,
with noise too (which the paper expands to first order). Phase space needs nothing of its own.

Reference: Pandey, Yang & Mandt 2024 (arXiv 2405.17673), sec. 2.3 and app. A; their w_t is w r_t^2 mu_t^2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._ranges import POSITIVE, check_range
from sgmjax._types import Key, Samples, ScoreFn, Shape, TimeGrid
from sgmjax.samplers import linear_flow
from sgmjax.samplers._conjugate import Held, conjugated, hold
from sgmjax.samplers.common import Denoise, SampleInfo, batch_time, check_end, check_times, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.measurements import Measurement
from sgmjax.samplers.posterior import linearised, posterior_score, white_variance
from sgmjax.sdes import SDE, linalg


@on_grid()
def c_pigdm(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    measurement: Measurement,
    data_std: float = 1.0,
    weight: float | None = None,
    lam: float = 0.0,
    denoise: Denoise = "tweedie",
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Samples given a measurement, by a conjugate integrator of the guided probability flow.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`; the process must be known and times end above 0. The
            denoising step is one of the guided score, "pigdm" of `posterior_score`.
        measurement: of a linear A with A A^T = a 1: inpainting, super_resolution, colorization, a matrix with
            orthogonal rows of one length.
        data_std: s of the module's docstring.
        weight: w of the paper, for its algorithm, without noise; it tries 2 to 15. None: the white one.
        lam: the paper's lambda, as in `conjugate`; it tries -1 to 1.
        options: as `em`; `noise` has no draws. From `initial`, a state at times[0] < 1 made of a guess of x_0
            (`samplers.noised`), fewer steps do: the paper starts at 0.4 to 0.6 from A^+ y.

    Returns:
        samples (batch, *event) and a `SampleInfo`; a step is one evaluation of score_fn and one of its derivatives.

    Raises:
        InputError: an A that is not linear or whose A A^T is no multiple of 1, noise with a weight, a traced process, a
            grid that reaches 0.

    Reference: Pandey, Yang & Mandt 2024, alg. 1.

    Examples:
        >>> known = samplers.measurements.inpainting(np.array([1, 0]))  # the first of two numbers
        >>> m = samplers.measurement(known, jnp.array([0.5]))
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, _ = samplers.c_pigdm(
        ...     jax.random.key(0), lambda z, t: -z, sdes.vp(), (3, 2), times=times, measurement=m)
        >>> np.asarray(samples[:, 0]).round(2).tolist()
        [0.5, 0.5, 0.5]
    """
    check_range(data_std, POSITIVE, "data_std")
    if not linalg.is_concrete(lam) or not np.isfinite(lam):
        raise InputError(f"lam = {lam}: must be a finite number known before compilation.")
    if weight is not None:
        check_range(weight, POSITIVE, "weight")
    std = measurement.noise_std
    if not linalg.is_concrete(std) or np.ndim(std):
        raise InputError("noise_std: c_pigdm needs one number, known before compilation (no argument of jit).")
    if weight is not None and std > 0:
        raise InputError(f"weight = {weight:g}: the published gain has no noise; take weight=None, or noise_std 0.")
    times = check_times(times)
    check_end(times[-1], sde, in_log_t=True)
    size = _row_square(measurement, tuple(shape[1:]))
    steps = _steps(linear_flow.float64_process(sde), times, _Gain(size, float(std), data_std, weight), lam)
    look_at = linearised(score_fn, sde, measurement)

    def step(z, memory, node):
        score, look, pull_back = look_at(z, batch_time(node.t, z))
        c = jax.tree.map(lambda v: jnp.asarray(v, z.dtype), node.extra)
        off = look.pull(look.residual)
        mean = linalg.expand_to(c.mean[None], z.ndim)
        q = (jnp.sum(mean * pull_back(off), axis=1) - c.share * off) / c.kappa

        def stepped(part):
            return linalg.apply(part.state, z) + linalg.apply(part.score, score) + _outer(part.push, q)

        measured = jax.vmap(lambda v: look.pull(look.push(v)), in_axes=1, out_axes=1)
        rest = stepped(c.rest)
        known = look.pull(look.residual + look.push(look.estimate))
        return rest + measured(stepped(c.measured) - rest) / size + _outer(c.known, known), memory

    given = posterior_score(score_fn, sde, measurement, method="pigdm", data_std=data_std, shorten=False)
    return scan_grid(
        step, key, given, sde, shape, times=times, draws=0, denoise=denoise, evaluations=1, per_step=steps, **options
    )


# ---- the steps, on the host


class _Gain(NamedTuple):
    """a of A A^T = a 1, and what `c_pigdm` is told."""

    size: float
    noise_std: float
    data_std: float
    weight: float | None


class _Split(NamedTuple):
    """Eq. (1) at some times, leading axes (...): c, kappa and gain, (...); rho (..., k); d, (..., m)."""

    share: np.ndarray
    kappa: np.ndarray
    gain: np.ndarray
    rho: np.ndarray
    rest: np.ndarray


class _Part(NamedTuple):
    """The steps of a grid in one part of the data: z' = state z + score score + push q. (n, k, k) and (n, k)."""

    state: Any
    score: Any
    push: Any


class _Steps(NamedTuple):
    """In what was not measured, in what was, and what A^T y adds to the latter, (n, k).

    Attributes:
        share, kappa, mean: c and kappa of eq. (1) where the steps start, (n,), and the data column there, (n, k).
    """

    rest: _Part
    measured: _Part
    known: Any
    share: Any
    kappa: Any
    mean: Any


def _steps(sde: SDE, times: np.ndarray, gain: _Gain, lam: float) -> _Steps:
    """The matrices of every step in the state's own coordinates. sde: from `float64_process`."""
    k = sde.k
    T = np.eye(k) if sde.frame is None else np.asarray(sde.frame)
    flow = linear_flow.flow(sde, times)
    held = hold(flow, "R") if gain.weight is not None else _hold_white(flow, gain.data_std)
    inside, start = _split(flow.inside, gain, held.out.shape[-1]), _split(flow.at, gain, held.out.shape[-1])
    if gain.weight is not None:  # d^T u = sigma^2 m^T score
        look = np.einsum("...ji,...j->...i", held.out, flow.inside.data_mean)
        inside = inside._replace(rest=_sigma(flow.inside)[..., None] ** 2 * look)

    def part(a: float) -> tuple[_Part, np.ndarray]:
        pull = ((inside.gain * inside.share)[..., None] * inside.rho)[..., None]
        skip = held.skip - a * inside.share[..., None, None] * pull @ inside.rho[..., None, :]
        push = ((inside.gain * inside.kappa)[..., None] * inside.rho)[..., None]
        out = np.concatenate([held.out - a * pull @ inside.rest[..., None, :], pull, push], axis=-1)
        A, phi = conjugated(flow, lam * np.eye(k), skip, out)
        back = T.T @ np.linalg.inv(A)
        u, known, push = np.split(back @ phi, [held.out.shape[-1], held.out.shape[-1] + 1], axis=-1)
        free = (1 + lam * np.diff(times))[:, None, None] * back
        return _Part((free + u @ held.from_state[:-1]) @ T, u @ held.from_score[:-1] @ T, push[..., 0]), known[..., 0]

    measured, known = part(gain.size)
    return _Steps(part(0.0)[0], measured, known, start.share[:-1], start.kappa[:-1], (flow.at.data_mean @ T)[:-1])


def _split(at: linear_flow.HostProcess, gain: _Gain, held: int) -> _Split:
    """Eq. (1); the d of the published one is left 0."""
    sigma, white = _sigma(at), _white(at)
    rho = sigma[..., None] * np.einsum("...ji,...j->...i", at.inverse, white)
    rest = np.zeros((*sigma.shape, held))
    if gain.weight is not None:
        mu = 1 / np.sqrt(1 + sigma**2)
        return _Split(np.ones_like(sigma), -sigma * mu, gain.weight * mu**2 / gain.size, rho, rest)
    s, variance = gain.data_std, white_variance(sigma, gain.data_std)
    strength = 1 / (gain.noise_std**2 + gain.size * variance)
    rest[..., 0] = np.sqrt(variance)
    return _Split(variance / sigma**2, variance / (s * sigma), strength, rho, rest)


def _hold_white(flow: linear_flow.Flow, data_std: float) -> Held:
    """u = (D - c rho^T z) / sqrt(c sigma^2): nothing of white data of that deviation. In the process's frame."""
    at, inside = flow.at, flow.inside
    variance = white_variance(_sigma(inside), data_std)
    white = _white(inside)
    seen = (
        np.eye(flow.sde.k) - (variance / _sigma(inside) ** 2)[..., None, None] * white[..., None] * white[..., None, :]
    )
    upper = np.swapaxes(inside.inverse, -1, -2)
    out = (np.sqrt(variance) / _sigma(inside))[..., None, None] * (upper @ white[..., None])
    # D - c rho^T z = (1 - c) rho^T z - sigma n, n = white . eps_L
    sigma, white, spread = _sigma(at), _white(at), np.sqrt(white_variance(_sigma(at), data_std))
    rest = (sigma * spread**2 / data_std**2)[:, None, None] * (white[:, None] @ at.inverse)
    from_state, from_score = (sigma[:, None, None] * white[:, None] @ v for v in linear_flow.eps_matrices(flow.sde, at))
    by = spread[:, None, None]
    return Held(-upper @ seen @ inside.inverse, out, (rest - from_state) / by, -from_score / by)


def _sigma(at: linear_flow.HostProcess) -> np.ndarray:
    return np.exp(-linear_flow.log_snr(at))


def _white(at: linear_flow.HostProcess) -> np.ndarray:
    """L^-1 m in units of its length, (..., k)."""
    return _sigma(at)[..., None] * np.einsum("...ij,...j->...i", at.inverse, at.data_mean)


def _row_square(measurement: Measurement, event: Shape) -> float:
    """a of A A^T = a 1.

    Raises:
        InputError: an A that is not linear, or with another A A^T.
    """
    if not measurement.is_linear(event):
        raise InputError("c_pigdm needs a linear A; for others take posterior_score with 'pigdm' or 'dps'")
    with jax.ensure_compile_time_eval():
        found, push = jax.linearize(measurement.operator, jnp.zeros(event))
        pull = jax.linear_transpose(push, jnp.zeros(event))
        w = jnp.asarray(np.random.default_rng(0).standard_normal(found.shape), found.dtype)
        back = push(pull(w)[0])
        size = float(jnp.sum(w * back) / jnp.sum(w * w))
        off = float(jnp.max(jnp.abs(back - size * w)))
    if not size > 0 or off > 1e-3 * size:
        raise InputError(
            "c_pigdm needs an A whose rows are orthogonal and of one length (inpainting, super_resolution, "
            "colorization); for others take posterior_score with 'pigdm' or 'mmps'"
        )
    return size


def _outer(by: Any, v: Any) -> Any:
    """(k,) and (batch, *event) -> (batch, k, *event)."""
    return by.reshape(1, -1, *[1] * (v.ndim - 1)) * v[:, None]
