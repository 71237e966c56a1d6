"""Which plain grid for how many evaluations: where the first step should go to, and where the grid should end.

    python benchmarks/plain_grids.py --runs runs/edm_digits        # half an hour on two cores
    python benchmarks/plain_grids.py --report                      # only the table

Tuned grids of all processes look alike (`tuned_grids.json`): one step from the prior down to a noise level of the
data's own size, and from there equal steps in its logarithm. So `samplers.time_grid("auto")` is that, and here its two
numbers are found, for each number of variables and of evaluations: those that are best on average, over processes and
data, by what UniPC of order 3 then misses a teacher's samples by (`refinement.miss`, as in `tune_grid`). The data are
not those of other tables: a ring of seven Gaussians, sixteen other centres in 64 dimensions, and denoisers of runs that
are named.

Writes `plain_grids.json`, a row a line, and the table of the package, `sgmjax/samplers/auto_grid.json`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rows import read, write
from samplers import batch_score
from tuned_grids import OPTIONS, to_tune_on

from sgmjax import load_run, samplers, sdes
from sgmjax.samplers.grids import AUTO_GRID, host_noise_level, host_time_at, jump_levels
from sgmjax.samplers.refinement import Descent, Run
from sgmjax.samplers.tuning import follow

HERE = Path(__file__).resolve().parent
BUDGETS = (4, 5, 6, 8, 10, 14, 20, 50)  # evaluations, with that of the denoising step
HIGHS = (1.0, 1.5, 2.2, 3.3, 5.0, 7.5, 11.0, 16.0, 25.0)
ENDS = (0.005, 0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.22)
PROCESSES: dict[str, sdes.SDE] = {
    "vp": sdes.vp(),  # of one variable UniPC follows one flow, whatever the process
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
    "hold4": sdes.hold(order=4),
}


def problems(runs: list[str]) -> dict[str, Any]:
    """By name: (make, variables, shape) of a process, make(variables) its score function."""
    found: dict[str, Any] = {}
    for name, shape in (("ring", (500, 2)), ("mixture64", (64, 64))):
        found[name] = lambda sde, name=name, shape=shape: (
            (lambda _: batch_score(to_tune_on(name), sde)), (), shape
        )  # fmt: skip
    for path in runs:
        run = load_run(path)

        def network(sde, run=run):
            task = run.task.as_process(sde)
            return task.score_fn, run.variables, (16, *task.event_shape)

        found[Path(path).name] = network
    return found


def measure(make: Any, variables: Any, sde: sdes.SDE, shape: Any, budgets: list[int]) -> dict[int, list[list[float]]]:
    """What is missed, by the budget: a row for each of HIGHS, an entry for each of ENDS."""
    run = Run(make, variables, sde, "tweedie")
    teacher = follow(jax.random.key(0), run, sde, shape, t_min=1e-3, levels=60)
    of = functools.partial(samplers.exponential_coefficients, sde, method="unipc", **OPTIONS)
    descent = Descent(run, teacher.start, teacher.samples, sde, of)
    first = float(host_noise_level(sde, np.array([1.0]))[0])
    found: dict[int, list[list[float]]] = {}
    for budget in budgets:
        found[budget] = [[np.inf] * len(ENDS) for _ in HIGHS]
        for (i, high), (j, end) in itertools.product(enumerate(HIGHS), enumerate(ENDS)):
            levels = jump_levels(first, high, end, budget - 1)
            times = np.concatenate([[1.0], host_time_at(sde, levels[1:])])
            found[budget][i][j] = round(float(descent.error(times)), 5)
    return found


def chosen(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """{variables: {budget: [high, end, mean of what is missed, the same with the best pair of each]}}."""
    table: dict[str, dict[str, list[float]]] = {}
    for k in sorted({row["k"] for row in rows}):
        for budget in sorted({row["nfe"] for row in rows}):
            of = [np.asarray(row["missed"]) for row in rows if (row["k"], row["nfe"]) == (k, budget)]
            if not of:
                continue
            missed = np.mean(of, axis=0)
            i, j = np.unravel_index(np.argmin(missed), missed.shape)
            best = float(np.mean([each.min() for each in of]))
            row = [HIGHS[int(i)], ENDS[int(j)], round(float(missed[i, j]), 3), round(best, 3)]
            table.setdefault(str(k), {})[str(budget)] = row
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", default=[], help="runs of one denoiser")
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=HERE / "plain_grids.json")
    parser.add_argument("--table", type=Path, default=AUTO_GRID, help="the table that time_grid reads")
    parser.add_argument("--report", action="store_true", help="only the table")
    flags = parser.parse_args()
    rows = read(flags.out)
    every = problems(flags.runs)
    for problem, process in itertools.product(every, flags.processes):
        done = {row["nfe"] for row in rows if (row["problem"], row["process"]) == (problem, process)}
        budgets = [budget for budget in flags.budgets if budget not in done]
        if flags.report or not budgets:
            continue
        sde = PROCESSES[process]
        make, variables, shape = every[problem](sde)
        for budget, missed in measure(make, variables, sde, shape, budgets).items():
            rows.append({"problem": problem, "process": process, "k": sde.k, "nfe": budget, "missed": missed})
            print(problem, process, budget, f"{np.min(missed):.4f}", flush=True)
        write(flags.out, rows)
    table = chosen(rows)
    flags.table.write_text(json.dumps(table, indent=1) + "\n")
    print(
        "| variables | evaluations | first step to | end | misses | the best pair of each |",
        "|--:|--:|--:|--:|--:|",
        sep="\n",
    )
    for k, of in table.items():
        for budget, (high, end, missed, best) in of.items():
            print(f"| {k} | {budget} | {high:g} | {end:g} | {missed:.3f} | {best:.3f} |")


if __name__ == "__main__":
    main()
