"""Time is an array (batch,) of floats at every door: methods of processes, scores, networks, denoising."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import exact, objectives, samplers, score, sdes
from sgmjax.samplers.common import denoise_step
from sgmjax.sdes import noise_level

PROCESSES = {name: getattr(sdes, name)() for name in ("vp", "subvp", "ve", "psld", "third_order")}
BAD = {
    "number": (0.5, r"shape \(batch,\), got \(\): one time for each state"),
    "NumPy's": (np.float64(0.5), r"got \(\):"),
    "array of no axes": (jnp.float32(0.5), r"got \(\):"),
    "column": (jnp.full((2, 1), 0.5), r"got \(2, 1\):"),
    "list": ([0.5, 0.5], "got list:"),
    "integers": (jnp.ones(2, int), "t must be floating, got int32"),
}
DOORS = {
    "transition": lambda sde, z, t: sde.transition(t),
    "transition by name": lambda sde, z, t: sde.transition(t=t, matching="dsm"),
    "end of a stretch": lambda sde, z, t: sde.transition_between(jnp.full(2, 0.1), t),
    "reverse": lambda sde, z, t: sde.reverse_linear(t, jnp.full(2, 0.1)),
    "diffusion_between": lambda sde, z, t: sde.diffusion_between(t, jnp.ones(2)),
    "drift": lambda sde, z, t: sde.drift(z, t),
    "diffusion": lambda sde, z, t: sde.diffusion(t),
    "diffusion_squared": lambda sde, z, t: sde.diffusion_squared(t),
    "distance_to_prior": lambda sde, z, t: sde.distance_to_prior(t),
    "reverse_drift": lambda sde, z, t: samplers.reverse_drift(lambda z, t: z, sde, z, t),
    "denoise": lambda sde, z, t: denoise_step(lambda z, t: z, sde, z, t, True),
    "noise_level": lambda sde, z, t: noise_level(sde, t),
    "exact score": lambda sde, z, t: exact.ring().score_fn(sde)(z, t),
    "network": lambda sde, z, t: score.eps_from_network(lambda x, c: x, sde)(z, t),
    "network's score": lambda sde, z, t: score.score_from_network(lambda x, c: x, sde)(z, t),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", BAD)
def test_other_times_are_refused_in_one_line(kind: str, door: str):
    time, message = BAD[kind]
    for sde in PROCESSES.values():
        with pytest.raises(ValueError, match=message) as caught:
            DOORS[door](sde, jnp.ones((2, sde.k, 2)), time)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_check_costs_nothing_when_compiled(name: str):
    """Shapes are known while tracing: the program is that of the method without it."""
    sde, t = PROCESSES[name], jnp.full(2, 0.5)
    plain = type(sde).transition.__wrapped__  # type: ignore[attr-defined]
    with_check, without = (jax.make_jaxpr(f)(t) for f in (sde.transition, lambda t: plain(sde, t)))
    assert str(with_check) == str(without)
    with pytest.raises(ValueError, match=r"got \(\)"):
        jax.eval_shape(sde.transition, jnp.float32(0.5))


def test_noise_levels_are_refused_by_their_own_name():
    for level, message in (
        (1.0, r"got \(\): one level"),
        (jnp.ones((2, 1)), r"got \(2, 1\)"),
        (jnp.ones(2, int), "int32"),
    ):
        with pytest.raises(ValueError, match=f"^sigma must .*{message}"):
            sdes.time_at_noise_level(sdes.ve(), level)
    with pytest.raises(ValueError, match="^sigma must have shape"):
        score.denoiser(lambda z, t: -z, sdes.vp())(jnp.ones((2, 2)), jnp.ones((2, 1)))


def test_times_of_noise_levels_have_derivatives():
    """VE's sigma = 0.01 10^(4 t), so dt/dsigma = 1 / (sigma log 1e4), none beyond its ends; PSLD as its level says."""
    ve, psld, levels = sdes.ve(sigma_min=0.01, sigma_max=100.0), sdes.psld(), jnp.array([1.0, 3.0, 1e-5, 1e3])
    slope = jax.grad(lambda sigma: jnp.sum(sdes.time_at_noise_level(ve, sigma)))(levels)
    np.testing.assert_allclose(slope, [1 / np.log(1e4), 1 / (3 * np.log(1e4)), 0, 0], rtol=1e-4)
    to_max = jax.grad(lambda high: sdes.time_at_noise_level(sdes.ve(sigma_min=0.01, sigma_max=high), jnp.ones(1))[0])
    np.testing.assert_allclose(to_max(100.0), -np.log(100) / np.log(1e4) ** 2 / 100, rtol=1e-4)
    t = jnp.array([0.1, 0.5])
    level, rate = jax.jvp(lambda t: noise_level(psld, t), (t,), (jnp.ones(2),))
    back, inverse = jax.jvp(lambda sigma: sdes.time_at_noise_level(psld, sigma), (level,), (jnp.ones(2),))
    np.testing.assert_allclose(back, t, rtol=1e-5)
    np.testing.assert_allclose(inverse, 1 / rate, rtol=1e-4)
    narrow = sdes.time_at_noise_level(ve, jnp.ones(2, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16 and narrow.tolist() == [0.5, 0.5]


WIDE = {
    "geometric_vp": lambda f: sdes.geometric_vp(),
    "vp": lambda f: sdes.vp(beta_min=f(0.1), beta_max=f(20.0), sigma2_0=f(0.01)),
    "subvp": lambda f: sdes.subvp(beta_min=f(0.1), beta_max=f(20.0), sigma2_0=f(0.01)),
    "ve": lambda f: sdes.ve(sigma_min=f(0.01), sigma_max=f(50.0)),
    "ve, uniform": lambda f: sdes.ve(sigma_min=f(0.01), sigma_max=f(50.0), sigma_dist="uniform"),
    "psld": lambda f: sdes.psld(beta_min=f(8.0), beta_max=f(8.0), gamma=f(0.01), nu=f(4.01), kappa=f(0.04)),
}


@pytest.mark.parametrize("name", WIDE)
def test_results_have_the_type_of_time_whatever_that_of_the_settings(name: str, x64):
    t = jnp.array([0.2, 0.5], jnp.float32)

    def values(sde):
        kernels = (sde.transition(t), sde.transition_between(t / 2, t), sde.reverse_linear(t, t / 2))
        numbers = (sde.drift_matrix(t), sde.diffusion(t), sde.diffusion_between(t / 2, t), sde.distance_to_prior(t))
        return *numbers, *(part for kernel in kernels for part in (kernel.mean, kernel.factor))

    expected = values(WIDE[name](float))
    for kind in (np.float64, lambda v: jnp.asarray(v, jnp.float64)):
        for found, value in zip(values(WIDE[name](kind)), expected):
            assert found.dtype == value.dtype == jnp.float32
            np.testing.assert_allclose(found, value, rtol=2e-6)
    variance = sdes.ve(sigma_min=np.float64(0.01), sigma_max=np.float64(50.0)).inverse_variance(t)
    assert variance.dtype == jnp.float32
    law = objectives.lsgm_mode(sdes.ve(sigma_min=np.float64(0.01), sigma_max=np.float64(5.0)), "ll_iw")
    assert {value.dtype.name for value in law.sample(t)} == {"float32"}
    # VP's B grows with beta_max as t^2 / 2, and its mean is exp(-B / 2)
    slope = jax.grad(lambda b: sdes.vp(beta_min=0.1, beta_max=b).transition(t).mean[1, 0, 0])(jnp.asarray(20.0))
    np.testing.assert_allclose(slope, -(0.5**2) / 4 * np.exp(-0.5 * (0.05 + 19.9 * 0.125)), rtol=1e-5)


def test_a_process_of_ones_own_has_the_same_door():
    class Slow(sdes.VE):
        def diffusion(self, t):
            return 0.1 * super().diffusion(t)

    with pytest.raises(ValueError, match="t must have shape"):
        Slow(sigma_min=0.1, sigma_max=1.0).diffusion(0.5)
