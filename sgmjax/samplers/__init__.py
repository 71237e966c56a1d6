"""How samples are drawn. One contract:

    samples, info = samplers.sscs(key, score_fn, sde, shape, *, times, denoise=True)

`shape` is that of the data, (batch, *event); `times` decreases from 1; `info.nfe` counts score evaluations.
"""

from sgmjax.samplers.common import SampleInfo, reverse_drift
from sgmjax.samplers.edm import edm
from sgmjax.samplers.euler_maruyama import em
from sgmjax.samplers.grids import time_grid
from sgmjax.samplers.probability_flow import ode
from sgmjax.samplers.sscs import sscs

SAMPLERS = {"edm": edm, "em": em, "sscs": sscs, "ode": ode}

__all__ = ["SAMPLERS", "SampleInfo", "edm", "em", "ode", "reverse_drift", "sscs", "time_grid"]
