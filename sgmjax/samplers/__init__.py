"""How samples are drawn. One contract:

    samples, info = samplers.sscs(key, score_fn, sde, shape, *, times, denoise=True)

`shape` is that of the data, (batch, *event); `times` decreases from 1; `info.nfe` counts score evaluations. Which one
to choose: docs/samplers.md. What steers them: `guidance`, `inpainting`, `editing`, `restart`. Beside them:
`likelihood` and `variational_bound`.
"""

from sgmjax.samplers._adaptive_sde import adaptive_sde
from sgmjax.samplers._annealed_langevin import annealed_langevin, annealed_langevin_interpolation, technique_4
from sgmjax.samplers._c_pigdm import c_pigdm
from sgmjax.samplers._conjugate import ConjugateCoefficients, conjugate, conjugate_coefficients
from sgmjax.samplers._ddim import ddim, gddim
from sgmjax.samplers._deis import deis
from sgmjax.samplers._dpm_solver import dpm_solver_pp
from sgmjax.samplers._edm import edm
from sgmjax.samplers._er_sde import er_sde
from sgmjax.samplers._euler_maruyama import em
from sgmjax.samplers._exponential_coefficients import exponential_coefficients
from sgmjax.samplers._exponential_midpoint import MidpointCoefficients, exponential_midpoint, midpoint_coefficients
from sgmjax.samplers._ggf import ggf
from sgmjax.samplers._ipndm import ipndm
from sgmjax.samplers._likelihood import LikelihoodInfo, likelihood
from sgmjax.samplers._predictor_corrector import pc, score_sde_times
from sgmjax.samplers._probability_flow import ode
from sgmjax.samplers._restart import Interval, restart
from sgmjax.samplers._sa_solver import sa_solver
from sgmjax.samplers._splitting import splitting
from sgmjax.samplers._sscs import sscs
from sgmjax.samplers._twisted import TwistedInfo, twisted
from sgmjax.samplers._unipc import unipc
from sgmjax.samplers._variational_bound import BoundInfo, variational_bound
from sgmjax.samplers.common import SampleInfo, reverse_drift
from sgmjax.samplers.editing import encode, interpolate, noised, slerp, start_at
from sgmjax.samplers.exponential import ExponentialCoefficients
from sgmjax.samplers.grids import time_grid
from sgmjax.samplers.guidance import Guidance, cfg_score, guided_score
from sgmjax.samplers.inpainting import colorize, inpaint
from sgmjax.samplers.measurements import Measurement, measurement
from sgmjax.samplers.posterior import posterior_score
from sgmjax.samplers.registry import SAMPLERS
from sgmjax.samplers.tuning import TunedGrid, tune_grid

__all__ = [
    "SAMPLERS", "BoundInfo", "ConjugateCoefficients", "ExponentialCoefficients", "Guidance", "Interval",
    "LikelihoodInfo", "Measurement", "MidpointCoefficients", "SampleInfo", "TunedGrid", "TwistedInfo", "adaptive_sde",
    "annealed_langevin", "annealed_langevin_interpolation", "c_pigdm", "cfg_score", "colorize", "conjugate",
    "conjugate_coefficients", "ddim", "deis", "dpm_solver_pp", "edm", "em", "encode", "er_sde",
    "exponential_coefficients", "exponential_midpoint", "gddim", "ggf", "guided_score", "inpaint", "interpolate",
    "ipndm", "likelihood", "measurement", "midpoint_coefficients", "noised", "ode", "pc", "posterior_score",
    "restart", "reverse_drift", "sa_solver", "score_sde_times", "slerp", "splitting", "sscs", "start_at",
    "technique_4", "time_grid", "tune_grid", "twisted", "unipc", "variational_bound",
]  # fmt: skip
