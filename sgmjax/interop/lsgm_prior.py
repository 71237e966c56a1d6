"""The score-based prior of NVlabs/LSGM: its settings to our NCSN++, its state dict to our parameters.

It is NCSN++ on the latents of the VAE's top scale, of as many channels out as in, with a time embedding of a size and a
scale of its own, and beside the network one trained number for each channel, `mixing_logit`
(`sgmjax.score.learned_mixed_eps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sgmjax._inputs import InputError
from sgmjax.interop.configs import OfficialNetwork, _get, _number, _word
from sgmjax.interop.weights import arrays_of, convert_weights
from sgmjax.models import NCSNpp

# Width multipliers by data set and number of scales; CelebA-HQ, FFHQ and LSUN church share theirs.
_CH_MULT = {3: (1, 1, 1), 4: (1, 2, 2, 2), 5: (1, 1, 2, 2, 2)}


def sides_and_widths(dataset: str, scales: int) -> tuple[int, tuple[int, ...]]:
    """Side of the (padded) images and the width multipliers."""
    if dataset in ("cifar10", "omniglot", "mnist"):
        most = 2 if dataset == "mnist" else 3
        if not 1 <= scales <= most:
            raise InputError(f"num_scales_dae: {scales}; the official prior for {dataset} has at most {most}")
        return 32, (1,) * scales
    if dataset in ("celeba_256", "ffhq", "lsun_church_256"):
        if scales not in _CH_MULT:
            raise InputError(f"num_scales_dae: {scales}; the official prior for {dataset} has 3, 4 or 5")
        return 256, _CH_MULT[scales]
    raise InputError(f"dataset: the official prior knows no '{dataset}'")


def from_lsgm_prior_config(config: Mapping[str, Any], *, num_input_channels: int | None = None) -> OfficialNetwork:
    """The prior's network from the official settings (the checkpoint's `args` as a dict).

    Args:
      config: the official settings.
      num_input_channels: channels of the latent; None: the config's, or those of the VAE's top scale.

    Raises:
      ValueError: for a missing key, another architecture, or a data set or number of scales it has no widths for.

    Examples:
      >>> args = dict(dataset="mnist", num_preprocess_blocks=2, num_latent_scales=1, num_latent_per_group=20)
      >>> args |= dict(num_groups_per_scale=2, num_scales_dae=2, num_channels_dae=64, num_cell_per_scale_dae=2)
      >>> args |= dict(embedding_type="positional", embedding_dim=128, embedding_scale=1000.0, dropout=0.2, fir=False)
      >>> args |= dict(progressive="none", progressive_input="none", progressive_combine="sum")
      >>> interop.from_lsgm_prior_config(args).event_shape  # of a latent of 2 x 20 channels
      (8, 8, 40)
    """
    architecture = config.get("dae_arch", "ncsnpp")
    if architecture != "ncsnpp":
        raise InputError(f"dae_arch: no conversion for LSGM's '{architecture}'; there is one for ncsnpp")
    scales = _number(config, "num_scales_dae", "", int)
    side, ch_mult = sides_and_widths(str(_get(config, "dataset", "")), scales)
    side //= 2 ** (
        _number(config, "num_preprocess_blocks", "", int) + _number(config, "num_latent_scales", "", int) - 1
    )
    channels = num_input_channels or config.get("num_input_channels")
    if channels is None:
        channels = _number(config, "num_latent_per_group", "", int) * _number(config, "num_groups_per_scale", "", int)
    embedding, scale = _word(config, "embedding_type", ""), _number(config, "embedding_scale", "", float)
    fourier = embedding == "fourier"
    module = NCSNpp(
        out_channels=int(channels),
        nf=_number(config, "num_channels_dae", "", int),
        ch_mult=ch_mult,
        num_res_blocks=_number(config, "num_cell_per_scale_dae", "", int),
        attn_resolutions=(16,),
        dropout=_number(config, "dropout", "", float),
        fir=bool(_get(config, "fir", "")),
        progressive=_word(config, "progressive", ""),
        progressive_input=_word(config, "progressive_input", ""),
        progressive_combine=_word(config, "progressive_combine", ""),
        embedding_type=embedding,
        embedding_dim=_number(config, "embedding_dim", "", int),
        embedding_scale=1.0 if fourier else scale,
        fourier_scale=scale if fourier else 16.0,
        fourier_log=False,
    )
    return OfficialNetwork(module, (side, side, int(channels)))


def convert_lsgm_prior(network: OfficialNetwork, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters of the prior, {"network": ..., "mixing_logit": (1, channels)}, from an official state dict.

    Args:
      network: from `from_lsgm_prior_config`.
      state_dict: official keys, with or without a `module.` prefix, to arrays (numpy, or tensors on the CPU).

    Returns:
      float32 numpy arrays; without "mixing_logit" where the network was trained without the normal part.

    Raises:
      ValueError: naming the key, for one that is not used, a parameter that is missing, or a shape that does not fit.

    Examples:
      >>> module = models.NCSNpp(out_channels=2, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), fir=False)
      >>> network = interop.OfficialNetwork(module, (4, 4, 2))
      >>> shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 2)), jnp.ones(1))["params"]
      >>> weights = interop.official_weights(network, jax.tree.map(lambda s: np.zeros(s.shape), shapes))
      >>> sorted(interop.convert_lsgm_prior(network, weights | {"mixing_logit": np.zeros((1, 2, 1, 1))}))
      ['mixing_logit', 'network']
    """
    arrays = arrays_of(state_dict)
    logit, frequencies = arrays.pop("mixing_logit", None), arrays.pop("temb_fun.w", None)
    if (frequencies is not None) != (network.module.embedding_type == "fourier"):  # type: ignore[attr-defined]
        has = "lacks" if frequencies is None else "has"
        raise InputError(f"the state dict {has} the Fourier frequencies 'temb_fun.w'; is it of this prior?")
    if frequencies is not None:  # here they are the first layer, there they stand outside of the list
        arrays = {_shifted(key): value for key, value in arrays.items()} | {"all_modules.0.W": frequencies.reshape(-1)}
    params: dict[str, Any] = {"network": convert_weights(network, arrays)}
    if logit is not None:
        channels = network.event_shape[-1]
        if logit.size != channels:
            raise InputError(
                f"state dict key 'mixing_logit' has {logit.size} entries and the latent {channels} channels"
            )
        params["mixing_logit"] = logit.reshape(1, channels).astype(np.float32)
    return params


def _shifted(key: str) -> str:
    """`all_modules.3.x` -> `all_modules.4.x`."""
    root, _, rest = key.partition(".")
    index, _, inner = rest.partition(".")
    if root != "all_modules" or not index.isdigit():
        raise InputError(f"state dict key '{key}' is not used by this network")
    return f"{root}.{int(index) + 1}.{inner}"
