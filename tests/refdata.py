"""Where the recorded outputs of the official programs lie, and which cases are there.

Nothing about the cases is written into the tests: any folder of the same form works. Without the folder every such
test skips, with the reason.
"""

from __future__ import annotations

import json
import os
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


def load_json(name: str) -> Any:
    """A .json of the reference folder; None when it is absent, so that it may be called while tests are collected."""
    path = REFERENCE / name
    return json.loads(path.read_text()) if path.is_file() else None


def load_npz(name: str) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz of the reference folder; None when it is absent."""
    path = REFERENCE / name
    if not path.is_file():
        return None
    with np.load(path) as archive:
        return dict(archive)
