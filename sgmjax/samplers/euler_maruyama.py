"""Euler-Maruyama for the reverse SDE of any process: weak and (additive noise) strong order 1."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from sgmjax.samplers.common import batch_time, on_grid, reverse_drift, scan_grid
from sgmjax.sdes import SDE, linalg


def em_step(score_fn: Callable, sde: SDE, z, t, s, noise):
    """One step from t down to s. z, noise: (batch, k, *event); t, s scalars. Returns (z_s, its mean)."""
    time = batch_time(t, z)
    mean = z + (t - s) * reverse_drift(score_fn, sde, z, time)
    return mean + jnp.sqrt(t - s) * linalg.apply(sde.diffusion(time), noise), mean


@on_grid()
def em(key, score_fn: Callable, sde: SDE, shape, *, times, denoise=True, **options):
    """Sample by Euler-Maruyama on a fixed grid.

    Reference: Song et al. 2021, sec. 4.2; Pandey & Mandt 2023, sec. 4.

    Args:
        key: typed PRNG key.
        score_fn: score_fn(z, t) -> (batch, k, *event).
        sde: the process.
        shape: (batch, *event).
        times: decreasing grid, see `time_grid`.
        denoise: take the last step to 0 without noise; counted in the NFE. See `common.denoise_step`.
        options: `constraint`, `initial`, `noise` (one draw a step), `trajectory`, `sharding`, `progress`, `dtype`: see
            `common.scan_grid`.

    Returns:
        samples (batch, *event) and a `SampleInfo`.
    """

    def step(z, memory, node):
        return em_step(score_fn, sde, z, node.t, node.s, node.noises[0])[0], memory

    return scan_grid(step, key, score_fn, sde, shape, times=times, draws=1, denoise=denoise, **options)
