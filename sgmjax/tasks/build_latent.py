"""From a configuration with a section `vae` to the tasks of an LSGM."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sgmjax import models, sdes
from sgmjax._inputs import InputError
from sgmjax.config import Config, ConfigError
from sgmjax.models import distributions, nvae
from sgmjax.objectives._lsgm import cross_entropy_constant
from sgmjax.objectives.time_law import lsgm_mode
from sgmjax.tasks.latent import LatentTask
from sgmjax.tasks.vae import LatentModel, VAETask


def phases(
    config: Config, sde: sdes.SDE, data_shape: tuple[int, ...], resize: str = "set data.image_size"
) -> list[tuple[LatentModel, int]]:
    """The tasks of a run with a section `vae`, and over how many steps each.

    Args:
        config: the settings.
        sde: the process of the prior.
        data_shape: (H, W, C).
        resize: what can be done about a size that does not fit, for messages.

    Raises:
        ConfigError: settings that cannot work together; one line that names the key and the fix.
    """
    assert config.vae is not None
    if len(data_shape) != 3:
        raise ConfigError(f"vae: needs images, and examples have shape {tuple(data_shape)}; leave the section vae out")
    if data_shape[0] != data_shape[1]:
        raise ConfigError(f"vae: needs square images, and these are {data_shape[0]} x {data_shape[1]}; {resize}")
    if not config.data.centered:
        raise ConfigError("data.centered: a VAE sees images in [-1, 1]; set it to True")
    if config.vae.decoder == "bin" and config.data.binarize == "none" and config.data.name in ("digits", "mnist"):
        raise ConfigError(
            f"vae.decoder: 'bin' is for binary images and {config.data.name} has grey values; set "
            "data.binarize='static', or use vae.decoder='dl' or 'dml'"
        )
    if config.vae.decoder != "bin" and config.data.binarize != "none":
        raise ConfigError(f"data.binarize: binary images need vae.decoder='bin', not '{config.vae.decoder}'")
    if config.objective.t_min == 0 and not (sde.k == 1 and float(sde.initial_variance()) > 0):
        raise ConfigError("objective.t_min: 0 needs a process with sigma2_0 > 0; use 0.01, LSGM's for VP")
    if config.objective.parameterization != "eps" or config.objective.matching != "hsm":
        raise ConfigError("objective: a latent prior predicts eps (its normal part is mixed in) of the hsm kernel")
    if getattr(config.model, "num_classes", None) is not None:
        raise ConfigError("model.num_classes: a latent prior knows no classes; leave it None")
    dtype = jnp.dtype(config.train.compute_dtype)
    try:
        vae = nvae.build_nvae(config.vae, image_size=data_shape[0], channels=data_shape[-1], dtype=dtype)
        side, _, channels = vae.latent_shape
        prior = models.build(
            config.model,
            in_channels=sde.k * channels,
            out_channels=sde.num_noised * channels,
            image_size=side,
            centered=True,
            dtype=dtype,
        )
        if config.objective.t_min == 0 and models.takes_log(prior):
            raise ConfigError(
                "objective.t_min: 0, of which the network takes the logarithm; set a t_min above 0, or "
                "model.fourier_log=False where it has Fourier features"
            )
        for mode in (config.latent.p_weighting, "ll_iw"):
            lsgm_mode(sde, mode, t_min=config.objective.t_min)
        cross_entropy_constant(sde, max(config.objective.t_min, 1e-3))
    except InputError as error:
        text = str(error)
        if text.startswith("model."):
            text += f" (the prior is for latent variables of {vae.latent_shape})" if "vae" in locals() else ""
        raise ConfigError(text) from None
    common: dict[str, Any] = {
        "sde": sde,
        "vae": vae,
        "prior": prior,
        "event_shape": tuple(data_shape),
        "annealing": config.vae,
        "latent": config.latent,
        "time_conditioning": config.objective.time_conditioning,
        "t_min": config.objective.t_min,
        "binarize": config.data.binarize == "dynamic",
    }
    first, last = config.latent.vae_steps, config.train.steps - config.latent.vae_steps
    parts = [(VAETask, first), (LatentTask, last)]
    return [(kind(steps=steps, **common), steps) for kind, steps in parts if steps]


def check_images(config: Config, dataset: Any) -> None:
    """That the data suit the decoder: looks at some of them.

    Raises:
        ConfigError: floats; grey images for a binary decoder.
    """
    if config.vae is None:
        return
    if not dataset.discrete:
        raise ConfigError(f"vae: its decoders are for 8-bit images, and {dataset.name} has floats; give uint8")
    if config.data.binarize == "dynamic":
        return
    some = dataset.read(np.unique(np.linspace(0, dataset.num_examples - 1, 64).astype(int)))["x"]
    try:
        distributions.check_binary(some, config.vae.decoder)
    except InputError as error:
        raise ConfigError(f"{error} (data.binarize='static')") from None
