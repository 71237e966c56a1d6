"""Every public function has an example in its docstring, and it gives what it says."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata
import tiers

import sgmjax

# What an example may use without importing it; of sgmjax all rooms, by their own names.
GIVEN = {"jax": jax, "jnp": jnp, "np": np, "sgmjax": sgmjax}
# Functions that need what no example has: files of the official programs.
WITHOUT = {
    "sgmjax.metrics.inception_params",
    *(f"sgmjax.interop.read_{name}" for name in ("cld", "edm", "lsgm", "ncsnv2", "psld", "scoresde", "scoresde_jax")),
    *(f"sgmjax.interop.{name}" for name in ("edm_params", "edm_denoiser", "convert_lsgm_vae")),
}


def _rooms() -> list[str]:
    spec = importlib.util.spec_from_file_location("build_site", refdata.ROOT / "docs" / "build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        f"{room}.{name}"
        for room in module.ROOMS
        for name in module.public_names(room)
        if inspect.isfunction(getattr(importlib.import_module(room), name))
    ]


def _function(path: str):
    room, _, name = path.rpartition(".")
    return getattr(importlib.import_module(room), name)


ALL = sorted({_function(path): path for path in reversed(_rooms())}.values())  # of two paths the first


def test_every_function_has_an_example():
    missing = {path for path in ALL if ">>>" not in (_function(path).__doc__ or "")}
    assert missing == WITHOUT


# One in four at once, but for those that train a run.
AT_ONCE = {path for path in ALL[::8] if path not in WITHOUT | {"sgmjax.fit", "sgmjax.train", "sgmjax.load_run"}}


@pytest.mark.parametrize("path", tiers.alike([path for path in ALL if path not in WITHOUT], AT_ONCE))
def test_an_example_gives_what_it_says(path):
    rooms = {name: getattr(sgmjax, name) for name in sgmjax.__all__ if not name.startswith("_")}
    scope = GIVEN | {k: v for k, v in rooms.items() if inspect.ismodule(v)}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    example = doctest.DocTestParser().get_doctest(_function(path).__doc__, scope, path, None, None)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    runner.run(example, out=report.append)
    assert example.examples and not runner.failures, "".join(report)
