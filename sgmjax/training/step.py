"""The training step: one compiled call that is the same for one device and for a pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from sgmjax import sharding as sh
from sgmjax._schema import LoopSettings as Settings
from sgmjax.tasks.base import Task, Variables
from sgmjax.training.state import Ema, TrainState, apply_gradients

PyTree = Any

# (params, model_state, key, batch) -> (loss, (metrics, the new model_state)), gradient
Found = tuple[tuple[Array, tuple[dict[str, Array], PyTree]], PyTree]
Gradient = Callable[[PyTree, PyTree, Array, dict[str, Array]], Found]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    ema: Ema,
    settings: Settings,
    mesh: Mesh,
    shardings: PyTree,
    *,
    first: int = 0,
) -> Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, dict[str, Array]]]:
    """The jitted `step(state, batch, key) -> (state, metrics)`; it consumes (donates) the state it is given.

    Step n draws from `fold_in(key, n)` only, so that a resumed run continues the same stream. With
    `grad_accumulation` = a > 1 the batch is taken in a microbatches, whose mean gradient is used. A loss or gradient
    that is not finite leaves parameters, average and optimiser alone and is counted. After `max_bad_steps` in a row
    nothing is updated any more (`bad_streak` only grows), until the host notices.

    Where the mesh splits the state over `fsdp`, the parameters are gathered for the loss, and what is done with its
    gradient (clipping, the optimiser, the average) is done by each device for its part.

    Args:
        task: what is learnt.
        optimizer, ema: of the phase.
        settings: how steps are taken; the section `train` of a config is such.
        mesh: from `make_mesh`.
        shardings: of the state, from `state_shardings`.
        first: steps of the run before the phase; the task counts from there.

    Returns:
        The function. `batch` is (batch, ...), or (steps, batch, ...) when `steps_per_dispatch` > 1. `metrics` are ()
        float32, or (steps,): `loss`, `grad_norm` (before clipping) and those of the task.
    """
    microbatch_sharding = sh.batch_sharding(mesh, axis=1)

    def one_step(state: TrainState, batch, key):
        ema_params = sh.whole(state.ema_params, mesh)

        def loss(params, model_state, key, batch):
            variables, taken = Variables(params, model_state), state.step - first
            value, metrics, new = task.loss(variables, key, batch, step=taken, ema=ema_params, train=True)
            return value, (metrics, new)

        def gradient(params, model_state, key, batch):
            whole, model_state = sh.whole((params, model_state), mesh)
            found, grads = jax.value_and_grad(loss, has_aux=True)(whole, model_state, key, batch)
            split = mesh.shape["fsdp"] > 1
            return found, jax.lax.with_sharding_constraint(grads, shardings.params) if split else grads

        key = jax.random.fold_in(key, state.step)
        arguments = (state.params, state.model_state, key, batch)
        if settings.grad_accumulation == 1:
            (value, (metrics, model_state)), grads = gradient(*arguments)
        else:
            found = accumulate(gradient, *arguments, settings.grad_accumulation, microbatch_sharding)
            (value, (metrics, model_state)), grads = found
        norm = optax.tree.norm(grads)
        healthy = jnp.isfinite(value) & jnp.isfinite(norm) & (state.bad_streak < settings.max_bad_steps)
        state = apply_gradients(state, grads, healthy, optimizer, ema, model_state)
        metrics = {**metrics, "loss": value, "grad_norm": norm}
        return state, jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), metrics)

    def dispatch(state, batch, key):
        if settings.steps_per_dispatch == 1:
            return one_step(state, batch, key)
        unroll = _unroll(state.params, settings.steps_per_dispatch)
        return jax.lax.scan(lambda state, batch: one_step(state, batch, key), state, batch, unroll=unroll)

    everywhere = sh.replicated(mesh)
    return jax.jit(
        dispatch,
        donate_argnums=0,
        in_shardings=(shardings, step_batch_sharding(settings, mesh), everywhere),
        out_shardings=(shardings, everywhere),
    )


def step_batch_sharding(settings: Settings, mesh: Mesh) -> NamedSharding:
    """Where the batch of a dispatch goes: (batch, ...) or (steps, batch, ...), split over the batch."""
    return sh.batch_sharding(mesh, axis=0 if settings.steps_per_dispatch == 1 else 1)


def accumulate(
    gradient: Gradient,
    params: PyTree,
    model_state: PyTree,
    key: Array,
    batch: dict[str, Array],
    count: int,
    sharding: NamedSharding | None,
) -> Found:
    """Loss, metrics and gradient of a batch, as means over `count` microbatches taken one after the other.

    Microbatch i holds the examples i, i + count, ...: every device takes its part from the examples that it has. The
    model's state goes from one microbatch to the next.

    Args:
        gradient: of a microbatch, as `jax.value_and_grad(loss, has_aux=True)`.
        params: parameters.
        model_state: of the networks, before the step.
        key: microbatch i draws from `fold_in(key, i)`.
        batch: (batch, ...) arrays; `count` divides batch.
        count: microbatches.
        sharding: of (count, batch / count, ...) arrays; None without a mesh.

    Returns:
        As `gradient`.
    """

    def split(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)

    def evaluate(i, part, model_state):
        (value, (metrics, model_state)), grads = gradient(params, model_state, jax.random.fold_in(key, i), part)
        return (value, metrics, grads), model_state

    def body(carry, inputs):
        total, model_state = carry
        i, part = inputs
        found, model_state = evaluate(i, part, model_state)
        return (jax.tree.map(jnp.add, total, found), model_state), None

    inputs = (jnp.arange(count), jax.tree.map(split, batch))
    shapes, _ = jax.eval_shape(evaluate, *jax.tree.map(lambda x: x[0], inputs), model_state)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, model_state), _ = jax.lax.scan(body, (zeros, model_state), inputs, unroll=_unroll(params, count))
    value, metrics, grads = jax.tree.map(lambda x: x / count, total)
    return (value, (metrics, model_state)), grads


def _unroll(params: PyTree, count: int) -> int:
    """How far to unroll a loop of `count` gradients: not at all, but for convolutions on a CPU.

    Inside a loop XLA's CPU backend does not recognise the gradient of a convolution as one, and takes some 60 times as
    long for it (measured with jaxlib 0.10.2).
    """
    has_kernels = any(leaf.ndim >= 4 for leaf in jax.tree.leaves(params))
    return count if has_kernels and jax.default_backend() == "cpu" else 1
