"""Optimisers of groups of parameters, Adamax, and learning rates that come down."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgmjax.config import OptimizerConfig
from sgmjax.tasks import Variables
from sgmjax.training.optimizer import (
    grouped_ema_decay,
    learning_rate,
    make_grouped_optimizer,
    make_optimizer,
)
from sgmjax.training.state import apply_gradients, create

CONSTANT = {"warmup_steps": 0, "grad_clip": None, "ema_warmup": False}


def test_learning_rate_rises_then_falls_by_half_a_cosine():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, learning_rate_min=0.2, warmup_steps=4), 12)
    assert [float(rate(n)) for n in (0, 1, 2, 3)] == [0.0, 0.25, 0.5, 0.75]
    expected = [0.2 + 0.4 * (1 + np.cos(np.pi * done / 8)) for done in range(9)]
    np.testing.assert_allclose([float(rate(4 + n)) for n in range(9)], expected, atol=1e-6)
    assert float(rate(100)) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="over how many steps"):
        learning_rate(OptimizerConfig(learning_rate_min=0.1))


def test_adamax_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5).astype(np.float32), rng.normal(size=(7, 5)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.Adamax([parameter], lr=0.01, eps=1e-3, weight_decay=0.1)
    config = OptimizerConfig(name="adamax", learning_rate=0.01, eps=1e-3, weight_decay=0.1, **CONSTANT)
    ours = make_optimizer(config)
    params = jnp.asarray(start)
    state = ours.init(params)
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        theirs.step()
        updates, state = ours.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-5)


@pytest.fixture
def groups():
    return {"vae": {"w": jnp.ones(3)}, "prior": {"w": 2 * jnp.ones(2)}}


def ema(configs):
    return functools.partial(grouped_ema_decay, configs, ("vae", "prior"))


def _moments(state, group):
    """The first moment of a group's only array."""
    (found,) = [x.mu[group]["w"] for x in jax.tree.leaves(
        state.opt_state.inner_states[group], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")]  # fmt: skip
    return found


def test_each_group_has_its_own_settings_and_one_without_stays(groups):
    """Clipped by its own norm, moved by its own rate, averaged with its own decay."""
    decayed = jax.tree.map(lambda _: 1.0, groups)
    first = {"vae": OptimizerConfig(name="adamax", learning_rate=0.1, ema_decay=0.0, **CONSTANT)}
    second = {
        "vae": OptimizerConfig(name="adamw", learning_rate=0.01, learning_rate_min=0.0, grad_clip=1.0, warmup_steps=0),
        "prior": OptimizerConfig(learning_rate=0.5, ema_decay=0.9, **CONSTANT),
    }
    grads = jax.tree.map(lambda p: 3 * jnp.ones_like(p), groups)
    optimizers = [make_grouped_optimizer(config, decayed, steps=10) for config in (first, second)]
    states = [create(Variables(groups, {}), optimizer) for optimizer in optimizers]
    after = apply_gradients(states[0], grads, True, optimizers[0], ema(first))
    np.testing.assert_allclose(after.params["vae"]["w"], 0.9, rtol=1e-6)  # the first step of Adamax has the rate's size
    np.testing.assert_array_equal(after.params["prior"]["w"], 2.0)
    np.testing.assert_array_equal(after.ema_params["prior"]["w"], 2.0)
    assert not jax.tree.leaves(after.opt_state.inner_states["prior"])
    np.testing.assert_array_equal(after.ema_params["vae"]["w"], after.params["vae"]["w"])
    after = apply_gradients(states[1], grads, True, optimizers[1], ema(second))
    np.testing.assert_allclose(after.params["prior"]["w"], 1.5, rtol=1e-5)
    np.testing.assert_allclose(after.ema_params["prior"]["w"], 0.9 * 2 + 0.1 * 1.5, rtol=1e-5)
    np.testing.assert_allclose(_moments(after, "vae"), 0.1 / np.sqrt(3), rtol=1e-5)  # clipped to norm 1
    np.testing.assert_allclose(_moments(after, "prior"), 0.1 * 3, rtol=1e-6)


def test_an_unhealthy_step_keeps_the_state_of_the_networks(groups):
    optimizer = make_grouped_optimizer({}, jax.tree.map(lambda _: 1.0, groups), steps=1)
    state = create(Variables(groups, {"mean": jnp.zeros(2)}), optimizer)
    new = {"mean": jnp.ones(2)}
    for healthy in (False, True):
        after = apply_gradients(state, groups, healthy, optimizer, ema({}), new)
        np.testing.assert_array_equal(after.model_state["mean"], float(healthy))
