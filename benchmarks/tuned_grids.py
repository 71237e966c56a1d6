"""Tuned grids at few evaluations: error of UniPC on the grids of `samplers.tune_grid`, for data whose score is known.

    python benchmarks/tuned_grids.py                       # about two hours on two cores
    python benchmarks/tuned_grids.py --problems ring --processes vp psld --budgets 5 10
    python benchmarks/tuned_grids.py --report              # only the table

The problems and the measure are those of `samplers.py`: sliced 2-Wasserstein distances to as many true draws, in
floors, mean and standard error over ten seeds. Grids of UniPC of order 3 are tuned on other data of the same kind (a
ring of seven, sixteen other centres) and other starts, by the distance to where a teacher's paths end alone. In the
columns "weights" its weights are learned there too. In the columns "+ start" the first evaluation is
`score.analytic_start`'s, by mean and deviation of the data that the grid was tuned on, and the grid has a step more.

Writes `tuned_grids.json`, a row a line, and `tuned_grids.md`.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rows import read, write
from samplers import PROBLEMS, PROCESSES, batch_score, mixture64

from sgmjax import exact, samplers, score
from sgmjax.samplers.grids import host_noise_level

HERE = Path(__file__).resolve().parent
BUDGETS = (5, 8, 10, 20)
SEEDS = 10
OPTIONS: dict[str, Any] = {"order": 3, "corrector": True}


problem_of = functools.cache(lambda name: PROBLEMS[name]())


def to_tune_on(name: str) -> exact.GaussianMixture:
    """Data of the kind of a problem, that are not those of it."""
    if name == "ring":
        return exact.ring(components=7)
    return exact.mixture(np.random.default_rng(1).standard_normal((16, 64)), 0.2)


def score_of(mixture: exact.GaussianMixture, sde: Any, start: exact.GaussianMixture | None) -> Any:
    """The exact score, but at t = 1 what mean and deviation of `start` say."""
    known = batch_score(mixture, sde)
    if start is None:
        return known
    means = np.asarray(start.means)
    std = np.sqrt(means.var(axis=0) + np.asarray(start.stds)[0] ** 2)
    return score.analytic_start(known, sde, means.mean(axis=0), std)


def measure(name: str, process: str, budget: int, start: bool, refine: int) -> list[dict[str, Any]]:
    """Rows of a tuned grid, without and with learned weights."""
    problem, sde = problem_of(name), PROCESSES[process]
    mixture, other = (exact.ring() if name == "ring" else mixture64()), to_tune_on(name)
    size = mixture.means.shape[1]
    tune = functools.partial(
        samplers.tune_grid, jax.random.key(1000), score_of(other, sde, other if start else None), sde,
        (2000 if size == 2 else 256, size), steps=budget - 1 + start, sampler="unipc", options=OPTIONS,
        denoise="tweedie", refine=refine,
    )  # fmt: skip
    grid = tune()
    score_fn, rows = score_of(mixture, sde, other if start else None), []
    for learned, found in ((False, grid), (True, tune(times=grid.times, weights=True))):
        c = samplers.exponential_coefficients(sde, found.times, method="unipc", weights=found.weights, **OPTIONS)

        def draw(key, found=found, c=c):
            return samplers.unipc(
                key, score_fn, sde, problem.shape, times=found.times, coefficients=c, denoise="tweedie"
            )[0]

        draw = jax.jit(draw)
        errors = [problem.error(np.asarray(draw(jax.random.key(seed)))) for seed in range(1, SEEDS + 1)]
        rows.append({
            "problem": name, "process": process, "nfe": budget, "start": start, "weights": learned,
            "teacher": found.error, "plain": min(found.plain.values()),
            "floors": [round(float(error / problem.floor[0]), 4) for error in errors],
            "levels": [round(float(level), 4) for level in host_noise_level(sde, found.times)],
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines."""
    budgets = sorted({row["nfe"] for row in rows})
    kinds = [(weights, start) for weights in (False, True) for start in (False, True)]
    words = [("weights" if weights else "grid") + " + start" * start for weights, start in kinds]
    heads = [f"{budget} NFE: {word}" for budget in budgets for word in words]
    lines = ["| problem | process | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(heads)]
    found = {(r["problem"], r["process"], r["nfe"], r["weights"], r["start"]): np.asarray(r["floors"]) for r in rows}
    for problem, process in dict.fromkeys((row["problem"], row["process"]) for row in rows):
        cells = [found.get((problem, process, budget, *kind)) for budget in budgets for kind in kinds]
        words = ["" if v is None else f"{v.mean():.2f} ± {v.std(ddof=1) / len(v) ** 0.5:.2f}" for v in cells]
        lines.append(f"| {problem} | {process} | " + " | ".join(words) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=["ring", "mixture64"])
    parser.add_argument("--processes", nargs="*", default=["vp", "ve", "cld", "psld", "third_order"])
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--refine", type=int, default=40, help="iterations in which the levels are moved")
    parser.add_argument("--out", type=Path, default=HERE / "tuned_grids.json")
    parser.add_argument("--report", action="store_true", help="only the table")
    flags = parser.parse_args()
    rows = read(flags.out)
    done = {(row["problem"], row["process"], row["nfe"], row["start"]) for row in rows}
    points = [
        (name, process, budget, start)
        for budget in flags.budgets for name in flags.problems for process in flags.processes for start in (True, False)
    ]  # fmt: skip
    for point in points:
        if flags.report or point in done:
            continue
        rows += measure(*point, flags.refine)
        write(flags.out, rows)
        print(*point, *(f"{np.mean(row['floors']):.3f}" for row in rows[-2:]), "floors", flush=True)
    order = {name: i for i, name in enumerate([*PROBLEMS, *PROCESSES])}
    rows.sort(key=lambda row: (order[row["problem"]], order[row["process"]]))
    lines = ["# UniPC on tuned grids, in floors", "", *table(rows), ""]
    flags.out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
