"""`models.build`: settings become modules, impossible ones a one-line error naming the key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from sgmjax import models
from sgmjax.config import MODEL
from sgmjax.models import DDPM, MLP, NCSNpp, NCSNppClassifier

IMAGE = dict(in_channels=6, out_channels=3, image_size=32, centered=True, dtype="float32")
VECTOR = dict(in_channels=4, out_channels=2, image_size=None, centered=True, dtype="float32")


@pytest.mark.parametrize(
    ("name", "cls", "where"), [("ncsnpp", NCSNpp, IMAGE), ("ddpm", DDPM, IMAGE), ("mlp", MLP, VECTOR)]
)
def test_every_setting_reaches_the_module(name, cls, where):
    config = MODEL.section(name)
    module = models.build(config, **where)
    assert type(module) is cls
    for key, value in config.settings.items():
        assert getattr(module, key) == value, key
    assert module.out_channels == where["out_channels"]
    assert module.dtype == jnp.float32
    assert models.build(config, **(where | {"dtype": jnp.bfloat16, "centered": False})).dtype == jnp.bfloat16
    assert not models.build(config, **(where | {"centered": False})).centered
    hash(module)  # static under jit


def test_settings_may_be_lists():
    section = MODEL.section("ncsnpp_classifier", nf=8, ch_mult=[1, 2], attn_resolutions=[], num_res_blocks=1)
    module = models.build(section, **(IMAGE | {"image_size": 8}))
    assert isinstance(module, NCSNppClassifier)
    assert module.ch_mult == (1, 2)
    x, cond = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    logits, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, cond)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        (dict(attn_resolutions=(16, 5)), {}, r"model\.attn_resolutions: no level has side 5.*32, 16, 8, 4$"),
        (dict(), dict(image_size=28), r"model\.ch_mult: 4 levels.*multiple of 8; got 28"),
        (dict(ch_mult=()), {}, r"model\.ch_mult"),
        (dict(ch_mult=(1, 0)), {}, r"model\.ch_mult\[1\]: must be positive, got 0"),
        (dict(nf=2), {}, r"model\.nf: must be 4 or more, for the time embedding, got 2"),
        (dict(num_res_blocks=0), {}, r"model\.num_res_blocks: must be positive, got 0"),
        (dict(num_classes=0), {}, r"model\.num_classes: must be positive, got 0"),
        (dict(dropout=1.0), {}, r"model\.dropout: must be at least 0 and below 1, got 1\.0"),
        (dict(init_scale=-1.0), {}, r"model\.init_scale: must be zero or positive"),
        (dict(embedding_type="fourier", fourier_scale=0.0), {}, r"model\.fourier_scale: must be positive"),
        (dict(embedding_dim=2), {}, r"model\.embedding_dim: must be 4 or more"),
        (dict(embedding_type="fourier", embedding_scale=1000.0), {}, r"model\.embedding_scale.*model\.fourier_scale"),
        (dict(fourier_log=False), {}, r"model\.fourier_log: the positional embedding"),
        (dict(fir=True, fir_kernel=(1,)), {}, r"model\.fir_kernel"),
        (dict(fir=True, fir_kernel=(1, -1)), {}, r"model\.fir_kernel"),
        (dict(resblock_type="resnet"), {}, r"model\.resblock_type: expected one of biggan, ddpm, got 'resnet'"),
        (dict(progressive="skip"), {}, r"model\.progressive: .*output_skip, residual, got 'skip'"),
        (dict(nonlinearity="gelu"), {}, r"model\.nonlinearity: .*swish, elu, relu, lrelu, got 'gelu'"),
        (dict(progressive_combine="max"), {}, r"model\.progressive_combine: .*sum, cat, got 'max'"),
        (dict(name="unet"), {}, r"model\.name: no model called 'unet'; choose one of ncsnpp, .*did you mean unet1d"),
        (dict(dtype="bfloat16"), {}, r"model\.dtype: follows from the data and the other settings; leave it out"),
        (dict(name="mlp_classifier", num_classes=3), {}, r"model\.num_classes: no such setting of mlp_classifier"),
        (dict(name="ncsnpp_classifier", progressive="none"), {}, r"no such setting of ncsnpp_classifier"),
        (dict(), dict(image_size=None), r"model\.name: 'ncsnpp' needs images.*use 'mlp'"),
        (dict(), dict(out_channels=0), r"out_channels must be positive"),
    ],
)
def test_impossible_settings(changes, where, message):
    with pytest.raises(ValueError, match=message) as error:
        models.build(MODEL.read({"name": "ncsnpp", **changes}), **(IMAGE | where))
    assert "\n" not in str(error.value)


def test_vector_network_on_images_and_unknown_setting():
    with pytest.raises(ValueError, match=r"model\.name: 'mlp' needs vectors.*'ncsnpp' or 'ddpm'"):
        models.build(MODEL.section("mlp"), **IMAGE)
    with pytest.raises(ValueError, match=r"model\.heads: no such setting of mlp"):
        MODEL.section("mlp", heads=3)


@pytest.mark.parametrize("widths", [(4, 8), (8, 12), ()])
def test_widths_that_no_group_norm_has_are_refused(widths):
    with pytest.raises(ValueError, match=r"model\.widths: \(.*\) must be one multiple of 8") as error:
        models.build(MODEL.section("feature_net", widths=widths), **IMAGE)
    assert "\n" not in str(error.value)
