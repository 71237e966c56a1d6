"""The tables and pictures of docs/results.md, of the rows and runs that benchmarks/study.py keeps.

python -m benchmarks.study --report                           # the tables again
python -m benchmarks.study --pictures                         # and the pictures
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
KEPT = HERE / "study"
PAGE = HERE.parent / "docs" / "results.md"
IMAGES = PAGE.parent / "images"
NUMBERS = ("fd", "kid", "pr_precision", "pr_recall", "balance", "frechet", "mind", "neighbours_median_ratio")
EARLIER = "†"
SYSTEMS = {
    "ncsnv2": "NCSNv2",
    "ve": "VE",
    "vp": "VP",
    "subvp": "sub-VP",
    "cld": "CLD",
    "cld_dsm": "CLD by DSM",
    "cld_eps": "CLD, no mixed score",
    "psld": "PSLD",
    "psld_classes": "PSLD, classes given",
    "third_order": "third order",
    "edm": "denoiser (EDM)",
    "lsgm": "LSGM",
    "lsgm_psld": "LSGM, PSLD prior",
}
SAMPLERS = {  # in the order of the lines
    "unipc": "UniPC",
    "annealed_langevin": "annealed Langevin",
    "pc": "predictor-corrector",
    "sscs": "SSCS",
    "edm": "EDM",
    "em": "EM",
    "unipc_as_psld": "UniPC, as PSLD",
    "ode": "ODE",
}
HEADS = ("FD", "KID x 1000", "precision", "recall", "balance", "Frechet, pixels", "MIND, pixels", "nearest")


def table(rows: list[dict[str, Any]], data: str) -> list[str]:
    """Markdown: a line for each system and way, means over seeds and draws with the largest deviation from them."""
    rows = [row for row in rows if row["data"] == data]
    drawn = [row for row in rows if row["way"] != "likelihood"]
    if not drawn:
        return []
    newest = drawn[-1].get("features")
    lines = ["| system | sampler | NFE | s / 1,000 | " + " | ".join(HEADS) + " |"]
    lines.append("|---|---|--:|--:|" + "--:|" * len(HEADS))
    compared = [row for row in drawn if row.get("features") == newest]
    real = [_cell(name, [row.get(f"{name}_floor") for row in compared]) for name in NUMBERS]
    lines.append("| *held-out images* | | | | " + " | ".join(real) + " |")
    for system in SYSTEMS:
        there = {row["way"] for row in drawn if row["system"] == system}
        for way in sorted(there, key=_order):
            every = [row for row in drawn if row["system"] == system and row["way"] == way]
            same = [row for row in every if row.get("features") == newest] or every
            cells = [_cell(name, [row.get(name) for row in same]) for name in NUMBERS]
            nfe = "-".join(str(n) for n in sorted({row["nfe"] for row in same}))
            seconds = f"{np.mean([row['seconds'] for row in same]):.0f}"
            mark = "" if all(row.get("features") == newest for row in same) else EARLIER
            names = [SYSTEMS[system] + mark, SAMPLERS[way.partition(",")[0]]]
            lines.append("| " + " | ".join([*names, nfe, seconds, *cells]) + " |")
    if any(EARLIER in line for line in lines):
        lines += [
            "",
            f"{EARLIER} in the features of another network than the rest: only the numbers in pixels compare.",
        ]
    likelihoods = [row for row in rows if row["way"] == "likelihood"]
    if likelihoods:
        lines += ["", "| system | bits/dim (LSGM: NELBO) | by the variational bound | NFE |", "|---|--:|--:|--:|"]
        for row in sorted(likelihoods, key=lambda row: (list(SYSTEMS).index(row["system"]), row["seed"])):
            name = SYSTEMS[row["system"]] + (f", training {row['seed'] + 1}" if row["seed"] else "")
            bound = row.get("variational_bound", row.get("weighted", ""))
            lines.append(f"| {name} | {row['ode']:.3f} ± {row['error']:.3f} | {bound} | {row['nfe']:.0f} |")
    return [*lines, ""]


def tables(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Those of all data that have rows, in the order of these."""
    return {data: table(rows, data) for data in dict.fromkeys(row["data"] for row in rows)}


def _order(way: str) -> tuple[int, int]:
    sampler, _, evaluations = way.partition(",")
    return list(SAMPLERS).index(sampler), int(evaluations or 0)


def _cell(name: str, values: list[float | None]) -> str:
    known = np.asarray([value for value in values if value is not None]) * (1000 if name == "kid" else 1)
    if not len(known):
        return ""
    spread = np.max(np.abs(known - known.mean()))
    return f"{known.mean():.3g}" + (f" ± {spread:.1g}" if spread > 1e-9 * np.abs(known.mean()) else "")


def with_tables(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with its tables, which stand between two comments each, as the rows have them."""
    for data, lines in tables(rows).items():
        first, last = f"<!-- table of {data} -->\n", "<!-- end of the table -->"
        before, found, rest = page.partition(first)
        if found:
            page = before + first + "\n".join(lines) + "\n" + last + rest.partition(last)[2]
    return page


def show(rows: list[dict[str, Any]], out: Path) -> str:
    """Writes the tables beside the rows, and into the page if the rows are those that are kept."""
    parts = [line for data, found in tables(rows).items() if found for line in (f"## {data}", "", *found)]
    text = "\n".join(["# Every system at one budget", "", *parts])
    out.with_suffix(".md").write_text(text)
    if out.resolve() == HERE / "study.json":
        PAGE.write_text(with_tables(PAGE.read_text(), rows))
    return text


# ------------------------------------------------------------------------------------------------------------- pictures
TEN = ("vp", "edm", "cld", "psld")
BESIDE = {  # what stands beside each other: kept grids, of which the left half is enough
    "mnist": [f"mnist/{system}_0/unipc_10.png" for system in TEN],
    "mnist_neighbours": [f"mnist/{system}_0/neighbours.png" for system in TEN],
    "ve_ncsnv2": ["mnist/ve_0/pc_200.png", "mnist/ncsnv2_0/annealed_langevin_200.png"],
    "lsgm": [f"mnist/{system}_0/unipc_10.png" for system in ("lsgm", "lsgm_psld")],
    "fashion": [f"fashion_mnist/{system}_0/unipc_50.png" for system in ("vp", "psld", "psld_classes")]
    + [f"fashion_mnist/{system}_0/neighbours.png" for system in ("vp", "psld")],
    "cifar": [f"cifar10/{name}.png" for name in ("psld_0/unipc_50", "vp_0/unipc_50", "psld_0/neighbours")],
}
LOSSES = {"mnist_losses": "mnist", "fashion_losses": "fashion_mnist", "cifar_losses": "cifar10"}


def draw_pictures() -> None:
    """All of them, as study_*.png among the images of the pages."""
    for name, grids in BESIDE.items():
        Image.fromarray(beside(grids)).save(IMAGES / f"study_{name}.png", optimize=True)
    for name, data in LOSSES.items():
        draw_losses(data, IMAGES / f"study_{name}.png")


def beside(grids: list[str], gap: int = 10) -> np.ndarray:
    """The left halves of kept grids, with white between them: [height, width], or [height, width, 3] of colors."""
    parts = [np.asarray(Image.open(KEPT / name)) for name in grids]
    halves = [part[:, : len(part) // 2 + 1] for part in parts]
    white = np.full_like(halves[0][:, :gap], 255)
    picture = np.concatenate([part for half in halves for part in (white, half)][1:], axis=1)
    return picture[..., 0] if (picture == picture[..., :1]).all() else picture


def draw_losses(data: str, out: Path) -> None:
    """The loss of each kept run over the images seen, of training and, as dots, of held-out images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    runs = {system: KEPT / data / f"{system}_0" for system in SYSTEMS}
    runs = {system: kept for system, kept in runs.items() if (kept / "metrics.jsonl").is_file()}
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    size = (2.8 * columns, 2.1 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.ravel()[len(runs) :]:
        axes.set_axis_off()
    for axes, (system, kept) in zip(grid.ravel(), runs.items(), strict=False):
        batch = json.loads((kept / "config.json").read_text())["config"]["train"]["batch_size"]
        lines = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
        for name, mark in (("loss", "-"), ("eval_loss", "o")):
            seen, losses = zip(
                *((line["step"] * batch / 1000, line[name]) for line in lines if name in line), strict=True
            )
            axes.plot(seen, losses, mark, ms=3, lw=0.8)
        axes.set(title=SYSTEMS[system], yscale="log")
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
    figure.supxlabel("thousand images seen")
    figure.supylabel("loss")
    figure.savefig(out, dpi=120)
