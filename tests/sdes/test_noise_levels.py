"""Noise levels of NCSNv2: the equations by independent means, the recorded values, bad input."""

from __future__ import annotations

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import refdata

from sgmjax import objectives, sdes
from sgmjax.sdes import noise_levels as nl

TECHNIQUES = refdata.load_json("ncsnv2_techniques.json")
ARRAYS = refdata.load_npz("ncsnv2_techniques.npz")


def test_levels_are_times_of_ve():
    """sigma(t_i) of the process is level i, and the levels are geometric."""
    sigmas, times = sdes.geometric_levels(50.0, 0.01, 232), sdes.level_times(232)
    np.testing.assert_allclose(sigmas[1:] / sigmas[:-1], 5000 ** (-1 / 231), rtol=1e-13)
    assert sigmas[0] == pytest.approx(50.0) and sigmas[-1] == pytest.approx(0.01)
    np.testing.assert_allclose(sdes.ve().sigma(jnp.asarray(times, jnp.float32)), sigmas, rtol=2e-6)  # float32 times
    np.testing.assert_allclose(nl.times_of_levels(sigmas), times, atol=1e-14)


def published_sigmas(sigma_begin: float, sigma_end: float, num_classes: int, sigma_dist: str) -> np.ndarray:
    """As the published code defines them, in float32."""
    if sigma_dist == "geometric":
        return np.exp(np.linspace(np.log(sigma_begin), np.log(sigma_end), num_classes)).astype(np.float32)
    return np.linspace(sigma_begin, sigma_end, num_classes).astype(np.float32)


@pytest.mark.parametrize("sigma_dist", ["geometric", "uniform"])
@pytest.mark.parametrize("ends", [(1.0, 0.01, 10), (50.0, 0.01, 232), (348.0, 0.3, 2)])
def test_levels_are_the_published_ones(ends, sigma_dist):
    """The function of the levels, and the process at its times: levels of both distributions."""
    expected = published_sigmas(*ends, sigma_dist)
    np.testing.assert_allclose(nl.LEVELS[sigma_dist](*ends), expected, rtol=2e-7)  # rounded there
    sde = sdes.ve(sigma_max=ends[0], sigma_min=ends[1], sigma_dist=sigma_dist)
    times = jnp.asarray(sdes.level_times(ends[2]), jnp.float32)
    np.testing.assert_allclose(sde.sigma(times), expected, rtol=2e-6)  # float32 times
    np.testing.assert_allclose(sde.transition(times).factor[:, 0, 0], expected, rtol=2e-6)
    np.testing.assert_allclose(objectives.levels(ends[2]).times, times, rtol=1e-7)


def test_levels_that_are_not_geometric_are_times_too():
    sigmas = np.linspace(3.0, 0.5, 6)
    times = nl.times_of_levels(sigmas)
    assert times[0] == 1 and times[-1] == 0
    np.testing.assert_allclose(0.5 * 6.0**times, sigmas, rtol=1e-14)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.567, 0.99])
@pytest.mark.parametrize("dimension", [5, 64, 3072, 196_608])
def test_technique_2_against_fifty_digits(dimension: int, overlap: float):
    with mpmath.workdps(50):
        root = mpmath.sqrt(2 * dimension)

        def equation(g):
            return mpmath.ncdf(root * (g - 1) + 3 * g) - mpmath.ncdf(root * (g - 1) - 3 * g) - mpmath.mpf(str(overlap))

        exact = mpmath.findroot(equation, nl.ratio_of_overlap(dimension, overlap))
        assert abs(nl.ratio_of_overlap(dimension, overlap) / exact - 1) < 1e-14
        # for overlaps below that at gamma = 1 there is no other root, which another start would find
        assert equation(exact * (1 - 1e-6)) > 0 > equation(exact * (1 + 1e-6))
    assert nl.overlap(nl.ratio_of_overlap(dimension, overlap), dimension) == pytest.approx(overlap, rel=1e-9)


def test_overlap_keeps_its_digits_in_the_tail():
    """A difference of two numbers near one would be 0 here."""
    with mpmath.workdps(60):
        root = mpmath.sqrt(2 * 3072)
        g = mpmath.mpf("1.3")
        exact = mpmath.ncdf(-(root * (g - 1) - 3 * g)) - mpmath.ncdf(-(root * (g - 1) + 3 * g))
    assert nl.overlap(1.3, 3072) == pytest.approx(float(exact), rel=1e-9) and 0 < exact < 1e-40


def test_technique_4_is_the_recursion_of_the_chain():
    """Variance of x <- (1 - a) x + sqrt(2 a) sigma n, started from the level above."""
    for alpha, ratio, steps in [(0.05, 1.04, 5), (0.9, 1.7, 2), (1.5, 1.2, 4)]:
        variance = ratio**2
        for _ in range(steps):
            variance = (1 - alpha) ** 2 * variance + 2 * alpha
        got = nl.variance_ratio(alpha * 0.03**2, sigma_min=0.03, ratio=ratio, steps=steps)
        assert got == pytest.approx(variance, rel=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
@pytest.mark.parametrize("ratio", [1.004, 1.04, 1.67, 30.0])
def test_the_best_step_is_better_than_all_others(ratio: float, steps: int):
    best = nl.best_step_size(sigma_min=0.2, ratio=ratio, steps=steps)
    value = nl.variance_ratio(best, sigma_min=0.2, ratio=ratio, steps=steps)
    others = nl.variance_ratio(np.geomspace(1e-6, 1.999, 4001) * 0.04, sigma_min=0.2, ratio=ratio, steps=steps)
    assert 1 < value <= others.min() * (1 + 1e-14)


def test_recommendation_for_cifar():
    """Published: 232 levels, 6.2e-6. (Song & Ermon 2020, table in app. B; config of the official program)"""
    found = nl.recommend(sigma_max=50.0, sigma_min=0.01, dimension=3072)
    assert found.num_levels == 232 and found.step_size == pytest.approx(6.2e-6, rel=0.005)
    assert found.ratio >= found.solution and found.nearest is None
    paper = nl.recommend(sigma_max=50.0, sigma_min=0.01, dimension=3072, overlap=nl.PAPER_OVERLAP)
    assert paper.num_levels == 219
    tiny = nl.recommend(sigma_max=4.0, sigma_min=0.1, dimension=2, nearest=True)
    assert tiny.nearest == 5 and tiny.solution == nl.ratio_of_overlap(5)


def test_a_whole_number_of_spans_stays_whole():
    for levels in (2, 10, 232, 2311):
        ratio = nl.ratio_of_levels(348.0, 0.01, levels)
        assert nl.levels_of_ratio(348.0, 0.01, ratio) == levels


BAD = {
    "ends": (lambda: nl.geometric_levels(0.01, 50.0, 10), "sigma_1 = 0.01 .* must be above sigma_L = 50"),
    "uniform ends": (lambda: nl.uniform_levels(0.01, 50.0, 10), "sigma_1 = 0.01 .* must be above sigma_L = 50"),
    "one uniform level": (lambda: nl.uniform_levels(1.0, 0.1, 1), "at least two noise levels"),
    "distribution": (lambda: sdes.ve(sigma_dist="cosine"), "sigma_dist must be 'geometric' or 'uniform', not 'cosine'"),
    "equal ends": (lambda: nl.recommend(sigma_max=1.0, sigma_min=1.0, dimension=64), "must be above sigma_L"),
    "one level": (lambda: nl.level_times(1), "at least two noise levels"),
    "increasing": (lambda: nl.times_of_levels([0.1, 1.0]), "must be positive and decrease"),
    "no root": (lambda: nl.ratio_of_overlap(4), r"no solution for D <= 4.*nearest ratio is that of D = 5, 18\.4"),
    "one dimension": (lambda: nl.ratio_of_overlap(1, 0.5), r"D <= 4.*nearest ratio is that of D = 5, 19\.4"),
    "overlap": (lambda: nl.ratio_of_overlap(64, 1.0), "must lie between 0 and 1"),
    "large overlap": (lambda: nl.ratio_of_overlap(3072, 0.999), "overlap by less at any ratio"),
    "ratio": (lambda: nl.levels_of_ratio(1.0, 0.1, 1.0), "must be above 1"),
    "diverges": (lambda: nl.variance_ratio(2e-4, sigma_min=0.01, ratio=1.04, steps=5), r"diverges at eps >= .*0\.0002"),
    "no step": (lambda: nl.variance_ratio(0.0, sigma_min=0.01, ratio=1.04, steps=5), "must be positive"),
    "no steps": (lambda: nl.best_step_size(sigma_min=0.01, ratio=1.04, steps=0), "at least 1"),
}


@pytest.mark.parametrize("label", BAD)
def test_bad_input_is_refused_in_one_line(label: str):
    make, message = BAD[label]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- against the recorded values of the official program


@pytest.mark.parametrize("name", refdata.cases(ARRAYS, "sigmas/(.+)"))
def test_recorded_configurations(name):
    c = TECHNIQUES[name]
    sigma_max, sigma_min, levels = c["sigma_begin"], c["sigma_end"], c["num_classes"]
    sigmas = nl.geometric_levels(sigma_max, sigma_min, levels)
    np.testing.assert_allclose(ARRAYS[f"sigmas/{name}"], sigmas, rtol=1.2e-7)  # rounded to float32 there
    ratio, dimension = nl.ratio_of_levels(sigma_max, sigma_min, levels), 3 * c["image_size"] ** 2
    assert ratio == pytest.approx(c["official_ratio"], rel=1e-13)
    gamma = nl.ratio_of_overlap(dimension, nl.PAPER_OVERLAP)
    assert gamma == pytest.approx(c["technique2_gamma"], rel=1e-12)
    assert nl.levels_of_ratio(sigma_max, sigma_min, gamma) == int(c["technique2_levels_L"])
    C = nl.overlap(ratio, dimension)
    assert C == pytest.approx(c["technique2_C_at_official_ratio"], rel=1e-9, abs=1e-12)
    if abs(C - nl.PUBLISHED_OVERLAP) < 1e-3:  # levels by technique 2, so not those of 2019
        assert nl.levels_of_ratio(sigma_max, sigma_min, nl.ratio_of_overlap(dimension)) == levels
    ends = {"sigma_min": sigma_min, "ratio": ratio, "steps": c["n_steps_each"]}
    assert nl.variance_ratio(c["step_lr"], **ends) == pytest.approx(
        c["technique4_value_at_step_lr_with_official_ratio"], rel=1e-12
    )
    best = nl.best_step_size(**ends)
    assert best == pytest.approx(c["technique4_best_eps_grid"], rel=1e-3)  # there the best of a grid
    assert nl.variance_ratio(best, **ends) - 1 <= c["technique4_min_abs_dev"] * (1 + 1e-12)


@pytest.mark.reference
def test_recorded_ratios(reference):
    for dimension, gamma in zip(ARRAYS["technique2/D"], ARRAYS["technique2/gamma"], strict=True):
        if np.isnan(gamma):
            with pytest.raises(ValueError, match="nearest ratio"):
                nl.ratio_of_overlap(int(dimension), nl.PAPER_OVERLAP)
        else:
            assert nl.ratio_of_overlap(int(dimension), nl.PAPER_OVERLAP) == pytest.approx(gamma, rel=1e-12)


@pytest.mark.parametrize("key", refdata.cases(ARRAYS, r"(technique4/.+/T\d+)"))
def test_recorded_variance_ratios(key):
    _, name, steps = key.split("/")
    c = TECHNIQUES[name]
    ratio = nl.ratio_of_levels(c["sigma_begin"], c["sigma_end"], c["num_classes"])
    eps = ARRAYS[f"technique4/{name}/eps"]
    got = nl.variance_ratio(eps, sigma_min=c["sigma_end"], ratio=ratio, steps=int(steps[1:]))
    np.testing.assert_allclose(got, ARRAYS[key], rtol=1e-12)
