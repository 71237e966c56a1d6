"""Every public function says what it takes and gives, and while tests run it is held to that."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import beartype  # noqa: F401  of the extra "test"; without it nothing is checked
import checked_types
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgmjax
from sgmjax import samplers, sdes
from sgmjax._types import Data, PerExample, Times
from sgmjax.sdes import VE

ROOMS = (
    "sdes", "score", "exact", "model", "objectives", "samplers", "metrics", "data", "models", "interop", "tasks",
)  # fmt: skip
CHECKED = ("sdes", "score", "exact", "model", "objectives", "samplers")  # whole; of others what is not Flax's


def functions_of(name: str, value: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The function, or the public methods that a class of this library defines or has from another."""
    if inspect.isclass(value):
        for base in value.__mro__:
            for attribute, method in vars(base).items() if base.__module__.startswith("sgmjax.") else ():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                made = getattr(method, "__module__", "") != base.__module__  # by dataclasses or typing
                if isinstance(method, types.FunctionType) and not made:
                    if not attribute.startswith("_") or attribute == "__call__":
                        yield f"{name}.{attribute}", method
    elif inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        yield name, value


def is_of(value: Any, module: types.ModuleType) -> bool:
    """Whether a module defines a value rather than imports it."""
    return getattr(value, "__module__", "") == module.__name__


def public(room: str) -> dict[str, Callable[..., Any]]:
    """All public functions and methods of a room, by name."""
    module = importlib.import_module(f"sgmjax.{room}") if room else sgmjax
    names = getattr(module, "__all__", None)
    if names is None:
        names = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]
    found = {}
    for name in names:
        value = getattr(module, name)
        members = [value]
        if inspect.ismodule(value):
            if not room:  # the rooms have their own turn
                continue
            members = [v for n, v in vars(value).items() if n[0] != "_" and is_of(v, value)]
        for member in members:
            found.update(functions_of(getattr(member, "__qualname__", name), member))
    return found


@pytest.mark.parametrize("room", [*ROOMS, ""])
def test_every_public_function_is_annotated(room: str):
    found = public(room)
    assert found, "the room has functions"
    bare = [name for name, function in found.items() if not checked_types.annotated(function)]
    assert not bare, f"without annotation of a parameter or of the result: {bare}"


@pytest.mark.parametrize("room", CHECKED)
def test_every_public_function_is_checked(room: str):
    unchecked = [name for name, function in public(room).items() if not checked_types.is_checked(function)]
    assert not unchecked
    if room == "samplers":
        assert all(checked_types.is_checked(sampler) for sampler in samplers.SAMPLERS.values())


def test_a_wrong_shape_that_the_library_takes_is_found():
    """One time for three states is broadcast; the docstring, and the annotation, say one for each."""
    sde, z = sdes.psld(), jnp.ones((3, 2, 4))
    assert sde.drift(z, jnp.full(3, 0.5)).shape == z.shape
    with pytest.raises(checked_types.Violation, match=r"SDE.drift: t is .*\[1\], not .*batch"):
        sde.drift(z, jnp.full(1, 0.5))


def test_what_the_library_refuses_has_its_own_message():
    with pytest.raises(ValueError, match="t must be floating, got int32"):
        sdes.vp().transition(jnp.arange(3))
    with pytest.raises(ValueError, match="sigma_dist must be 'geometric' or 'uniform', not 'log'"):
        sdes.ve(sigma_dist="log")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        sdes.vp(beta=1.0)  # type: ignore[call-arg]


def test_what_is_checked():
    """Shapes across arguments and result, numbers of all kinds, tracers, and the result of what is not refused."""

    @checked_types.checked
    def distance(x0: Data, t: Times, *, scale: float = 1.0, **more: int) -> PerExample:
        if scale == 5:
            raise KeyError("not a refusal")
        return jnp.zeros(x0.shape[0] + (scale == 2.0))

    x0, t = np.zeros((3, 2), np.float32), jnp.zeros(3)
    assert distance(x0, t, scale=1, more=1).shape == jax.jit(functools.partial(distance, scale=True))(x0, t).shape
    for wrong in ({"t": jnp.zeros(2)}, {"t": [0.0] * 3}, {"x0": np.zeros((3, 2), int)}, {"scale": "1"}, {"more": 0.5}):
        with pytest.raises(checked_types.Violation, match=f"distance: {next(iter(wrong))} is"):
            distance(**{"x0": x0, "t": t, **wrong})
    with pytest.raises(checked_types.Violation, match=r"distance: return is .*\[4\]"):
        distance(x0, t, scale=2.0)
    with pytest.raises(checked_types.Violation, match="distance: t is") as found:
        distance(x0, t[:2], scale=5)
    assert isinstance(found.value.__cause__, KeyError)


def test_methods_keep_what_they_are():
    """Names, documentation and signature of a checked method; and the check of time that a process adds to its own."""
    assert inspect.signature(VE.transition).parameters["t"].annotation == "Times"
    assert VE.sigma.__doc__ and VE.sigma.__name__ == "sigma"
    assert inspect.getdoc(samplers.sscs) and samplers.sscs.__module__ == "sgmjax.samplers._sscs"
