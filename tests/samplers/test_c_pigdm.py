"""Conditional conjugate integrators: exact for white data, of first order for others, and the official program's."""

from __future__ import annotations

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax.samplers import measurements as operators

PROCESSES = {
    "vp": sdes.vp(),
    "ve": sdes.ve(sigma_max=20.0),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
    "oblique": analytic.PROCESSES["oblique"],
}
S = 0.9
A = 1.3 * np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])[:1]
Y = A @ np.array([0.8, 0.7, 0.0])
END = 0.02
WHITE = exact.GaussianMixture(means=np.zeros((1, 3)), stds=np.full(1, S), log_weights=np.zeros(1))
MIXTURE = exact.GaussianMixture(
    means=np.array([[1.0, 0.5, -0.3], [-1.0, 0.4, 0.2]]), stds=np.array([0.3, 0.4]), log_weights=np.log([0.5, 0.5])
)


def flow(sde, data, noise_std, z):
    """The guided flow down to END by an adaptive solver, which knows nothing of the integrator."""
    m = samplers.measurement(operators.matrix(A), Y, noise_std)
    given = samplers.posterior_score(data.score_fn(sde), sde, m, method="pigdm", data_std=S, shorten=False)
    tight = {"t_min": END, "rtol": 1e-9, "atol": 1e-9, "denoise": False, "dtype": jnp.float64}
    return jax.jit(lambda z: samplers.ode(jax.random.key(1), given, sde, (len(z), 3), initial=z, **tight)[0])(z)


def integrated(sde, data, noise_std, z, times, **options):
    m = samplers.measurement(operators.matrix(A), Y, noise_std)
    run = lambda z: samplers.c_pigdm(  # noqa: E731
        jax.random.key(1), data.score_fn(sde), sde, (len(z), 3), times=times, measurement=m, data_std=S, initial=z,
        denoise=False, dtype=z.dtype, **options,
    )  # fmt: skip
    return jax.jit(run)(z)[0]


@pytest.mark.parametrize("noise_std", tiers.alike([0.2, 0.0], [0.2]))
@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["psld"]))
def test_one_step_is_exact_for_white_data(name, noise_std, x64):
    sde = PROCESSES[name]
    z = sde.prior_sample(jax.random.key(0), (6, 3), jnp.float64)
    true = flow(sde, WHITE, noise_std, z)
    np.testing.assert_allclose(integrated(sde, WHITE, noise_std, z, [1.0, END]), true, rtol=0, atol=1e-7)


@pytest.mark.parametrize("lam", tiers.alike([0.0, 0.7], [0.7]))
@pytest.mark.parametrize("name", tiers.alike(list(PROCESSES), ["vp", "psld"]))
def test_it_converges_to_the_guided_flow_at_first_order(name, lam, x64):
    sde = PROCESSES[name]
    z = sde.prior_sample(jax.random.key(0), (6, 3), jnp.float64)
    true = flow(sde, MIXTURE, 0.1, z)
    few, many = (integrated(sde, MIXTURE, 0.1, z, np.geomspace(1.0, END, n + 1), lam=lam) for n in (60, 120))
    assert 1.8 < float(jnp.abs(few - true).max() / jnp.abs(many - true).max()) < 2.3
    assert float(jnp.abs(2 * many - few - true).max()) < 3e-3  # without the first order of the error


def test_in_float32(x64):
    sde, times = PROCESSES["psld"], np.geomspace(1.0, 1e-3, 11)
    z = sde.prior_sample(jax.random.key(0), (6, 3), jnp.float64)
    true = integrated(sde, MIXTURE, 0.1, z, times)
    found = integrated(sde, MIXTURE, 0.1, z.astype(jnp.float32), times)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, true, rtol=0, atol=5e-5)


# mandt-lab/c-pigdm (ConjugatePGDMSampler, VP of 0.1 to 20) run on these inputs in float64, its integrals by quadrature.
# Rows of one length; the starts are default_rng(0).normal(size=(5, 3)).
ROWS = np.array([[1.0, 1.0, 0.0], [0.5, -0.5, 1.0]]) * np.array([[1.0], [np.sqrt(2 / 1.5)]])
OFFICIAL_TIMES = [0.6, 0.45, 0.3, 0.2, 0.1, 0.04, 0.01]
OFFICIAL = {
    (0.5, 3.0): [
        [0.6069380829984, 0.4569916191613, -0.0683925068927],
        [0.6122433167546, 0.3638095635409, -0.1360838488387],
        [1.1136600647215, 0.7050905149803, -0.4542583141290],
        [-0.8695910834503, 0.3755523895062, 0.1375438467269],
        [-1.2826883518338, 0.5049288509560, -0.2015289193026],
    ],
    (-0.4, 7.0): [
        [0.6360397822489, 0.4587932092151, -0.1384304414464],
        [0.6737175983102, 0.3567517357685, -0.2214865642567],
        [1.0307231514181, 0.6031892095504, -0.4814153267207],
        [-0.4920413310512, 0.5083091384211, 0.0858601680333],
        [-0.9424602154476, 0.6697486531343, -0.0842099459595],
    ],
}


@pytest.mark.parametrize("lam, weight", OFFICIAL)
def test_the_published_algorithm_is_the_official_program_s(lam, weight, x64):
    z = np.random.default_rng(0).normal(size=(5, 3))[:, None]
    x, info = samplers.c_pigdm(
        jax.random.key(0), MIXTURE.score_fn(PROCESSES["vp"]), PROCESSES["vp"], (5, 3), times=OFFICIAL_TIMES, lam=lam,
        measurement=samplers.measurement(operators.matrix(ROWS), np.array([1.1, -0.4])), weight=weight, initial=z,
        denoise=False, dtype=jnp.float64,
    )  # fmt: skip
    assert info.nfe == 6
    np.testing.assert_allclose(x, OFFICIAL[lam, weight], rtol=0, atol=1e-11)


@pytest.mark.parametrize("operator, shape", [
    (operators.inpainting(np.arange(16).reshape(4, 4, 1) % 2), (8, 1)),
    (operators.super_resolution(2), (2, 2, 1)),
])  # fmt: skip
def test_images_keep_what_was_measured(operator, shape, x64):
    """Without noise, in ten steps."""
    sde = PROCESSES["psld"]
    images = exact.GaussianMixture(
        means=np.stack([np.full((4, 4, 1), 0.5), np.full((4, 4, 1), -0.5)]),
        stds=np.full(2, 0.4),
        log_weights=np.zeros(2),
    )
    y = np.random.default_rng(3).uniform(-1, 1, (4, *shape)).astype(np.float32).reshape(4, -1)
    y = y[:, : int(np.prod(shape))].reshape((4, *jax.eval_shape(operator, jnp.zeros((4, 4, 1))).shape))
    x, _ = samplers.c_pigdm(
        jax.random.key(0), images.score_fn(sde), sde, (4, 4, 4, 1), times=np.geomspace(1.0, 1e-3, 11),
        measurement=samplers.measurement(operator, y), data_std=1.0,
    )  # fmt: skip
    np.testing.assert_allclose(jax.vmap(operator)(x), y, atol=2e-3)


def drawn(operator=operators.matrix(A), noise_std=0.0, times=(1.0, 0.1), sde=PROCESSES["vp"], **options):
    m = samplers.measurement(operator, np.zeros(1), noise_std)
    return samplers.c_pigdm(jax.random.key(0), lambda z, t: -z, sde, (2, 3), times=times, measurement=m, **options)


BAD = [
    (lambda: drawn(lambda x: x[:1] ** 2), "c_pigdm needs a linear A"),
    (lambda: drawn(operators.matrix([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])), "rows are orthogonal and of one length"),
    (lambda: drawn(noise_std=0.1, weight=3.0), "weight = 3: the published gain has no noise"),
    (lambda: drawn(weight=-1.0), "weight"),
    (lambda: drawn(data_std=0.0), "data_std"),
    (lambda: drawn(lam=np.inf), "lam = inf: must be a finite number"),
    (lambda: drawn(times=(1.0, 0.0)), "end above 0|above 0"),
    (lambda: jax.eval_shape(lambda std: drawn(noise_std=std), jnp.ones(())), "noise_std: c_pigdm needs one number"),
    (lambda: jax.eval_shape(lambda sde: drawn(sde=sde), PROCESSES["vp"]), "the process is traced"),
]


@pytest.mark.parametrize("make, message", BAD, ids=[message for _, message in BAD])
def test_errors_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
