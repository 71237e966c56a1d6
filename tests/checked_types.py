"""The library's annotations, checked at every call that a test makes, by jaxtyping and beartype.

`install` sees to it that a module of `sgmjax` is changed as soon as it is executed, before another can import a name of
it: every public function and method in it whose parameters and result are all annotated is replaced by one that checks
them (`checked`). So the tables of functions, and whatever is imported from the module, have the checked ones too.

What the library refuses by itself keeps its own message: where an argument is not of its type the function is called
all the same, and only if it takes the argument, or fails by something else than a refusal, is the annotation at fault.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

ROOMS = (
    "sdes", "score", "exact", "model", "objectives", "samplers", "metrics", "data", "models", "interop", "tasks",
    "training",
)  # fmt: skip
REFUSALS = (ValueError, TypeError)  # InputError and ConfigError are ValueErrors


class Violation(AssertionError):
    """An argument or a result that is not of the type that it is annotated with."""


def _bears(value: Any, hint: Any) -> bool:
    from beartype import BeartypeConf
    from beartype.door import is_bearable
    from beartype.roar import BeartypeDecorHintException

    try:
        return is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
    except BeartypeDecorHintException:
        return True  # a protocol, say, which no value can be compared with


def annotated(function: Callable[..., Any]) -> bool:
    """Whether all parameters, `self` apart, and the result have an annotation."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    own = parameters[[p.name for p in parameters[:1]] in (["self"], ["cls"]) :]
    return all(
        what is not inspect.Signature.empty for what in (signature.return_annotation, *(p.annotation for p in own))
    )


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its arguments and its result checked; equal names in shapes are equal numbers in a call."""
    from jaxtyping import jaxtyped

    signature = inspect.signature(function)
    hints: dict[str, Any] = {}  # resolved at the first call: annotations may name what is defined further down

    def fault(name: str, value: Any) -> str | None:
        if hints.get(name, Any) is Any or _bears(value, hints[name]):
            return None
        found = repr(value)
        if hasattr(value, "shape"):
            found = f"{type(value).__name__} {getattr(value, 'dtype', '')}{list(value.shape)}"
        return f"{function.__module__}.{function.__qualname__}: {name} is {found[:200]}, not {hints[name]}"

    def faults(arguments: dict[str, Any]) -> str | None:
        for name, value in arguments.items():
            kind = signature.parameters[name].kind
            values = value.values() if kind is inspect.Parameter.VAR_KEYWORD else value
            single = kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            for each in [value] if single else values:
                if (found := fault(name, each)) is not None:
                    return found
        return None

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        if not hints:
            hints.update(typing.get_type_hints(function, include_extras=True))
            if inspect.isgeneratorfunction(inspect.unwrap(function)) != inspect.isgeneratorfunction(function):
                del hints["return"]  # of a context manager, whose annotation is that of the generator it is made of
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # whose own message is better
        with jaxtyped("context"):
            violation = faults(arguments)
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                if violation is None or isinstance(error, REFUSALS):
                    raise
                raise Violation(violation) from error
            violation = violation or fault("return", result)
        if violation is not None:
            raise Violation(violation)
        return result

    check.checks_types = True  # type: ignore[attr-defined]
    return check


def is_checked(function: Any) -> bool:
    """Whether `checked` has been here."""
    while function is not None:
        if "checks_types" in getattr(function, "__dict__", {}):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _wanted(name: str, value: Any) -> bool:
    public = not name.startswith("_") or name == "__call__"
    return public and isinstance(value, types.FunctionType) and not is_checked(value) and annotated(value)


def check_module(module: types.ModuleType) -> None:
    """Replaces the functions and methods that a module defines, in its names, tables and classes."""
    replaced: dict[int, Any] = {}
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if _wanted(name, value):
            replaced[id(value)] = checked(value)
            setattr(module, name, replaced[id(value)])
        elif isinstance(value, type):
            check_class(value)
    for value in list(vars(module).values()):
        if isinstance(value, dict):
            for key, entry in list(value.items()):
                if id(entry) in replaced:
                    value[key] = replaced[id(entry)]
                if id(key) in replaced:
                    value[replaced[id(key)]] = value.pop(key)


def check_class(cls: type) -> None:
    """Replaces the methods and properties that a class defines. Those of Flax modules are Flax's own affair."""
    if any(base.__module__.startswith("flax.") for base in cls.__mro__):
        return
    made = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name, value in list(vars(cls).items()):
        if name in made:
            continue
        if isinstance(value, staticmethod | classmethod) and _wanted(name, value.__func__):
            setattr(cls, name, type(value)(checked(value.__func__)))
        elif isinstance(value, property) and value.fget is not None and _wanted(name, value.fget):
            setattr(cls, name, property(checked(value.fget), value.fset, value.fdel, value.__doc__))
        elif _wanted(name, value):
            setattr(cls, name, checked(value))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the rooms as ever, and checks what they define once they are executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        package, _, rest = fullname.partition(".")
        if package != "sgmjax" or rest.split(".")[0] not in ROOMS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def exec_module(module: types.ModuleType) -> None:
                    execute(module)
                    check_module(module)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
                return spec
        return None


def install() -> None:
    """From here on every room is checked as it is imported; without beartype none is, and `test_types.py` fails."""
    if importlib.util.find_spec("beartype") is None:
        return
    early = [name for name in sys.modules if name.startswith("sgmjax.") and name.split(".")[1] in ROOMS]
    assert not early, f"imported before their types could be checked: {early}"
    sys.meta_path.insert(0, _Finder())
