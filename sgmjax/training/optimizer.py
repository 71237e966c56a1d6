"""Optimisers: clipping, Adam and its kin, the learning rate, and the decay of the parameters' average.

The arithmetic is that of the official codes: gradient clipping as `torch.nn.utils.clip_grad_norm_`, Adam with eps
outside the square root, a linear warmup whose first step has learning rate 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sgmjax.config import OptimizerConfig

PyTree = Any


def make_optimizer(
    config: OptimizerConfig, decayed: PyTree = None, *, steps: int | None = None
) -> optax.GradientTransformation:
    """The optimiser of a run; updates are to be added to the parameters.

    `adam` and `adamax` with `weight_decay` add the decay to the gradient (after the clipping), as PyTorch's do; `adamw`
    decays the parameters themselves, by `learning_rate * weight_decay`.

    Args:
        config: the settings.
        decayed: like the parameters, 1 where weight decay acts and 0 where not (scalars or arrays that broadcast);
            None: everywhere. Fixed Fourier frequencies lie among the parameters and must not shrink.
        steps: updates until the learning rate has come down to `learning_rate_min`; needed where that is set.
    """
    return optax.chain(*(part for part in _parts(config, decayed, steps) if part is not None))


def _parts(config: OptimizerConfig, decayed: PyTree, steps: int | None) -> list[optax.GradientTransformation | None]:
    """Clipping, decay of the gradient, moments, decay of the parameters, learning rate; None for what is not done."""
    decay = add_decayed_weights(config.weight_decay, decayed) if config.weight_decay else None
    scale = {"adam": optax.scale_by_adam, "adamw": optax.scale_by_adam, "adamax": optax.scale_by_adamax}[config.name]
    return [
        None if config.grad_clip is None else clip_by_global_norm(config.grad_clip),
        None if config.name == "adamw" else decay,
        scale(config.beta1, config.beta2, config.eps),
        decay if config.name == "adamw" else None,
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    ]


def make_grouped_optimizer(
    configs: Mapping[str, OptimizerConfig], decayed: Mapping[str, PyTree], *, steps: int
) -> optax.GradientTransformation:
    """One optimiser for each group of parameters {name: parameters}, clipped and scaled by itself.

    Args:
        configs: settings by the name of the group. A group without settings is left as it is.
        decayed: of `make_optimizer`, for every group there is.
        steps: as `make_optimizer`.
    """
    others = {name: optax.MaskedNode() for name in decayed}
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        name: make_optimizer(configs[name], {**others, name: decayed[name]}, steps=steps)
        if name in configs
        else optax.set_to_zero()
        for name in decayed
    }
    return optax.partition(optimizers, {name: name for name in decayed})


def add_decayed_weights(weight_decay: float, decayed: PyTree = None) -> optax.GradientTransformation:
    """Adds `weight_decay * decayed * parameter` to the update."""

    def update(updates, state, params=None):
        weights = jax.tree.map(lambda p: 1.0, params) if decayed is None else decayed
        return jax.tree.map(lambda g, p, d: g + weight_decay * d * p, updates, params, weights), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def learning_rate(config: OptimizerConfig, steps: int | None = None) -> optax.ScalarOrSchedule:
    """The learning rate of update n = 0, 1, ...: `warmup`, then, with `learning_rate_min`, half a cosine down to that.

    Args:
        config: the settings.
        steps: updates until the end of the cosine.
    """
    rise = warmup(config.learning_rate, config.warmup_steps)
    if config.learning_rate_min is None:
        return rise
    if steps is None:
        raise ValueError("learning_rate_min: over how many steps? make_optimizer needs `steps`")
    length = max(steps - config.warmup_steps, 1)
    low, high = config.learning_rate_min, config.learning_rate

    def schedule(count):
        done = jnp.clip((count - config.warmup_steps) / length, 0.0, 1.0)
        falling = low + (high - low) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(count < config.warmup_steps, rise(count) if callable(rise) else rise, falling)

    return schedule


def warmup(learning_rate: float, steps: int) -> optax.ScalarOrSchedule:
    """`learning_rate * min(n / steps, 1)` for update n = 0, 1, ...: the first update does not move the parameters."""
    if steps == 0:
        return learning_rate
    return lambda count: learning_rate * jnp.minimum(count / steps, 1.0)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by `min(max_norm / (norm + 1e-6), 1)`, PyTorch's rule."""

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def ema_decay(config: OptimizerConfig, count: Array) -> Array:
    """The decay of update n = `count` = 1, 2, ...: constant, or `min(decay, (1 + n) / (10 + n))` with `ema_warmup`."""
    decay = jnp.asarray(config.ema_decay)
    return jnp.minimum(decay, (1 + count) / (10 + count)) if config.ema_warmup else decay


def grouped_ema_decay(configs: Mapping[str, OptimizerConfig], groups: Iterable[str], count: Array) -> dict[str, Any]:
    """The decay of each group of parameters; of one without settings 1: its average stays."""
    return {name: ema_decay(configs[name], count) if name in configs else jnp.ones(()) for name in groups}
