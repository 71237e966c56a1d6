"""Official PyTorch networks in: their configs to our modules, their weights and checkpoints to our parameters."""

from sgmjax.interop.checkpoints import OfficialCheckpoint, read_cld, read_psld, read_scoresde
from sgmjax.interop.configs import OfficialNetwork, from_cld_config, from_psld_config, from_scoresde_config
from sgmjax.interop.ncsnv2 import from_ncsnv2_config, read_ncsnv2
from sgmjax.interop.weights import convert_weights

__all__ = [
    "OfficialCheckpoint",
    "OfficialNetwork",
    "convert_weights",
    "from_cld_config",
    "from_ncsnv2_config",
    "from_psld_config",
    "from_scoresde_config",
    "read_cld",
    "read_ncsnv2",
    "read_psld",
    "read_scoresde",
]
