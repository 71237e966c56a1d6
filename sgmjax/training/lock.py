"""One run at a time in a run folder: the file `run.lock`, which says who trains there.

It is created in one move and touched every `BEAT` seconds. The lock of a process that ended is taken over: on the same
machine the process table tells, elsewhere that nobody has touched it for `STALE` seconds (locks of the operating system
do not work on all shared file systems, and buckets have none). Readers (`sample`, `evaluate`) take no lock.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from sgmjax import _files
from sgmjax._files import AnyPath
from sgmjax._inputs import one_line, shown
from sgmjax._say import say as say_on_stdout
from sgmjax.training.workdir import WorkdirError

NAME = "run.lock"
BEAT = 10.0  # seconds between two signs of life
STALE = 300.0  # seconds without one after which a process of another machine counts as gone
TAKEOVER = 60.0  # seconds after which a takeover, the matter of a moment, counts as broken off


class RunLock:
    """The lock of a run folder, held from now until `release`, the end of a `with` block or of the process.

    With several processes of one run the first holds it for all, and all of them must call this.

    Args:
        folder: the run folder, which exists.
        say: told in a line when a lock is taken over or waited for.

    Raises:
        WorkdirError: another process holds it: which one, and since when.
    """

    def __init__(self, folder: AnyPath, say: Callable[[str], None] = say_on_stdout):
        self._path = folder / NAME
        self._nonce = uuid.uuid4().hex
        self._release: Any = None
        problem = None
        if jax.process_index() == 0:
            try:
                _acquire(self._path, self._nonce, say)
            except WorkdirError as error:
                problem = error
            else:
                stopped = threading.Event()
                # not a method: the thread must not keep a forgotten lock alive
                threading.Thread(target=_beat, args=(self._path, self._nonce, stopped), daemon=True).start()
                self._release = weakref.finalize(self, _release, self._path, self._nonce, stopped)
        if _of_first(problem is not None):
            raise problem or WorkdirError(f"{folder} is in use by another run, as process 0 says")

    def check(self) -> None:
        """That the lock is still ours: a process that stood still for minutes may have lost it.

        Raises:
            WorkdirError: somebody else took it over.
        """
        if self._release is not None and (there := _read(self._path)).get("nonce") != self._nonce:
            raise WorkdirError(f"{self._path.parent}: {_who(there)} took the run over; nothing more is written by this")

    def release(self) -> None:
        """Lets others in."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release()


def _of_first(value: bool) -> bool:
    """What process 0 says, in all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(value))


def _acquire(path: AnyPath, nonce: str, say: Callable[[str], None]) -> None:
    mine = path.with_name(f"{NAME}.{nonce}")
    try:
        mine.write_text(json.dumps(_identity() | {"nonce": nonce}))
        told = collected = False
        while not _create(mine, path):
            there = _read(path)
            state, idle = _state(path, there, mine)
            if state == "gone":
                continue  # released at this moment
            if state == "dead":
                if _take_over(mine, path, there):
                    say(f"taking over the lock of {_who(there)}, which has ended without releasing it")
                    return
            elif state == "alive" and there.get("pid") == os.getpid() and not collected:
                collected = True
                gc.collect()  # a run of this process that was never executed, and forgotten
                continue
            elif state == "alive":
                raise WorkdirError(
                    f"{path.parent} is in use: {_who(there)} trains there; "
                    f"wait for it, stop it, or choose another --workdir"
                )
            elif not told:
                told = True
                say(f"{path.parent}: {_who(there)} gave no sign of life for {idle:.0f} s; waiting {STALE:.0f} s in all")
            time.sleep(0.1 if state == "dead" else 1.0)
            _files.touch(mine)
    except OSError as error:
        raise WorkdirError(f"cannot lock the run folder {path.parent}: {error.strerror or one_line(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            mine.unlink(missing_ok=True)


def _create(mine: AnyPath, path: AnyPath) -> bool:
    """Makes `path`, whole and in one move, of `mine`; False if there is one already."""
    if isinstance(mine, Path):
        try:
            os.link(mine, path)
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links, or one that lost the answer (NFS)
            if mine.stat().st_nlink == 2:
                return True
    return _files.create(path, mine.read_text())


def _take_over(mine: AnyPath, path: AnyPath, there: dict[str, Any]) -> bool:
    """Replaces a dead process's lock; only one of several that try does. False: look again."""
    guard = path.with_name(f"{NAME}.takeover")
    if not _files.create(guard, ""):
        with contextlib.suppress(FileNotFoundError):
            if _files.modified(mine) - _files.modified(guard) > TAKEOVER:
                guard.unlink()
        return False
    try:
        if _read(path) != there:
            return False
        _files.overwrite(mine, path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _state(path: AnyPath, there: dict[str, Any], mine: AnyPath) -> tuple[str, float]:
    """`alive`, `dead`, `silent` (not to be known yet) or `gone`, and the seconds since the last sign of life.

    Both times are those of the file system or bucket, so that clocks of two machines need not agree.
    """
    try:
        idle = _files.modified(mine) - _files.modified(path)
    except FileNotFoundError:
        return "gone", 0.0
    ours = _identity()
    if all(there.get(name) == ours[name] for name in ("host", "boot", "space")) and isinstance(there.get("pid"), int):
        return ("alive" if _running(there["pid"], there.get("started")) else "dead"), idle
    if idle > STALE:
        return "dead", idle
    return ("alive" if idle < 2.5 * BEAT and there else "silent"), idle


def _identity() -> dict[str, Any]:
    """This process, so that it can be told from every other one, now and later."""
    boot, space = None, None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # containers count their processes each for itself
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "started": _start_time(os.getpid()),
        "boot": boot,
        "space": space,
    }


def _start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None where nothing says so. A zombie has ended.

    Raises:
        ProcessLookupError: there is no such process.
    """
    if not Path("/proc/self/stat").exists():
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _running(pid: int, started: Any) -> bool:
    try:
        now = _start_time(pid)
        if now is None:
            os.kill(pid, 0)
        return started is None or now is None or started == now
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True


def _read(path: AnyPath) -> dict[str, Any]:
    """What a lock says; {} if it is gone, or being written, or not one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _who(there: dict[str, Any]) -> str:
    if not there:
        return "a process"
    host, pid, since = (shown(there.get(name), 80) for name in ("host", "pid", "since"))
    return f"process {pid} on {host} (since {since})"


def _beat(path: AnyPath, nonce: str, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT):
        if _read(path).get("nonce") == nonce:
            with contextlib.suppress(Exception):  # a bucket that cannot be reached for a moment
                _files.touch(path)


def _release(path: AnyPath, nonce: str, stopped: threading.Event) -> None:
    stopped.set()
    if _read(path).get("nonce") == nonce:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
