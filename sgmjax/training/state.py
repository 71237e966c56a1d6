"""What training carries from step to step, and how one update changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from sgmjax.tasks.base import Variables

PyTree = Any
Ema = Callable[[Array], PyTree]  # count of updates 1, 2, ... -> decay, or a tree of them that begins the parameters'


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint must hold to go on bitwise.

    Attributes:
        step: () int32, steps taken, skipped ones included.
        params: float32 parameters.
        ema_params: their exponential moving average, buffers of its own.
        opt_state: the optimiser's.
        bad_steps: () int32, steps skipped because the loss or a gradient was not finite.
        bad_streak: () int32, how many of them in a row, up to now.
        model_state: what the networks carry from step to step besides parameters; {} for most.
    """

    step: Array
    params: PyTree
    ema_params: PyTree
    opt_state: optax.OptState
    bad_steps: Array
    bad_streak: Array
    model_state: PyTree = flax.struct.field(default_factory=dict)

    @property
    def averaged(self) -> Variables:
        """What is sampled from and evaluated: the averaged parameters, and the networks' state."""
        return Variables(self.ema_params, self.model_state)


def create(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; pure, so it can be compiled with output shardings.

    Args:
        variables: fresh ones, of `Task.init`.
        optimizer: of the first phase.
    """
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=variables.params,
        ema_params=jax.tree.map(jnp.copy, variables.params),
        opt_state=optimizer.init(variables.params),
        bad_steps=jnp.copy(zero),
        bad_streak=jnp.copy(zero),
        model_state=variables.state,
    )


def apply_gradients(
    state: TrainState,
    grads: PyTree,
    healthy: Array | bool,
    optimizer: optax.GradientTransformation,
    ema: Ema,
    model_state: PyTree = None,
) -> TrainState:
    """One update, then the average; where `healthy` is False the step is only counted, and nothing else changes.

    Args:
        state: before the update.
        grads: like `state.params`.
        healthy: () bool, whether the loss and all gradients are finite.
        optimizer: gives updates that are added to the parameters.
        ema: the decay of the average in update n = 1, 2, ... of the run, skipped ones not counted.
        model_state: after the step; None: as before it.
    """
    healthy = jnp.asarray(healthy)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = moving_average(state.ema_params, params, ema(state.step - state.bad_steps + 1))
    model_state = state.model_state if model_state is None else model_state
    new = (params, ema_params, opt_state, model_state)
    old = (state.params, state.ema_params, state.opt_state, state.model_state)
    # the primitive: there are thousands of arrays, and `jnp.where` takes three times as long to trace
    params, ema_params, opt_state, model_state = jax.tree.map(lambda a, b: jax.lax.select(healthy, a, b), new, old)
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


@jax.jit  # traced once for each shape
def _blend(average: Array, value: Array, decay: Array) -> Array:
    return average - (1 - decay).astype(average.dtype) * (average - value)


def moving_average(average: PyTree, params: PyTree, decay: PyTree) -> PyTree:
    """The average after one more value of the parameters: average - (1 - decay) (average - params).

    Args:
        average, params: trees of one form.
        decay: a number, or a tree of numbers that is the beginning of theirs: one for each group of parameters.

    Examples:
        >>> average, params = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
        >>> sgmjax.moving_average(average, params, 0.75)["w"].tolist()
        [0.25, 0.25]
    """

    def group(decay, average, params):
        return jax.tree.map(lambda e, p: _blend(e, p, decay), average, params)

    return jax.tree.map(group, jax.tree.map(jnp.asarray, decay), average, params)
