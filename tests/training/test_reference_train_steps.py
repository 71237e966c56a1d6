"""The recorded training steps of score-SDE, CLD and PSLD, loss by loss: network, objective, optimiser and average."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import interop, objectives, score, sdes
from sgmjax.config import OptimizerConfig
from sgmjax.tasks import Variables
from sgmjax.training.optimizer import ema_decay, make_optimizer
from sgmjax.training.state import apply_gradients, create

pytestmark = pytest.mark.reference

T_MIN = 1e-5
SCORESDE = refdata.load_json("scoresde_train_steps.json")


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x, jnp.float32), 1, -1)


def phases(x, k: int):
    """(batch, k C, H, W) -> (batch, k, H, W, C)."""
    return score.from_channels(nhwc(x), k)


def replay(
    arrays: dict[str, np.ndarray],
    network: interop.OfficialNetwork,
    sde: sdes.SDE,
    optimizer_config: OptimizerConfig,
    draws: Callable[[int], tuple[Any, Any, Any]],
    *,
    time_conditioning: Any = "t",
    parameterization: Any = "eps",
    tolerance: float,
    **loss_options: Any,
):
    """Takes the recorded steps and compares each loss and the two final outputs with the float64 program."""
    initial = {key.removeprefix("init/"): value for key, value in arrays.items() if key.startswith("init/")}
    params = jax.tree.map(jnp.asarray, interop.convert_weights(network, initial))
    optimizer, ema = make_optimizer(optimizer_config), functools.partial(ema_decay, optimizer_config)
    state = create(Variables(params, {}), optimizer)

    def loss_fn(params, z0, t, eps):
        eps_fn = score.eps_from_network(
            lambda x, cond: network.module.apply({"params": params}, x, cond, train=True), sde,
            parameterization=parameterization, time_conditioning=time_conditioning,
        )  # fmt: skip
        return jnp.mean(objectives.score_matching_loss(eps_fn, sde, z0, t, eps, **loss_options))

    @jax.jit
    def step(state, z0, t, eps):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, z0, t, eps)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        return apply_gradients(state, grads, True, optimizer, ema), loss, norm

    norms, first = [], None
    for i, expected in enumerate(arrays["f64/losses"]):
        state, loss, norm = step(state, *draws(i))
        first = first or state
        np.testing.assert_allclose(loss, expected, rtol=tolerance)
        norms.append(norm)
    if optimizer_config.warmup_steps:  # the first update has learning rate 0 and must leave the parameters alone
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(first.params)))
    probe, cond = nhwc(arrays["probe_input"]), jnp.asarray(arrays["probe_cond"], jnp.float32)
    apply = jax.jit(lambda p: network.module.apply({"params": p}, probe, cond))
    for key, tree in (("final_model_output", state.params), ("final_ema_output", state.ema_params)):
        expected = np.moveaxis(arrays[f"f64/{key}"], 1, -1)
        np.testing.assert_allclose(
            apply(tree) / np.abs(expected).max(), expected / np.abs(expected).max(), atol=10 * tolerance
        )
    return norms


def times(arrays, i):
    return jnp.asarray(arrays["rand_t"][i], jnp.float32) * (1 - T_MIN) + T_MIN


@pytest.mark.parametrize("name", refdata.cases(SCORESDE, at_once=lambda name: False))
def test_scoresde(name):
    config = SCORESDE[name]
    everything = refdata.load_npz("scoresde_train_steps.npz")
    arrays = {key.removeprefix(f"{name}/"): v for key, v in everything.items() if key.startswith(f"{name}/")}
    model, optim = config["model"], config["optim"]
    kind = config["sde"]
    if kind == "ve":
        sde = sdes.ve(sigma_min=model["sigma_min"], sigma_max=model["sigma_max"])
    else:
        sde = {"vp": sdes.vp, "subvp": sdes.subvp}[kind](beta_min=model["beta_min"], beta_max=model["beta_max"])
    norms = replay(
        arrays,
        interop.from_scoresde_config(config),
        sde,
        OptimizerConfig(
            learning_rate=optim["lr"], beta1=optim["beta1"], eps=optim["eps"], weight_decay=optim["weight_decay"],
            warmup_steps=optim["warmup"], grad_clip=optim["grad_clip"], ema_decay=config["ema_rate"], ema_warmup=True,
        ),
        lambda i: (nhwc(arrays["batches"][i])[:, None], times(arrays, i), nhwc(arrays["z"][i])[:, None]),
        time_conditioning="sigma" if kind == "ve" else "t999",
        parameterization="score" if kind == "ve" else "eps",
        weighting="likelihood" if config["likelihood_weighting"] else "simple",
        reduce="mean" if config["reduce_mean"] else "half_sum",
        tolerance=1e-4 if model["embedding_type"] == "fourier" else 1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(norms, arrays["f64/grad_norm_before_clip"], rtol=1e-3)


@pytest.mark.slow
def test_cld(reference):
    arrays, config = refdata.load_npz("cld_train_steps.npz"), refdata.load_json("cld_train_steps.json")
    sde = sdes.cld(
        beta_min=config["beta0"], beta_max=config["beta0"] + config["beta1"], m_inv=config["m_inv"],
        kappa=config["gamma"], numerical_eps=config["numerical_eps"],
    )  # fmt: skip
    matching = config["cld_objective"]

    def draws(i):
        z0 = sde.augment(nhwc(arrays["batches"][i]))
        if matching == "dsm":
            z0 = z0.at[:, 1].set(nhwc(arrays["noise_v0"][i]) * np.sqrt(config["gamma"] / config["m_inv"]))
        return z0, times(arrays, i), phases(arrays["noise_batch"][i], 2)

    replay(
        arrays,
        interop.from_cld_config(config),
        sde,
        OptimizerConfig(
            learning_rate=config["learning_rate"], warmup_steps=config["n_warmup_iters"],
            grad_clip=config["grad_clip"], weight_decay=config["weight_decay"],
            ema_decay=config.get("ema_rate", 0.9999), ema_warmup=True,
        ),
        draws,
        matching=matching,
        parameterization="mixed" if config["mixed_score"] else "eps",
        weighting=config["weighting"],
        reduce="sum" if config["weighting"] == "reweightedv2" else "half_sum",
        tolerance=1e-4 if config["embedding_type"] == "fourier" else 1e-5,
    )  # fmt: skip


def test_psld(reference):
    arrays, config = refdata.load_npz("psld_train_steps.npz"), refdata.load_json("psld_train_steps.json")
    c, matching = config["sde"], config["training_mode"]
    sde = sdes.psld(
        beta_min=c["beta_min"], beta_max=c["beta_max"], gamma=c["gamma"], nu=c["nu"], kappa=c["kappa"],
        factor=c["decomp_mode"], numerical_eps=c["numerical_eps"],
    )  # fmt: skip
    side = arrays["batches"].shape[-1]

    def draws(i):
        x0 = nhwc(arrays["batches"][i])
        z0 = sde.augment(x0)
        if matching == "dsm":
            z0 = z0.at[:, 1].set(nhwc(arrays["noise_m0"][i]) * np.sqrt(sde.Sigma_inf[1, 1] * c["kappa"]))
        return z0, times(arrays, i), phases(arrays["noise_eps"][i], 2)

    replay(
        arrays,
        interop.from_psld_config(config, image_size=side),
        sde,
        OptimizerConfig(
            learning_rate=config["lr"], warmup_steps=config["warmup"], grad_clip=config["grad_clip"],
            ema_decay=config["ema_decay"], ema_warmup=False,
        ),
        draws,
        matching=matching,
        tolerance=1e-4 if config["score_fn"]["embedding_type"] == "fourier" else 1e-5,
    )  # fmt: skip
