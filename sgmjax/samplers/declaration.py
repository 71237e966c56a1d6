"""What a sampler declares of itself, in its own file, so that nothing needs to be told twice.

    @on_grid(lambda settings: 2 if settings["second_order"] else 1)
    def edm(key, score_fn, sde, shape, *, times, second_order=True, **options): ...

A caller that only knows its name (`registry`) lays out its grid by it: the steps that a budget of evaluations allows.
What such a sampler hands on to `scan_grid` as `**options` stands in its signature and help by name, and another name is
an error that says what there is.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from sgmjax._inputs import InputError
from sgmjax._kinds import checked_score
from sgmjax.samplers.common import scan_grid

Sampler = TypeVar("Sampler", bound=Callable[..., Any])
# What the caller of every sampler gives, or a program alone can (arrays, functions).
_CONTRACT = {
    "key", "score_fn", "sde", "shape", "times", "denoise", "t_min", "rtol", "atol", "initial", "noise", "constraint",
    "trajectory", "sharding", "progress", "dtype", "coefficients", "options",
}  # fmt: skip
_DECLARATION = "sgmjax_declaration"  # attribute of a sampler; `functools.wraps` copies it


class Declaration(NamedTuple):
    """What the rest of the code must know of a sampler to plan for it: see `on_grid` and `adaptive`.

    Attributes:
        adaptive: whether it chooses its own steps; the others step through `times` and take a `constraint`.
        evaluations: the score evaluations of one step, from all of the sampler's own settings by name.
        divisible: whether a grid may be taken in parts, one run after another, from the same settings: not where a
            setting is of the grid as a whole.
    """

    adaptive: bool
    evaluations: Callable[[Mapping[str, Any]], int]
    divisible: Callable[[Mapping[str, Any]], bool]


def on_grid(
    evaluations: Callable[[Mapping[str, Any]], int] = lambda settings: 1,
    *,
    divisible: Callable[[Mapping[str, Any]], bool] = lambda settings: True,
) -> Callable[[Sampler], Sampler]:
    """Declares a sampler that steps through `times`; its `**options` are those of `scan_grid`.

    Args:
        evaluations: the score evaluations of one step, from the sampler's own settings by name (those that were not
            given have their defaults). The length of a grid follows from it. Of annealed Langevin dynamics: of a level.
        divisible: see `Declaration`.
    """

    def declare(sampler: Sampler) -> Sampler:
        setattr(sampler, _DECLARATION, Declaration(False, evaluations, divisible))
        return with_named_options(sampler)

    return declare


def with_named_options(sampler: Sampler) -> Sampler:
    """A sampler with its `**options` named in signature and help, others refused, and its score's shape checked."""
    signature = inspect.signature(sampler)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return sampler
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    named = signature.replace(parameters=own + [p for p in _shared() if p.name not in signature.parameters])

    @functools.wraps(sampler)
    def checked(*args, **kwargs):
        for name in kwargs:
            if name not in named.parameters:
                raise InputError(_unknown(name, sampler.__name__, named))
        if len(args) > 1:
            args = (args[0], checked_score(args[1]), *args[2:])
        elif "score_fn" in kwargs:
            kwargs["score_fn"] = checked_score(kwargs["score_fn"])
        return sampler(*args, **kwargs)

    setattr(checked, "__signature__", named)
    checked.__doc__ = _named_doc(sampler.__doc__, signature)
    return checked  # pyright: ignore[reportReturnType]


def _shared() -> list[inspect.Parameter]:
    """What `scan_grid` takes of a sampler's caller: `constraint` and what follows it."""
    parameters = list(inspect.signature(scan_grid).parameters.values())
    return parameters[[p.name for p in parameters].index("constraint") :]


def _unknown(name: str, sampler: str, signature: inspect.Signature) -> str:
    known = [p for p in signature.parameters if p not in ("key", "score_fn", "sde", "shape")]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{name}: {sampler} has no such setting; {hint}"


def _named_doc(doc: str | None, signature: inspect.Signature) -> str | None:
    """The docstring with what `scan_grid` says of its options after the entry `options`."""
    if doc is None or scan_grid.__doc__ is None:  # python -OO
        return doc
    lines = inspect.cleandoc(scan_grid.__doc__).splitlines()
    entries, entry = {}, ""
    for line in lines[lines.index("Args:") + 1 :]:
        if found := re.match(r"    (\w+): ", line):
            entry = found[1]
        entries.setdefault(entry, []).append(line)
    more = [line for p in _shared() if p.name not in signature.parameters for line in entries[p.name]]
    out, inside = [], False
    for line in inspect.cleandoc(doc).splitlines():
        if inside and not line.startswith("        "):
            out, inside = [*out, *more], False
        inside = inside or line.startswith("    options: ")
        out.append(line)
    return "\n".join([*out, *more] if inside else out)


def adaptive(sampler: Sampler) -> Sampler:
    """Declares a sampler that chooses its own steps; the function itself stays as it is."""
    setattr(sampler, _DECLARATION, Declaration(True, lambda settings: 1, lambda settings: False))
    return sampler


def own_settings(sampler: Callable[..., Any]) -> dict[str, Any]:
    """The settings that are a sampler's own, by name, with their default values: {"snr": 0.16, ...}."""
    parameters = inspect.signature(sampler).parameters
    return {name: p.default for name, p in parameters.items() if name not in _CONTRACT}


def declaration(sampler: Callable[..., Any]) -> Declaration:
    """What a sampler declares, also of one wrapped by `functools.wraps`.

    Raises:
        TypeError: for a function that declares nothing.
    """
    try:
        return getattr(sampler, _DECLARATION)
    except AttributeError:
        name = getattr(sampler, "__name__", repr(sampler))
        raise TypeError(
            f"the sampler {name} does not say whether it steps through a grid: decorate it with "
            "samplers.declaration.on_grid() or samplers.declaration.adaptive."
        ) from None
