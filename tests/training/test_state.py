"""One update: against the official optimiser, closed forms, and what happens to a bad one."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax.config import OptimizerConfig
from sgmjax.models import trainable_mask
from sgmjax.tasks import Variables
from sgmjax.training.optimizer import clip_by_global_norm, ema_decay, make_optimizer, warmup
from sgmjax.training.state import apply_gradients, create

OFFICIAL = refdata.load_npz("scoresde_optim_ema.npz")
ADAM = refdata.load_json("scoresde_optim_ema.json")


def start(config: OptimizerConfig, params):
    optimizer = make_optimizer(config)
    return create(Variables(params, {}), optimizer), optimizer


def update(state, grads, healthy, config, optimizer):
    return apply_gradients(state, grads, healthy, optimizer, functools.partial(ema_decay, config))


def follow(case: str, mode: str, dtype) -> float:
    """The largest deviation of parameters and average from the recorded ones, over all steps."""
    steps, clip, decay = re.fullmatch(r"warmup(\d+)_clip([-\d.]+)_ema([\d.]+)", case).groups()
    config = OptimizerConfig(
        learning_rate=ADAM["learning_rate"],
        beta1=ADAM["beta1"],
        beta2=ADAM["beta2"],
        eps=ADAM["eps"],
        warmup_steps=int(steps),
        grad_clip=float(clip) if float(clip) > 0 else None,
        ema_decay=float(decay),
        ema_warmup=True,
    )
    state, optimizer = start(config, {"p": jnp.asarray(OFFICIAL["p0"], dtype)})
    worst = 0.0
    for i, grads in enumerate(OFFICIAL["grads"]):
        state = update(state, {"p": jnp.asarray(grads, dtype)}, True, config, optimizer)
        for name, ours in (("params", state.params["p"]), ("ema", state.ema_params["p"])):
            worst = max(worst, np.abs(np.asarray(ours) - OFFICIAL[f"{mode}/{case}/{name}"][i]).max())
    return worst


@pytest.mark.parametrize("case", refdata.cases(OFFICIAL, "f64/(.+)/params"))
def test_official_optimiser_and_average(case):
    with jax.enable_x64(True):
        assert follow(case, "f64", np.float64) < 1e-9
    scale = np.abs(OFFICIAL["p0"]).max()
    assert follow(case, "official", np.float32) < 1e-5 * scale


def test_adam_by_hand():
    """The first updates of a constant gradient are sign(g) lr, whatever its size (eps aside)."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, grad_clip=None, ema_decay=0.5, ema_warmup=False, eps=1e-12
    )
    state, optimizer = start(config, {"p": jnp.asarray([1.0, -2.0])})
    for n in range(1, 4):
        state = update(state, {"p": jnp.asarray([3.0, -1e-3])}, True, config, optimizer)
        np.testing.assert_allclose(state.params["p"], [1 - 0.1 * n, -2 + 0.1 * n], rtol=1e-5)
    # ema after p1, p2, p3 with decay 1/2: p0/8 + p1/8 + p2/4 + p3/2
    np.testing.assert_allclose(state.ema_params["p"], [1 - 0.2125, -2 + 0.2125], rtol=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("adamw", 2 - 0.1 * (1 + 0.5 * 2)), ("adam", 2 - 0.1)])
def test_weight_decay(name, expected):
    """Decoupled it adds lr * decay * p; coupled it only changes the gradient, whose sign is all that the step keeps."""
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.5, grad_clip=None, eps=1e-12)
    state, optimizer = start(config, {"p": jnp.asarray([2.0])})
    state = update(state, {"p": jnp.asarray([4.0])}, True, config, optimizer)
    np.testing.assert_allclose(state.params["p"], [expected], rtol=1e-6)


def test_warmup_starts_at_zero():
    schedule = warmup(1e-3, 4)
    values = [float(schedule(jnp.asarray(n))) for n in range(6)]
    np.testing.assert_allclose(values, [0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3], rtol=1e-6)


@pytest.mark.parametrize("norm", [0.5, 5.0])
def test_clip(norm):
    grads = {"a": jnp.asarray([0.6, 0.0]) * norm, "b": jnp.asarray([[0.8]]) * norm}
    clipped, _ = clip_by_global_norm(1.0).update(grads, ())
    size = float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(clipped))))
    assert size == pytest.approx(min(norm, 1.0), rel=1e-5)


def test_ema_decay():
    config = OptimizerConfig(ema_decay=0.9, ema_warmup=True)
    values = [float(ema_decay(config, jnp.asarray(n))) for n in (1, 2, 1000)]
    np.testing.assert_allclose(values, [2 / 11, 3 / 12, 0.9], rtol=1e-6)
    assert float(ema_decay(OptimizerConfig(ema_decay=0.9, ema_warmup=False), jnp.asarray(1))) == pytest.approx(0.9)


def test_average_is_a_copy():
    """With shared buffers a donated state would be an error."""
    state, _ = start(OptimizerConfig(), {"p": jnp.ones(3)})
    assert state.params["p"].unsafe_buffer_pointer() != state.ema_params["p"].unsafe_buffer_pointer()


def test_bad_step_changes_nothing_but_the_counters():
    config = OptimizerConfig(warmup_steps=0, ema_warmup=True)
    state, optimizer = start(config, {"p": jnp.ones(3)})
    good, bad = {"p": jnp.ones(3)}, {"p": jnp.asarray([1.0, jnp.nan, jnp.inf])}
    before = update(state, good, True, config, optimizer)
    after = update(update(before, bad, False, config, optimizer), bad, False, config, optimizer)
    assert (int(after.step), int(after.bad_steps), int(after.bad_streak)) == (3, 2, 2)
    for name in ("params", "ema_params", "opt_state"):
        for a, b in zip(*map(jax.tree.leaves, (getattr(before, name), getattr(after, name))), strict=True):
            np.testing.assert_array_equal(a, b)
    # and the next good step is the one that would have come: bias corrections and the average's n did not move on
    resumed, direct = (update(s, good, True, config, optimizer) for s in (after, before))
    assert (int(resumed.step), int(resumed.bad_steps), int(resumed.bad_streak)) == (4, 2, 0)
    np.testing.assert_array_equal(resumed.params["p"], direct.params["p"])
    np.testing.assert_array_equal(resumed.ema_params["p"], direct.ema_params["p"])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weight_decay_leaves_fourier_frequencies_alone(name):
    """PyTorch skips them for want of a gradient."""
    params = {"fourier": {"frequencies": jnp.full(4, 16.0)}, "kernel": jnp.ones((200, 200)), "bias": jnp.ones(3)}
    config = OptimizerConfig(name=name, weight_decay=0.1, warmup_steps=0, learning_rate=1e-2)
    optimizer = make_optimizer(config, trainable_mask(params))
    state = create(Variables(params, {}), optimizer)
    after = update(state, jax.tree.map(jnp.zeros_like, params), True, config, optimizer).params
    assert np.array_equal(after["fourier"]["frequencies"], params["fourier"]["frequencies"])
    for key in ("kernel", "bias"):
        assert np.all(np.asarray(after[key]) < 1.0)
