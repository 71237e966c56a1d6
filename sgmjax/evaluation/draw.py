"""What is done with the averaged parameters: the loss on held-out data, and samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh

from sgmjax import sharding as sh
from sgmjax._inputs import check_labels
from sgmjax._say import say
from sgmjax.models import convolution

PyTree = Any


def make_eval_loss(
    loss: Callable[..., Any], mesh: Mesh, shardings: PyTree
) -> Callable[[PyTree, Array, dict[str, Array]], dict[str, Array]]:
    """The jitted `metrics(variables, key, batch)`, without dropout: `loss` and what else the task reports, each ().

    Args:
        loss: `Task.loss`.
        mesh: from `make_mesh`.
        shardings: of the variables.
    """
    everywhere = sh.replicated(mesh)

    def metrics(variables, key, batch):
        variables = sh.whole(variables, mesh)
        value, others, _ = loss(variables, key, batch, step=jnp.zeros((), jnp.int32), ema=variables.params, train=False)
        return jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), {"loss": value, **others})

    return jax.jit(
        metrics,
        in_shardings=(shardings, everywhere, sh.batch_sharding(mesh)),
        out_shardings=everywhere,
    )


def held_out_metrics(
    eval_loss: Callable[[PyTree, Array, dict[str, Array]], dict[str, Array]],
    variables: PyTree,
    key: Array,
    dataset: Any,
    batch_size: int,
    max_batches: int | None,
    mesh: Mesh,
) -> dict[str, float]:
    """The mean loss and metrics over held-out data, at the same times and noises when called with the same key.

    All batches have one shape: a last one that is not full is filled up from the beginning of the data.

    Args:
        eval_loss: from `make_eval_loss`.
        variables: the averaged ones.
        key: batch i uses `fold_in(key, i)`.
        dataset: has `num_examples` and `read`.
        batch_size: over all processes.
        max_batches: None for all of the data.
        mesh: from `make_mesh`.
    """
    batches = math.ceil(dataset.num_examples / batch_size)
    batches = batches if max_batches is None else min(batches, max_batches)
    local = batch_size // jax.process_count()
    losses = []
    for i in range(batches):
        mine = i * batch_size + jax.process_index() * local + np.arange(local)
        placed = sh.put_batch(dataset.read(mine % dataset.num_examples), sh.batch_sharding(mesh))
        losses.append(eval_loss(variables, jax.random.fold_in(key, i), placed))
        if i >= 2:
            jax.block_until_ready(losses[i - 2])  # at most two batches ahead of the devices
    losses = jax.device_get(losses)
    return {name: float(np.mean([loss[name] for loss in losses])) for name in losses[0]}


def accuracy_by_time(
    accuracy: Callable[..., Array],
    variables: PyTree,
    dataset: Any,
    mesh: Mesh,
    *,
    limit: int = 2048,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """How often a classifier is right about data noised to t = 0.001 ... 1: times and shares, (n,) each.

    Args:
        accuracy: `ClassifierTask.accuracy`.
        variables: the averaged ones.
        dataset: has `num_examples` and `read`.
        mesh: from `make_mesh`.
        limit: examples used, at most.
        batch_size: examples at a time.
    """
    times = np.array([0.001, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
    num = min(limit, dataset.num_examples)
    size = math.ceil(min(batch_size, num) / mesh.size) * mesh.size
    run = jax.jit(accuracy)
    table, local = [], size // jax.process_count()
    for i in range(math.ceil(num / size)):
        mine = i * size + jax.process_index() * local + np.arange(local)
        placed = sh.put_batch(dataset.read(mine % dataset.num_examples), sh.batch_sharding(mesh))
        keys = jax.random.split(jax.random.key(i), len(times))
        keys = [sh.replicate(key, mesh) for key in keys]
        table.append([run(variables, key, placed, t) for key, t in zip(keys, times.astype(np.float32), strict=True)])
    return times, np.mean(jax.device_get(table), axis=0)


def some(dataset: Any, num: int | None, seed: int = 0) -> np.ndarray:
    """Places of `num` examples drawn without replacement, or of all there are if they are fewer or num is None."""
    return np.sort(np.random.default_rng(seed).permutation(dataset.num_examples)[:num])


def map_examples(
    function: Callable[[dict[str, Array]], PyTree],
    dataset: Any,
    num: int,
    batch_size: int,
    mesh: Mesh,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, PyTree]:
    """What a function of a batch says of `num` examples drawn without replacement; the work is split over all devices.

    All batches have one shape: a last one that is not full is filled up with the first examples, which do not count.

    Args:
        function: compiled for batches that `batch_sharding` splits; gives a tree of (batch, ...) arrays. A batch has
            "index", (batch,) int32, where its examples stand in the data.
        dataset: has `num_examples` and `read`.
        num: at most `dataset.num_examples`.
        batch_size: examples at a time; rounded up to a multiple of the number of devices.
        mesh: from `make_mesh`.
        seed: which examples, when not all are taken.
        progress: told after each batch how many examples are done.

    Returns:
        The examples' places, (num,), and the tree of (num, ...) NumPy arrays.
    """
    indices = some(dataset, num, seed)
    unit = math.lcm(mesh.size, jax.process_count())
    batch_size = math.ceil(min(batch_size, num) / unit) * unit
    local = batch_size // jax.process_count()
    parts = []
    for start in range(0, num, batch_size):
        mine = start + jax.process_index() * local + np.arange(local)
        chosen = indices[mine % num]
        batch = dataset.read(chosen) | {"index": chosen.astype(np.int32)}
        parts.append(sh.fetch(function(sh.put_batch(batch, sh.batch_sharding(mesh)))))
        progress(min(start + batch_size, num))
    return indices, jax.tree.map(lambda *values: np.concatenate(values)[:num], *parts)


class Sampler:
    """Draws samples in batches of one size, the work split over all devices.

    Sample i is a function of the key and of i alone: its own key is `fold_in(key, i)`, and it is drawn as a batch of
    one would be. So neither the batch size, nor the number of devices, nor what was drawn before or in which session
    changes it, up to the rounding of products of another size. Solvers that choose their steps choose them for each
    sample, and Langevin correctors measure the norms of each.

    Args:
        sample_fn: sample_fn(variables, key, num, **given), like `Task.sample` with a plan.
        mesh: from `make_mesh`.
        shardings: of the variables.
        batch_size: samples a call; rounded up to a multiple of the number of devices.
    """

    def __init__(self, sample_fn: Callable[..., Any], mesh: Mesh, shardings: PyTree, batch_size: int):
        unit = mesh.size
        self.batch_size = math.ceil(batch_size / unit) * unit
        everywhere, split = sh.replicated(mesh), sh.batch_sharding(mesh)

        def part(variables, key, indices, given):
            def one(index, given):
                given = {name: value[None] for name, value in (given or {}).items()}
                x, info = sample_fn(variables, jax.random.fold_in(key, index), 1, **given)
                return x[0], jnp.max(jnp.asarray(_nfe(info)))

            with convolution.mapped(len(indices)):
                return jax.vmap(one)(indices, given)

        def draw(variables, key, first, given):
            indices = first + jnp.arange(self.batch_size, dtype=jnp.uint32)
            return _alone(part, mesh, (variables, key), (indices, given))

        self._draw = jax.jit(
            draw, in_shardings=(shardings, everywhere, everywhere, split), out_shardings=(split, split)
        )

    def __call__(
        self,
        variables: PyTree,
        key: Array,
        num: int,
        *,
        first: int = 0,
        labels: np.ndarray | None = None,
        inputs: dict[str, np.ndarray] | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[np.ndarray, int] | None:
        """Samples (num, *event) in the network's range, and the network evaluations a sample took (the most of any).

        Args:
            variables: the averaged ones.
            key: of this set of samples.
            num: how many.
            first: the index of the first of them.
            labels: (num,) integers from 0, classes to draw.
            inputs: what else `sample_fn` takes by name for each sample, (num, ...) arrays.
            stop: asked between batches; if it says True, the result is None.
            progress: told after each batch how many samples there are.
        """
        parts, nfe, ahead = [], 0, None

        def take(start: int, drawn: tuple[Array, Array]) -> None:
            nonlocal nfe
            x, used = sh.fetch(drawn)
            parts.append(x)
            nfe = max(nfe, int(np.max(used[: num - start])))
            progress(min(start + self.batch_size, num))

        given = {name: np.asarray(value) for name, value in (inputs or {}).items()}
        if labels is not None:
            check_labels(labels, None, length=num)
            given["labels"] = np.asarray(labels, np.int32)
        # JAX's check for keys that are used twice does not follow the parts of a split through vmap.
        with jax.set_mesh(None), jax.debug_key_reuse(False):
            for start in range(0, num, self.batch_size):
                if stop():
                    return None
                indices = np.resize(np.arange(start, min(start + self.batch_size, num)), self.batch_size)
                part = {name: value[indices] for name, value in given.items()} or None
                drawn = self._draw(variables, key, np.uint32(first + start), part)
                if ahead is not None:
                    take(*ahead)  # while the devices draw the next ones
                ahead = start, drawn
            if ahead is not None:
                take(*ahead)
        return np.concatenate(parts)[:num], nfe


def _alone(function: Callable[..., tuple[Array, ...]], mesh: Mesh, whole: PyTree, split: PyTree) -> tuple[Array, ...]:
    """`function(*whole, *split)`, (batch, ...) arrays, of which every device computes its part by itself.

    Left to XLA, the devices ask each other before each step of an adaptive solver whether any of them goes on.

    Args:
        function: of which each element of the results depends on the same element of `split` alone.
        mesh: from `make_mesh`; not that of the context, or what is traced here would have it.
        whole: arguments that every device needs all of; gathered, once, where they are split.
        split: (batch, ...) arrays.
    """
    shapes = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // mesh.size, *x.shape[1:]), x.dtype), split),
    )
    # Traced as for one device: diffrax computes with constants, which JAX 0.10.2 cannot inside of a shard_map.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        program = jaxpr_as_fun(jax.make_jaxpr(lambda whole, split: function(*whole, *split))(*shapes))
    places, parts = sh.replicated(mesh).spec, sh.batch_sharding(mesh).spec
    run = jax.shard_map(
        lambda whole, split: tuple(program(*jax.tree.leaves((whole, split)))),
        mesh=mesh, in_specs=(places, parts), out_specs=parts, check_vma=False,
    )  # fmt: skip
    return run(whole, split)


def sampler_of(task: Any, plan: Any, mesh: Mesh, shardings: PyTree, batch_size: int) -> Sampler:
    """A `Sampler` of a `Generative` task by a `samplers.Plan`."""

    def sample(variables, key, num, **given):
        return task.sample(variables, key, num, plan, **given)

    return Sampler(sample, mesh, shardings, batch_size)


def _nfe(info: Any) -> Any:
    return info["nfe"] if isinstance(info, dict) else info.nfe


def print_frechet(samples: np.ndarray, dataset: Any, centered: bool, limit: int = 10_000, max_size: int = 4096) -> None:
    """Prints the pixel-space Frechet distance of samples to the data, beside that of as many real images to other ones.

    The distance of few images is large whatever they show, so the two are of the same number, as far as half of the
    data goes.

    Args:
        samples: (num, H, W, C), as the data are.
        dataset: has `num_examples` and `read`.
        centered: whether floats are in [-1, 1], else in [0, 1].
        limit: real images used, chosen at random where there are more.
        max_size: numbers in an image above which nothing is printed: the covariance would not be worth its time.
    """
    if math.prod(samples.shape[1:]) > max_size:
        return
    from sgmjax.metrics.frechet import pixel_frechet

    chosen = np.random.default_rng(0).permutation(dataset.num_examples)[:limit]
    real = dataset.read(chosen)["x"]
    num = min(len(samples), len(real) // 2)
    if num < 2:
        return
    distance, floor = (pixel_frechet(a, b, centered=centered) for a, b in ((samples, real), (real[:num], real[num:])))
    say(
        f"pixel-space Frechet distance: {distance:.3f} between {len(samples)} samples and {len(real)} real images, "
        f"{floor:.3f} between {num} real ones and the others"
    )
