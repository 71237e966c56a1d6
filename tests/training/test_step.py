"""The compiled step: the same numbers however a batch is divided, no second compilation, bad steps left out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from training import tiny

from sgmjax import sharding as sh
from sgmjax.training.optimizer import ema_decay, make_optimizer
from sgmjax.training.state import create
from sgmjax.training.step import make_train_step, step_batch_sharding

OPTIMIZED = True  # programs that must agree in every bit


def run(config, task, devices=1, fsdp=1, steps=6, batches=None, min_size=1):
    """Losses, final state and the step function after a few steps on the first `devices` devices."""
    mesh = sh.make_mesh(fsdp, jax.devices()[:devices])
    optimizer = make_optimizer(config.optimizer)

    def initial(key):
        return create(task.init(key), optimizer)

    shardings = sh.state_shardings(mesh, jax.eval_shape(initial, jax.random.key(0)), min_size)
    state = jax.jit(initial, out_shardings=shardings)(jax.random.key(0))
    ema = functools.partial(ema_decay, config.optimizer)
    step_fn = make_train_step(task, optimizer, ema, config.train, mesh, shardings)
    iterator = tiny.dataset().iterator(config.train.batch_size, seed=0)
    key, losses = jax.random.key(1), []
    for i in range(0, steps, config.train.steps_per_dispatch):
        if batches is not None:
            batch = batches[i]
        elif config.train.steps_per_dispatch == 1:
            batch = next(iterator)
        else:
            parts = [next(iterator) for _ in range(config.train.steps_per_dispatch)]
            batch = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        state, metrics = step_fn(state, sh.put_batch(batch, step_batch_sharding(config.train, mesh)), key)
        losses += np.ravel(metrics["loss"]).tolist()
    return losses, state, step_fn


def close(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6)


CONFIG = tiny.config(train={"batch_size": 32}, optimizer={"warmup_steps": 0})


def test_eight_devices_as_one():
    one, state_one, _ = run(CONFIG, tiny.Task())
    eight, state_eight, _ = run(CONFIG, tiny.Task(), devices=8)
    np.testing.assert_allclose(eight, one, rtol=1e-6)
    close(state_eight.params, state_one.params)


def test_split_parameters_as_copied():
    copied, state_copied, _ = run(CONFIG, tiny.Task(), devices=8)
    split, state_split, _ = run(CONFIG, tiny.Task(), devices=8, fsdp=2)
    np.testing.assert_allclose(split, copied, rtol=1e-6)
    close(state_split, state_copied)
    for tree in (state_split.params, state_split.ema_params):
        assert tree["in"].sharding.spec == PartitionSpec(None, "fsdp")
        assert tree["in"].addressable_shards[0].data.shape == (3, 16)
    moments = [leaf for leaf in jax.tree.leaves(state_split.opt_state) if leaf.shape == (32, 2)]
    assert len(moments) == 2 and all(leaf.sharding.spec == PartitionSpec("fsdp") for leaf in moments)


def test_small_parameters_are_not_split():
    mesh = sh.make_mesh(2)
    shapes = {
        "big": jax.ShapeDtypeStruct((3, 128, 128), jnp.float32),
        "small": jax.ShapeDtypeStruct((64,), jnp.float32),
    }
    places = sh.state_shardings(mesh, shapes)
    assert places["big"].spec == PartitionSpec(None, None, "fsdp") and places["small"].spec == PartitionSpec()


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_is_the_whole_batch(devices):
    """For a loss without noise; only the order of float32 sums differs."""
    whole, state_whole, _ = run(CONFIG, tiny.Task(noisy=False), devices)
    config = tiny.config(train={"batch_size": 32, "grad_accumulation": 4}, optimizer={"warmup_steps": 0})
    parts, state_parts, _ = run(config, tiny.Task(noisy=False), devices)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    close(state_parts.params, state_whole.params)


def test_accumulated_microbatches_draw_their_own_noise():
    task = tiny.Task()
    config = tiny.config(train={"batch_size": 32, "grad_accumulation": 2})
    keys = []
    loss = task.loss

    def spy(variables, key, batch, **options):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return loss(variables, key, batch, **options)

    task.loss = spy
    run(config, task, steps=2)
    jax.effects_barrier()
    assert len(keys) == 4 and len(set(keys)) == 4


def test_several_steps_a_dispatch():
    single, state_single, _ = run(CONFIG, tiny.Task())
    config = tiny.config(
        train={
            "batch_size": 32,
            "steps_per_dispatch": 3,
            "steps": 6,
            "log_every": 3,
            "eval_every": 3,
            "checkpoint_every": 3,
        },
        optimizer={"warmup_steps": 0},
    )
    several, state_several, _ = run(config, tiny.Task())
    np.testing.assert_allclose(several, single, rtol=1e-6)
    close(state_several, state_single)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_second_step_does_not_compile(fsdp):
    task = tiny.Task()
    _, _, step_fn = run(CONFIG, task, devices=8, fsdp=fsdp)
    assert task.traces == 1 and step_fn._cache_size() == 1


def test_state_is_donated():
    config, task = CONFIG, tiny.Task()
    _, state, step_fn = run(config, task)
    mesh = sh.make_mesh(1, jax.devices()[:1])
    batch = sh.put_batch(next(tiny.dataset().iterator(32, seed=0)), step_batch_sharding(config.train, mesh))
    step_fn(state, batch, jax.random.key(1))
    assert state.params["in"].is_deleted()


def test_bad_batches_are_left_out():
    """The run with two poisoned batches among the good ones ends where the run without them does."""
    iterator = tiny.dataset().iterator(32, seed=0)
    good = [next(iterator) for _ in range(4)]
    poison = {name: value * 100 for name, value in good[0].items()}
    task = tiny.Task(noisy=False, bad=50.0)
    config = tiny.config(train={"batch_size": 32, "max_bad_steps": 3}, optimizer={"ema_warmup": True})
    _, clean, _ = run(config, task, steps=4, batches=good)
    losses, mixed, _ = run(config, task, steps=6, batches=[*good[:2], poison, poison, *good[2:]])
    assert np.isnan(losses).tolist() == [False, False, True, True, False, False]
    assert (int(mixed.step), int(mixed.bad_steps), int(mixed.bad_streak)) == (6, 2, 0)
    close((mixed.params, mixed.ema_params, mixed.opt_state), (clean.params, clean.ema_params, clean.opt_state), 0)


def test_after_too_many_bad_steps_nothing_moves():
    iterator = tiny.dataset().iterator(32, seed=0)
    good = [next(iterator) for _ in range(4)]
    poison = {name: value * 100 for name, value in good[0].items()}
    task = tiny.Task(noisy=False, bad=50.0)
    config = tiny.config(train={"batch_size": 32, "max_bad_steps": 2})
    _, before, _ = run(config, task, steps=2, batches=good)
    _, after, _ = run(config, task, steps=6, batches=[*good[:2], poison, poison, *good[2:]])
    assert int(after.bad_streak) == 4
    close(after.params, before.params, 0)
