"""The host coefficients of any exponential integrator, to be computed outside of jit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from sgmjax._inputs import InputError
from sgmjax._types import TimeGrid
from sgmjax.samplers import exponential
from sgmjax.samplers._ddim import ddim_coefficients, gddim_coefficients
from sgmjax.samplers._deis import deis_coefficients
from sgmjax.samplers._dpm_solver import dpm_solver_pp_coefficients
from sgmjax.samplers._er_sde import er_sde_coefficients
from sgmjax.samplers._ipndm import ipndm_coefficients
from sgmjax.samplers._sa_solver import sa_solver_coefficients
from sgmjax.samplers._unipc import unipc_coefficients
from sgmjax.samplers.exponential import ExponentialCoefficients
from sgmjax.sdes import SDE

Method = Literal["ddim", "gddim", "deis", "ipndm", "dpm_solver_pp", "unipc", "sa_solver", "er_sde"]

METHODS: dict[str, Callable[..., ExponentialCoefficients]] = {
    "ddim": ddim_coefficients,
    "gddim": gddim_coefficients,
    "deis": deis_coefficients,
    "ipndm": ipndm_coefficients,
    "dpm_solver_pp": dpm_solver_pp_coefficients,
    "unipc": unipc_coefficients,
    "sa_solver": sa_solver_coefficients,
    "er_sde": er_sde_coefficients,
}


def exponential_coefficients(
    sde: SDE, times: TimeGrid, *, method: Method = "deis", weights: Any = None, **options: Any
) -> ExponentialCoefficients:
    """What the sampler `method` computes on the host before it starts; give it back to it as `coefficients=`.

    Args:
        sde: the process; its parameters must be known, so not those of a function being jitted.
        times: the grid of the run.
        method: name of the sampler.
        weights: None, or what was learned to add to the method's, (steps, order, k, m): `TunedGrid.weights`.
        options: that sampler's own (`eta`, `lam`, `order`, `parameterization`, ...).

    Returns:
        A pytree of float64 arrays (steps, ...), which may pass through jit.

    Raises:
        ValueError: for an unknown method, a bad option or grid, a traced process, weights of another method or grid.

    Examples:
        >>> sde, times = sdes.vp(), samplers.time_grid("quadratic", 5)
        >>> coefficients = samplers.exponential_coefficients(sde, times, method="deis", order=2)
        >>> draw = jax.jit(lambda sde, key, coefficients: samplers.deis(
        ...     key, exact.ring().score_fn(sde), sde, (3, 2), times=times, coefficients=coefficients)[0])
        >>> draw(sde, jax.random.key(0), coefficients).shape  # the process is an argument of jit
        (3, 2)
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(repr(m) for m in METHODS)}, not {method!r}.")
    known = [p.name for p in inspect.signature(METHODS[method]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise InputError(f"{name}: method {method!r} has no such setting; there are {', '.join(known)}")
    coefficients = METHODS[method](sde, times, **options)
    return coefficients if weights is None else exponential.with_weights(coefficients, weights)
