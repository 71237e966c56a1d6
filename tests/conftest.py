"""Settings that hold for every test: 8 virtual CPU devices, strict shapes, checked keys and types, quick compiles."""

from __future__ import annotations

import gc
import importlib.util
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import buckets
import checked_types
import pytest
import refdata

from sgmjax import _cli  # does not import jax

# Before jax is imported, and through the environment so that the processes started by tests share them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(refdata.ROOT / ".jax_cache" / _cli._processor()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "agg")


def _xla_knows(flags: Iterable[str]) -> list[str]:
    """Those whose names stand in jaxlib: one that XLA does not know ends the process."""
    for place in importlib.util.find_spec("jaxlib").submodule_search_locations:
        for path in Path(place).glob("libjax_common*"):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
                return [flag for flag in flags if library.find(flag.encode()) >= 0]
    return []


_FLAGS = {
    # XLA's other generator of fused loops, the one it had before, compiles in three quarters of the time
    "xla_cpu_use_fusion_emitters": "false",
    # how long a device waits for the others before the process is ended: eight of them may share one busy core
    "xla_cpu_collective_call_terminate_timeout_seconds": "600",
}
_own = [flag for flag in _FLAGS if flag not in os.environ.get("XLA_FLAGS", "")]
if _found := _xla_knows(_own):
    _words = [os.environ.get("XLA_FLAGS", ""), *(f"--{flag}={_FLAGS[flag]}" for flag in _found)]
    os.environ["XLA_FLAGS"] = " ".join(_words).strip()

checked_types.install()

import jax  # noqa: E402

from sgmjax import sharding  # noqa: E402

gc.set_threshold(200_000, 100, 100)  # tracing makes many objects that stay: looking for garbage was a twentieth

jax.config.update("jax_num_cpu_devices", 8)  # not the environment's: a process started by a test has one device
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the `reference` fixture carries the marker of that name."""
    for item in items:
        if "reference" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.reference)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of recorded official outputs; skips without it. To parametrise by its files see `refdata.files`."""
    if not refdata.REFERENCE.is_dir():
        pytest.skip(refdata.NO_REFERENCE)
    return refdata.REFERENCE


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of prepared TFDS image sets; skips without it."""
    if not refdata.DATA.is_dir():
        pytest.skip(refdata.NO_DATA)
    return refdata.DATA


@pytest.fixture(scope="session")
def bucket() -> Iterator[dict[str, str]]:
    """An emulated bucket, gs://bucket, and the environment variables by which other processes find it."""
    with buckets.served() as variables:
        yield variables


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Runs of the module are on one device, for the sake of compilation, not on all eight."""
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda fsdp=1, devices=None: make_mesh(fsdp, devices or jax.devices()[:1]))
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for the duration of the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def _compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compilation is most of the suite's time, so XLA leaves out what makes programs fast, a third of it.

    Not in modules with `OPTIMIZED = True`, whose bounds are about rounding or whose time goes into running, nor in the
    processes that tests start. JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment optimizes everywhere, 1 nowhere.

    Compiled programs of a thousand tests would take gigabytes; those of other modules are of no use.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        jax.config.update("jax_disable_most_optimizations", not getattr(request.module, "OPTIMIZED", False))
    yield
    jax.clear_caches()
