"""Forward processes: every one is a linear SDE on the phase axis (`base`), most are members of the complete recipe.

    sde = sdes.psld(gamma=0.01, nu=4.01, kappa=0.04, beta_min=8.0, beta_max=8.0)
    kernel = sde.transition(t, matching="hsm")
    z_t = kernel.perturb(z0, eps)
    score = kernel.score(eps)

Processes are pytrees: pass them through jit, vmap and grad; changing beta_max does not recompile.
"""

from sgmjax.sdes.base import SDE, Kernel
from sgmjax.sdes.processes import VE, SubVP, cld, psld, subvp, third_order, ve, vp
from sgmjax.sdes.recipe import Recipe, recipe
from sgmjax.sdes.schedules import LinearSchedule

__all__ = [
    "SDE", "VE", "Kernel", "LinearSchedule", "Recipe", "SubVP", "cld", "psld", "recipe", "subvp", "third_order", "ve",
    "vp",
]  # fmt: skip
