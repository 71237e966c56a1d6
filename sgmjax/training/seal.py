"""What a checkpoint's files must be, by which a damaged one is told from a good one before it is read.

Beside the files of a checkpoint lies `sums.json` with the size and checksum of each, written when all are on disk. A
bucket takes checksums of its own and gives nothing else back: there only the sizes are.
"""

from __future__ import annotations

import json
import zlib

from sgmjax._files import AnyPath, is_remote, replacing, sizes
from sgmjax._inputs import one_line

SUMS = "sums.json"


def is_sealed(folder: AnyPath) -> bool:
    """Whether a checkpoint has its checksums; one that was killed at the moment after it was written has none."""
    return (folder / SUMS).exists()


def seal(folder: AnyPath) -> None:
    """Writes the sizes and checksums of a finished checkpoint."""
    if not folder.is_dir():  # deleted meanwhile
        return
    files = {name: size for name, size in sizes(folder).items() if name != SUMS}
    sums = {name: [size, _checksum(folder / name)] for name, size in files.items()}
    with replacing(folder / SUMS) as partial:
        partial.write_text(json.dumps(sums))


def damage(folder: AnyPath) -> str | None:
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
        there = sizes(folder)
        for name, (size, checksum) in sums.items():
            if name not in there:
                return f"{name} is missing"
            if there[name] != size:
                return f"{name} has {there[name]} of {size} bytes"
            if _checksum(folder / name) != checksum:
                return f"{name} has changed"
    except (OSError, ValueError) as error:
        return f"a file cannot be read: {one_line(error, 120)}"
    return None


def _is_form(sums: object) -> bool:
    return (
        isinstance(sums, dict)
        and len(sums) > 0
        and all(
            isinstance(v, list) and len(v) == 2 and isinstance(v[0], int) and isinstance(v[1], int | None)
            for v in sums.values()
        )
    )


def _checksum(path: AnyPath) -> int | None:
    if is_remote(path):
        return None
    total = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            total = zlib.crc32(block, total)
    return total
