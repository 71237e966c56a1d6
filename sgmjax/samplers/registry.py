"""The samplers by name, and what a caller must know to run one it only knows by name: each declares it in its file.

Needed by configurations and commands; a program calls `samplers.em(...)` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sgmjax._inputs import InputError
from sgmjax.samplers._adaptive_sde import adaptive_sde
from sgmjax.samplers._annealed_langevin import annealed_langevin
from sgmjax.samplers._conjugate import conjugate
from sgmjax.samplers._ddim import ddim, gddim
from sgmjax.samplers._deis import deis
from sgmjax.samplers._dpm_solver import dpm_solver_pp
from sgmjax.samplers._edm import edm
from sgmjax.samplers._er_sde import er_sde
from sgmjax.samplers._euler_maruyama import em
from sgmjax.samplers._exponential_midpoint import exponential_midpoint
from sgmjax.samplers._ggf import ggf
from sgmjax.samplers._ipndm import ipndm
from sgmjax.samplers._predictor_corrector import pc
from sgmjax.samplers._probability_flow import ode
from sgmjax.samplers._sa_solver import sa_solver
from sgmjax.samplers._splitting import splitting
from sgmjax.samplers._sscs import sscs
from sgmjax.samplers._unipc import unipc
from sgmjax.samplers.declaration import declaration, own_settings

SAMPLERS: dict[str, Callable[..., Any]] = {
    "em": em,
    "sscs": sscs,
    "exponential_midpoint": exponential_midpoint,
    "pc": pc,
    "annealed_langevin": annealed_langevin,
    "ddim": ddim,
    "gddim": gddim,
    "deis": deis,
    "ipndm": ipndm,
    "dpm_solver_pp": dpm_solver_pp,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "er_sde": er_sde,
    "edm": edm,
    "splitting": splitting,
    "conjugate": conjugate,
    "ode": ode,
    "adaptive_sde": adaptive_sde,
    "ggf": ggf,
}


def settings(sampler: str) -> dict[str, Any]:
    """The settings that are a sampler's own, by name, with their default values: {"snr": 0.16, ...}."""
    return own_settings(SAMPLERS[sampler])


def check_settings(sampler: str, options: Mapping[str, Any], where: str = "") -> None:
    """Raise InputError for a sampler that there is not, and for settings it does not have. where: for messages."""
    if sampler not in SAMPLERS:
        raise InputError(f"{where}sampler: {sampler!r} is unknown; choose one of {', '.join(sorted(SAMPLERS))}")
    known = settings(sampler)
    for name in options:
        if name not in known:
            have = f"there are {', '.join(known)}" if known else "it has none"
            raise InputError(f"{where}options.{name}: sampler {sampler!r} has no such setting; {have}")


def is_adaptive(sampler: str) -> bool:
    """Whether a sampler chooses its own steps; the others step through `times` and take a `constraint`."""
    return declaration(SAMPLERS[sampler]).adaptive


def evaluations_per_step(sampler: str, options: Mapping[str, Any]) -> int:
    """Score evaluations of one step of a sampler on a grid, from which the length of the grid follows.

    Of annealed Langevin dynamics, of one level.

    Args:
        sampler: its name.
        options: its own settings, where they are not the defaults.

    Raises:
        ValueError: for options that the sampler does not have.
    """
    return declaration(SAMPLERS[sampler]).evaluations(settings(sampler) | dict(options))
