"""Tuned grids at few evaluations: error of UniPC on the grids of `samplers.tune_grid`, for data whose score is known.

    python benchmarks/tuned_grids.py                       # about a quarter of an hour on two cores
    python benchmarks/tuned_grids.py --problems ring --processes vp psld --budgets 5 10
    python benchmarks/tuned_grids.py --report              # only the table

The problems and the measure are those of `samplers.py`: sliced 2-Wasserstein distances to as many true draws, in
floors, mean and standard error over ten seeds. Grids are tuned on other data of the same kind (a ring of seven, sixteen
other centres) and other starts, by the distance to a teacher's path alone; of UniPC of order 2 and 3, with and without
its corrector, the one that comes nearest there is taken. In the columns "+ start" the first evaluation is
`score.analytic_start`'s, by mean and deviation of the data that the grid was tuned on, and the grid has a step more.

Writes `tuned_grids.json`, a row a line, and `tuned_grids.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from samplers import PROBLEMS, PROCESSES, batch_score, mixture64

from sgmjax import exact, samplers, score
from sgmjax.samplers.grids import host_noise_level

HERE = Path(__file__).resolve().parent
BUDGETS = (5, 8, 10, 20)
SEEDS = 10
VARIANTS: tuple[dict[str, Any], ...] = tuple(
    {"order": order, "corrector": corrector} for order in (2, 3) for corrector in (True, False)
)


problem_of = functools.cache(lambda name: PROBLEMS[name]())


def to_tune_on(name: str) -> exact.GaussianMixture:
    """Data of the kind of a problem, that are not those of it."""
    if name == "ring":
        return exact.ring(components=7)
    return exact.mixture(np.random.default_rng(1).standard_normal((16, 64)), 0.2)


def tuned(mixture: exact.GaussianMixture, sde: Any, steps: int, start: bool, refine: int) -> tuple[Any, dict[str, Any]]:
    """The grid, and the variant of UniPC, that come nearest to the teacher."""
    score_fn = score_of(mixture, sde, mixture if start else None)
    batch = 2000 if mixture.means.shape[1] == 2 else 256
    found = [
        samplers.tune_grid(
            jax.random.key(1000), score_fn, sde, (batch, mixture.means.shape[1]), steps=steps, sampler="unipc",
            options=options, denoise="tweedie", refine=refine,
        )
        for options in VARIANTS
    ]  # fmt: skip
    best = int(np.argmin([np.inf if one.error is None else one.error for one in found]))
    return found[best], VARIANTS[best]


def score_of(mixture: exact.GaussianMixture, sde: Any, start: exact.GaussianMixture | None) -> Any:
    """The exact score, but at t = 1 what mean and deviation of `start` say."""
    known = batch_score(mixture, sde)
    if start is None:
        return known
    means = np.asarray(start.means)
    std = np.sqrt(means.var(axis=0) + np.asarray(start.stds)[0] ** 2)
    return score.analytic_start(known, sde, means.mean(axis=0), std)


def measure(name: str, process: str, budget: int, start: bool, refine: int) -> dict[str, Any]:
    problem, sde = problem_of(name), PROCESSES[process]
    mixture, other = (exact.ring() if name == "ring" else mixture64()), to_tune_on(name)
    found, options = tuned(other, sde, budget - 1 + start, start, refine)
    score_fn = score_of(mixture, sde, other if start else None)
    draw = jax.jit(
        lambda key: samplers.unipc(
            key, score_fn, sde, problem.shape, times=found.times, denoise="tweedie", **options
        )[0]
    )  # fmt: skip
    errors = [problem.error(np.asarray(draw(jax.random.key(seed)))) / problem.floor[0] for seed in range(1, SEEDS + 1)]
    return {
        "problem": name, "process": process, "nfe": budget, "start": start, **options, "teacher": found.error,
        "plain": min(found.plain.values()), "floors": [round(float(e), 4) for e in errors],
        "levels": [round(float(v), 4) for v in host_noise_level(sde, found.times)],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines."""
    budgets = sorted({row["nfe"] for row in rows})
    heads = [f"{budget} NFE{start}" for budget in budgets for start in ("", " + start")]
    lines = ["| problem | process | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(heads)]
    found = {(r["problem"], r["process"], r["nfe"], r["start"]): np.asarray(r["floors"]) for r in rows}
    for problem, process in dict.fromkeys((row["problem"], row["process"]) for row in rows):
        cells = [found.get((problem, process, budget, start)) for budget in budgets for start in (False, True)]
        words = ["" if v is None else f"{v.mean():.2f} ± {v.std(ddof=1) / len(v) ** 0.5:.2f}" for v in cells]
        lines.append(f"| {problem} | {process} | " + " | ".join(words) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=["ring", "mixture64"])
    parser.add_argument("--processes", nargs="*", default=["vp", "ve", "cld", "psld", "third_order"])
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--refine", type=int, default=150, help="runs in which the levels are moved")
    parser.add_argument("--out", type=Path, default=HERE / "tuned_grids.json")
    parser.add_argument("--report", action="store_true", help="only the table")
    flags = parser.parse_args()
    rows = json.loads(flags.out.read_text()) if flags.out.is_file() else []
    done = {(row["problem"], row["process"], row["nfe"], row["start"]) for row in rows}
    points = [
        (name, process, budget, start)
        for budget in flags.budgets for name in flags.problems for process in flags.processes for start in (True, False)
    ]  # fmt: skip
    for point in points:
        if flags.report or point in done:
            continue
        rows.append(measure(*point, flags.refine))
        flags.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        print(*point, f"{np.mean(rows[-1]['floors']):.3f} floors", flush=True)
    order = {name: i for i, name in enumerate([*PROBLEMS, *PROCESSES])}
    rows.sort(key=lambda row: (order[row["problem"]], order[row["process"]]))
    lines = ["# UniPC on tuned grids, in floors", "", *table(rows), ""]
    flags.out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
