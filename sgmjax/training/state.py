"""What training carries from step to step, and how one update changes it.

The arithmetic is that of the official codes: gradient clipping as `torch.nn.utils.clip_grad_norm_`, Adam with eps
outside the square root, a linear warmup whose first step has learning rate 0, then the moving average of the parameters
after the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        model_state: what the networks carry from step to step besides parameters (the averages of batch norm, the
            vectors of power iterations); {} for most.
    """

    step: Array
    params: PyTree
    ema_params: PyTree
    opt_state: optax.OptState
    bad_steps: Array
    bad_streak: Array
    model_state: PyTree = flax.struct.field(default_factory=dict)


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
    configs: Mapping[str, OptimizerConfig], groups: Mapping[str, PyTree], *, steps: int
) -> optax.GradientTransformation:
    """One optimiser for each group of parameters {name: parameters}, clipped and scaled by itself.

    The state has the same form whatever the settings, so that those of two stages of a training fit one checkpoint.

    Args:
        configs: settings by the name of the group. A group without settings is left as it is.
        groups: `decayed` of `make_optimizer` for every group there is.
        steps: as `make_optimizer`.
    """

    def optimizer(name: str) -> optax.GradientTransformation:
        config = configs.get(name, OptimizerConfig())
        *parts, _ = _parts(config, groups[name], steps)
        rate = learning_rate(config, steps)
        schedule = rate if callable(rate) else optax.constant_schedule(rate)
        return optax.chain(*(part or optax.identity() for part in parts), optax.scale_by_learning_rate(schedule))

    optimizers = {name: optimizer(name) for name in groups}

    def init(params):
        return {name: optimizers[name].init(params[name]) for name in optimizers}

    def update(updates, state, params=None):
        assert params is not None
        new, new_state = {}, {}
        for name, one in optimizers.items():
            if name in configs:
                new[name], new_state[name] = one.update(updates[name], state[name], params[name])
            else:
                new[name], new_state[name] = jax.tree.map(jnp.zeros_like, params[name]), state[name]
        return new, new_state

    return optax.GradientTransformation(init, update)


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


def create(
    key: Array, init: Callable[[Array], PyTree], optimizer: optax.GradientTransformation, model_state: PyTree = None
) -> TrainState:
    """The state before the first step; pure, so it can be compiled with output shardings.

    Args:
        key: for the initial parameters.
        init: makes parameters, like `Problem.init`.
        optimizer: from `make_optimizer`.
        model_state: of the networks.
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
        model_state={} if model_state is None else model_state,
    )


def apply_gradients(
    state: TrainState,
    grads: PyTree,
    healthy: Array | bool,
    config: OptimizerConfig | Mapping[str, OptimizerConfig],
    optimizer: optax.GradientTransformation,
    model_state: PyTree = None,
) -> TrainState:
    """One update; where `healthy` is False the step is only counted, and nothing else changes.

    Args:
        state: before the update.
        grads: like `state.params`.
        healthy: () bool, whether the loss and all gradients are finite.
        config: the settings that `optimizer` was made from; by group for `make_grouped_optimizer`.
        optimizer: from `make_optimizer`.
        model_state: after the step; None: as before it.
    """
    healthy = jnp.asarray(healthy)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count = state.step - state.bad_steps + 1
    ema_params = _moving_average(state.ema_params, params, config, count)
    model_state = state.model_state if model_state is None else model_state
    new = (params, ema_params, opt_state, model_state)
    old = (state.params, state.ema_params, state.opt_state, state.model_state)
    params, ema_params, opt_state, model_state = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, old)
    bad = 1 - healthy.astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        params=params,
        ema_params=ema_params,
        opt_state=opt_state,
        bad_steps=state.bad_steps + bad,
        bad_streak=(state.bad_streak + bad) * bad,
        model_state=model_state,
    )


def _moving_average(ema: PyTree, params: PyTree, config: Any, count: Array) -> PyTree:
    if isinstance(config, Mapping):
        averaged = {name: _moving_average(ema[name], params[name], one, count) for name, one in config.items()}
        return {**ema, **averaged}
    decay = ema_decay(config, count)
    return jax.tree.map(lambda e, p: e - (1 - decay).astype(e.dtype) * (e - p), ema, params)
