"""Sampling given a measurement: methods, processes and evaluations, where the posterior is known.

    python benchmarks/posterior.py                 # about an hour on two cores
    python benchmarks/posterior.py --problems ring --processes vp psld --budgets 20
    python benchmarks/posterior.py --report        # only the tables

The problems, each with four measurements of draws from the data:
    normal5     normal data of five correlated numbers, three linear combinations known
    ring        eight Gaussians of std 0.17 on a circle in 2-D, the first coordinate known
    mixture16   sixteen Gaussians of std 0.3 in 16-D, four numbers known

with noise of 0.1 (normal5: 0.3). The error is the sliced 2-Wasserstein distance of 4,000 samples to true draws of the
posterior, in floors: that of two sets of true draws; mean over the measurements and its standard error. Scores are
exact, so that only the method and the sampler are to blame. Samples are drawn by UniPC of order 3 on the grid "auto",
the twisted particles by their own chain; "replacement" is inpainting as published for these models, with what was
measured in place of what is known ("x8": RePaint's resampling, which takes each stretch eight times: the evaluations
are those of all). The scale of DPS is the best of those tried with other measurements.

Writes `posterior.json`, a row a line, and `posterior.md`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rows import read, write

from sgmjax import exact, metrics, samplers, sdes
from sgmjax.samplers import measurements as operators

HERE = Path(__file__).resolve().parent
BUDGETS = (10, 20, 50, 200)
MEASUREMENTS = 4
NUM = 4000
KEY = jax.random.key(5)
PROCESSES: dict[str, sdes.SDE] = {
    "vp": sdes.vp(),
    "ve": sdes.edm(sigma_max=80.0),
    "cld": sdes.cld(),
    "psld": sdes.psld(),
    "third_order": sdes.third_order(),
}
METHODS: dict[str, dict[str, Any]] = {
    "mmps": {"iterations": 4},
    "tmpd": {},
    "pigdm": {"iterations": 4},
    "c_pigdm": {},
    "dps": {},
    "replacement": {},
    "replacement x8": {"repeats": 8, "jump": 10},
    "twisted": {"method": "mmps", "options": {"iterations": 4}},
}
SCALES = (0.1, 0.3, 1.0, 3.0)  # of dps


class Problem(NamedTuple):
    """Normal data, or a mixture of one deviation, and a linear measurement.

    Attributes:
        means, cov: of the components, (m, d) and (d, d), of equal weight.
        A, noise_std: the measurement.
    """

    means: np.ndarray
    cov: np.ndarray
    A: np.ndarray
    noise_std: float

    def draw(self, seed: int) -> np.ndarray:
        """A measurement, (measured,)."""
        draws = np.random.default_rng([7, seed])
        x = self.means[draws.integers(len(self.means))] + np.linalg.cholesky(self.cov) @ draws.normal(size=self.size)
        y = self.A @ x + self.noise_std * draws.normal(size=len(self.A))
        return y.astype(np.float32)

    @property
    def size(self) -> int:
        return self.means.shape[1]

    def posterior(self, y: np.ndarray, num: int, seed: int) -> np.ndarray:
        """True draws given y, (num, d)."""
        inner = self.A @ self.cov @ self.A.T + self.noise_std**2 * np.eye(len(self.A))
        gain = self.cov @ self.A.T @ np.linalg.inv(inner)
        off = y - self.means @ self.A.T
        means, cov = self.means + off @ gain.T, self.cov - gain @ self.A @ self.cov
        logs = -0.5 * np.sum(off * np.linalg.solve(inner, off.T).T, axis=1)
        weights = np.exp(logs - logs.max())
        draws = np.random.default_rng([11, seed])
        which = draws.choice(len(means), num, p=weights / weights.sum())
        return means[which] + draws.normal(size=(num, self.size)) @ np.linalg.cholesky(cov).T

    def score_fn(self, sde: sdes.SDE) -> Any:
        """The exact score; the batch shares its time."""
        k, d = sde.k, self.size
        means, cov = (jnp.asarray(v, jnp.float32) for v in (self.means, self.cov))
        dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

        def score(z, t):
            kernel = sde.transition(t[:1], "hsm")
            m, noise = kernel.mean[0, :, 0], kernel.covariance[0]
            whole = jnp.einsum("i,j,ab->iajb", m, m, cov) + jnp.einsum("ij,ab->iajb", noise, jnp.eye(d))
            precision = jnp.linalg.inv(whole.reshape(k * d, k * d))
            centres = (m[None, :, None] * means[:, None]).reshape(len(means), k * d)
            flat = z.reshape(len(z), k * d)
            pulled = dot(centres, precision)
            logits = dot(flat, pulled.T) - 0.5 * jnp.sum(pulled * centres, axis=1)[None]
            nearest = dot(jax.nn.softmax(logits, axis=1), pulled)
            return sde.expand(sde.restrict((nearest - dot(flat, precision)).reshape(z.shape)))

        return score


def normal5() -> Problem:
    draws = np.random.default_rng(0)
    root = draws.normal(size=(5, 5))
    return Problem(draws.normal(size=(1, 5)), root @ root.T / 5 + 0.1 * np.eye(5), draws.normal(size=(3, 5)), 0.3)


def ring() -> Problem:
    return Problem(np.asarray(exact.ring().means), 0.17**2 * np.eye(2), np.eye(2)[:1], 0.1)


def mixture16() -> Problem:
    means = np.random.default_rng(16).normal(size=(16, 16))
    return Problem(means, 0.09 * np.eye(16), np.eye(16)[:4], 0.1)


PROBLEMS = {"normal5": normal5, "ring": ring, "mixture16": mixture16}


def sampler(problem: Problem, sde: sdes.SDE, method: str, nfe: int, options: dict[str, Any]) -> Any:
    """draw(key, y) -> (samples, evaluations), compiled once for all measurements."""
    score_fn, shape = problem.score_fn(sde), (NUM, problem.size)
    std = float(np.sqrt(np.mean(problem.means.var(axis=0) + np.diag(problem.cov))))
    if method == "twisted":
        times = samplers.time_grid("logsnr", nfe, t_min=1e-3, sde=sde)
    else:
        times = samplers.time_grid("auto", nfe // options.get("repeats", 1), sde=sde)
    plain = functools.partial(samplers.unipc, sde=sde, shape=shape, times=times, order=3, denoise="tweedie")

    @jax.jit
    def draw(key, y):
        known = samplers.measurement(operators.matrix(problem.A), y, problem.noise_std)
        if method in ("twisted", "c_pigdm"):
            whole = getattr(samplers, method)
            x, info = whole(key, score_fn, sde, shape, times=times, measurement=known, data_std=std, **options)
        elif method.startswith("replacement"):
            measured = jnp.arange(problem.size) < len(problem.A)
            x0 = jnp.zeros(problem.size).at[: len(problem.A)].set(y)
            constraint = samplers.inpaint(sde, x0, measured.astype(jnp.float32), **options)
            x, info = plain(key, score_fn, constraint=constraint)
        else:
            more = options | ({"data_std": std} if method == "pigdm" else {})
            x, info = plain(key, samplers.posterior_score(score_fn, sde, known, method=method, **more))
        return x, info.nfe

    return draw


def error(problem: Problem, x: np.ndarray, y: np.ndarray, seed: int) -> float:
    """In floors."""
    true = [problem.posterior(y, NUM, 10 * seed + i).astype(np.float32) for i in range(3)]
    floor = np.mean([metrics.sliced_wasserstein(a, b) for a, b in itertools.combinations(true, 2)])
    if not np.isfinite(x).all():
        return float("inf")
    return float(np.mean([metrics.sliced_wasserstein(x, one) for one in true]) / floor)


def measure(name: str, process: str, method: str, nfe: int) -> dict[str, Any] | None:
    """A row, or None where the method cannot be applied."""
    problem, sde, options = PROBLEMS[name](), PROCESSES[process], dict(METHODS[method])
    if method.startswith("replacement") and name == "normal5":
        return None  # which has no known numbers
    if method == "c_pigdm" and name == "normal5":
        return None  # whose rows are not orthogonal
    if options.get("repeats", 1) > nfe // 4:
        return None
    if method == "dps":
        other = problem.draw(100)
        tried = {}
        for scale in SCALES:
            x, _ = sampler(problem, sde, method, nfe, {"scale": scale})(KEY, other)
            tried[scale] = error(problem, np.asarray(x), other, 100)
        options["scale"] = min(tried, key=tried.__getitem__)
    draw, errors, cost = sampler(problem, sde, method, nfe, options), [], 0
    for seed in range(MEASUREMENTS):
        y = problem.draw(seed)
        x, spent = draw(KEY, y)
        cost = int(spent)
        errors.append(round(error(problem, np.asarray(x), y, seed), 3))
    return {"problem": name, "process": process, "method": method, "nfe": nfe, "spent": cost, "options": options,
            "floors": errors}  # fmt: skip


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: for each problem a line for a method and a process."""
    lines = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        here = [row for row in rows if row["problem"] == name]
        budgets = sorted({row["nfe"] for row in here})
        lines += [f"## {name}", "", "| method | process | " + " | ".join(f"{n} NFE" for n in budgets) + " |"]
        lines.append("|---|---|" + "--:|" * len(budgets))
        for method, process in itertools.product(METHODS, PROCESSES):
            cells = []
            for n in budgets:
                same = [row for row in here if (row["method"], row["process"], row["nfe"]) == (method, process, n)]
                cells.append(_cell(same[0]["floors"]) if same else "")
            if any(cells):
                lines.append(f"| {method} | {process} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(values: list[float]) -> str:
    if not np.isfinite(values).all() or np.mean(values) > 1e3:
        return "diverges"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {error:.2f}" if np.mean(values) < 10 else f"{np.mean(values):.0f} ± {error:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--processes", nargs="*", default=list(PROCESSES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--budgets", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=HERE / "posterior.json")
    parser.add_argument("--report", action="store_true", help="only the tables")
    flags = parser.parse_args()
    rows = read(flags.out)
    done = {(row["problem"], row["process"], row["method"], row["nfe"]) for row in rows}
    for point in itertools.product(flags.problems, flags.processes, flags.methods, flags.budgets):
        if flags.report or point in done:
            continue
        row = measure(*point)
        if row is not None:
            rows.append(row)
            write(flags.out, rows)
            print(*point, _cell(row["floors"]), flush=True)
    lines = ["# Sampling given a measurement, in floors", "", *tables(rows)]
    flags.out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
