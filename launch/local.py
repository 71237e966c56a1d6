"""Runs one command as several processes of this machine's CPU, joined by `jax.distributed`: a pod to test with.

    python launch/local.py --processes 2 --devices 4 -- -m sgmjax.train --workdir=runs/two

Every process runs `python` with what follows `--`, as process i of n with its own virtual devices. Their output is
prefixed with their number. When one fails, a line says which, the others are stopped and its status is returned; SIGINT
and SIGTERM are passed on to all, so that a training run saves before it ends (and this ends with 143 or 130, as it).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO


def free_port() -> int:
    """A TCP port of this machine that nothing uses at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(process: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """The variables by which process `process` of `processes` finds the others."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
        "PYTHONUNBUFFERED": "1",
    }


# What the C++ of JAX's coordination service and of Gloo says of processes that come and go: `lost` says it in one line.
_CHATTER = re.compile(
    r"[IWEF]\d{4} [\d:.]+ +\d+ (preemption_sync_manager|coordination_\w+|client|distributed_runtime\w*)\.(cc|h):\d+\]"
    r"|\[Gloo\] Rank|Additional GRPC error|:[A-Z_]+:Error received from peer|\*\*\* Check failure stack|    @ +0x"
)


def is_chatter(line: str) -> bool:
    """Whether a line of a process is not copied."""
    return _CHATTER.match(line) is not None


def _copy(process: int, stream: IO[str]) -> None:
    for line in stream:
        if is_chatter(line):
            continue
        sys.stdout.write(f"[{process}] {line}")
        sys.stdout.flush()


def lost(number: int, processes: int, status: int) -> str:
    """What there is to say when process `number` ended with a status that is not 0, in one line."""
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return (
        f"process {number} of {processes} {how}; the others are stopped. Once the cause is mended the same command "
        "goes on from the last checkpoint"
    )


def run(command: list[str], *, processes: int, devices: int, grace: float = 30.0) -> int:
    """Runs `python command...` in every process and waits for all.

    Args:
        command: arguments of the interpreter.
        processes: how many processes.
        devices: virtual CPU devices of each.
        grace: seconds that the others have to end after one has failed.

    Returns:
        0 if all succeeded, else the status of the first that failed (128 + n when signal n ended it).
    """
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(i, processes, devices, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    readers = [threading.Thread(target=_copy, args=(i, c.stdout), daemon=True) for i, c in enumerate(children)]
    for reader in readers:
        reader.start()

    stopped = False

    def pass_on(number, frame):
        nonlocal stopped
        stopped = stopped or frame is not None  # by whoever runs this, not because one has failed
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    status, deadline = 0, float("inf")
    try:
        while True:
            codes = [child.poll() for child in children]
            failed = next(((i, code) for i, code in enumerate(codes) if code), None)
            if not status and failed:
                number, status = failed
                deadline = time.monotonic() + grace
                if not stopped:  # else they are on their way, and a second signal would not let them save
                    print(lost(number, processes, status), file=sys.stderr, flush=True)
                    pass_on(signal.SIGTERM, None)
            if None not in codes:
                break
            if time.monotonic() > deadline:
                for child in children:
                    child.kill()
            time.sleep(0.05)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
    for reader in readers:
        reader.join(timeout=5)
    return 128 - status if status < 0 else status


def main() -> int:
    parser = argparse.ArgumentParser(description="Run python with the given arguments in several joined processes.")
    parser.add_argument("--processes", type=int, default=2, help="processes to start (default 2)")
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices of each (default 1)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- then the arguments of python")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("nothing to run: add -- and the arguments of python, e.g. -- -m sgmjax.train")
    if arguments.processes < 1 or arguments.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    return run(command, processes=arguments.processes, devices=arguments.devices)


if __name__ == "__main__":
    sys.exit(main())
