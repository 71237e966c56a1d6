"""How fast it trains and samples, beside PyTorch in the same run: time, memory, compilation, utilisation.

    python benchmarks/throughput.py --budget=600 --out=throughput.json       # a GPU, all published networks
    python benchmarks/throughput.py --quick                                  # minutes: does it run here?
    python benchmarks/throughput.py --configs=psld_cifar_ablation --batch=4 --dtypes=float32 --only=train       # a CPU

For each config, first in the first of --dtypes:

    train     the training step (forward, backward, clipping, Adam, moving average), as a run dispatches it; of an LSGM
              that of both networks together, and that of the VAE alone
    sample    one evaluation of the network, and the config's sampler whole, by network evaluations
    kernels   its 3 x 3 convolutions one by one, forward and backward; a matrix product; a copy: what the hardware gives
    trace     where the device's time goes in three training steps, and how long it waits
    variants  the training step with several steps a call, another random generator, other settings of XLA (--variants)

The peers are `torch_twin.py`, the same network with the same number of parameters, and the U-Net of diffusers with the
same widths, levels and attention (`pip install 'sgmjax[bench]'`), each eager and compiled, channels last; the twin
channels first too. They train and take evaluations; for configs of other networks, and for LSGM, there is none. Ours
and the peers take turns; each turn is one number, and medians and extremes of the turns are reported, ratios from turns
of one round. Utilisation (MFU) is the operations of the network's convolutions and matrix products over time and the
hardware's dense peak (--peak in TFLOP/s where the table has none); the twin is credited with our operations, diffusers
with its own.

Writes --out (JSON) after every measurement, and the same as a table beside it, `.md`. The most telling measurements
come first. What --budget (seconds) leaves no time for is listed, and so is what was not reached when something ends the
program. Settings of the configs can be overridden as for training, --config.model.nf=64. --quick does so itself, see
`QUICK`, and compiles without XLA's optimisations: its figures say nothing about speed.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the memory is shared with PyTorch

import argparse
import dataclasses
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import parts
import peers
import timed
from peers import Contestant
from report import Report, hardware, versions

from sgmjax import _cli
from sgmjax._inputs import one_line
from sgmjax.config import Config
from sgmjax.samplers import registry

# Dense peaks in TFLOP/s, (bfloat16, float32 as JAX multiplies by default: TF32 on NVIDIA, bfloat16 passes on TPUs).
PEAKS = {
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "TPU v6": (918.0, 918.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5": (459.0, 459.0),
    "TPU v4": (275.0, 275.0),
}
# What is measured without --configs: the published networks, then the small ones.
CONFIGS = [
    "psld_cifar", "psld_cifar_ablation", "vp_cifar", "ncsnv2_cifar", "lsgm_cifar_fid", "psld_mnist", "psld_digits",
]  # fmt: skip
PEERS = ["eager", "diffusers", "compiled", "diffusers_compiled", "eager_nchw"]
# With --quick: settings of those sections that a config has.
QUICK = {
    "model.nf": 8,
    "model.ngf": 8,
    "model.ch_mult": (1, 1),
    "model.num_res_blocks": 1,
    "vae.encoder_channels": 8,
    "vae.decoder_channels": 8,
    "vae.groups_per_scale": 2,
    "vae.latents_per_group": 2,
    "vae.preprocess_cells": 1,
    "vae.postprocess_cells": 1,
    "vae.encoder_cells": 1,
    "vae.decoder_cells": 1,
}
COMPILATION = 3.0  # times our own preparation: the first guess at that of a compiled peer


@dataclasses.dataclass
class Item:
    """One entry of the plan."""

    what: str
    config: str
    dtype: str

    @property
    def title(self) -> str:
        return f"{self.what} {self.config} {self.dtype}"


class Runner(NamedTuple):
    """One of a race: what it entered into the report, units a turn, milliseconds of its turns."""

    contestant: Contestant
    entry: dict[str, Any]
    units: int
    turns: list[float]


class Benchmark:
    """The plan, done one item after the other within the budget."""

    def __init__(self, options: argparse.Namespace, overrides: Sequence[tuple[str, Any]]):
        self.options, self.overrides = options, list(overrides)
        self.start = time.perf_counter()
        kind = jax.devices()[0].device_kind
        self.peak = {"bfloat16": options.peak, "float32": options.peak}
        if options.peak is None:
            known = next((peaks for name, peaks in PEAKS.items() if name.lower() in kind.lower()), (None, None))
            self.peak = dict(zip(self.peak, known, strict=True))
        # JAX has the device before PyTorch is imported: each then loads its own libraries in an order known to work.
        jax.block_until_ready(parts.convolution(8, 8, 8, 1, "float32")(1))
        if options.quick and peers.unavailable("eager") is None:
            import torch

            torch.set_num_threads(1)  # which wait for one another where other work has the cores
        report = {"hardware": hardware(), "versions": versions(), "command": sys.argv[1:]}
        self.report = Report(Path(options.out) if options.out else None, **report, traces=[])
        self.longest: dict[str, float] = {}  # seconds to prepare, by what is prepared

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def plan(self) -> list[Item]:
        """What is measured, the most telling first: all training steps; then sampling, the profile, other types."""
        options = self.options
        first, *others = options.dtypes
        top, *rest = options.configs
        items = [Item("train", top, first), Item("sample", top, first)]
        items += [Item("train", name, first) for name in rest]
        items += [Item("trace", top, first), Item("kernels", top, first)]
        items += [Item("sample", name, first) for name in rest]
        items += [Item("vae", name, first) for name in options.configs if self.settings(name).get("vae") is not None]
        items += [Item(what, top, dtype) for dtype in others for what in ("train", "sample")]
        if options.variants:
            items.append(Item("variants", options.variants_config or options.configs[-1], first))
        if not options.quick:
            items += [Item(what, name, dtype) for dtype in others for name in rest for what in ("train", "sample")]
        return [item for item in items if {"vae": "train"}.get(item.what, item.what) in options.only]

    def settings(self, name: str) -> dict[str, Any]:
        """What a config's file says."""
        return _cli.load_config(*_cli.find_config(name))

    def run(self) -> dict[str, Any]:
        """Measures; returns the report."""
        items = self.plan()
        self.report.values["not_reached"] = [item.title for item in items]
        for item in items:
            self.report.values["not_reached"].remove(item.title)
            if self.options.budget and self.elapsed > self.options.budget:
                self.skip(item.title, "no time left")
                continue
            self.say(f"{item.title} ...")
            try:
                getattr(self, f"_{item.what}")(item)
            except Exception as error:  # the other items are still worth having
                self.failed(item.title, error)
            self.clean()
        self.report.values["elapsed_s"] = self.elapsed
        self.report.write()
        return self.report.values

    def failed(self, title: str, error: Exception) -> None:
        """Records what did not work; with SGMJAX_TRACEBACK=1 raises it."""
        self.skip(title, f"{type(error).__name__}: {one_line(error, 300)}")
        if os.environ.get("SGMJAX_TRACEBACK", "0") not in ("", "0"):
            raise error

    def say(self, text: str) -> None:
        """A line on stderr, with the time."""
        print(f"[{self.elapsed:6.1f} s] {text}", file=sys.stderr, flush=True)

    def skip(self, title: str, why: str) -> None:
        """Records what was not measured."""
        self.say(f"skipped {title}: {why}")
        self.report.values["skipped"].append({"item": title, "why": why})
        self.report.write()

    def clean(self) -> None:
        """Gives back what the last item held."""
        gc.collect()
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------------------------ items
    def _config(self, item: Item, *, batch: int, dispatch: int = 1) -> Config:
        """The config with the overrides, as it is timed."""
        quick = quick_settings(self.settings(item.config)) if self.options.quick else []
        config, _ = _cli.read_config(item.config, [*quick, *self.overrides])
        limit = self.options.evaluations
        return timed.with_settings(config, batch=batch, dtype=item.dtype, dispatch=dispatch, evaluations=limit)

    def _maker(
        self, item: Item, *, batch: int, dispatch: int = 1, shared: bool = False, phase: int = -1
    ) -> Callable[[], timed.Model]:
        config = self._config(item, batch=batch, dispatch=dispatch)
        made: list[timed.Model] = []

        def make() -> timed.Model:
            if made and shared:
                return made[0]
            made[:] = [timed.Model(config, timed.example_shape(config), phase)]
            return made[0]

        return make

    def _peers(self, item: Item, unit: str, model: Callable[[], timed.Model], config: Config) -> list[Contestant]:
        if config.model.name != "ncsnpp" or config.vae is not None:
            return []
        found: list[Contestant] = []
        for kind in self.options.peers:
            if (why := peers.unavailable(kind)) is not None:
                self.skip(f"{item.title}: {peers.KINDS[kind][0]}", why)
                continue
            found.append(peers.TorchContestant(kind, unit, model, self.options.torch_mode))
        return found

    def _train(self, item: Item) -> None:
        batch = self.options.batch
        # The step consumes its state, and the peers need the model only for its sizes.
        make = self._maker(item, batch=batch, shared=True)
        config = self._config(item, batch=batch)
        self.race(item, [timed.Training("sgmjax", make), *self._peers(item, "step", make, config)], batch)

    def _vae(self, item: Item) -> None:
        batch = self.options.batch
        self.race(item, [timed.Training("sgmjax VAE alone", self._maker(item, batch=batch, phase=0))], batch)

    def _sample(self, item: Item) -> None:
        batch = self.options.sample_batch or self.options.batch
        make = self._maker(item, batch=batch, shared=True)
        config = self._config(item, batch=batch)
        contestants: list[Contestant] = [timed.Evaluations("sgmjax network", make)]
        contestants += self._peers(item, "evaluation", make, config)
        contestants.append(timed.Sampling("sgmjax sampler", make, config.sampling.steps))
        self.race(item, contestants, batch)

    def _variants(self, item: Item) -> None:
        batch = self.options.batch
        contestants: list[Contestant] = [timed.Training("sgmjax", self._maker(item, batch=batch))]
        for text in self.options.variants:
            name, _, value = text.partition("=")
            if name == "dispatch":
                contestants.append(timed.Training(text, self._maker(item, batch=batch, dispatch=int(value))))
            elif name == "prng":
                contestants.append(_OtherRandomness(text, self._maker(item, batch=batch), value))
            else:
                pairs = [pair.partition(":") for pair in text.split("+")]
                chosen = {key: _cli.literal(value) for key, _, value in pairs}
                contestants.append(timed.Training(text, self._maker(item, batch=batch), chosen))
        self.race(item, contestants, batch)

    def _trace(self, item: Item) -> None:
        training = timed.Training("sgmjax", self._maker(item, batch=self.options.batch))
        training.prepare()
        training.time(3)
        keep = None if self.report.path is None else self.report.path.with_name("throughput_trace.json.gz")
        found = parts.profile(lambda: training.time(3), keep)
        self.report.values["traces"].append({"item": item.title, "steps": 3, **found})
        self.report.write()

    def _kernels(self, item: Item) -> None:
        quick, batch = self.options.quick, self.options.batch
        config = self._config(item, batch=batch)
        torch = peers.unavailable("eager") is None
        size = 128 if quick else 8192
        self.part(f"{size} x {size} matrix product {item.dtype}", "JAX", parts.matmul(size, item.dtype), 2.0 * size**3)
        megabytes = 1 if quick else 1024
        self.part(f"read and write of {megabytes} MiB", "JAX", parts.copy(megabytes), 2.0 * megabytes * 2**20, "GB/s")
        model: Any = config.model
        if not hasattr(model, "ch_mult"):
            return
        side = timed.example_shape(config)[0]
        shapes = []
        for level, mult in enumerate(model.ch_mult):
            c = model.nf * mult
            shapes.append((side // 2**level, c, c))
            if level == 0:
                shapes.append((side, 2 * c, c))
        for side, c_in, c_out in shapes:
            flops = 3 * 2.0 * 9 * side * side * batch * c_in * c_out
            title = f"convolution {side} x {side}, {c_in} to {c_out}, both ways, {item.dtype}"
            self.part(title, "JAX", parts.convolution(side, c_in, c_out, batch, item.dtype), flops)
            if torch:
                import torch_peer

                run = torch_peer.convolution(side, c_in, c_out, batch, item.dtype == "bfloat16")
                self.part(title, "PyTorch", run, flops)

    # ---------------------------------------------------------------------------------------------------------- timing
    def part(self, name: str, by: str, run: Callable[[int], float], amount: float, unit: str = "TFLOP/s") -> None:
        """Times one piece of work; `amount` are its operations or bytes."""
        run(2)
        count = int(np.clip(0.1 * self.options.seconds / max(run(1), 1e-6), 1, 200))
        ms = 1e3 * statistics.median(run(count) / count for _ in range(self.options.rounds))
        rate = amount / (ms / 1e3) / (1e12 if unit == "TFLOP/s" else 1e9)
        self.report.values["parts"].append({"name": name, "by": by, "ms": ms, "rate": rate, "unit": unit})
        self.report.write()

    def race(self, item: Item, contestants: Sequence[Contestant], batch: int) -> None:
        """Prepares all, then times them in turns; every contestant's entry is written as soon as it is there."""
        ready: list[Runner] = []
        for contestant in contestants:
            title = f"{item.title}: {contestant.name}"
            if (expected := self._too_long(item, contestant)) is not None:
                self.skip(title, f"no time left for its preparation, about {expected:.0f} s")
                continue
            start = time.perf_counter()
            try:
                facts = contestant.prepare()
                seconds, count = contestant.time(1)
                if contestant.settle:
                    seconds, count = contestant.time(3)
            except Exception as error:  # out of memory, say, or a compiler that does not work
                self.failed(title, error)
                continue
            spent = self.longest[f"{item.what} {contestant.name}"] = time.perf_counter() - start
            about = {"item": item.title, "what": item.what, "config": item.config, "dtype": item.dtype}
            entry: dict[str, Any] = {**about, "name": contestant.name, "unit": contestant.unit, "batch": batch}
            entry |= {**facts, "load": os.getloadavg()[0], "prepare_s": spent}
            units = max(1, round(self.options.seconds / (seconds / count)))
            ready.append(Runner(contestant, entry, units, [1e3 * seconds / count]))
            self.report.values["measurements"].append(entry)
            self._enter(item, ready)  # to be replaced
            self.say(f"{contestant.name}: {1e3 * seconds / count:.3f} ms, prepared in {spent:.1f} s")
        for runner in ready:
            runner.turns.clear()
        for _ in range(self.options.rounds):
            for contestant, entry, units, turns in ready:
                if contestant.settle:
                    contestant.time(contestant.settle)
                seconds, count = contestant.time(units)
                turns.append(1e3 * seconds / count)
                entry["load"] = os.getloadavg()[0]
            self._enter(item, ready)
        for contestant, entry, units, _ in ready:
            entry |= contestant.more(units)
        self._enter(item, ready)

    def _too_long(self, item: Item, contestant: Contestant) -> float | None:
        """Seconds that a preparation will take, if the budget does not have them."""
        if not self.options.budget:
            return None
        expected = self.longest.get(f"{item.what} {contestant.name}", 0.0)
        if not expected and contestant.name.endswith("compiled"):
            ours = [spent for key, spent in self.longest.items() if key.startswith(f"{item.what} sgmjax")]
            expected = COMPILATION * max(ours, default=0.0)
        return expected if self.elapsed + expected > self.options.budget else None

    def _enter(self, item: Item, ready: list[Runner]) -> None:
        """Brings the report up to date with the turns that were taken."""
        values = self.report.values
        ours = next((runner.entry for runner in ready if "flops" in runner.entry), {})
        for _, entry, _, turns in ready:
            ms = statistics.median(turns)
            entry |= {"ms": ms, "low": min(turns), "high": max(turns), "turns": list(turns)}
            entry["provisional"] = len(turns) < self.options.rounds
            entry["images_per_s"] = entry["batch"] / (ms / 1e3) / entry.get("nfe_of_config", 1)
            flops, peak = entry.get("flops", ours.get("flops")), self.peak[item.dtype]
            if flops is not None:
                entry["tflops_per_s"] = flops / (ms / 1e3) / 1e12
                entry["mfu"] = None if peak is None else entry["tflops_per_s"] / peak
        values["ratios"] = [r for r in values["ratios"] if r["item"] != item.title]
        pairs = [(ready[0], other) for other in ready[1:]] if ready else []
        for one in (one for one in ready[1:] if isinstance(one.contestant, timed.Sampling)):
            pairs += [(one, other) for other in ready if isinstance(other.contestant, peers.TorchContestant)]
        for one, other in pairs:
            rates = [b / a for a, b in zip(one.turns, other.turns, strict=False)]
            ratio = {"ratio": statistics.median(rates), "low": min(rates), "high": max(rates)}
            names = {"one": one.entry["name"], "other": other.entry["name"]}
            values["ratios"].append({"item": item.title, **names, **ratio})
        self.report.write()


class _OtherRandomness(timed.Training):
    """The training step with another random generator."""

    def __init__(self, name: str, model: Callable[[], timed.Model], generator: str):
        super().__init__(name, model)
        self._generator = generator

    def prepare(self) -> dict[str, Any]:
        """With keys of that generator throughout."""
        before = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_default_prng_impl", self._generator)
        try:
            return super().prepare()
        finally:
            jax.config.update("jax_default_prng_impl", before)


def quick_settings(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """The overrides of --quick: `QUICK`, 16 pixels where there are more than 28, large tolerances where there are any.

    Attention is at the coarser of two levels; latent variables, which are smaller than the images, have none.
    """
    found = [(path, value) for path, value in QUICK.items() if _has(settings, path)]
    side = settings["data"]["image_size"] or timed.SHAPES.get(settings["data"]["name"], (0,))[0]
    if side > 28:
        side = 16
        found.append(("data.image_size", side))
    if _has(settings, "model.attn_resolutions"):
        found.append(("model.attn_resolutions", (side // 2,) if settings.get("vae") is None else ()))
    if registry.is_adaptive(settings["sampling"]["sampler"]):
        found += [("sampling.rtol", 1e-1), ("sampling.atol", 1e-1)]
    return found


def _has(settings: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(settings, dict) or name not in settings:
            return False
        settings = settings[name]
    return True


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, Any]]]:
    """The flags, and the overrides of settings."""
    words, overrides = _cli.split_overrides(argv)

    def listed(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=listed, help=f"default {','.join(CONFIGS)}; quick the second")
    parser.add_argument("--batch", type=int, help="images a step; default 128, quick 2")
    parser.add_argument("--sample-batch", type=int, help="images drawn at a time; default --batch")
    parser.add_argument("--dtypes", type=listed, help="default bfloat16,float32; quick bfloat16")
    parser.add_argument("--only", type=listed, default=["train", "sample", "trace", "kernels", "variants"])
    parser.add_argument("--peers", type=listed, help=f"default {','.join(PEERS)}; quick the first two")
    parser.add_argument("--torch-mode", default="default", help="of torch.compile")
    parser.add_argument(
        "--variants", type=listed, help="dispatch=8, prng=rbg, and options of XLA as name:value+name:value"
    )
    parser.add_argument("--variants-config", help="default the last of --configs")
    parser.add_argument("--evaluations", type=int, help="at most so many of samplers on a grid; default 100, quick 24")
    parser.add_argument("--rounds", type=int, help="turns of each; default 5, quick 2")
    parser.add_argument("--seconds", type=float, help="of a turn; default 1, quick 0.02")
    parser.add_argument("--budget", type=float, help="seconds after which nothing new is begun")
    parser.add_argument("--peak", type=float, help="of the hardware, TFLOP/s")
    parser.add_argument("--out", help="the JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    options = parser.parse_args(words)
    quick = options.quick
    defaults = {
        "configs": ["psld_cifar_ablation"] if quick else CONFIGS,
        "dtypes": ["bfloat16"] if quick else ["bfloat16", "float32"],
        "batch": 2 if quick else 128,
        "peers": PEERS[:2] if quick else PEERS,
        "variants": ["dispatch=2"] if quick else ["dispatch=8", "prng=rbg"],
        "evaluations": 24 if quick else 100,
        "rounds": 2 if quick else 5,
        "seconds": 0.02 if quick else 1.0,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if unknown := sorted({*options.peers} - {*PEERS}):
        raise _cli.UsageError(f"--peers: there is no {unknown[0]!r}; choose of {', '.join(PEERS)}")
    return options, overrides


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    options, overrides = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        # Programs are compiled afresh, but those which several measurements share (initialisation) only once.
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_disable_most_optimizations", options.quick)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
        benchmark = Benchmark(options, overrides)
        try:
            benchmark.run()
        finally:
            benchmark.report.write()
            print(benchmark.report.table())
            jax.config.update("jax_compilation_cache_dir", None)
            jax.config.update("jax_disable_most_optimizations", False)
    return 0


if __name__ == "__main__":
    _cli.run(main, sys.argv[1:])
