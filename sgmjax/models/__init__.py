"""Networks (Flax Linen) and `build`, which makes one from the model section of a configuration."""

from sgmjax.models.build import build, count_parameters, trainable_mask
from sgmjax.models.ddpm import DDPM
from sgmjax.models.mlp import MLP, CLDToyMLP, CLDToyResNet
from sgmjax.models.ncsnpp import NCSNpp, NCSNppClassifier

__all__ = [
    "DDPM",
    "MLP",
    "CLDToyMLP",
    "CLDToyResNet",
    "NCSNpp",
    "NCSNppClassifier",
    "build",
    "count_parameters",
    "trainable_mask",
]
