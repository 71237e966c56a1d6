"""From a configuration to the pure functions of a run: the process, the network, the loss and the sampler.

The only place where configs meet the library; everything it returns is a function of arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from sgmjax import data, models, objectives, samplers, score, sdes
from sgmjax.training.config import Config, ConfigError
from sgmjax.training.sharding import BATCH_AXES

PyTree = Any


def process(config: Any) -> sdes.SDE:
    """The forward process of an `sde` section.

    Raises:
        ConfigError: settings that make no process (a recipe that is not one, gamma = nu, ...).
    """
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    name = settings.pop("name")
    if name == "recipe":
        schedule = sdes.LinearSchedule(beta_min=settings.pop("beta_min"), beta_max=settings.pop("beta_max"))
        settings = {key: value for key, value in settings.items() if value is not None} | {"schedule": schedule}
    makers = {
        "vp": sdes.vp,
        "subvp": sdes.subvp,
        "ve": sdes.ve,
        "cld": sdes.cld,
        "psld": sdes.psld,
        "third_order": sdes.third_order,
        "recipe": sdes.recipe,
    }
    try:
        return makers[name](**settings)
    except ValueError as error:
        raise ConfigError(f"sde: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is learnt, as pure functions of arrays. Build it with `problem`.

    Attributes:
        config: the run's settings.
        sde: the forward process.
        network: the Flax module; unbound.
        times: draws training times.
        event_shape: shape of one example, (H, W, C) or (D,).
        num_classes: classes the network is conditioned on; None: unconditional.
    """

    config: Config
    sde: sdes.SDE
    network: nn.Module
    times: objectives.TimeSampler
    event_shape: tuple[int, ...]
    num_classes: int | None

    @property
    def is_image(self) -> bool:
        return len(self.event_shape) == 3

    @property
    def centered(self) -> bool:
        return self.config.data.centered

    def init(self, key) -> PyTree:
        """Fresh parameters."""
        x = jnp.zeros((1, *self.event_shape[:-1], self.sde.k * self.event_shape[-1]))
        labels = None if self.num_classes is None else jnp.zeros((1,), jnp.int32)
        return self.network.init(key, x, jnp.ones((1,)), train=False, labels=labels)["params"]

    def eps_fn(self, params: PyTree, *, labels=None, dropout_key=None) -> score.EpsFn:
        """The prediction of the noised variables' eps, eps_fn(z, t). A dropout key means training."""

        def network(x, cond):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            train = dropout_key is not None
            return self.network.apply({"params": params}, x, cond, train=train, labels=labels, rngs=rngs)

        objective = self.config.objective
        return score.eps_from_network(
            network,
            self.sde,
            parameterization=objective.parameterization,
            time_conditioning=objective.time_conditioning,
            matching=objective.matching,
        )

    def score_fn(self, params: PyTree, *, labels=None) -> score.ScoreFn:
        """The score function for samplers, score_fn(z, t) -> (batch, k, *event)."""
        return score.score_from_eps(
            self.eps_fn(params, labels=labels), self.sde, matching=self.config.objective.matching
        )

    def loss_fn(self, params: PyTree, key, batch: dict, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss of a batch {"x": uint8 or float32 (batch, *event), "label": (batch,)}, and metrics (none)."""
        loss_key, dropout_key = jax.random.split(key)
        x0 = data.to_float(batch["x"], self.centered)
        labels = batch["label"] if self.num_classes is not None else None
        eps_fn = self.eps_fn(params, labels=labels, dropout_key=dropout_key if train else None)
        objective = self.config.objective
        losses = objectives.score_matching(
            loss_key,
            eps_fn,
            self.sde,
            x0,
            times=self.times,
            matching=objective.matching,
            weighting=objective.weighting,
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
        label_key, key = jax.random.split(key)
        if self.num_classes is not None and labels is None:
            labels = jax.random.randint(label_key, (num,), 0, self.num_classes)
        return run_sampler(
            self.config.sampling, key, self.score_fn(params, labels=labels), self.sde, (num, *self.event_shape)
        )


def run_sampler(config: Any, key, score_fn: score.ScoreFn, sde: sdes.SDE, shape: tuple[int, ...]):
    """Sample as a `sampling` section says; the batch is split over the current mesh, if there is one."""
    options: dict[str, Any] = {"denoise": config.denoise}
    if config.sampler == "ode":
        options |= {"rtol": config.rtol, "atol": config.atol, "t_min": config.t_min}
    else:
        options["times"] = samplers.time_grid(config.grid, config.steps, t_min=config.t_min, denoise=config.denoise)
    if not jax.sharding.get_abstract_mesh().empty:
        options["sharding"] = PartitionSpec(BATCH_AXES)
    return samplers.SAMPLERS[config.sampler](key, score_fn, sde, shape, **options)


def problem(config: Config, data_shape: tuple[int, ...], num_classes: int | None = None) -> Problem:
    """The functions of a run.

    Args:
        config: the settings.
        data_shape: shape of one example, (H, W, C) for images and (D,) for vectors.
        num_classes: classes of the data, if it has labels.

    Raises:
        ConfigError: settings that cannot work together; one line that names the key and the fix.
    """
    sde = process(config.sde)
    _check(config, sde, num_classes)
    is_image = len(data_shape) == 3
    if is_image and data_shape[0] != data_shape[1]:
        raise ConfigError(f"data: images of {data_shape[0]} x {data_shape[1]}; set data.image_size for square ones")
    channels = data_shape[-1]
    try:
        network = models.build(
            config.model,
            in_channels=sde.k * channels,
            out_channels=sde.num_noised * channels,
            image_size=data_shape[0] if is_image else None,
            centered=config.data.centered,
            dtype=jnp.dtype(config.train.compute_dtype),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    objective = config.objective
    if objective.time_sampling == "uniform":
        times = objectives.uniform(objective.t_min)
    else:
        times = objectives.importance(
            sde, weighting=objective.weighting, matching=objective.matching, t_min=objective.t_min
        )
    return Problem(config, sde, network, times, tuple(data_shape), getattr(config.model, "num_classes", None))


def _check(config: Config, sde: sdes.SDE, num_classes: int | None) -> None:
    """What concerns more than one section."""
    sampling, objective = config.sampling, config.objective
    if sampling.sampler not in samplers.SAMPLERS:
        names = ", ".join(sorted(samplers.SAMPLERS))
        raise ConfigError(f"sampling.sampler: {sampling.sampler!r} is unknown; choose one of {names}")
    try:
        samplers.time_grid(sampling.grid, sampling.steps, t_min=sampling.t_min, denoise=sampling.denoise)
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from None
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
    wanted = getattr(config.model, "num_classes", None)
    if wanted is not None and wanted != num_classes:
        have = "no labels" if num_classes is None else f"{num_classes} classes"
        raise ConfigError(f"model.num_classes: {wanted}, but the data have {have}; set it to {num_classes}")
