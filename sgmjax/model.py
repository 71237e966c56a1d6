"""A score model: process, network, parameterisation, loss and law of noise in one value, so that they cannot disagree.

    model = ScoreModel(sde, network, parameterization="mixed")
    loss = model.loss(params, key, x0)
    samples, info = model.sample(params, key, (64, 2), sampler="sscs", nfe=50)

`ScoreModel` predicts the noise of one process; `DenoiserModel` denoises ordinary images, C channels in and out, and so
has the score of every process. Both sample as any: `model.as_process(sdes.cld())`.

What a notebook holds; the tasks of `sgmjax.tasks` are built on it. Each part is a function of its own elsewhere
(`sgmjax.score`, `sgmjax.preconditioning`, `sgmjax.objectives`, `sgmjax.samplers`), for whoever wants to combine them
otherwise.
"""

from __future__ import annotations

import abc
import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Real

from sgmjax import models, objectives, preconditioning, samplers, score, sdes
from sgmjax._inputs import InputError, shown
from sgmjax._types import AnyArray, Data, Key, Labels, PerExample, Samples, Shape
from sgmjax.objectives.sigma_law import check_sigma_law
from sgmjax.objectives.time_law import check_time_law
from sgmjax.objectives.weighting import Reduce, check_reduce
from sgmjax.samplers import plan as plans
from sgmjax.samplers.grids import host_noise_level
from sgmjax.samplers.guidance import Guidance, cfg_score
from sgmjax.sdes import linalg
from sgmjax.sdes.base import Matching
from sgmjax.spec import Settings

PyTree = Any


def _check_process(what: str, sde: Any) -> None:
    if not isinstance(sde, sdes.SDE):
        raise InputError(f"{what}: expected a process, sdes.psld() say, got {shown(repr(sde))}")


def _check_told(network: Any, time_conditioning: str, num_levels: int | None) -> None:
    """Raise InputError where a network takes another time than it is told."""
    levels = getattr(network, "num_levels", None)
    if levels is not None and (time_conditioning, num_levels) != ("level", levels):
        raise InputError(
            f"network: takes the index of one of its {levels} noise levels; set time_conditioning='level' and "
            f"num_levels={levels}"
        )
    if getattr(network, "scale_by_sigma", False) and time_conditioning != "sigma":
        raise InputError(
            "network: divides its output by its time input, which must be the sigma of a VE process; set "
            "time_conditioning='sigma', or scale_by_sigma=False for other processes"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkModel(abc.ABC):
    """What the two kinds of models share: a network, a process, and what follows from them.

    Attributes:
        sde: the process that samples are drawn with.
        network: a Flax module (or its bound `apply`), called as `network(x, cond, train=..., labels=...)`; or a
            function `(params, x, cond) -> out`, which also takes `labels=` where labels are given.
    """

    sde: sdes.SDE
    network: Any
    _: dataclasses.KW_ONLY

    def __post_init__(self):
        owner = getattr(self.network, "__self__", None)
        if isinstance(owner, nn.Module):  # module.apply
            object.__setattr__(self, "network", owner)
        if not callable(self.network):
            raise InputError(f"network: expected a Flax module or a function (params, x, cond), got {self.network!r}")
        _check_process("sde", self.sde)

    @property
    @abc.abstractmethod
    def in_variables(self) -> int:
        """How many variables the network sees side by side, each of the data's channels."""

    @property
    @abc.abstractmethod
    def sigma_range(self) -> tuple[float, float] | None:
        """The noise levels that the network was trained on; None: those of the process it samples with."""

    @abc.abstractmethod
    def as_process(self, sde: sdes.SDE) -> NetworkModel:
        """The same network, sampling, scoring and measuring likelihoods with another process: see `sdes.estimate`."""

    @abc.abstractmethod
    def losses(
        self, params: PyTree, key: Key, x0: Data, *, labels: Labels | None = None, dropout_key: Key | None = None
    ) -> PerExample:
        """The loss of each example, (batch,), weights of times or noise levels included.

        Args:
            params: parameters.
            key: of the times and the noise.
            x0: (batch, *event) float data, images in [-1, 1].
            labels: (batch,) classes, or `num_classes` for none of them; None: no class for any.
            dropout_key: means training.
        """

    @abc.abstractmethod
    def _score_fn(self, params: PyTree, labels: Labels | None) -> score.ScoreFn:
        """The score function for these labels."""

    def init(self, key: Key, event_shape: Shape, *, labels: bool = False) -> PyTree:
        """Fresh parameters of a Flax network.

        Args:
            key: typed PRNG key.
            event_shape: of one example, channels last.
            labels: whether the network knows classes.

        Raises:
            ValueError: the network is a function, whose parameters only its author can make.
        """
        if not isinstance(self.network, nn.Module):
            raise InputError("network: is a function; make its parameters where it was made")
        x = jnp.zeros((1, *event_shape[:-1], self.in_variables * event_shape[-1]))
        return self.network.init(
            key, x, jnp.ones((1,)), train=False, labels=jnp.zeros((1,), jnp.int32) if labels else None
        )["params"]

    def apply(
        self,
        params: PyTree,
        x: Real[AnyArray, "batch *space channels"],
        cond: Real[AnyArray, " batch"],
        *,
        labels: Labels | None = None,
        dropout_key: Key | None = None,
    ) -> Real[jax.Array, "batch *space out"]:
        """The network's output. A dropout key means training."""
        labels = None if labels is None else jnp.asarray(labels)
        if not isinstance(self.network, nn.Module):
            return self.network(params, x, cond, **({} if labels is None else {"labels": labels}))
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None
        out: Any = self.network.apply({"params": params}, x, cond, train=train, labels=labels, rngs=rngs)
        return out

    def score_fn(
        self, params: PyTree, *, labels: Labels | None = None, guidance: float | Guidance = 1.0
    ) -> score.ScoreFn:
        """The score function for samplers, score_fn(z, t) -> (batch, k, *event).

        Args:
            params: parameters.
            labels: (batch,) classes; None: the score of all classes together, or of a network without classes.
            guidance: strength of classifier-free guidance, or a `samplers.Guidance`, see `samplers.cfg_score`. 1, plain
                conditioning, evaluates the network once a call, any other strength twice.

        Raises:
            InputError: guidance without labels.
        """
        if Guidance.of(guidance).is_one:
            return self._score_fn(params, labels)
        if labels is None:
            raise InputError("guidance: towards which classes? give labels, or leave it 1")
        return cfg_score(self._score_fn(params, labels), self._score_fn(params, None), guidance, sde=self.sde)

    def loss(
        self, params: PyTree, key: Key, x0: Data, *, labels: Labels | None = None, train: bool = True
    ) -> Float[jax.Array, ""]:
        """The mean of `losses`, (); with dropout if `train`."""
        loss_key, dropout_key = jax.random.split(key)
        losses = self.losses(params, loss_key, x0, labels=labels, dropout_key=dropout_key if train else None)
        return jnp.mean(losses)

    def sample(
        self,
        params: PyTree,
        key: Key,
        shape: Shape,
        *,
        sampler: str = "sscs",
        nfe: int = 50,
        labels: Labels | None = None,
        guidance: float | Guidance = 1.0,
        options: dict[str, Any] | None = None,
        **plan: Any,
    ) -> tuple[Samples, samplers.SampleInfo]:
        """Samples of shape (num, *event).

        Args:
            params: parameters.
            key: typed PRNG key.
            shape: of the samples.
            sampler: a name of `sgmjax.samplers.SAMPLERS`.
            nfe: network evaluations a sample, the denoising one included; adaptive samplers take what they need.
            labels, guidance: as of `score_fn`.
            options: the sampler's own settings, {"snr": 0.16}.
            plan: what else `samplers.Plan` has: grid, t_min, denoise, rtol, ...

        Raises:
            InputError: a sampler or a setting that there is not, or that does not work for this process.
        """
        chosen = plans.Plan(sampler=sampler, steps=nfe, options=Settings(options or {}), **plan)
        plans.check(chosen, self.sde, "sample")
        self.check_range(chosen.t_min)
        return plans.draw(chosen, key, self.score_fn(params, labels=labels, guidance=guidance), self.sde, shape)

    def check_range(self, t_min: float) -> None:
        """Warns if the process, from t_min to 1, has noise levels that the network was not trained on; names both."""
        if self.sigma_range is None or not linalg.is_concrete(self.sde, t_min):
            return
        (low, high), (first, last) = self.sigma_range, host_noise_level(self.sde, np.asarray([t_min, 1.0]))
        if first < low * (1 - 1e-4) or last > high * (1 + 1e-4):
            warnings.warn(
                f"the process has noise levels sigma from {first:.3g} (t = {t_min:g}) to {last:.3g} (t = 1), and the "
                f"network was trained on {low:.3g} to {high:.3g}: beyond these it is asked for what it has not learnt",
                stacklevel=3,
            )


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreModel(NetworkModel):
    """A network that predicts the noise of a process, in one of the parameterisations.

    Attributes:
        sde: the process that samples are drawn with; that of the training, unless `trained_as` is given.
        network: a Flax module (or its bound `apply`), called as `network(x, cond, train=..., labels=...)`; or a
            function `(params, x, cond) -> out`, which also takes `labels=` where labels are given. x is
            (batch, *space, k C) with the phase variables side by side, cond the network's time (batch,), out
            (batch, *space, r C) for the r noised variables.
        parameterization, time_conditioning, num_levels: what the network's output and its time are, see
            `score.eps_from_network`.
        matching: the kernel that it is trained with and sampled with.
        weighting, reduce, anneal_power: of the loss, see `objectives.score_matching`.
        time_law: draws the training times; None: uniform on [1e-5, 1].
        trained_as: the process whose noise the network predicts; None: `sde`. Where it is another, the network is read
            as a denoiser (`score.denoiser`), and that as the score of `sde` (`score.from_denoiser`).

    Raises:
        ValueError: parts that do not fit one another.
    """

    parameterization: score.Parameterization = "eps"
    time_conditioning: score.TimeConditioning = "t"
    num_levels: int | None = None
    matching: Matching = "hsm"
    weighting: str = "simple"
    reduce: Reduce = "mean"
    anneal_power: float = 2.0
    time_law: Any = None
    trained_as: sdes.SDE | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.time_law is None:
            object.__setattr__(self, "time_law", objectives.uniform())
        if self.trained_as is not None:
            _check_process("trained_as", self.trained_as)
        check_time_law(self.time_law)
        objectives.hears(self.weighting)
        check_reduce(self.reduce)
        _check_told(self.network, self.time_conditioning, self.num_levels)
        self.eps_fn(None)  # says what does not fit, before anything is traced

    @property
    def _own(self) -> sdes.SDE:
        """The process of the training."""
        return self.sde if self.trained_as is None else self.trained_as

    @property
    def in_variables(self) -> int:
        return self._own.k

    @property
    def sigma_range(self) -> tuple[float, float] | None:
        if self.trained_as is None:
            return None
        return objectives.of_process(self.trained_as, self.time_law).range

    def as_process(self, sde: sdes.SDE) -> ScoreModel:
        return dataclasses.replace(self, sde=sde, trained_as=self._own)

    def eps_fn(self, params: PyTree, *, labels: Labels | None = None, dropout_key: Key | None = None) -> score.EpsFn:
        """The prediction of the noised variables' eps of the process of the training, (z, t) -> (batch, r, *event).

        Args:
            params: parameters.
            labels: (batch,) classes, or `num_classes` for none of them; None: no class for any.
            dropout_key: means training.
        """
        return score.eps_from_network(
            lambda x, cond: self.apply(params, x, cond, labels=labels, dropout_key=dropout_key),
            self._own,
            parameterization=self.parameterization,
            time_conditioning=self.time_conditioning,
            num_levels=self.num_levels,
            matching=self.matching,
        )

    def _score_fn(self, params: PyTree, labels: Labels | None) -> score.ScoreFn:
        own = score.score_from_eps(
            self.eps_fn(params, labels=labels),
            self._own,
            matching=self.matching,
            hears=objectives.hears(self.weighting),
        )
        return own if self.trained_as is None else score.from_denoiser(score.denoiser(own, self._own), self.sde)

    def losses(
        self, params: PyTree, key: Key, x0: Data, *, labels: Labels | None = None, dropout_key: Key | None = None
    ) -> PerExample:
        return objectives.score_matching(
            key,
            self.eps_fn(params, labels=labels, dropout_key=dropout_key),
            self._own,
            x0,
            time_law=self.time_law,
            matching=self.matching,
            weighting=self.weighting,
            anneal_power=self.anneal_power,
            reduce=self.reduce,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DenoiserModel(NetworkModel):
    """A network that denoises x_0 + sigma n, and by that has the score of every linear process.

    Attributes:
        sde: the process that samples are drawn with; training knows none.
        network: as of `ScoreModel`, but x and out are (batch, *space, C), C the channels of the data.
        parameterization, time_conditioning, sigma_data: what the network's output and its time are, see
            `preconditioning`. time_conditioning None: "log_sigma", or "sigma" for a network that takes the logarithm
            itself (`models.takes_log`).
        sigma_law: draws the noise levels of the training.
        reduce: of the loss over the event.

    Raises:
        ValueError: parts that do not fit one another.

    Reference: Karras et al. 2022 ("edm").
    """

    parameterization: preconditioning.Prediction = "edm"
    time_conditioning: preconditioning.SigmaConditioning | None = None
    sigma_data: float = 0.5
    sigma_law: objectives.SigmaLaw = dataclasses.field(default_factory=objectives.log_normal)
    reduce: Reduce = "mean"

    def __post_init__(self):
        super().__post_init__()
        check_sigma_law(self.sigma_law)
        check_reduce(self.reduce)
        if getattr(self.network, "scale_by_sigma", False) or getattr(self.network, "num_levels", None) is not None:
            raise InputError(
                "network: takes the index of a noise level, or divides its output by sigma (scale_by_sigma), and a "
                "denoiser is told sigma and scaled by its parameterization; take another, or scale_by_sigma=False"
            )
        takes_log = models.takes_log(self.network)
        if self.time_conditioning is None:
            object.__setattr__(self, "time_conditioning", "sigma" if takes_log else "log_sigma")
        elif self.time_conditioning == "log_sigma" and takes_log:
            raise InputError(
                "time_conditioning: the network takes the logarithm of its time itself, and that of 'log_sigma' is no "
                "number where sigma < 1; use 'sigma', or leave it out"
            )
        self.denoiser(None)  # says what does not fit, before anything is traced

    @property
    def in_variables(self) -> int:
        return 1

    @property
    def sigma_range(self) -> tuple[float, float] | None:
        return self.sigma_law.range

    def as_process(self, sde: sdes.SDE) -> DenoiserModel:
        return dataclasses.replace(self, sde=sde)

    def denoiser(
        self, params: PyTree, *, labels: Labels | None = None, dropout_key: Key | None = None
    ) -> sdes.Denoiser:
        """D(y; sigma). Arguments as of `losses`."""
        assert self.time_conditioning is not None  # once it is made
        return preconditioning.denoiser_from_network(
            lambda x, cond: self.apply(params, x, cond, labels=labels, dropout_key=dropout_key),
            parameterization=self.parameterization,
            time_conditioning=self.time_conditioning,
            sigma_data=self.sigma_data,
        )

    def _score_fn(self, params: PyTree, labels: Labels | None) -> score.ScoreFn:
        return score.from_denoiser(self.denoiser(params, labels=labels), self.sde)

    def losses(
        self, params: PyTree, key: Key, x0: Data, *, labels: Labels | None = None, dropout_key: Key | None = None
    ) -> PerExample:
        def weight(sigma):
            return preconditioning.scales(self.parameterization, sigma, sigma_data=self.sigma_data).c_out ** -2.0

        return objectives.denoising(
            key,
            self.denoiser(params, labels=labels, dropout_key=dropout_key),
            x0,
            sigma_law=self.sigma_law,
            weight=weight,
            reduce=self.reduce,
        )
