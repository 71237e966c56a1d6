"""Score-based generative models in JAX.

The rooms: `sdes` (forward processes), `models` (networks), `objectives` (losses), `samplers`, `data`, `metrics`,
`training`, `interop` (official checkpoints). They are imported when first used: `import sgmjax` itself is quick.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgmjax import data, exact, interop, metrics, models, objectives, samplers, score, sdes, training

try:
    __version__ = importlib.metadata.version("sgmjax")
except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "__version__", "data", "exact", "interop", "metrics", "models", "objectives", "samplers", "score", "sdes",
    "training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"sgmjax.{name}")
    raise AttributeError(f"module 'sgmjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
