"""Output distributions of image decoders: Bernoulli, discretised logistic, their mixture, discretised and plain normal.

Images are channels last, `(batch, H, W, C)`, with values in [-1, 1]; a level of n-bit data is `2 k / (2^n - 1) - 1`.
Everything is in nats. Log-probabilities of the discretised ones are exact for every parameter: with
`plus` and `minus` the two standardised edges of a level's bin,

    sigmoid(plus) - sigmoid(minus) = sigmoid(plus) sigmoid(-minus) (1 - exp(minus - plus)),

a product of three factors each of which is accurate in float32, so that the 2^n probabilities sum to one even in the
far tails. The official program subtracts, and where the difference is small takes the density at the centre instead,
which is off by up to several nats there; `approximate=True` has its numbers.

Reference: Salimans et al. 2017 (PixelCNN++), section 2.1; Vahdat, Kreis & Kautz 2021 (LSGM), appendix.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sgmjax._inputs import InputError
from sgmjax._types import AnyArray, Scalar

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
OFFICIAL_HALF_LOG_2PI = 0.9189385332  # the constant as the official program rounds it
MIN_LOG_SCALE = -7.0
DECODERS = ("bin", "dl", "dml", "normal")


def soft_clamp(x: jax.Array, bound: float = 5.0) -> jax.Array:
    """`bound * tanh(x / bound)`: a differentiable clamp to (-bound, bound)."""
    return bound * jnp.tanh(x / bound)


def standard_normal_log_prob(x: AnyArray, *, half_log_2pi: float = HALF_LOG_2PI) -> jax.Array:
    """log N(x; 0, 1) of each element, in nats. `OFFICIAL_HALF_LOG_2PI` gives the official program's rounding."""
    return -0.5 * jnp.square(x) - half_log_2pi


def normal_log_prob(x: AnyArray, mean: Scalar | AnyArray, log_sigma: Scalar | AnyArray) -> jax.Array:
    """log N(x; mean, exp(log_sigma)^2) of each element, in nats."""
    return -0.5 * jnp.square((x - mean) * jnp.exp(-log_sigma)) - HALF_LOG_2PI - log_sigma


def discretized_normal_log_prob(
    x: AnyArray, mean: Scalar | AnyArray, log_sigma: Scalar | AnyArray, *, num_bits: int = 8
) -> jax.Array:
    """log-probability of each level under a normal whose mass is collected in the bins of the levels.

    Args:
      x: levels in [-1, 1].
      mean, log_sigma: parameters, broadcastable to x.
      num_bits: bits of the data.

    Returns:
      Of the shape of x, in nats. The bins at -1 and 1 reach to infinity.
    """
    half_bin = 1.0 / (2**num_bits - 1)
    inverse = jnp.exp(-log_sigma)
    plus, minus = inverse * (x - mean + half_bin), inverse * (x - mean - half_bin)
    log_ndtr = jax.scipy.special.log_ndtr
    # A bin on the right of the mean is reflected to the left, where Phi is not rounded to 1.
    swap = minus > 0
    plus, minus = jnp.where(swap, -minus, plus), jnp.where(swap, -plus, minus)
    high, low = log_ndtr(plus), log_ndtr(minus)
    gap = jnp.minimum(low - high, -jnp.finfo(high.dtype).tiny)
    middle = high + jnp.log(-jnp.expm1(gap))
    # The outermost bins have one edge, on its own side of the mean.
    lowest = log_ndtr(inverse * (x - mean + half_bin))
    highest = log_ndtr(-inverse * (x - mean - half_bin))
    return _by_level(x, lowest, middle, highest)


def _by_level(x: AnyArray, lowest: jax.Array, middle: jax.Array, highest: jax.Array) -> jax.Array:
    return jnp.where(x < -0.999, lowest, jnp.where(x > 0.999, highest, middle))


def _logistic_log_prob(
    x: AnyArray, mean: jax.Array, log_scale: jax.Array, num_bits: int, approximate: bool
) -> jax.Array:
    """log-probability of the levels x under a discretised logistic; see the module."""
    inverse = jnp.exp(-log_scale)
    half_bin = 1.0 / (2**num_bits - 1)
    plus, minus = inverse * (x - mean + half_bin), inverse * (x - mean - half_bin)
    lowest, highest = -jax.nn.softplus(-plus), -jax.nn.softplus(minus)
    # The width of the bin from its definition, not from plus - minus, which cancels.
    width = jnp.maximum(2.0 * half_bin * inverse, 1e-30)
    middle = lowest + highest + jnp.log(-jnp.expm1(-width))
    if approximate:
        centre = inverse * (x - mean)
        log_density = centre - log_scale - 2.0 * jax.nn.softplus(centre)
        mass = jax.nn.sigmoid(plus) - jax.nn.sigmoid(minus)
        log_mass = jnp.log(jnp.maximum(mass, 1e-10))
        middle = jnp.where(mass > 1e-5, log_mass, log_density + math.log(2.0 * half_bin))
    return _by_level(x, lowest, middle, highest)


def _logit_of_uniform(u: jax.Array) -> jax.Array:
    return jnp.log(u) - jnp.log1p(-u)


def _uniform(key: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.uniform(key, like.shape, like.dtype, 1e-5, 1.0 - 1e-5)


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Independent binary pixels with values -1 and 1, from `logits` (batch, H, W, C)."""

    logits: jax.Array

    def log_prob(self, x: AnyArray) -> jax.Array:
        """log p(x) of each element of x, which is -1 or 1; (batch, H, W, C)."""
        on = 0.5 * (jnp.asarray(x) + 1.0)
        return -on * jax.nn.softplus(-self.logits) - (1.0 - on) * jax.nn.softplus(self.logits)

    def mean(self) -> jax.Array:
        """In [-1, 1]."""
        return jnp.tanh(0.5 * self.logits)

    def sample(self, key: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        """Binary images; at temperature 0 the more probable value."""
        on = self.logits + temperature * _logit_of_uniform(_uniform(key, self.logits)) > 0
        return jnp.where(on, 1.0, -1.0).astype(self.logits.dtype)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Independent normal pixels: a density, for dequantised data."""

    loc: jax.Array
    log_sigma: jax.Array

    def log_prob(self, x: AnyArray) -> jax.Array:
        """log-density of each element; (batch, H, W, C)."""
        return normal_log_prob(x, self.loc, self.log_sigma)

    def mean(self) -> jax.Array:
        return self.loc

    def sample(self, key: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        noise = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        return self.loc + temperature * jnp.exp(self.log_sigma) * noise


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """Independent pixels, each a logistic whose mass is collected in the bins of the levels.

    Attributes:
      loc: (batch, H, W, C).
      log_scale: same shape, at least -7.
      num_bits: bits of the data.
      approximate: the official program's tails; see the module.
    """

    loc: jax.Array
    log_scale: jax.Array
    num_bits: int = 8
    approximate: bool = False

    def log_prob(self, x: AnyArray) -> jax.Array:
        """log p of each element of the levels x; (batch, H, W, C)."""
        return _logistic_log_prob(x, self.loc, self.log_scale, self.num_bits, self.approximate)

    def mean(self) -> jax.Array:
        """Location of the logistic."""
        return self.loc

    def sample(self, key: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        """In [-1, 1], not rounded to a level (as officially)."""
        noise = _logit_of_uniform(_uniform(key, self.loc))
        return jnp.clip(self.loc + temperature * jnp.exp(self.log_scale) * noise, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """Each pixel a mixture of discretised logistics; green depends on red, and blue on both, within a component.

    Attributes:
      logits: of the components, (batch, H, W, M).
      loc, log_scale: (batch, H, W, C, M), C = 1 or 3.
      coeffs: in (-1, 1), (batch, H, W, C, M): of red in green, of red in blue, of green in blue. Unused for C = 1.
      num_bits: bits of the data.
      approximate: the official program's tails; see the module.
    """

    logits: jax.Array
    loc: jax.Array
    log_scale: jax.Array
    coeffs: jax.Array
    num_bits: int = 8
    approximate: bool = False

    def log_prob(self, x: AnyArray) -> jax.Array:
        """log p of each pixel, all channels together; (batch, H, W)."""
        x = x[..., None]
        loc = self.loc
        if loc.shape[-2] == 3:
            red, green = x[..., 0, :], x[..., 1, :]
            c = self.coeffs
            shift_green = c[..., 0, :] * red
            shift_blue = c[..., 1, :] * red + c[..., 2, :] * green
            loc = loc + jnp.stack([jnp.zeros_like(shift_green), shift_green, shift_blue], axis=-2)
        log_prob = _logistic_log_prob(x, loc, self.log_scale, self.num_bits, self.approximate)
        weights = jax.nn.log_softmax(self.logits, axis=-1)
        return jax.nn.logsumexp(jnp.sum(log_prob, axis=-2) + weights, axis=-1)

    @staticmethod
    def _chain(x: jax.Array, coeffs: jax.Array) -> jax.Array:
        """Clips the channels to [-1, 1] one after the other, each shifted by those before it."""
        if x.shape[-1] == 1:
            return jnp.clip(x, -1.0, 1.0)
        red = jnp.clip(x[..., 0], -1.0, 1.0)
        green = jnp.clip(x[..., 1] + coeffs[..., 0] * red, -1.0, 1.0)
        blue = jnp.clip(x[..., 2] + coeffs[..., 1] * red + coeffs[..., 2] * green, -1.0, 1.0)
        return jnp.stack([red, green, blue], axis=-1)

    def mean(self) -> jax.Array:
        """What the average component says, as the official program shows images; (batch, H, W, C).

        The exact mean only where the components agree in their coefficients and nothing is clipped.
        """
        weights = jax.nn.softmax(self.logits, axis=-1)[..., None, :]
        return self._chain(jnp.sum(weights * self.loc, axis=-1), jnp.sum(weights * self.coeffs, axis=-1))

    def sample(self, key: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        """In [-1, 1], not rounded to a level (as officially); (batch, H, W, C)."""
        key_component, key_value = jax.random.split(key)
        u_value = _uniform(key_value, self.loc[..., 0])
        return self.sample_from(_uniform(key_component, self.logits), u_value, temperature=temperature)

    def sample_from(self, u_component: jax.Array, u_value: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        """The sample that given uniforms make: u_component (batch, H, W, M), u_value (batch, H, W, C)."""
        gumbel = -jnp.log(-jnp.log(u_component))
        chosen = jnp.argmax(self.logits + temperature * gumbel, axis=-1)[..., None, None]

        def of_chosen(parameter: jax.Array) -> jax.Array:
            return jnp.take_along_axis(parameter, chosen, axis=-1)[..., 0]

        noise = _logit_of_uniform(u_value)
        x = of_chosen(self.loc) + temperature * jnp.exp(of_chosen(self.log_scale)) * noise
        return self._chain(x, of_chosen(self.coeffs))


Decoder = Bernoulli | Normal | DiscretizedLogistic | LogisticMixture


def decoder_channels(name: str, channels: int, num_mixtures: int = 10) -> int:
    """How many parameters a pixel the decoder `name` needs for images of `channels` channels.

    Raises:
      ValueError: for an unknown decoder, or images that it cannot have.
    """
    if name not in DECODERS:
        raise InputError(f"vae.decoder: '{name}' is unknown; choose one of {', '.join(DECODERS)}")
    if name == "bin":
        return channels
    if name != "dml":
        return 2 * channels
    if channels not in (1, 3):
        raise InputError(f"vae.decoder: 'dml' is for images of 1 or 3 channels, not {channels}; use 'dl'")
    return num_mixtures * (1 + 3 * channels)


def decoder_distribution(
    name: str, logits: jax.Array, *, num_bits: int = 8, num_mixtures: int = 10, approximate: bool = False
) -> Decoder:
    """The distribution that a decoder network's output stands for.

    Args:
      name: `bin` (Bernoulli), `dl` (discretised logistic), `dml` (mixture of them), `normal`.
      logits: (batch, H, W, decoder_channels(name, C)). `dl` and `normal`: C locations, then C log-scales, those of
        `normal` softly clamped to (-5, 5) both. `dml`: M logits, then for each channel M locations, M log-scales and
        M coefficients.
      num_bits: bits of the data, for `dl` and `dml`.
      num_mixtures: M.
      approximate: the official program's tails of `dl` and `dml`.
    """
    if name == "bin":
        return Bernoulli(logits)
    if name == "normal":
        loc, log_sigma = jnp.split(soft_clamp(logits), 2, axis=-1)
        return Normal(loc, log_sigma)
    if name == "dl":
        loc, log_scale = jnp.split(logits, 2, axis=-1)
        return DiscretizedLogistic(loc, jnp.maximum(log_scale, MIN_LOG_SCALE), num_bits, approximate)
    if name != "dml":
        raise InputError(f"vae.decoder: '{name}' is unknown; choose one of {', '.join(DECODERS)}")
    weights, rest = logits[..., :num_mixtures], logits[..., num_mixtures:]
    rest = rest.reshape(*rest.shape[:-1], -1, 3 * num_mixtures)
    loc, log_scale, coeffs = jnp.split(rest, 3, axis=-1)
    log_scale = jnp.maximum(log_scale, MIN_LOG_SCALE)
    return LogisticMixture(weights, loc, log_scale, jnp.tanh(coeffs), num_bits, approximate)


def reconstruction_loss(decoder: Decoder, x: AnyArray, *, crop: int = 0) -> jax.Array:
    """-log p(x | z) of each image, nats, (batch,); `crop` pixels on each side, the padding, do not count."""
    log_prob = decoder.log_prob(x)
    if crop:
        log_prob = log_prob[:, crop:-crop, crop:-crop]
    return -jnp.sum(log_prob, axis=range(1, log_prob.ndim))


def bits_per_dim(nats: Any, dimensions: int) -> Any:
    """Nats an image to bits a dimension, with `dimensions` that of the data (before padding)."""
    return nats / (math.log(2.0) * dimensions)


def reduce_bits(x: Float[AnyArray, " *shape"], num_bits: int) -> Float[AnyArray, " *shape"]:
    """8-bit images in [0, 1] to `num_bits` bits: the upper bits of each level, again in [0, 1].

    Values between levels are truncated, as officially; a level k / 255 that float32 has rounded down is still k.
    """
    if num_bits == 8:
        return x
    # One part in a million of a level: above the rounding of k / 255 * 255 and below anything that is meant.
    level = jnp.floor((x * 255.0 + 255e-6) / 2 ** (8 - num_bits))
    return level / (2**num_bits - 1)


def check_binary(images: Any, decoder: str = "bin") -> None:
    """Refuses grey images for a Bernoulli decoder. Call it once, on the host, with some of the data.

    Args:
      images: an array of images: integers, or floats in [0, 1] or [-1, 1].
      decoder: the decoder's name; any but `bin` takes all images.

    Raises:
      ValueError: if a value is neither the lowest nor the highest there can be, naming it and the remedy.
    """
    if decoder != "bin":
        return
    images = np.asarray(images)
    values = np.unique(images)
    if np.issubdtype(images.dtype, np.integer) or images.dtype == bool:
        allowed = [(0, 1), (0, 255)]
    else:
        allowed = [(0.0, 1.0), (-1.0, 1.0)]
    if any(set(values.tolist()) <= set(pair) for pair in allowed):
        return
    raise InputError(
        "vae.decoder: 'bin' is for binary images and the data have grey values such as "
        f"{float(values[len(values) // 2]):g}; binarise the data "
        "or use 'dl', 'dml' or 'normal'"
    )
