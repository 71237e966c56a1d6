"""The training step: one compiled call that is the same for one device and for a pod."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from sgmjax.training import sharding as sh
from sgmjax.training.config import Config, OptimizerConfig
from sgmjax.training.packing import Packing
from sgmjax.training.state import TrainState, apply_gradients

PyTree = Any


class Context(NamedTuple):
    """What a training loss may see of the state besides the parameters.

    Attributes:
        step: () int32, steps taken.
        ema_params: averaged parameters.
        model_state: see `TrainState`.
    """

    step: Array
    ema_params: PyTree
    model_state: PyTree


# (params, key, batch, context) -> loss, (metrics, the new model_state)
LossFn = Callable[[PyTree, Array, dict[str, Array], Context], tuple[Array, tuple[dict[str, Array], PyTree]]]


def stateless(loss_fn: Callable[..., tuple[Array, dict[str, Array]]]) -> LossFn:
    """A `Problem.loss_fn(params, key, batch, train)` as the loss of a training step."""

    def loss(params, key, batch, context):
        value, metrics = loss_fn(params, key, batch, True)
        return value, (metrics, context.model_state)

    return loss


def make_train_step(
    loss_fn: LossFn,
    config: Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: PyTree,
    packing: Any = None,
    *,
    state_packing: Packing | None = None,
    optimizer_config: OptimizerConfig | Mapping[str, OptimizerConfig] | None = None,
) -> Callable[[TrainState, dict[str, Array], Array], tuple[TrainState, dict[str, Array]]]:
    """The jitted `step(state, batch, key) -> (state, metrics)`; it consumes (donates) the state it is given.

    Step n draws from `fold_in(key, n)` only, so that a resumed run continues the same stream. With
    `train.grad_accumulation` = a > 1 the batch is taken in a microbatches, whose mean gradient is used. A loss or
    gradient that is not finite leaves parameters, average and optimiser alone and is counted. After
    `train.max_bad_steps` in a row nothing is updated any more (`bad_streak` only grows), until the host notices.

    Args:
        loss_fn: `stateless(Problem.loss_fn)`, or one that uses the context.
        config: the run's.
        optimizer: `make_optimizer(config.optimizer)`.
        mesh: from `make_mesh`.
        shardings: of the state, from `state_shardings`.
        packing: how the parameters of the state are packed; None: not at all.
        state_packing: how its `model_state` is packed.
        optimizer_config: the settings of `optimizer`, where they are not `config.optimizer`.

    Returns:
        The function. `batch` is (batch, ...), or (steps, batch, ...) when `train.steps_per_dispatch` > 1. `metrics`
        are () float32, or (steps,): `loss`, `grad_norm` (before clipping) and those of `loss_fn`.
    """
    train = config.train
    microbatch_sharding = sh.batch_sharding(mesh, axis=1)

    def gradients(params, batch, key, context):
        if train.grad_accumulation == 1:
            return jax.value_and_grad(loss_fn, has_aux=True)(params, key, batch, context)
        return accumulate(params, batch, key, context, loss_fn, train.grad_accumulation, microbatch_sharding)

    def unpacked(packing, tree):
        return tree if packing is None else packing.unpack(tree)

    def one_step(state: TrainState, batch, key):
        key = jax.random.fold_in(key, state.step)
        params = unpacked(packing, state.params)
        context = Context(state.step, unpacked(packing, state.ema_params), unpacked(state_packing, state.model_state))
        (loss, (metrics, model_state)), grads = gradients(params, batch, key, context)
        grads = grads if packing is None else packing.pack(grads)
        model_state = model_state if state_packing is None else state_packing.pack(model_state)
        norm = optax.tree.norm(grads)
        healthy = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.bad_streak < train.max_bad_steps)
        settings = config.optimizer if optimizer_config is None else optimizer_config
        state = apply_gradients(state, grads, healthy, settings, optimizer, model_state)
        metrics = {**metrics, "loss": loss, "grad_norm": norm}
        return state, jax.tree.map(lambda m: m.astype(jnp.float32), metrics)

    def dispatch(state, batch, key):
        if train.steps_per_dispatch == 1:
            return one_step(state, batch, key)
        unroll = _unroll(state.params, train.steps_per_dispatch)
        return jax.lax.scan(lambda state, batch: one_step(state, batch, key), state, batch, unroll=unroll)

    everywhere = sh.replicated(mesh)
    return jax.jit(
        dispatch,
        donate_argnums=0,
        in_shardings=(shardings, step_batch_sharding(config, mesh), everywhere),
        out_shardings=(shardings, everywhere),
    )


def step_batch_sharding(config: Config, mesh: Mesh) -> NamedSharding:
    """Where the batch of a dispatch goes: (batch, ...) or (steps, batch, ...), split over the batch."""
    return sh.batch_sharding(mesh, axis=0 if config.train.steps_per_dispatch == 1 else 1)


def accumulate(
    params: PyTree,
    batch: dict[str, Array],
    key: Array,
    context: Context,
    loss_fn: LossFn,
    count: int,
    sharding: NamedSharding | None,
) -> tuple[tuple[Array, tuple[dict[str, Array], PyTree]], PyTree]:
    """Loss, metrics and gradient of a batch, as means over `count` microbatches taken one after the other.

    Microbatch i holds the examples i, i + count, ...: every device takes its part from the examples that it has. The
    model's state goes from one microbatch to the next.

    Args:
        params: parameters.
        batch: (batch, ...) arrays; `count` divides batch.
        key: microbatch i draws from `fold_in(key, i)`.
        context: of the step.
        loss_fn: as for `make_train_step`.
        count: microbatches.
        sharding: of (count, batch / count, ...) arrays; None without a mesh.

    Returns:
        As `jax.value_and_grad(loss_fn, has_aux=True)`.
    """

    def split(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)

    def evaluate(i, part, model_state):
        own = context._replace(model_state=model_state)
        (loss, (metrics, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, jax.random.fold_in(key, i), part, own
        )
        return (loss, metrics, grads), model_state

    def body(carry, inputs):
        total, model_state = carry
        i, part = inputs
        found, model_state = evaluate(i, part, model_state)
        return (jax.tree.map(jnp.add, total, found), model_state), None

    parts = jax.tree.map(split, batch)
    inputs = (jnp.arange(count), parts)
    first, part = jax.tree.map(lambda x: x[0], inputs)
    shapes, _ = jax.eval_shape(evaluate, first, part, context.model_state)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry = (zeros, context.model_state)
    (total, model_state), _ = jax.lax.scan(body, carry, inputs, unroll=_unroll(params, count))
    loss, metrics, grads = jax.tree.map(lambda x: x / count, total)
    return (loss, (metrics, model_state)), grads


def _unroll(params: PyTree, count: int) -> int:
    """How far to unroll a loop of `count` gradients: not at all, but for convolutions on a CPU.

    Inside a loop XLA's CPU backend does not recognise the gradient of a convolution as one, and takes some 60 times as
    long for it (measured with jaxlib 0.10.2).
    """
    has_kernels = any(leaf.ndim >= 4 for leaf in jax.tree.leaves(params))
    return count if has_kernels and jax.default_backend() == "cpu" else 1
