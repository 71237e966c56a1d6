"""Time grids: 1-D, decreasing, float64, computed on the host."""

from __future__ import annotations

from typing import Literal

import numpy as np


def time_grid(
    kind: Literal["uniform", "quadratic"], nfe: int, *, t_min: float = 1e-3, denoise: bool = True
) -> np.ndarray:
    """The grid of a fixed-step sampler with a budget of score evaluations.

    Args:
        kind: "uniform", or "quadratic" (Dockhorn et al. 2022, app. B.4): steps that shrink linearly to the data.
        nfe: score evaluations, one a step; the denoising step, if any, takes one of them.
        t_min: where the grid ends, in (0, 1).
        denoise: whether the sampler will take the denoising step.

    Returns:
        float64 array from 1 down to t_min, with nfe + 1 entries (nfe if denoise).

    Raises:
        ValueError: for an nfe that leaves no step, a t_min outside (0, 1), an unknown kind.
    """
    steps = nfe - 1 if denoise else nfe
    if steps < 1:
        least = 2 if denoise else 1
        raise ValueError(f"steps = {nfe}: at least {least} evaluations are needed{' with denoising' * denoise}.")
    if not 0 < t_min < 1:
        raise ValueError(f"t_min = {t_min:g}: must lie between 0 and 1.")
    u = np.linspace(0.0, 1.0, steps + 1)
    if kind == "uniform":
        return 1.0 - (1.0 - t_min) * u
    if kind == "quadratic":
        return t_min + (1.0 - t_min) * (1.0 - u) ** 2
    raise ValueError(f"grid must be 'uniform' or 'quadratic', not {kind!r}.")
