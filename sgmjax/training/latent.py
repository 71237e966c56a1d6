"""LSGM as a run: a VAE, then the VAE and a score-based prior in its latent space, trained end to end.

Two stages over the same parameters, {"vae": ..., "prior": {"network": ..., "mixing_logit": ...}}:

    VAEStage       the VAE by its variational bound with a normal prior
    LatentProblem  the VAE by the bound with the score-based prior, and the prior, each by its own objective

The networks carry a state from step to step, {"batch_stats": ..., "spectral": ..., "prior_spectral": ...}: averages of
batch norm and the vectors of spectral regularisation's power iterations. So what evaluation takes as parameters is
{"params": parameters, "state": state}.

The loss of the second stage is a sum of which each part reaches its own parameters only (`sgmjax.objectives.lsgm`), so
that one gradient of it serves both optimisers.

Reference: Vahdat, Kreis & Kautz 2021, algorithms 1 to 3 (app. D), sec. 5 and app. G.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sgmjax import data, models, samplers, score, sdes
from sgmjax.data.binarize import dynamic
from sgmjax.models import distributions, nvae
from sgmjax.models.nvae import regularization, terms
from sgmjax.objectives.lsgm import PriorFn, cross_entropy_constant, lsgm
from sgmjax.objectives.time_law import WeightedLaw, lsgm_mode
from sgmjax.training.config import Config, ConfigError, OptimizerConfig, differences, to_dict
from sgmjax.training.logging import say

PyTree = Any
Metrics = dict[str, jax.Array]

_REMEDIES = (
    "for a VAE also raise vae.spectral_weight or latent.vae_spectral_weight (spectral regularisation), lower the "
    "learning rate in latent.vae_optimizer or latent.vae_finetune, or freeze the VAE with latent.train_vae=False; "
)
_TRAINING_ONLY = ("kl_", "spectral_weight", "remat", "approximate_tails")  # settings of `vae` that no weight depends on


@dataclasses.dataclass(frozen=True, eq=False)
class _Latent:
    """What both stages have in common.

    Attributes:
        config: the run's settings.
        sde: the process of the prior.
        vae: the VAE's module; unbound.
        prior: the prior network's module; unbound.
        event_shape: (H, W, C) of the data.
        steps: of this stage.
        first: steps before it.
    """

    config: Config
    sde: sdes.SDE
    vae: nvae.NVAE
    prior: nn.Module
    event_shape: tuple[int, ...]
    steps: int
    first: int

    is_image = True
    discrete = True
    centered = True
    num_classes = None
    remedies = _REMEDIES

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, channels) of what the prior models."""
        return self.vae.latent_shape

    # ------------------------------------------------------------------------------------------------------- beginning
    def init_with_state(self, key) -> tuple[PyTree, PyTree]:
        """Fresh parameters and the networks' state."""
        vae_key, noise_key, prior_key, spectral_key, prior_spectral_key = jax.random.split(key, 5)
        variables = self.vae.init(vae_key, jnp.zeros((1, *self.event_shape)), noise_key)
        h, w, channels = self.latent_shape
        z = jnp.zeros((1, h, w, self.sde.k * channels))
        network = self.prior.init(prior_key, z, jnp.ones((1,)), train=False)["params"]
        logit = score.initial_mixing_logit(self.sde, channels, init=self.config.latent.mixing_logit_init)
        params = {"vae": variables["params"], "prior": {"network": network, "mixing_logit": logit}}
        state = {
            "batch_stats": variables["batch_stats"],
            "spectral": regularization.init_spectral(spectral_key, params["vae"]),
            "prior_spectral": regularization.init_spectral(prior_spectral_key, network, select=self._select_prior),
            "active": jnp.ones((channels,)),  # latent channels that the prior's network sees
        }
        return params, state

    def init(self, key) -> PyTree:
        """Fresh parameters."""
        return self.init_with_state(key)[0]

    def init_state(self, key) -> PyTree:
        """The networks' state that belongs to `init(key)`."""
        return self.init_with_state(key)[1]

    @property
    def _select_prior(self) -> Callable[[tuple[str, ...]], bool] | None:
        return None if self.config.latent.prior_spectral_convolutions else (lambda path: False)

    def stages(self, steps: int) -> tuple[tuple[int, _Latent], ...]:
        """The parts of a run of so many steps, ((end, problem), ...)."""
        split = self.config.latent.vae_steps
        parts: list[tuple[int, _Latent]] = []
        if split:
            parts.append((split, self._as(VAEStage, steps=split, first=0)))
        if split < steps:
            parts.append((steps, self._as(LatentProblem, steps=steps - split, first=split)))
        return tuple(parts)

    def _as(self, stage: type[_Latent], **changes: Any) -> _Latent:
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(_Latent)}
        return stage(**{**fields, **changes})

    def start_from(self, params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """Fresh parameters and state with the VAE of `latent.vae_from`; as they are without it."""
        path = self.config.latent.vae_from
        if path is None:
            return params, state
        from sgmjax.training.runs import load_run

        weights = jax.device_get(load_run(path).params)
        kept = {name: weights["state"][name] for name in ("batch_stats", "spectral")}
        return {**params, "vae": weights["params"]["vae"]}, {**state, **kept}

    # ------------------------------------------------------------------------------------------------------------- VAE
    def images(self, key, x) -> jax.Array:
        """A batch of the data as the VAE sees it, (batch, H, W, C) float32 in [-1, 1]."""
        if self.config.data.binarize == "dynamic":
            return dynamic(key, x)
        x = data.to_float(x, True)
        bits = self.config.vae.num_bits if self.config.vae is not None else 8
        return x if bits == 8 else 2.0 * distributions.reduce_bits(0.5 * (x + 1.0), bits) - 1.0

    def encode(self, weights: PyTree, key, x) -> nvae.NVAEOutput:
        """Posterior samples and decoder parameters of images in [-1, 1], with the averages of batch norm."""
        return self._apply_vae(self._vae_variables(weights), x, key)

    def decode(self, weights: PyTree, key, z=None, *, num: int | None = None, mean: bool = True) -> jax.Array:
        """Images (batch, H, W, C) in [-1, 1] from latent variables.

        Args:
            weights: {"params", "state"}.
            key: of the variables that z does not have (finer scales, drawn from N(0, I)), and of the pixels.
            z: (batch, *latent_shape); None draws it from N(0, I).
            num: how many, if z is None.
            mean: the output distribution's mean, as published, rather than a draw of every pixel.
        """
        rest_key, pixel_key = jax.random.split(key)
        logits = self._apply_vae(self._vae_variables(weights), z, key=rest_key, batch=num, method=nvae.NVAE.decode)
        if mean:
            return self.vae.mean_image(logits)
        return jnp.clip(self.vae.output_distribution(self.vae.crop(logits)).sample(pixel_key), -1.0, 1.0)

    def reconstruct(self, weights: PyTree, key, x) -> jax.Array:
        """Images in [-1, 1] through the VAE and back: the mean of p(x | eps) for one posterior sample."""
        return self.vae.mean_image(self.encode(weights, key, x).logits)

    def latents(self, output: nvae.NVAEOutput) -> jax.Array:
        """What the prior models, (batch, *latent_shape)."""
        return self.vae.concat_eps_per_scale(output.eps)[0]

    def _apply_vae(self, *args: Any, **kwargs: Any) -> Any:
        return self.vae.apply(*args, **kwargs)

    @staticmethod
    def _vae_variables(weights: PyTree) -> PyTree:
        return {"params": weights["params"]["vae"], "batch_stats": weights["state"]["batch_stats"]}

    def _run_vae(self, params: PyTree, state: PyTree, key, x, train: bool) -> tuple[nvae.NVAEOutput, PyTree]:
        variables = {"params": params["vae"], "batch_stats": state["batch_stats"]}
        if not train:
            return self._apply_vae(variables, x, key), state
        output, new = self._apply_vae(variables, x, key, train=True, mutable=["batch_stats"])
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
    def prior_eps(self, params: PyTree, active, *, dropout_key=None) -> score.EpsFn:
        """The prior's prediction of the noised variables' eps.

        Args:
            params: {"network", "mixing_logit"}.
            active: of the networks' state, (channels,).
            dropout_key: means training.
        """

        def network(x, cond):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            return self.prior.apply({"params": params["network"]}, x, cond, train=dropout_key is not None, rngs=rngs)

        eps_fn = score.eps_from_network(network, self.sde, time_conditioning=self.config.objective.time_conditioning)
        return score.learned_mixed_eps(eps_fn, params["mixing_logit"], self.sde, active=active)

    def prior_fn(self, active, *, dropout_key=None) -> PriorFn:
        """`prior_eps` as a function of its parameters too, as `objectives.lsgm` takes it."""
        return lambda params, z, t: self.prior_eps(params, active, dropout_key=dropout_key)(z, t)

    def weighted_eps(self, weights: PyTree) -> score.EpsFn:
        """`prior_eps` of {"params", "state"}."""
        return self.prior_eps(weights["params"]["prior"], weights["state"]["active"])

    def score_fn(self, weights: PyTree, *, labels=None, guidance: float = 1.0) -> score.ScoreFn:
        """The prior's score, score_fn(z, t) -> (batch, k, *latent_shape)."""
        _refuse_labels(labels)
        if guidance != 1.0:
            raise ValueError(f"guidance: {guidance}, but a latent prior knows no classes; leave it 1")
        return score.score_from_eps(self.weighted_eps(weights), self.sde)


def _refuse_labels(labels: Any) -> None:
    if labels is not None:
        raise ValueError("labels were given to a latent prior, which knows no classes; leave them out")


class VAEStage(_Latent):
    """The first stage: the VAE with a normal prior (Vahdat & Kautz 2020)."""

    @property
    def optimizers(self) -> Mapping[str, OptimizerConfig]:
        """Settings by group of parameters."""
        return {"vae": self.config.latent.vae_optimizer}

    def train_loss(self, params: PyTree, key, batch: dict, context: Any):
        """The loss of a training step; see `sgmjax.training.step.LossFn`."""
        settings = self.config.vae
        assert settings is not None
        coefficient = terms.kl_coefficient(
            context.step.astype(jnp.float32),
            anneal_steps=settings.kl_anneal_portion * self.steps,
            constant_steps=settings.kl_const_portion * self.steps,
            minimum=settings.kl_min,
            maximum=settings.kl_max,
        )
        data_key, noise_key = jax.random.split(key)
        x = self.images(data_key, batch["x"])
        output, state = self._run_vae(params, context.model_state, noise_key, x, True)
        loss, metrics = self._bound(output, x, self._normal_prior(output.eps), coefficient, settings.kl_balance)
        extra, state, more = self._regularization(params, state, settings.spectral_weight)
        return loss + extra, ({**metrics, **more, "kl_coefficient": coefficient}, state)

    def loss_fn(self, weights: PyTree, key, batch: dict, train: bool) -> tuple[jax.Array, Metrics]:
        """The negative bound in nats, and its parts."""
        data_key, noise_key = jax.random.split(key)
        x = self.images(data_key, batch["x"])
        output = self.encode(weights, noise_key, x)
        return self._bound(output, x, self._normal_prior(output.eps), 1.0, "none")

    def sample_fn(self, weights: PyTree, key, num: int, *, labels=None) -> tuple[jax.Array, samplers.SampleInfo]:
        """`num` images by latent variables from N(0, I)."""
        _refuse_labels(labels)
        return self.decode(weights, key, num=num), samplers.SampleInfo(nfe=0, state=None)


class LatentProblem(_Latent):
    """The second stage: the VAE, unless it is frozen, and the score-based prior."""

    @property
    def optimizers(self) -> Mapping[str, OptimizerConfig]:
        """Settings by group of parameters."""
        settings = {"prior": self.config.optimizer}
        return settings | ({"vae": self.config.latent.vae_finetune} if self.config.latent.train_vae else {})

    def begin(self, params: PyTree, state: PyTree, dataset: Any) -> tuple[PyTree, PyTree]:
        """What is done once before the first step: with `latent.drop_inactive`, idle latent channels are left out.

        A channel is idle if its KL from N(0, I), over up to 2,048 images, is below 0.1 nats. The prior of such a one
        stays normal, and the network does not see it.
        """
        if not self.config.latent.drop_inactive:
            return params, state
        weights = {"params": params, "state": state}

        @jax.jit
        def divergence(key, x):
            data_key, posterior_key = jax.random.split(key)
            output = self.encode(weights, posterior_key, self.images(data_key, x))
            groups = terms.normal_prior_terms(output.log_q, output.eps).per_channel[: self.vae.groups_per_scale]
            return jnp.concatenate(groups)

        num, size = min(2048, dataset.num_examples), min(128, dataset.num_examples)
        starts = range(0, num - size + 1, size)
        keys = jax.random.split(jax.random.key(0), len(starts))
        found = [divergence(k, dataset.read(np.arange(s, s + size))["x"]) for k, s in zip(keys, starts, strict=True)]
        active = terms.active_channels(jnp.mean(jnp.stack(found), axis=0))
        logit = score.initial_mixing_logit(
            self.sde, len(active), init=self.config.latent.mixing_logit_init, active=active
        )
        say(f"{int(active.sum())} of {len(active)} latent channels are active")
        prior = {**params["prior"], "mixing_logit": logit}
        return {**params, "prior": prior}, {**state, "active": active.astype(jnp.float32)}

    @property
    def times(self) -> tuple[WeightedLaw, Any]:
        """Weighting and times of the prior's objective, and those of the VAE's (see `objectives.lsgm`)."""
        latent, t_min = self.config.latent, self.config.objective.t_min
        p = lsgm_mode(self.sde, latent.p_weighting, t_min=t_min)
        if not latent.train_vae:
            return p, None
        if latent.q_weighting == "reweight_p_samples":
            return p, latent.q_weighting
        return p, lsgm_mode(self.sde, latent.q_weighting, t_min=t_min)

    def train_loss(self, params: PyTree, key, batch: dict, context: Any):
        """The loss of a training step; see `sgmjax.training.step.LossFn`."""
        latent = self.config.latent
        data_key, noise_key, prior_key, dropout_key = jax.random.split(key, 4)
        x = self.images(data_key, batch["x"])
        output, state = self._run_vae(params, context.model_state, noise_key, x, latent.train_vae)
        p, q = self.times
        losses = lsgm(
            prior_key,
            self.prior_fn(state["active"], dropout_key=dropout_key),
            params["prior"],
            self.sde,
            self.latents(output),
            p=p,
            q=q,
            q_params=context.ema_params["prior"] if latent.q_ema else None,
        )
        p_loss = jnp.mean(losses.p_objective)
        metrics: Metrics = {"prior_loss": p_loss}
        total = p_loss
        if latent.train_vae:
            coefficient = terms.kl_coefficient(
                (context.step - self.first).astype(jnp.float32),
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
        return total, (metrics, state)

    def _neg_log_p(self, cross_entropy, eps) -> list[jax.Array]:
        """What stands for -log p of each group: the prior's cross entropy, and N(0, I) for the finer scales."""
        top = list(self.vae.decompose_eps(cross_entropy))
        return [*top, *self._normal_prior(eps[len(top) :])]

    def loss_fn(self, weights: PyTree, key, batch: dict, train: bool) -> tuple[jax.Array, Metrics]:
        """The negative bound in nats with the cross entropy at drawn times, and its parts."""
        data_key, noise_key, prior_key = jax.random.split(key, 3)
        x = self.images(data_key, batch["x"])
        output = self.encode(weights, noise_key, x)
        times = lsgm_mode(self.sde, "ll_iw", t_min=self.config.objective.t_min)
        losses = lsgm(
            prior_key,
            self.prior_fn(weights["state"]["active"]),
            weights["params"]["prior"],
            self.sde,
            self.latents(output),
            p=times,
        )
        return self._bound(output, x, self._neg_log_p(losses.cross_entropy, output.eps), 1.0, "none")

    def sample_fn(self, weights: PyTree, key, num: int, *, labels=None) -> tuple[jax.Array, samplers.SampleInfo]:
        """`num` images: latent variables by `config.sampling`, then the decoder."""
        _refuse_labels(labels)
        from sgmjax.training.build import run_sampler

        latent_key, decoder_key = jax.random.split(key)
        shape = (num, *self.latent_shape)
        z, info = run_sampler(self.config.sampling, latent_key, self.score_fn(weights), self.sde, shape)
        return self.decode(weights, decoder_key, z), info

    def interpolate(self, weights: PyTree, key, a, b, num: int, **options: Any) -> tuple[jax.Array, Any]:
        """Images between two images: their latent variables encoded by the prior's flow, between them an arc, decoded.

        Args:
            weights: {"params", "state"}.
            key: of the posterior samples and of the variables of finer scales, the same along a row.
            a, b: (batch, H, W, C) in [-1, 1].
            num: images a row.
            options: t_min, rtol, atol of the flow, see `samplers.interpolate`.

        Returns:
            (batch, num, H, W, C), and the score evaluations a row took.
        """
        posterior_key, flow_key, decoder_key = jax.random.split(key, 3)
        z = self.latents(self.encode(weights, posterior_key, jnp.concatenate([a, b])))
        path, nfe = samplers.interpolate(
            flow_key, self.score_fn(weights), self.sde, z[: len(a)], z[len(a) :], num=num, **options
        )
        images = jax.vmap(lambda z: self.decode(weights, decoder_key, z), in_axes=1, out_axes=1)(path)
        return images, nfe


def latent_problem(
    config: Config, sde: sdes.SDE, data_shape: tuple[int, ...], resize: str = "set data.image_size"
) -> _Latent:
    """The problem of a run with a section `vae`: its last stage.

    Args:
        config: the settings.
        sde: the process of the prior.
        data_shape: (H, W, C).
        resize: what can be done about a size that does not fit, for messages.

    Raises:
        ConfigError: settings that cannot work together; one line that names the key and the fix.
    """
    assert config.vae is not None
    if len(data_shape) != 3:
        raise ConfigError(f"vae: needs images, and examples have shape {tuple(data_shape)}; leave the section vae out")
    if data_shape[0] != data_shape[1]:
        raise ConfigError(f"vae: needs square images, and these are {data_shape[0]} x {data_shape[1]}; {resize}")
    if not config.data.centered:
        raise ConfigError("data.centered: a VAE sees images in [-1, 1]; set it to True")
    if config.vae.decoder == "bin" and config.data.binarize == "none" and config.data.name in ("digits", "mnist"):
        raise ConfigError(
            f"vae.decoder: 'bin' is for binary images and {config.data.name} has grey values; set "
            "data.binarize='static', or use vae.decoder='dl' or 'dml'"
        )
    if config.vae.decoder != "bin" and config.data.binarize != "none":
        raise ConfigError(f"data.binarize: binary images need vae.decoder='bin', not '{config.vae.decoder}'")
    if config.objective.t_min == 0 and not (sde.k == 1 and float(sde.initial_variance()) > 0):
        raise ConfigError("objective.t_min: 0 needs a process with sigma2_0 > 0; use 0.01, LSGM's for VP")
    if config.objective.parameterization != "eps" or config.objective.matching != "hsm":
        raise ConfigError("objective: a latent prior predicts eps (its normal part is mixed in) of the hsm kernel")
    if getattr(config.model, "num_classes", None) is not None:
        raise ConfigError("model.num_classes: a latent prior knows no classes; leave it None")
    dtype = jnp.dtype(config.train.compute_dtype)
    try:
        vae = nvae.build_nvae(config.vae, image_size=data_shape[0], channels=data_shape[-1], dtype=dtype)
        side, _, channels = vae.latent_shape
        prior = models.build(
            config.model,
            in_channels=sde.k * channels,
            out_channels=sde.num_noised * channels,
            image_size=side,
            centered=True,
            dtype=dtype,
        )
        for mode in (config.latent.p_weighting, "ll_iw"):
            lsgm_mode(sde, mode, t_min=config.objective.t_min)
        cross_entropy_constant(sde, max(config.objective.t_min, 1e-3))
    except ValueError as error:
        text = str(error)
        if text.startswith("model."):
            text += f" (the prior is for latent variables of {vae.latent_shape})" if "vae" in locals() else ""
        raise ConfigError(text) from None
    _check_vae_from(config)
    whole = VAEStage(
        config=config,
        sde=sde,
        vae=vae,
        prior=prior,
        event_shape=tuple(data_shape),
        steps=config.train.steps,
        first=0,
    )
    return whole.stages(config.train.steps)[-1][1]


def _check_vae_from(config: Config) -> None:
    """That the VAE of `latent.vae_from` has this one's architecture.

    Raises:
        ConfigError: naming the first settings that differ.
    """
    path = config.latent.vae_from
    if path is None:
        return
    from sgmjax.training import workdir

    try:
        there = workdir.read_config(path)
    except workdir.WorkdirError as error:
        raise ConfigError(f"latent.vae_from: {error}") from None
    if there.vae is None:
        raise ConfigError(f"latent.vae_from: the run in {path} has no VAE")
    changed = [
        f"vae.{key}: {old} there, {new} here"
        for key, old, new in differences(to_dict(there.vae), to_dict(config.vae))
        if not key.startswith(_TRAINING_ONLY)
    ]
    if changed:
        raise ConfigError(f"latent.vae_from: the VAE in {path} is another one ({'; '.join(changed[:3])})")


def check_images(config: Config, dataset: Any) -> None:
    """That the data suit the decoder: looks at some of them.

    Raises:
        ConfigError: floats; grey images for a binary decoder.
    """
    if config.vae is None:
        return
    if not dataset.discrete:
        raise ConfigError(f"vae: its decoders are for 8-bit images, and {dataset.name} has floats; give uint8")
    if config.data.binarize == "dynamic":
        return
    some = dataset.read(np.unique(np.linspace(0, dataset.num_examples - 1, 64).astype(int)))["x"]
    try:
        distributions.check_binary(some, config.vae.decoder)
    except ValueError as error:
        raise ConfigError(f"{error} (data.binarize='static')") from None
