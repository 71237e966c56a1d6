"""The noise-conditioned classifier of guided sampling: cross entropy of the class given z_t and the forward time t.

    L = E_t E_{x_0, z_t} [ -log p(class | z_t, t) ],    z_t ~ N(E_t (x_0, 0, ...), L_t L_t^T) (hybrid score matching)

The minimiser is the class posterior of the noised state, whose gradient guides (`samplers.guidance`).

Reference: Song et al. 2021, app. I.1; Pandey & Mandt 2023, class-conditional synthesis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from sgmjax._inputs import check_labels, check_network_range
from sgmjax._types import Data, Key, Labels, LogitsFn, PerExample, State, Times
from sgmjax.objectives.time_law import TimeLaw, at_least_float32, check_time_law
from sgmjax.sdes import SDE
from sgmjax.sdes.base import Matching


def classifier_loss(
    logits_fn: LogitsFn, sde: SDE, z0: State, labels: Labels, t: Times, eps: State, *, matching: Matching = "hsm"
) -> tuple[PerExample, Bool[jax.Array, " batch"]]:
    """Per-example cross entropy for given times and noise.

    Args:
        logits_fn: logits_fn(z, t) -> (batch, classes), t the forward time.
        sde: the process.
        z0: (batch, k, *event); `sde.augment(x0)` for HSM, `sde.augment(x0, key)` for DSM.
        labels: (batch,) integers 0 ... classes - 1.
        t: (batch,) in (0, 1].
        eps: (batch, k, *event) standard normal.
        matching: the kernel, see `SDE.transition`.

    Returns:
        (batch,) losses in nats, and (batch,) whether the likeliest class was the right one.

    Raises:
        InputError: labels that are no classes.

    Examples:
        >>> sde, t = sdes.vp(), jnp.full(2, 0.5)
        >>> z0, eps, labels = sde.augment(jnp.zeros((2, 3))), jnp.ones((2, 1, 3)), jnp.array([0, 1])
        >>> logits_fn = lambda z, t: jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2]]))
        >>> losses, right = objectives.classifier_loss(logits_fn, sde, z0, labels, t, eps)
        >>> [round(float(loss), 3) for loss in losses], right.tolist()  # -log 0.8 and -log 0.2
        ([0.223, 1.609], [True, False])
    """
    check_labels(labels, None, length=z0.shape[0])
    z_t = sde.transition(t, matching).perturb(z0, eps)
    log_probs = jax.nn.log_softmax(logits_fn(z_t, t), axis=-1)
    check_labels(labels, log_probs.shape[-1])
    labels = jnp.asarray(labels, jnp.int32)
    loss = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    return loss, jnp.argmax(log_probs, axis=-1) == labels


def classifier(
    key: Key, logits_fn: LogitsFn, sde: SDE, x0: Data, labels: Labels, *, time_law: TimeLaw, matching: Matching = "hsm"
) -> tuple[PerExample, Bool[jax.Array, " batch"]]:
    """`classifier_loss` at drawn times and noises.

    Args:
        key: typed PRNG key.
        x0: (batch, *event) data.
        time_law: how times are drawn; the losses carry its weights.
        logits_fn, sde, labels, matching: see `classifier_loss`.

    Raises:
        InputError: x0 of whole numbers, as images are stored; a time_law that is none.

    Examples:
        >>> sde, x0, labels = sdes.vp(), jnp.zeros((4, 2)), jnp.array([0, 1, 2, 3])
        >>> logits_fn = lambda z, t: jnp.zeros((len(z), 10))  # knows nothing
        >>> losses, right = objectives.classifier(
        ...     jax.random.key(0), logits_fn, sde, x0, labels, time_law=objectives.uniform())
        >>> [round(float(loss), 3) for loss in losses]  # log 10
        [2.303, 2.303, 2.303, 2.303]
    """
    check_network_range(x0)
    check_time_law(time_law)
    x0 = x0.astype(at_least_float32(x0.dtype))
    time_key, momentum_key, noise_key = jax.random.split(key, 3)
    t, weight = time_law.draw(time_key, x0.shape[0], x0.dtype)
    z0 = sde.augment(x0, momentum_key if matching == "dsm" else None)
    eps = jax.random.normal(noise_key, z0.shape, z0.dtype)
    loss, right = classifier_loss(logits_fn, sde, z0, labels, t, eps, matching=matching)
    return weight * loss, right
