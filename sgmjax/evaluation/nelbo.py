"""The negative bound on the log-likelihood (NELBO) of held-out images under a run with a VAE.

    NELBO = E_q(eps | x) [ -log p(x | eps) + log q(eps | x) - log p(eps) ]

averaged over posterior samples, log p(eps) of the coarsest scale once by the probability-flow ODE of the prior and once
by the weighted score-matching objective (whose expectation is a bound on it, an equality for k = 1 and the exact
score), and of finer scales by N(0, I). For a prior in phase space the ODE gives log p(z, m) - log q(m) of drawn momenta
m, in expectation a bound, with several momenta the tighter importance-weighted one.

Reference: Vahdat et al. 2021, sec. 3.1 and app. F; docs/latent_prior.md for phase space.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sgmjax import samplers
from sgmjax import sharding as sh
from sgmjax._types import AnyArray, Key
from sgmjax.evaluation.draw import map_examples
from sgmjax.evaluation.likelihood import FlowSettings
from sgmjax.models import distributions
from sgmjax.models.nvae.terms import ACTIVE_NATS
from sgmjax.objectives._lsgm import lsgm
from sgmjax.objectives.time_law import WeightedLaw, lsgm_mode
from sgmjax.tasks.base import Variables
from sgmjax.tasks.latent import LatentTask

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class NelboSettings(FlowSettings):
    """How `held_out_nelbo` evaluates; the bound is the weighted objective.

    Attributes:
        t_min: where the ODE starts. In phase space the momenta leave their initial law at once (PSLD: 0.07 nats a
            latent variable at 1e-3, 2e-5 at 1e-5), so it must be small.
        posterior_samples: draws of the latent variables of an image, averaged.
    """

    t_min: float = 1e-5
    posterior_samples: int = 1


@dataclasses.dataclass(frozen=True)
class Nelbo:
    """Means over posterior samples for every image, float64; nats.

    Attributes:
        indices: (num,) which images.
        nelbo: of each prior, (num,): `normal` (N(0, I)), and with a score-based prior `ode` and `weighted`.
        reconstruction: (num,) -log p(x | eps).
        kl_per_group: (num, groups), from N(0, I), or from the score-based prior by the weighted objective.
        active_units: latent channels with more than 0.1 nats.
        nfe: (num,) score evaluations of the ODE.
    """

    indices: np.ndarray
    nelbo: dict[str, np.ndarray]
    reconstruction: np.ndarray
    kl_per_group: np.ndarray
    active_units: int
    nfe: np.ndarray


def example_nelbo(
    task: Any, settings: NelboSettings, times: WeightedLaw, variables: Variables, key: Key, x: AnyArray
) -> dict[str, Any]:
    """The terms of `Nelbo` of one image x (H, W, C), each averaged over posterior samples; "kl" by latent channel."""
    data_key, key = jax.random.split(key)
    x = task.images(data_key, x[None])

    def one(i):
        posterior_key, ode_key, weighted_key = jax.random.split(jax.random.fold_in(key, i), 3)
        output = task.encode(variables, posterior_key, x)
        reconstruction = task.vae.reconstruction_loss(output.logits, x)[0]
        normal = [-distributions.standard_normal_log_prob(e) for e in output.eps]
        log_q, finer = _total(output.log_q), normal[task.vae.groups_per_scale :]
        found = {"reconstruction": reconstruction, "normal": reconstruction + log_q + _total(normal)}
        if not isinstance(task, LatentTask):
            return found | {"kl": _by_channel(output.log_q, normal)}
        z = task.latents(output)
        log_prob, info = samplers.likelihood(
            ode_key,
            task.score_fn(variables),
            task.sde,
            z,
            t_min=settings.t_min,
            rtol=settings.rtol,
            atol=settings.atol,
            solver=settings.solver,
            trace=settings.trace,
            probes=settings.probes,
            probing=settings.probing,
            momenta=settings.momenta,
            per_sample=False,
        )
        many = jnp.broadcast_to(z, (settings.draws, *z.shape[1:]))
        losses = lsgm(
            weighted_key,
            task.prior_fn(variables.state["active"]),
            variables.params["prior"],
            task.sde,
            many,
            p=times,
        )
        cross_entropy = jnp.mean(losses.cross_entropy, axis=0, keepdims=True)
        neg_log_p = [*task.vae.decompose_eps(cross_entropy), *finer]
        rest = reconstruction + log_q + _total(finer)
        found |= {"ode": rest - log_prob[0], "weighted": rest + jnp.sum(cross_entropy), "nfe": jnp.squeeze(info.nfe)}
        return found | {"kl": _by_channel(output.log_q, neg_log_p)}

    drawn = jax.lax.map(one, jnp.arange(settings.posterior_samples))
    return jax.tree.map(lambda v: jnp.mean(v.astype(jnp.float32), axis=0), drawn)


def _total(parts) -> Any:
    return sum((jnp.sum(part) for part in parts), jnp.zeros(()))


def _by_channel(log_q, neg_log_p) -> Any:
    """KL of each group and latent channel of one image, (groups, channels)."""
    return jnp.stack([jnp.sum(q + p, axis=(0, 1, 2)) for q, p in zip(log_q, neg_log_p, strict=True)])


def held_out_nelbo(
    task: Any,
    variables: Variables,
    key: Array,
    dataset: Any,
    *,
    num: int,
    batch_size: int,
    settings: NelboSettings,
    mesh: Mesh,
    shardings: PyTree,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Nelbo:
    """The NELBO of `num` images drawn without replacement; the work is split over all devices.

    An image's result depends on the key and on its place in the data, not on the batch size or its batch-mates.

    Args:
        task: a `VAETask` or a `LatentTask`.
        variables: its networks'.
        key: of all that is random but the choice of the images.
        dataset: has `num_examples` and `read`.
        num: how many images; all of the data if it has fewer.
        batch_size: images at a time; rounded up to a multiple of the number of devices.
        settings: how.
        mesh: from `make_mesh`.
        shardings: of the variables.
        seed: which images, when not all are taken.
        progress: told after each batch how many images are done.
    """
    num = min(num, dataset.num_examples)
    everywhere, split = sh.replicated(mesh), sh.batch_sharding(mesh)
    t_min = task.t_min
    times = lsgm_mode(task.sde, "ll_iw", t_min=t_min)

    def batch_of(variables, key, batch):
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        return jax.vmap(lambda key, x: example_nelbo(task, settings, times, variables, key, x))(keys, batch["x"])

    run = jax.jit(batch_of, in_shardings=(shardings, everywhere, split), out_shardings=split)
    each = functools.partial(run, variables, key)
    indices, terms = map_examples(each, dataset, num, batch_size, mesh, seed=seed, progress=progress)
    found = {name: values.astype(np.float64) for name, values in terms.items()}
    return Nelbo(
        indices=indices,
        nelbo={name: found[name] for name in ("normal", "ode", "weighted") if name in found},
        reconstruction=found["reconstruction"],
        kl_per_group=found["kl"].sum(axis=2),
        active_units=int((found["kl"].mean(axis=0) > ACTIVE_NATS).sum()),
        nfe=found.get("nfe", np.zeros(num)),
    )
