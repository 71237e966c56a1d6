"""What an evaluation leaves: a JSON and a Markdown file with all that is needed to repeat it, and a picture."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from sgmjax._files import AnyPath, replacing
from sgmjax.evaluation import pictures
from sgmjax.evaluation.metrics import finite


def write_report(
    folder: AnyPath,
    name: str,
    measured: Mapping[str, Any],
    *,
    about: Mapping[str, Any],
    command: Sequence[str] = (),
    picture: Any = None,
) -> AnyPath:
    """Writes `<name>.json`, `<name>.md` and, with a picture, `<name>.png`; by process 0. Returns the Markdown file.

    Args:
        folder: where.
        name: of the files.
        measured: what each metric found, a `Measured` by the metric's name.
        about: JSON-able: the run, its step and parameters, its config, ...
        command: the words of the command.
        picture: uint8 (H, W, 3): some of the samples.
    """
    page = folder / f"{name}.md"
    if jax.process_index() != 0:
        return page
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "software": {name: _version(name) for name in ("sgmjax", "jax", "jaxlib", "flax", "numpy")},
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    numbers = {key: value for found in measured.values() for key, value in found.numbers.items()}
    record = {"numbers": numbers, "metrics": {key: found.record for key, found in measured.items()}}
    whole = finite({**about, "made": made, **record})
    with replacing(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        pictures.save_picture(folder / f"{name}.png", picture)
    with replacing(page) as partial:
        partial.write_text(_page(name, measured, about, made, picture is not None), encoding="utf-8")
    return page


def _page(name: str, measured: Mapping[str, Any], about: Mapping[str, Any], made: Any, pictured: bool) -> str:
    rows = ["| number | samples | real against real |", "|---|---|---|"]
    for found in measured.values():
        for key, value in found.numbers.items():
            if not key.endswith("_floor"):
                floor = found.numbers.get(f"{key}_floor")
                rows.append(f"| {key} | {value:.5g} | {'' if floor is None else f'{floor:.5g}'} |")
    lines = [f"# {about['workdir']}, step {about['step']}", "", *rows, ""]
    lines += [f"- {line}" for found in measured.values() for line in found.lines]
    lines += ["", "| of | |", "|---|---|"]
    plain = {key: value for key, value in about.items() if not isinstance(value, dict)}
    plain |= {key: value for key, value in about.get("sampling", {}).items()}
    plain |= {"devices": made["devices"], "software": ", ".join(f"{k} {v}" for k, v in made["software"].items())}
    lines += [f"| {key} | {value} |" for key, value in plain.items()]
    if pictured:
        lines += ["", f"![samples]({name}.png)"]
    command = " ".join(made["command"])
    return "\n".join([*lines, "", f"    {command}" if command else "", ""])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
