"""Groups of NVAE's encoder and decoder, of which a scale is a `scan`: cells, and a posterior with its latent variables.

Reference: Vahdat & Kautz 2020, sec. 3; Vahdat, Kreis & Kautz 2021, appendix.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sgmjax.models import distributions
from sgmjax.models.nvae.cells import Cell, Conv, wide
from sgmjax.models.nvae.flows import FlowPair


class EncoderGroup(nn.Module):
    """Cells of one group of the encoder. Returns the features twice: to go on with, and for the decoder."""

    features: int
    cells: int
    branch: str
    common: dict[str, Any]

    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        for i in range(self.cells):
            h = Cell(self.features, self.branch, name=f"cell_{i}", **self.common)(h)
        return h, h


class DecoderGroup(nn.Module):
    """Posterior of one group, its latent variables, and the cells that read them.

    Called with the state h and `(encoded, noise, eps)`: the encoder's features and noise to draw from the posterior,
    or, where these are None, the latent variables themselves. Returns h and (eps, log_q), or h and None.
    """

    features: int
    encoder_features: int
    cells: int
    branch: str
    latents: int
    num_flows: int
    log_sigma_bound: float
    first: bool  # nothing decoded so far that the posterior could see
    common: dict[str, Any]

    @nn.compact
    def __call__(self, h: jax.Array, inputs: tuple[Any, Any, Any]) -> tuple[jax.Array, Any]:
        encoded, noise, eps = inputs
        dtype = self.common["dtype"]
        drawn = None
        if eps is None:
            if not self.first:
                encoded = encoded + Conv(self.encoder_features, 1, dtype=dtype, name="combine_encoded")(h)
            eps, log_q = self._posterior(encoded, noise)
            drawn = (eps, log_q)
        z = Conv(self.latents, dtype=dtype, name="eps_conv")(eps)
        h = Conv(self.features, 1, dtype=dtype, name="combine_latent")(jnp.concatenate([h, z], axis=-1))
        for i in range(self.cells):
            h = Cell(self.features, self.branch, name=f"cell_{i}", **self.common)(h)
        return h, drawn

    def _posterior(self, encoded: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = wide(self.common["dtype"])
        parameters = Conv(2 * self.latents, dtype=dtype, name="posterior")(nn.elu(encoded))
        mean, log_sigma = jnp.split(parameters, 2, axis=-1)
        mean = distributions.soft_clamp(mean)
        log_sigma = distributions.soft_clamp(log_sigma, self.log_sigma_bound)
        noise = noise.astype(dtype)
        eps = mean + jnp.exp(log_sigma) * noise
        log_q = distributions.standard_normal_log_prob(noise) - log_sigma
        for i in range(self.num_flows):  # of determinant one
            eps = FlowPair(dtype=dtype, name=f"flow_{i}")(eps)
        return eps, log_q
