"""Forward processes: every one is a linear SDE on the phase axis (`base`), most are members of the complete recipe.

    sde = sdes.psld(gamma=0.01, nu=4.01, kappa=0.04, beta_min=8.0, beta_max=8.0)
    kernel = sde.transition(t, matching="hsm")
    z_t = kernel.perturb(z0, eps)
    score = kernel.score(eps)

Processes are pytrees: pass them through jit, vmap and grad; changing beta_max does not recompile.
"""

from collections.abc import Callable

from sgmjax.sdes import noise_levels
from sgmjax.sdes._estimate import Denoiser, Estimate, estimate, heard_by_drift, noise_level, time_at_noise_level
from sgmjax.sdes._linear import Linear, linear
from sgmjax.sdes._recipe import Recipe, recipe
from sgmjax.sdes.base import SDE, Kernel
from sgmjax.sdes.noise_levels import geometric_levels, level_times
from sgmjax.sdes.paths import cosine, edm, flow, gaussian_path, hold, psld_friction
from sgmjax.sdes.processes import VE, SubVP, cld, geometric_vp, psld, subvp, third_order, ve, vp
from sgmjax.sdes.schedules import GeometricSchedule, LinearSchedule, Schedule

# A configuration's `sde` section is one of these names and settings of that function.
PROCESSES: dict[str, Callable[..., SDE]] = {
    "vp": vp,
    "geometric_vp": geometric_vp,
    "subvp": subvp,
    "ve": ve,
    "cld": cld,
    "psld": psld,
    "third_order": third_order,
    "flow": flow,
    "cosine": cosine,
    "edm": edm,
    "hold": hold,
    "recipe": recipe,
}
GIVEN = frozenset({"schedule", "num_noised", "variables", "name"})  # parameters of theirs for programs alone

__all__ = [
    "GIVEN", "PROCESSES", "SDE", "VE", "Denoiser", "Estimate", "GeometricSchedule", "Kernel", "Linear",
    "LinearSchedule", "Recipe", "Schedule", "SubVP", "cld", "cosine", "edm", "estimate", "flow", "gaussian_path",
    "geometric_levels", "geometric_vp", "heard_by_drift", "hold", "level_times", "linear", "noise_level",
    "noise_levels", "psld", "psld_friction", "recipe", "subvp", "third_order", "time_at_noise_level", "ve", "vp",
]  # fmt: skip
