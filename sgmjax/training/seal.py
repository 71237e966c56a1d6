"""What a checkpoint's files must be, by which a damaged one is told from a good one before it is read.

Beside the files of a checkpoint lies `sums.json` with the size and checksum of each, written when all are on disk.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from sgmjax._inputs import one_line, replacing

SUMS = "sums.json"


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint has its checksums; one that was killed at the moment after it was written has none."""
    return (folder / SUMS).exists()


def seal(folder: Path) -> None:
    """Writes the sizes and checksums of a finished checkpoint."""
    if not folder.is_dir():  # deleted meanwhile, or on a remote file system
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    sums = {str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)] for path in files}
    with replacing(folder / SUMS) as partial:
        partial.write_text(json.dumps(sums))


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None; one that was never sealed passes."""
    try:
        sums = json.loads((folder / SUMS).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{SUMS} is cut short"
    except (OSError, RecursionError) as error:
        return f"{SUMS} cannot be read: {one_line(error, 120)}"
    if not _is_form(sums):
        return f"{SUMS} holds something else than sizes and checksums"
    try:
        for name, (size, checksum) in sums.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} of {size} bytes"
            if _checksum(path) != checksum:
                return f"{name} has changed"
    except (OSError, ValueError) as error:
        return f"a file cannot be read: {one_line(error, 120)}"
    return None


def _is_form(sums: object) -> bool:
    return (
        isinstance(sums, dict)
        and len(sums) > 0
        and all(isinstance(v, list) and len(v) == 2 and all(isinstance(n, int) for n in v) for v in sums.values())
    )


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            total = zlib.crc32(block, total)
    return total
