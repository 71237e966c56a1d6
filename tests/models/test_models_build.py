"""`models.build`: settings become modules, impossible ones a one-line error naming the key."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sgmjax import models
from sgmjax.models import DDPM, MLP, NCSNpp, NCSNppClassifier
from sgmjax.training.config import DDPMConfig, MLPConfig, NCSNppConfig

IMAGE = dict(in_channels=6, out_channels=3, image_size=32, centered=True, dtype="float32")
VECTOR = dict(in_channels=4, out_channels=2, image_size=None, centered=True, dtype="float32")


@pytest.mark.parametrize(
    ("config", "cls", "where"),
    [(NCSNppConfig(), NCSNpp, IMAGE), (DDPMConfig(), DDPM, IMAGE), (MLPConfig(), MLP, VECTOR)],
)
def test_every_setting_reaches_the_module(config, cls, where):
    module = models.build(config, **where)
    assert type(module) is cls
    for field in dataclasses.fields(config):
        if field.name != "name":
            assert getattr(module, field.name) == getattr(config, field.name), field.name
    assert module.out_channels == where["out_channels"]
    assert module.dtype == jnp.float32
    assert models.build(config, **(where | {"dtype": jnp.bfloat16, "centered": False})).dtype == jnp.bfloat16
    assert not models.build(config, **(where | {"centered": False})).centered
    hash(module)  # static under jit


def test_settings_may_be_lists_and_networks_beyond_the_configuration():
    @dataclasses.dataclass(frozen=True)
    class Section:
        name: str = "ncsnpp_classifier"
        nf: int = 8
        ch_mult: list = dataclasses.field(default_factory=lambda: [1, 2])
        attn_resolutions: tuple = ()
        num_res_blocks: int = 1

    module = models.build(Section(), **(IMAGE | {"image_size": 8}))
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
        (dict(ch_mult=(1, 0)), {}, r"model\.ch_mult"),
        (dict(nf=2), {}, r"model\.nf: 2 is too small"),
        (dict(num_res_blocks=0), {}, r"model\.num_res_blocks: 0 must be positive"),
        (dict(num_classes=0), {}, r"model\.num_classes: 0 must be positive"),
        (dict(dropout=1.0), {}, r"model\.dropout: 1\.0 must be in \[0, 1\)"),
        (dict(init_scale=-1.0), {}, r"model\.init_scale"),
        (dict(embedding_type="fourier", fourier_scale=0.0), {}, r"model\.fourier_scale"),
        (dict(embedding_dim=2), {}, r"model\.embedding_dim: 2 is too small"),
        (dict(embedding_type="fourier", embedding_scale=1000.0), {}, r"model\.embedding_scale.*model\.fourier_scale"),
        (dict(fourier_log=False), {}, r"model\.fourier_log: the positional embedding"),
        (dict(fir=True, fir_kernel=(1,)), {}, r"model\.fir_kernel"),
        (dict(fir=True, fir_kernel=(1, -1)), {}, r"model\.fir_kernel"),
        (dict(resblock_type="resnet"), {}, r"model\.resblock_type: 'resnet'.*biggan, ddpm"),
        (dict(progressive="skip"), {}, r"model\.progressive: 'skip'.*output_skip"),
        (dict(nonlinearity="gelu"), {}, r"model\.nonlinearity: 'gelu'.*swish"),
        (dict(progressive_combine="max"), {}, r"model\.progressive_combine: 'max'.*sum, cat"),
        (dict(name="unet"), {}, r"model\.name: 'unet' is unknown; choose one of ncsnpp"),
        (dict(), dict(image_size=None), r"model\.name: 'ncsnpp' needs images.*use 'mlp'"),
        (dict(), dict(out_channels=0), r"out_channels must be positive"),
    ],
)
def test_impossible_settings(changes, where, message):
    with pytest.raises(ValueError, match=message) as error:
        models.build(dataclasses.replace(NCSNppConfig(), **changes), **(IMAGE | where))
    assert "\n" not in str(error.value)


def test_vector_network_on_images_and_unknown_setting():
    with pytest.raises(ValueError, match=r"model\.name: 'mlp' needs vectors.*'ncsnpp' or 'ddpm'"):
        models.build(MLPConfig(), **IMAGE)

    @dataclasses.dataclass(frozen=True)
    class Section:
        name: str = "mlp"
        heads: int = 3

    with pytest.raises(ValueError, match=r"model\.heads: 'mlp' has no such setting"):
        models.build(Section(), **VECTOR)
