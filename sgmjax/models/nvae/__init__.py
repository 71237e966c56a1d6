"""NVAE, the hierarchical variational autoencoder whose latent space LSGM models: network, KL terms, regularisation."""

from sgmjax.models.nvae.build import build_nvae
from sgmjax.models.nvae.network import NVAE, NVAEOutput

__all__ = ["NVAE", "NVAEOutput", "build_nvae"]
