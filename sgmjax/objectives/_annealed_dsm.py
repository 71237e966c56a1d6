"""Annealed denoising score matching: the objective of NCSN and NCSNv2, at L noise levels.

    loss = 1/L sum_i lambda(sigma_i) E [ 1/2 |s(x~, sigma_i) + (x~ - x) / sigma_i^2|^2 ],    x~ = x + sigma_i n,

with lambda(sigma) = sigma^p, p = anneal_power. The level is drawn uniformly for each example. The papers take p = 2,
the one for which the terms have about the same size at all levels.

The levels are times of `sdes.ve` (see `sdes.noise_levels`), so this is `score_matching` at these times. In its terms
the score is -eps_hat / sigma and the loss 1/2 sigma^(p - 2) |eps_hat - n|^2. The same network trains in continuous time
with `time_law=uniform(t_min)`.

Reference: Song & Ermon 2019, eqs. (5) and (6); Song & Ermon 2020, eq. (1).
"""

from __future__ import annotations

from sgmjax._types import Data, EpsFn, Key, PerExample, State, Times
from sgmjax.objectives._score_matching import score_matching, score_matching_loss
from sgmjax.objectives.time_law import levels
from sgmjax.sdes import VE


def annealed_dsm_loss(
    eps_fn: EpsFn, sde: VE, z0: State, t: Times, eps: State, *, anneal_power: float = 2.0
) -> PerExample:
    """Per-example loss for given levels and noise.

    Args:
        eps_fn: eps_fn(z, t) -> (batch, 1, *event), -sigma times the score: `sgmjax.score.eps_from_network` makes it
            from a network (parameterization "score" for one that returns the score).
        sde: `sdes.ve(sigma_max=sigma_1, sigma_min=sigma_L)`, whose sigma_dist says how the levels lie between.
        z0: (batch, 1, *event); `sde.augment(x0)`.
        t: (batch,) times of levels, `sdes.level_times(L)[i]` for level i.
        eps: (batch, 1, *event) standard normal, n.
        anneal_power: p.

    Returns:
        (batch,) losses, summed over the event.

    Examples:
        >>> sde, t = sdes.ve(sigma_min=0.01, sigma_max=50.0), jnp.asarray(sdes.level_times(10)[:1])
        >>> z0, eps = sde.augment(jnp.zeros((1, 4))), jnp.ones((1, 1, 4))
        >>> objectives.annealed_dsm_loss(lambda z, t: jnp.zeros_like(z), sde, z0, t, eps).tolist()  # 1/2 |eps|^2
        [2.0]
    """
    return score_matching_loss(
        eps_fn, sde, z0, t, eps, weighting="annealed", anneal_power=anneal_power, reduce="half_sum"
    )


def annealed_dsm(
    key: Key, eps_fn: EpsFn, sde: VE, x0: Data, *, num_levels: int, anneal_power: float = 2.0
) -> PerExample:
    """Draw a level and noise for each example and return the (batch,) losses.

    Args:
        key: typed PRNG key.
        x0: (batch, *event) data.
        num_levels: L.
        eps_fn, sde, anneal_power: see `annealed_dsm_loss`.

    Raises:
        ValueError: fewer than two levels.

    Examples:
        >>> sde = sdes.ve(sigma_min=0.01, sigma_max=50.0)
        >>> eps_fn = lambda z, t: z / sde.sigma(t)[:, None, None]  # exact for data that are one point, 0
        >>> losses = objectives.annealed_dsm(jax.random.key(0), eps_fn, sde, jnp.zeros((4, 2)), num_levels=10)
        >>> np.allclose(losses, 0, atol=1e-6)
        True
    """
    return score_matching(
        key, eps_fn, sde, x0, time_law=levels(num_levels), weighting="annealed", anneal_power=anneal_power,
        reduce="half_sum",
    )  # fmt: skip
