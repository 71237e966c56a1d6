"""Which settings a run may be continued with another value of, and the record of those that were.

Some change only what is shown or kept. Others change what is learnt from there on, but neither the network nor the
form of the optimiser's state: those are allowed one by one, by `--allow_changes`, and recorded in `config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sgmjax.config import Config, ConfigError, differences, to_dict
from sgmjax.training.optimizer import make_optimizer

# They change what is shown or kept, not what is learnt; a name with a dot at its end is a whole section.
FREE = (
    "train.steps",
    "train.fsdp",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.sample_every",
    "train.metrics",
    "train.metrics_every",
    "train.metrics_features",
    "train.keep_best",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_bad_steps",
    "data.data_dir",
    "data.path",
    "data.in_memory",
    "data.memory_limit_gb",
    "sampling.",
)
_RATES = ("learning_rate", "learning_rate_min", "beta1", "beta2", "eps", "weight_decay", "warmup_steps", "grad_clip",
          "ema_decay", "ema_warmup")  # fmt: skip
# With --allow_changes. The moments of the optimiser, the averages and the place in the data go on as they are.
ALLOWABLE = (
    "train.batch_size",
    "train.grad_accumulation",
    "train.compute_dtype",
    *(f"optimizer.{name}" for name in _RATES),
    *(f"latent.{group}.{name}" for group in ("vae_optimizer", "vae_finetune") for name in _RATES),
    "objective.weighting",
    "objective.anneal_power",
    "objective.time_sampling",
    "objective.t_min",
    "objective.reduce",
    "objective.label_dropout",
    "data.flip",
    "data.eval_split",
)


def check_allowed(names: Sequence[str]) -> None:
    """Checks the names that `--allow_changes` gives.

    Raises:
        ConfigError: one that is no setting that can change.
    """
    for name in names:
        if name not in ALLOWABLE:
            kind = "it may change anyway" if _is_free(name) else f"those which can change are {', '.join(_short())}"
            raise ConfigError(f"--allow_changes: {name!r}: {kind}")


def _short() -> list[str]:
    return [name for name in ALLOWABLE if not name.startswith("latent.")] + ["latent.vae_optimizer.learning_rate, ..."]


def _is_free(name: str) -> bool:
    return any(name == free or (free.endswith(".") and name.startswith(free)) for free in FREE)


def changed(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """The settings in which two configs differ, those that may change freely left out, as (name, old, new)."""
    return [item for item in differences(to_dict(old), to_dict(new)) if not _is_free(item[0])]


def depends_on_steps(config: Config) -> bool:
    """Whether what is learnt depends on `train.steps`: by the cosine of a learning rate or the rise of the KL."""
    optimizers = [config.optimizer]
    portions: list[float] = []
    if config.vae is not None:
        optimizers += [config.latent.vae_optimizer, config.latent.vae_finetune]
        portions += [config.vae.kl_anneal_portion, config.latent.kl_anneal_portion]
    return any(portions) or any(optimizer.learning_rate_min is not None for optimizer in optimizers)


def check_optimizer(old: Config, new: Config) -> None:
    """Checks that the state of the old optimiser is one of the new.

    Raises:
        ConfigError: the moments cannot go on.
    """
    if old.vae is not None:  # the optimisers of groups have one form, whatever their settings
        return
    params = {"w": jnp.zeros(())}
    forms = [
        jax.tree.structure(jax.eval_shape(make_optimizer(config.optimizer, steps=1).init, params))
        for config in (old, new)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(
            "--allow_changes: optimizer.grad_clip, optimizer.warmup_steps and optimizer.weight_decay cannot be turned "
            "on or off, only changed: they belong to the form of the optimiser's state; a very large grad_clip, a "
            "warmup of 1 step or a tiny weight_decay does as good as nothing"
        )
