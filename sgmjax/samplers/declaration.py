"""What a sampler declares of itself, in its own file, so that nothing needs to be told twice.

    @on_grid(lambda settings: 2 if settings["second_order"] else 1)
    def edm(key, score_fn, sde, shape, *, times, second_order=True, **options): ...

A caller that only knows its name (`registry`) lays out its grid by it: the steps that a budget of evaluations allows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

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
    """Declares a sampler that steps through `times`; the function itself stays as it is.

    Args:
        evaluations: the score evaluations of one step, from the sampler's own settings by name (those that were not
            given have their defaults). The length of a grid follows from it. Of annealed Langevin dynamics: of a level.
        divisible: see `Declaration`.
    """

    def declare(sampler: Sampler) -> Sampler:
        setattr(sampler, _DECLARATION, Declaration(False, evaluations, divisible))
        return sampler

    return declare


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
