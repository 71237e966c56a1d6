"""What training carries from step to step, and how one update changes it.

The arithmetic is that of the official codes: gradient clipping as `torch.nn.utils.clip_grad_norm_`, Adam with eps
outside the square root, a linear warmup whose first step has learning rate 0, then the moving average of the parameters
after the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from sgmjax.training.config import OptimizerConfig

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint must hold to go on bitwise.

    Attributes:
        step: () int32, steps taken, skipped ones included.
        params: float32 parameters; a tree, or packed by `sgmjax.training.packing`.
        ema_params: their exponential moving average, buffers of its own.
        opt_state: the optimiser's.
        bad_steps: () int32, steps skipped because the loss or a gradient was not finite.
        bad_streak: () int32, how many of them in a row, up to now.
    """

    step: Array
    params: PyTree
    ema_params: PyTree
    opt_state: optax.OptState
    bad_steps: Array
    bad_streak: Array


def make_optimizer(config: OptimizerConfig, decayed: PyTree = None) -> optax.GradientTransformation:
    """The optimiser of a run; updates are to be added to the parameters.

    `adam` with `weight_decay` adds the decay to the gradient (after the clipping), as PyTorch's Adam does; `adamw`
    decays the parameters themselves, by `learning_rate * weight_decay`.

    Args:
        config: the settings.
        decayed: like the parameters, 1 where weight decay acts and 0 where not (scalars or arrays that broadcast);
            None: everywhere. Fixed Fourier frequencies lie among the parameters and must not shrink.
    """
    parts = []
    if config.grad_clip is not None:
        parts.append(clip_by_global_norm(config.grad_clip))
    if config.name == "adam" and config.weight_decay:
        parts.append(add_decayed_weights(config.weight_decay, decayed))
    parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.eps))
    if config.name == "adamw":
        parts.append(add_decayed_weights(config.weight_decay, decayed))
    parts.append(optax.scale_by_learning_rate(warmup(config.learning_rate, config.warmup_steps)))
    return optax.chain(*parts)


def add_decayed_weights(weight_decay: float, decayed: PyTree = None) -> optax.GradientTransformation:
    """Adds `weight_decay * decayed * parameter` to the update."""

    def update(updates, state, params=None):
        weights = jax.tree.map(lambda p: 1.0, params) if decayed is None else decayed
        return jax.tree.map(lambda g, p, d: g + weight_decay * d * p, updates, params, weights), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


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


def create(key: Array, init: Callable[[Array], PyTree], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; pure, so it can be compiled with output shardings.

    Args:
        key: for the initial parameters.
        init: makes parameters, like `Problem.init`.
        optimizer: from `make_optimizer`.
    """
    params = init(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        bad_steps=jnp.copy(zero),
        bad_streak=jnp.copy(zero),
    )


def apply_gradients(
    state: TrainState,
    grads: PyTree,
    healthy: Array | bool,
    config: OptimizerConfig,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """One update; where `healthy` is False the step is only counted, and nothing else changes.

    Args:
        state: before the update.
        grads: like `state.params`.
        healthy: () bool, whether the loss and all gradients are finite.
        config: the settings that `optimizer` was made from.
        optimizer: from `make_optimizer`.
    """
    healthy = jnp.asarray(healthy)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(config, state.step - state.bad_steps + 1)
    ema_params = jax.tree.map(lambda e, p: e - (1 - decay).astype(e.dtype) * (e - p), state.ema_params, params)
    new, old = (params, ema_params, opt_state), (state.params, state.ema_params, state.opt_state)
    params, ema_params, opt_state = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, old)
    bad = 1 - healthy.astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        params=params,
        ema_params=ema_params,
        opt_state=opt_state,
        bad_steps=state.bad_steps + bad,
        bad_streak=(state.bad_streak + bad) * bad,
    )
