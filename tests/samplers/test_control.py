"""Guidance, inpainting, colourisation and starts from data: identities, exact Gaussians and mixtures."""

from __future__ import annotations

import functools

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers
from sampler_cases import CASES, GRID, PROCESSES

from sgmjax import exact, samplers, sdes
from sgmjax.samplers import editing, guidance, inpainting

FAST = ("vp", "psld")
EVERY = tiers.alike(PROCESSES, FAST)
MIXTURE = exact.mixture([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3])


# ---- guidance


@jax.jit
def guided_and_component(sde, z, t, labels, strength):
    guided = guidance.guided_score(
        MIXTURE.score_fn(sde), lambda z, t: MIXTURE.classify(sde, z, t), labels, strength, sde=sde
    )
    alone = [
        exact.mixture(MIXTURE.means[i : i + 1], MIXTURE.stds[i : i + 1]).score_fn(sde)(z, t)
        for i in range(len(MIXTURE.means))
    ]
    picked = jnp.take_along_axis(jnp.stack(alone, axis=1), labels.reshape(-1, 1, 1, 1), axis=1)[:, 0]
    return guided(z, t), picked, MIXTURE.score_fn(sde)(z, t)


@pytest.mark.parametrize("name", EVERY)
def test_guidance_by_the_exact_classifier_is_bayes_rule(name: str):
    """score of p(z_t) + grad log p(j | z_t) = score of component j, in the variables that receive noise."""
    sde = PROCESSES[name][0]
    rng = np.random.default_rng(0)
    t = jnp.asarray(rng.uniform(0.05, 1.0, 24), jnp.float32)
    labels = jnp.asarray(np.arange(24) % 3)
    x0 = jnp.asarray(MIXTURE.means, jnp.float32)[jnp.asarray((np.arange(24) // 3) % 3)]
    eps = jnp.asarray(rng.normal(size=(24, sde.k, 2)), jnp.float32)
    z = sde.transition(t).perturb(sde.augment(x0), eps)
    guided, component, unguided = guided_and_component(sde, z, t, labels, 1.0)
    size = np.abs(component).max()
    np.testing.assert_allclose(guided / size, component / size, atol=2e-5)
    half, _, _ = guided_and_component(sde, z, t, labels, 0.5)
    np.testing.assert_allclose(half / size, (guided + unguided) / (2 * size), atol=2e-5)
    assert np.abs(guided - unguided).max() > 0.05 * size


@pytest.mark.parametrize("name", tiers.alike(PROCESSES, ("psld",)))
def test_guided_samples_follow_the_law_of_the_class(name: str):
    """Sliced distance to 2,000 true draws of one component of std 0.5; two sets of those are 0.03 to 0.05 apart."""
    sde = PROCESSES[name][0]

    @jax.jit
    def run(key, sde):
        score_fn = guidance.guided_score(
            MIXTURE.score_fn(sde), lambda z, t: MIXTURE.classify(sde, z, t), 1, 1.0, sde=sde
        )
        times = samplers.time_grid("quadratic", 100, t_min=1e-3)
        return samplers.sscs(key, score_fn, sde, (2000, 2), times=times)[0]

    from sgmjax import metrics

    x = np.asarray(run(jax.random.key(0), sde))
    true, _ = exact.mixture(MIXTURE.means[1:2], MIXTURE.stds[1:2]).sample(jax.random.key(1), 2000)
    assert metrics.sliced_wasserstein(jnp.asarray(x), true) < 0.09


def test_classifier_free_guidance_is_a_line_through_both_scores():
    cond, uncond = (lambda z, t: z + 1.0), (lambda z, t: 2 * z)
    z, t = jnp.ones((3, 2, 4)), jnp.ones(3)
    for strength, expected in ((0.0, uncond(z, t)), (1.0, cond(z, t)), (3.0, 3 * cond(z, t) - 2 * uncond(z, t))):
        np.testing.assert_array_equal(guidance.cfg_score(cond, uncond, strength)(z, t), expected)
    each = guidance.cfg_score(cond, lambda z, t: 3 * z, jnp.asarray([0.0, 1.0, 2.0]))(z, t)
    np.testing.assert_array_equal(each[:, 0, 0], [3.0, 2.0, 1.0])


@pytest.mark.parametrize("name", ["vp", "psld"])
def test_guidance_in_an_interval_of_noise_levels(name):
    """Inside the strength, outside 1, element by element of the batch; and then one evaluation in place of two."""
    sde, called = {"vp": sdes.vp(), "psld": sdes.psld()}[name], []
    strength = guidance.Guidance(3.0, 0.5, 4.0)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, sde.k, 2)), jnp.float32)
    t = samplers.grids.host_time_at(sde, np.array([0.2, 1.0, 8.0])).astype(np.float32)

    def cond(z, t):
        return 2 * z

    def uncond(z, t):
        jax.debug.callback(lambda: called.append(1))
        return -z

    found = guidance.cfg_score(cond, uncond, strength, sde=sde)(z, jnp.asarray(t))
    np.testing.assert_allclose(found, z * jnp.asarray([2.0, 8.0, 2.0])[:, None, None], rtol=1e-6)
    jax.effects_barrier()
    assert len(called) == 1
    guidance.cfg_score(cond, uncond, strength, sde=sde)(z, jnp.full(3, t[0]))
    jax.effects_barrier()
    assert len(called) == 1  # outside as a whole

    log_probs = lambda z, t: jnp.stack([z[:, 0].sum(-1), -z[:, 0].sum(-1)], axis=1)  # noqa: E731
    by_class = [
        guidance.guided_score(cond, log_probs, 0, s, sde=sde)(z, jnp.asarray(t)) for s in (strength, 1.0, 3.0)
    ]  # fmt: skip
    np.testing.assert_allclose(by_class[0], jnp.where((jnp.arange(3) == 1)[:, None, None], by_class[2], by_class[1]))


def test_an_interval_that_is_none():
    with pytest.raises(ValueError, match="guidance from 2 to 1: it goes from 0 or more to a higher level"):
        guidance.Guidance.of(guidance.Guidance(2.0, 2.0, 1.0))
    with pytest.raises(ValueError, match="an interval of noise levels is of a process; give sde"):
        guidance.cfg_score(lambda z, t: z, lambda z, t: z, guidance.Guidance(2.0, 0.1))
    assert guidance.Guidance.of(1.0).is_one and not guidance.Guidance.of(jnp.ones(3)).is_one


def test_the_classifier_is_given_forward_time_unless_asked_otherwise():
    seen = []

    def log_probs(z, t):
        seen.append(t)
        return jnp.stack([jnp.sum(z, axis=(1, 2)), jnp.zeros(len(z))], axis=1)

    z, t = jnp.ones((2, 1, 3)), jnp.asarray([0.2, 0.9])
    for reverse in (False, True):
        guidance.guided_score(lambda z, t: z, log_probs, 0, sde=sdes.vp(), reverse_time=reverse)(z, t)
    np.testing.assert_allclose(seen[0], t)
    np.testing.assert_allclose(seen[1], 1 - t, atol=1e-7)


# ---- inpainting

CORRELATION = 0.9
AXES = np.array([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5  # of the covariance [[1, c], [c, 1]]


def pair_score(sde):
    """Exact score of two unit Gaussian pixels of the given correlation, independent along `AXES`."""

    def score_fn(z, t):
        along = inpainting.turn(z, AXES)
        stds = ((1 + CORRELATION) ** 0.5, (1 - CORRELATION) ** 0.5)
        parts = [analytic.gaussian_score(sde, 0.0, s)(along[..., i : i + 1], t) for i, s in enumerate(stds)]
        return inpainting.turn(jnp.concatenate(parts, axis=-1), AXES.T)

    return score_fn


@functools.partial(jax.jit, static_argnames=("repeats",))
def fill_in(key, sde, *, repeats: int):
    """4,000 samples of the pair, the first pixel known to be 1.5."""
    constraint = inpainting.inpaint(sde, jnp.asarray([1.5, 0.0]), jnp.asarray([1.0, 0.0]), repeats=repeats, jump=10)
    times = samplers.time_grid("quadratic", 50, t_min=1e-3)
    x, info = samplers.sscs(key, pair_score(sde), sde, (4000, 2), times=times, constraint=constraint)
    return x, info.nfe


@pytest.mark.parametrize("name", tiers.alike(PROCESSES, ("vp",)))
def test_resampling_tends_to_the_conditional_law(name: str):
    """The other pixel is N(1.35, 0.19). Replacing depends too little on the known one; repeating helps.

    4,000 samples: standard errors 0.01 of the mean, 2% of the variance. What noise reaches through two integrations
    moves little in a stretch, so third and fourth order take more repetitions.
    """
    many = 24 if name in ("third_order", "hold4") else 8
    sde = PROCESSES[name][0]
    right = 1.5 * CORRELATION, 1 - CORRELATION**2
    off = {}
    for repeats in (1, many):
        x, nfe = fill_in(jax.random.key(0), sde, repeats=repeats)
        assert nfe == 49 * repeats + 1
        np.testing.assert_array_equal(x[:, 0], 1.5)
        off[repeats] = float(right[0] - jnp.mean(x[:, 1])), float(jnp.var(x[:, 1]) - right[1])
    assert 0.2 < off[1][0] < 0.6 and 0.05 < off[1][1] < 0.3  # the known bias
    assert abs(off[many][0]) < 0.7 * off[1][0] and abs(off[many][1]) < 0.7 * off[1][1], off


def test_the_order_of_repeated_steps():
    """By hand: 5 steps in stretches of 2, each taken twice."""
    constraint = samplers.common.Constraint(lambda z, t, noises: z, repeats=2, jump=2)
    visits = samplers.common.plan_visits(5, constraint)
    np.testing.assert_array_equal(visits.step, [0, 1, 0, 1, 2, 3, 2, 3, 4, 4])
    np.testing.assert_array_equal(visits.since, [0, 1, 2, 1, 2, 3, 4, 3, 4, 5])
    np.testing.assert_array_equal(np.flatnonzero(visits.opens), [0, 4, 8])
    np.testing.assert_array_equal(visits.final, [2, 3, 6, 7, 9])


def test_a_repeated_stretch_begins_with_the_memory_that_it_had():
    """A step that counts in its memory, and a process so slow that going back changes nothing."""
    sde, seen = sdes.vp(beta_min=1e-8, beta_max=1e-8), []
    constraint = samplers.common.Constraint(lambda z, t, noises: z, repeats=3, jump=2)

    def step(z, memory, node):
        jax.debug.callback(lambda i, m: seen.append((int(i), int(m))), node.index, memory, ordered=True)
        return z, memory + 1

    _, info = jax.jit(
        lambda key: samplers.common.scan_grid(
            step, key, lambda z, t: z, sde, (2, 1), times=np.linspace(1, 0.2, 5), draws=0, denoise=False,
            evaluations=[1, 2, 3, 4], memory=jnp.int32(0), constraint=constraint, trajectory=True,
        )
    )(jax.random.key(0))  # fmt: skip
    jax.effects_barrier()
    assert seen == [(i, i) for i in (0, 1) * 3 + (2, 3) * 3]
    assert info.nfe == 3 * 10 and info.trajectory.shape == (5, 2, 1, 1)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_given_follows_the_kernel(name: str):
    """The draw of z_t is E (x_0, 0) + L eps, and at t = 0 its data are x_0 to the bit (VE's kernel has sigma_min)."""
    sde = PROCESSES[name][0]
    x0, noise = jnp.asarray([[0.3, -0.7]]), jnp.ones((1, sde.k, 2))
    t = jnp.asarray([0.4])
    expected = sde.transition(t).perturb(sde.augment(x0), noise)
    np.testing.assert_array_equal(inpainting.draw_given(sde, x0, t, noise), expected)
    np.testing.assert_array_equal(inpainting.draw_given(sde, x0, jnp.zeros(1), noise)[:, 0], x0)


ON_GRID = [label for label, case in CASES.items() if "times" in case.options and case.sampler != "ode"]


@pytest.mark.parametrize("label", tiers.alike(ON_GRID, ("em", "sscs", "pc")))
def test_every_sampler_on_a_grid_keeps_what_is_known(label: str):
    case = CASES[label]
    sde = PROCESSES["psld" if "psld" in case.processes else case.processes[-1]][0]
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    mask = np.zeros((4, 1))
    mask[:2] = 1
    host = case.prepare(sde, GRID) if case.prepare else {}

    @jax.jit
    def run(key, sde, host):
        return samplers.SAMPLERS[case.sampler](
            key, lambda z, t: sde.expand(sde.restrict(-jnp.tanh(z))), sde, x0.shape,
            **(case.options | {"constraint": inpainting.inpaint(sde, x0, mask)} | host),
        )  # fmt: skip

    x, info = run(jax.random.key(0), sde, host)
    if case.options.get("denoise", True) is not False:
        np.testing.assert_array_equal(x[:, :2], x0[:, :2])
    assert np.isfinite(x).all() and np.abs(x[:, 2:] - x0[:, 2:]).min() > 1e-6
    assert np.array_equal(info.state[:, 0], x)


def test_colorization_keeps_the_grey_part():
    sde = sdes.psld()
    rng = np.random.default_rng(1)
    grey = jnp.asarray(rng.uniform(-1, 1, (2, 4, 4, 3)), jnp.float32)
    basis = inpainting.grey_basis()
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-15)
    x = jax.jit(
        lambda key: samplers.em(
            key, lambda z, t: -z, sde, grey.shape, times=GRID, constraint=inpainting.colorize(sde, grey)
        )[0]
    )(jax.random.key(0))
    np.testing.assert_allclose(x.mean(-1), grey.mean(-1), atol=1e-5)
    assert np.abs(x - grey).max() > 0.1


# ---- starts from data


def test_a_start_from_data_is_a_draw_of_the_kernel():
    sde = sdes.psld()
    z = editing.noised(jax.random.key(0), sde, jnp.ones((20_000, 1)), 0.3)
    kernel = sde.transition(jnp.asarray([0.3]))
    np.testing.assert_allclose(z[..., 0].mean(0), kernel.mean[0, :, 0], atol=0.03)
    np.testing.assert_allclose(np.cov(np.asarray(z[..., 0]).T), kernel.covariance[0], atol=0.03)


def test_a_shorter_grid_has_the_same_number_of_steps():
    times = samplers.time_grid("quadratic", 10, t_min=1e-3)
    short = editing.start_at(times, 0.4)
    assert len(short) == len(times) and short[0] == pytest.approx(0.4) and short[-1] == times[-1]
    np.testing.assert_allclose(np.diff(short) / np.diff(times), (0.4 - 1e-3) / (1 - 1e-3))
    np.testing.assert_allclose(editing.start_at(times, 1.0), times)


@pytest.mark.parametrize("name", tiers.alike(PROCESSES, ("psld",)))
def test_encoding_is_undone_by_decoding_and_interpolation_begins_and_ends_at_the_images(name: str):
    sde = PROCESSES[name][0]
    a, b = (MIXTURE.sample(jax.random.key(i), 3)[0] for i in (1, 2))

    @jax.jit
    def run(key, sde):
        return editing.interpolate(
            key, MIXTURE.score_fn(sde), sde, a, b, num=4, t_min=1e-2, rtol=1e-5, atol=1e-6
        )  # fmt: skip

    x, nfe = run(jax.random.key(0), sde)
    assert x.shape == (3, 4, 2) and nfe > 20
    np.testing.assert_allclose(x[:, 0], a, atol=2e-3)
    np.testing.assert_allclose(x[:, -1], b, atol=2e-3)
    assert np.isfinite(x).all()


def test_the_arc_keeps_the_length_and_the_ends():
    sde = sdes.psld()
    a, b = (sde.prior_sample(jax.random.key(i), (2, 50)) for i in (0, 1))
    z = editing.slerp(sde, a, b, jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(z[:, 0], a, atol=1e-6)
    np.testing.assert_allclose(z[:, -1], b, atol=1e-6)
    logp = jax.vmap(sde.prior_logp, in_axes=1, out_axes=1)(z)  # between those of the ends: the arc has no short cut
    assert np.all(logp <= np.maximum(logp[:, 0], logp[:, -1])[:, None] + 1.0)
    same = editing.slerp(sde, a, a, jnp.linspace(0, 1, 3))
    np.testing.assert_allclose(same, jnp.repeat(a[:, None], 3, axis=1), atol=1e-6)


SDE = sdes.vp()
X = np.zeros((2, 4, 4, 3), np.float32)
BAD = [
    (lambda: inpainting.inpaint(SDE, X, np.full((4, 4, 1), 0.5)), "mask must be 1 where"),
    (lambda: inpainting.inpaint(SDE, X, np.ones((5, 4, 1))), "mask has shape"),
    (lambda: inpainting.inpaint(SDE, X, np.ones((4, 4, 1)), repeats=0), "both are at least 1"),
    (lambda: inpainting.inpaint(SDE, X, np.ones(3), basis=np.ones((3, 3))), "orthogonal"),
    (lambda: inpainting.colorize(SDE, X[..., :1]), "three colours"),
    (lambda: editing.noised(jax.random.key(0), SDE, X, 0.0), "must lie in"),
    (lambda: editing.noised(jax.random.key(0), SDE, np.zeros((1, 2), np.uint8), 0.5), "x0 is uint8: give floats"),
    (lambda: editing.interpolate(jax.random.key(0), None, SDE, [[1, 2]], [[3, 4]]), "x0 is int32: give floats"),
    (lambda: editing.start_at([1.0, 0.1], 0.1), "above the grid's end"),
    (lambda: editing.encode(None, SDE, X[:, None], solver="Euler"), "no error estimate"),
    (lambda: editing.interpolate(jax.random.key(0), None, SDE, X, X[:1]), "as many of one"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(call, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
