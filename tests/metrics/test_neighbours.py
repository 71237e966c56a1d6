"""Nearest neighbours against all distances by brute force, and what is concluded from them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import norm

from sgmjax import sharding as sh
from sgmjax.data import ArrayDataset
from sgmjax.evaluation import metrics as evaluation
from sgmjax.metrics import memorisation, nearest, neighbours, picture_rows
from sgmjax.samplers.plan import Plan


def _images(num, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 4, 3, 2)).astype(np.uint8)


def _brute(queries, x, k):
    table = cdist(*(v.reshape(len(v), -1).astype(np.float64) for v in (queries, x)))
    order = np.argsort(table, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(table, order, 1), order


@pytest.mark.parametrize("block_size", [7, 4096])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_is_that_of_all_pairs(k, block_size):
    """Copies of the data among the queries too, at distance 0 exactly."""
    x = _images(40)
    queries = np.concatenate([_images(9, seed=1), x[[3, 30]]])
    distances, indices = _brute(queries, x, k)
    for source, centered, scale in ((x, False, 1 / 255), (ArrayDataset("images", x), True, 2 / 255)):
        found = nearest(queries, source, k, centered=centered, block_size=block_size)
        np.testing.assert_allclose(found.distances, distances * scale, rtol=1e-13, atol=0)
        assert np.array_equal(found.indices, indices)
    assert found.distances[-2, 0] == 0 and found.indices[-1, 0] == 30


def test_vectors_far_from_the_origin():
    """Float data, whose distances are lost in |a|^2 + |b|^2 - 2 a.b about the origin."""
    rng = np.random.default_rng(0)
    x, queries = (1e4 + rng.normal(size=(n, 3)) for n in (50, 6))
    x, queries = x.astype(np.float32), queries.astype(np.float32)
    found = nearest(queries, x, 3, block_size=16)
    distances, indices = _brute(queries, x, 3)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)
    assert np.array_equal(found.indices, indices)


def test_ties_below_the_resolution_of_float32(monkeypatch):
    """More examples at nearly one distance than there are candidates: then all are compared in float64."""
    rng = np.random.default_rng(0)
    x = np.full((60, 3000), 200, np.uint8)
    x[np.arange(60), rng.integers(0, 3000, 60)] = rng.integers(
        190, 200, 60
    )  # squares of 1e8, differing in the last digits
    called = []
    in_double = neighbours._in_double
    monkeypatch.setattr(neighbours, "_in_double", lambda *args: called.append(1) or in_double(*args))
    query = np.zeros((1, 3000), np.uint8)
    found = nearest(query, x, 4)
    assert called
    np.testing.assert_allclose(found.distances, _brute(query, x, 4)[0] / 255, rtol=1e-13)


def test_mirrored_copies_are_copies():
    x = _images(20)
    queries = np.concatenate([x[4:6, :, ::-1], _images(3, seed=1)])
    plain, mirrored = nearest(queries, x, 3), nearest(queries, x, 3, mirrored=True, block_size=6)
    assert plain.distances[0, 0] > 0 and np.array_equal(mirrored.distances[:2, 0], [0, 0])
    assert np.array_equal(mirrored.indices[:2, 0], [4, 5])
    both = np.minimum(*(cdist(q.reshape(5, -1) / 255, x.reshape(20, -1) / 255) for q in (queries, queries[:, :, ::-1])))
    np.testing.assert_allclose(mirrored.distances, np.sort(both, axis=1)[:, :3], rtol=1e-12)
    assert all(len(set(row)) == 3 for row in mirrored.indices)


def test_progress_and_errors():
    seen = []
    nearest(_images(10, seed=1), _images(20), block_size=9, progress=lambda *args: seen.append(args))
    assert seen == [(180, 200), (200, 200)]
    for queries, settings, message in (
        (np.zeros((2, 5), np.uint8), {}, "the two sets have dimensions 5 and 24"),
        (_images(2).astype(np.float32), {}, "one set is uint8 and the other is not"),
        (_images(2), {"k": 21}, "k must be from 1 to the 20"),
        (_images(2), {"block_size": 0}, "block_size"),
        (_images(2).reshape(2, 24), {"mirrored": True}, "mirrored is for images"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest(queries, _images(20), **settings)


def test_memorisation_of_known_laws():
    """Log-normal distances, medians and percentiles by the normal law; a quarter of the samples are copies."""
    rank = (np.arange(20_000) + 0.5) / 20_000
    held_out = np.exp(norm.ppf(rank))
    same = memorisation(held_out, held_out)
    assert same.median_ratio == 1 and same.share_below == pytest.approx(0.01, abs=1e-4)
    assert same.threshold == pytest.approx(np.exp(norm.ppf(0.01)), rel=1e-2)
    assert same.share_error == pytest.approx(np.sqrt(2 * 0.01 * 0.99 / 20_000), rel=1e-2)
    near = memorisation(held_out * 0.5, held_out)
    assert near.median_ratio == pytest.approx(0.5)
    assert near.share_below == pytest.approx(norm.cdf(norm.ppf(0.01) + np.log(2)), rel=2e-2)
    copies = memorisation(np.concatenate([np.zeros(5000), held_out[5000:]]), held_out)
    assert copies.share_below == pytest.approx(0.25, abs=1e-4)
    with pytest.raises(ValueError, match="expected distances"):
        memorisation(np.zeros(0), held_out)
    with pytest.raises(ValueError, match="are in the training set"):
        memorisation(held_out, np.zeros(3))


def test_picture_rows_are_samples_with_their_neighbours():
    """First the nearest sample, last the farthest, one between."""
    x = _images(30)
    samples = np.concatenate([_images(8, seed=1), x[7:8]])
    found = nearest(samples, x, 2)
    for source in (x, ArrayDataset("images", x)):
        shown = picture_rows(samples, source, found, num=3).reshape(3, 3, 4, 3, 2)
        assert np.array_equal(shown[0, 0], samples[8]) and np.array_equal(shown[0, 1], x[7])
        last = int(np.argmax(found.distances[:, 0]))
        assert np.array_equal(shown[2], np.stack([samples[last], *x[found.indices[last]]]))
        middle = int(np.argsort(found.distances[:, 0])[4])
        assert np.array_equal(shown[1, 0], samples[middle])
    assert len(picture_rows(samples[:2], x, nearest(samples[:2], x, 2), num=10)) == 6


def test_metric_of_evaluate():
    """Samples half of which are training images: half of them below the threshold, and shown first."""
    training = ArrayDataset("pixels", np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1)).astype(np.uint8))
    held_out = ArrayDataset("pixels", np.random.default_rng(1).integers(0, 256, (40, 2, 2, 1)).astype(np.uint8))
    samples = np.concatenate([training.read(np.arange(12))["x"], held_out.read(np.arange(12))["x"]])

    class Task:
        event_shape, discrete, centered = (2, 2, 1), True, True

        def sample(self, variables, key, num, plan):
            return jnp.asarray(samples[:num], jnp.float32) / 127.5 - 1, {"nfe": 7}

    subject = evaluation.Subject(
        task=Task(), variables=jnp.zeros(()), data=held_out, others=lambda: training, plan=Plan(), mesh=sh.make_mesh()
    )
    _, lines, result, image = evaluation.METRICS["neighbours"](
        subject, evaluation.Settings(num=24, batch_size=24, nearest=3)
    )
    assert "of 24 samples" in lines[0] and "of 40 held-out images" in lines[0] and "of the samples" in lines[1]
    assert result["results"]["share_below"] >= 0.5 and result["results"]["smallest"] == 0.0
    assert (result["num"], result["training"], result["held_out"], result["nearest"]) == (24, 50, 40, 3)
    assert image.dtype == np.uint8 and image.shape[1] > 4 * 64 and image.shape[0] > 10 * 64  # ten rows of four
