"""The Inception network of FID against recorded outputs of pytorch-fid and torch-fidelity, on weights by a formula."""

from __future__ import annotations

import functools
import zlib

import jax
import numpy as np
import pytest
import refdata
from flax import traverse_util

from sgmjax.metrics import InceptionV3, frechet_distance, inception_params, preprocess
from sgmjax.metrics.inception import resize_weights

OPTIMIZED = True  # the time goes into running

KEYS = refdata.load_json("inception/state_dict_keys.json")
RECORDED = refdata.load_npz("inception/features.npz")
FRECHET = refdata.load_npz("inception/frechet.npz")
OUTPUTS = {"feat64": "block0", "feat192": "block1", "feat768": "block2", "feat2048": "pool3", "logits": "logits"}


def synthetic(key: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """An array of the synthetic weights, by the formula of the reference folder's README."""
    if key.endswith("num_batches_tracked"):
        return np.int64(0)
    z = np.random.Generator(np.random.PCG64(zlib.crc32((salt + key).encode()))).standard_normal(shape)
    part = key.rpartition(".")[2]
    if key.endswith(".conv.weight"):
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif key == "fc.weight":
        z = z * np.sqrt(1 / 2048)
    else:
        z = {"weight": 1 + 0.1 * z, "running_var": 1 + 0.1 * np.abs(z)}.get(part, 0.1 * z)
    return z.astype(np.float32)


@functools.cache
def state_dict():
    salt = str(RECORDED["weights_salt"])
    return {entry["key"]: synthetic(entry["key"], tuple(entry["shape"]), salt) for entry in KEYS["keys"]}


@functools.cache
def outputs():
    """Outputs of all recorded image sets, by (set, convention), in one batch of one compilation."""
    params = inception_params(state_dict())
    sets = sorted(key.removeprefix("images_") for key in RECORDED if key.startswith("images_"))
    asked = [(name, "pytorch_fid") for name in sets]
    asked += [(name, "tf1") for name in sets if f"feat2048_{name}_tf1x" in RECORDED]
    inputs = [np.asarray(preprocess(RECORDED[f"images_{name}"], convention=how)) for name, how in asked]
    found = jax.jit(InceptionV3().apply)({"params": params}, np.concatenate(inputs))
    ends = np.cumsum([len(x) for x in inputs])[:-1]
    parts = {field: np.split(np.asarray(value), ends) for field, value in found._asdict().items()}
    return {key: {field: parts[field][i] for field in parts} for i, key in enumerate(asked)}


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.reference
def test_the_synthetic_weights_are_those_recorded():
    for entry in KEYS["keys"]:
        if "syn_crc32" in entry:
            assert zlib.crc32(state_dict()[entry["key"]].tobytes()) == entry["syn_crc32"], entry["key"]


@pytest.mark.parametrize("output, name", refdata.cases(RECORDED, r"(feat\d+|logits)_(\w+)_f64"))
def test_features(output, name):
    """Against float64; every mistake in the recorded table of sensitivities is above 1e-4 somewhere."""
    found = outputs()[name, "pytorch_fid"][OUTPUTS[output]]
    assert relative(found, RECORDED[f"{output}_{name}_f64"]) < 1e-5


@pytest.mark.parametrize(
    "output, name", refdata.cases(RECORDED, r"(feat\d+|logits_unbiased|logits(?!_unbiased))_(\w+)_tf1x")
)
def test_features_with_the_preprocessing_of_tensorflow_1(output, name):
    field = {**OUTPUTS, "logits_unbiased": "logits_unbiased"}[output]
    assert relative(outputs()[name, "tf1"][field], RECORDED[f"{output}_{name}_tf1x"]) < 1e-5


@pytest.mark.parametrize("name", refdata.cases(RECORDED, r"logits_unbiased_((?:(?!_tf1x)\w)+)"))
def test_logits_without_bias(name):
    assert relative(outputs()[name, "pytorch_fid"]["logits_unbiased"], RECORDED[f"logits_unbiased_{name}"]) < 1e-5


@pytest.mark.parametrize("name, tf1", refdata.cases(RECORDED, r"pre_(\w+?)_?(?:img0_)?rows(|_tf1x)"))
def test_preprocessing(name, tf1):
    key = next(k for k in RECORDED if k.startswith(f"pre_{name}") and k.endswith(f"rows{tf1}"))
    found = preprocess(RECORDED[f"images_{name}"][:1], convention="tf1" if tf1 else "pytorch_fid")
    # The official coordinates are float32: at a side of 450 they are off by 3e-5 of a pixel.
    np.testing.assert_allclose(np.asarray(found)[0].transpose(2, 0, 1)[:, ::13], RECORDED[key], atol=1e-5)


def test_resizing_to_the_same_size_changes_nothing():
    for convention in ("pytorch_fid", "tf1"):
        np.testing.assert_array_equal(resize_weights(299, convention=convention), np.eye(299, dtype=np.float32))


@pytest.mark.parametrize("dim", refdata.cases(FRECHET, r"fd_net(\d+)_exact"))
def test_frechet_distance_of_the_networks_features(dim):
    one, other = (outputs()[name, "pytorch_fid"][OUTPUTS[f"feat{dim}"]] for name in ("32", "299"))
    assert frechet_distance(one, other) == pytest.approx(float(FRECHET[f"fd_net{dim}_exact"]), rel=5e-5)


@pytest.mark.reference
def test_weights_that_are_not_these_are_refused():
    weights = dict(state_dict())
    params = traverse_util.flatten_dict(inception_params(weights))
    without_counters = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    for path, value in traverse_util.flatten_dict(inception_params(without_counters)).items():
        np.testing.assert_array_equal(value, params[path])
    some = "Mixed_6b.branch7x7_2.conv.weight"
    for change, message in (
        ({some: weights[some][:1]}, f"'{some}' has shape"),
        ({some: np.full_like(weights[some], np.nan)}, some),
        ({"fc2.weight": np.zeros(3)}, "hold 'fc2.weight'"),
        ({"Conv2d_1a_3x3.bn.running_var": -weights["Conv2d_1a_3x3.bn.running_var"]}, "not positive"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            inception_params(weights | change)
    del weights[some]
    with pytest.raises(ValueError, match="lack 'Mixed_6b"):
        inception_params(weights)


def test_images_that_cannot_be():
    for images in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 2), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected images"):
            preprocess(images)
