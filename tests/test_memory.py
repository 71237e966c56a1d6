"""The commands keep freed memory: a step that runs again asks the system for nothing."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from sgmjax import _cli
if sys.argv[1] == "keep":
    _cli.keep_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(x):  # 320 MB of intermediate results
    y = jax.lax.optimization_barrier(x[None] * jnp.arange(1.0, 41)[:, None])
    return (jax.lax.optimization_barrier(jnp.sin(y)) * y).sum()

x = jnp.ones(1_000_000)
def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults = sorted(faults_of_a_step() for _ in range(13))
pages = step.lower(x).compile().memory_analysis().temp_size_in_bytes / resource.getpagesize()
print(faults[6] / pages)
"""


def share_of_pages_asked_for(mode, **environment):
    """In the median step: the heap grows in the first, and in a few that find a small array in the place of theirs."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PROGRAM, mode]
    environment = {**plain, "JAX_PLATFORMS": "cpu", **environment}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator")
def test_freed_memory_is_used_again():
    assert share_of_pages_asked_for("leave") > 0.9  # or there is nothing to mend
    assert share_of_pages_asked_for("keep") < 0.01


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator")
def test_an_environment_that_speaks_for_the_allocator_is_left_alone():
    assert share_of_pages_asked_for("keep", MALLOC_ARENA_MAX="8") > 0.9
