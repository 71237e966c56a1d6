"""The table over which the contract of the samplers runs: one line for every sampler and mode of it.

A new sampler adds its lines to `CASES`, and so gets every test of `test_contract` for every process it works for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import analytic

from sgmjax import samplers, sdes

T_MIN = 1e-2
STEPS = 5  # evaluations of the fixed grids, denoising included
GRID = samplers.time_grid("quadratic", STEPS, t_min=T_MIN)
FINE = samplers.time_grid("quadratic", 200, t_min=T_MIN)  # for the law

# each with a process of other parameters and equal structure
PROCESSES: dict[str, tuple[sdes.SDE, sdes.SDE]] = {
    "vp": (analytic.PROCESSES["vp"], sdes.vp(beta_max=12.0)),
    "subvp": (analytic.PROCESSES["subvp"], sdes.subvp(beta_max=12.0)),
    "ve": (sdes.ve(sigma_max=5.0), sdes.ve(sigma_max=3.0)),
    "cld": (analytic.PROCESSES["cld"], sdes.cld(beta_max=3.0)),
    "psld": (analytic.PROCESSES["psld"], sdes.psld(gamma=0.02, nu=4.02, beta_min=4.0)),
    "third_order": (analytic.PROCESSES["third_order"], sdes.third_order(beta_max=3.0)),
    "oblique": (analytic.PROCESSES["oblique"], analytic.oblique_recipe(beta=3.0)),
}
SCALAR = ("vp", "subvp", "ve")
PHASE_SPACE = ("cld", "psld", "third_order", "oblique")


class Case(NamedTuple):
    """One line of the table.

    Attributes:
        sampler: its name in `samplers.SAMPLERS`.
        options: keyword arguments; `times` for fixed grids.
        processes: names of `PROCESSES` it works for.
        nfe: evaluations it must report with GRID; None for adaptive ones (they are only counted).
        prepare: what must be computed on the host from (sde, times), as a dictionary of keyword arguments that may be
            passed through jit; None if nothing.
    """

    sampler: str
    options: dict[str, Any]
    processes: tuple[str, ...] = tuple(PROCESSES)
    nfe: int | None = STEPS
    prepare: Callable[..., dict[str, Any]] | None = None


_ADAPTIVE = {"t_min": T_MIN, "rtol": 1e-3, "atol": 1e-3}
CASES: dict[str, Case] = {
    "em": Case("em", {"times": GRID}),
    "sscs": Case("sscs", {"times": GRID}),
    "ode": Case("ode", _ADAPTIVE, nfe=None),
    "ode_fixed": Case("ode", {"times": GRID, "solver": "Heun"}, ("ve", "psld"), nfe=None),
    "edm": Case("edm", {"times": GRID}, SCALAR, nfe=2 * STEPS - 1),
    "edm_churn": Case("edm", {"times": GRID, "S_churn": 1.0, "S_max": 3.0}, ("vp", "ve"), nfe=2 * STEPS - 1),
    "ode_per_sample": Case("ode", _ADAPTIVE | {"per_sample": True}, ("ve", "psld"), nfe=None),
}
