"""Where arrays live: one mesh with the axes `data` and `fsdp`, the same code from a laptop to a pod.

The batch is split over both axes. Parameters, their average and the optimiser's moments are copied to every device, or,
with `train.fsdp > 1`, split over the `fsdp` axis. The mesh axes are Auto: XLA places what is not said here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sgmjax._inputs import InputError

PyTree = Any

BATCH_AXES = ("data", "fsdp")
HEARTBEAT = 60  # seconds without a sign of life from a process, within which the others end too; JAX's default is 100
FSDP_MIN_SIZE = 2**14  # smaller parameters are copied: splitting them saves nothing and costs a collective each


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices as (`data`, `fsdp`).

    Args:
        fsdp: devices over which parameters are split; must divide the number of devices.
        devices: default all devices of all processes.

    Examples:
        >>> from sgmjax import sharding
        >>> mesh = sharding.make_mesh(devices=jax.devices()[:1])
        >>> dict(mesh.shape)
        {'data': 1, 'fsdp': 1}
        >>> sharding.make_mesh().size == jax.device_count()
        True
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise InputError(f"fsdp = {fsdp}: must divide the {count} devices")
    return jax.make_mesh((count // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device.

    Examples:
        >>> from sgmjax import sharding
        >>> x = jax.device_put(jnp.ones(3), sharding.replicated(sharding.make_mesh()))
        >>> x.is_fully_replicated
        True
    """
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """`axis` (the batch) split over all devices, the other axes whole.

    Examples:
        >>> from sgmjax import sharding
        >>> places = sharding.batch_sharding(sharding.make_mesh())
        >>> places.shard_shape((4 * jax.device_count(), 3))
        (4, 3)
    """
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def state_shardings(mesh: Mesh, shapes: PyTree, min_size: int = FSDP_MIN_SIZE) -> PyTree:
    """A sharding for every array of a state, by its shape: so moments and averages lie where their parameter lies.

    Args:
        mesh: from `make_mesh`.
        shapes: arrays or `ShapeDtypeStruct`s.
        min_size: arrays with fewer elements stay replicated.

    Examples:
        >>> from sgmjax import sharding
        >>> mesh = sharding.make_mesh(fsdp=jax.device_count())
        >>> kernel = jax.ShapeDtypeStruct((64, 256 * jax.device_count()), jnp.float32)
        >>> places = sharding.state_shardings(mesh, {"kernel": kernel})
        >>> places["kernel"].shard_shape(kernel.shape)  # split over `fsdp`
        (64, 256)
    """
    size = mesh.shape["fsdp"]

    def place(leaf) -> NamedSharding:
        axes = [i for i, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or not axes or math.prod(leaf.shape) < min_size:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (leaf.shape[i], i))  # the last of equals: output channels of a kernel
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(place, shapes)


def whole(tree: PyTree, mesh: Mesh) -> PyTree:
    """In a program that is being compiled: a state's arrays, gathered where they are split over `fsdp`.

    Without this XLA may split a network's work by the channels of its kernels instead of by the batch, and send
    activations to and fro in every layer.

    Examples:
        >>> from sgmjax import sharding
        >>> mesh = sharding.make_mesh(fsdp=jax.device_count())
        >>> forward = jax.jit(lambda kernel, x: x @ sharding.whole(kernel, mesh))
        >>> forward(jnp.ones((3, 2)), jnp.ones((4, 3))).shape
        (4, 2)
    """
    return jax.lax.with_sharding_constraint(tree, replicated(mesh)) if mesh.shape["fsdp"] > 1 else tree


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays, or random keys, that every process has, on all devices of all processes.

    Examples:
        >>> from sgmjax import sharding
        >>> params = sharding.replicate({"scale": np.ones(3)}, sharding.make_mesh())
        >>> params["scale"].is_fully_replicated
        True
    """
    places = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def one(x: Any) -> Any:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            impl = jax.random.key_impl(x)
            data = one(jax.random.key_data(x))
            return jax.jit(lambda data: jax.random.wrap_key_data(data, impl=impl), out_shardings=places)(data)
        value = np.asarray(jax.device_get(x))
        return jax.make_array_from_callback(value.shape, places, lambda index: value[index])

    return jax.tree.map(one, tree)


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
    """This process's part of a batch as the argument of a function compiled for batches with this sharding.

    With one process that is the batch itself, which the call puts on the devices; otherwise a part of a global array.

    Examples:
        >>> from sgmjax import sharding
        >>> places = sharding.batch_sharding(sharding.make_mesh())
        >>> step = jax.jit(lambda batch: batch["x"].mean(), in_shardings=places)
        >>> float(step(sharding.put_batch({"x": np.ones((jax.device_count(), 2))}, places)))
        1.0
    """
    if jax.process_count() == 1:
        return dict(batch)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def fetch(tree: PyTree) -> PyTree:
    """NumPy copies of (small) arrays on every process, gathered where they are split over processes.

    Examples:
        >>> from sgmjax import sharding
        >>> sharding.fetch({"count": jnp.arange(3)})
        {'count': array([0, 1, 2], dtype=int32)}
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)


def of_the_first(make: Callable[[], str | None]) -> str | None:
    """What `make` says in process 0, in all processes: for what only one need read. At most 500 bytes of it.

    Examples:
        >>> from sgmjax import sharding
        >>> sharding.of_the_first(lambda: "runs/7")
        'runs/7'
    """
    if jax.process_count() == 1:
        return make()
    from jax.experimental import multihost_utils

    told = np.zeros(501, np.uint8)  # the first byte: whether there is any
    if jax.process_index() == 0 and (text := make()) is not None:
        letters = text.encode()[:500]
        told[0], told[1 : 1 + len(letters)] = 1, list(letters)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    return bytes(told[1:]).rstrip(b"\0").decode(errors="ignore") if told[0] else None


def wait_for_all(name: str) -> None:
    """Returns when all processes have come to the place of this name.

    Examples:
        >>> from sgmjax import sharding
        >>> sharding.wait_for_all("written")  # with one process, at once
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def initialize_distributed(environ: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes of a run; True if there are any. Must come before anything asks for devices.

    On when `SGMJAX_DISTRIBUTED=1` (a TPU pod, Slurm or MPI job, where JAX finds the rest by itself), or when
    `JAX_COORDINATOR_ADDRESS` is set, with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` where JAX cannot find them.

    Raises:
        ValueError: a variable that is not a number, or a process id outside the number of processes.

    Examples:
        >>> from sgmjax import sharding
        >>> sharding.initialize_distributed({})  # nothing asks for it: one process
        False
    """
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and environ.get("SGMJAX_DISTRIBUTED", "0") in ("", "0"):
        return False
    numbers: dict[str, int | None] = {}
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        text = environ.get(name)
        if text is not None and not text.isdigit():
            raise InputError(f"{name}: expected a whole number, got {text!r}")
        numbers[name] = None if text is None else int(text)
    count, index = numbers["JAX_NUM_PROCESSES"], numbers["JAX_PROCESS_ID"]
    if count is not None and index is not None and index >= count:
        raise InputError(f"JAX_PROCESS_ID: {index} is not below JAX_NUM_PROCESSES={count}; ids start at 0")
    jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)
    return jax.process_count() > 1
