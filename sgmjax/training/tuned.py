"""Time grids that were tuned to a run: one file each, `grids/<...>.json`, in its folder or beside its file.

A grid is of one process, sampler, its options, number of evaluations and last step, and is found by them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from sgmjax._files import AnyPath, file_name, process_label, replacing, short
from sgmjax._inputs import InputError, shown
from sgmjax.samplers.plan import Plan
from sgmjax.samplers.tuning import TunedGrid
from sgmjax.training import tensors


def identity(plan: Plan, process: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a grid is of. process: the section `sde` in place of the run's, or None."""
    return {
        "process": None if process is None else dict(process),
        "sampler": plan.sampler,
        "options": dict(plan.options),
        "steps": plan.steps,
        "denoise": plan.denoise,
    }


def write(
    path: str | os.PathLike, plan: Plan, process: Mapping[str, Any] | None, found: TunedGrid, **about: Any
) -> AnyPath:
    """Writes a grid, in place of one of the same; returns the file.

    Args:
        path: the run folder, or the run's file.
        plan, process: what the grid is of.
        found: the grid.
        about: what else the file shall say.
    """
    known = identity(plan, process)
    folder = _folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    same = [file for file, content in _contents(folder) if _identity_of(content) == known]
    options = [f"{name}{value}" for name, value in known["options"].items()]
    name = short(file_name(filter(None, [process_label(process), plan.sampler, str(plan.steps), *options])))
    file = same[0] if same else folder / f"{name}.json"
    number = 1
    while not same and file.exists():  # of another last step
        number += 1
        file = folder / f"{name}_{number}.json"
    weights = [] if found.weights is None else [float(w) for w in found.weights.ravel()]
    content = {**known, "times": [float(t) for t in found.times], "weights": weights}
    if found.mean is not None:
        content |= {"mean": [float(f"{v:.4g}") for v in found.mean.ravel()], "std": found.std}
    content |= {"error": found.error, "plain": found.plain, **about}
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file


def fill(path: str | os.PathLike, plan: Plan, process: Mapping[str, Any] | None) -> Plan:
    """The plan with the times that were tuned to it, and the weights and the analytic start if they were.

    Raises:
        InputError: there are none; it names those that there are, and the command that makes them.
    """
    if plan.restarts:
        raise InputError("grid 'tuned' of a run is of the way down alone; leave restarts out, or take grid 'rho'")
    known = identity(plan, process)
    there = [content for _, content in _contents(_folder(path))]
    for content in there:
        if _identity_of(content) == known:
            times, weights = tuple(content["times"]), tuple(content.get("weights", ()))
            start = {}
            if "mean" in content:
                start = {"data_mean": tuple(content["mean"]), "data_std": content["std"]}
            return dataclasses.replace(plan, times=times, weights=weights, t_min=times[-1], **start)
    words = [f"--workdir={shown(path)}", f"--sampler={plan.sampler}", f"--steps={plan.steps}"]
    others = "; ".join(_words(content) for content in there) or "none"
    raise InputError(
        f"grid 'tuned': there is none for {_words(known)} in {shown(_folder(path))} (there: {others}); make it by "
        f"python -m sgmjax.tune_grid {' '.join(words)} ..."
    )


def _words(content: Mapping[str, Any]) -> str:
    """unipc, 10 steps, options {'order': 3}, denoise True, process {'name': 'psld'}."""
    process = f", process {content['process']}" if content["process"] else ""
    options = f", options {content['options']}" if content["options"] else ""
    return f"{content['sampler']}, {content['steps']} steps{options}, denoise {content['denoise']}{process}"


def _folder(path: str | os.PathLike) -> AnyPath:
    return tensors.folder_of(path) / "grids"


def _identity_of(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content.get(name) for name in ("process", "sampler", "options", "steps", "denoise")}


def _contents(folder: AnyPath) -> list[tuple[AnyPath, dict[str, Any]]]:
    """All grids of a folder.

    Raises:
        InputError: a file that is none.
    """
    found = []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            content = json.loads(file.read_text())
            numbers = [*content["times"], *content.get("weights", ()), *content.get("mean", ())]
            numbers += [content["std"]] if "mean" in content else []
            if not (isinstance(content, dict) and all(isinstance(number, float) for number in numbers)):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{shown(file)} is no tuned grid: delete it, and run python -m sgmjax.tune_grid") from None
        found.append((file, content))
    return found
