"""Types of what processes are made of, with the ranges in which a configuration may set them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np

from sgmjax import _ranges
from sgmjax._inputs import InputError, is_traced, shown
from sgmjax._types import Scalar

# Of the numbers, arrays are of programs alone.
Positive = Annotated[Scalar, _ranges.POSITIVE]
NonNegative = Annotated[Scalar, _ranges.NON_NEGATIVE]
Fraction = Annotated[Scalar, _ranges.FRACTION]
# Rows of numbers. A configuration has nested tuples.
Matrix = tuple[tuple[float, ...], ...] | Sequence[Sequence[Any]] | np.ndarray | jax.Array
Frame = Literal["auto", "lower", "upper"]
SigmaDist = Literal["geometric", "uniform"]  # how VE's noise levels lie; NCSNv2's name for it


def check_one_number(**values: Any) -> None:
    """Raise unless each setting is one real number; traced ones pass."""
    for name, value in values.items():
        if any(is_traced(leaf) for leaf in jax.tree.leaves(value)):
            continue
        if np.shape(value) != () or np.asarray(value).dtype.kind in "OUSc":
            raise InputError(f"{name}: must be one number, got {shown(repr(value))}")
