"""Parameters with all small arrays joined into one vector, as the training state carries them.

The host's time for a step grows with the number of arrays that go in and out, by several microseconds each, and
networks of this kind have hundreds of biases and scales, four times over (parameters, average, two moments). Joined, a
step on the 8 x 8 digits takes the host a fraction of the time. Large arrays stay as they are, so that they can be
split over devices. Everything outside the training state, checkpoints included, sees ordinary parameter trees.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

SMALL = 2**14  # elements below which an array is joined with others


class Packing:
    """Two inverse functions, `pack` and `unpack`, for trees like a given one.

    Args:
        like: arrays or `ShapeDtypeStruct`s.
        limit: float32 arrays with fewer elements are joined.
    """

    def __init__(self, like: PyTree, limit: int = SMALL):
        leaves, self._structure = jax.tree.flatten(like)
        self._shapes = [leaf.shape for leaf in leaves]
        self._is_small = [math.prod(leaf.shape) < limit and leaf.dtype == jnp.float32 for leaf in leaves]

    def pack(self, tree: PyTree) -> dict[str, Any]:
        """`small`, the joined vector, and `large`, the list of the other arrays."""
        leaves = self._structure.flatten_up_to(tree)
        small = [leaf.reshape(-1) for leaf, is_small in zip(leaves, self._is_small, strict=True) if is_small]
        return {
            "small": jnp.concatenate(small) if small else jnp.zeros(0, jnp.float32),
            "large": [leaf for leaf, is_small in zip(leaves, self._is_small, strict=True) if not is_small],
        }

    def pack_scalars(self, tree: PyTree) -> dict[str, Any]:
        """A tree with one number for each array, as numbers that broadcast against packed parameters."""
        values = self._structure.flatten_up_to(tree)
        small = [
            np.full(math.prod(shape), value, np.float32)
            for shape, value, is_small in zip(self._shapes, values, self._is_small, strict=True)
            if is_small
        ]
        return {
            "small": np.concatenate(small) if small else np.zeros(0, np.float32),
            "large": [float(value) for value, is_small in zip(values, self._is_small, strict=True) if not is_small],
        }

    def unpack(self, packed: dict[str, Any]) -> PyTree:
        """The tree that was packed. The large arrays are the same objects, not copies."""
        large, start, leaves = iter(packed["large"]), 0, []
        for shape, is_small in zip(self._shapes, self._is_small, strict=True):
            if not is_small:
                leaves.append(next(large))
                continue
            size = math.prod(shape)
            leaves.append(packed["small"][start : start + size].reshape(shape))
            start += size
        return self._structure.unflatten(leaves)


class GroupedPacking:
    """`Packing` of each group by itself: for trees {group: parameters} whose groups have optimisers of their own."""

    def __init__(self, like: dict[str, PyTree]):
        self._groups = {name: Packing(tree) for name, tree in like.items()}

    def pack(self, tree: dict[str, PyTree]) -> dict[str, Any]:
        """{group: packed}."""
        return {name: packing.pack(tree[name]) for name, packing in self._groups.items()}

    def pack_scalars(self, tree: dict[str, PyTree]) -> dict[str, Any]:
        """{group: packed scalars}."""
        return {name: packing.pack_scalars(tree[name]) for name, packing in self._groups.items()}

    def unpack(self, packed: dict[str, Any]) -> dict[str, PyTree]:
        """The tree that was packed."""
        return {name: packing.unpack(packed[name]) for name, packing in self._groups.items()}
