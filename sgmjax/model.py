"""A score model: process, network, parameterisation, matching and time law in one value, so that they cannot disagree.

    model = ScoreModel(sde, network, parameterization="mixed")
    loss = model.loss(params, key, x0)
    samples, info = model.sample(params, key, (64, 2), sampler="sscs", nfe=50)

What a notebook holds; the tasks of `sgmjax.tasks` are built on it. Each part is a function of its own elsewhere
(`sgmjax.score`, `objectives.score_matching`, `sgmjax.samplers`), for whoever wants to combine them otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Real

from sgmjax import objectives, samplers, score, sdes
from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Data, Key, Labels, PerExample, Samples, Shape
from sgmjax.objectives._score_matching import Reduce
from sgmjax.samplers import plan as plans
from sgmjax.samplers.guidance import cfg_score
from sgmjax.sdes.base import Matching
from sgmjax.spec import Settings

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreModel:
    """A network that predicts the noise of a process, in one of the parameterisations.

    Attributes:
        sde: the forward process.
        network: a Flax module (or its bound `apply`), called as `network(x, cond, train=..., labels=...)`; or a
            function `(params, x, cond) -> out`, which also takes `labels=` where labels are given. x is
            (batch, *space, k C) with the phase variables side by side, cond the network's time (batch,), out
            (batch, *space, r C) for the r noised variables.
        parameterization, time_conditioning, num_levels: what the network's output and its time are, see
            `score.eps_from_network`.
        matching: the kernel that it is trained with and sampled with.
        weighting, reduce, anneal_power: of the loss, see `objectives.score_matching`.
        time_law: draws the training times; None: uniform on [1e-5, 1].

    Raises:
        ValueError: parts that do not fit one another.
    """

    sde: sdes.SDE
    network: Any
    _: dataclasses.KW_ONLY
    parameterization: score.Parameterization = "eps"
    time_conditioning: score.TimeConditioning = "t"
    num_levels: int | None = None
    matching: Matching = "hsm"
    weighting: str = "simple"
    reduce: Reduce = "mean"
    anneal_power: float = 2.0
    time_law: Any = None

    def __post_init__(self):
        owner = getattr(self.network, "__self__", None)
        if isinstance(owner, nn.Module):  # module.apply
            object.__setattr__(self, "network", owner)
        if not callable(self.network):
            raise InputError(f"network: expected a Flax module or a function (params, x, cond), got {self.network!r}")
        if self.time_law is None:
            object.__setattr__(self, "time_law", objectives.uniform())
        self.eps_fn(None)  # says what does not fit, before anything is traced

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
        x = jnp.zeros((1, *event_shape[:-1], self.sde.k * event_shape[-1]))
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
        if not isinstance(self.network, nn.Module):
            return self.network(params, x, cond, **({} if labels is None else {"labels": labels}))
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None
        out: Any = self.network.apply({"params": params}, x, cond, train=train, labels=labels, rngs=rngs)
        return out

    def eps_fn(self, params: PyTree, *, labels: Labels | None = None, dropout_key: Key | None = None) -> score.EpsFn:
        """The prediction of the noised variables' eps, eps_fn(z, t) -> (batch, r, *event).

        Args:
            params: parameters.
            labels: (batch,) classes, or `num_classes` for none of them; None: no class for any.
            dropout_key: means training.
        """
        return score.eps_from_network(
            lambda x, cond: self.apply(params, x, cond, labels=labels, dropout_key=dropout_key),
            self.sde,
            parameterization=self.parameterization,
            time_conditioning=self.time_conditioning,
            num_levels=self.num_levels,
            matching=self.matching,
        )

    def score_fn(self, params: PyTree, *, labels: Labels | None = None, guidance: float = 1.0) -> score.ScoreFn:
        """The score function for samplers, score_fn(z, t) -> (batch, k, *event).

        Args:
            params: parameters.
            labels: (batch,) classes; None: the score of all classes together, or of a network without classes.
            guidance: strength of classifier-free guidance, see `samplers.cfg_score`. 1, plain conditioning, evaluates
                the network once a call, any other strength twice.
        """

        def one(labels):
            return score.score_from_eps(self.eps_fn(params, labels=labels), self.sde, matching=self.matching)

        if labels is None or guidance == 1.0:
            return one(labels)
        return cfg_score(one(labels), one(None), guidance)

    def losses(
        self, params: PyTree, key: Key, x0: Data, *, labels: Labels | None = None, dropout_key: Key | None = None
    ) -> PerExample:
        """The loss of each example, (batch,), importance weights included.

        Args:
            params: parameters.
            key: of the times and the noise.
            x0: (batch, *event) float data, images in [-1, 1].
            labels, dropout_key: as of `eps_fn`.
        """
        return objectives.score_matching(
            key,
            self.eps_fn(params, labels=labels, dropout_key=dropout_key),
            self.sde,
            x0,
            time_law=self.time_law,
            matching=self.matching,
            weighting=self.weighting,
            anneal_power=self.anneal_power,
            reduce=self.reduce,
        )

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
        guidance: float = 1.0,
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
        return plans.draw(chosen, key, self.score_fn(params, labels=labels, guidance=guidance), self.sde, shape)
