"""Whole sampler runs on recorded noise, and ODE end points, against the recorded official programs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import samplers, score, sdes
from sgmjax.samplers._euler_maruyama import em_step

CLD = refdata.Recorded(
    {k.split("/")[0]: v for k, v in refdata.load_json("cld_kernels.json").items() if k.endswith("epsoff/")},
    "cld_kernels.json",
)
PSLD = refdata.load_json("psld_kernels.json")

pytestmark = pytest.mark.reference

STEPS, T_MIN = 6, 1e-3  # of every recorded run


def nhwc(x, phases: int = 2):
    x = jnp.asarray(x, jnp.float64)
    x = x.reshape(x.shape[0], phases, x.shape[1] // phases, *x.shape[2:])
    return jnp.moveaxis(x, 2, -1)


def t_column(t, ndim: int):
    return t.reshape(-1, *(1,) * (ndim - 1))


def half_network(x, t):
    x, m = jnp.split(x, 2, axis=-1)
    return 0.1 * jnp.sin(m) + 0.07 * jnp.cos(x) + 0.05 * jnp.cos(t_column(t, x.ndim))


def full_network(x, t):
    return 0.1 * jnp.sin(x) + 0.05 * jnp.cos(t_column(t, x.ndim))


def psld(name: str, factor: str, numerical_eps: float | None = None) -> sdes.Recipe:
    c = PSLD[name]
    return sdes.psld(
        beta_min=c["beta_min"], beta_max=c["beta_max"], gamma=c["gamma"], nu=c["nu"], kappa=c["kappa"], factor=factor,
        numerical_eps=c["numerical_eps"] if numerical_eps is None else numerical_eps,
    )  # fmt: skip


def cld(name: str, numerical_eps: float | None = None) -> sdes.Recipe:
    c = CLD[name]
    return sdes.cld(
        beta_min=c["beta0"], beta_max=c["beta0"] + c["beta1"], m_inv=c["m_inv"], kappa=c["gamma"],
        numerical_eps=c["numerical_eps"] if numerical_eps is None else numerical_eps,
    )  # fmt: skip


DRAWS = {"em": 1, "sscs": 2}


@functools.partial(jax.jit, static_argnames=("kind", "grid", "denoise", "parameterization", "numerical_eps"))
def replay(sde, initial, noises, *, kind, grid, denoise, parameterization="eps", numerical_eps=0.0):
    """The final state of a run on recorded noise: one compilation for all processes of equal structure."""
    network = half_network if sde.num_noised == 1 else full_network
    score_fn = score.score_from_network(network, sde, parameterization=parameterization)
    options = {"official": True, "numerical_eps": numerical_eps} if kind == "sscs" else {}
    _, info = samplers.SAMPLERS[kind](
        jax.random.key(0), score_fn, sde, (initial.shape[0], *initial.shape[2:]),
        times=samplers.time_grid(grid, STEPS, t_min=T_MIN, denoise=denoise), denoise=denoise, initial=initial,
        noise=noises, dtype=jnp.float64, **options,
    )  # fmt: skip
    return info


def recorded_draws(arrays, kind: str, denoise: int):
    """(initial, noises) of a recorded run."""
    steps, draws = STEPS - denoise, DRAWS[kind]
    noise = jnp.stack([nhwc(n) for n in arrays["noises"][: steps * draws]])
    return nhwc(arrays["u_init"]), noise.reshape(steps, draws, *noise.shape[1:])


@pytest.mark.parametrize(
    "name, factor, denoise, grid, kind",
    refdata.cases(
        refdata.load_npz("psld_samplers.npz"),
        r"(.+)/(lower|upper)/f64/den([01])/(uniform|quadratic)/(em|sscs)",
        at_once=lambda name, factor, denoise, grid, kind: (
            (denoise == "1") == (grid == "quadratic") == (factor == "upper")
        ),
    ),
)
def test_psld_runs(x64, name, factor, kind, grid, denoise):
    arrays, denoise = refdata.load_npz("psld_samplers.npz"), int(denoise)
    key = f"{name}/{factor}/f64/den{denoise}/{grid}/{kind}"
    info = replay(
        psld(name, factor), *recorded_draws(arrays, kind, denoise), kind=kind, grid=grid, denoise=bool(denoise),
        numerical_eps=PSLD[name]["numerical_eps"],
    )  # fmt: skip
    expected = nhwc(arrays[key])
    size = np.abs(expected).max()
    np.testing.assert_allclose(info.state / size, expected / size, atol=1e-7)
    np.testing.assert_allclose(info.state / size, nhwc(arrays[key.replace("f64", "official")]) / size, atol=2e-5)
    assert info.nfe == STEPS


@pytest.mark.parametrize(
    "name, mixed, grid, denoise, kind",
    refdata.cases(
        refdata.load_npz("cld_samplers.npz"),
        r"(.+)/f64/mixed([01])/(linear|quadratic)/den([01])/(em|sscs)_x",
        at_once=lambda name, mixed, grid, denoise, kind: (denoise == "1") == (grid == "quadratic") == (mixed == "1"),
    ),
)
def test_cld_runs(x64, name, mixed, kind, grid, denoise):
    arrays, mixed, denoise = refdata.load_npz("cld_samplers.npz"), int(mixed), int(denoise)
    key = f"{name}/f64/mixed{mixed}/{grid}/den{denoise}/{kind}_"
    info = replay(
        cld(name), *recorded_draws(arrays, kind, denoise), kind=kind, grid={"linear": "uniform"}.get(grid, grid),
        denoise=bool(denoise), parameterization="mixed" if mixed else "eps", numerical_eps=0.0 if denoise else 1e-9,
    )  # fmt: skip
    expected = jnp.concatenate([nhwc(arrays[key + "x"], 1), nhwc(arrays[key + "v"], 1)], axis=1)
    size = np.abs(expected).max()
    np.testing.assert_allclose(info.state / size, expected / size, atol=1e-7)


@pytest.mark.parametrize(
    "name, tau, dt", refdata.cases(refdata.load_npz("cld_samplers.npz"), r"(.+)/f64/step_t([^_]+)_dt([^/]+)/u")
)
def test_cld_single_steps(x64, name, tau, dt):
    """One Euler-Maruyama step; the recorded ones start at the reverse time in their key."""
    arrays, sde = refdata.load_npz("cld_samplers.npz"), cld(name)
    score_fn = score.score_from_network(half_network, sde, parameterization="mixed")
    start = 1 - float(tau)
    z, mean = em_step(score_fn, sde, nhwc(arrays["u_init"]), start, start - float(dt), nhwc(arrays["noises"][0]))
    for ours, theirs in ((z, "u"), (mean, "u_mean")):
        expected = nhwc(arrays[f"{name}/f64/step_t{tau}_dt{dt}/{theirs}"])
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "name, factor", refdata.cases(refdata.load_npz("psld_samplers.npz"), r"(.+)/(lower|upper)/f64/reverse_pf0_drift")
)
def test_psld_reverse_drifts(x64, name, factor):
    arrays = refdata.load_npz("psld_samplers.npz")
    prefix = f"{name}/{factor}/f64/reverse_pf"
    sde = psld(name, factor)
    score_fn = score.score_from_network(half_network if sde.num_noised == 1 else full_network, sde)
    t = 1 - jnp.asarray([0.2, 0.9])
    for flow in (0, 1):
        drift = samplers.reverse_drift(score_fn, sde, nhwc(arrays["u_init"]), t, probability_flow=bool(flow))
        np.testing.assert_allclose(drift, nhwc(arrays[f"{prefix}{flow}_drift"]), rtol=1e-7, atol=1e-7)


def gaussian_score(sde, mu, s, initial_variance):
    """Exact score of Gaussian data N(mu, s^2) whose auxiliary starts with the given variance."""

    def score_fn(z, t):
        kernel = sde.transition(t, "dsm")
        z0 = jnp.stack([mu, jnp.zeros_like(mu)])[None]
        start = jnp.diag(jnp.asarray([s**2, initial_variance]))[None]
        covariance = kernel.covariance + kernel.mean @ start @ kernel.mean.swapaxes(1, 2)
        offset = z - jnp.einsum("bij,bj...->bi...", kernel.mean, jnp.broadcast_to(z0, z.shape))
        return -jnp.einsum("bij,bj...->bi...", jnp.linalg.inv(covariance), offset)

    return score_fn


@functools.partial(jax.jit, static_argnames="denoise")
def ode_end(sde, exact, data, initial, rtol, *, denoise):
    """The ODE with the exact eps of `data`; the kernel of `sde`, with its numerical_eps, makes it a score."""
    full = gaussian_score(exact, *data)

    def score_fn(z, t):
        eps = exact.restrict(exact.transition(t).eps(full(z, t)))
        return sde.transition(t).score(eps)

    return samplers.ode(
        jax.random.key(0), score_fn, sde, (initial.shape[0], *initial.shape[2:]), t_min=T_MIN, rtol=rtol, atol=rtol,
        denoise=denoise, initial=initial, dtype=jnp.float64,
    )[1]  # fmt: skip


@pytest.mark.parametrize("name", refdata.cases(refdata.load_npz("cld_samplers.npz"), r"gauss/(.+)/numeps0/tight_ode_x"))
def test_cld_ode_end_points(x64, name):
    """The exact flow at 1e-10 against the recorded DOP853 run at 1e-12, RK45 at 1e-5 against RK45 at 1e-5."""
    arrays = refdata.load_npz("cld_samplers.npz")
    prefix = f"gauss/{name}/numeps0"
    mu, s = nhwc(arrays["gauss/mu"][None], 1)[0, 0], float(arrays["gauss/s"])
    data = mu, s, CLD[name]["gamma"] / CLD[name]["m_inv"]

    def run(rtol, denoise):
        exact = cld(name, 0.0)
        return ode_end(exact, exact, data, nhwc(arrays["u_init"]), rtol, denoise=denoise)

    tight = jnp.concatenate([nhwc(arrays[f"{prefix}/tight_ode_{c}"], 1) for c in "xv"], axis=1)
    np.testing.assert_allclose(run(1e-10, False).state, tight, atol=1e-7)
    for denoise in (0, 1):
        expected = jnp.concatenate([nhwc(arrays[f"{prefix}/den{denoise}/ode_{c}"], 1) for c in "xv"], axis=1)
        info = run(1e-5, bool(denoise))
        np.testing.assert_allclose(info.state, expected, atol=1e-3)
        assert refdata.same_count(info.nfe, arrays[f"{prefix}/den{denoise}/nfe"])


@pytest.mark.parametrize(
    "name, factor",
    refdata.cases(
        refdata.load_npz("psld_samplers.npz"), r"gauss/(.+)/(lower|upper)/tight_ode",
        at_once=lambda name, factor: factor == "upper",
    ),
)  # fmt: skip
def test_psld_ode_end_points(x64, name, factor):
    arrays = refdata.load_npz("psld_samplers.npz")
    prefix = f"gauss/{name}/{factor}"
    mu, s = nhwc(arrays["gauss/mu"][None], 1)[0, 0], float(arrays["gauss/s"])
    data = mu, s, PSLD[name]["mm_0"]
    for denoise in (0, 1):
        info = ode_end(
            psld(name, factor), psld(name, factor, 0.0), data, nhwc(arrays["u_init"]), 1e-5,
            denoise="ode" if denoise else False,
        )  # fmt: skip
        np.testing.assert_allclose(info.state, nhwc(arrays[f"{prefix}/den{denoise}/ode"]), atol=1e-3)
        assert refdata.same_count(info.nfe, arrays[f"{prefix}/den{denoise}/nfe"])
