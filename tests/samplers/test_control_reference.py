"""Inpainting, colourisation and guidance on recorded draws, against the recorded official programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import samplers, score, sdes
from sgmjax.samplers import _predictor_corrector as predictor_corrector
from sgmjax.samplers import guidance, inpainting

pytestmark = pytest.mark.reference

PSLD = refdata.load_json("psld_kernels.json")
SCORESDE = refdata.load_json("scoresde_kernels.json")
T_MIN, N, SNR = 1e-3, 25, 0.16  # of every recorded run
STEPS = 6  # of PSLD's


def nhwc(x, phases: int = 2):
    x = jnp.asarray(x, jnp.float64)
    x = x.reshape(x.shape[0], phases, x.shape[1] // phases, *x.shape[2:])
    return jnp.moveaxis(x, 2, -1)


def images(x):
    return nhwc(x, 1)[:, 0]


def psld(name: str) -> sdes.Recipe:
    c = PSLD[name]
    return sdes.psld(
        beta_min=c["beta_min"], beta_max=c["beta_max"], gamma=c["gamma"], nu=c["nu"], kappa=c["kappa"],
        factor=c["decomp_mode"], numerical_eps=c["numerical_eps"],
    )  # fmt: skip


def psld_network(x, t):
    return 0.1 * jnp.sin(x) + 0.05 * jnp.cos(t.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("name", refdata.cases(refdata.load_npz("psld_samplers.npz"), r"inpaint/(.+)/f64"))
def test_psld_inpainting(x64, reference, name):
    """`ip_em_sde`: the known part lags a step behind, the start is not made to agree with it, denoised by its mean."""
    arrays = refdata.load_npz("psld_samplers.npz")
    sde = psld(name)
    full, half = arrays["inpaint/noises_full"], arrays["inpaint/noises_half"]
    initial = nhwc(np.concatenate([half[0], half[1] * PSLD[name]["m"] ** 0.5], axis=1))
    x0, mask = images(arrays["inpaint/x0"]), images(arrays["inpaint/mask"])
    noise = jnp.stack([jnp.stack([nhwc(full[i]), nhwc(full[i + 1])]) for i in range(1, 2 * STEPS - 1, 2)])
    constraint = inpainting.inpaint(sde, x0, mask, lagging=True)
    _, info = samplers.em(
        jax.random.key(0), score.score_from_network(psld_network, sde), sde, x0.shape,
        times=samplers.time_grid("uniform", STEPS, t_min=T_MIN), initial=initial, noise=noise, constraint=constraint,
        dtype=jnp.float64,
    )  # fmt: skip
    np.testing.assert_allclose(info.state, nhwc(arrays[f"inpaint/{name}/f64"]), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(info.state, nhwc(arrays[f"inpaint/{name}/official"]), rtol=1e-4, atol=1e-4)
    assert info.nfe == STEPS


@pytest.mark.parametrize(
    "name, temperature, denoise",
    refdata.cases(refdata.load_npz("psld_guided.npz"), r"(.+)/f64/temp([\d.]+)/den(\d)"),
)
def test_psld_guidance(x64, reference, name, temperature, denoise):
    """`cc_em_sde`: the classifier is given the reverse time."""
    arrays = refdata.load_npz("psld_guided.npz")
    sde, steps = psld(name), STEPS - int(denoise)

    def logits(z, t):
        flat = jnp.moveaxis(z, -1, 2).reshape(len(z), -1)  # official order: variable, channel, row, column
        return jnp.tanh(flat) @ arrays["clf_W"].T + t[:, None] * arrays["clf_wt"][None]

    score_fn = score.score_from_network(psld_network, sde)

    def run(**options):
        guided = guidance.guided_score(score_fn, logits, 3, float(temperature), sde=sde, **options)
        initial = nhwc(arrays["u_init"])
        _, info = samplers.em(
            jax.random.key(0), guided, sde, (len(initial), *initial.shape[2:]),
            times=samplers.time_grid("uniform", STEPS, t_min=T_MIN, denoise=denoise == "1"), denoise=denoise == "1",
            initial=initial, noise=jnp.stack([nhwc(n)[None] for n in arrays["noises"][:steps]]), dtype=jnp.float64,
        )  # fmt: skip
        return info.state

    state = run(reverse_time=True)
    key = f"{name}/f64/temp{temperature}/den{denoise}"
    np.testing.assert_allclose(state, nhwc(arrays[key]), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(state, nhwc(arrays[key.replace("f64", "official")]), rtol=1e-4, atol=1e-4)
    assert not np.allclose(run(), state, atol=1e-3)


def scoresde(name: str):
    """The process and its recorded network's score. `scoresde_kernels.json` has the parameters."""
    c = SCORESDE[name]
    if name == "ve":
        sde = sdes.ve(sigma_min=c["sigma_min"], sigma_max=c["sigma_max"])

        def score_fn(z, t):
            s = sde.sigma(t).reshape(-1, *(1,) * (z.ndim - 1))
            return -z / (1 + s**2) + 0.1 * jnp.sin(z / (1 + s)) / (1 + s)

        return sde, score_fn

    sde = sdes.vp(beta_min=c["beta_0"], beta_max=c["beta_1"])

    def network(x, label):
        return 0.1 * jnp.sin(x) + 0.05 * jnp.cos(0.01 * label.reshape(-1, *(1,) * (x.ndim - 1)))

    return sde, score.score_from_network(network, sde, time_conditioning="t999", parameterization="eps")


@pytest.mark.parametrize(
    "name, task, predictor, corrector",
    refdata.cases(
        refdata.load_npz("scoresde_controllable.npz"),
        r"f64/(\w+)/(inpainter|colorizer)/(euler_maruyama|reverse_diffusion)_(\w+)",
    ),
)
def test_scoresde_controllable(x64, reference, name, task, predictor, corrector):
    """The known part imposed after both updates, at the time they started from; "x_mean" keeps the rest's noise."""
    arrays = refdata.load_npz("scoresde_controllable.npz")
    sde, score_fn = scoresde(name)
    prior, *noises = (images(n)[:, None] for n in arrays["noises"])
    prior = prior * (sde.sigma_max if name == "ve" else 1.0)
    if task == "inpainter":
        x0, mask = images(arrays["data"]), images(arrays["mask"])
        constraint = inpainting.inpaint(sde, x0, mask, lagging=True)
        initial = (x0 * mask + prior[:, 0] * (1 - mask))[:, None]  # without noise, as published
    else:
        x0, basis = images(arrays["gray"]), inpainting.grey_basis()
        constraint = inpainting.colorize(sde, x0, lagging=True)
        first = jnp.asarray([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
        initial = inpainting.turn(inpainting.turn(x0, basis) * first, basis.T) + prior[:, 0] * (1 - first)
        initial = initial[:, None]
    # recorded: corrector, known part, predictor, known part; here: corrector, predictor, known part twice
    order = [0, 2, 1, 3] if corrector != "none" else [1, 0, 2]
    noise = jnp.stack(noises[: N * len(order)]).reshape(N, len(order), *prior.shape)[:, jnp.asarray(order)]
    _, info = predictor_corrector.pc(
        jax.random.key(0), score_fn, sde, x0.shape,
        times=predictor_corrector.score_sde_times(N, t_min=T_MIN), num_scales=N,
        predictor={"euler_maruyama": "em"}.get(predictor, predictor), corrector=corrector, snr=SNR, denoise="x_mean",
        constraint=constraint, initial=initial, noise=noise, dtype=jnp.float64,
    )  # fmt: skip
    expected = images(arrays[f"f64/{name}/{task}/{predictor}_{corrector}"])
    size = np.abs(expected).max()
    # the published grey direction is rounded to seven digits
    np.testing.assert_allclose(info.state[:, 0] / size, expected / size, atol=1e-6)
