"""The log-likelihood of data under the probability-flow ODE, for every process.

Along dz/dt = h(z, t) = f z - 1/2 g g^T score, from the data at t_min to the prior at 1,

    log p(z_t_min) = log prior(z_1) + int_t_min^1 div h dt,    div h = D tr f - 1/2 tr(g g^T d score/dz),

D the size of the event. The drift's trace is known. The score's is exact (one Jacobian product for every dimension), or
Hutchinson's estimate v^T (g g^T d score/dz) v with random v, E v v^T = 1, in the noised variables alone: g g^T vanishes
on the others.

Auxiliary variables. x_0 alone is no state: momenta m_0 are drawn from their initial law q, and

    log p(x_0) >= E_q log p(x_0, m_0) + H(q),                     Dockhorn et al. 2022, app. B.3; `info.bound`
    log p(x_0) >= E_q log 1/K sum_k p(x_0, m_k) / q(m_k),         Burda et al. 2016, eq. (8); the result

With K = 1 both have the same mean, and the second less variance: its weights are constant where the model has learnt
that m_0 is independent of x_0. It increases with K and is tight as K grows. Inside the logarithm the noise of a trace
estimate does not average out: it adds about half its variance. With K > 1 use trace="exact", or probes enough.

Reference: Song et al. 2021, sec. 4.3 and app. D.2, eqs. (39)-(40); Grathwohl et al. 2019 (the estimate).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from sgmjax._inputs import InputError, check_network_range
from sgmjax._kinds import checked_score
from sgmjax._types import AnyArray, DType, Key, PerExample, Scalar, ScoreFn, Sharding, Solver, State, States, Times
from sgmjax.samplers._probability_flow import evaluations, find_solver, reuses_last_stage
from sgmjax.samplers.common import (
    batch_time,
    check_control,
    check_one_by_one,
    check_state_dtype,
    check_t_min,
    reverse_drift,
)
from sgmjax.sdes import SDE, linalg

Trace = Literal["rademacher", "gaussian", "exact"]
Probing = Literal["blocks", "joint", "drift"]
Truncation = Literal["ignore", "bound"]

FIRST_STEP = 0.01  # given, so that diffrax spends no evaluations on choosing it
EXACT_LIMIT = 4096  # directions of an exact trace
CHUNK = 64  # directions pushed through the network at a time


class LikelihoodInfo(NamedTuple):
    """What `likelihood` reports beside the log-likelihood; all in nats.

    Attributes:
        nfe: score evaluations (each with its Jacobian products) of all momenta together, (batch,); a scalar when the
            batch is solved as one.
        log_joint: log p(x_0, m_k), (momenta, batch); for k = 1 log p(x_0). With truncation="bound", where z_t_min is
            drawn in the place of m_0, log p(x_0, z_t_min).
        log_weights: the same less log q of what was drawn, (momenta, batch).
        bound: mean over the momenta of log_joint, plus the entropy of q, (batch,): CLD's bound.
        latent: z_1, (momenta, batch, k, *event).
    """

    nfe: Any
    log_joint: Any
    log_weights: Any
    bound: Any
    latent: Any


def likelihood(
    key: Key,
    score_fn: ScoreFn,
    sde: SDE,
    x0: Real[AnyArray, " batch *event"],
    *,
    t_min: Scalar = 1e-5,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    solver: Solver = "Dopri5",
    trace: Trace = "rademacher",
    probes: int = 1,
    probing: Probing = "blocks",
    momenta: int = 1,
    truncation: Truncation = "ignore",
    per_sample: bool = True,
    momentum: Real[AnyArray, "momenta batch auxiliaries *event"] | None = None,
    noise: Real[AnyArray, "probes batch variables *event"] | None = None,
    max_steps: int = 4096,
    sharding: Sharding | None = None,
    dtype: DType = jnp.float32,
) -> tuple[PerExample, LikelihoodInfo]:
    """log p(x_0) in nats; for processes with auxiliary variables a lower bound in expectation.

    Args:
        key: typed PRNG key.
        score_fn: score_fn(z, t) -> (batch, k, *event).
        sde: the process.
        x0: (batch, *event) data, in the network's range; discrete data must be dequantised first.
        t_min: where the integration starts, in (0, 1).
        rtol, atol: tolerances; the error norm is the root mean square over the state, or the error of the log density
            per dimension where that is larger: among the many elements of a state it would not count.
        solver: as `ode`.
        trace: "rademacher" or "gaussian" probes, or "exact", which costs r D Jacobian products an evaluation.
        probes: probes to average, each kept along the whole trajectory.
        probing: what a probe sees. "blocks": the noised variables one after the other, r Jacobian products a probe, so
            that the blocks of the Jacobian off the diagonal (large, of trace zero) add no noise. It is the average over
            all signs of the blocks, for r = 2 the mean of a probe and of its copy with the momentum's sign flipped.
            "joint": all noised variables at once, one product. "drift": the whole of h, its known linear part
            included, as in the official codes: for published numbers. Equal for k = 1 with Rademacher probes.
        momenta: K above, importance samples; 1 for processes without auxiliaries, unless truncation="bound".
        truncation: what t_min > 0 leaves. "ignore" takes x_0 for a draw at t_min, as published. "bound" draws z_t_min
            from the kernel of x_0, solves from there, and adds log p(x_0 | z_t_min) - log q(z_t_min | x_0), the decoder
            a Gaussian about the unbiased linear estimate of x_0: a lower bound in expectation of a density at t = 0,
            for momenta that have long left their initial law at t_min as well.
        per_sample: control the steps of each sample by itself, score_fn seeing one at a time: where it has labels or
            measurements of (batch,) give False. Then the batch shares its steps, as published, and a result depends
            (within the tolerance) on the batch-mates.
        momentum: (momenta, batch, k - 1, *event) to use in place of draws; for truncation="ignore".
        noise: (probes, batch, r, *event) to use as probes, in the frame's noised variables; (probes, batch, k, *event)
            for probing="drift".
        max_steps: bound on accepted and rejected steps.
        sharding: sharding of the batch.
        dtype: of the integration.

    Returns:
        (batch,) log-likelihoods and a `LikelihoodInfo`.

    Raises:
        ValueError: an unknown option; a t_min outside (0, 1); an exact trace of more than 4096 directions; several
            momenta where there is nothing to draw; per_sample with a score_fn of (batch,) labels; auxiliaries that
            start from a point, which have no density.
        RuntimeError: as `ode`.

    Examples:
        >>> x0 = jnp.zeros((1, 2))
        >>> log_prob, info = samplers.likelihood(jax.random.key(0), lambda z, t: -z, sdes.vp(), x0)
        >>> round(float(log_prob[0]), 2)  # the density of N(0, 1) in two dimensions at its mean: -log(2 pi)
        -1.84
    """
    score_fn = checked_score(score_fn)
    solver = find_solver(solver, adaptive=True)
    check_network_range(jnp.asarray(x0))
    check_state_dtype(dtype)
    x0 = jnp.asarray(x0, dtype)
    batch, size = x0.shape[0], math.prod(x0.shape[1:])
    check_control(rtol=rtol, atol=atol)
    _check(sde, size, t_min, trace, probes, probing, momenta, truncation)
    momentum_key, probe_key = jax.random.split(key)

    width = sde.k if probing == "drift" else sde.num_noised
    shape = (probes, batch, width, *x0.shape[1:])
    if trace == "exact":
        directions = None
    elif noise is None:
        draw = jax.random.rademacher if trace == "rademacher" else jax.random.normal
        directions = jnp.moveaxis(draw(probe_key, shape, dtype), 1, 0)
    elif np.shape(noise) != shape:
        raise InputError(f"noise has shape {np.shape(noise)}, expected {shape}.")
    else:
        directions = jnp.moveaxis(jnp.asarray(noise, dtype), 1, 0)  # (batch, probes, width, *event)
    if momentum is not None and np.shape(momentum) != (momenta, batch, sde.k - 1, *x0.shape[1:]):
        raise InputError(f"momentum has shape {np.shape(momentum)}, expected (momenta, batch, k - 1, *event).")
    momentum = None if momentum is None else jnp.asarray(momentum, dtype)
    if momentum is not None and truncation == "bound":
        raise InputError("momentum: is not drawn with truncation='bound', which draws the state at t_min.")

    def joint(inputs):
        """log p(x_0, m), log q(m), evaluations and z_1 of one momentum for each sample."""
        i, m = inputs
        draw_key = jax.random.fold_in(momentum_key, i)
        decoded = jnp.zeros((batch,), dtype)
        if truncation == "bound":
            z, log_q, decoded = _perturb(draw_key, sde, x0, t_min)
        else:
            # the data themselves: what sigma2_0 adds to them is the process's first noise
            z = sde.augment(x0, draw_key if m is None else None).at[:, 0].set(x0)
            if m is not None:
                z = jnp.concatenate([x0[:, None], m], axis=1)
            log_q = auxiliary_log_prob(sde, z[:, 1:])
        if sharding is not None:
            z = jax.lax.with_sharding_constraint(z, sharding)
        change, latent, nfe = _solve(
            score_fn, sde, z, directions, t_min, rtol, atol, solver, probing, per_sample, max_steps
        )  # fmt: skip
        return sde.prior_logp(latent) + change + decoded, log_q, nfe, latent

    # one after the other: memory for one
    log_joint, log_q, nfe, latent = jax.lax.map(joint, (jnp.arange(momenta), momentum))
    log_weights = log_joint - log_q
    log_prob = jax.nn.logsumexp(log_weights, axis=0) - math.log(momenta)
    entropy = auxiliary_entropy(sde, size) if truncation == "ignore" else kernel_entropy(sde, size, t_min, dtype)
    bound = jnp.mean(log_joint, axis=0) + entropy
    return log_prob, LikelihoodInfo(jnp.sum(nfe, axis=0), log_joint, log_weights, bound, latent)


def auxiliary_log_prob(sde: SDE, m: Float[AnyArray, "batch auxiliaries *event"]) -> PerExample:
    """log q(m_0) of the auxiliaries' initial law in nats. m: (batch, k - 1, *event) -> (batch,); 0 for k = 1."""
    if sde.k == 1:
        return jnp.zeros((m.shape[0],), m.dtype)
    factor = jnp.asarray(_auxiliary_factor(sde), m.dtype)[None]
    white = linalg.apply(jnp.swapaxes(linalg.inverse_transpose(factor), 1, 2), m)
    size = m[0, 0].size
    log_det = size * jnp.sum(jnp.log(jnp.diagonal(factor[0])))
    square = jnp.sum(white**2, axis=tuple(range(1, m.ndim)))
    return -0.5 * (square + (sde.k - 1) * size * math.log(2 * math.pi)) - log_det


def auxiliary_entropy(sde: SDE, size: int) -> Scalar:
    """Entropy in nats of the auxiliaries' initial law, for events of that size; 0 for k = 1."""
    if sde.k == 1:
        return 0.0
    log_det = jnp.sum(jnp.log(jnp.diagonal(jnp.asarray(_auxiliary_factor(sde)))))
    return size * (0.5 * (sde.k - 1) * math.log(2 * math.pi * math.e) + log_det)


def _auxiliary_factor(sde: SDE):
    """Factor (k - 1, k - 1) of the covariance of the auxiliaries at t = 0, lower triangular."""
    initial: Any = sde.initial_factor()
    factor = initial[1:, 1:]
    if linalg.is_concrete(factor) and not (np.diagonal(np.asarray(factor)) > 0).all():
        raise InputError("the auxiliary variables start from a point (Sigma_0 is singular): they have no density.")
    return factor


def _check(sde: SDE, size: int, t_min, trace, probes: int, probing, momenta: int, truncation) -> None:
    for name, value, known in (
        ("trace", trace, ("rademacher", "gaussian", "exact")),
        ("probing", probing, ("blocks", "joint", "drift")),
        ("truncation", truncation, ("ignore", "bound")),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}.")
    check_t_min(t_min, sde)
    for name, value in (("probes", probes), ("momenta", momenta)):
        if value < 1:
            raise InputError(f"{name} = {value}: at least 1.")
    if momenta > 1 and sde.k == 1 and truncation == "ignore":
        raise InputError(f"momenta = {momenta}: this process has no auxiliary variables to draw; use momenta=1.")
    if trace == "exact" and sde.num_noised * size > EXACT_LIMIT:
        raise InputError(
            f"trace='exact' would take {sde.num_noised * size} Jacobian products an evaluation; more than "
            f"{EXACT_LIMIT} are too many: use trace='rademacher' with several probes."
        )
    if sde.k > 1:
        _auxiliary_factor(sde)


def kernel_entropy(sde: SDE, size: int, t: Scalar, dtype: DType = jnp.float32) -> Float[jax.Array, ""]:
    """Entropy in nats of q(z_t | x_0), for events of that size; a scalar."""
    kernel = sde.transition(jnp.full((1,), t, dtype))
    return size * (0.5 * sde.k * math.log(2 * math.pi * math.e) + kernel.log_det_factor()[0])


def decoder_precision(sde: SDE, t: Scalar, dtype: DType = jnp.float32) -> Float[jax.Array, " k"]:
    """How well z_t tells x_0 in one element of the event: w (k,) with z_t = a x_0 + L eps, a = E e_0, and w = L^-1 a.

    Of all linear estimates without bias that with the least variance, 1 / |w|^2, is off by w . eps / |w|^2.
    """
    kernel = sde.transition(jnp.full((1,), t, dtype))
    inverse = jnp.swapaxes(kernel.inverse_transpose, 1, 2)
    return linalg.matmul(inverse, kernel.mean[:, :, :1])[0, :, 0]


def _perturb(key, sde: SDE, x0, t_min):
    """z ~ q(z_t_min | x_0) (hybrid score matching's kernel), log q(z | x_0) and log p(x_0 | z), (batch,) each."""
    z0, size = sde.augment(x0), x0[0].size
    kernel = sde.transition(jnp.full((1,), t_min, x0.dtype))
    eps = jax.random.normal(key, z0.shape, x0.dtype)
    axes = tuple(range(1, z0.ndim))
    log_q = -0.5 * jnp.sum(eps**2, axis=axes) - size * (0.5 * sde.k * math.log(2 * math.pi))
    log_q = log_q - size * kernel.log_det_factor()
    w = decoder_precision(sde, t_min, x0.dtype)
    precision = jnp.sum(w**2)
    error = jnp.sum(linalg.apply(w[None], eps) ** 2, axis=axes) / precision  # in standard deviations
    log_p = -0.5 * error + 0.5 * size * (jnp.log(precision) - math.log(2 * math.pi))
    return kernel.perturb(z0, eps), log_q, log_p


def _solve(score_fn, sde: SDE, z, directions, t_min, rtol, atol, solver, probing, per_sample: bool, max_steps: int):
    """The flow from t_min to 1: the integral of its divergence (batch,), z_1, and the evaluations made."""
    import diffrax
    import equinox as eqx

    dtype, size = z.dtype, z[0, 0].size

    def field(t, state, directions):
        flow, divergence = flow_and_divergence(score_fn, sde, state[0], batch_time(t, state[0]), directions, probing)
        return flow, divergence / size

    def norm(error):
        return jnp.maximum(*(jnp.sqrt(jnp.mean(part**2)) for part in error))

    def solve(z, directions):
        begin, end = jnp.asarray(t_min, dtype), jnp.asarray(1.0, dtype)
        state = z, jnp.zeros((z.shape[0],), dtype)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            begin,
            end,
            jnp.asarray(FIRST_STEP, dtype),
            state,
            args=directions,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=norm),
            max_steps=max_steps,
            # as in `ode`: counted exactly
            solver_state=(jnp.asarray(False), field(begin, state, directions)) if reuses_last_stage(solver) else None,
            throw=False,
        )
        assert solution.ys is not None
        (latent, change), steps = jax.tree.map(lambda y: y[0], solution.ys), solution.stats["num_steps"]
        return latent, change, steps, diffrax.is_successful(solution.result)

    if per_sample:
        check_one_by_one(score_fn, z)
        one = lambda z, v: solve(z[None], None if v is None else v[None])  # noqa: E731
        latent, change, steps, success = jax.vmap(one)(z, directions)
        latent, change = latent[:, 0], change[:, 0]
    else:
        latent, change, steps, success = solve(z, directions)
    checked = eqx.error_if(
        jnp.zeros((), dtype),
        ~jnp.all(success),
        f"the ODE was not solved within max_steps = {max_steps} steps: give more, or larger tolerances.",
    )
    return size * change + checked, latent, evaluations(solver, steps)


def flow_and_divergence(
    score_fn: ScoreFn,
    sde: SDE,
    z: State,
    t: Times,
    directions: Real[AnyArray, "batch probes variables *event"] | None,
    probing: Probing = "blocks",
) -> tuple[States, PerExample]:
    """h(z, t), (batch, k, *event), and its divergence or an estimate of it, (batch,), by one score evaluation.

    Args:
        score_fn, sde: as `likelihood`.
        z: (batch, k, *event). t: (batch,).
        directions: (batch, probes, r or k, *event) probes, or None for the exact trace.
        probing: see `likelihood`.
    """
    rate, size = sde.diffusion_squared(t), z[0, 0].size

    if directions is not None and probing == "drift":
        whole = lambda z: -reverse_drift(score_fn, sde, z, t, probability_flow=True)  # noqa: E731
        flow, push = jax.linearize(whole, z)
        probe = jnp.moveaxis(directions, 1, 0)
        products = jax.lax.map(lambda v: _inner(v, push(v)), probe, batch_size=CHUNK)
        return flow, jnp.mean(products, axis=0)

    r, event = sde.num_noised, z.shape[2:]
    if directions is None:  # the unit vectors
        probe = jnp.broadcast_to(
            jnp.eye(r * size, dtype=z.dtype).reshape(-1, 1, r, *event), (r * size, len(z), r, *event)
        )
        count = 1
    else:
        probe, count = jnp.moveaxis(directions, 1, 0), directions.shape[1]
        if probing == "blocks" and r > 1:  # each variable's part by itself
            mask = linalg.expand_to(jnp.eye(r, dtype=z.dtype)[:, None, None], probe.ndim + 1)
            probe = (mask * probe[None]).reshape(r * count, *probe.shape[1:])

    score, push = jax.linearize(lambda z: score_fn(z, t), z)

    def product(v):
        return _inner(v, sde.restrict(linalg.apply(rate, push(sde.expand(v)))))

    total = jnp.sum(jax.lax.map(product, probe, batch_size=CHUNK), axis=0) / count
    linear = size * jnp.trace(sde.drift_matrix(t), axis1=1, axis2=2)
    return sde.drift(z, t) - 0.5 * linalg.apply(rate, score), linear - 0.5 * total


def _inner(a, b):
    """Inner products over all axes but the first."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))
