"""Which cases of a test run at once, and which with the slow ones because another is nearly alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def alike(values: Iterable[Any], at_once: Collection[Any]) -> list[Any]:
    """The values as parameters of a test; all but `at_once` are slow.

    Raises:
        ValueError: for one of `at_once` that is not among the values.
    """
    values = list(values)
    if unknown := [value for value in at_once if value not in values]:
        raise ValueError(f"not among the cases: {unknown}")
    return [pytest.param(*_tuple(value), marks=[] if value in at_once else pytest.mark.slow) for value in values]


def each(params: Sequence[Any], number: int) -> list[Any]:
    """Of parameters whose names are a folder's, and not known here, the first of each `number` at once."""
    slow = [[*p.marks, pytest.mark.slow] if i % number else p.marks for i, p in enumerate(params)]
    return [pytest.param(*p.values, marks=marks, id=p.id) for p, marks in zip(params, slow, strict=True)]


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
