"""Types of what functions take and give: arrays by their shapes, in the notation of `jaxtyping`.

    batch       examples
    *event      the axes of one example, (2,) of a point, (32, 32, 3) of an image
    k, r        phase variables of a process, z[:, 0] the data; those of them that receive noise

Within one call equal names are equal numbers. Arguments are arrays of JAX, traced ones too, or of NumPy. These are
annotations only: nothing here costs a user anything. The tests of this library check all of them, at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, Real

AnyArray = jax.Array | np.ndarray
Key = PRNGKeyArray  # of `jax.random.key`; the old kind, of `jax.random.PRNGKey`, will do
Shape = Sequence[int]  # (batch, *event)
DType = Any  # what `jnp.dtype` takes
PyTree = Any  # nested containers of arrays: parameters, say

if TYPE_CHECKING:  # what is said below, as far as a type checker follows it
    Scalar = float | AnyArray
    Numbers = Any
    Computed = jax.Array
else:
    Scalar = float | np.number | Real[AnyArray, ""]
    Numbers = Scalar | Real[AnyArray, " *shape"]  # one, or an array of them, of one shape throughout a call
    Computed = AnyArray  # by `jax.numpy`, which while tracing may leave constants to NumPy

State = Float[AnyArray, "batch k *event"]  # z, of all phase variables
Noise = Float[AnyArray, "batch variables *event"]  # eps, of all k phase variables or of the r noised ones
Data = Float[AnyArray, " batch *event"]  # x0
Times = Float[AnyArray, " batch"]  # t in [0, 1], 0 is data
TimeGrid = Sequence[float] | Real[AnyArray, " times"]  # decreasing times, those of a sampler's steps
HostGrid = Float[np.ndarray, " times"]  # the same, computed
Labels = Sequence[int] | Int[AnyArray, " batch"]  # classes
Matrices = Float[AnyArray, "batch k k"]  # on the phase variables, at each time
Vectors = Float[AnyArray, "batch k"]  # a number for each phase variable, at each time
Square = Float[AnyArray, "k k"]  # on the phase variables
PerExample = Float[jax.Array, " batch"]
Samples = Float[jax.Array, " batch *event"]
States = Float[jax.Array, "batch k *event"]

Inputs = Float[jax.Array, "batch *space channels"]  # x of a network, the phase variables side by side in the channels
Cond = Real[jax.Array, " batch"]  # its time, in its own units
Outputs = Float[jax.Array, "batch *space out"]
Network = Callable[..., Any]  # (x, cond) -> out
EpsFn = Callable[..., Any]  # (z, t) -> eps, (batch, r, *event)
ScoreFn = Callable[..., Any]  # (z, t) -> score, (batch, k, *event)
LogitsFn = Callable[..., Any]  # (z, t) -> logits, (batch, classes)
Solver = Any  # one of diffrax, or its name
Sharding = jax.sharding.Sharding | jax.sharding.PartitionSpec
