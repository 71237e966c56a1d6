"""What the settings in a checkpoint of LSGM say of ours: of the process, the networks and how they were trained.

LSGM saves the argparse namespace of its program, `args`, with the weights. Here its attributes are taken as they are,
and each that has a counterpart becomes one of our settings, by its path in a config, beside its official name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sgmjax._inputs import InputError, shown
from sgmjax.interop.configs import _get
from sgmjax.interop.lsgm import CELLS, SETTINGS, image_of
from sgmjax.interop.lsgm_prior import sides_and_widths

# Official argument -> our setting; both stages, then the second stage alone, then the first stage alone.
_VAE = {theirs: f"vae.{ours}" for ours, theirs in SETTINGS.items()} | {
    "channel_mult": "vae.ch_mult",
    "use_se": "vae.squeeze_excite",
    "progressive_input_vae": "vae.progressive_input",
    "log_sig_q_scale": "vae.log_sigma_bound",
    "decoder_dist": "vae.decoder",
}
_JOINT = {
    "num_channels_dae": "model.nf",
    "num_cell_per_scale_dae": "model.num_res_blocks",
    "dropout": "model.dropout",
    "fir": "model.fir",
    "progressive": "model.progressive",
    "progressive_input": "model.progressive_input",
    "progressive_combine": "model.progressive_combine",
    "embedding_type": "model.embedding_type",
    "embedding_dim": "model.embedding_dim",
    "time_eps": "objective.t_min",
    "iw_sample_p": "latent.p_weighting",
    "iw_sample_q": "latent.q_weighting",
    "train_vae": "latent.train_vae",
    "update_q_ema": "latent.q_ema",
    "mixing_logit_init": "latent.mixing_logit_init",
    "drop_inactive_var": "latent.drop_inactive",
    "weight_decay_norm_vae": "latent.vae_spectral_weight",
    "weight_decay_norm_dae": "latent.prior_spectral_weight",
    "learning_rate_dae": "optimizer.learning_rate",
    "ema_decay": "optimizer.ema_decay",
    "weight_decay": "optimizer.weight_decay",
    "learning_rate_vae": "latent.vae_finetune.learning_rate",
    "learning_rate_min_vae": "latent.vae_finetune.learning_rate_min",
}
_ANNEALED = {
    "kl_const_coeff_vada": "latent.kl_min",
    "kl_max_coeff_vada": "latent.kl_max",
    "kl_anneal_portion_vada": "latent.kl_anneal_portion",
    "kl_const_portion_vada": "latent.kl_const_portion",
}
_FIRST_STAGE = {
    "kl_anneal_portion": "vae.kl_anneal_portion",
    "kl_const_portion": "vae.kl_const_portion",
    "kl_const_coeff": "vae.kl_min",
    "kl_max_coeff": "vae.kl_max",
    "weight_decay_norm": "vae.spectral_weight",
    "learning_rate_vae": "latent.vae_optimizer.learning_rate",
    "learning_rate_min_vae": "latent.vae_optimizer.learning_rate_min",
    "weight_decay": "latent.vae_optimizer.weight_decay",
}
# Official process -> ours, with its arguments.
_PROCESSES = {
    "vpsde": ("vp", {"beta_start": "beta_min", "beta_end": "beta_max", "sigma2_0": "sigma2_0"}),
    "sub_vpsde": ("subvp", {"beta_start": "beta_min", "beta_end": "beta_max", "sigma2_0": "sigma2_0"}),
    "geometric_sde": ("geometric_vp", {name: name for name in ("sigma2_min", "sigma2_max", "sigma2_0")}),
    "vesde": ("ve", {"sigma2_min": "sigma_min", "sigma2_max": "sigma_max", "sigma2_0": "sigma2_0"}),
}
_DATA: dict[str, dict[str, Any]] = {
    "cifar10": {"name": "cifar10", "flip": True},
    "mnist": {"name": "mnist", "binarize": "dynamic"},
    "celeba_64": {"name": "celeb_a", "image_size": 64, "flip": True},
}


class Said(NamedTuple):
    """A setting that a file says.

    Attributes:
      official: its name in the file, for messages.
      value: ours.
    """

    official: str
    value: Any


def said(args: Mapping[str, Any], *, joint: bool) -> dict[str, Said]:
    """Our settings by their paths, `vae.decoder`, for those of the official ones that are there.

    Args:
      args: the namespace of a checkpoint, as a mapping.
      joint: whether the checkpoint is of the second stage; else of the VAE alone.

    Raises:
      InputError: an architecture, process or data set that there is no counterpart for.
    """
    names = _VAE | (_JOINT if joint else _FIRST_STAGE)
    found = {path: Said(name, args[name]) for name, path in names.items() if name in args}
    if "arch_instance" in args:
        arch = str(args["arch_instance"])
        if arch not in CELLS:
            raise InputError(
                f"arch_instance: no conversion for '{shown(arch, 60)}'; there is one for {', '.join(CELLS)}"
            )
        found["vae.cells"] = Said("arch_instance", CELLS[arch])
    if "dataset" in args:
        found["vae.pad"] = Said("dataset", image_of(str(args["dataset"]))[2])
    if not joint:
        return found
    if "custom_conv_dae" in args:
        found["latent.prior_spectral_convolutions"] = Said("custom_conv_dae", not args["custom_conv_dae"])
    if args.get("cont_kl_anneal"):
        found |= {path: Said(name, args[name]) for name, path in _ANNEALED.items() if name in args}
    elif "cont_kl_anneal" in args:
        found |= {f"latent.kl_{end}": Said("cont_kl_anneal", 1.0) for end in ("min", "max")}
    return _read(found | _prior(args)) | _process(args)


def _read(found: dict[str, Said]) -> dict[str, Said]:
    """Without those that nothing reads: official settings say all, and a config no more than is read."""
    idle: tuple[str, ...] = ()
    if "model.progressive_input" in found and found["model.progressive_input"].value != "input_skip":
        idle += ("model.progressive_combine",)
    if "latent.train_vae" in found and not found["latent.train_vae"].value:
        idle += ("latent.vae_finetune.", "latent.q_", "latent.kl_", "latent.vae_spectral_weight")
    return {path: one for path, one in found.items() if not path.startswith(idle)}


def _prior(args: Mapping[str, Any]) -> dict[str, Said]:
    """What follows from several official settings of the prior's network."""
    found: dict[str, Said] = {}
    if args.get("dae_arch", "ncsnpp") != "ncsnpp":
        raise InputError(f"dae_arch: no conversion for LSGM's '{shown(args['dae_arch'], 60)}'; there is one for ncsnpp")
    if "num_scales_dae" in args and "dataset" in args:
        scales = args["num_scales_dae"]
        if not isinstance(scales, int):
            raise InputError(f"num_scales_dae: {shown(scales, 60)}, expected a whole number")
        side, widths = sides_and_widths(str(args["dataset"]), scales)
        found["model.ch_mult"] = Said("num_scales_dae", widths)
        try:
            side //= 2 ** (args["num_preprocess_blocks"] + args["num_latent_scales"] - 1)
            here = 16 in [side // 2**level for level in range(len(widths))]
            found["model.attn_resolutions"] = Said("dataset", (16,) if here else ())
        except (KeyError, TypeError):
            pass
    if "embedding_scale" in args and "embedding_type" in args:
        fourier = args["embedding_type"] == "fourier"
        name = "fourier_scale" if fourier else "embedding_scale"
        found[f"model.{name}"] = Said("embedding_scale", args["embedding_scale"])
        if fourier:
            found["model.fourier_log"] = Said("embedding_type", False)
    return found


def _process(args: Mapping[str, Any]) -> dict[str, Said]:
    if "sde_type" not in args:
        return {}
    kind = args["sde_type"]
    if kind not in _PROCESSES:
        raise InputError(f"sde_type: no process for LSGM's '{shown(kind, 60)}'; there are {', '.join(_PROCESSES)}")
    name, names = _PROCESSES[kind]
    found = {"sde.name": Said("sde_type", name)}
    for theirs, ours in names.items():
        if theirs in args:
            root = ours.startswith("sigma_")  # a standard deviation here, a variance there
            found[f"sde.{ours}"] = Said(theirs, math.sqrt(args[theirs]) if root else args[theirs])
    return found


def contradictions(settings: Mapping[str, Any], wanted: Mapping[str, Said]) -> list[tuple[str, Said, Any]]:
    """The settings of a config, nested, that are others than the file says: (path, what it says, the config's)."""
    found = []
    for path, one in wanted.items():
        value: Any = settings
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not _same(one.value, value):
            found.append((path, one, value))
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool) | isinstance(b, bool):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def make_settings(args: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A config's settings, nested, from those of a joint checkpoint alone.

    What it does not say is ours: the optimisers' other settings, and a sampler by its tolerance.

    Args:
      args: the namespace of a checkpoint, as a mapping.
      step: of the checkpoint, in the second stage.

    Raises:
      InputError: a setting without which there is no network, or as `said`.
    """
    dataset = str(_get(args, "dataset", ""))
    for name in (*_VAE, "arch_instance", "num_scales_dae", "num_channels_dae", "sde_type"):
        _get(args, name, "")
    settings: dict[str, Any] = {"vae": {}}
    for path, one in said(args, joint=True).items():
        *sections, name = path.split(".")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = list(one.value) if isinstance(one.value, tuple) else one.value
    settings["model"] = {"name": "ncsnpp"} | settings.get("model", {})
    side = image_of(dataset)[0]
    settings["data"] = _DATA.get(dataset, {"name": "folder", "image_size": side})
    total = args.get("num_total_iter")
    settings["train"] = {"steps": total if isinstance(total, int) and total >= step else max(step, 1)}
    settings["optimizer"] = {"name": "adamw", "eps": 1e-4, "grad_clip": None, "ema_warmup": False} | settings.get(
        "optimizer", {}
    )
    solver = {"t_min": args.get("eval_ode_eps", 1e-5)} | {
        name: args.get("eval_ode_solver_tol", 1e-5) for name in ("rtol", "atol")
    }
    settings["sampling"] = {"sampler": "ode", "denoise": False} | solver
    return settings
