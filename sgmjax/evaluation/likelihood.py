"""The likelihood of held-out data under the averaged parameters of a run: dequantised, split over all devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sgmjax import samplers
from sgmjax import sharding as sh
from sgmjax._types import AnyArray, Key
from sgmjax.data.dequantize import dequantize
from sgmjax.evaluation.draw import map_examples
from sgmjax.objectives import TimeLaw, importance
from sgmjax.samplers._likelihood import Probing, Trace, Truncation
from sgmjax.tasks.base import Variables

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """How a density is computed by the probability flow, see `samplers.likelihood`, and by a bound beside it.

    Attributes:
        draws: times drawn for the bound of an example.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    solver: str = "Dopri5"
    trace: Trace = "rademacher"
    probes: int = 1
    probing: Probing = "blocks"
    momenta: int = 1
    draws: int = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodSettings(FlowSettings):
    """How `held_out_likelihood` evaluates; the bound is `samplers.variational_bound`.

    Attributes:
        dequantizations: draws of the uniform noise on discrete data, averaged.
    """

    t_min: float = 1e-5
    truncation: Truncation = "ignore"
    dequantizations: int = 1


class HeldOut(NamedTuple):
    """Of every example, (num,) float64, averaged over dequantisations; nats of the data in the network's range.

    Attributes:
        indices: which examples.
        ode: -log p by the probability-flow ODE.
        bound: the variational bound of -log p.
        nfe: score evaluations of the ODE for one density.
    """

    indices: np.ndarray
    ode: np.ndarray
    bound: np.ndarray
    nfe: np.ndarray


def example_likelihood(
    task: Any, settings: LikelihoodSettings, time_law: TimeLaw, variables: Any, key: Key, x: AnyArray, label: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-log p by the ODE, its variational bound, and the evaluations of the ODE, scalars, of one example x (*event)."""
    noise_key, ode_key, bound_key = jax.random.split(key, 3)
    x = x[None]
    if jnp.issubdtype(x.dtype, jnp.integer):  # a density needs no noise
        x = dequantize(noise_key, x, centered=task.centered)
    labels = None if task.num_classes is None else label[None]
    score_fn = task.score_fn(variables, labels=labels)
    log_prob, info = samplers.likelihood(
        ode_key,
        score_fn,
        task.sde,
        x,
        t_min=settings.t_min,
        rtol=settings.rtol,
        atol=settings.atol,
        solver=settings.solver,
        trace=settings.trace,
        probes=settings.probes,
        probing=settings.probing,
        momenta=settings.momenta,
        truncation=settings.truncation,
        per_sample=False,  # the batch is one example
    )
    lower, _ = samplers.variational_bound(
        bound_key,
        score_fn,
        task.sde,
        x,
        draws=settings.draws,
        t_min=settings.t_min,
        truncation=settings.truncation,
        time_law=time_law,
    )
    return -log_prob[0], -lower[0], info.nfe


def held_out_likelihood(
    task: Any,
    variables: Variables,
    key: Array,
    dataset: Any,
    *,
    num: int,
    batch_size: int,
    settings: LikelihoodSettings,
    mesh: Mesh,
    shardings: PyTree,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> HeldOut:
    """The likelihood of `num` examples drawn without replacement; the work is split over all devices.

    An example's result depends on the key and on its place in the data, not on the batch size or its batch-mates.

    Args:
        task: a `Generative` one, of what it diffuses.
        variables: the averaged ones.
        key: of dequantisation, momenta, probes and times.
        dataset: has `num_examples` and `read`.
        num: how many examples; all of the data if it has fewer.
        batch_size: examples at a time; rounded up to a multiple of the number of devices.
        settings: how.
        mesh: from `make_mesh`.
        shardings: of the parameters.
        seed: which examples, when not all are taken.
        progress: told after each batch how many densities there are, up to num x dequantizations.
    """
    num = min(num, dataset.num_examples)
    everywhere, split = sh.replicated(mesh), sh.batch_sharding(mesh)
    time_law = importance(task.sde, t_min=settings.t_min)

    def batch_of(variables, key, batch):
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        one = lambda key, x, label: example_likelihood(task, settings, time_law, variables, key, x, label)  # noqa: E731
        return [v.astype(jnp.float32) for v in jax.vmap(one)(keys, batch["x"], batch["label"])]

    run = jax.jit(batch_of, in_shardings=(shardings, everywhere, split), out_shardings=split)
    total, indices = np.zeros((3, num)), np.zeros(0)
    for draw in range(settings.dequantizations):
        draw_key = jax.random.fold_in(key, draw)
        indices, values = map_examples(
            functools.partial(run, variables, draw_key),
            dataset,
            num,
            batch_size,
            mesh,
            seed=seed,
            progress=lambda done, before=draw * num: progress(before + done),
        )
        total += np.stack(values)
    ode, bound, nfe = total / settings.dequantizations
    return HeldOut(indices, ode, bound, nfe)
