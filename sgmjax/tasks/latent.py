"""The second phase of an LSGM: the VAE by the bound with the score-based prior, and the prior, trained end to end.

Reference: Vahdat, Kreis & Kautz 2021, algorithms 1 to 3 (app. D), sec. 5 and app. G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax import samplers, score
from sgmjax._say import say
from sgmjax._types import AnyArray, Key, Labels, Samples
from sgmjax.models.nvae import regularization, terms
from sgmjax.objectives._lsgm import lsgm
from sgmjax.objectives.time_law import WeightedLaw, lsgm_mode
from sgmjax.samplers import plan as plans
from sgmjax.tasks.base import Batch, Metrics, PyTree, Variables
from sgmjax.tasks.vae import LatentModel, refuse_labels


class LatentTask(LatentModel):
    """The second phase: the VAE, unless it is frozen, and the score-based prior."""

    @property
    def time_laws(self) -> tuple[WeightedLaw, Any]:
        """Weighting and times of the prior's objective, and those of the VAE's (see `objectives.lsgm`)."""
        latent, t_min = self.latent, self.t_min
        p = lsgm_mode(self.sde, latent.p_weighting, t_min=t_min)
        if not latent.train_vae:
            return p, None
        if latent.q_weighting == "reweight_p_samples":
            return p, latent.q_weighting
        return p, lsgm_mode(self.sde, latent.q_weighting, t_min=t_min)

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any, ema: PyTree, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """In training the sum of both objectives, else the negative bound in nats; see `Task.loss`.

        Of the sum each part reaches its own parameters only, so that one gradient of it serves both optimisers.
        """
        if not train:
            return self._held_out(variables, key, batch)
        latent, params = self.latent, variables.params
        data_key, noise_key, prior_key, dropout_key = jax.random.split(key, 4)
        x = self.images(data_key, batch["x"])
        output, state = self._run_vae(variables, noise_key, x, latent.train_vae)
        p, q = self.time_laws
        losses = lsgm(
            prior_key,
            self.prior_fn(state["active"], dropout_key=dropout_key),
            params["prior"],
            self.sde,
            self.latents(output),
            p=p,
            q=q,
            q_params=ema["prior"] if latent.q_ema else None,
        )
        p_loss = jnp.mean(losses.p_objective)
        metrics: Metrics = {"prior_loss": p_loss}
        total = p_loss
        if latent.train_vae:
            coefficient = terms.kl_coefficient(
                step.astype(jnp.float32),
                anneal_steps=latent.kl_anneal_portion * self.steps,
                constant_steps=latent.kl_const_portion * self.steps,
                minimum=latent.kl_min,
                maximum=latent.kl_max,
            )
            q_loss, parts = self._bound(
                output, x, self._neg_log_p(losses.cross_entropy, output.eps), coefficient, latent.kl_balance
            )
            extra, state, more = self._regularization(params, state, latent.vae_spectral_weight)
            total = total + q_loss + extra
            metrics |= parts | more | {"kl_coefficient": coefficient}
        if latent.prior_spectral_weight:
            network = params["prior"]["network"]
            norms, spectral = regularization.spectral_norm(network, state["prior_spectral"], select=self._select_prior)
            norms = norms + regularization.norm_gain(network)
            total = total + latent.prior_spectral_weight * norms
            state = {**state, "prior_spectral": spectral}
            metrics |= {"prior_spectral": norms}
        return total, metrics, state

    def _neg_log_p(self, cross_entropy, eps) -> list[jax.Array]:
        """What stands for -log p of each group: the prior's cross entropy, and N(0, I) for the finer scales."""
        top = list(self.vae.decompose_eps(cross_entropy))
        return [*top, *self._normal_prior(eps[len(top) :])]

    def _held_out(self, variables: Variables, key, batch: Batch) -> tuple[jax.Array, Metrics, PyTree]:
        """The negative bound in nats with the cross entropy at drawn times, and its parts."""
        data_key, noise_key, prior_key = jax.random.split(key, 3)
        x = self.images(data_key, batch["x"])
        output = self.encode(variables, noise_key, x)
        losses = lsgm(
            prior_key,
            self.prior_fn(variables.state["active"]),
            variables.params["prior"],
            self.sde,
            self.latents(output),
            p=lsgm_mode(self.sde, "ll_iw", t_min=self.t_min),
        )
        neg_log_p = self._neg_log_p(losses.cross_entropy, output.eps)
        return *self._bound(output, x, neg_log_p, 1.0, "none"), variables.state

    def sample(
        self, variables: Variables, key: Key, num: int, plan: Any, *, labels: Labels | None = None
    ) -> tuple[Samples, samplers.SampleInfo]:
        """`num` images: latent variables by the plan, then the decoder."""
        refuse_labels(labels)
        latent_key, decoder_key = jax.random.split(key)
        shape = (num, *self.latent_shape)
        z, info = plans.draw(plan, latent_key, self.score_fn(variables), self.sde, shape)
        return self.decode(variables, decoder_key, z), info

    def interpolate(
        self,
        variables: Variables,
        key: Key,
        a: Float[AnyArray, "batch H W C"],
        b: Float[AnyArray, "batch H W C"],
        num: int,
        **options: Any,
    ) -> tuple[Float[jax.Array, "batch num H W C"], Any]:
        """Images between two images: their latent variables encoded by the prior's flow, between them an arc, decoded.

        Args:
            variables: of both networks.
            key: of the posterior samples and of the variables of finer scales, the same along a row.
            a, b: (batch, H, W, C) in [-1, 1].
            num: images a row.
            options: t_min, rtol, atol of the flow, see `samplers.interpolate`.

        Returns:
            (batch, num, H, W, C), and the score evaluations a row took.
        """
        posterior_key, flow_key, decoder_key = jax.random.split(key, 3)
        z = self.latents(self.encode(variables, posterior_key, jnp.concatenate([a, b])))
        path, nfe = samplers.interpolate(
            flow_key, self.score_fn(variables), self.sde, z[: len(a)], z[len(a) :], num=num, **options
        )
        images = jax.vmap(lambda z: self.decode(variables, decoder_key, z), in_axes=1, out_axes=1)(path)
        return images, nfe


# ------------------------------------------------------------------------------------------- before the first step
def drop_inactive(task: LatentModel) -> Callable[[Variables, Any, Any], Variables]:
    """How the second phase starts with `latent.drop_inactive`: idle latent channels are left out.

    A channel is idle if its KL from N(0, I), over up to 2,048 images, is below 0.1 nats. The prior of such a one stays
    normal, and the network does not see it.
    """

    def start(variables: Variables, data: Any, key) -> Variables:
        @jax.jit
        def divergence(variables, key, x):
            data_key, posterior_key = jax.random.split(key)
            output = task.encode(variables, posterior_key, task.images(data_key, x))
            groups = terms.normal_prior_terms(output.log_q, output.eps).per_channel[: task.vae.groups_per_scale]
            return jnp.concatenate(groups)

        num, size = min(2048, data.num_examples), min(128, data.num_examples)
        starts = range(0, num - size + 1, size)
        keys = jax.random.split(jax.random.key(0), len(starts))
        found = [
            divergence(variables, k, data.read(np.arange(s, s + size))["x"]) for k, s in zip(keys, starts, strict=True)
        ]
        active = terms.active_channels(jnp.mean(jnp.stack(found), axis=0))
        logit = score.initial_mixing_logit(task.sde, len(active), init=task.latent.mixing_logit_init, active=active)
        say(f"{int(active.sum())} of {len(active)} latent channels are active")
        params, state = variables
        prior = {**params["prior"], "mixing_logit": logit}
        return Variables({**params, "prior": prior}, {**state, "active": active.astype(jnp.float32)})

    return start


def with_vae(vae: Variables) -> Callable[[Variables, Any, Any], Variables]:
    """How a run starts with the VAE of another: its weights, averages of batch norm and power iterations."""

    def start(variables: Variables, data: Any, key) -> Variables:
        kept = {name: vae.state[name] for name in ("batch_stats", "spectral")}
        return Variables({**variables.params, "vae": vae.params["vae"]}, {**variables.state, **kept})

    return start
