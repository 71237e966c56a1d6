"""NCSN++ and DDPM++ in PyTorch, equal to `sgmjax.models.NCSNpp`, and the step that trains them: the peer to be timed.

The same blocks with the same widths, under the same names, so that parameters can be copied over (`Network.load`). It
is written to be fast: channels last, automatic mixed precision, fused attention and optimiser, norms in the type of the
activations. What PyTorch users can switch on without writing kernels is on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)


class GroupNorm(nn.GroupNorm):
    """Group norm in the type of its input; autocast would do it, and store what it needs, in float32."""

    def __init__(self, channels: int):
        groups = max(g for g in range(1, max(1, min(channels // 4, 32)) + 1) if channels % g == 0)
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class Resampling:
    """Factor of two by means and repetition, or by FIR with four taps.

    Args:
        taps: of the filter; None: none.
        how: "conv", depthwise convolutions, which cost eager PyTorch one pass each, or "slices", sums of shifted
            slices, which a compiler makes one loop of.
    """

    def __init__(self, taps: tuple[float, ...] | None, how: str = "conv"):
        if taps is not None and len(taps) != 4:
            raise ValueError(f"fir_kernel: {taps}; the twin filters with four taps")
        self.how = how
        self.taps = None if taps is None else tuple(tap / sum(taps) for tap in taps)
        self._kernels: dict[Any, Tensor] = {}

    def _kernel(self, x: Tensor, gain: float) -> Tensor:
        assert self.taps is not None
        known = (x.shape[1], x.dtype, x.device, gain)
        if known not in self._kernels:
            taps = torch.tensor(self.taps) * gain
            self._kernels[known] = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4).contiguous().to(x)
        return self._kernels[known]

    def _conv(self, x: Tensor, gain: float, stride: int, padding: int, transposed: bool = False) -> Tensor:
        kernel = self._kernel(x, gain)
        function = F.conv_transpose2d if transposed else F.conv2d
        with torch.autocast(x.device.type, enabled=False):
            return function(x, kernel, stride=stride, padding=padding, groups=x.shape[1])

    def _slices(self, x: Tensor, stride: int, padding: int) -> Tensor:
        assert self.taps is not None
        x = F.pad(x, (padding,) * 4)
        for axis in (2, 3):
            stop = x.shape[axis] - 3
            parts = [x.narrow(axis, k, stop) for k in range(4)]
            parts = [(part[:, :, ::stride] if axis == 2 else part[:, :, :, ::stride]) for part in parts]
            x = sum((part * tap for part, tap in zip(parts[1:], self.taps[1:], strict=True)), parts[0] * self.taps[0])
        return x

    def down(self, x: Tensor) -> Tensor:
        """Half the side."""
        if self.taps is None:
            return F.avg_pool2d(x, 2)
        return self._conv(x, 1.0, 2, 1) if self.how == "conv" else self._slices(x, 2, 1)

    def filter(self, x: Tensor) -> Tensor:
        """The filter alone, before an unpadded convolution of stride 2."""
        return self._conv(x, 1.0, 1, 2) if self.how == "conv" else self._slices(x, 1, 2)

    def up(self, x: Tensor) -> Tensor:
        """Twice the side."""
        if self.taps is None:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.how == "conv":
            return self._conv(x, 2.0, 2, 1, transposed=True)
        a, b, c, d = (2 * tap for tap in self.taps)
        for axis in (2, 3):
            n = x.shape[axis]
            wide = F.pad(x, (0, 0, 1, 1) if axis == 2 else (1, 1))
            before, after = wide.narrow(axis, 0, n), wide.narrow(axis, 2, n)
            pair = torch.stack((d * before + b * x, c * x + a * after), dim=axis + 1)
            x = pair.flatten(axis, axis + 1)
        return x


class ResBlock(nn.Module):
    """BigGAN's residual block, which also resamples."""

    def __init__(self, features_in: int, features: int, width: int, model: Any, resampling: Resampling, how: str = ""):
        super().__init__()
        self.norm_0 = GroupNorm(features_in)
        self.conv_0 = nn.Conv2d(features_in, features, 3, padding=1)
        self.time_dense = nn.Linear(width, features) if width else None
        self.norm_1 = GroupNorm(features)
        self.conv_1 = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(features_in, features, 1) if features_in != features or how else None
        self.dropout, self.rescale = model.dropout, model.skip_rescale
        self.resize: Any = {"": lambda x: x, "up": resampling.up, "down": resampling.down}[how]

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        h = self.resize(F.silu(self.norm_0(x)))
        x = self.resize(x)
        h = self.conv_0(h)
        if temb is not None and self.time_dense is not None:
            h = h + self.time_dense(F.silu(temb))[:, :, None, None].to(h.dtype)
        h = F.dropout(F.silu(self.norm_1(h)), self.dropout, self.training)
        h = self.conv_1(h)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (x + h) / SQRT2 if self.rescale else x + h


class Attention(nn.Module):
    """Self-attention over pixels with one head."""

    def __init__(self, channels: int, model: Any):
        super().__init__()
        self.norm = GroupNorm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.rescale = model.skip_rescale

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.norm(x).permute(0, 2, 3, 1).reshape(b, 1, height * width, c)
        h = F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        h = self.out(h).reshape(b, height, width, c).permute(0, 3, 1, 2)
        return (x + h) / SQRT2 if self.rescale else x + h


class Pyramid(nn.Module):
    """The input at half the side, by filter and strided convolution."""

    def __init__(self, features_in: int, features: int, resampling: Resampling):
        super().__init__()
        self.resampling = resampling
        self.conv = nn.Conv2d(features_in, features, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        if self.resampling.taps is None:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(self.resampling.filter(x))


class Network(nn.Module):
    """The score network of a `NCSNppConfig`; `network(x, cond)` of (B, C, H, W) and (B,).

    Args:
        model: the section.
        in_channels, out_channels: of the images.
        side: of the images, from which it follows where attention is.
        fir: as `Resampling`'s `how`.

    Raises:
        ValueError: a switch that no published network timed here has.
    """

    frequencies: Tensor
    table: Tensor

    def __init__(self, model: Any, in_channels: int, out_channels: int, side: int, fir: str = "conv"):
        super().__init__()
        wanted = {
            "name": ("ncsnpp",), "resblock_type": ("biggan",), "progressive": ("none",), "nonlinearity": ("swish",),
            "progressive_input": ("none", "residual"), "num_classes": (None,), "scale_by_sigma": (False,),
            "conditional": (True,),
        }  # fmt: skip
        for name, values in wanted.items():
            if getattr(model, name) not in values:
                raise ValueError(f"model.{name}: {getattr(model, name)!r}; the twin has {values}")
        self.model = model
        resampling = Resampling(tuple(model.fir_kernel) if model.fir else None, fir)
        size = model.embedding_dim or model.nf
        features = size
        if model.embedding_type == "fourier":
            count = model.nf if model.embedding_dim is None else model.embedding_dim // 2
            self.register_buffer("frequencies", model.fourier_scale * torch.randn(count))
            features = 2 * count
        else:
            half = size // 2
            self.register_buffer("table", torch.exp(-math.log(1e4) * torch.arange(half) / (half - 1)))
        width = 4 * size
        self.time_dense_0, self.time_dense_1 = nn.Linear(features, width), nn.Linear(width, width)

        def block(c_in, c_out, how=""):
            return ResBlock(c_in, c_out, width, model, resampling, how)

        self.conv_in = nn.Conv2d(in_channels, model.nf, 3, padding=1)
        levels, c, pyramid = len(model.ch_mult), model.nf, in_channels
        skips = [c]
        for level, mult in enumerate(model.ch_mult):
            for i in range(model.num_res_blocks):
                self.add_module(f"down_{level}_block_{i}", block(c, model.nf * mult))
                c = model.nf * mult
                if side in model.attn_resolutions:
                    self.add_module(f"down_{level}_attn_{i}", Attention(c, model))
                skips.append(c)
            if level == levels - 1:
                break
            self.add_module(f"down_{level}_resample", block(c, c, "down"))
            side //= 2
            if model.progressive_input == "residual":
                self.add_module(f"down_{level}_pyramid", Pyramid(pyramid, c, resampling))
                pyramid = c
            skips.append(c)
        self.mid_block_0, self.mid_attn, self.mid_block_1 = block(c, c), Attention(c, model), block(c, c)
        for level in reversed(range(levels)):
            for i in range(model.num_res_blocks + 1):
                self.add_module(f"up_{level}_block_{i}", block(c + skips.pop(), model.nf * model.ch_mult[level]))
                c = model.nf * model.ch_mult[level]
            if side in model.attn_resolutions:
                self.add_module(f"up_{level}_attn", Attention(c, model))
            if level:
                self.add_module(f"up_{level}_resample", block(c, c, "up"))
                side *= 2
        self.out_norm = GroupNorm(c)
        self.out_conv = nn.Conv2d(c, out_channels, 3, padding=1)

    def _attend(self, h: Tensor, name: str) -> Tensor:
        return self.get_submodule(name)(h) if hasattr(self, name) else h

    def _embed(self, cond: Tensor) -> Tensor:
        if self.model.embedding_type == "fourier":
            logs = torch.log(cond) if self.model.fourier_log else cond
            angles = 2 * math.pi * logs[:, None] * self.frequencies[None, :]
        else:
            angles = self.model.embedding_scale * cond[:, None] * self.table[None, :]
        features = torch.cat((torch.sin(angles), torch.cos(angles)), dim=1)
        return self.time_dense_1(F.silu(self.time_dense_0(features)))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        model = self.model
        temb = self._embed(cond)
        pyramid, h = x, self.conv_in(x)
        hs, levels = [h], len(model.ch_mult)
        for level in range(levels):
            for i in range(model.num_res_blocks):
                h = self.get_submodule(f"down_{level}_block_{i}")(h, temb)
                h = self._attend(h, f"down_{level}_attn_{i}")
                hs.append(h)
            if level == levels - 1:
                break
            h = self.get_submodule(f"down_{level}_resample")(h, temb)
            if model.progressive_input == "residual":
                pyramid = self.get_submodule(f"down_{level}_pyramid")(pyramid)
                h = pyramid = (pyramid + h) / SQRT2 if model.skip_rescale else pyramid + h
            hs.append(h)
        h = self.mid_block_1(self.mid_attn(self.mid_block_0(h, temb)), temb)
        for level in reversed(range(levels)):
            for i in range(model.num_res_blocks + 1):
                h = self.get_submodule(f"up_{level}_block_{i}")(torch.cat((h, hs.pop()), dim=1), temb)
            h = self._attend(h, f"up_{level}_attn")
            if level:
                h = self.get_submodule(f"up_{level}_resample")(h, temb)
        return self.out_conv(F.silu(self.out_norm(h))).float()

    def load(self, params: Mapping[str, Any]) -> None:
        """Takes the parameters of `sgmjax.models.NCSNpp`, a tree of arrays."""
        with torch.no_grad():
            for names, value in _leaves(params):
                *path, leaf = names
                array = torch.tensor(value.__array__().copy())
                if leaf == "frequencies":
                    self.frequencies.copy_(array)
                    continue
                if leaf == "kernel":
                    array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
                module = self.get_submodule(".".join(path))
                target: Any = getattr(module, {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf])
                target.copy_(array.reshape(target.shape))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, (*path, name))
