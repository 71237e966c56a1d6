"""Official networks in and out: their configs to our modules, their checkpoints to our parameters, and back."""

from sgmjax.interop._recognise import Recognised, recognise
from sgmjax.interop.checkpoints import OfficialCheckpoint, read_cld, read_psld, read_scoresde
from sgmjax.interop.configs import OfficialNetwork, from_cld_config, from_psld_config, from_scoresde_config
from sgmjax.interop.edm import OfficialEDM, read_edm
from sgmjax.interop.edm_network import edm_denoiser, edm_params, edm_settings
from sgmjax.interop.export import check_exportable, official_weights
from sgmjax.interop.lsgm import OfficialLSGM, convert_lsgm_vae, from_lsgm_vae_config, read_lsgm
from sgmjax.interop.lsgm_prior import convert_lsgm_prior, from_lsgm_prior_config
from sgmjax.interop.ncsnv2 import from_ncsnv2_config, read_ncsnv2
from sgmjax.interop.scoresde_jax import read_scoresde_jax
from sgmjax.interop.weights import convert_weights

__all__ = [
    "OfficialCheckpoint",
    "OfficialEDM",
    "OfficialLSGM",
    "OfficialNetwork",
    "Recognised",
    "check_exportable",
    "convert_lsgm_prior",
    "convert_lsgm_vae",
    "convert_weights",
    "edm_denoiser",
    "edm_params",
    "edm_settings",
    "from_cld_config",
    "from_lsgm_prior_config",
    "from_lsgm_vae_config",
    "from_ncsnv2_config",
    "from_psld_config",
    "from_scoresde_config",
    "official_weights",
    "read_cld",
    "read_edm",
    "read_lsgm",
    "read_ncsnv2",
    "read_psld",
    "read_scoresde",
    "read_scoresde_jax",
    "recognise",
]
