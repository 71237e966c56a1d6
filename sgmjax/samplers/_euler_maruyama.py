"""Euler-Maruyama for the reverse SDE of any process: weak and (additive noise) strong order 1."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from sgmjax._types import Key, Samples, Scalar, ScoreFn, Shape, State, TimeGrid
from sgmjax.samplers.common import Denoise, SampleInfo, batch_time, reverse_drift, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.sdes import SDE, linalg


def em_step(score_fn: ScoreFn, sde: SDE, z: State, t: Scalar, s: Scalar, noise: State) -> tuple[State, State]:
    """One step from t down to s. z, noise: (batch, k, *event); t, s scalars. Returns (z_s, its mean)."""
    time = batch_time(t, z)
    mean = z + (t - s) * reverse_drift(score_fn, sde, z, time)
    return mean + jnp.sqrt(t - s) * linalg.apply(sde.diffusion(time), noise), mean


@on_grid()
def em(
    key: Key, score_fn: ScoreFn, sde: SDE, shape: Shape, *, times: TimeGrid, denoise: Denoise = True, **options: Any
) -> tuple[Samples, SampleInfo]:
    """Sample by Euler-Maruyama on a fixed grid.

    Reference: Song et al. 2021, sec. 4.2; Pandey & Mandt 2023, sec. 4.

    Args:
        key: typed PRNG key.
        score_fn: score_fn(z, t) -> (batch, k, *event).
        sde: the process.
        shape: (batch, *event).
        times: decreasing grid, see `time_grid`.
        denoise: take the last step to 0 without noise; counted in the NFE. See `common.denoise_step`.
        options: those that every sampler on a grid has (`common.scan_grid`); `noise` has one draw a step.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Examples:
        >>> sde = sdes.psld()
        >>> times = samplers.time_grid("quadratic", 5)
        >>> samples, info = samplers.em(jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times)
        >>> samples.shape, info.state.shape, info.nfe  # of the state, the second variable is the momentum
        ((3, 2), (3, 2, 2), 5)
    """

    def step(z, memory, node):
        return em_step(score_fn, sde, z, node.t, node.s, node.noises[0])[0], memory

    return scan_grid(step, key, score_fn, sde, shape, times=times, draws=1, denoise=denoise, **options)
