"""NVAE, the hierarchical variational autoencoder whose latent space LSGM models: network, KL terms, regularisation."""

from sgmjax.models.nvae.network import NVAE, NVAEOutput, build_nvae

__all__ = ["NVAE", "NVAEOutput", "build_nvae"]
