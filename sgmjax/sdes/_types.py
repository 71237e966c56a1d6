"""Types of what processes are made of, with the ranges in which a configuration may set them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np

from sgmjax import _ranges
from sgmjax._types import Scalar

# Of the numbers, arrays are of programs alone.
Positive = Annotated[Scalar, _ranges.POSITIVE]
NonNegative = Annotated[Scalar, _ranges.NON_NEGATIVE]
Fraction = Annotated[Scalar, _ranges.FRACTION]
# Rows of numbers. A configuration has nested tuples.
Matrix = tuple[tuple[float, ...], ...] | Sequence[Sequence[Any]] | np.ndarray | jax.Array
Frame = Literal["auto", "lower", "upper"]
SigmaDist = Literal["geometric", "uniform"]  # how VE's noise levels lie; NCSNv2's name for it
