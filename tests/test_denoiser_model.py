"""Training a denoiser: preconditionings against the papers' definitions, noise levels, and the process chosen later."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import get_args

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import DenoiserModel, ScoreModel, exact, models, objectives, preconditioning, score, sdes
from sgmjax._inputs import InputError
from sgmjax.config import ConfigError, from_dict
from sgmjax.samplers.common import denoise_step
from sgmjax.samplers.plan import Plan
from sgmjax.score import score_from_eps
from sgmjax.tasks import build
from sgmjax.tasks.score import ScoreTask

SIGMAS = np.geomspace(1e-4, 1e3, 15)
PREDICTIONS = ("edm", "x0", "v", "flow")


def definition(name: str, x0, n, sigma, sigma_data: float = 0.5):
    """What F is to predict, what it sees, and the weight on x_0's error: from the papers, in their own variables."""
    x0, n, sigma = (np.asarray(v, np.longdouble) for v in (x0, n, sigma))  # differences are formed as written there
    y = x0 + sigma * n
    if name == "edm":  # Karras et al. 2022, table 1 and eq. (8)
        total = sigma**2 + sigma_data**2
        c_skip, c_out = sigma_data**2 / total, sigma * sigma_data / np.sqrt(total)
        return (x0 - c_skip * y) / c_out, y / np.sqrt(total), total / (sigma * sigma_data) ** 2
    alpha, s = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    if name == "x0":
        return x0, alpha * x0 + s * n, np.ones_like(sigma)
    if name == "v":  # Salimans & Ho 2022, app. D: x_0 = alpha z - s v
        return alpha * n - s * x0, alpha * x0 + s * n, 1 + alpha**2 / s**2
    t = sigma / (1 + sigma)  # z = (1 - t) x_0 + t n, x_0 = z - t v
    return n - x0, (1 - t) * x0 + t * n, 1 / t**2


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_network_that_predicts_right_denoises(name, dtype):
    draws = np.random.default_rng(0)
    with jax.enable_x64(dtype is np.float64):
        sigma = SIGMAS[:, None].astype(dtype).astype(np.float64)
        x0, n = draws.uniform(-1, 1, (len(sigma), 3)), draws.standard_normal((len(sigma), 3))
        target, seen, _ = definition(name, x0, n, sigma)
        inputs = []

        def network(x, cond):
            inputs.append(x)
            return jnp.asarray(target.astype(dtype))

        denoiser = preconditioning.denoiser_from_network(network, parameterization=name)
        y, level = jnp.asarray(x0 + sigma * n, dtype), jnp.asarray(sigma[:, 0], dtype)
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(denoiser(y, level), x0, rtol=0, atol=20 * eps * max(1, np.abs(y).max()))
        np.testing.assert_allclose(inputs[0], seen.astype(float), rtol=0, atol=20 * eps * np.abs(seen).max())
        small = 1 / sigma if name == "x0" else 1.0  # what such a network cannot know better
        error = np.abs(np.asarray(denoiser.noise(y, level)) - n)
        assert (error < 20 * eps * (small + 1) * (1 + np.abs(n))).all()


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_loss_is_the_papers(name, x64):
    """weight |D - x_0|^2 of a network that predicts zero, and the mean square error of what it is to predict."""
    draws = np.random.default_rng(1)
    sigma, x0, n = SIGMAS[3:12], draws.uniform(-1, 1, (9, 5)), draws.standard_normal((9, 5))
    target, _, weight = definition(name, x0, n, sigma[:, None])
    denoiser = preconditioning.denoiser_from_network(lambda x, cond: jnp.zeros_like(x), parameterization=name)
    found = objectives.denoising_loss(
        denoiser, jnp.asarray(x0), jnp.asarray(sigma), jnp.asarray(n),
        weight=lambda level: preconditioning.scales(name, level).c_out ** -2.0,
    )  # fmt: skip
    np.testing.assert_allclose(found, np.mean(target**2, axis=1).astype(float), rtol=1e-10)
    error = np.asarray(denoiser(jnp.asarray(x0 + sigma[:, None] * n), jnp.asarray(sigma))) - x0
    np.testing.assert_allclose(found, np.mean(weight * error**2, axis=1).astype(float), rtol=1e-10)


def test_what_the_network_is_told():
    sigma = jnp.asarray([0.002, 1.0, 80.0])
    np.testing.assert_allclose(preconditioning.condition(sigma, "log_sigma"), np.log([0.002, 1, 80]) / 4, rtol=1e-6)
    np.testing.assert_allclose(preconditioning.condition(sigma, "t"), [0.002 / 1.002, 0.5, 80 / 81], rtol=1e-6)
    np.testing.assert_allclose(preconditioning.condition(sigma, "t999"), 999 * np.array([0.002 / 1.002, 0.5, 80 / 81]),
                               rtol=1e-6)  # fmt: skip


LAWS = {
    "log_normal": objectives.log_normal(-0.5, 0.8),
    "log_uniform": objectives.log_uniform(0.01, 20.0),
    "of_process": objectives.of_process(sdes.cld(), objectives.uniform(1e-3)),
}


@pytest.mark.parametrize("name", LAWS)
def test_laws_of_the_noise_level(name):
    """The moments of log sigma of 40,000 draws, within five standard errors of the closed forms."""
    law = LAWS[name]
    sigma, weight = jax.jit(lambda law: law.draw(jax.random.key(0), 40_000))(law)
    log = np.log(np.asarray(sigma, np.float64))
    low, high = law.range
    assert (weight == 1).all() and low * (1 - 1e-5) <= sigma.min() and sigma.max() <= high * (1 + 1e-5)
    if name == "log_normal":
        mean, std = -0.5, 0.8
        assert np.log(high / low) > 2 * 4.5 * std
    elif name == "log_uniform":
        mean, std = np.log(0.01 * 20) / 2, np.log(2000) / np.sqrt(12)
        assert (low, high) == (0.01, 20.0)
    else:
        t = jnp.linspace(1e-3, 1, 100_001)
        each = np.log(np.asarray(sdes.noise_level(sdes.cld(), t), np.float64))
        mean, std = np.trapezoid(each, dx=1 / 100_000), each.std()
        np.testing.assert_allclose([low, high], np.exp(each[[0, -1]]), rtol=1e-4)
    assert abs(log.mean() - mean) < 5 * std / 200 and abs(log.std() / std - 1) < 0.03


def network(params, x, cond):
    """Exact for data N(0.3, 0.2^2): "edm"'s F of the posterior mean (0.04 y + 0.3 sigma^2) / (0.04 + sigma^2)."""
    sigma = jnp.exp(4 * cond)[:, None]
    total, posterior = jnp.sqrt(sigma**2 + 0.25), 0.04 + sigma**2
    slope = (0.04 - 0.25) / (posterior * total**2)  # of (0.04 / posterior - c_skip) / sigma^2, in closed form
    return (slope * x * total + 0.3 / posterior) * sigma * total / 0.5


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ["oblique"]))
def test_a_denoiser_has_the_score_of_every_process(name, x64):
    sde = analytic.PROCESSES[name]
    model = DenoiserModel(sdes.vp(), network).as_process(sde)
    t = jnp.asarray([1e-4, 1e-2, 0.3, 1.0])
    draws = np.random.default_rng(0)
    z = sde.transition(t).perturb(sde.augment(jnp.asarray(draws.normal(0.3, 0.2, (4, 2)))),
                                  jnp.asarray(draws.standard_normal((4, sde.k, 2))))  # fmt: skip
    expected = exact.mixture([[0.3, 0.3]], [0.2], [1.0]).score_fn(sde)(z, t)
    np.testing.assert_allclose(model.score_fn(None)(z, t), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(
    "here, there",
    tiers.alike(
        itertools.product(["vp", "cld", "psld"], ["vp", "psld", "third_order"]),
        [("cld", "vp")],
    ),
)
def test_a_network_of_one_process_samples_with_another(here, there, x64):
    """The network: the exact eps of the ring. Twice over it is the process's own again."""
    mixture, first, second = exact.ring(), analytic.PROCESSES[here], analytic.PROCESSES[there]

    def network(params, x, cond):
        z = x.reshape(x.shape[0], first.k, 2)
        kernel = first.transition(cond)
        return kernel.restrict(kernel.eps(mixture.score_fn(first)(z, cond))).reshape(x.shape[0], -1)

    model = ScoreModel(first, network)
    other = model.as_process(second)
    assert other.sde is second and other.trained_as is first and other.in_variables == first.k
    t = jnp.asarray([0.1, 0.2, 0.3, 0.5])  # at which all of them have noise levels of all
    draws = np.random.default_rng(0)
    x0, _ = mixture.sample(jax.random.key(0), 4)
    z = second.transition(t).perturb(second.augment(x0), jnp.asarray(draws.standard_normal((4, second.k, 2))))
    expected = mixture.score_fn(second)(z, t)
    found = other.score_fn(None)(z, t)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    again = other.as_process(first)
    z = first.transition(t).perturb(first.augment(x0), jnp.asarray(draws.standard_normal((4, first.k, 2))))
    expected = score_from_eps(model.eps_fn(None), first)(z, t)
    np.testing.assert_allclose(again.score_fn(None)(z, t), expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", tiers.alike(analytic.PROCESSES, ["vp", "psld", "oblique"]))
def test_tweedie_is_the_posterior_mean_of_every_process(name, x64):
    mixture, sde = exact.ring(), analytic.PROCESSES[name]
    t = jnp.asarray([1e-4, 1e-2, 0.3, 0.9])
    x0, _ = mixture.sample(jax.random.key(0), 4)
    z = sde.transition(t).perturb(sde.augment(x0), jax.random.normal(jax.random.key(1), (4, sde.k, 2)))
    look = sdes.estimate(sde, t)
    expected = mixture.denoiser()(look.of(z), look.sigma)
    found = jax.jit(lambda z: denoise_step(mixture.score_fn(sde), sde, z, t, "tweedie"))(z)
    assert found.shape == z.shape
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-9)


# ---- what a user does


def settings(**changes):
    """A small denoiser of 4 x 4 images."""
    objective = {"parameterization": "edm", "time_conditioning": "log_sigma", "time_sampling": "log_normal"}
    base = {
        "sde": {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0},
        "model": {"name": "ncsnpp", "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()},
        "objective": objective | changes.pop("objective", {}),
        "sampling": {"sampler": "em", "steps": 4, "grid": "rho"},
    }
    return {**base, **changes}


@pytest.mark.parametrize("name", tiers.alike(["psld", "ve", "third_order"], ["psld"]))
def test_a_run_of_a_denoiser(name):
    """Its channels are the data's, whatever the process; it learns, and samples with all."""
    task = build.task(from_dict(settings(sde={"name": name})), (4, 4, 3))
    assert isinstance(task.model, DenoiserModel) and task.model.in_variables == 1
    variables = jax.jit(task.init)(jax.random.key(0))
    assert variables.params["conv_in"]["kernel"].shape[2] == 3
    batch = {"x": np.random.default_rng(0).integers(0, 255, (8, 4, 4, 3), np.uint8), "label": np.zeros(8, np.int32)}
    loss, grads = jax.jit(
        jax.value_and_grad(lambda v: task.loss(v, jax.random.key(1), batch, train=True)[0])
    )(variables)  # fmt: skip
    assert np.isfinite(loss) and any(np.any(g != 0) for g in jax.tree.leaves(grads))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for process in (task.sde, sdes.cld()):
            samples, info = jax.jit(
                lambda v, process=process: task.as_process(process).sample(v, jax.random.key(2), 2, Plan(steps=4))
            )(variables)  # fmt: skip
            assert samples.shape == (2, 4, 4, 3) and np.isfinite(samples).all() and info.nfe == 4


def test_the_number_of_parameters_does_not_depend_on_the_process():
    counts = set()
    for name in ("vp", "cld", "third_order"):
        task = build.task(from_dict(settings(sde={"name": name})), (4, 4, 3))
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        counts.add(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    assert len(counts) == 1


SMALL = {"nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
TOLD = {  # networks, and an example's shape
    "mlp": (models.MLP(out_channels=2, width=8, depth=1), (2,)),
    "cld_toy_resnet": (models.CLDToyResNet(hidden_dim=8, num_hidden_layers=1), (2,)),
    "cld_toy_mlp": (models.CLDToyMLP(hidden_dim=8), (2,)),
    "unet1d": (models.UNet1d(out_channels=1, **SMALL), (4, 1)),
    "fourier": (models.NCSNpp(out_channels=1, embedding_type="fourier", **SMALL), (4, 4, 1)),
    "fourier of sigma": (
        models.NCSNpp(out_channels=1, embedding_type="fourier", fourier_log=False, **SMALL),
        (4, 4, 1),
    ),
    "positional": (models.NCSNpp(out_channels=1, **SMALL), (4, 4, 1)),
    "adm": (models.ADM(out_channels=1, channels_per_head=4, **SMALL), (4, 4, 1)),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_network_hears_every_noise_level(name):
    """However it is told, and by default too."""
    network, shape = TOLD[name]
    sigma = jnp.asarray([0.002, 0.05, 0.5, 2.0, 80.0])
    for told in (None, *get_args(preconditioning.SigmaConditioning)):
        if told == "log_sigma" and models.takes_log(network):
            with pytest.raises(InputError, match="time_conditioning: the network takes the logarithm .* use 'sigma'"):
                DenoiserModel(sdes.vp(), network, time_conditioning=told)
            continue
        model = DenoiserModel(sdes.vp(), network, parameterization="x0", time_conditioning=told)
        params = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), shape))
        draws = np.random.default_rng(0)
        params = jax.tree.map(lambda p: jnp.asarray(draws.standard_normal(p.shape), p.dtype), params)
        out = np.asarray(model.denoiser(params)(jnp.ones((5, *shape)), sigma)).reshape(5, -1)
        assert np.isfinite(out).all()
        assert min(np.abs(np.diff(out, axis=0)).max(axis=1)) > 1e-4 * np.abs(out).max()


@pytest.mark.slow
def test_levels_that_the_network_has_not_seen_are_named_once():
    model = DenoiserModel(sdes.ve(sigma_min=0.002, sigma_max=80.0), network)
    low, high = model.sigma_range
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check_range(1e-3)
    wide = DenoiserModel(sdes.ve(sigma_min=0.002, sigma_max=1000.0), network)
    with pytest.warns(UserWarning, match=rf"to 1e\+03 \(t = 1\).*trained on {low:.3g} to {high:.3g}") as caught:
        wide.sample(None, jax.random.key(0), (2, 2), sampler="em", nfe=5)
    assert len(caught) == 1
    own = ScoreModel(sdes.vp(), lambda params, x, cond: x, time_law=objectives.uniform(1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.check_range(1e-5)  # its own process, whatever the time
    with pytest.warns(UserWarning, match=r"from 2e-05 .*trained on 0.0105 to 152"):
        own.as_process(sdes.ve(sigma_min=1e-5, sigma_max=100.0)).check_range(0.043)


def test_deviations_may_be_traced():
    """Learned ones, say. D = y / 2 for a network of zeros where sigma is sigma_data; the score of normal data is -z."""

    def x0(sigma_data):
        denoiser = preconditioning.denoiser_from_network(lambda x, cond: jnp.zeros_like(x), sigma_data=sigma_data)
        return denoiser(jnp.array([[2.0]]), jnp.full(1, 0.5))[0, 0]

    def start(std):
        score_fn = score.analytic_start(lambda z, t: z, sdes.vp(), mean=0.0, std=std)
        return score_fn(jnp.full((1, 1, 1), 2.0), jnp.ones(1))[0, 0, 0]

    np.testing.assert_allclose(jax.jit(x0)(0.5), 1.0, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(start)(1.0), -2.0, rtol=1e-4)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="parameterization must be one of 'edm', 'x0', 'v', 'flow', not 'eps'"):
        DenoiserModel(sdes.vp(), network, parameterization="eps")
    with pytest.raises(InputError, match="time_conditioning of a denoiser must be one of 'log_sigma'"):
        DenoiserModel(sdes.vp(), network, time_conditioning="level")
    with pytest.raises(InputError, match="sigma_data = -1: the standard deviation of the data must be positive"):
        DenoiserModel(sdes.vp(), network, sigma_data=-1.0)
    with pytest.raises(InputError, match="std = 0: the deviation of log sigma must be positive"):
        objectives.log_normal(0.0, 0.0)
    with pytest.raises(InputError, match="sigma_min = 3 must be positive and below sigma_max = 2"):
        objectives.log_uniform(3.0, 2.0)
    wrong = DenoiserModel(sdes.psld(), lambda params, x, cond: jnp.concatenate([x, x], axis=-1))
    with pytest.raises(InputError, match=r"returned \(2, 6\) for data of shape \(2, 3\): a denoiser's network has as"):
        wrong.losses(None, jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(InputError, match="reduce must be"):
        dataclasses.replace(wrong, network=network, reduce="max")


@pytest.mark.parametrize(
    "objective, message",
    [
        (
            {"parameterization": "eps"},
            "objective.time_conditioning: 'log_sigma' is of a denoiser; set parameterization",
        ),
        (
            {"parameterization": "eps", "time_conditioning": "t"},
            "objective.time_sampling: 'log_normal' is of a denoiser",
        ),
        ({"time_conditioning": "level"}, "objective.time_conditioning: a denoiser is told sigma; use 'log_sigma'"),
        ({"time_sampling": "importance"}, "objective.time_sampling: 'importance' is of one process; for a denoiser"),
        ({"weighting": "likelihood"}, "objective.weighting: means nothing for a denoiser"),
        ({"matching": "dsm"}, "objective.matching: means nothing for a denoiser"),
        ({"t_min": 1e-3}, "objective.t_min: means nothing where noise levels are drawn"),
        ({"parameterization": "v", "sigma_data": 0.3}, "objective.sigma_data: is of objective.parameterization 'edm'"),
        (
            {"time_sampling": "uniform", "log_sigma_mean": 0.0},
            "objective.log_sigma_mean: is of objective.time_sampling",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(objective, message):
    with pytest.raises(ConfigError) as caught:
        build.task(from_dict(settings(objective=objective)), (4, 4, 3))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_logarithm_of_a_logarithm_is_refused():
    fourier = settings()["model"] | {"embedding_type": "fourier"}
    for model, shape in ((fourier, (4, 4, 3)), ({"name": "mlp", "width": 8}, (2,))):
        with pytest.raises(ConfigError, match="^objective.time_conditioning: .* takes the logarithm .* use 'sigma'$"):
            build.task(from_dict(settings(model=model)), shape)
        build.task(from_dict(settings(model=model, objective={"time_conditioning": "sigma"})), shape)


def test_a_task_is_the_same_network_with_another_process():
    task = build.task(from_dict(settings()), (4, 4, 3))
    other = task.as_process(sdes.cld())
    assert isinstance(other, ScoreTask) and other.sde.k == 2 and other.network is task.network
    shapes = [jax.eval_shape(one.init, jax.random.key(0)) for one in (task, other)]
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])
