"""Convolutions as they are computed on a CPU, against XLA's own: values, both gradients, forward mode, vmap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sgmjax.models import convolution
from sgmjax.models.convolution import convolve

NUMBERS = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def _double(x64):
    """In float64 where it is asked for."""


def draw(*shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def everything(x, kernel, strides, padding, groups):
    """The value, both gradients, both tangents, and the value for two kernels at once."""

    def call(x, kernel):
        return convolve(x, kernel, strides, padding, dimension_numbers=NUMBERS, feature_group_count=groups)

    @jax.jit
    def all_of_it(x, kernel):
        value, pull = jax.vjp(call, x, kernel)
        _, push = jax.linearize(call, x, kernel)
        several = jax.vmap(call, (None, 0))(x, jnp.stack([kernel, 2 * kernel]))
        return value, *pull(jnp.cos(value)), push(x[::-1], kernel), push(x, kernel[::-1]), several

    return all_of_it(x, kernel)


CASES = [
    # image, window, C, F, strides, padding, groups
    ((8, 8), (3, 3), 4, 6, (1, 1), "SAME", 1),
    ((7, 10), (3, 3), 5, 3, (1, 1), [(1, 1), (1, 1)], 1),
    ((9, 8), (3, 3), 3, 5, (1, 1), "VALID", 1),
    ((6, 7), (3, 3), 3, 5, (1, 1), [(0, 2), (2, 1)], 1),
    ((3, 4), (3, 3), 2, 2, (1, 1), "VALID", 1),
    ((8, 6), (3, 3), 3, 4, (2, 2), [(0, 1), (0, 1)], 1),
    ((8, 7), (1, 1), 4, 6, (1, 1), "SAME", 1),
    ((8, 7), (1, 1), 4, 6, (2, 2), "SAME", 1),
    ((5, 6), (1, 1), 4, 6, (1, 1), [(1, 0), (0, 2)], 1),
    ((9, 8), (5, 5), 4, 4, (1, 1), [(2, 2), (2, 2)], 4),
    ((9, 8), (3, 3), 4, 4, (2, 2), [(1, 1), (1, 1)], 4),
    ((11, 7), (5, 3), 4, 4, (3, 2), [(2, 2), (1, 0)], 4),
    ((8, 8), (3, 3), 4, 8, (1, 1), "SAME", 2),
]


@pytest.mark.parametrize(("image", "window", "c", "f", "strides", "padding", "groups"), CASES)
def test_a_convolution_and_its_derivatives_are_those_of_xla(image, window, c, f, strides, padding, groups, monkeypatch):
    monkeypatch.setattr(convolution, "WORTHWHILE", 0)
    x, kernel = draw((2, *image, c), (*window, c // groups, f))
    found = everything(x, kernel, strides, padding, groups)
    with convolution.native():
        expected = everything(x, kernel, strides, padding, groups)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(b).max())


def test_a_kernel_for_each_channel_in_a_second_derivative_mapped_and_on_several_devices():
    x, kernel = draw((8, 5, 6, 3), (3, 3, 1, 3))

    def call(x, kernel):
        padding = [(1, 1), (1, 1)]
        return convolve(x, kernel, (1, 1), padding, dimension_numbers=NUMBERS, feature_group_count=3)

    def slope(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(call(x, k))), (0, 1))(x, kernel)

    def everything(x, kernel):
        again = jax.jvp(lambda x, k: slope(x, k), (x, kernel), (x[::-1], 2 * kernel))
        each = jax.vmap(slope, (0, None))(x[:, None], kernel)
        return again, each

    found = jax.jit(everything)(x, kernel)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("data")))
        sharded = jax.jit(everything)(placed, kernel)
    with convolution.native():
        expected = jax.jit(everything)(x, kernel)
    for a, b, c in zip(*map(jax.tree.leaves, (found, sharded, expected)), strict=True):
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-13 * np.abs(c).max())
        np.testing.assert_allclose(b, c, rtol=0, atol=1e-13 * np.abs(c).max())


def test_the_gradient_of_a_kernel_for_each_channel_is_summed_in_float32():
    """In bfloat16 as near as its last rounding, whatever the number of examples; and there may be none."""
    x, kernel = draw((256, 5, 6, 3), (3, 3, 1, 3), dtype=jnp.bfloat16)

    def slope(kernel, x):
        options = {"dimension_numbers": NUMBERS, "feature_group_count": 3}
        return jax.grad(lambda k: jnp.sum(convolve(x, k, (1, 1), "SAME", **options).astype(jnp.float64)))(kernel)

    found, exact = jax.jit(slope)(kernel, x), slope(kernel.astype(jnp.float64), x.astype(jnp.float64))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=2**-8, atol=2**-8 * np.abs(exact).mean())
    np.testing.assert_array_equal(slope(kernel, x[:0]), 0)


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(axes, monkeypatch):
    monkeypatch.setattr(convolution, "WORTHWHILE", 0)
    (x,) = draw((2, *(6,) * axes, 3), dtype=np.float32)
    for size in (1, 3):
        layer = nn.Conv(4, (size,) * axes, conv_general_dilated=convolve)
        plain = nn.Conv(4, (size,) * axes)
        params = plain.init(jax.random.key(0), x)
        np.testing.assert_allclose(layer.apply(params, x), plain.apply(params, x), rtol=1e-5, atol=1e-5)


def test_rounding_in_float32_stays_near_that_of_xla():
    """Against the convolution in float64: Winograd's sums may lose at most three times what XLA's lose."""
    x, kernel = draw((4, 32, 32, 64), (3, 3, 64, 64), dtype=np.float32)
    assert 4 * 32 * 32 * 9 * 64 * 64 > convolution.WORTHWHILE
    with convolution.native():
        exact = convolve(x.astype(np.float64), kernel.astype(np.float64), (1, 1), "SAME", dimension_numbers=NUMBERS)
        plain = convolve(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
    found = convolve(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
    assert not np.array_equal(found, plain)  # it is another algorithm
    worst, worst_plain = (np.abs(np.asarray(v, np.float64) - exact).max() for v in (found, plain))
    assert worst < 3e-6 * np.abs(exact).max()
    rms, rms_plain = (np.sqrt(np.mean((np.asarray(v, np.float64) - exact) ** 2)) for v in (found, plain))
    assert rms < 3 * rms_plain, (rms, rms_plain, worst, worst_plain)


def test_which_form_is_taken():
    """Products and sixteen multiplications instead of thirty-six where it pays, else XLA's convolution."""

    def primitives(shape, window, features, strides=(1, 1), dtype=jnp.float32, **options):
        x, kernel = jnp.zeros(shape, dtype), jnp.zeros((*window, shape[-1], features), dtype)
        found = jax.make_jaxpr(lambda x, k: convolve(x, k, strides, "SAME", dimension_numbers=NUMBERS, **options))
        return list(names(found(x, kernel).jaxpr))

    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for inner in equation.params.values():
                if hasattr(inner, "jaxpr"):  # of a function that is jitted by itself
                    yield from names(inner.jaxpr)

    def count(names):
        return names.count("dot_general"), names.count("conv_general_dilated")

    large, small = (4, 16, 16, 128), (4, 16, 16, 16)
    assert count(primitives(large, (3, 3), 128)) == (16, 0)
    assert count(primitives(small, (3, 3), 16)) == (0, 1)
    assert count(primitives(small, (1, 1), 16)) == (1, 0)
    assert count(primitives(large, (3, 3), 128, strides=(2, 2))) == (0, 1)
    assert count(primitives(large, (3, 3), 128, rhs_dilation=(2, 2))) == (0, 1)
    assert count(primitives(large, (3, 3), 128, dtype=jnp.bfloat16)) == (0, 1)
    assert count(primitives(large, (3, 3), 128, precision=jax.lax.Precision.HIGHEST)) == (0, 1)
    assert count(primitives(large, (1, 1), 128, preferred_element_type=jnp.float32)) == (0, 1)
    one = (1, 16, 16, 64)
    assert count(primitives(one, (3, 3), 64)) == (0, 1)
    with convolution.mapped(64):  # as by `jax.vmap`, which shows one example
        assert count(primitives(one, (3, 3), 64)) == (16, 0)
    with convolution.native():
        for shape, size in itertools.product((large, small), (1, 3)):
            assert count(primitives(shape, (size, size), 128)) == (0, 1)
