"""Annealed Langevin dynamics, the sampler of NCSN and NCSNv2: T Langevin steps at each of L falling noise levels.

    for i = 1 ... L:   alpha_i = eps sigma_i^2 / sigma_L^2
        T times:       x <- x + alpha_i s(x, sigma_i) + sqrt(2 alpha_i) n
    at the end:        x <- x + sigma_L^2 s(x, sigma_L)      (denoising)

The levels are times of the process: `sdes.level_times(L)` for VE, from which the same run is

    samplers.annealed_langevin(key, score_fn, sde, shape, times=sdes.level_times(232), step_size=6.2e-6)

Any process that noises all its variables will do. Its noise level at t is sigma(t) of `sdes.estimate` (std over
mean for k = 1), in units of the data, and a step is the preconditioned one of the annealed corrector
(`predictor_corrector.langevin_step`), z <- z + alpha A A^T score + sqrt(2 alpha) A n with A A^T the kernel's covariance
and alpha = eps / sigma_L^2, the same at all levels. Between levels z is taken to E^-1 z, E the forward mean: this is
nothing for VE, and makes VP's chain that of VE at the same noise levels. Where some variables get no noise (CLD), no
Langevin step on the others ever moves them, so there is no such sampler.

The published start is uniform on [0, 1]; a draw from the prior N(0, sigma_1^2) is the default here.

Reference: Song & Ermon 2019, alg. 1; Song & Ermon 2020, sec. 4 and alg. 1 (with denoising); the published code for the
start, and for interpolation.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Key, Samples, Scalar, ScoreFn, Shape, State, TimeGrid
from sgmjax.samplers._predictor_corrector import langevin_step
from sgmjax.samplers.common import Constraint, Denoise, SampleInfo, batch_time, check_end, check_times, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.grids import host_noise_level
from sgmjax.sdes import SDE, VE, linalg, noise_level
from sgmjax.sdes.noise_levels import best_relative_step, check_step

Start = Literal["prior", "uniform"]

_NEARLY_ZERO = 1e-30


@on_grid(lambda settings: max(1, settings["steps_per_level"]), divisible=lambda settings: False)
def annealed_langevin(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    denoise: Denoise = True,
    step_size: Scalar | None = None,
    steps_per_level: int = 5,
    start: Start = "prior",
    trajectory: bool | Literal["steps"] = False,
    initial: State | None = None,
    constraint: Constraint | None = None,
    dtype: Any = jnp.float32,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by annealed Langevin dynamics; see the module's docstring.

    Args:
        key, score_fn, sde, shape: as `em`.
        times: (L,) the levels, decreasing; `sdes.level_times(L)` for VE. Steps are taken at the last one too.
        denoise: True is the published last step, "tweedie" of `common.denoise_step`; counted in the NFE.
        step_size: eps, in squared units of the data; below 2 sigma_L^2. None: `step_size` of technique 4, for the mean
            ratio of the levels.
        steps_per_level: T.
        start: law of the first state, at sigma_1: "prior", or "uniform" on [0, 1] as published (k = 1).
        trajectory: keep the start and the state after each level, (L + 1, batch, k, *event); "steps": after each step.
        initial: first state (batch, k, *event); chains that start from data: `editing.noised(key, sde, x0, 1.0)`.
        constraint: as `em`; applied to a drawn start and after each step, at the level that comes next.
        options: as `em`; `noise` is (L T, 1, batch, k, *event). The steps that a constraint's `jump` counts are these.

    Returns:
        samples (batch, *event) and a `SampleInfo`; L T evaluations, one more with denoising.

    Raises:
        ValueError: one level; a step size that diverges; a process with variables that get no noise.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.1, sigma_max=10.0)
        >>> score_fn, times = exact.ring().score_fn(sde), sdes.level_times(4)
        >>> samples, info = samplers.annealed_langevin(
        ...     jax.random.key(0), score_fn, sde, (3, 2), times=times, steps_per_level=2)
        >>> samples.shape, info.nfe  # two steps at each of four levels, and the denoising one
        ((3, 2), 9)
    """
    alpha = _relative_step(sde, times, step_size, steps_per_level)
    if initial is None and start == "uniform":
        start_key, project_key, key = jax.random.split(key, 3)
        initial = _uniform_start(start_key, project_key, sde, shape, times, constraint, dtype)
    elif start not in ("prior", "uniform"):
        raise InputError(f"start must be 'prior' or 'uniform', not {start!r}.")
    return _chains(
        key, score_fn, sde, shape, lambda noises: noises[0], times=times, draws=1, denoise=denoise, alpha=alpha,
        steps_per_level=steps_per_level, trajectory=trajectory, initial=initial, constraint=constraint, dtype=dtype,
        **options,
    )  # fmt: skip


def annealed_langevin_interpolation(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    num: int = 8,
    denoise: Denoise = True,
    step_size: Scalar | None = None,
    steps_per_level: int = 5,
    start: Start = "prior",
    initial: Float[AnyArray, "rows k *event"] | None = None,
    dtype: Any = jnp.float32,
    **options: Any,
) -> tuple[Float[jax.Array, "rows num *event"], SampleInfo]:
    """Rows of images that change gradually: chains of one start whose noises turn from one draw into another.

    In a row of `num`, chain j takes the noises cos(a_j) p + sin(a_j) q, a_j from 0 to pi / 2, of two independent draws
    p, q a step: each chain alone has the law of `annealed_langevin`.

    Args:
        key, score_fn, sde, times, denoise, step_size, steps_per_level, start: as `annealed_langevin`.
        shape: (rows, *event).
        num: images a row, at least 2.
        initial: (rows, k, *event), the first state of all chains of a row.
        options: as `annealed_langevin`, for a batch of rows x num; `noise` is (L T, 2, rows x num, k, *event), of which
            the first of each row counts.

    Returns:
        samples (rows, num, *event) and a `SampleInfo`, whose state is (rows x num, k, *event).

    Reference: the published code of Song & Ermon 2020 (fig. 6 there: interpolations).

    Examples:
        >>> sde = sdes.ve(sigma_min=0.1, sigma_max=10.0)
        >>> samples, info = samplers.annealed_langevin_interpolation(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=sdes.level_times(4), num=5)
        >>> samples.shape, info.nfe
        ((3, 5, 2), 21)
    """
    if num < 2:
        raise InputError(f"num = {num}: an interpolation has its two ends at least.")
    alpha = _relative_step(sde, times, step_size, steps_per_level)
    if start not in ("prior", "uniform"):
        raise InputError(f"start must be 'prior' or 'uniform', not {start!r}.")
    rows, batch = shape[0], (shape[0] * num, *shape[1:])
    if initial is None:
        start_key, project_key, key = jax.random.split(key, 3)
        uniform = start == "uniform"
        initial = (
            _uniform_start(start_key, project_key, sde, shape, times, None, dtype)
            if uniform
            else sde.prior_sample(start_key, shape, dtype)
        )
    angles = jnp.linspace(0.0, 0.5 * np.pi, num, dtype=dtype)

    def turn(noises):
        p, q = (n.reshape(rows, num, *n.shape[1:])[:, :1] for n in noises)
        angle = angles.reshape(1, num, *(1,) * (p.ndim - 2))
        return (jnp.cos(angle) * p + jnp.sin(angle) * q).reshape(noises.shape[1:])

    x, info = _chains(
        key, score_fn, sde, batch, turn, times=times, draws=2, denoise=denoise, alpha=alpha,
        steps_per_level=steps_per_level, initial=jnp.repeat(jnp.asarray(initial, dtype), num, axis=0), dtype=dtype,
        **options,
    )  # fmt: skip
    return x.reshape(rows, num, *shape[1:]), info


def technique_4(sde: SDE, times: TimeGrid, *, steps_per_level: int = 5) -> float:
    """eps of technique 4 for these levels: see `sdes.noise_levels.best_step_size`. On the host.

    Args:
        sde: the process; its parameters must be known.
        times: (L,) levels. Where their ratio varies, its geometric mean counts.
        steps_per_level: T.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=50.0)  # of NCSNv2 for CIFAR-10
        >>> f"{samplers.technique_4(sde, sdes.level_times(232)):.1e}"  # as published
        '6.2e-06'
    """
    highest, lowest = _end_levels(sde, times)
    return lowest**2 * best_relative_step((highest / lowest) ** (1 / (len(times) - 1)), steps_per_level)


# ---- the chains


def _chains(
    key, score_fn, sde, shape, mix, *, times, alpha, steps_per_level, denoise, trajectory: Any = False, **options
):
    """`scan_grid` over levels x steps; mix(noises (draws, batch, k, *event)) is the noise of a step."""
    # not quite 0, where a constraint would take known data to have no noise, while VE's last level has sigma_min
    levels = np.maximum(check_times(times), _NEARLY_ZERO)
    # each step stays at its level, except that the last one of a level leads to the next
    grid = np.append(np.repeat(levels, steps_per_level), levels[-1])

    def step(z, memory, node):
        noise = mix(node.noises)
        z, _ = langevin_step(score_fn, sde, z, node.t, noise, snr=(0.5 * alpha) ** 0.5, annealed=True)
        if not isinstance(sde, VE):
            back = sde.transition_between(*(jnp.reshape(time, (1,)).astype(z.dtype) for time in (node.s, node.t))).mean
            z = linalg.apply(1 / back if sde.k == 1 else jnp.linalg.inv(back), z)
        return z, memory

    return scan_grid(
        step, key, score_fn, sde, shape, times=grid, stays=True, denoise="tweedie" if denoise is True else denoise,
        every=1 if trajectory == "steps" else steps_per_level, trajectory=bool(trajectory), **options,
    )  # fmt: skip


def _uniform_start(key, project_key, sde, shape, times, constraint: Constraint | None, dtype):
    """(batch, 1, *event) uniform on [0, 1], and what a constraint makes of it."""
    if sde.k > 1:
        raise InputError(f"start = 'uniform' is a law of data, and the process has {sde.k} variables: use 'prior'.")
    z = jax.random.uniform(key, (shape[0], 1, *shape[1:]), dtype)
    if constraint is None:
        return z
    noises = jax.random.normal(project_key, (constraint.draws, *z.shape), dtype)
    return constraint.project(z, batch_time(float(np.asarray(times)[0]), z), noises)


def _relative_step(sde: SDE, times, step_size, steps_per_level: int):
    """alpha = eps / sigma_L^2, after checks of all that may be wrong before anything is compiled."""
    if np.ndim(times) != 1 or len(times) < 2:
        raise InputError("times must be the levels, 1-D: annealing needs at least two.")
    check_end(check_times(times)[-1], sde)
    if steps_per_level < 1:
        raise InputError(f"steps_per_level = {steps_per_level}: at least 1.")
    if sde.num_noised != sde.k:
        raise InputError(
            f"annealed_langevin needs noise in every variable, and here {sde.num_noised} of {sde.k} get it: Langevin "
            "steps would never move the data; use sampler 'pc', whose predictor does."
        )
    if step_size is None:
        if not linalg.is_concrete(sde):
            raise InputError("step_size=None is found on the host: outside of jit, give that of `technique_4`.")
        return technique_4(sde, times, steps_per_level=steps_per_level) / _end_levels(sde, times)[1] ** 2
    if not linalg.is_concrete(sde):
        lowest = noise_level(sde, jnp.asarray(times[-1:]))[0]
        return step_size / lowest**2
    alpha = step_size / _end_levels(sde, times)[1] ** 2
    if linalg.is_concrete(step_size):
        if not step_size > 0:
            raise InputError(f"step_size = {step_size:g}: must be positive.")
        check_step(float(alpha), float(step_size))
    return alpha


def _end_levels(sde: SDE, times) -> tuple[float, float]:
    """Noise levels at the first and the last time."""
    check_end(times[-1], sde)
    highest, lowest = host_noise_level(sde, np.asarray(times, np.float64)[[0, -1]])
    return float(highest), float(lowest)
