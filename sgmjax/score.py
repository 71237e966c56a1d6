"""From a network to the score function: the one place that knows channel layout and parameterisation.

A network here is a function `network(x, cond) -> out` of plain arrays, x (batch, ..., k C) with the phase variables
side by side in the channels (all data channels first, then all momentum channels), out (batch, ..., r C) for the r
variables that receive noise. Everything else in the library speaks of

    eps_fn(z, t)   -> (batch, r, *event)   prediction of the noised variables' eps
    score_fn(z, t) -> (batch, k, *event)   score, zero for variables without noise
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real, Shaped

from sgmjax._inputs import InputError, check_floats
from sgmjax._kinds import check_eps, check_kind, checked_score, hearing, says
from sgmjax._types import AnyArray, EpsFn, Key, Network, Numbers, ScoreFn, Times
from sgmjax.sdes import SDE, Denoiser, estimate, heard_by_drift, linalg, noise_level, time_at_noise_level
from sgmjax.sdes._estimate import BLIND
from sgmjax.sdes.base import Matching, check_time

Parameterization = Literal["eps", "mixed", "score"]
TimeConditioning = Literal["t", "t999", "sigma", "level"]
Hearing = Literal["eps", "drift"]


def to_channels(z: Real[AnyArray, "batch k *space C"]) -> Real[jax.Array, "batch *space channels"]:
    """(batch, k, *space, C) -> (batch, *space, k C), phase-major.

    Examples:
        >>> z = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])  # data (1, 2), momentum (3, 4)
        >>> score.to_channels(z).tolist()
        [[1.0, 2.0, 3.0, 4.0]]
        >>> score.to_channels(jnp.zeros((8, 2, 32, 32, 3))).shape
        (8, 32, 32, 6)
    """
    moved = jnp.moveaxis(z, 1, -2)
    return moved.reshape(*moved.shape[:-2], moved.shape[-2] * moved.shape[-1])


def from_channels(x: Real[AnyArray, "batch *space channels"], k: int) -> Real[jax.Array, "batch k *space C"]:
    """Inverse of `to_channels`.

    Examples:
        >>> score.from_channels(jnp.array([[1.0, 2.0, 3.0, 4.0]]), 2).tolist()
        [[[1.0, 2.0], [3.0, 4.0]]]
    """
    if x.shape[-1] % k:
        raise InputError(f"the network returned {x.shape[-1]} channels, which {k} phase variables cannot share.")
    split = x.reshape(*x.shape[:-1], k, x.shape[-1] // k)
    return jnp.moveaxis(split, -2, 1)


def condition(
    sde: SDE, t: Times, time_conditioning: TimeConditioning, num_levels: int | None = None
) -> Real[AnyArray, " batch"]:
    """What the network is given for time, (batch,).

    "t"; "t999": 999 t (score_sde's VP); "sigma": sigma(t) (score_sde's VE, NCSNv2); "level": the index of the nearest
    of `num_levels` noise levels, int32, 0 for the largest (NCSN, whose norms have parameters for each level).

    Examples:
        >>> sde, t = sdes.ve(sigma_min=0.01, sigma_max=100.0), jnp.full(1, 0.5)
        >>> round(float(score.condition(sde, t, "sigma")[0]), 3)
        1.0
        >>> score.condition(sde, t, "level", num_levels=11).tolist()
        [5]
    """
    check_time(t)
    if time_conditioning == "t":
        return t
    if time_conditioning == "t999":
        return 999 * t
    if time_conditioning == "sigma":
        return sde.transition(t).factor[:, 0, 0]
    if time_conditioning == "level":
        if num_levels is None:
            raise InputError(_NO_LEVELS)
        return jnp.round((1 - t) * (num_levels - 1)).astype(jnp.int32)
    raise _unknown_conditioning(time_conditioning)


_NO_LEVELS = "time_conditioning 'level' needs num_levels, the number of noise levels."


def _unknown_conditioning(name: str) -> InputError:
    return InputError(f"time_conditioning must be 't', 't999', 'sigma' or 'level', not {name!r}.")


def gaussian_variance(sde: SDE, t: Times) -> Float[jax.Array, "batch k"]:
    """Marginal variance (batch, k) of each variable used by the mixed score.

    The auxiliaries' is that of the HSM kernel (x_0 a point), the data variable's assumes data of unit variance: the
    choices of the CLD code for CLD and for VP.

    Examples:
        >>> np.allclose(score.gaussian_variance(sdes.vp(), jnp.array([0.1, 0.5, 1.0])), 1.0)  # variance preserving
        True
    """
    kernel = sde.transition(t, "hsm")
    variance = jnp.sum(kernel.factor**2, axis=-1)
    return variance.at[:, 0].add(kernel.mean[:, 0, 0] ** 2)


def eps_from_network(
    network: Network,
    sde: SDE,
    *,
    parameterization: Parameterization = "eps",
    time_conditioning: TimeConditioning = "t",
    num_levels: int | None = None,
    matching: Matching | None = None,
) -> EpsFn:
    """The eps prediction of a network.

    Args:
        network: see the module's docstring.
        sde: the process.
        parameterization: what the network's output is. "eps": eps itself. "mixed": the residual over the score of a
            Gaussian, score = -z / variance - L^-T out (Dockhorn et al. 2022, sec. 3.3; Vahdat et al. 2021). "score":
            the score of the noised variables (score_sde's VE networks, whose last layer divides by sigma).
        time_conditioning, num_levels: see `condition`.
        matching: the kernel the prediction refers to; None: "hsm". Where it is said, or the parameterization depends on
            it, losses and scores of another kernel are refused.

    Returns:
        eps_fn(z, t) -> (batch, r, *event).

    Raises:
        InputError: an unknown word, "level" without num_levels, "mixed" for a process whose noised variables do not
            come last; when the prediction is made, if the network returns another shape.

    Examples:
        >>> sde = sdes.vp()
        >>> network = lambda x, sigma: sigma[:, None] * x  # exact for white normal data
        >>> eps_fn = score.eps_from_network(network, sde, time_conditioning="sigma")
        >>> z, t = jnp.ones((4, 1, 2)), jnp.full(4, 0.3)
        >>> np.allclose(eps_fn(z, t), score.normal_eps(sde)(z, t), rtol=1e-4)
        True
    """
    if parameterization not in ("eps", "mixed", "score"):
        raise InputError(f"parameterization must be 'eps', 'mixed' or 'score', not {parameterization!r}.")
    if time_conditioning not in get_args(TimeConditioning):
        raise _unknown_conditioning(time_conditioning)
    if time_conditioning == "level" and num_levels is None:
        raise InputError(_NO_LEVELS)
    if matching not in (None, "hsm", "dsm"):
        raise InputError(f"matching must be 'hsm' or 'dsm', not {matching!r}.")
    if parameterization == "mixed" and sde.frame is not None:
        raise InputError("mixed score needs the noised variables to come last: use parameterization='eps'.")

    told = {} if matching is None and parameterization == "eps" else {"matching": matching or "hsm"}

    @says(kind="eps", **told)
    def eps_fn(z, t):
        out = network(to_channels(z), condition(sde, t, time_conditioning, num_levels))
        out = from_channels(out, sde.num_noised).astype(z.dtype)
        if out.shape != (z.shape[0], sde.num_noised, *z.shape[2:]):
            raise InputError(
                f"the network returned {out.shape} for a state {z.shape}: its output channels must be "
                f"{sde.num_noised} (noised variables) x {z.shape[-1]}."
            )
        if parameterization == "eps":
            return out
        kernel = sde.transition(t, matching or "hsm")
        if parameterization == "score":
            return kernel.restrict(kernel.eps(sde.expand(out)))
        variance = gaussian_variance(sde, t)
        gaussian = z / linalg.expand_to(variance, z.ndim)
        # eps = -L^T score over the noised block, which is closed under L^T
        gaussian = sde.expand(sde.restrict(gaussian))
        return out + kernel.restrict(-kernel.eps(gaussian))

    return eps_fn


def normal_eps(sde: SDE) -> EpsFn:
    """The exact eps of standard normal data: eps(z, t) = -L_t^T grad log p_t(z), p_t the law of z_t if z_0 ~ N(0, I).

    z_0's data variable has unit variance, the small sigma2_0 of the process included, and its auxiliaries have their
    own law, so Sigma_N = L L^T + (1 - sigma2_0) E_0 E_0^T with E_0 the data column of the kernel's mean, and

        eps = L^T Sigma_N^-1 z          (VP: sigma_t z; VE: sigma_t z / (1 - sigma2_0 + sigma_t^2)).

    Sigma_N enters through its factor: it is well conditioned where L is not. Any process, any frame: the noised
    variables' part of eps depends on their score alone.

    Reference: Vahdat et al. 2021, sec. 3.2 and app. C (VP, sub-VP, VE).

    Raises:
        ValueError: if sigma2_0 is not below 1.

    Examples:
        >>> sde, z, t = sdes.vp(beta_min=2.0, beta_max=2.0), jnp.ones((1, 1, 1)), jnp.ones(1)
        >>> round(float(score.normal_eps(sde)(z, t)[0, 0, 0]), 2)  # sigma z = sqrt(1 - e^-2)
        0.93
    """
    first = sde.initial_variance()
    if linalg.is_concrete(first) and not first < 1:
        raise InputError(f"the kernel starts with variance {float(first):g}: normal data of variance 1 cannot hold it.")

    def eps_fn(z, t):
        check_floats(z, "z")
        kernel = sde.transition(t)
        data = jnp.sqrt(jnp.asarray(1 - first, z.dtype)) * kernel.mean[:, :, :1]
        factor = linalg.triangular_factor(jnp.concatenate([data, kernel.factor], axis=-1))
        inverse = linalg.inverse_transpose(factor)
        score = -linalg.apply(inverse, linalg.apply(jnp.swapaxes(inverse, 1, 2), z))
        return kernel.restrict(kernel.eps(score))

    return eps_fn


INACTIVE_LOGIT = -15.0  # sigmoid 3e-7: the normal prior alone


def initial_mixing_logit(
    sde: SDE, channels: int, *, init: float = -3.0, active: Sequence[int] | Shaped[AnyArray, " channels"] | None = None
) -> Float[jax.Array, "r channels"]:
    """The trained parameter of `learned_mixed_eps` at its start, (r, channels) float32.

    Args:
        sde: the process, of r noised variables.
        channels: channels of the latent.
        init: the same for all; LSGM takes -3 (CIFAR-10) or -6: a nearly normal prior.
        active: None or (channels,) of bools: the others are left to the normal prior.

    Raises:
        ValueError: `active` of another length.

    Examples:
        >>> score.initial_mixing_logit(sdes.psld(), 3, active=[True, False, True]).tolist()
        [[-3.0, -15.0, -3.0], [-3.0, -15.0, -3.0]]
    """
    if active is not None and np.shape(active) != (channels,):
        raise InputError(f"active has shape {np.shape(active)}: give ({channels},) bools, one for each channel")
    logit = jnp.full((sde.num_noised, channels), init, jnp.float32)
    return logit if active is None else jnp.where(jnp.asarray(active, bool)[None], logit, INACTIVE_LOGIT)


def learned_mixed_eps(
    eps_fn: EpsFn,
    mixing_logit: Float[AnyArray, "r channels"],
    sde: SDE,
    *,
    active: Sequence[int] | Shaped[AnyArray, " channels"] | None = None,
) -> EpsFn:
    """LSGM's mixed score: (1 - a) eps_normal(z, t) + a eps_fn(z, t), a = sigmoid(mixing_logit) for each channel.

    Args:
        eps_fn: the network's prediction, (z, t) -> (batch, r, *event).
        mixing_logit: (r, channels), trained beside the network; channels the last axis of the event.
        sde: the process.
        active: None or (channels,): latent channels that the network sees; the others reach it as zeros.

    Raises:
        ValueError: a mixing_logit or a prediction of another shape, when the prediction is made.

    Reference: Vahdat et al. 2021, sec. 3.2, "mixing normal and neural score functions".

    Examples:
        >>> sde, z, t = sdes.vp(), jnp.ones((2, 1, 4)), jnp.full(2, 0.3)
        >>> mixed = score.learned_mixed_eps(lambda z, t: jnp.zeros_like(z), jnp.zeros((1, 4)), sde)  # sigmoid 0 = 1/2
        >>> np.allclose(mixed(z, t), score.normal_eps(sde)(z, t) / 2)
        True
    """
    normal = normal_eps(sde)

    def mixed(z, t):
        logit = jnp.asarray(mixing_logit, z.dtype)
        if logit.shape != (sde.num_noised, z.shape[-1]):
            raise InputError(
                f"mixing_logit has shape {logit.shape}: a latent of {z.shape[-1]} channels and {sde.num_noised} noised "
                f"variables needs {(sde.num_noised, z.shape[-1])}."
            )
        logit = logit.reshape(1, logit.shape[0], *(1,) * (z.ndim - 3), logit.shape[1])
        seen = z if active is None else z * jnp.asarray(active, z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
        eps = eps_fn(seen, t)
        check_eps(eps, z, sde.num_noised)
        return jax.nn.sigmoid(-logit) * normal(z, t) + jax.nn.sigmoid(logit) * eps

    return mixed


def score_from_eps(eps_fn: EpsFn, sde: SDE, *, matching: Matching | None = None, hears: Hearing = "eps") -> ScoreFn:
    """score_fn(z, t) = -L_t^-T eps_fn(z, t), zero for variables without noise.

    Args:
        eps_fn: the prediction of eps.
        sde: the process.
        matching: the kernel whose L it is; None: that of `eps_fn`, where `eps_from_network` made it, else "hsm".
            Official codes sample with the HSM covariance also after DSM training (PSLD); "hsm" does that.
        hears: see `consistent`; objectives.hears(weighting) of the training.

    Raises:
        InputError: `eps_fn` is a score function already; a `hears` that there is not; when the score is computed, if
            `eps_fn` returns another shape.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=100.0)
        >>> score_fn = score.score_from_eps(lambda z, t: jnp.ones_like(z), sde)
        >>> t = jnp.array([0.5, 1.0])
        >>> [round(float(s), 3) for s in score_fn(jnp.zeros((2, 1, 1)), t)[:, 0, 0]]  # -1 / sigma
        [-1.0, -0.01]
    """
    check_kind(eps_fn, "eps")
    _check_hearing(hears)
    kernel: Matching = matching or getattr(eps_fn, "matching", "hsm")

    @says(kind="score", hears=hears)
    def score_fn(z, t):
        eps = eps_fn(z, t)
        if eps.shape != z.shape:  # of all variables it may be, too
            check_eps(eps, z, sde.num_noised)
        return sde.transition(t, kernel).score(eps)

    return score_fn


def score_from_network(network: Network, sde: SDE, *, matching: Matching = "hsm", **kwargs: Any) -> ScoreFn:
    """`eps_from_network` and `score_from_eps` in one: what most samplers' callers want.

    Examples:
        >>> network = lambda x, sigma: sigma[:, None] * x  # eps of white normal data, whose score is -z
        >>> score_fn = score.score_from_network(network, sdes.vp(), time_conditioning="sigma")
        >>> [round(float(s), 3) for s in score_fn(jnp.array([[[1.0, 2.0]]]), jnp.full(1, 0.3))[0, 0]]
        [-1.0, -2.0]
    """
    return score_from_eps(eps_from_network(network, sde, matching=matching, **kwargs), sde, matching=matching)


# ------------------------------------------------------------------------------------------ one denoiser, every process
def from_denoiser(denoiser: Any, sde: SDE, *, noised_only: bool = True) -> ScoreFn:
    """The score function of any process from one denoiser of ordinary noise, D(y; sigma).

    Exact where D is: see `sdes.estimate`. A score in float32 is as good as the denoiser's (y - D) / sigma: a
    `sdes.Denoiser` that knows its `noise` is right at every t, a function of x_0 to rounding / sigma.

    Args:
        denoiser: a `sdes.Denoiser`, or a function (y, sigma) -> x_0 of y (batch, *event), sigma (batch,).
        sde: the process.
        noised_only: zero for variables without noise, as samplers want it; False: of all variables.

    Raises:
        InputError: a process whose state knows nothing of the data at t = 1; when the score is computed, if the
            denoiser returns another shape than that of y.

    Examples:
        >>> denoiser = lambda y, sigma: y / (1 + sigma[:, None] ** 2)  # of white normal data, under VP of score -z
        >>> score_fn = score.from_denoiser(denoiser, sdes.vp())
        >>> [round(float(s), 3) for s in score_fn(jnp.array([[[1.0, 2.0]]]), jnp.full(1, 0.3))[0, 0]]
        [-1.0, -2.0]
    """
    _check_sees_data(sde)
    known = denoiser if isinstance(denoiser, Denoiser) else Denoiser(denoiser)

    @says(kind="score")
    def score_fn(z, t):
        look = estimate(sde, t)
        score = look.score(z, known.noise(look.of(z), look.sigma))
        return sde.expand(sde.restrict(score)) if noised_only else score

    return score_fn


def consistent(score_fn: ScoreFn, sde: SDE, *, hears: Hearing = "eps") -> ScoreFn:
    """The nearest score whose variables agree.

    A state of k variables is one noisy look at the data (`sdes.estimate`), so one number for each of theirs decides
    the true score of all variables. Where r > 1 of them have noise a network predicts r, which need not agree. Of all
    scores that do this one is the nearest, in the measure in which the network was trained, and so it is nearer to the
    true one at every state. For r = 1 it is the score itself, of all variables.

    Args:
        score_fn: of the process; that of the noised variables is enough.
        sde: the process.
        hears: "eps": near in eps, as after training with weighting "simple". "drift": near in g^T score, as after
            training by likelihood ("likelihood", "ll"), which leaves the score of weakly driven variables, the data
            variable of PSLD, so much worse that least squares in eps would drown in its error (up to ten times the
            error at gamma = 0.01; see `objectives.hears`).

    Examples:
        >>> sde, t = sdes.psld(), jnp.full(1, 0.5)
        >>> z, exactly = jnp.ones((1, 2, 2)), exact.ring().score_fn(sde)
        >>> off = lambda z, t: 1.1 * exactly(z, t)
        >>> error = [jnp.abs(fn(z, t) - exactly(z, t)).max() for fn in (off, score.consistent(off, sde, hears="drift"))]
        >>> bool(error[1] < error[0])
        True
    """
    score_fn = checked_score(score_fn)
    _check_hearing(hears)

    @says(kind="score")
    def agreeing(z, t):
        look = estimate(sde, t)
        weights = heard_by_drift(sde, t, look) if hears == "drift" else None
        return look.score(z, look.noise(z, look.kernel.restrict(look.kernel.eps(score_fn(z, t))), weights))

    return agreeing


def _check_hearing(hears: str) -> None:
    if hears not in get_args(Hearing):
        raise InputError(f"hears must be 'eps' or 'drift', not {hears!r}; objectives.hears(weighting) says which")


def agreed(score_fn: ScoreFn, sde: SDE) -> ScoreFn:
    """`score_fn`; where it says that it hears the drift, and could disagree, `consistent`.

    For what reads an estimate of the data off a score, which is by least squares in eps.

    Examples:
        >>> score_fn = score.score_from_eps(lambda z, t: z, sdes.psld(), hears=objectives.hears("likelihood"))
        >>> score.agreed(score_fn, sdes.psld()) is score_fn, score.agreed(score_fn, sdes.cld()) is score_fn
        (False, True)
    """
    if hearing(score_fn) == "eps" or sde.num_noised == 1:
        return score_fn
    return consistent(score_fn, sde, hears="drift")


def _check_sees_data(sde: SDE) -> None:
    """Raise for a process whose data column vanishes: then there is no y. Traced ones pass."""
    if not linalg.is_concrete(sde):
        return
    with jax.ensure_compile_time_eval():
        level = float(noise_level(sde, jnp.ones(1))[0])
    if not level < BLIND:
        raise InputError(
            f"the data column of the process's mean vanishes at t = 1 (noise level {level:.3g}): the state knows "
            "nothing of the data there, and a denoiser nothing of the score; end it before, by stretching its time"
        )


def denoiser(score_fn: ScoreFn, sde: SDE, *, key: Key | None = None, typical: bool = True) -> Denoiser:
    """The inverse of `from_denoiser`: what a score function of one process says of ordinary noise.

    It is asked at the time at which the process has noise level sigma, at a state whose estimate is y: m y and the
    noise that y does not see, drawn as it is in the states that a network was trained on. (An exact score says the same
    without it; a network of CLD or PSLD is farther off then: docs/one_denoiser.md.) The draw of an example is the same
    at every level. Above the levels of the process y is shrunk until its noise is that of the highest, which loses next
    to nothing of data that drown in it; below them the lowest is taken.

    Args:
        score_fn: of the process; that of the noised variables is enough.
        sde: the process.
        key: of the noise that y does not see; None: one that is always the same.
        typical: False: none of it, and z = m y.

    Examples:
        >>> denoiser = score.denoiser(lambda z, t: -z, sdes.vp())  # the score of white normal data
        >>> x0 = denoiser(jnp.array([[2.0, 4.0]]), jnp.ones(1))  # y / (1 + sigma^2)
        >>> [round(float(x), 3) for x in x0[0]]
        [1.0, 2.0]
    """
    score_fn = checked_score(score_fn)
    score_fn = agreed(score_fn, sde)

    def noise(y, sigma):
        t = time_at_noise_level(sde, sigma)
        look = estimate(sde, t)
        share = linalg.expand_to(jnp.minimum(look.sigma / sigma, 1.0), y.ndim)  # 1 at all levels of the process
        z = linalg.expand_to(look.kernel.mean[:, :, 0], y.ndim + 1) * (share * y)[:, None]
        if typical and sde.k > 1:
            draw = jax.random.normal(jax.random.key(0) if key is None else key, z.shape, z.dtype)
            white = linalg.expand_to(look.white, z.ndim)
            z = z + linalg.apply(look.kernel.factor, draw - white * jnp.sum(white * draw, axis=1, keepdims=True))
        found = look.noise(z, look.kernel.restrict(look.kernel.eps(score_fn(z, t))))
        return share * found + (1 - share) * y / linalg.expand_to(sigma, y.ndim)

    return Denoiser(noise=noise)


def analytic_start(score_fn: ScoreFn, sde: SDE, mean: Numbers, std: Numbers) -> ScoreFn:
    """The score function, but at t = 1 that of normal data, which is known: a sampler's first evaluation is free.

    At t = 1 a state knows next to nothing of its own x_0, and of the data only mean and variance matter. So a grid may
    have one step more for the same number of evaluations of the network (`SampleInfo.nfe` counts the free one too).

    Args:
        score_fn: of the process, for a batch that shares its times or starts at 1 together.
        sde: the process.
        mean: of the data, in the network's range: a number, or an array of the shape of an event.
        std: its standard deviation, likewise.

    Raises:
        InputError: a standard deviation that is not positive.

    Reference: Dockhorn, Vahdat & Kreis 2022 (GENIE), "analytical first step", for VP and a standard normal.

    Examples:
        >>> network = lambda z, t: jnp.full_like(z, 7.0)
        >>> score_fn = score.analytic_start(network, sdes.vp(), mean=0.0, std=1.0)
        >>> z = jnp.array([[[2.0]]])
        >>> round(float(score_fn(z, jnp.ones(1))[0, 0, 0]), 3), float(score_fn(z, jnp.full(1, 0.9))[0, 0, 0])
        (-2.0, 7.0)
    """
    score_fn = checked_score(score_fn)
    if linalg.is_concrete(std) and not np.all(np.asarray(std) > 0):
        raise InputError(f"std = {std}: must be positive")

    def noise(y, sigma):
        sigma = linalg.expand_to(sigma, y.ndim)
        mu, s = (jnp.broadcast_to(jnp.asarray(v, y.dtype), y.shape) for v in (mean, std))
        return sigma * (y - mu) / (s**2 + sigma**2)

    known = from_denoiser(Denoiser(noise=noise), sde)

    @says(kind="score", hears=hearing(score_fn))
    def started(z, t):
        return jax.lax.cond(jnp.all(t >= 1), known, score_fn, z, t)

    return started
