"""Processes at an equal network: one denoiser sampled with each, and networks of one process sampled with others.

    python benchmarks/one_denoiser.py --denoisers runs/edm_0 runs/edm_1 runs/edm_2   # seven processes, few evaluations
    python benchmarks/one_denoiser.py --own runs/vp_0 runs/psld_0 runs/cld_0 ...     # each with its own process
    python benchmarks/one_denoiser.py --across runs/vp_0 runs/psld_0 runs/cld_0 ...  # each with all of theirs, 200
    python benchmarks/one_denoiser.py --report                                       # the tables again

Runs that differ in nothing but their seed are taken together: tables give the mean over them and its standard error;
of one run that over --draws sets of samples.
All processes step through the same kinds of grids (--grids): "rho" in their noise levels (Karras et al. 2022),
"quadratic" in their times; end at the same level (--end) and take Tweedie's step from there. "tuned" is UniPC of order
3 on the grid that `tune_grid` finds for the first of the runs, "auto" (UniPC of order 3 too) that of `time_grid`; they
may end earlier, and have rows of their own; so have samplers with --restarts, whose evaluations are in the budget. Of
several other grids the first of the runs chooses, for each process, sampler and budget, and the others are what the
tables show. The error is the pixel-space Frechet distance to the training data, in floors: that of as many of its
images (at most half) to the others. Every measurement is kept in --out as soon as it is made, and none is made twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sgmjax import load_run, sdes
from sgmjax._files import replacing
from sgmjax.commands.sampling import read_restarts
from sgmjax.evaluation.pictures import to_arrays
from sgmjax.metrics import pixel_frechet
from sgmjax.samplers.grids import host_time_at
from sgmjax.samplers.plan import Plan
from sgmjax.samplers.tuning import tune_grid
from sgmjax.spec import Settings
from sgmjax.training.load import load_data, read_config

HERE = Path(__file__).resolve().parent
BUDGETS = (5, 10, 20, 50)
MANY = 200
TUNED_UP_TO = 10  # evaluations
SAMPLERS = ("exponential_midpoint", "unipc")
PROCESSES: dict[str, sdes.SDE] = {
    "vp": sdes.vp(),
    "edm": sdes.edm(sigma_max=80.0),
    "flow": sdes.flow(alpha_end=1 / 80),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
    "hold4": sdes.hold(order=4),
}


class Bench:
    """Measures, and remembers what was measured."""

    def __init__(self, out: Path, num: int, end: float, grids: list[str], restarts: str, draws: int):
        self.out, self.num, self.end, self.grids, self.draws = out, num, end, grids, draws
        self.restarts = restarts
        self.found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
        self._floors: dict[Any, tuple[float, np.ndarray]] = {}

    def _data(self, path: str, run: Any) -> tuple[float, np.ndarray]:
        name = run.config.data.name
        if name not in self._floors:
            images = load_data(path, run, "train", None).arrays()["x"]
            order = np.random.default_rng(0).permutation(len(images))
            count = min(self.num, len(images) // 2)
            floors = [
                pixel_frechet(images[part[:count]], images[part[count:]])
                for part in (np.random.default_rng(seed).permutation(order) for seed in range(5))
            ]
            self._floors[name] = float(np.mean(floors)), images
        return self._floors[name]

    def measure(self, kind: str, path: str, names: list[str], samplers: Any, budgets: Any) -> None:
        """The errors of one run with some processes; kind: the part of the tables that they are for."""
        run = load_run(path)
        assert run.config is not None
        floor, images = self._data(path, run)
        settings = {"data": run.config.data.name, "trained": run.config.sde.name, "seed": run.config.seed}
        settings["parameterization"] = run.config.objective.parameterization
        for name in names:
            sde = PROCESSES[name] if kind != "own" else run.task.sde
            task = run.task if kind == "own" or name == run.config.sde.name else run.task.as_process(sde)
            t_min = max(1e-5, float(host_time_at(sde, np.asarray([self.end]))[0]))
            compiled, sample = None, None
            for sampler, steps, grid, draw in itertools.product(samplers, budgets, self.grids, range(self.draws)):
                whose = f"{kind}/{settings['data']}/{settings['trained']}/{settings['seed']}"
                key = f"{whose}/{name}/{sampler}/{steps}/{grid}" + f"/restarts {self.restarts}" * bool(self.restarts)
                key += f"/draw {draw}" * bool(draw)
                if key in self.found or (grid == "tuned" and (sampler != "unipc" or steps > TUNED_UP_TO)):
                    continue
                order = Settings(order=3) if (sampler, grid) == ("unipc", "auto") else Settings()
                plan = Plan(sampler=sampler, steps=steps, t_min=t_min, denoise="tweedie", options=order)
                if grid == "tuned":
                    plan = self._tuned(key.replace(f"/{settings['seed']}/", "/", 1), plan, task, sde, run.variables)
                else:
                    plan = dataclasses.replace(plan, grid=grid, restarts=read_restarts(self.restarts))
                if plan != compiled:  # the draws of one plan share its program
                    compiled = plan
                    sample = jax.jit(lambda v, key, task=task, plan=plan: task.sample(v, key, self.num, plan)[0])
                start = time.perf_counter()
                samples = np.asarray(sample(run.variables, jax.random.key(1 + draw)))
                error = pixel_frechet(to_arrays(samples, task.discrete, task.centered), images)
                self.found[key] = {
                    "kind": kind, **settings, "process": name, "sampler": sampler, "steps": steps, "grid": grid,
                    "num": self.num, "end": self.end, "frechet": error, "floor": floor,
                    "floors": error / floor, "seconds": round(time.perf_counter() - start, 2),
                    **({"times": plan.times} if grid == "tuned" else {}),
                    **({"restarts": self.restarts} if self.restarts else {}), **({"draw": draw} if draw else {}),
                }  # fmt: skip
                _write(self.out, json.dumps(self.found, indent=1))
                print(key, f"{error / floor:.2f} floors", flush=True)

    def _tuned(self, whose: str, plan: Plan, task: Any, sde: Any, variables: Any) -> Plan:
        """On the grid that is tuned to the first of the networks, by 64 paths of other starts. whose: but its seed."""
        known = [one["times"] for key, one in self.found.items() if key.replace(f"/{one['seed']}/", "/", 1) == whose]
        if known:
            times = tuple(known[0])
        else:
            found = tune_grid(
                jax.random.key(2), task.score_fn, sde, (64, *task.event_shape), steps=plan.steps - 1,
                sampler=plan.sampler, options={"order": 3}, denoise="tweedie", t_min=plan.t_min, refine=20,
                variables=variables,
            )  # fmt: skip
            times = tuple(map(float, found.times))
        return dataclasses.replace(plan, grid="tuned", options=Settings(order=3), times=times, t_min=times[-1])


def table(found: dict[str, Any], kind: str) -> list[str]:
    """Markdown lines: mean over seeds +- its standard error, in floors."""
    every: dict[tuple, dict[int, dict[str, dict[int, list[float]]]]] = {}
    for one in found.values():
        if one["kind"] == kind:
            sampler = one["sampler"] + f", {one['grid']}" * (one["grid"] in ("tuned", "auto"))
            sampler += f", restarts {one['restarts']}" if "restarts" in one else ""
            row = (one["data"], one["trained"], one["parameterization"], one["process"], sampler)
            by_grid = every.setdefault(row, {}).setdefault(one["steps"], {})
            by_grid.setdefault(one["grid"], {}).setdefault(one["seed"], []).append(one["floors"])
    if not every:
        return []
    rows = {row: {steps: _chosen(grids) for steps, grids in each.items()} for row, each in every.items()}
    budgets = sorted({steps for row in rows.values() for steps in row})
    lines = [
        "| data | network of | predicts | sampled as | sampler | " + " | ".join(f"{n} NFE" for n in budgets) + " |"
    ]
    lines.append("|---|---|---|---|---|" + "--:|" * len(budgets))
    for row, each in rows.items():
        cells = []
        for n in budgets:
            values = np.asarray(each.get(n, []))
            error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{error}" if len(values) else "")
        lines.append("| " + " | ".join([*row, *cells]) + " |")
    return lines


def _chosen(grids: dict[str, dict[int, list[float]]]) -> list[float]:
    """The errors of the seeds on the grid that is best for the first of them, which then does not count.

    Of one seed, and where there is no choice, those of its draws.
    """
    first = min(min(each) for each in grids.values())
    best = min(grids.values(), key=lambda each: np.mean(each.get(first, [np.inf])))
    if len(best) == 1:
        return best[first] if len(grids) == 1 else best[first][:1]
    return [float(np.mean(errors)) for seed, errors in best.items() if len(grids) == 1 or seed != first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoisers", nargs="*", default=[], help="runs of one denoiser")
    parser.add_argument("--own", nargs="*", default=[], help="runs to sample with their own process")
    parser.add_argument("--across", nargs="*", default=[], help="runs to sample with the processes of all of them")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, help="evaluations")
    parser.add_argument("--across-budgets", nargs="*", type=int, default=[MANY], help="evaluations of --across")
    parser.add_argument("--samplers", nargs="*", help="default: the best two, and of --across sscs")
    parser.add_argument("--num", type=int, default=500, help="samples")
    parser.add_argument("--end", type=float, default=0.02, help="noise level at which sampling ends")
    parser.add_argument("--grids", nargs="*", default=["rho", "quadratic"], help="kinds of samplers.time_grid, tuned")
    parser.add_argument("--restarts", default="", help="as of sgmjax.sample, levels,repeats,low,high;...")
    parser.add_argument("--draws", type=int, default=1, help="sets of samples of each run")
    parser.add_argument("--out", type=Path, default=HERE / "one_denoiser.json")
    parser.add_argument("--report", action="store_true", help="only the tables")
    flags = parser.parse_args()
    bench = Bench(flags.out, flags.num, flags.end, flags.grids, flags.restarts, flags.draws)
    if not flags.report:
        for path in flags.denoisers:
            bench.measure("denoiser", path, list(PROCESSES), flags.samplers or SAMPLERS, flags.budgets)
        for path in flags.own:
            bench.measure("own", path, [_process(path)], flags.samplers or SAMPLERS, flags.budgets)
        names = list(dict.fromkeys(map(_process, flags.across)))
        for path in flags.across:
            bench.measure("across", path, names, flags.samplers or ("sscs",), flags.across_budgets)
    titles = {
        "denoiser": "One denoiser, sampled with each process",
        "own": "Networks of each process, sampled with their own",
        "across": "Networks of one process, sampled with others",
    }
    lines = ["# One denoiser, every process", ""]
    for kind, title in titles.items():
        if rows := table(bench.found, kind):
            lines += [f"## {title}", "", *rows, ""]
    _write(flags.out.with_suffix(".md"), "\n".join(lines))
    print("\n".join(lines))


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def _process(path: str) -> str:
    return read_config(path).sde.name


if __name__ == "__main__":
    main()
