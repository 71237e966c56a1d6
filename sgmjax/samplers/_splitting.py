"""Splitting integrators of phase space: symplectic Euler and velocity Verlet, naive and reduced, with noise or not.

The data variable x and the auxiliaries y are updated in turn, each by an Euler step that sees the other's newest value.
A recipe F = -(D + Q) P, G G^T = 2 D, P = Sigma_inf^-1, in its own time B, run backwards, splits as follows.

Probability flow,  dz = [(D + Q) P z + D score] dB:

    A:  the row of x        B:  the rows of y

Reverse SDE,  dz = [(D + Q) P z + 2 D score] dB + G dw:

    O:  dz = -D P z dB + G dw                the reversible (Ornstein-Uhlenbeck) part, exact: it keeps N(0, Sigma_inf)
    A:  the row of x of dz = [(2 D + Q) P z + 2 D score] dB        B:  the rows of y of the same

A scheme is a word, applied from left to right; a letter that occurs twice takes half the step each time:

    symplectic Euler  BA        velocity Verlet  BAB        stochastic  OBA, BAO, OBAB

For PSLD these are the paper's A, B and O to the letter; `y` may be any number of variables, and D and Q any matrices.

**Reduced.** The naive schemes evaluate the score for every A and B, always at the time the step starts from. The
reduced ones (a) let the first B and the A after it share one evaluation, at the state before them, and (b) make the one
of a second B at the time the step ends at. They cost 1 evaluation a step rather than 2 (BA, OBA, BAO), and 2 rather
than 3 (BAB, OBAB).

**Order.** All are of first order, weakly so with noise: an Euler step in the variable's own drift (and, in naive
schemes, the frozen time) is as exact as that. What the order does not show: where x receives no noise (CLD) reduced
velocity Verlet has an error h^3 in x over one step, since y is then a half step ahead, as in the leapfrog scheme.

Reference: Pandey, Rudolph & Mandt 2024 (arXiv 2310.07894), sec. 3.3 and its appendices; 2402.07211 for the stochastic
ones. The authors have not published this part of their code: the schemes are written from the definitions, not checked
against theirs number by number. Where these leave a choice (the order of the letters, `noise_scale`) the text here says
what is done.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._types import (
    AnyArray,
    DType,
    Key,
    Matrices,
    Samples,
    Scalar,
    ScoreFn,
    Shape,
    State,
    TimeGrid,
    Times,
)
from sgmjax.samplers.common import Denoise, SampleInfo, batch_time, check_times, scan_grid
from sgmjax.samplers.declaration import on_grid
from sgmjax.sdes import SDE, Recipe, linalg

WORDS = {"symplectic_euler": "BA", "velocity_verlet": "BAB", "oba": "OBA", "bao": "BAO", "obab": "OBAB"}
SCHEMES = tuple(f"{kind}_{name}" for kind in ("reduced", "naive") for name in WORDS)


def evaluations(scheme: str) -> int:
    """Score evaluations a step of the scheme makes."""
    reduced, word = _parse(scheme)
    updates = sum(letter != "O" for letter in word)
    return updates - 1 if reduced else updates


def asks_at_end(scheme: str) -> bool:
    """Whether a step of the scheme evaluates the score at the time where it ends: the third update of reduced ones."""
    reduced, word = _parse(scheme)
    return reduced and len(word.replace("O", "")) == 3


def splitting_step(
    score_fn: ScoreFn,
    sde: Recipe,
    z: State,
    t: Scalar,
    s: Scalar,
    noises: Float[AnyArray, "draws batch k *event"],
    *,
    scheme: str,
    noise: Any = None,
) -> State:
    """One step from t down to s.

    Args:
        z: (batch, k, *event). t, s: scalars.
        noises: (1, batch, k, *event), used by O; an empty first axis will do for schemes without it.
        scheme: one of SCHEMES.
        noise: mean and factor of O, (k, k) each, from `noise_part`; None for schemes without it.
    """
    reduced, word = _parse(scheme)
    stochastic = "O" in word
    D, Q, Sigma_inf = (jnp.asarray(v, z.dtype) for v in (sde.D, sde.Q, sde.Sigma_inf))
    P = jnp.linalg.inv(Sigma_inf)
    strength = 2 * D if stochastic else D
    linear = linalg.matmul(strength + Q, P)
    step = sde.schedule.between(s, t)
    begin, end = batch_time(t, z), batch_time(s, z)

    score: Any = None
    updates = 0
    for letter in word:
        if letter == "O":
            z = linalg.apply(noise[0], z) + linalg.apply(noise[1], noises[0])
            continue
        if not reduced:
            score = score_fn(z, begin)
        elif updates != 1:  # the second update shares the first one's
            score = score_fn(z, begin if updates == 0 else end)
        updates += 1
        drift = linalg.apply(linear, z) + linalg.apply(strength, score)
        size = step / word.count(letter)
        moved = z + size * drift
        z = (
            jnp.concatenate([moved[:, :1], z[:, 1:]], axis=1)
            if letter == "A"
            else jnp.concatenate([z[:, :1], moved[:, 1:]], axis=1)
        )
    return z


def noise_part(
    sde: Recipe, t: Times, s: Times, *, share: float = 1.0, noise_scale: Scalar = 1.0, dtype: DType = jnp.float32
) -> tuple[Matrices, Matrices]:
    """Mean and factor of the O steps from t down to s, (n, k, k) each, for t, s (n,).

    With Sigma_inf = C C^T and w = C^-1 z, O reads dw = -S w dB + sqrt(2 S) dw', S = C^-1 D C^-T symmetric. In its
    eigenvectors U everything is scalar, so without cancellation

        E = C U e^(-Lambda B) U^T C^-1,    L = C U sqrt(1 - e^(-2 Lambda B)).

    Args:
        share: part of the step that O takes.
        noise_scale: see `splitting`.
    """
    if linalg.is_concrete(sde):
        xp, (D, C) = np, (np.asarray(v, np.float64) for v in (sde.D, sde.prior))
    else:
        xp, (D, C) = jnp, (jnp.asarray(v, dtype) for v in (sde.D, sde.prior))
    inverse = xp.linalg.inv(C)
    S = xp.sum(inverse[:, :, None] * D[None], axis=1)
    S = xp.sum(S[:, :, None] * inverse.T[None], axis=1)
    rate, U = xp.linalg.eigh(0.5 * (S + S.T))
    rate = xp.maximum(rate, 0.0)  # directions without noise: zero to rounding
    outer = xp.sum(C[:, :, None] * U[None], axis=1)
    inner = xp.sum(U.T[:, :, None] * inverse[None], axis=1)

    def column(B):  # (n,) -> (n, 1, k)
        return (B[:, None] * rate[None])[:, None, :]

    B = share * sde.schedule.between(xp.asarray(s, D.dtype), xp.asarray(t, D.dtype))
    mean = xp.sum((outer[None] * xp.exp(-column(B)))[..., None] * inner[None, None], axis=-2)
    factor = outer[None] * xp.sqrt(-xp.expm1(-2 * column(B)))
    data = outer[None] * xp.sqrt(-xp.expm1(-2 * noise_scale * column(B)))
    factor = xp.concatenate([data[:, :1], factor[:, 1:]], axis=1)
    return jnp.asarray(mean, dtype), jnp.asarray(factor, dtype)


@on_grid(lambda settings: evaluations(settings["scheme"]))
def splitting(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    shape: Shape,
    *,
    times: TimeGrid,
    scheme: str = "reduced_velocity_verlet",
    noise_scale: Scalar = 1.0,
    denoise: Denoise = True,
    **options: Any,
) -> tuple[Samples, SampleInfo]:
    """Sample by a splitting integrator on a fixed grid.

    Args:
        key, score_fn, sde, shape, times, denoise: as `em`. The process is a recipe with auxiliary variables (CLD, PSLD,
            third order, ...).
        scheme: "reduced_" or "naive_" followed by "symplectic_euler" or "velocity_verlet" (probability flow), or by
            "oba", "bao" or "obab" (reverse SDE). See the module's docstring for what they are and what they cost;
            `evaluations` tells it.
        noise_scale: the paper's lambda_s, for the schemes with O: the noise that O adds to x is that of a step
            lambda_s times as long, with variance 1 - exp(-lambda_s beta gamma h) in PSLD. 1 is the exact law; only
            with it does the sampler converge to the reverse SDE's law. (The paper fits it by FID; it has no effect
            where x receives no noise.)
        options: as `em`; `noise` has one draw a step for the schemes with O, none for the others.

    Returns:
        samples (batch, *event) and a `SampleInfo`.

    Raises:
        ValueError: for an unknown scheme; a process without auxiliary variables; a negative noise_scale, or one for a
            scheme without noise.

    Examples:
        >>> sde, times = sdes.psld(), samplers.time_grid("quadratic", 5, evaluations=2)  # two steps
        >>> samples, info = samplers.splitting(
        ...     jax.random.key(0), exact.ring().score_fn(sde), sde, (3, 2), times=times, scheme="reduced_obab")
        >>> samples.shape, info.nfe
        ((3, 2), 5)
    """
    _, word = _parse(scheme)
    check_phase_space(sde, f"the splitting {scheme!r}")
    stochastic = "O" in word
    if linalg.is_concrete(noise_scale):
        if noise_scale < 0:
            raise InputError(f"noise_scale = {noise_scale:g}: must be >= 0.")
        if noise_scale != 1 and not stochastic:
            raise InputError(f"noise_scale = {noise_scale:g}: scheme {scheme!r} adds no noise that it could scale.")
    assert isinstance(sde, Recipe)
    dtype = options.get("dtype", jnp.float32)
    per_step = None
    if stochastic:
        grid = check_times(times)
        per_step = noise_part(sde, grid[:-1], grid[1:], noise_scale=noise_scale, dtype=dtype)

    def step(z, memory, node):
        return splitting_step(
            score_fn, sde, z, node.t, node.s, node.noises, scheme=scheme, noise=node.extra
        ), memory  # fmt: skip

    return scan_grid(
        step, key, score_fn, sde, shape, times=times, draws=int(stochastic), denoise=denoise,
        evaluations=evaluations(scheme), score_at_end=asks_at_end(scheme), per_step=per_step, **options,
    )  # fmt: skip


def check_phase_space(sde: SDE, what: str) -> None:
    """Raise ValueError unless the process has auxiliary variables and a stationary law."""
    if not isinstance(sde, Recipe) or sde.k < 2:
        name = getattr(sde, "name", type(sde).__name__)
        raise InputError(
            f"{what} updates data and auxiliary variables in turn, and {name} has no auxiliary ones: use it for cld, "
            "psld, third_order or a recipe with k >= 2."
        )


def _parse(scheme: str) -> tuple[bool, str]:
    """Whether the scheme is reduced, and its word."""
    kind, _, name = str(scheme).partition("_")
    if kind not in ("reduced", "naive") or name not in WORDS:
        raise InputError(f"scheme must be one of {', '.join(repr(s) for s in SCHEMES)}, not {scheme!r}.")
    return kind == "reduced", WORDS[name]
