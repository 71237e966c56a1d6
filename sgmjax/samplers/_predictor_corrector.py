"""Predictor-corrector sampling: a step of the reverse process, and Langevin steps that repair its marginal law.

Predictors. `samplers.predictors` has their steps: reverse diffusion (eq. 46), Euler-Maruyama, ancestral (eqs. 4, 47).

Correctors. For any constant positive semi-definite C, dz = C score dtau + sqrt(2) C^1/2 dw leaves p_t invariant (the
current C score p - C grad p vanishes). Only the score of the noised variables is known, so C lives on them: C = A A^T,
A the block of the kernel's factor that belongs to them, A A^T the covariance given the variables without noise. In
the coordinates A^-1 z all directions have unit size, whatever the units of momentum. The discretised step is

    z <- z + h A (A^T score) + sqrt(2 h) A eps,

    langevin            h = 2 alpha (snr |eps| / |A^T score|)^2     (alg. 4 and 5)
    annealed_langevin   h = 2 alpha snr^2

For one variable A = sigma_t, and these are exactly the published steps: sigma cancels in the first, and the second is
2 alpha (snr sigma)^2 in the units of z.

Reference: Song et al. 2021, sec. 4.2 and app. E, G.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError
from sgmjax._types import HostGrid, Key, Numbers, Samples, Scalar, ScoreFn, Shape, State, TimeGrid
from sgmjax.samplers.common import Constraint, Denoise, SampleInfo, batch_time, check_t_min, check_times, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.samplers.predictors import (
    Predictor,
    Variance,
    ancestral_step,
    discrete_step,
    euler_kernel,
    is_vp,
    kernel_between,
    one_time,
    reverse_diffusion_step,
)
from sgmjax.sdes import SDE, VE, Kernel, Recipe, SubVP, linalg

Corrector = Literal["langevin", "annealed_langevin", "none"]
Norms = Literal["batch", "sample"]


# ---- correctors


def langevin_step(
    score_fn: ScoreFn,
    sde: SDE,
    z: State,
    t: Scalar,
    noise: State,
    *,
    snr: Scalar = 0.16,
    alpha: Numbers = 1.0,
    annealed: bool = False,
    norms: Norms = "batch",
) -> tuple[State, State]:
    """One preconditioned Langevin step at time t; see the module's docstring.

    Args:
        z, noise: (batch, k, *event). t: scalar time.
        snr: signal-to-noise ratio r; the step is proportional to its square.
        alpha: factor of the step, a scalar or (1,) (1 - beta_i for the official VP).
        annealed: a step of fixed size, in place of one from the norms of noise and score.
        norms: "batch" averages both norms over the batch, as published: samples then depend on their batch-mates.
            "sample" takes every sample's own.

    Returns:
        the state after the step, and its mean.
    """
    kernel = sde.transition(one_time(t, z), "hsm")
    A = _noised_block(kernel).factor
    slope = linalg.apply(jnp.swapaxes(A, 1, 2), score_fn(z, batch_time(t, z)))  # -eps of the noised variables
    if annealed:
        h = jnp.asarray(2 * alpha * snr**2, z.dtype)
    else:
        size, push = _norm(sde.restrict(noise)), _norm(slope)
        if norms == "batch":
            size, push = jnp.mean(size), jnp.mean(push)
        ratio = size / jnp.where(push > 0, push, jnp.inf)  # no step where the score vanishes
        h = 2 * alpha * (snr * ratio) ** 2
    h = linalg.expand_to(jnp.reshape(h, (-1,)), z.ndim)
    mean = z + h * linalg.apply(A, slope)
    return mean + jnp.sqrt(2 * h) * linalg.apply(A, noise), mean


def _noised_block(kernel: Kernel) -> Kernel:
    """The kernel with its factor cut to the noised variables, which are the last of the frame."""
    noised = np.arange(kernel.inner.shape[-1]) >= kernel.inner.shape[-1] - kernel.num_noised
    mask = jnp.asarray(np.outer(noised, noised)[None], kernel.inner.dtype)
    return dataclasses.replace(kernel, inner=kernel.inner * mask)


def _norm(v):
    """Euclidean norm of every sample, (batch,)."""
    return jnp.sqrt(jnp.sum(v * v, axis=tuple(range(1, v.ndim))))


# ---- the sampler


def _evaluations(predictor: Predictor, corrector: Corrector, corrector_steps: int, **_) -> tuple[int, int]:
    """Score evaluations of a step: the predictor's, and the corrector's."""
    return (0 if predictor == "none" else 1), (0 if corrector == "none" else corrector_steps)


@on_grid(
    lambda settings: max(1, sum(_evaluations(**settings))),
    divisible=lambda settings: settings["num_scales"] is None,  # as many as the whole grid has
)
def pc(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    denoise: Denoise | Literal["x_mean"] = True,
    predictor: Predictor = "reverse_diffusion",
    corrector: Corrector = "langevin",
    snr: Scalar = 0.16,
    corrector_steps: int = 1,
    probability_flow: bool = False,
    ancestral_variance: Variance = "lower",
    norms: Norms = "batch",
    num_scales: int | None = None,
    constraint: Constraint | None = None,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample on a fixed grid: at each t the steps of a corrector, then a step of a predictor.

    The corrector comes first, as in score_sde's program (the paper's algorithm 1 has it second), so that the last thing
    done to a sample is a predictor's step, which can leave out its noise. Where a step from t to s shrinks the data
    (k = 1), the corrector's step size is multiplied by alpha, the square of that factor: 1 - beta for VP, 1 for VE.

    Reference: Song et al. 2021, sec. 4.2, algs. 1 to 5.

    Args:
        key, score_fn, sde, shape, times: as `em`.
        denoise: as `em`; or "x_mean": the last step of the predictor (there must be one) adds no noise, as
            score_sde, at no evaluation.
        predictor: see the module's docstring. "none": corrector only.
        corrector: see the module's docstring. "none": predictor only.
        snr: signal-to-noise ratio r of the corrector, positive.
        corrector_steps: corrector's steps at each t, M in the paper.
        probability_flow: predictor of the probability flow, without noise (not ancestral).
        ancestral_variance: see `ancestral_step`; with num_scales it is score_sde's, "upper" for VP, "lower" for VE.
        norms: see `langevin_step`.
        num_scales: N. None: steps between the grid's times. A number reproduces score_sde: step sizes 1 / N whatever
            the grid, discrete levels floor(t (N - 1)); k = 1 only, with the grid of `score_sde_times`.
        constraint: see `common.Constraint`; applied after the corrector, at t, as well as after the predictor (a
            lagging one also where there is no corrector, as in score_sde).
        options: as `em`; `noise` has corrector_steps draws for the corrector and one for the predictor (none for a part
            that is "none" or draws nothing), then those of the constraint between them, in each step.

    Returns:
        samples (batch, *event) and a `SampleInfo`. A step costs one evaluation for the predictor (none if "none") and
        one for each step of the corrector.

    Raises:
        ValueError: for a choice that does not exist, or does not exist for this process.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=50.0)
        >>> times = samplers.time_grid("uniform", 5, evaluations=2)
        >>> samples, info = samplers.pc(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times, predictor="ancestral")
        >>> samples.shape, info.nfe  # two steps of predictor and corrector, and the denoising one
        ((3, 2), 5)
    """
    times = check_times(times)
    _check_choices(predictor, corrector, norms, ancestral_variance, snr, corrector_steps)
    _check_process(sde, predictor, probability_flow, num_scales, denoise)
    predictions, corrections = _evaluations(predictor, corrector, corrector_steps)
    moves = 0 if predictor == "none" or probability_flow else 1
    between = constraint if constraint is not None and (corrections or constraint.lagging) else None
    x_mean = denoise == "x_mean"
    keep_noise = constraint is not None and constraint.lagging  # score_sde's inpainting mixes x, not x_mean
    last = len(times) - 2

    def step(z, memory, node):
        kernel, factor, alpha = None, None, 1.0
        if num_scales is not None:
            kernel, factor, alpha = discrete_step(sde, one_time(node.t, z), jnp.reshape(node.extra, (1,)), num_scales)
        elif sde.k == 1:
            alpha = kernel_between(sde, z, node.t, node.s).mean[:, 0, 0] ** 2

        def correct(z, noise):
            annealed = corrector == "annealed_langevin"
            return langevin_step(
                score_fn, sde, z, node.t, noise, snr=snr, alpha=alpha, annealed=annealed, norms=norms
            )[0], None  # fmt: skip

        if corrections:
            z, _ = jax.lax.scan(correct, z, node.noises[:corrections])
        if between is not None:
            z = between.project(z, batch_time(node.t, z), node.noises[corrections + moves :])
        if predictor == "none":
            return z, memory
        noise = node.noises[corrections] if moves else jnp.zeros_like(z)
        if predictor == "ancestral":
            z, mean = ancestral_step(
                score_fn, sde, z, node.t, node.s, noise, variance=ancestral_variance, kernel=kernel, factor=factor
            )
        else:
            if predictor == "em":
                length = node.t - node.s if num_scales is None else 1 / num_scales
                kernel = euler_kernel(sde, one_time(node.t, z), one_time(length, z))
            z, mean = reverse_diffusion_step(
                score_fn, sde, z, node.t, node.s, noise, kernel=kernel, probability_flow=probability_flow
            )
        return (jnp.where(node.index == last, mean, z) if x_mean and not keep_noise else z), memory

    samples, info = scan_grid(
        step, key, score_fn, sde, shape, times=times, draws=corrections + moves + (between.draws if between else 0),
        denoise=False if denoise == "x_mean" else denoise, evaluations=predictions + corrections,
        per_step=None if num_scales is None else _indices(times, num_scales), constraint=constraint, **options,
    )  # fmt: skip
    if x_mean and constraint is not None:
        end = batch_time(times[-2] if constraint.lagging else 0.0, info.state)
        state = constraint.project(info.state, end, jnp.zeros((constraint.draws, *info.state.shape), info.state.dtype))
        samples, info = state[:, 0], info._replace(state=state)
    return samples, info


def score_sde_times(num_scales: int, *, t_min: float = 1e-3) -> HostGrid:
    """The grid of score_sde's sampler: N times from 1 to t_min that a step starts from, and 0 for the end of the last.

    Raises:
        ValueError: for fewer than two levels, a t_min outside (0, 1).

    Examples:
        >>> samplers.score_sde_times(3, t_min=0.5).tolist()
        [1.0, 0.75, 0.5, 0.0]
    """
    if num_scales < 2:
        raise InputError(f"num_scales = {num_scales}: at least 2.")
    check_t_min(t_min)
    return np.append(np.linspace(1.0, t_min, num_scales), 0.0)


def _indices(times, num_scales: int) -> np.ndarray:
    """floor(t (N - 1)) of the times that steps start from, on the host: float32 would round some up."""
    return np.floor(times[:-1] * (num_scales - 1)).astype(np.int32)


def _check_choices(predictor, corrector, norms, ancestral_variance, snr, corrector_steps) -> None:
    """Raise ValueError, before anything is compiled, for settings that mean nothing."""
    for label, value, kind in (
        ("predictor", predictor, Predictor),
        ("corrector", corrector, Corrector),
        ("norms", norms, Norms),
        ("ancestral_variance", ancestral_variance, Variance),
    ):
        if value not in get_args(kind):
            raise InputError(f"{label} must be one of {', '.join(map(repr, get_args(kind)))}, not {value!r}.")
    if predictor == "none" and corrector == "none":
        raise InputError("predictor='none' with corrector='none' leaves nothing to do: choose one of them.")
    if corrector != "none" and corrector_steps < 1:
        raise InputError(f"corrector_steps = {corrector_steps}: at least 1; corrector='none' for no corrector.")
    if linalg.is_concrete(snr) and not snr > 0:
        raise InputError(f"snr = {snr:g}: must be positive.")


def _check_process(sde, predictor, probability_flow, num_scales, denoise) -> None:
    """Raise ValueError for settings that this process does not have."""
    if predictor == "ancestral" and sde.num_noised != sde.k:
        raise InputError(f"predictor='ancestral' needs the score of all {sde.k} variables: use 'reverse_diffusion'.")
    if predictor == "ancestral" and probability_flow:
        raise InputError("predictor='ancestral' is a draw and has no probability flow: use 'reverse_diffusion'.")
    if num_scales is None:
        if predictor == "none" and denoise == "x_mean":  # which the official program, with num_scales, takes for False
            raise InputError(
                "denoise='x_mean' is the predictor's last step without noise, and predictor='none' has none: give "
                "denoise=True, or False."
            )
        return
    if num_scales < 2 or not (is_vp(sde) or isinstance(sde, (VE, SubVP))):
        raise InputError(f"num_scales = {num_scales}: for the levels of score_sde's VP, sub-VP and VE, at least 2.")
    if isinstance(sde, Recipe) and linalg.is_concrete(sde):
        largest = max(float(sde.schedule.beta(0.0)), float(sde.schedule.beta(1.0))) / num_scales
        if largest >= 1:
            raise InputError(f"num_scales = {num_scales}: beta / num_scales reaches {largest:.3g}; take more levels.")
    if predictor == "ancestral" and isinstance(sde, SubVP):
        raise InputError("predictor='ancestral' with num_scales exists for VP and VE alone, as in score_sde.")
    if denoise not in (False, "x_mean"):
        raise InputError(f"num_scales ends as score_sde does: denoise must be 'x_mean' or False, not {denoise!r}.")
