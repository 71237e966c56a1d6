"""Which files of a folder are its images: each once, whatever links there are, and nothing that blocks.

* Hidden files and folders do not count. Files of other endings, and what is no regular file (FIFO, socket, device), are
  skipped and counted.
* Links to folders and files elsewhere are followed. Each real folder is entered once, under its own name if it has one
  here: a link to the folder itself, to one above it or to one that is here anyway is skipped.
* A link to a file that is here anyway (or that another link has brought in) is skipped: it would show one image twice.
  Copies and hard links are files of their own.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sgmjax._inputs import one_line, shown
from sgmjax.data.base import DataError
from sgmjax.data.images import SUFFIXES


class Found(NamedTuple):
    """The image files below a folder, relative to it and sorted; and how many of what else there are."""

    files: list[Path]
    skipped: Counter[str]


def find_images(root: Path) -> Found:
    """The image files below `root`.

    Raises:
        DataError: a folder that cannot be read, or a link to an image that is not there.
    """
    files: list[Path] = []
    file_links: list[Path] = []
    skipped: Counter[str] = Counter()
    real: dict[Path, str] = {}  # folders that were entered, as walked, and where they really are
    entered: set[str] = set()
    here, later = [root], []
    while here or later:
        linked = not here  # links come when every real folder was entered: they never take its place
        folder = later.pop(0) if linked else here.pop()
        path = os.path.realpath(folder)
        if linked and _holds(path, os.path.realpath(folder.parent), real[root]):
            skipped["links to a folder that holds them"] += 1
            continue
        if path in entered:
            skipped["links to a folder that is here already"] += 1
            continue
        real[folder] = path
        entered.add(path)
        for entry in _entries(folder):
            inside = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                here.append(inside)
                continue
            mode = _mode(inside) if entry.is_symlink() else 0
            if stat.S_ISDIR(mode):
                later.append(inside)
            elif not entry.name.lower().endswith(SUFFIXES):
                skipped[inside.suffix.lower() or "without an ending"] += 1
            elif entry.is_symlink() and not mode:
                raise DataError(f"the image {shown(inside)} is a link to nothing: mend or remove it")
            elif entry.is_file(follow_symlinks=False):
                files.append(inside)
            elif stat.S_ISREG(mode):
                file_links.append(inside)
            else:
                skipped["no regular files"] += 1
    known = {os.path.join(real[file.parent], file.name) for file in files} if file_links else set()
    for link in sorted(file_links):
        target = os.path.realpath(link)
        if target in known:
            skipped["links to an image that is here already"] += 1
        else:
            known.add(target)
            files.append(link)
    return Found(sorted((file.relative_to(root) for file in files), key=Path.as_posix), skipped)


def _mode(path: Path) -> int:
    """What a link points to, as of `os.stat`; 0: nothing."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _holds(target: str, *folders: str) -> bool:
    """Whether a folder is one of the others, or above one."""
    return any(os.path.commonpath([target, folder]) == target for folder in folders)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {shown(folder)} ({error.strerror or one_line(error)})") from None
