"""Which sampler at which budget: error against score evaluations, for every sampler and every process.

    python benchmarks/samplers.py                              # both mixtures: about an hour on two cores
    python benchmarks/samplers.py --quick                      # two seeds, up to 20 evaluations
    python benchmarks/samplers.py --problems ring --processes psld,vp --samplers em,sscs
    python benchmarks/samplers.py --problems= --runs runs/psld_digits runs/vp_mnist
    python benchmarks/samplers.py --report benchmarks/samplers.json     # tables and plots again, nothing measured

Writes `samplers.json` (every measurement) and `samplers.md` (the tables and the checks) into --out, and a plot for each
problem, `samplers_ring.png`, ..., into --images.

The problems:
    ring        eight Gaussians of std 0.17 on a circle of radius 1.5 in 2-D, exact score
    mixture64   sixteen Gaussians of std 0.2 in 64 dimensions, centres drawn from N(0, 1), exact score
    a run       the network of a run folder, sampled in the run's own process

Errors are sliced 2-Wasserstein distances to as many true draws, mean over seeds, beside the floor: the mean distance
of two independent sets of true draws. For a run they are pixel-space Frechet distances to its training data, beside
those of as many of its images (at most half) to the others; of the tuned and the plain grid the better one counts.
Every fixed-step sampler takes the grid that suits it (`--tune` looks for it on the ring, on seeds of its own, and keeps
what it finds in `samplers_grids.json`); adaptive ones are run at several tolerances and shown at the evaluations they
took.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax import exact, samplers, sdes
from sgmjax._files import replacing
from sgmjax.metrics.sliced import directions
from sgmjax.samplers.grids import Grid
from sgmjax.sdes import linalg

HERE = Path(__file__).resolve().parent
BUDGETS = (5, 10, 20, 50, 100, 200)
FEW_SEEDS = 3  # above 20 evaluations, where the errors are near the floor and the time goes
T_MIN = 1e-3
PROCESSES: dict[str, sdes.SDE] = {
    "vp": sdes.vp(),
    "subvp": sdes.subvp(),
    "ve": sdes.ve(),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
}
SCALAR, PHASE_SPACE = ("vp", "subvp", "ve"), ("cld", "psld", "third_order")
ALL_NOISED = (*SCALAR, "psld")  # whose every variable receives noise


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sampler in one mode: a line of the tables.

    Attributes:
        sampler: its name in `samplers.SAMPLERS`.
        options: keyword arguments; for adaptive ones without what `settings` varies.
        processes: which it works for.
        evaluations: score evaluations a step, from which the grid's length follows.
        prepare: prepare(sde, times) -> more keyword arguments, computed on the host.
        settings: of an adaptive sampler, one dictionary of keyword arguments for each point; () for fixed grids.
        own_times: every sample has its own time within a call of the score.
        midpoints: never evaluates the score where the grid ends, so that the denoising step is a matter of taste.
        grid: kind to take where `--tune` has not looked.
        order: of convergence, for the checks.
    """

    sampler: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    processes: tuple[str, ...] = tuple(PROCESSES)
    evaluations: int = 1
    prepare: Callable[..., dict[str, Any]] | None = None
    settings: tuple[dict[str, Any], ...] = ()
    own_times: bool = False
    midpoints: bool = False
    grid: Grid = "quadratic"
    order: int = 1


def tolerances(*values: float) -> tuple[dict[str, Any], ...]:
    return tuple({"rtol": v, "atol": v} for v in values)


ENTRIES: dict[str, Entry] = {
    # the reverse SDE on a grid
    "em": Entry("em"),
    "reverse diffusion": Entry("pc", {"corrector": "none"}),
    "ancestral": Entry("pc", {"predictor": "ancestral", "corrector": "none"}, ALL_NOISED),
    "predictor-corrector": Entry("pc", evaluations=2),
    "sscs": Entry("sscs"),
    "sscs without prior": Entry("sscs", {"precision": "none"}, grid="logsnr"),
    "sa-solver": Entry("sa_solver", grid="logsnr"),
    "er-sde 3": Entry("er_sde", grid="logsnr"),
    "ddim eta=1": Entry("ddim", {"eta": 1.0}),
    "exponential midpoint": Entry("exponential_midpoint", order=2, midpoints=True),
    "splitting obab": Entry("splitting", {"scheme": "reduced_obab"}, PHASE_SPACE, evaluations=2),
    "edm churn": Entry("edm", {"S_churn": 10.0, "S_min": 0.05}, SCALAR, evaluations=2, grid="rho", order=2),
    # the probability flow on a grid
    "heun": Entry("ode", {"solver": "Heun"}, evaluations=2, grid="rho", order=2),
    "edm": Entry("edm", processes=SCALAR, evaluations=2, grid="rho", order=2),
    "gddim": Entry("gddim"),
    "gddim-L": Entry("gddim", {"parameterization": "L"}, PHASE_SPACE),
    "deis 2": Entry("deis", {"order": 2}, order=2),
    "deis 3": Entry("deis", {"order": 3}, order=3),
    "dpm-solver++ 2M": Entry("dpm_solver_pp", order=2),
    "ipndm 4": Entry("ipndm", order=4, grid="logsnr"),
    "unipc 2": Entry("unipc", order=3),
    "unipc 3": Entry("unipc", {"order": 3}, order=4),
    "unipc 3 on auto": Entry("unipc", {"order": 3}, order=4, grid="auto"),
    "dpm-solver++ 2M on auto": Entry("dpm_solver_pp", order=2, grid="auto"),
    "deis 3 on auto": Entry("deis", {"order": 3}, order=3, grid="auto"),
    "sscs without prior on auto": Entry("sscs", {"precision": "none"}, grid="auto"),
    "exponential midpoint on auto": Entry("exponential_midpoint", order=2, grid="auto"),
    "splitting verlet": Entry("splitting", processes=PHASE_SPACE, evaluations=2),
    "conjugate heun": Entry("conjugate", {"scheme": "heun"}, evaluations=2, order=2),
    # adaptive
    "ode RK45": Entry("ode", settings=tolerances(1e-1, 1e-2, 1e-3, 1e-5)),
    "adaptive SDE": Entry("adaptive_sde", settings=tolerances(0.3, 0.1, 0.03)),
    "ggf": Entry("ggf", settings=({"rtol": 0.5}, {"rtol": 0.1}, {"rtol": 0.02}), own_times=True),
}


# ---- grids


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a fixed-step sampler spends its budget: a `time_grid` and the denoising step."""

    grid: Grid
    denoise: Any
    t_min: float = 1e-3

    def times(self, sde: sdes.SDE, nfe: int, evaluations: int) -> np.ndarray:
        return samplers.time_grid(
            self.grid, nfe, t_min=self.t_min, denoise=bool(self.denoise), evaluations=evaluations, sde=sde
        )

    def __str__(self) -> str:
        return f"{self.grid} {self.t_min:g} {self.denoise or ''}".strip()


GRIDS_FILE = HERE / "samplers_grids.json"  # {sampler: {process: {budget: [grid, denoise, t_min]}}}
TUNED_BUDGETS = (5, 10, 20)
GRIDS: tuple[Grid, ...] = ("quadratic", "rho", "logsnr")  # uniform ones lost by far wherever they were tried


def candidates(entry: Entry, t_min: float) -> list[Layout]:
    """Grids and denoising steps worth a try."""
    return [Layout(grid, d, t_min) for d in ("tweedie", False)[: 1 + entry.midpoints] for grid in GRIDS]


def plain_layout(sde: sdes.SDE) -> Layout:
    """What one would take without tuning: quadratic, down to T_MIN, and the denoising step."""
    return Layout("quadratic", "tweedie" if sde.num_noised == sde.k else "sde", T_MIN)


def layout(label: str, process: str, nfe: int) -> Layout:
    """The layout that `--tune` found for the next lower budget; with many steps, down to T_MIN.

    With few steps, a grid does best to stop early and to leave the rest to the denoising step.
    """
    found = json.loads(GRIDS_FILE.read_text()) if GRIDS_FILE.is_file() else {}
    tuned = found.get(label, {}).get(process, {})
    if ENTRIES[label].grid == "auto":
        return Layout("auto", "tweedie", T_MIN)
    if not tuned:
        end = 0.03 if nfe < 10 else 0.01 if nfe <= TUNED_BUDGETS[-1] else T_MIN
        return dataclasses.replace(candidates(ENTRIES[label], end)[0], grid=ENTRIES[label].grid)
    budget = max([int(b) for b in tuned if int(b) <= nfe] or [min(int(b) for b in tuned)])
    chosen = Layout(*tuned[str(budget)])
    return chosen if nfe <= TUNED_BUDGETS[-1] else dataclasses.replace(chosen, t_min=T_MIN)


# ---- problems


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is sampled, and how far samples are from it.

    Attributes:
        name: of its tables and its plot.
        processes: by name.
        score_fn: score_fn(sde, params, own_times) -> a score function.
        params: handed to it through jit.
        shape: (batch, *event).
        error: error(samples) -> float.
        floor: mean and standard error of the error of true draws.
        measure: what `error` is.
    """

    name: str
    processes: dict[str, sdes.SDE]
    score_fn: Callable[..., Any]
    params: Any
    shape: tuple[int, ...]
    error: Callable[[np.ndarray], float]
    floor: tuple[float, float]
    measure: str


def batch_score(mixture: exact.GaussianMixture, sde: sdes.SDE):
    """`mixture.score_fn(sde)` for components of one std and a batch that shares its time: many times as fast.

    All components then have one k x k precision P, and with e = E e_0 the logits are z^T P e mu_j - e^T P e |mu_j|^2/2.
    """
    assert len(set(np.asarray(mixture.stds))) == 1
    means = np.asarray(mixture.means, np.float32)
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def score_fn(z, t):
        kernel = sde.transition(t[:1], "hsm")
        e = kernel.mean[:, :, :1]
        inverse = linalg.inverse_transpose(
            linalg.triangular_factor(jnp.concatenate([mixture.stds[0] * e, kernel.factor], axis=-1))
        )
        precision = linalg.matmul(inverse, jnp.swapaxes(inverse, 1, 2))
        weight = linalg.matmul(precision, e)
        data = jnp.sum(weight * z, axis=1)
        information = jnp.sum(weight * e, axis=1)
        logits = dot(data, means.T) - 0.5 * information * np.sum(means**2, axis=1)[None]
        nearest = dot(jax.nn.softmax(logits + np.asarray(mixture.log_weights, np.float32)[None], axis=1), means)
        return sde.expand(sde.restrict(linalg.apply(precision, e * nearest[:, None] - z)))

    return score_fn


def mixture64() -> exact.GaussianMixture:
    return exact.mixture(np.random.default_rng(64).normal(size=(16, 64)), 0.2)


def mixture_problem(name: str, mixture: exact.GaussianMixture, batch: int, *, truths=20, floor_draws=100) -> Problem:
    """Sliced W2, as `metrics.sliced_wasserstein`: the mean over twenty sets of true draws, sorted once.

    Samplers and the floor meet the same sets, so that these sets' own luck does not enter their ratio.
    """
    dim = mixture.means.shape[1]
    u = directions(dim, 128).astype(np.float32)
    draw = jax.jit(lambda seed: mixture.sample(jax.random.fold_in(jax.random.key(2024), seed), batch)[0])

    def project(x):
        return np.sort(u @ np.asarray(x, np.float32).T, axis=1)

    true = [project(draw(i)) for i in range(truths)]

    def error(x) -> float:
        x = project(x)
        return float(np.mean([np.sqrt(np.mean((x - t) ** 2, dtype=np.float64)) for t in true]))

    between = [error(draw(1000 + i)) for i in range(floor_draws)]
    floor = float(np.mean(between)), float(np.std(between) / np.sqrt(floor_draws))

    def score_fn(sde, params, own_times: bool):
        return mixture.score_fn(sde) if own_times else batch_score(mixture, sde)

    return Problem(name, PROCESSES, score_fn, None, (batch, dim), error, floor, "sliced W2")


def run_problem(path: str, num: int) -> Problem:
    """A trained network, judged by the pixel-space Frechet distance to its training data."""
    from sgmjax import data
    from sgmjax.metrics.frechet import pixel_frechet
    from sgmjax.training.load import load_run

    run = load_run(path)
    config, task = run.config, run.task
    assert config is not None  # a run of the command
    dataset = data.load(config.data, "train")
    real = dataset.read(np.arange(min(10_000, dataset.num_examples)))["x"]
    order = np.random.default_rng(0).permutation(len(real))
    apart = min(num, len(real) // 2)  # few images are far from many, whoever made them
    classes = task.num_classes
    labels = None if classes is None else np.arange(num) % classes

    def score_fn(sde, params, own_times: bool):
        return task.score_fn(params, labels=labels)

    def error(x) -> float:
        return pixel_frechet(np.asarray(data.to_uint8(np.asarray(x), task.centered)), real)

    floor = pixel_frechet(real[order[:apart]], real[order[apart:]]), 0.0
    shape = (num, *task.event_shape)
    name = Path(path).name
    return Problem(
        name, {config.sde.name: task.sde}, score_fn, run.variables, shape, error, floor, "pixel Frechet distance"
    )  # fmt: skip


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ring": lambda: mixture_problem("ring", exact.ring(), 10_000),
    "mixture64": lambda: mixture_problem("mixture64", mixture64(), 5_000),
}


# ---- measuring


def compiled(problem: Problem, entry: Entry, sde: sdes.SDE, options: dict[str, Any]) -> Callable[..., Any]:
    """run(seed) -> (samples, evaluations of a sample on average), compiled once."""
    sampler = samplers.SAMPLERS[entry.sampler]

    @jax.jit
    def run(params, seed):
        score_fn = problem.score_fn(sde, params, entry.own_times)
        key = jax.random.fold_in(jax.random.key(7), seed)
        x, info = sampler(key, score_fn, sde, problem.shape, **options)
        return x, jnp.mean(jnp.asarray(info.nfe, jnp.float32))

    return functools.partial(run, problem.params)


def measure(
    problem: Problem, label: str, process: str, seeds: list[int], *, nfe: int = 0, setting: int = 0, chosen=None
) -> dict[str, Any]:
    """One point: a sampler for a process, with a budget (fixed grids) or a setting (adaptive ones), over seeds."""
    entry, sde = ENTRIES[label], problem.processes[process]
    if entry.settings:
        options, grid = entry.options | {"t_min": T_MIN} | entry.settings[setting], "adaptive"
    else:
        chosen = chosen or layout(label, process, nfe)
        times = chosen.times(sde, nfe, entry.evaluations)
        options = entry.options | {"times": times, "denoise": chosen.denoise}
        options |= entry.prepare(sde, times) if entry.prepare else {}
        grid = str(chosen)
    start = time.perf_counter()
    run = compiled(problem, entry, sde, options)
    jax.block_until_ready(run(0))
    compile_s, errors, used, seconds = time.perf_counter() - start, [], [], []
    for seed in seeds:
        start = time.perf_counter()
        x, evaluations = jax.block_until_ready(run(seed))
        seconds.append(time.perf_counter() - start)
        x = np.asarray(x)
        errors.append(problem.error(x) if np.isfinite(x).all() else float("inf"))
        used.append(float(evaluations))
    return {
        "problem": problem.name, "process": process, "sampler": label, "grid": grid, "budget": nfe or None,
        "setting": entry.settings[setting] if entry.settings else None, "nfe": float(np.mean(used)), "errors": errors,
        "seconds": float(np.median(seconds)), "compile_seconds": compile_s,
    }  # fmt: skip


def points(problem: Problem, labels, processes, budgets):
    """Keyword arguments of `measure` for all that there is to measure."""
    for process in [p for p in processes if p in problem.processes]:
        for label in labels:
            entry = ENTRIES[label]
            if process not in entry.processes or entry.sampler not in samplers.SAMPLERS:
                continue
            if entry.settings:
                yield from ({"label": label, "process": process, "setting": i} for i in range(len(entry.settings)))
                continue
            for nfe in budgets:
                if nfe > entry.evaluations:
                    yield {"label": label, "process": process, "nfe": nfe}


def tune(problem: Problem, labels, processes) -> None:
    """Look for each sampler's grids, on seeds that no table uses, and keep them in `samplers_grids.json`.

    For each budget the kind of grid and the denoising step, then where it ends.
    """

    def tried(layouts, label: str, process: str, nfe: int) -> Layout:
        errors = [mean(measure(problem, label, process, list(range(9000, 9004)), nfe=nfe, chosen=c)) for c in layouts]
        told = "  ".join(f"{c}: {e / problem.floor[0]:.2f}" for e, c in zip(errors, layouts))
        print(f"{process} {label}, {nfe} NFE:  {told}", flush=True)
        return layouts[int(np.argmin(errors))]

    for process in [p for p in processes if p in problem.processes]:
        for label in labels:
            entry = ENTRIES[label]
            if entry.settings or process not in entry.processes or entry.sampler not in samplers.SAMPLERS:
                continue
            chosen = {}
            for nfe in [n for n in TUNED_BUDGETS if n > entry.evaluations]:
                best = tried(candidates(entry, 1e-2), label, process, nfe)
                ends = [dataclasses.replace(best, t_min=t) for t in (3e-3, 1e-2, 2e-2, 4e-2)]
                c = tried(ends, label, process, nfe)
                chosen[str(nfe)] = [c.grid, c.denoise, c.t_min]
            found = json.loads(GRIDS_FILE.read_text()) if GRIDS_FILE.is_file() else {}
            found.setdefault(label, {})[process] = chosen
            GRIDS_FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


# ---- what is said about it


def mean(row: dict[str, Any]) -> float:
    return float(np.mean(row["errors"]))


def standard_error(row: dict[str, Any]) -> float:
    return float(np.std(row["errors"], ddof=1) / np.sqrt(len(row["errors"]))) if len(row["errors"]) > 1 else 0.0


def in_floors(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e4 else "diverges"


def table(rows: list[dict[str, Any]], floor: float) -> str:
    """Errors in units of the floor: a line for each sampler of each process; the best of each process in bold."""
    fixed = [r for r in rows if r["budget"]]
    budgets = sorted({r["budget"] for r in fixed})
    lines = ["| process | sampler | grid (fewest NFE) | " + " | ".join(f"{n} NFE" for n in budgets) + " |"]
    lines.append("|---|---|---|" + "--:|" * len(budgets))
    for process in dict.fromkeys(r["process"] for r in fixed):
        here = [r for r in fixed if r["process"] == process]
        best = {n: min(mean(r) for r in here if r["budget"] == n) for n in {r["budget"] for r in here}}
        for label in dict.fromkeys(r["sampler"] for r in here):
            cells = {r["budget"]: r for r in here if r["sampler"] == label}
            text = []
            for n in budgets:
                shown = in_floors(mean(cells[n]) / floor) if n in cells else ""
                text.append(f"**{shown}**" if n in cells and mean(cells[n]) <= 1.02 * best[n] else shown)
            grid = next(iter(cells.values()))["grid"].split()[0]
            lines.append(f"| {process} | {label} | {grid} | " + " | ".join(text) + " |")
    adaptive = [r for r in rows if not r["budget"]]
    if adaptive:
        lines += ["", "| process | adaptive sampler | error at NFE, from loose to tight tolerances |", "|---|---|---|"]
        for process, label in dict.fromkeys((r["process"], r["sampler"]) for r in adaptive):
            here = [r for r in adaptive if (r["process"], r["sampler"]) == (process, label)]
            shown = ", ".join(f"{in_floors(mean(r) / floor)} at {r['nfe']:.0f}" for r in here)
            lines.append(f"| {process} | {label} | {shown} |")
    return "\n".join(lines)


def best_row(rows: list[dict[str, Any]], budget: int, processes) -> dict[str, Any] | None:
    """The smallest error within the budget, adaptive samplers by what they used."""
    here = [r for r in rows if r["process"] in processes and r["nfe"] <= budget + 1e-6]
    return min(here, key=mean) if here else None


def winners(results: dict[str, Any], name: str, budgets) -> list[dict[str, Any]]:
    """The points that the checks will speak of, as keyword arguments of `measure`."""
    rows, found = [r for r in results["rows"] if r["problem"] == name], []
    for budget in budgets:
        for group in (("vp",), PHASE_SPACE, ("third_order",)):
            row = best_row(rows, budget, group)
            if row is None:
                continue
            settings = ENTRIES[row["sampler"]].settings
            where = {"setting": settings.index(row["setting"])} if settings else {"nfe": row["budget"]}
            point = {"label": row["sampler"], "process": row["process"]} | where
            if point not in found:
                found.append(point)
    return found


def second_order(rows: list[dict[str, Any]], process: str) -> dict[str, Any] | None:
    """The best row of a sampler of order two and more, with ten evaluations."""
    here = [r for r in rows if r["process"] == process and r["budget"] == 10 and ENTRIES[r["sampler"]].order >= 2]
    return min(here, key=mean) if here else None


def checks(
    rows: list[dict[str, Any]],
    again: list[dict[str, Any]],
    same_grid: list[dict[str, Any]],
    floor: float,
    targets: bool = True,
) -> list[str]:
    """The targets of the ring (`targets`), each with its verdict, or the same numbers without; and where VP wins.

    The best of many noisy numbers flatters itself: where `again` has the same point on fresh seeds, that number counts.
    """

    def fresh(row):
        same = [r for r in again if all(r[k] == row[k] for k in ("process", "sampler", "budget", "setting"))]
        return same[0] if same else row

    def told(row):
        value, spread = mean(fresh(row)) / floor, standard_error(fresh(row)) / floor
        return value, f"{row['process']} {row['sampler']} ({row['grid']}) {value:.2f} +- {spread:.2f} x floor"

    lines = []
    for budget, target, processes in (
        (5, 2.0, PHASE_SPACE), (10, 1.25, PHASE_SPACE), (20, 1.05, PHASE_SPACE), (10, 1.5, ("third_order",))
    ):  # fmt: skip
        row = best_row(rows, budget, processes)
        if row is None:
            continue
        value, text = told(row)
        best = f"best {'phase-space sampler' if len(processes) > 1 else 'third-order Langevin'} at {budget} NFE"
        verdict = "met   " if value <= target else "MISSED"
        lines.append(f"{verdict} {best} <= {target}: {text}" if targets else f"{best}: {text}")
    for process in dict.fromkeys(r["process"] for r in rows):
        row, em = second_order(rows, process), [r for r in rows if r["process"] == process and r["sampler"] == "em"]
        for where, others in (("its own best grid", em), ("the same grid", same_grid)):
            other = [r for r in others if r["process"] == process and r["budget"] == 10]
            if row is None or not other:
                continue
            ratio = mean(other[0]) / mean(row)
            excess = np.sqrt(max(mean(other[0]) ** 2 - floor**2, 0) / max(mean(row) ** 2 - floor**2, 1e-4 * floor**2))
            verdict = ("met    " if ratio >= 4 else "below  ") if targets else ""
            lines.append(
                f"{verdict}{process}: second order ({row['sampler']}, {row['grid']}) {ratio:.1f} x closer at 10 NFE "
                f"than em on {where} ({other[0]['grid']}); {excess:.1f} x if the floor is taken off in squares"
            )
    for budget in [n for n in BUDGETS if n <= max(r["budget"] or 0 for r in rows)]:
        vp, phase = best_row(rows, budget, ("vp",)), best_row(rows, budget, PHASE_SPACE)
        if vp and phase:
            (ours, vp_text), (theirs, phase_text) = told(vp), told(phase)
            spread = np.hypot(standard_error(fresh(vp)), standard_error(fresh(phase))) / floor
            winner = "no difference" if abs(ours - theirs) < 2 * spread else "VP wins" if ours < theirs else "VP loses"
            lines.append(f"{winner} at {budget} NFE: {vp_text}; {phase_text}")
    return lines


def plot(rows: list[dict[str, Any]], floor: float, name: str, measure_name: str, path: Path) -> None:
    """A panel for each process: error against NFE, both logarithmic, and the floor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    processes = list(dict.fromkeys(r["process"] for r in rows))
    labels = list(dict.fromkeys(r["sampler"] for r in rows))
    columns = min(3, len(processes))
    across = (2, 3, 5)[columns - 1]  # names beside one another
    lines = -(-len(processes) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 3.9 * lines + 1.0), sharex=True, sharey=True, squeeze=False
    )
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
    for i, process in enumerate(processes):
        axis = axes.flat[i]
        for j, label in enumerate(labels):
            here = sorted((r for r in rows if (r["process"], r["sampler"]) == (process, label)), key=lambda r: r["nfe"])
            x, y = [r["nfe"] for r in here], [mean(r) for r in here]
            dashed = "--" if ENTRIES[label].settings else "-"
            axis.plot(x, y, dashed, marker="os^vDPX*<>"[j % 10], color=colours[j % 20], markersize=4.5, label=label)
        axis.axhline(floor, color="black", linewidth=1, linestyle=":", label="two sets of true draws")
        axis.set(title=process, xscale="log", yscale="log", ylim=(0.8 * floor, 100 * floor))
        axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("score evaluations")
    for axis in axes[:, 0]:
        axis.set_ylabel(measure_name)
    for axis in axes.flat[len(processes) :]:
        axis.set_visible(False)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.suptitle(name)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05 + 0.022 * (len(handles) // across), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(results: dict[str, Any], path: Path) -> None:
    """As JSON, a row a line."""
    lines = []
    for name, value in results.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f' "{name}": [\n{rows}\n ]')
        else:
            lines.append(f' "{name}": {json.dumps(value)}')
    with replacing(path) as partial:
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def report(results: dict[str, Any], out: Path, images: Path) -> None:
    """Tables, checks and plots from the measurements."""
    text = [f"Measured on {results['device']}. Errors in units of the floor.", ""]
    for name, problem in results["problems"].items():
        rows = [r for r in results["rows"] if r["problem"] == name]
        again = [r for r in results["again"] if r["problem"] == name]
        if not rows:
            continue
        floor, spread = problem["floor"]
        text += [
            f"## {name}: {problem['measure']} of {problem['batch']} samples, floor {floor:.4f} +- {spread:.4f}",
            "",
        ]
        text += [table(rows, floor), ""]
        if name in PROBLEMS:
            same_grid = [r for r in results["same_grid"] if r["problem"] == name]
            text += ["```", *checks(rows, again, same_grid, floor, name == "ring"), "```", ""]
        plot(rows, floor, f"{name}: {problem['measure']}", problem["measure"], images / f"samplers_{name}.png")
    (out / "samplers.md").write_text("\n".join(text))
    print("\n".join(text))


def flags(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="ring,mixture64", help="of " + ", ".join(PROBLEMS))
    parser.add_argument("--runs", nargs="*", default=[], help="run folders whose networks are measured too")
    parser.add_argument("--run-samples", type=int, default=1000, help="samples drawn of a run, with one seed")
    parser.add_argument("--samplers", default="", help="of " + ", ".join(ENTRIES) + "; empty: all")
    parser.add_argument("--processes", default="", help="of " + ", ".join(PROCESSES) + "; empty: all")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--add", action="store_true", help="to the samplers.json that is there, in place of the same rows"
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, budgets up to 20")
    parser.add_argument("--tune", action="store_true", help="look for the grids of the samplers on the first problem")
    parser.add_argument("--report", help="a samplers.json to make tables and plots of")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--images", type=Path, default=HERE.parent / "docs" / "images")
    given = parser.parse_args(argv)
    for option, known in (("problems", PROBLEMS), ("samplers", ENTRIES), ("processes", PROCESSES)):
        names = [n for n in getattr(given, option).split(",") if n]
        unknown = [n for n in names if n not in known]
        if unknown:
            parser.error(f"--{option}: {unknown[0]!r} is unknown; choose from {', '.join(known)}")
        setattr(given, option, names)
    given.budgets = [int(n) for n in given.budgets.split(",")]
    if given.quick:
        given.seeds, given.budgets = 2, [n for n in given.budgets if n <= 20]
    given.samplers = given.samplers or list(ENTRIES)
    given.processes = given.processes or list(PROCESSES)
    return given


def main(argv) -> int:
    given = flags(argv)
    for folder in (given.out, given.images):
        folder.mkdir(parents=True, exist_ok=True)
    if given.report:
        report(json.loads(Path(given.report).read_text()), given.out, given.images)
        return 0
    problems = [PROBLEMS[name]() for name in given.problems] + [
        run_problem(path, given.run_samples) for path in given.runs
    ]
    if given.tune:
        tune(problems[0], given.samplers, given.processes)
        return 0
    results: dict[str, Any] = {
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "problems": {},
        "rows": [],
        "again": [],
        "same_grid": [],
    }
    file = given.out / "samplers.json"
    if given.add and file.is_file():
        results = json.loads(file.read_text())
    start = time.perf_counter()
    for problem in problems:
        floor, _ = problem.floor
        results["problems"][problem.name] = {
            "floor": problem.floor, "batch": problem.shape[0], "measure": problem.measure
        }  # fmt: skip
        known = problem.name in PROBLEMS
        processes = given.processes if known else list(problem.processes)

        def take(where: str, first_seed: int, **point):
            few = point.get("nfe", 100) > 20 and where == "rows"
            num = min(given.seeds, FEW_SEEDS) if few else given.seeds
            row = measure(problem, seeds=[first_seed + i for i in range(num if known else 1)], **point)  # noqa: B023
            if not known and "nfe" in point:  # a network may want another layout than the exact score
                plain = plain_layout(problem.processes[point["process"]])  # noqa: B023
                other = measure(problem, seeds=[first_seed], chosen=plain, **point)  # noqa: B023
                row = min(row, other, key=mean)
            same = ("problem", "process", "sampler", "budget", "setting")
            results[where] = [r for r in results[where] if any(r[k] != row[k] for k in same)] + [row]
            write(results, given.out / "samplers.json")  # nothing is lost on the way
            print(
                f"{time.perf_counter() - start:7.0f} s  {row['problem']:10} {row['process']:12} {row['sampler']:24} "
                f"{row['grid']:22} NFE {row['nfe']:6.1f}  {mean(row):.4f} +- {standard_error(row):.4f} "
                f"({in_floors(mean(row) / floor)} x floor)  {row['seconds']:.2f} s",  # noqa: B023
                flush=True,
            )

        for point in points(problem, given.samplers, processes, given.budgets):
            take("rows", 1, **point)
        if given.add:
            continue
        for point in winners(results, problem.name, given.budgets) if known else []:
            take("again", 101, **point)
        for process in processes if known and 10 in given.budgets else []:
            row = second_order([r for r in results["rows"] if r["problem"] == problem.name], process)
            if row is not None:
                chosen = layout(row["sampler"], process, 10)
                take("same_grid", 1, label="em", process=process, nfe=10, chosen=chosen)
    report(results, given.out, given.images)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
