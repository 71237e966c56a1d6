"""Flags of every command on a run: which of its parameters, which process, and how samples are drawn."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sgmjax import _cli
from sgmjax._files import AnyPath, file_name, run_name

_OF_NO_RESULT = ("workdir", "out", "help")
NAMES = ("sampler", "steps", "grid", "denoise", "rtol", "atol", "batch_size", "num")
PLAN = ("sampler", "steps", "grid", "restarts", "denoise", "options")  # how samples are drawn, of the flags of `define`


def define(values: Any, *, grid: bool = True) -> None:
    """Defines --process, --sampler, --steps, --grid, --restarts, --options, --denoise, --checkpoint and --params.

    --rtol and --atol are each command's own. Without --grid and --restarts if not `grid`.
    """
    from absl import flags

    text = "the process to sample with, in place of the run's: psld, cld, vp, ...; its settings as --process.gamma=0.02"
    flags.DEFINE_string("process", None, text, flag_values=values)

    flags.DEFINE_string("sampler", None, "name of the sampler", flag_values=values)
    flags.DEFINE_integer("steps", None, "network evaluations a sample, the denoising one included", flag_values=values)
    if grid:
        flags.DEFINE_string("grid", None, "time grid: auto, uniform, quadratic, rho, ..., tuned", flag_values=values)
        text = "levels, repeats, low and high of each restart, as 3,2,0.06,0.3 or '3,1,19,40;3,2,0.06,0.3'"
        flags.DEFINE_string("restarts", None, text, flag_values=values)
    flags.DEFINE_list("options", None, "the sampler's own settings, as snr=0.2,corrector=none", flag_values=values)
    flags.DEFINE_string("denoise", None, "last step: True, False, tweedie, ode, x_mean", flag_values=values)
    kinds = ["newest", "best"]
    flags.DEFINE_enum("checkpoint", "newest", kinds, "best: that of train.keep_best", flag_values=values)
    kinds = ["ema", "raw"]
    flags.DEFINE_enum("params", "ema", kinds, "averaged parameters, or those being trained", flag_values=values)


def parse(values: Any, argv: Sequence[str], ranges: Mapping[str, Any], text: str | None) -> None:
    """Defines --help and parses; shows `text` and the flags if it is asked for.

    Raises:
        UsageError: naming the flag and the fix; no run is named.
    """
    from absl import flags

    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    _cli.parse_flags(values, argv, ranges)
    if values.help:
        _cli.show_help(text, values)
    if not values.workdir:
        raise _cli.UsageError("--workdir: which run? give its folder, as --workdir=runs/psld_digits")


def refuse_classifier(task: Any, path: Any) -> None:
    """Raise UsageError for the task of a classifier's run. path: of the run."""
    from sgmjax.tasks import ClassifierTask, FeatureTask

    if isinstance(task, ClassifierTask | FeatureTask):
        raise _cli.UsageError(f"--workdir: {run_name(path)} is a classifier's run; give that of a score network")


def split_process(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes `--process.gamma=0.02` out: the other words, and the settings by name."""
    rest, settings = _cli.split_overrides(argv, "process")
    return rest, dict(settings)


def process(values: Any, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section `sde` that --process and its settings make; None: the run's.

    Raises:
        UsageError: settings of no process, or its name as one.
    """
    if values.process is None:
        for name in settings:
            raise _cli.UsageError(f"--process.{name}: of which process? name it, as --process=psld")
        return None
    if "name" in settings:
        raise _cli.UsageError(f"--process.name: the name is --process={values.process} itself; leave it out")
    return {"name": values.process, **settings}


def which(values: Any) -> dict[str, Any]:
    """Which parameters of the run, for `load_run`.

    Raises:
        UsageError: of the best ones only the average is kept.
    """
    if values.checkpoint == "best" and values.params == "raw":
        raise _cli.UsageError("--params=raw: of the best parameters only the average is kept; leave it out")
    return {"averaged": values.params == "ema", "best": values.checkpoint == "best"}


def label(values: Any) -> str:
    """What names of files have of it."""
    return "_best" * (values.checkpoint == "best") + "_raw" * (values.params == "raw")


def plan_label(values: Any, names: Sequence[str]) -> str:
    """What names of files have of these flags where they are given, `_order3_tweedie`: others have other files."""
    parts: list[str] = []
    for name in names:
        value = getattr(values, name)
        if isinstance(value, list):  # --options, --method_options
            parts += [word.replace("=", "") for word in value]
        elif name == "restarts" and value is not None:
            parts.append("restarts" + re.sub("[,;]", "-", value))
        elif name == "denoise" and value is not None:
            parts.append(str({"true": "denoised", "false": "not_denoised"}.get(value.lower(), value)))
        elif value is not None:
            parts.append(f"{name}{value:g}" if isinstance(value, float) else str(value))
    return "".join(f"_{file_name([part])}" for part in parts if part)


def told(values: Any, process: Mapping[str, Any] | None, *but: str) -> dict[str, Any]:
    """The settings that a result is of: the flags that are not their defaults, but for some, and the process."""
    flags = {name: values[name].value for name in values if values[name].value != values[name].default}
    return {name: value for name, value in flags.items() if name not in (*_OF_NO_RESULT, *but)} | {
        "process": None if process is None else dict(process)
    }


def untaken(path: AnyPath, about: Mapping[str, Any], there: Mapping[str, Any] | None) -> AnyPath:
    """Where a result goes: to `path`, or beside it where a result of other settings lies, which stays.

    Args:
        path: of the file that it has by its name.
        about: what the result is of; JSON-able.
        there: what the file that is there is of; None: there is none, or none that says.
    """
    text = json.dumps(about, sort_keys=True)
    if there is None or json.dumps(there, sort_keys=True) == text:
        return path
    return path.with_name(f"{path.stem}_{hashlib.sha256(text.encode()).hexdigest()[:8]}{path.suffix}")


def given(values: Any) -> dict[str, Any]:
    """What the flags say of the section `sampling`, for `load_run(sampling=...)`.

    Raises:
        UsageError: options that are not name=value.
    """
    found = {name: value for name in NAMES if (value := getattr(values, name, None)) is not None}
    if "denoise" in found:
        found["denoise"] = _cli.literal(found["denoise"])
    if getattr(values, "restarts", None) is not None:
        found["restarts"] = read_restarts(values.restarts)
    if values.options:
        found["options"] = read_options(values.options)
    return found


def read_restarts(text: str) -> tuple[tuple[Any, ...], ...]:
    """What --restarts says: "3,1,19,40;3,2,0.06,0.3" -> ((3, 1, 19, 40), (3, 2, 0.06, 0.3)); "" is none.

    Raises:
        UsageError: what are no numbers.
    """
    found = tuple(tuple(map(_cli.literal, one.split(","))) for one in text.split(";") if one.strip())
    for one in found:
        if len(one) != 4 or not all(isinstance(number, int | float) for number in one):
            raise _cli.UsageError(
                f"--restarts: {text!r} is none; write levels,repeats,low,high, as 3,2,0.06,0.3, and ; between several"
            )
    return found


def read_options(words: list[str], flag: str = "--options") -> dict[str, Any]:
    """What --options says: ["snr=0.2"] -> {"snr": 0.2}.

    Raises:
        UsageError: a word without a name or a value.
    """
    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise _cli.UsageError(f"{flag}: {word!r} is no setting; write name=value, as snr=0.2")
        options[name.strip()] = _cli.literal(text)
    return options
