"""Score-based generative models in JAX.

The rooms: `sdes` (forward processes), `models` (networks), `objectives` (losses), `samplers`, `data`, `metrics`,
`tasks` (what is learnt), `training`, `evaluation`, `interop` (official checkpoints). At hand without them:
`ScoreModel`, `DenoiserModel`, `fit` with `Phase`, `train`, `load_run`, `moving_average` (EMA), `timestep_embedding`,
`FourierEmbedding`.
All are imported when first used: `import sgmjax` itself is quick.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgmjax import (
        data,
        evaluation,
        exact,
        interop,
        metrics,
        models,
        objectives,
        samplers,
        score,
        sdes,
        tasks,
        training,
    )
    from sgmjax.model import DenoiserModel, ScoreModel
    from sgmjax.models.layers import FourierEmbedding, timestep_embedding
    from sgmjax.training.fit import fit
    from sgmjax.training.load import load_run
    from sgmjax.training.phase import Phase
    from sgmjax.training.state import moving_average
    from sgmjax.training.train import train

try:
    __version__ = importlib.metadata.version("sgmjax")
except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_FROM = {
    "DenoiserModel": "sgmjax.model",
    "FourierEmbedding": "sgmjax.models.layers",
    "Phase": "sgmjax.training.phase",
    "ScoreModel": "sgmjax.model",
    "fit": "sgmjax.training.fit",
    "load_run": "sgmjax.training.load",
    "moving_average": "sgmjax.training.state",
    "timestep_embedding": "sgmjax.models.layers",
    "train": "sgmjax.training.train",
}

__all__ = [
    "DenoiserModel", "FourierEmbedding", "Phase", "ScoreModel", "__version__", "data", "evaluation", "exact", "fit",
    "interop", "load_run", "metrics", "models", "moving_average", "objectives", "samplers", "score", "sdes", "tasks",
    "timestep_embedding", "train", "training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    if name in __all__:
        return importlib.import_module(f"sgmjax.{name}")
    raise AttributeError(f"module 'sgmjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
