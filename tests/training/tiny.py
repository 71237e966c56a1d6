"""A run small enough for every test: a two-layer network on a generated 2-D set, through the whole training loop.

Run as a program it is what the tests interrupt: `python tiny.py WORKDIR '{"train": {"steps": 60}}'`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax.config import Config, from_dict
from sgmjax.data.memory import ArrayDataset
from sgmjax.tasks import Variables

SETTINGS: dict[str, Any] = {
    "data": {"name": "ring", "eval_split": None},
    "model": {"name": "mlp"},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5, "ema_decay": 0.9, "ema_warmup": False},
    "train": {
        "steps": 20,
        "batch_size": 16,
        "log_every": 5,
        "eval_every": 10,
        "sample_every": 0,
        "checkpoint_every": 10,
    },
    "sampling": {"num": 40, "batch_size": 16, "grid_images": 16},
}


def config(**sections: dict[str, Any]) -> Config:
    """`SETTINGS`, with sections updated: `config(train={"steps": 5})`."""
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    return from_dict(merged)


def dataset(num: int = 100) -> ArrayDataset:
    """Points on a circle."""
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return ArrayDataset("circle", np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32))


class Task:
    """Noise prediction for `dataset`.

    Args:
        noisy: with False the loss draws nothing, so that it does not depend on how a batch is divided.
        bad: the loss is NaN in batches that hold an x above this.
        delay: seconds a step takes longer, in the host's time.
    """

    event_shape = (2,)
    num_classes = None
    class_names = None
    discrete = False
    centered = True

    def __init__(self, noisy: bool = True, bad: float = np.inf, delay: float = 0.0, width: int = 32):
        self.noisy, self.bad, self.delay, self.width = noisy, bad, delay, width
        self.traces = 0

    def init(self, key):
        first, second = jax.random.split(key)
        params = {
            "in": 0.5 * jax.random.normal(first, (3, self.width)),
            "out": 0.1 * jax.random.normal(second, (self.width, 2)),
        }
        return Variables(params, {})

    def predict(self, params, z, t):
        return jnp.tanh(jnp.concatenate([z, t[:, None]], axis=1) @ params["in"]) @ params["out"]

    def loss(self, variables, key, batch, *, step, ema, train):
        self.traces += train
        x = batch["x"]
        if self.noisy:
            time_key, noise_key = jax.random.split(key)
            t, eps = jax.random.uniform(time_key, x.shape[:1]), jax.random.normal(noise_key, x.shape)
        else:
            t, eps = jnp.abs(x[:, 0]), jnp.flip(x, axis=1)
        z = jnp.sqrt(1 - t)[:, None] * x + jnp.sqrt(t)[:, None] * eps
        loss = jnp.mean((self.predict(variables.params, z, t) - eps) ** 2)
        loss = jnp.where(jnp.any(x > self.bad), jnp.nan, loss)
        if self.delay and train:
            jax.debug.callback(lambda: time.sleep(self.delay))
        return loss, {"mse": loss}, variables.state

    def sample(self, variables, key, num, plan, *, labels=None):
        x = jax.random.normal(key, (num, 2))
        for _ in range(3):
            x = x - 0.3 * self.predict(variables.params, x, jnp.ones(num))
        return x, {"nfe": 3}


if __name__ == "__main__":
    from sgmjax.training.train import train

    arguments = json.loads(sys.argv[2])
    task = Task(**arguments.pop("task", {}))
    result = train(config(**arguments), sys.argv[1], task=task, dataset=dataset(), eval_dataset=dataset(50))
    print("status", result.status, result.step)
