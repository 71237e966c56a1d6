"""Files, on a disk or in a bucket of Google Cloud Storage: how they are named, read, written and moved.

`user_path` makes a path of what a user writes: a `pathlib.Path`, or for `gs://bucket/folder` an `etils.epath.Path`,
which has the same methods. What the two do not have alike is here: a file that appears whole, a file that only one can
make, one that grows, a folder that moves, and the local copy of an object for what reads from a disk only.

A bucket has no folders, only objects whose names have slashes: a folder is there as long as something is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from sgmjax._inputs import InputError, one_line, reason, shown

AnyPath = pathlib.Path | epath.Path
BUCKET = "gs://"
ZOO = "zoo:"  # a run that comes with sgmjax, by its name: a file in sgmjax/zoo
CACHE = "SGMJAX_CACHE"  # environment variable: where downloads and copies from buckets are kept
UPLOAD_EVERY = 10.0  # seconds between two uploads of a file that grows


# ---------------------------------------------------------------------------------------------------------------- names
def user_path(path: str | os.PathLike[str], what: str = "path") -> AnyPath:
    """A path as the user means it: `~` and `~name` are home folders, `gs://bucket/name` is in a bucket, `zoo:name` is
    the file of a run that comes with sgmjax.

    Raises:
        InputError: an empty path, one with a NUL character, a home folder that there is not, another kind of address,
            a run that does not come with sgmjax, or a bucket without the package that reaches it.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f"{what}: is empty; give a path")
    if "\0" in text:
        raise InputError(f"{what}: {shown(text)} has a NUL character, which no path can have")
    if text.startswith(BUCKET):
        return _in_bucket(text, what)
    if text.startswith(ZOO):
        return _in_zoo(text.removeprefix(ZOO), what)
    scheme, found, _ = text.partition("://")
    if found and scheme.isalnum():
        raise InputError(f"{what}: {shown(text)}: no {scheme}:// here; give a path, or {BUCKET}bucket/folder")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{what}: {shown(text)}: there is no such home folder; write the whole path") from None


def zoo() -> dict[str, pathlib.Path]:
    """The files of the runs that come with sgmjax, by name."""
    folder = pathlib.Path(__file__).resolve().parent / "zoo"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _in_zoo(name: str, what: str) -> pathlib.Path:
    found = zoo()
    if name not in found:
        raise InputError(f"{what}: no run {shown(name)} comes with sgmjax; there are {', '.join(found)}")
    return found[name]


def in_zoo(path: AnyPath) -> bool:
    """Whether a path is the file of a run that comes with sgmjax."""
    return path in zoo().values()


def run_name(path: str | os.PathLike[str]) -> str:
    """What messages call a run: `zoo:name` where it comes with sgmjax, else its path."""
    found = user_path(path, "--workdir")
    return f"{ZOO}{found.stem}" if in_zoo(found) else shown(path)


def _in_bucket(text: str, what: str) -> epath.Path:
    if not text.removeprefix(BUCKET).strip("/"):
        raise InputError(f"{what}: {shown(text)} names no bucket; write {BUCKET}bucket/folder")
    if found := set("*?[]") & set(text):  # gcsfs would take them for patterns, and remove what fits
        raise InputError(f"{what}: {shown(text)}: no name in a bucket can have {min(found)} here; choose another")
    try:
        import fsspec.config
        import gcsfs  # noqa: F401
    except ImportError:
        raise InputError(f"{what}: {shown(text)}: buckets need gcsfs: pip install 'sgmjax[gcs]'") from None
    # Others write there too, and orbax by ways of its own: a list of what was there a minute ago is wrong.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def absolute(path: AnyPath) -> AnyPath:
    """The same path from the root on."""
    return path.absolute() if isinstance(path, pathlib.Path) else path


def cache_folder() -> pathlib.Path:
    """Where downloads and copies are kept: $SGMJAX_CACHE, or ~/.cache/sgmjax."""
    folder = user_path(os.environ.get(CACHE) or "~/.cache/sgmjax", CACHE)
    if not isinstance(folder, pathlib.Path):
        raise InputError(f"{CACHE}: {folder} is in a bucket; give a folder of this machine")
    return folder


# -------------------------------------------------------------------------------------------------------------- reading
def regular_file(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """The path of a file that can be read, and neither blocks (FIFO) nor never ends (device); of an object its copy.

    Raises:
        InputError: there is none, or it is something else.
    """
    found = user_path(path, what)
    if not isinstance(found, pathlib.Path):
        return local_copy(found, what)
    try:
        mode = os.stat(found).st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: cannot read {shown(found)}: {reason(error)}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise InputError(f"{what}: {shown(found)} is {kind}; give a file")
    return found


def local_copy(path: AnyPath, what: str) -> pathlib.Path:
    """The file, or for an object in a bucket a copy of it in the cache, made anew when the object has changed.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    if isinstance(path, pathlib.Path):
        return path
    with _reading(path, what):
        info = _store().info(str(path))
        if info["type"] != "file":
            raise InputError(f"{what}: {shown(path)} is a folder; give a file")
        return _fetched(str(path), info)


def local_folder(path: AnyPath, what: str) -> pathlib.Path:
    """The folder, or for one in a bucket a copy in the cache, of which only what has changed is fetched again.

    Raises:
        InputError: there is nothing, or it cannot be fetched.
    """
    if isinstance(path, pathlib.Path):
        return path
    with _reading(path, what):
        found = _store().find(str(path), detail=True)
        for name, info in found.items():
            _fetched(BUCKET + name, info)
    if not found:
        raise InputError(f"{what}: there is nothing in {shown(path)}")
    return _place_of(str(path))


@contextlib.contextmanager
def _reading(path: AnyPath, what: str) -> Iterator[None]:
    """Makes one line of what the network, a bucket's permissions or the disk raise."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = "there is no such object" if isinstance(error, FileNotFoundError) else one_line(error, 120)
        raise InputError(f"{what}: cannot read {shown(path)}: {why}") from None


def _place_of(uri: str) -> pathlib.Path:
    parts = [part for part in uri.removeprefix(BUCKET).split("/") if part not in ("", ".", "..")]
    return cache_folder().joinpath("buckets", *parts)


def _fetched(uri: str, info: dict[str, Any]) -> pathlib.Path:
    place, changed = _place_of(uri), info["mtime"].timestamp()
    with contextlib.suppress(OSError):
        there = place.stat()
        if there.st_size == info["size"] and abs(there.st_mtime - changed) < 1e-3:
            return place
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.{uuid.uuid4().hex}.partial")
    try:
        _store().get_file(uri, str(partial))
        os.utime(partial, (changed, changed))
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return place


def modified(path: AnyPath) -> float:
    """When a file was last written, seconds by the clock of its disk or bucket. Raises FileNotFoundError."""
    return path.stat().st_mtime if isinstance(path, pathlib.Path) else _store().info(str(path))["mtime"].timestamp()


def sizes(folder: AnyPath) -> dict[str, int]:
    """The bytes of all files in a folder, and in those in it, by their names from the folder on."""
    if isinstance(folder, pathlib.Path):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    found, base = _store().find(str(folder), detail=True), str(folder).removeprefix(BUCKET).rstrip("/") + "/"
    return {name.removeprefix(base): info["size"] for name, info in sorted(found.items())}


def free_space(path: AnyPath) -> int | None:
    """Bytes that can still be written; None of a bucket, which has no end."""
    return shutil.disk_usage(path).free if isinstance(path, pathlib.Path) else None


# -------------------------------------------------------------------------------------------------------------- writing
def file_name(words: Iterable[str]) -> str:
    """The words, joined by _, as a name that every file system takes: _ for all but letters, digits, . and -."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in "_".join(words))


def process_label(section: Mapping[str, Any] | None) -> str:
    """What names of files have of a section `sde` in place of the run's, `as_psld_gamma0.02`; empty for the run's."""
    if section is None:
        return ""
    return file_name(["as", section["name"], *(f"{name}{value}" for name, value in section.items() if name != "name")])


def short(name: str, longest: int = 180) -> str:
    """A name for a file, which no system takes beyond 255 bytes: of a long one the beginning and a digest of all."""
    if len(name.encode()) <= longest:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: longest - 9].decode(errors='ignore')}_{digest}"


def check_writable(path: AnyPath, what: str) -> None:
    """Checks before the work that a file can be written afterwards; makes its folder.

    Raises:
        InputError: it is a folder, its folder cannot be made, or nothing can be written there.
    """
    try:
        if path.is_dir():
            raise InputError(f"{what}: {shown(path)} is a folder; give the name of a file")
        probe_folder(path.parent, f".{path.name[:100]}.probe{os.getpid()}")
    except InputError:
        raise
    except Exception as error:  # of a bucket anything
        if isinstance(path, pathlib.Path) and not isinstance(error, OSError | ValueError):
            raise
        raise InputError(f"{what}: cannot write {shown(path)}: {reason(error)}") from None


def probe_folder(folder: AnyPath, name: str) -> None:
    """Makes a folder if need be, writes a file of this name in it and removes it; raises what goes wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / name
    probe.write_text("")
    probe.unlink()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Where to write a file so that it appears in one move, whole; a write that fails leaves nothing behind.

    Several may write the same file at the same time: each has a place of its own, and the last one stays.

    with replacing("runs/a/config.json") as partial:
        partial.write_text(...)
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="sgmjax") as folder:
            partial = pathlib.Path(folder) / pathlib.PurePosixPath(os.fspath(path)).name
            yield partial
            _store().put_file(str(partial), os.fspath(path))
        return
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def create(path: AnyPath, text: str) -> bool:
    """Writes a file that is not there; False: it is. Of several that try at the same time one succeeds."""
    if isinstance(path, pathlib.Path):
        try:
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True
    if path.exists():
        return False
    try:
        _store().pipe_file(str(path), text.encode(), mode="create")  # if no generation of it exists
    except Exception as error:
        if isinstance(error, FileExistsError) or getattr(error, "code", None) == 412:
            return False
        raise
    return True


def touch(path: AnyPath) -> None:
    """Makes an existing file one that was written now."""
    if isinstance(path, pathlib.Path):
        os.utime(path)
    else:
        path.write_bytes(path.read_bytes())


def overwrite(source: AnyPath, target: AnyPath) -> None:
    """Moves a file to the place of another one, or a folder to that of an empty one; on a disk in one move."""
    if isinstance(source, pathlib.Path):
        os.replace(source, target)
    else:
        move(source, target)


def move(source: AnyPath, target: AnyPath) -> None:
    """Moves a file or a folder; there is nothing at the target. In a bucket object by object."""
    if isinstance(source, pathlib.Path):
        shutil.move(source, target)
    else:
        whole = source.is_dir()
        _store().copy(str(source), str(target), recursive=whole)
        _store().rm(str(source), recursive=whole)


def remove_folder(path: AnyPath) -> None:
    """Removes a folder with all that is in it, as far as possible."""
    if isinstance(path, pathlib.Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            _store().rm(str(path), recursive=True)


class Mirror:
    """A place on this machine for files that grow; in a bucket, which cannot append, they appear every few seconds.

    Args:
        folder: where the files shall be. One on a disk is its own place.
        names: of files that are there and go on.

    Attributes:
        place: where to write them.
    """

    def __init__(self, folder: AnyPath, names: Sequence[str] = ()):
        self._folder, self._there, self._last = folder, {}, -UPLOAD_EVERY
        self._uploading: Future[None] | None = None
        if isinstance(folder, pathlib.Path):
            self.place = folder
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="sgmjax")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self.place = pathlib.Path(self._temporary.name)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                _store().get_file(str(folder / name), str(self.place / name))
                self._there[name] = self._state(self.place / name)

    def sync(self, *, wait: bool = False) -> None:
        """Uploads what has changed, in the background and not more often than every `UPLOAD_EVERY` seconds.

        Args:
            wait: upload now, and return when it is done.

        Raises:
            What an upload before has met.
        """
        if isinstance(self._folder, pathlib.Path):
            return
        if self._uploading is not None and (wait or self._uploading.done()):
            uploading, self._uploading = self._uploading, None
            uploading.result()
        if wait:
            self._upload()
        elif self._uploading is None and time.monotonic() - self._last > UPLOAD_EVERY:
            self._uploading = self._thread.submit(self._upload)

    def close(self) -> None:
        """Uploads the rest; nothing more may be written."""
        if isinstance(self._folder, pathlib.Path):
            return
        try:
            self.sync(wait=True)
        finally:
            self._thread.shutdown()
            self._temporary.cleanup()

    def _upload(self) -> None:
        self._last = time.monotonic()
        for name in sizes(self.place):
            state = self._state(self.place / name)
            if self._there.get(name) != state:
                _store().put_file(str(self.place / name), str(self._folder / name))
                self._there[name] = state

    @staticmethod
    def _state(file: pathlib.Path) -> tuple[int, int]:
        there = file.stat()
        return there.st_size, there.st_mtime_ns


def trouble(error: BaseException) -> str | None:
    """What kept a bucket from being read or written, in words; None: the error is of something else."""
    kinds = ("gcsfs.", "aiohttp.", "google.auth.", "google.api_core.")
    kind = f"{type(error).__module__}."
    if kind.startswith(kinds) or (isinstance(error, OSError) and error.errno is None and BUCKET in str(error)):
        return one_line(error, 200)
    if isinstance(error, ValueError) and "gcs" in str(error) and "source locations" in str(error):  # TensorStore
        return one_line(error, 200)
    return None


def _store() -> Any:
    """The file system of buckets."""
    import fsspec

    return fsspec.filesystem("gcs")


# --------------------------------------------------------------------------------------------------------------- arrays
def read_arrays(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, or that of an .npy file under the name "": by what the file holds, not how it ends.

    Nothing that is pickled in the file is run.

    Args:
        path: the file.
        what: flag or setting, for messages.

    Raises:
        InputError: no such file, or one that is empty, cut short, damaged, or holds something else.
    """
    file = regular_file(path, what)
    try:
        if file.stat().st_size == 0:
            raise ValueError("it is empty")
        with file.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"": found}
            with found as archive:
                return {name: _array(archive, name) for name in archive.files}
    except Exception as error:  # whatever a broken file makes zipfile, zlib and NumPy raise
        if isinstance(error, ValueError) and "allow_pickle" in str(error):
            error = ValueError("it holds Python objects or is no file of arrays; write it with np.savez")
        raise InputError(f"{what}: cannot read {shown(path)}: {reason(error)}") from None


def _array(archive: Any, name: str) -> np.ndarray:
    found = archive[name]
    if not isinstance(found, np.ndarray):  # bytes of something that is no .npy
        raise ValueError(f"{shown(name)} in it is no array")
    return found


def read_array(path: str | os.PathLike[str], names: Sequence[str], what: str, *, required: bool = True) -> Any:
    """One array of an .npz file, that of the first of `names` which it has, or the array of an .npy file.

    Args:
        path: the file.
        names: what the array may be called.
        what: flag or setting, for messages.
        required: whether its absence is an error, else None.

    Raises:
        InputError: as `read_arrays`; no such array.
    """
    arrays = read_arrays(path, what)
    for name in names:
        if name in arrays:
            return arrays[name]
    if "" in arrays and required:
        return arrays[""]
    if not required:
        return None
    have = ", ".join(map(shown, arrays)) or "none"
    raise InputError(f"{what}: {shown(path)} has no array {' or '.join(names)}; it has {have}")
