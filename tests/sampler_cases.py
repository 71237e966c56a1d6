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
    "hold4": (analytic.NEW["hold4"], sdes.hold(order=4, beta_max=3.0)),
    "flow": (analytic.NEW["flow"], sdes.flow(alpha_end=2e-3)),
    "friction": (analytic.NEW["friction"], analytic.friction(nu=4.5)),
}
SCALAR = ("vp", "subvp", "ve", "flow")
RECIPES = ("cld", "psld", "third_order", "oblique")  # of several variables, for which splitting is
PHASE_SPACE = (*RECIPES, "hold4", "friction")


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


def _conjugate(**settings):
    def prepare(sde, times):
        return {"coefficients": samplers.conjugate_coefficients(sde, times, **settings)}

    return prepare


def _midpoint(sde, times):
    return {"coefficients": samplers.midpoint_coefficients(sde, times)}


def _technique_4(sde, times):
    return {"step_size": samplers.technique_4(sde, times, steps_per_level=2)}


_LAM = {"lam": 0.5, "B": "ones"}
_HEUN = {"lam": 0.5, "scheme": "heun"}
_VERLET = {"scheme": "velocity_verlet", "prediction": "cholesky"}
_ANCESTRAL = {"predictor": "ancestral", "corrector": "none"}
_EM_ALD = {"predictor": "em", "corrector": "annealed_langevin", "corrector_steps": 2}
_ADAPTIVE = {"t_min": T_MIN, "rtol": 1e-3, "atol": 1e-3}


def _exponential(method: str, **options):
    """Coefficients of the exponential integrator `method`, to pass through jit."""
    return lambda sde, times: {
        "coefficients": samplers.exponential_coefficients(sde, times, method=method, **options)
    }  # fmt: skip


_COARSE = {"t_min": T_MIN, "rtol": 0.05, "atol": 0.05, "brownian_tol": 2.0**-14}
CASES: dict[str, Case] = {
    "deis": Case("deis", {"times": GRID}, prepare=_exponential("deis")),
    "unipc": Case("unipc", {"times": GRID}, prepare=_exponential("unipc")),
    # of fourth order it diverges, see its docstring
    "ipndm": Case(
        "ipndm", {"times": GRID}, tuple(name for name in PROCESSES if name != "hold4"), prepare=_exponential("ipndm")
    ),
    "sa_solver": Case("sa_solver", {"times": GRID}, prepare=_exponential("sa_solver")),
    "er_sde": Case("er_sde", {"times": GRID}, prepare=_exponential("er_sde")),
    "dpm_solver_pp": Case("dpm_solver_pp", {"times": GRID}, prepare=_exponential("dpm_solver_pp")),
    "ddim": Case("ddim", {"times": GRID}, SCALAR, prepare=_exponential("ddim")),
    "ddim_eta": Case("ddim", {"times": GRID}, ("ve", "psld"), prepare=_exponential("ddim", eta=0.5)),
    "gddim": Case("gddim", {"times": GRID}, PHASE_SPACE[::-1], prepare=_exponential("gddim")),
    "gddim_lam": Case("gddim", {"times": GRID}, ("ve", "psld"), prepare=_exponential("gddim", lam=0.7)),
    "gddim_L": Case("gddim", {"times": GRID}, ("psld",), prepare=_exponential("gddim", lam=0.7, parameterization="L")),
    "em": Case("em", {"times": GRID}),
    "sscs": Case("sscs", {"times": GRID}),
    "sscs without prior": Case("sscs", {"times": GRID, "precision": "none"}),
    "ode": Case("ode", _ADAPTIVE, nfe=None),
    "ode_fixed": Case("ode", {"times": GRID, "solver": "Heun"}, ("ve", "psld"), nfe=None),
    "edm": Case("edm", {"times": GRID}, SCALAR, nfe=2 * STEPS - 1),
    "edm_churn": Case("edm", {"times": GRID, "S_churn": 1.0, "S_max": 3.0}, ("vp", "ve"), nfe=2 * STEPS - 1),
    "ode_per_sample": Case("ode", _ADAPTIVE | {"per_sample": True}, ("ve", "psld"), nfe=None),
    "adaptive_sde": Case("adaptive_sde", _COARSE, ("vp", "ve", "psld", "oblique"), nfe=None),
    "adaptive_sde_per_sample": Case("adaptive_sde", _COARSE | {"per_sample": True}, ("ve", "psld"), nfe=None),
    "ggf": Case("ggf", _COARSE | {"per_sample": False, "rejected": "redraw"}, ("ve", "psld"), nfe=None),
    "ggf_per_sample": Case("ggf", _COARSE, nfe=None),
    "pc": Case("pc", {"times": GRID}, nfe=2 * STEPS - 1),
    "pc_ancestral": Case("pc", {"times": GRID} | _ANCESTRAL, SCALAR + ("psld",)),
    "pc_em_annealed": Case("pc", {"times": GRID} | _EM_ALD, ("ve", "psld", "oblique"), nfe=3 * STEPS - 2),
    # times are its levels, at the last of which it takes steps too
    "annealed_langevin": Case(
        "annealed_langevin",
        {"times": GRID, "steps_per_level": 2},
        SCALAR + ("psld",),
        nfe=2 * STEPS + 1,
        prepare=_technique_4,
    ),
    "splitting": Case("splitting", {"times": GRID}, RECIPES[::-1], nfe=2 * STEPS - 1),
    "splitting_oba": Case("splitting", {"times": GRID, "scheme": "reduced_oba"}, RECIPES[::-1]),
    "splitting_naive": Case("splitting", {"times": GRID, "scheme": "naive_obab"}, ("cld", "psld"), nfe=3 * STEPS - 2),
    "exponential_midpoint": Case("exponential_midpoint", {"times": GRID}, prepare=_midpoint),
    "conjugate": Case("conjugate", {"times": GRID}, prepare=_conjugate()),
    "conjugate_lambda": Case("conjugate", {"times": GRID} | _LAM, ("ve", "psld"), prepare=_conjugate(**_LAM)),
    "conjugate_heun": Case(
        "conjugate", {"times": GRID} | _HEUN, ("ve", "psld"), nfe=2 * STEPS - 1, prepare=_conjugate(**_HEUN)
    ),
    "conjugate_verlet": Case(
        "conjugate", {"times": GRID} | _VERLET, ("psld",), nfe=2 * STEPS - 1, prepare=_conjugate(**_VERLET)
    ),
}
