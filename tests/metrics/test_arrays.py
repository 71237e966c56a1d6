"""What every metric makes of the arrays it is given: of JAX, lists, bytes of images, masked ones."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import metrics
from sgmjax.metrics.manifold import radii

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(40, 4)), RNG.normal(size=(30, 4)) + 1.0
IMAGES, OTHERS = (RNG.integers(0, 256, (num, 4, 4, 1), np.uint8) for num in (40, 30))
COMPARISONS = {
    "frechet_distance": metrics.frechet_distance,
    "kid": lambda a, b: metrics.kid(a, b, subset_size=20).mean,
    "kid_blocks": lambda a, b: metrics.kid_blocks(a, b, max_block_size=20).mean,
    "precision_recall": metrics.precision_recall,
    "density_coverage": metrics.density_coverage,
    "monge_inception_distance": lambda a, b: metrics.monge_inception_distance(a, b, num_directions=8),
    "nearest": lambda a, b: metrics.nearest(a, b).distances,
}
SCALED = [name for name in COMPARISONS if name != "frechet_distance"]  # which takes features, as they are


@pytest.mark.parametrize("name", COMPARISONS)
def test_arrays_of_jax_and_lists_are_arrays(name: str):
    compare, a, b = COMPARISONS[name], A.astype(np.float32), B.astype(np.float32)
    expected = compare(a, b)
    np.testing.assert_allclose(compare(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-6)
    if name != "frechet_distance":
        np.testing.assert_allclose(compare(a.tolist(), b.tolist()), expected, rtol=1e-6)


def test_statistics_and_pixels_of_arrays_of_jax():
    a = A.astype(np.float32)
    whole, ours = metrics.statistics(a), metrics.statistics(jnp.asarray(a))
    assert ours.num == 40
    np.testing.assert_array_equal(ours.sigma, whole.sigma)
    pixels = metrics.pixel_frechet(jnp.asarray(IMAGES), jnp.asarray(OTHERS))
    assert pixels == metrics.pixel_frechet(IMAGES, OTHERS)


@pytest.mark.parametrize("name", SCALED)
def test_bytes_are_numbers_from_0_to_1(name: str):
    """The scores of one set in either form."""
    compare = COMPARISONS[name]
    whole = compare(IMAGES.astype(np.float64) / 255, OTHERS.astype(np.float64) / 255)
    np.testing.assert_allclose(compare(IMAGES, OTHERS), whole, rtol=1e-5)
    with pytest.raises(ValueError, match="one set is uint8 and the other is not"):
        compare(IMAGES.astype(np.float32) / 255, OTHERS)


def test_known_radii_of_bytes_are_those_of_radii():
    found = metrics.precision_recall(IMAGES, OTHERS)
    assert found == metrics.precision_recall(IMAGES, OTHERS, real_radii=radii(OTHERS, 3)) and found.precision > 0
    for wrong in (radii(OTHERS, 3)[:-1], np.append(radii(OTHERS, 3), 1.0)):
        with pytest.raises(ValueError, match=r"radii: have shape .*, expected \(30,\)"):
            metrics.precision_recall(IMAGES, OTHERS, real_radii=wrong)


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_is_no_set_is_said_so(name: str):
    masked = np.ma.masked_greater(A, 1.0)
    with pytest.raises(ValueError, match=r"^the (data|features)\[\d+, \d+\] is masked"):
        COMPARISONS[name](masked, B)
    with pytest.raises(ValueError, match="expected .*got (a number|an array of shape)"):
        COMPARISONS[name](np.float64(1.0), B)


def test_features_in_double_precision_stay_so():
    """About a mean of 10, where rounding to float32 shows in the kernel: the whole sets are one block."""
    a, b = RNG.normal(10.0, 1.0, (50, 4)), RNG.normal(10.0, 1.0, (50, 4))
    assert metrics.kid_blocks(a, b, max_block_size=50).mean == metrics.kernel_distance(a, b)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.kid_blocks(A, B, max_block_size=0), "max_block_size must be at least 2, got 0"),
        (lambda: metrics.monge_inception_distance(A, B, block_size=0), "block_size must be at least 1, got 0"),
        (lambda: metrics.memorisation(np.array([1.0, np.nan]), np.ones(3)), r"samples\[1\] is nan"),
        (lambda: metrics.memorisation(np.ones(3), np.array([1.0, -1.0])), r"held_out\[1\] is -1.0: the least is 0"),
        (lambda: metrics.preprocess(IMAGES, convention="tf"), "convention: 'tf' is none; there are pytorch_fid, tf1"),
        (lambda: metrics.nearest({"x": A}, B), "expected an array .* or a data set, got dict"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
