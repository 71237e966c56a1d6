"""Where the recorded outputs of the official programs lie, and which cases are there.

Nothing about the cases is written into the tests: any folder of the same form works. Without the folder every such
test skips, with the reason.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(os.environ.get("SGMJAX_REFERENCE") or ROOT.parent / "shared" / "reference").resolve()
DATA = Path(os.environ.get("SGMJAX_DATA") or ROOT.parent / "shared" / "data").resolve()

NO_REFERENCE = f"no recorded reference outputs at {REFERENCE} (set SGMJAX_REFERENCE)"
NO_DATA = f"no prepared image sets at {DATA} (set SGMJAX_DATA)"


def files(pattern: str) -> list[Any]:
    """Files of the reference folder matching a glob, as parameters of a test named by their stem.

    Use as `@pytest.mark.parametrize("path", refdata.files("nets/psld_*.json"))`. Where nothing matches there is one
    skipped parameter, so that the gap shows in the report.
    """
    found = sorted(REFERENCE.glob(pattern)) if REFERENCE.is_dir() else []
    if not found:
        reason = f"nothing matches {pattern} in {REFERENCE}" if REFERENCE.is_dir() else NO_REFERENCE
        return [pytest.param(None, id="none", marks=[pytest.mark.reference, pytest.mark.skip(reason=reason)])]
    return [pytest.param(path, id=path.stem, marks=pytest.mark.reference) for path in found]


def beside(path: Path, *endings: str) -> Path:
    """The file of the same stem with one of some endings; skips the test without one."""
    for ending in endings:
        if (found := path.with_name(path.stem + ending)).is_file():
            return found
    pytest.skip(f"no {path.stem}{' or '.join(endings)} beside {path}")


class Recorded(dict[str, Any]):
    """What a file of the reference folder holds. A test that asks for what was not recorded skips, with the reason."""

    def __init__(self, items: Any = (), name: str = "the reference folder") -> None:
        super().__init__(items)
        self.name = name

    def __missing__(self, key: str) -> Any:
        pytest.skip(f"no {key!r} in {self.name}, of {REFERENCE}" if REFERENCE.is_dir() else NO_REFERENCE)


def load_json(name: str) -> Recorded:
    """A .json of the reference folder, its dicts `Recorded`; empty when it is absent."""
    path = REFERENCE / name
    if not path.is_file():
        return Recorded(name=name)
    return json.loads(path.read_text(), object_hook=lambda found: Recorded(found, name))


def load_npz(name: str | Path) -> Recorded:
    """All arrays of an .npz of the reference folder; empty when it is absent."""
    path = REFERENCE / name
    if not path.is_file():
        return Recorded(name=str(name))
    with np.load(path) as archive:
        return Recorded(archive, str(name))


def cases(
    recorded: Recorded, pattern: str = "(.+)", *, at_once: Callable[..., bool] = lambda *groups: True
) -> list[Any]:
    """The groups of a pattern (the string itself where it has one), for every key that it matches wholly.

    Use as `@pytest.mark.parametrize("name, mode", refdata.cases(ARRAYS, r"(\\w+)/(f64|official)/x"))`. Where nothing
    matches there is one skipped parameter, as of `files`. Cases that are not to run `at_once` are slow.
    """
    compiled = re.compile(pattern)
    found = sorted({match.groups() for key in recorded if (match := compiled.fullmatch(key))})
    if found:
        slow = {groups: [] if at_once(*groups) else [pytest.mark.slow] for groups in found}
        return [pytest.param(*groups, marks=[pytest.mark.reference, *slow[groups]]) for groups in found]
    reason = f"nothing in {recorded.name} of {REFERENCE} matches {pattern}" if REFERENCE.is_dir() else NO_REFERENCE
    return [pytest.param(*(None,) * compiled.groups, marks=[pytest.mark.reference, pytest.mark.skip(reason=reason)])]


def same_count(ours: Any, recorded: Any, share: float = 0.2) -> bool:
    """Whether two adaptive solvers of the same pair took about as many evaluations, at the same tolerance.

    Their control of the step differs, and how they choose the first: by a fifth of long solves, and of short ones by
    two steps, of six evaluations, and two at the start (measured on VP, sub-VP and VE of many parameters: up to 13).
    """
    return abs(int(ours) - int(recorded)) < max(share * int(recorded), 15)
