"""What trains and samples a network of PyTorch, and diffusers' U-Net: the peers of `throughput.py`."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
import torch_twin
from torch import Tensor, nn


class DiffusersUNet(nn.Module):
    """The U-Net of diffusers with the widths, levels and attention of an `NCSNppConfig`; `network(x, cond)`.

    Residual blocks, up- and downsampling inside residual blocks, one head of attention, as in DDPM++. It differs where
    diffusers' blocks do: it attends after every block of the way up, not once a level; the first convolution is as
    wide as the first level; there are no filters and no pyramid of the input, and the time embedding is positional.

    Args:
        model: the section.
        in_channels, out_channels: of the images.
        side: of the images.

    Raises:
        ImportError: diffusers is not installed.
    """

    def __init__(self, model: Any, in_channels: int, out_channels: int, side: int):
        super().__init__()
        from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

        widths = tuple(model.nf * mult for mult in model.ch_mult)
        attends = [side // 2**level in model.attn_resolutions for level in range(len(widths))]
        common = math.gcd(*widths)
        self.unet = UNet2DModel(
            sample_size=side,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=widths,
            layers_per_block=model.num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
            downsample_type="resnet",
            upsample_type="resnet",
            dropout=model.dropout,
            attention_head_dim=None,
            norm_num_groups=max(g for g in range(1, max(1, min(common // 4, 32)) + 1) if common % g == 0),
            norm_eps=1e-6,
            time_embedding_dim=4 * model.nf,
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.unet(x, cond, return_dict=False)[0].float()


class Peer:
    """A network with what trains it and what samples from it.

    The loss is the denoising one of VP's closed-form kernel on every variable of the state, which costs no more than
    any process here. The step: loss, backward, clipping, fused Adam, moving average.

    Args:
        config: of the run: `model`, `optimizer`.
        of: "twin", `torch_twin.Network`, or "diffusers", `DiffusersUNet`.
        in_channels, out_channels: of the network.
        shape: of an example, (H, W, C); `in_channels` is a multiple of C.
        batch: examples a step.
        bfloat16: autocast to it; else float32, on a GPU with TF32.
        compiled: by `torch.compile`, with this mode ("default", "reduce-overhead", "max-autotune", ...); None: not.
        channels_last: memory format.
    """

    def __init__(
        self,
        config: Any,
        of: str,
        in_channels: int,
        out_channels: int,
        shape: tuple[int, ...],
        batch: int,
        *,
        bfloat16: bool,
        compiled: str | None = None,
        channels_last: bool = True,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True  # convolutions are tuned by shape, as XLA's are
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        sizes = (config.model, in_channels, out_channels, shape[0])
        fir = "conv" if compiled is None else "slices"
        network = DiffusersUNet(*sizes) if of == "diffusers" else torch_twin.Network(*sizes, fir)
        self.module = network.to(self.device, memory_format=self.format)  # pyright: ignore[reportCallIssue]
        self.network: Any = self.module
        if compiled is not None:
            torch._dynamo.config.cache_size_limit = 64  # the peers share the code of one class
            self.network = torch.compile(self.module, mode=compiled, fullgraph=of == "twin", dynamic=False)
        self.bfloat16, self.batch, self.shape = bfloat16, batch, shape
        self.in_channels, self.out_channels = in_channels, out_channels
        self.optimizer_config = config.optimizer
        self.params = list(self.module.parameters())
        self.optimizer: Any = None
        self.z = torch.randn(batch, in_channels, *shape[:2], device=self.device).to(memory_format=self.format)

    @property
    def num_parameters(self) -> int:
        """Trained ones."""
        return sum(p.numel() for p in self.params)

    def operations(self, train: bool) -> float:
        """Of a step's forward and backward pass, or of an evaluation, as PyTorch counts them."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        x = torch.zeros(1, self.in_channels, *self.shape[:2], device=self.device)
        self.module.train(train)
        counter = FlopCounterMode(display=False)  # which does not know every form of fused attention
        with counter, torch.set_grad_enabled(train), sdpa_kernel(SDPBackend.MATH):
            out = self.module(x, torch.ones(1, device=self.device))
            if train:
                out.sum().backward()
        for p in self.params:
            p.grad = None
        return float(counter.get_total_flops()) * self.batch

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of every call of the network."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def on_host(self, x: Any) -> Tensor:
        """An array of uint8 images, (batch, H, W, C), where the device reads it without help."""
        tensor = torch.from_numpy(x)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def train_step(self, x: Tensor) -> Tensor:
        """One step on images of the host; the loss, not waited for."""
        settings = self.optimizer_config
        if self.optimizer is None:
            betas = (settings.beta1, settings.beta2)
            self.optimizer = torch.optim.Adam(self.params, settings.learning_rate, betas, settings.eps, fused=True)
            self.ema = [p.detach().clone() for p in self.params]
        self.module.train()
        x0 = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
        x0 = x0.repeat(1, self.in_channels // x0.shape[1], 1, 1).contiguous(memory_format=self.format)
        t = torch.rand(x0.shape[0], device=self.device).clamp_(1e-5, 1)
        eps = torch.randn_like(x0)
        alpha = torch.exp(-4 * t)[:, None, None, None]
        z = alpha * x0 + torch.sqrt(1 - alpha**2) * eps
        with self.autocast():
            out = self.network(z, t)
        loss = F.mse_loss(out, eps[:, -self.out_channels :])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.params, settings.grad_clip)
        self.optimizer.step()
        torch._foreach_lerp_(self.ema, self.params, 1 - settings.ema_decay)  # pyright: ignore[reportPrivateImportUsage]
        return loss.detach()

    def train(self, batches: list[Tensor], count: int) -> float:
        """Seconds of `count` steps; `batches` are those of `on_host`."""
        self.synchronize()
        start = time.perf_counter()
        for i in range(count):
            self.train_step(batches[i % len(batches)])
        self.synchronize()
        return time.perf_counter() - start

    def sample(self, count: int) -> float:
        """Seconds of `count` evaluations of the network, each with an update of Euler-Maruyama's form."""
        self.module.eval()
        self.synchronize()
        start = time.perf_counter()
        with torch.no_grad(), self.autocast():
            z = self.z
            for i in range(count):
                t = torch.full((z.shape[0],), 1 - i / (count + 1), device=self.device)
                out = self.network(z, t)
                drift = out if out.shape == z.shape else F.pad(out, (0, 0, 0, 0, z.shape[1] - out.shape[1], 0))
                z = z + 1e-3 * (z - drift) + 0.03 * torch.randn_like(z)
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_memory(self) -> int | None:
        """Bytes, the most since the last call; None where it is not known."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def convolution(side: int, c_in: int, c_out: int, batch: int, bfloat16: bool) -> Any:
    """run(count) -> seconds of so many 3 x 3 convolutions, forward and backward."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    x = torch.randn(batch, c_in, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(c_out, c_in, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    g = torch.randn(batch, c_out, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    w.requires_grad_()

    def run(count: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), g)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run
