"""The VAE of an LSGM, and the first phase of its training: by the variational bound with a normal prior.

The networks carry a state from step to step, {"batch_stats": ..., "spectral": ..., "prior_spectral": ...}: averages of
batch norm and the vectors of spectral regularisation's power iterations. Both phases train the same variables, with
params {"vae": ..., "prior": {"network": ..., "mixing_logit": ...}}.

Reference: Vahdat & Kautz 2020; Vahdat, Kreis & Kautz 2021, sec. 5 and app. G.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Shaped

from sgmjax import objectives, samplers, score, sdes
from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Key, Labels, Samples
from sgmjax.data import to_float
from sgmjax.data.binarize import dynamic
from sgmjax.models import distributions, nvae
from sgmjax.models.nvae import regularization, terms
from sgmjax.objectives._lsgm import PriorFn
from sgmjax.tasks.base import Batch, Metrics, PyTree, Variables

REMEDIES = (
    "for a VAE also raise vae.spectral_weight or latent.vae_spectral_weight (spectral regularisation), lower the "
    "learning rate in latent.vae_optimizer or latent.vae_finetune, or freeze the VAE with latent.train_vae=False; "
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LatentModel:
    """A VAE and the network of a prior in its latent space; what both phases have in common.

    Attributes:
        sde: the process of the prior.
        vae: the VAE's module; unbound.
        prior: the prior network's module; unbound.
        event_shape: (H, W, C) of the data.
        steps: of this phase, over which the KL coefficient is annealed.
        annealing: the settings of section `vae`: kl_*, spectral_weight, num_bits.
        latent: the settings of section `latent`.
        time_conditioning, t_min: of section `objective`.
        binarize: draw binary images from grey ones at every use.
    """

    sde: sdes.SDE
    vae: nvae.NVAE
    prior: nn.Module
    event_shape: tuple[int, ...]
    steps: int
    annealing: Any
    latent: Any
    time_conditioning: score.TimeConditioning = "t"
    t_min: float = 1e-5
    binarize: bool = False

    discrete = True
    centered = True
    num_classes = None
    class_names = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, channels) of what the prior models."""
        return self.vae.latent_shape

    # ------------------------------------------------------------------------------------------------------- beginning
    def init(self, key: Key) -> Variables:
        """Fresh variables."""
        vae_key, noise_key, prior_key, spectral_key, prior_spectral_key = jax.random.split(key, 5)
        variables = self.vae.init(vae_key, jnp.zeros((1, *self.event_shape)), noise_key)
        h, w, channels = self.latent_shape
        z = jnp.zeros((1, h, w, self.sde.k * channels))
        network = self.prior.init(prior_key, z, jnp.ones((1,)), train=False)["params"]
        logit = score.initial_mixing_logit(self.sde, channels, init=self.latent.mixing_logit_init)
        params = {"vae": variables["params"], "prior": {"network": network, "mixing_logit": logit}}
        state = {
            "batch_stats": variables["batch_stats"],
            "spectral": regularization.init_spectral(spectral_key, params["vae"]),
            "prior_spectral": regularization.init_spectral(prior_spectral_key, network, select=self._select_prior),
            "active": jnp.ones((channels,)),  # latent channels that the prior's network sees
        }
        return Variables(params, state)

    @property
    def _select_prior(self) -> Callable[[tuple[str, ...]], bool] | None:
        return None if self.latent.prior_spectral_convolutions else (lambda path: False)

    # ------------------------------------------------------------------------------------------------------------- VAE
    def images(self, key: Key, x: Shaped[AnyArray, "batch H W C"]) -> Float[AnyArray, "batch H W C"]:
        """A batch of the data as the VAE sees it, (batch, H, W, C) float32 in [-1, 1]."""
        if self.binarize:
            return dynamic(key, x)
        x = to_float(x, True)
        bits = self.annealing.num_bits
        return x if bits == 8 else 2.0 * distributions.reduce_bits(0.5 * (x + 1.0), bits) - 1.0

    def encode(self, variables: Variables, key: Key, x: Float[AnyArray, "batch H W C"]) -> nvae.NVAEOutput:
        """Posterior samples and decoder parameters of images in [-1, 1], with the averages of batch norm."""
        return self._apply_vae(self._vae_variables(variables), x, key)

    def decode(
        self,
        variables: Variables,
        key: Key,
        z: Float[AnyArray, "batch h w c"] | None = None,
        *,
        num: int | None = None,
        mean: bool = True,
    ) -> Float[jax.Array, "batch H W C"]:
        """Images (batch, H, W, C) in [-1, 1] from latent variables.

        Args:
            variables: of both networks.
            key: of the variables that z does not have (finer scales, drawn from N(0, I)), and of the pixels.
            z: (batch, *latent_shape); None draws it from N(0, I).
            num: how many, if z is None.
            mean: the output distribution's mean, as published, rather than a draw of every pixel.
        """
        rest_key, pixel_key = jax.random.split(key)
        logits = self._apply_vae(self._vae_variables(variables), z, key=rest_key, batch=num, method=nvae.NVAE.decode)
        if mean:
            return self.vae.mean_image(logits)
        return jnp.clip(self.vae.output_distribution(self.vae.crop(logits)).sample(pixel_key), -1.0, 1.0)

    def reconstruct(
        self, variables: Variables, key: Key, x: Float[AnyArray, "batch H W C"]
    ) -> Float[jax.Array, "batch H W C"]:
        """Images in [-1, 1] through the VAE and back: the mean of p(x | eps) for one posterior sample."""
        return self.vae.mean_image(self.encode(variables, key, x).logits)

    def latents(self, output: nvae.NVAEOutput) -> Float[jax.Array, "batch h w c"]:
        """What the prior models, (batch, *latent_shape)."""
        return self.vae.concat_eps_per_scale(output.eps)[0]

    def _apply_vae(self, *args: Any, **kwargs: Any) -> Any:
        return self.vae.apply(*args, **kwargs)

    @staticmethod
    def _vae_variables(variables: Variables) -> PyTree:
        return {"params": variables.params["vae"], "batch_stats": variables.state["batch_stats"]}

    def _run_vae(self, variables: Variables, key, x, train: bool) -> tuple[nvae.NVAEOutput, PyTree]:
        """The VAE's output and the state after it."""
        state = variables.state
        if not train:
            return self.encode(variables, key, x), state
        output, new = self._apply_vae(self._vae_variables(variables), x, key, train=True, mutable=["batch_stats"])
        return output, {**state, "batch_stats": new["batch_stats"]}

    def _regularization(self, params: PyTree, state: PyTree, weight: Any) -> tuple[jax.Array, PyTree, Metrics]:
        """Spectral and batch-norm regularisation of the VAE."""
        norms, spectral = regularization.spectral_norm(params["vae"], state["spectral"])
        total = norms + regularization.norm_gain(params["vae"])
        return weight * total, {**state, "spectral": spectral}, {"vae_spectral": total}

    def _bound(
        self, output: nvae.NVAEOutput, x, neg_log_p, coefficient: Any, balance: str
    ) -> tuple[jax.Array, Metrics]:
        """The annealed, balanced negative bound, (), and what is reported of it: nats an image."""
        reconstruction = self.vae.reconstruction_loss(output.logits, x)
        kl = terms.kl_terms(output.log_q, neg_log_p)
        groups = (self.vae.groups_per_scale,) * self.vae.num_scales
        alpha = None if balance == "none" else terms.group_weights(groups, balance)
        balanced, _ = terms.balance_kl(kl.per_group, coefficient, alpha)
        metrics = {
            "nelbo": jnp.mean(reconstruction + kl.total),
            "reconstruction": jnp.mean(reconstruction),
            "kl": jnp.mean(kl.total),
            "active_units": kl.active_units.astype(jnp.float32),
        }
        return jnp.mean(reconstruction + balanced), metrics

    def _normal_prior(self, eps) -> list[jax.Array]:
        return [-distributions.standard_normal_log_prob(e) for e in eps]

    # ----------------------------------------------------------------------------------------------------------- prior
    def prior_eps(self, params: PyTree, active: AnyArray | None, *, dropout_key: Key | None = None) -> score.EpsFn:
        """The prior's prediction of the noised variables' eps.

        Args:
            params: {"network", "mixing_logit"}.
            active: of the networks' state, (channels,).
            dropout_key: means training.
        """

        def network(x, cond):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            return self.prior.apply({"params": params["network"]}, x, cond, train=dropout_key is not None, rngs=rngs)

        eps_fn = score.eps_from_network(network, self.sde, time_conditioning=self.time_conditioning)
        return score.learned_mixed_eps(eps_fn, params["mixing_logit"], self.sde, active=active)

    def prior_fn(self, active: AnyArray | None, *, dropout_key: Key | None = None) -> PriorFn:
        """`prior_eps` as a function of its parameters too, as `objectives.lsgm` takes it."""
        return lambda params, z, t: self.prior_eps(params, active, dropout_key=dropout_key)(z, t)

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any, ema: Any, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """Of a phase; see `Task.loss`."""
        raise NotImplementedError

    def eps_fn(self, variables: Variables) -> score.EpsFn:
        """`prior_eps` of the whole."""
        return self.prior_eps(variables.params["prior"], variables.state["active"])

    def score_fn(
        self, variables: Variables, *, labels: Labels | None = None, guidance: float | samplers.Guidance = 1.0
    ) -> score.ScoreFn:
        """The prior's score, score_fn(z, t) -> (batch, k, *latent_shape)."""
        refuse_labels(labels)
        if not samplers.Guidance.of(guidance).is_one:
            raise InputError(f"guidance: {guidance}, but a latent prior knows no classes; leave it 1")
        weighting = self.latent.p_weighting.rpartition("_")[0]
        return score.score_from_eps(self.eps_fn(variables), self.sde, hears=objectives.hears(weighting))


def refuse_labels(labels: Any) -> None:
    """Raise InputError for labels of a model that knows no classes."""
    if labels is not None:
        raise InputError("labels were given to a latent prior, which knows no classes; leave them out")


class VAETask(LatentModel):
    """The first phase: the VAE with a normal prior (Vahdat & Kautz 2020)."""

    def loss(
        self, variables: Variables, key: Key, batch: Batch, *, step: Any, ema: Any = None, train: bool
    ) -> tuple[Float[jax.Array, ""], Metrics, PyTree]:
        """In training the annealed bound with its regularisation, else the negative bound in nats; see `Task.loss`."""
        data_key, noise_key = jax.random.split(key)
        x = self.images(data_key, batch["x"])
        output, state = self._run_vae(variables, noise_key, x, train)
        prior = self._normal_prior(output.eps)
        if not train:
            return *self._bound(output, x, prior, 1.0, "none"), state
        settings = self.annealing
        coefficient = terms.kl_coefficient(
            step.astype(jnp.float32),
            anneal_steps=settings.kl_anneal_portion * self.steps,
            constant_steps=settings.kl_const_portion * self.steps,
            minimum=settings.kl_min,
            maximum=settings.kl_max,
        )
        loss, metrics = self._bound(output, x, prior, coefficient, settings.kl_balance)
        extra, state, more = self._regularization(variables.params, state, settings.spectral_weight)
        return loss + extra, {**metrics, **more, "kl_coefficient": coefficient}, state

    def sample(
        self, variables: Variables, key: Key, num: int, plan: Any = None, *, labels: Labels | None = None
    ) -> tuple[Samples, samplers.SampleInfo]:
        """`num` images by latent variables from N(0, I); a plan has no say in it."""
        refuse_labels(labels)
        return self.decode(variables, key, num=num), samplers.SampleInfo(nfe=0, state=None)
