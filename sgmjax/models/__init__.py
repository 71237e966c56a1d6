"""Networks (Flax Linen) and `build`, which makes one from the model section of a configuration."""

from sgmjax.models._build import (
    GIVEN,
    NETWORKS,
    build,
    classifies,
    count_parameters,
    sees_noise,
    takes_log,
    trainable_mask,
)
from sgmjax.models.adm import ADM
from sgmjax.models.ddpm import DDPM
from sgmjax.models.feature_net import FeatureNet
from sgmjax.models.mlp import MLP, CLDToyMLP, CLDToyResNet, MLPClassifier
from sgmjax.models.ncsnpp import NCSNpp, NCSNppClassifier
from sgmjax.models.ncsnv2 import NCSN, NCSNv2
from sgmjax.models.nvae import NVAE, NVAEOutput, build_nvae
from sgmjax.models.unet1d import UNet1d

__all__ = [
    "ADM",
    "DDPM",
    "GIVEN",
    "MLP",
    "NCSN",
    "NETWORKS",
    "NVAE",
    "CLDToyMLP",
    "CLDToyResNet",
    "FeatureNet",
    "MLPClassifier",
    "NCSNpp",
    "NCSNppClassifier",
    "NCSNv2",
    "NVAEOutput",
    "UNet1d",
    "build",
    "build_nvae",
    "classifies",
    "count_parameters",
    "sees_noise",
    "takes_log",
    "trainable_mask",
]
