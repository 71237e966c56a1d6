"""From a configuration to the pure functions of a run: the process, the network, the loss and the sampler.

The only place where configs meet the library; everything it returns is a function of arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from sgmjax import data, models, objectives, samplers, score, sdes
from sgmjax._inputs import InputError, check_labels
from sgmjax.data.dequantize import dequantize
from sgmjax.samplers import registry
from sgmjax.samplers.editing import start_at
from sgmjax.samplers.guidance import cfg_score
from sgmjax.spec import Section
from sgmjax.training.config import Config, ConfigError, SamplingConfig
from sgmjax.training.sharding import BATCH_AXES

PyTree = Any


def process(section: Section) -> sdes.SDE:
    """The forward process of an `sde` section.

    Raises:
        ConfigError: settings that make no process (a recipe that is not one, gamma = nu, ...).
    """
    try:
        return section.build()
    except ValueError as error:
        raise ConfigError(f"sde: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class _Learnt:
    """What score networks and classifiers have in common."""

    config: Config
    sde: sdes.SDE
    network: nn.Module
    times: objectives.Times
    event_shape: tuple[int, ...]
    num_classes: int | None
    discrete: bool = True
    class_names: tuple[str, ...] | None = None

    @property
    def is_image(self) -> bool:
        return len(self.event_shape) == 3

    @property
    def centered(self) -> bool:
        return self.config.data.centered

    def init(self, key) -> PyTree:
        """Fresh parameters."""
        x = jnp.zeros((1, *self.event_shape[:-1], self.sde.k * self.event_shape[-1]))
        conditional = getattr(self.config.model, "num_classes", None) is not None
        labels = jnp.zeros((1,), jnp.int32) if conditional else None
        return self.network.init(key, x, jnp.ones((1,)), train=False, labels=labels)["params"]

    def _apply(self, params: PyTree, dropout_key=None, labels=None) -> score.Network:
        """The network as a function of arrays. A dropout key means training."""

        def network(x, cond):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            train = dropout_key is not None
            return self.network.apply({"params": params}, x, cond, train=train, labels=labels, rngs=rngs)

        return network


class Problem(_Learnt):
    """What is learnt, as pure functions of arrays. Build it with `problem`.

    Attributes:
        config: the run's settings.
        sde: the forward process.
        network: the Flax module; unbound.
        times: draws training times.
        event_shape: shape of one example, (H, W, C) of images, (D,) of vectors, (T, C) of signals, (D, H, W, C).
        num_classes: classes the network is conditioned on; None: unconditional.
        discrete: whether the data are 8-bit levels, else floats; samples are saved as the data are.
        class_names: theirs, or None.
    """

    def eps_fn(self, params: PyTree, *, labels=None, dropout_key=None) -> score.EpsFn:
        """The prediction of the noised variables' eps, eps_fn(z, t).

        Args:
            params: parameters.
            labels: (batch,) classes; in training also `num_classes`, for no class. None: no class for any.
            dropout_key: means training.
        """
        self._check_labels(labels, hidden=dropout_key is not None)
        objective = self.config.objective
        return score.eps_from_network(
            self._apply(params, dropout_key, labels),
            self.sde,
            parameterization=objective.parameterization,
            time_conditioning=objective.time_conditioning,
            num_levels=objective.num_levels,
            matching=objective.matching,
        )

    def _check_labels(self, labels, length: int | None = None, *, hidden: bool = False) -> None:
        """Raise InputError unless labels are classes that the network knows, or its "no class" where `hidden`."""
        if labels is not None and self.num_classes is None:
            raise InputError("labels were given to a network without classes; set model.num_classes")
        if labels is not None:
            assert self.num_classes is not None
            check_labels(labels, self.num_classes + hidden, length=length)

    def score_fn(self, params: PyTree, *, labels=None, guidance: float = 1.0) -> score.ScoreFn:
        """The score function for samplers, score_fn(z, t) -> (batch, k, *event).

        Args:
            params: parameters.
            labels: (batch,) classes; None: the score of all classes together, or of a network without classes.
            guidance: strength of classifier-free guidance, see `samplers.guidance.cfg_score`. 1, plain conditioning,
                evaluates the network once a call, any other strength twice.
        """

        self._check_labels(labels)

        def one(labels):
            return score.score_from_eps(
                self.eps_fn(params, labels=labels), self.sde, matching=self.config.objective.matching
            )

        if labels is None or guidance == 1.0:
            return one(labels)
        return cfg_score(one(labels), one(None), guidance)

    def loss_fn(self, params: PyTree, key, batch: dict, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss of a batch {"x": uint8 or float32 (batch, *event), "label": (batch,)}, and metrics (none)."""
        objective = self.config.objective
        loss_key, dropout_key = jax.random.split(key)
        if self.config.data.uniform_dequantization:
            loss_key, noise_key = jax.random.split(loss_key)
            x0 = dequantize(noise_key, batch["x"], centered=self.centered)
        else:
            x0 = data.to_float(batch["x"], self.centered)
        labels = batch["label"] if self.num_classes is not None else None
        self._check_labels(labels)
        if labels is not None and train and objective.label_dropout:
            hide_key, dropout_key = jax.random.split(dropout_key)
            hidden = jax.random.bernoulli(hide_key, objective.label_dropout, labels.shape)
            assert self.num_classes is not None
            labels = jnp.where(hidden, self.num_classes, labels)  # the networks' index of "no class"
        eps_fn = self.eps_fn(params, labels=labels, dropout_key=dropout_key if train else None)
        losses = objectives.score_matching(
            loss_key,
            eps_fn,
            self.sde,
            x0,
            times=self.times,
            matching=objective.matching,
            weighting=objective.weighting,
            anneal_power=objective.anneal_power,
            reduce=objective.reduce,
        )
        return jnp.mean(losses), {}

    def sample_fn(self, params: PyTree, key, num: int, *, labels=None) -> tuple[jax.Array, samplers.SampleInfo]:
        """`num` samples (num, *event) in the network's range, by `config.sampling`.

        Args:
            params: parameters.
            key: typed PRNG key.
            num: how many; static.
            labels: (num,) classes; None draws them uniformly for a class-conditional network.
        """
        self._check_labels(labels, length=num)
        label_key, key = jax.random.split(key)
        if self.num_classes is not None and labels is None:
            labels = jax.random.randint(label_key, (num,), 0, self.num_classes)
        return run_sampler(
            self.config.sampling, key, self.score_fn(params, labels=labels), self.sde, (num, *self.event_shape)
        )


class Classifier(_Learnt):
    """A classifier of noised data, for guidance. Attributes as of `Problem`; `num_classes` is what it tells apart.

    It has no `sample_fn`.
    """

    def logits_fn(self, params: PyTree, *, dropout_key=None):
        """logits_fn(z, t) -> (batch, classes), t the forward time. A dropout key means training."""
        network = self._apply(params, dropout_key)

        def logits(z, t):
            objective = self.config.objective
            cond = score.condition(self.sde, t, objective.time_conditioning, objective.num_levels)
            return network(score.to_channels(z), cond).astype(z.dtype)

        return logits

    def loss_fn(self, params: PyTree, key, batch: dict, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross entropy of a batch, in nats, and the accuracy; as `Problem.loss_fn`."""
        loss_key, dropout_key = jax.random.split(key)
        losses, right = objectives.classifier(
            loss_key,
            self.logits_fn(params, dropout_key=dropout_key if train else None),
            self.sde,
            data.to_float(batch["x"], self.centered),
            batch["label"],
            times=self.times,
            matching=self.config.objective.matching,
        )
        return jnp.mean(losses), {"accuracy": jnp.mean(right.astype(jnp.float32))}

    def accuracy(self, params: PyTree, key, batch: dict, t) -> jax.Array:
        """Share of a batch that is classified rightly when noised to time t, a number: ()."""
        x0 = data.to_float(batch["x"], self.centered)
        eps = jax.random.normal(key, (x0.shape[0], self.sde.k, *x0.shape[1:]))
        time = jnp.full(x0.shape[:1], t, x0.dtype)
        z0, labels = self.sde.augment(x0), batch["label"]
        _, right = objectives.classifier_loss(self.logits_fn(params), self.sde, z0, labels, time, eps)
        return jnp.mean(right.astype(jnp.float32))


def run_sampler(
    config: SamplingConfig,
    key,
    score_fn: score.ScoreFn,
    sde: sdes.SDE,
    shape: tuple[int, ...],
    *,
    start: float = 1.0,
    sampler: Callable[..., Any] | None = None,
    **control,
):
    """Sample as a `sampling` section says; the batch is split over the current mesh, if there is one.

    Args:
        config: the section.
        key, score_fn, sde, shape: the samplers' contract.
        start: time at which the grid starts (with an `initial` state of that time); 1 for adaptive samplers.
        sampler: a function that takes the settings of the section's sampler; None: that sampler.
        control: `initial` and, for samplers on a grid, `constraint`.
    """
    options: dict[str, Any] = {"denoise": config.denoise, **config.options}
    if registry.is_adaptive(config.sampler):
        tolerances = {"rtol": config.rtol, "atol": config.atol}
        options |= {"t_min": config.t_min, **{k: v for k, v in tolerances.items() if v is not None}}
    else:
        times, more = sampling_times(config, sde)
        options |= {"times": times if start == 1.0 else start_at(times, start), **more}
    if not jax.sharding.get_abstract_mesh().empty:
        options["sharding"] = PartitionSpec(BATCH_AXES)
    return (sampler or samplers.SAMPLERS[config.sampler])(key, score_fn, sde, shape, **options, **control)


def sampling_times(config: SamplingConfig, sde: sdes.SDE):
    """The time grid of a sampler with a budget of `config.steps` evaluations, and what else it must then be given.

    Raises:
        ValueError: a grid that cannot be.
    """
    evaluations = registry.evaluations_per_step(config.sampler, config.options)
    if config.grid == "score_sde":
        if config.sampler != "pc":
            raise ValueError("grid 'score_sde' is for sampler 'pc'")
        num_scales = config.options.get("num_scales") or config.steps // evaluations
        return samplers.score_sde_times(num_scales, t_min=config.t_min), {"num_scales": num_scales}
    last = bool(config.denoise) and config.denoise != "x_mean"  # which takes no evaluation of its own
    annealed = config.sampler == "annealed_langevin"  # which takes its steps at the last time too
    nfe = config.steps
    if annealed or config.grid == "levels":
        spans = (config.steps - last) // evaluations - annealed
        if spans < 1:
            least = (1 + annealed) * evaluations + last
            raise ValueError(f"steps = {config.steps}: at least {least} evaluations are needed for two noise levels")
        if config.grid == "levels":
            if not isinstance(sde, sdes.VE):
                raise ValueError("grid 'levels' ends at VE's sigma_min: for sde.name 've'; others have 'logsnr'")
            return sdes.level_times(spans + 1), {}
        nfe, evaluations = spans + last, 1
    times = samplers.time_grid(
        config.grid, nfe, t_min=config.t_min, denoise=last, evaluations=evaluations, sde=sde, rho=config.rho,
        power=config.power,
    )  # fmt: skip
    return times, {}


def problem(
    config: Config,
    data_shape: tuple[int, ...],
    num_classes: int | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    discrete: bool | None = None,
    resizable: bool = True,
) -> Any:
    """The functions of a run: a `Problem`, a `Classifier` where the model is one, `latent.LatentProblem` with a VAE.

    Args:
        config: the settings.
        data_shape: shape of one example, as of `Problem.event_shape`.
        num_classes: classes of the data, if it has labels.
        class_names: theirs, if they are known.
        discrete: whether the data are uint8; None: as images mostly are, and other data not.
        resizable: whether data.image_size is a setting of these data, for messages.

    Raises:
        ConfigError: settings that cannot work together; one line that names the key and the fix.
    """
    sde = process(config.sde)
    _check(config, sde, num_classes)
    resize = "set data.image_size" if resizable and len(data_shape) == 3 else "give data of another size"
    if config.vae is not None:
        from sgmjax.training.latent import latent_problem

        return latent_problem(config, sde, data_shape, resize)
    discrete = len(data_shape) == 3 if discrete is None else discrete
    if config.data.uniform_dequantization and not discrete:
        raise ConfigError(
            "data.uniform_dequantization: is of 8-bit data; the data are floats, whose density needs none"
        )
    channels = data_shape[-1]
    classifies = models.classifies(config.model)
    try:
        network = models.build(
            config.model,
            in_channels=sde.k * channels,
            out_channels=(num_classes or 0) if classifies else sde.num_noised * channels,
            image_size=tuple(data_shape[:-1]),
            resize=resize,
            centered=config.data.centered,
            dtype=jnp.dtype(config.train.compute_dtype),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    objective = config.objective
    if objective.time_sampling == "uniform":
        times = objectives.uniform(objective.t_min)
    elif objective.time_sampling == "levels":
        assert objective.num_levels is not None
        times = objectives.levels(objective.num_levels)
    else:
        times = objectives.importance(
            sde, weighting=objective.weighting, matching=objective.matching, t_min=objective.t_min,
            anneal_power=objective.anneal_power,
        )  # fmt: skip
    if classifies:
        return Classifier(config, sde, network, times, tuple(data_shape), num_classes, discrete, class_names)
    conditional = getattr(config.model, "num_classes", None)
    names = None if conditional is None else class_names
    return Problem(config, sde, network, times, tuple(data_shape), conditional, discrete, names)


def _check(config: Config, sde: sdes.SDE, num_classes: int | None) -> None:
    """What concerns more than one section."""
    sampling, objective = config.sampling, config.objective
    check_sampling(sampling, sde)
    if sde.frame is not None and (objective.parameterization == "mixed" or objective.weighting == "reweightedv1"):
        raise ConfigError(
            "objective: mixed scores and reweightedv1 need the noised variables to come last in the process; "
            "use parameterization 'eps' and weighting 'simple' or 'likelihood'"
        )
    if objective.time_conditioning == "sigma" and config.sde.name != "ve":
        raise ConfigError("objective.time_conditioning: 'sigma' is for sde.name 've'; use 't' or 't999'")
    if getattr(config.model, "scale_by_sigma", False) and objective.time_conditioning != "sigma":
        raise ConfigError("model.scale_by_sigma: divides by the network's time input; set time_conditioning 'sigma'")
    if getattr(config.model, "scale_by_sigma", False) and getattr(config.model, "embedding_type", "") == "positional":
        raise ConfigError(
            "model.scale_by_sigma: with a positional embedding the network takes an index into discrete noise levels, "
            "and training is in continuous time; use embedding_type 'fourier'"
        )
    _check_levels(config, sde)
    wanted = getattr(config.model, "num_classes", None)
    if wanted is not None and wanted != num_classes:
        have = "no labels" if num_classes is None else f"{num_classes} classes"
        raise ConfigError(f"model.num_classes: {wanted}, but the data have {have}; set it to {num_classes}")
    if objective.label_dropout and wanted is None:
        raise ConfigError("objective.label_dropout: the network knows no classes; set model.num_classes, or leave it 0")
    if models.classifies(config.model) and num_classes is None:
        raise ConfigError("model.name: a classifier needs data with labels; choose data that have classes")


def _check_levels(config: Config, sde: sdes.SDE) -> None:
    """The settings of NCSN and NCSNv2: discrete noise levels, and networks that are told which."""
    objective, sampling, model = config.objective, config.sampling, config.model
    levels = objective.num_levels
    if objective.weighting == "annealed" and sde.k > 1:
        raise ConfigError("objective.weighting: 'annealed' needs one noise level, so sde.name vp, subvp or ve")
    if levels is not None and levels < 2:
        raise ConfigError(f"objective.num_levels: {levels}, but annealing needs at least two noise levels")
    if objective.time_sampling == "levels":
        if config.sde.name != "ve":
            raise ConfigError("objective.time_sampling: 'levels' are those of sde.name 've'; use 'uniform'")
        if levels is None:
            raise ConfigError(
                "objective.num_levels: time_sampling 'levels' needs their number; `python -m sgmjax.noise_levels` "
                "recommends one"
            )
    if objective.time_conditioning == "level" and objective.time_sampling != "levels":
        raise ConfigError("objective.time_conditioning: 'level' is for discrete levels; set time_sampling 'levels'")
    if model.name == "ncsn" and (objective.time_conditioning != "level" or model.num_levels != levels):
        raise ConfigError(
            "model.name: 'ncsn' has parameters for each noise level: set objective.time_conditioning 'level' and "
            f"objective.num_levels to model.num_levels={model.num_levels}, not {levels}"
        )
    scores = model.name == "ncsn" or (model.name == "ncsnv2" and model.scale_by_sigma)
    if scores and objective.parameterization != "score":
        raise ConfigError(f"objective.parameterization: the output of {model.name!r} is the score; use 'score'")
    if objective.time_conditioning == "level" and sampling.sampler == "annealed_langevin":
        assert levels is not None
        each = registry.evaluations_per_step(sampling.sampler, sampling.options)
        if sampling.grid != "levels" or (sampling.steps - bool(sampling.denoise)) // each != levels:
            raise ConfigError(
                f"sampling.steps: the network knows {levels} noise levels, so with {each} steps at each use "
                f"{levels * each + bool(sampling.denoise)} and grid 'levels'"
            )


def check_sampling(sampling: SamplingConfig, sde: sdes.SDE) -> None:
    """That the sampler exists, has these settings and works for this process: it is traced once, on two numbers.

    Raises:
        ConfigError: one line that names the setting.
    """
    if sampling.sampler not in samplers.SAMPLERS:
        names = ", ".join(sorted(samplers.SAMPLERS))
        raise ConfigError(f"sampling.sampler: {sampling.sampler!r} is unknown; choose one of {names}")
    known = registry.settings(sampling.sampler)
    for name in sampling.options:
        if name not in known:
            have = f"there are {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"sampling.options.{name}: sampler {sampling.sampler!r} has no such setting; {have}")

    def run(key):
        return run_sampler(sampling, key, lambda z, t: jnp.zeros_like(z), sde, (2, 1))[0]

    try:
        with jax.debug_key_reuse(False):  # nothing is drawn
            jax.eval_shape(run, jax.random.key(0))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"sampling: {error}") from None
