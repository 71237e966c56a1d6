"""Ranges of the numbers that a user gives, as settings, flags or arguments, and sizes that a machine can hold.

Stands beside `_inputs` below every other module.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from sgmjax._inputs import MAX_SEED, InputError, is_traced, shown

MAX_COUNT = 2**31 - 1  # JAX's integers have 32 bits
MAX_SIDE = 2**14  # of an image, in pixels
MAX_ORDER = 10  # of a chain of Langevin variables; float32 cannot hold the kernels of longer ones near the data


@dataclasses.dataclass(frozen=True)
class Range:
    """A condition on a number, with the words that describe it in an error, and perhaps the largest allowed."""

    words: str
    holds: Callable[[Any], bool]
    most: int | None = None


FINITE = Range("finite", math.isfinite)
POSITIVE = Range("positive", lambda v: 0 < v < math.inf)
NON_NEGATIVE = Range("zero or positive", lambda v: 0 <= v < math.inf)
COUNT = Range("positive", lambda v: v > 0, MAX_COUNT)
COUNT_OR_ZERO = Range("zero or positive", lambda v: v >= 0, MAX_COUNT)
SIDE = Range("positive", lambda v: v > 0, MAX_SIDE)
SEED = Range("zero or positive", lambda v: v >= 0, MAX_SEED)
FRACTION = Range("at least 0 and below 1", lambda v: 0 <= v < 1)
OPEN_UNIT = Range("between 0 and 1, both excluded", lambda v: 0 < v < 1)
ORDER = Range("2 or more", lambda v: v >= 2, MAX_ORDER)
TOLERANCE = Range("above 0 and at most 1", lambda v: 0 < v <= 1)
TIME = TOLERANCE

# Types of settings, of constructors' parameters first of all: `sgmjax.spec` reads them.
PositiveInt = Annotated[int, COUNT]
NonNegativeInt = Annotated[int, COUNT_OR_ZERO]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeFloat = Annotated[float, NON_NEGATIVE]
Fraction = Annotated[float, FRACTION]
OpenUnit = Annotated[float, OPEN_UNIT]
Tolerance = Annotated[float, TOLERANCE]
Seed = Annotated[int, SEED]
Side = Annotated[int, SIDE]


def check_range(value: Any, wanted: Range, what: str, error: type[InputError] = InputError) -> None:
    """Checks one number; None and traced ones pass.

    Args:
        value: a Python number, or an array of one or more.
        wanted: the range.
        what: for messages.
        error: the type of error to raise.

    Raises:
        InputError: it is none, or outside.
    """
    if value is None or is_traced(value):
        return
    if hasattr(value, "dtype"):
        for number in np.ravel(np.asarray(value)).tolist():
            check_range(number, wanted, what, error)
        return
    try:
        words = None if wanted.holds(value) else wanted.words
    except TypeError:
        words = wanted.words
    if words is None and wanted.most is not None and value > wanted.most:
        words = f"at most {wanted.most}"
    if words is not None:
        raise error(f"{what}: must be {words}, got {shown(value if isinstance(value, int | float) else repr(value))}")


def memory() -> int | None:
    """Bytes of this machine's memory; None where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(what: str, num: int, shape: Sequence[int], *, itemsize: int = 4, fix: str) -> None:
    """Checks before the work that an array which must exist as a whole fits into the memory of the machine.

    Args:
        what: setting or flag that says how many, for messages.
        num: examples at a time.
        shape: of one.
        itemsize: bytes of a number.
        fix: what to do instead.

    Raises:
        InputError: it does not.
    """
    size, most = num * math.prod(shape) * itemsize, memory()
    if most is not None and size > most:
        form = " x ".join(map(str, shape)) or "1"
        raise InputError(
            f"{what}: {num:,} examples of {form} numbers take {size / 1e9:,.0f} GB, and this machine has "
            f"{most / 1e9:,.0f} GB of memory; {fix}"
        )
