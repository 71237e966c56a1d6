"""How much the objective of LSGM varies over t: importance sampling against uniform times.

    python benchmarks/lsgm_variance.py [--processes vp,psld] [--draws 16384] [--t_min 0.01]

The latent is a mixture of Gaussians of unit variance in 8 dimensions, the prior its exact score with a fixed error of
5% of the normal part's weight, such as a trained network has. For each process and weighting the table gives, with
uniform and with importance-sampled times,

    objective   mean of the prior's objective, the same integral under both: a check
    over t      standard deviation of E[objective | t] over the drawn t, in units of the mean: what sampling of t adds
    total       standard deviation of the objective of one example, noise and latent included
    CE          standard deviation of the cross entropy of one example reweighted from these times (Algorithm 3), in
                nats a dimension; its mean is the same for all
"""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax import exact, objectives, score, sdes

DIMENSIONS, NODES = 8, 256
PROCESSES = {
    "vp": sdes.vp(),
    "geometric_vp": sdes.geometric_vp(),
    "subvp": sdes.subvp(),
    "ve": sdes.ve(sigma_min=0.01, sigma_max=13.0),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
}
WEIGHTINGS = ("ll", "drop_all", "drop_sigma2t", "rescale")


def latent() -> exact.GaussianMixture:
    """Eight components of standard deviation 0.5, every dimension of the mixture with variance 1."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(8, DIMENSIONS))
    means -= means.mean(axis=0)
    return exact.mixture(means * np.sqrt(0.75) / means.std(axis=0), 0.5)


def prior(sde, data):
    """Prediction eps_fn(params, z, t): the exact one, 5% of the way towards that of normal data."""
    score_fn, normal = data.score_fn(sde), score.normal_eps(sde)

    def eps_fn(params, z, t):
        kernel = sde.transition(t)
        return 0.95 * kernel.restrict(kernel.eps(score_fn(z, t))) + 0.05 * normal(z, t)

    return eps_fn


@functools.partial(jax.jit, static_argnames="draws")
def losses(key, sde, data, p, *, draws: int):
    """Objective and cross entropy of `draws` examples at drawn times."""
    latent_key, key = jax.random.split(key)
    z0, _ = data.sample(latent_key, draws)
    out = objectives.lsgm(key, prior(sde, data), {}, sde, z0, p=p)
    return out.p_objective, jnp.mean(out.cross_entropy, axis=1)


@functools.partial(jax.jit, static_argnames="repeats")
def means_given_t(key, sde, data, p, *, repeats: int):
    """E[objective | t] at NODES stratified times of the proposal, each by `repeats` examples."""
    draw = p.sample((jnp.arange(NODES) + 0.5) / NODES)
    latent_key, noise_key = jax.random.split(key)
    z0, _ = data.sample(latent_key, NODES * repeats)
    noise = jax.random.normal(noise_key, (NODES * repeats, sde.k, DIMENSIONS))
    times = type(draw)(jnp.repeat(draw.t, repeats), jnp.repeat(draw.weight, repeats))
    out = objectives.lsgm_losses(
        prior(sde, data), {}, sde, z0, times, noise, weighting=p.weighting, cross_entropy=False
    )
    return jnp.mean(out.p_objective.reshape(NODES, repeats), axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default=",".join(PROCESSES))
    parser.add_argument("--draws", type=int, default=16_384)
    parser.add_argument("--t_min", type=float, default=0.01)
    flags = parser.parse_args()
    data = latent()
    print("| process | weighting | objective u / iw | over t u / iw | ratio of variances | total u / iw | CE u / iw |")
    print("|---|---|---|---|---|---|---|")
    for name in flags.processes.split(","):
        sde = PROCESSES[name]
        for weighting in WEIGHTINGS:
            row = []
            for how in ("uniform", "iw"):
                p = objectives.lsgm_mode(sde, f"{weighting}_{how}", t_min=flags.t_min)
                objective, ce = losses(jax.random.key(1), sde, data, p, draws=flags.draws)
                given = means_given_t(jax.random.key(2), sde, data, p, repeats=max(flags.draws // NODES, 1))
                values = [np.asarray(v, np.float64) for v in (objective, given, ce)]
                row.append((values[0].mean(), values[1].std() / values[1].mean(), values[0].std(), values[2].std()))
            u, iw = row
            print(
                f"| {name} | {weighting} | {u[0]:.4g} / {iw[0]:.4g} | {u[1]:.3g} / {iw[1]:.3g} | "
                f"{((u[0] * u[1]) / (iw[0] * iw[1])) ** 2:.3g} | {u[2]:.4g} / {iw[2]:.4g} | {u[3]:.3g} / {iw[3]:.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
