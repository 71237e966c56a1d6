"""What `throughput.py` times of this library: training steps, network evaluations and samplers as a run has them.

Everything is taken from `sgmjax.training.run.Run`, the object that a training run is, so that what is timed is what
users get: the same programs with the same arguments. Data are random images that lie in the host's memory.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sgmjax import models
from sgmjax import sharding as sh
from sgmjax._inputs import InputError
from sgmjax._schema import LoopSettings
from sgmjax.config import Config
from sgmjax.evaluation import draw
from sgmjax.models import convolution
from sgmjax.samplers import registry
from sgmjax.tasks import build
from sgmjax.tasks.score import ScoreTask
from sgmjax.tasks.vae import LatentModel
from sgmjax.training.phase import Phase
from sgmjax.training.run import AHEAD, Run
from sgmjax.training.state import create
from sgmjax.training.step import make_train_step
from sgmjax.training.train import phases_of

BATCHES = 4  # different ones, taken in turn
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1), "digits": (8, 8, 1), "omniglot": (28, 28, 1)}


def example_shape(config: Config) -> tuple[int, ...]:
    """The shape of an example of the config's data, which need not be there.

    Raises:
        InputError: data of which the config does not say it.
    """
    side = config.data.image_size
    shape = SHAPES.get(config.data.name)
    if shape is None and side is None:
        raise InputError(f"data.name: {config.data.name!r} says no shape; set --config.data.image_size")
    return (side, side, shape[-1] if shape else 3) if side is not None else shape or ()


def with_settings(
    config: Config, *, batch: int, dtype: str, dispatch: int = 1, evaluations: int | None = None
) -> Config:
    """The config at another batch, compute type, number of steps a call, and at most so many network evaluations.

    Samplers that choose their own steps keep them, and so do networks that know their noise levels by number. Of
    annealed Langevin dynamics whole levels are left.
    """
    sampling = dataclasses.replace(config.sampling, batch_size=batch, num=batch, grid_images=batch)
    fixed = registry.is_adaptive(sampling.sampler) or config.objective.time_conditioning == "level"
    if evaluations is not None and not fixed:
        last = int(bool(sampling.denoise) and sampling.denoise != "x_mean")
        each = registry.evaluations_per_step(sampling.sampler, sampling.options)
        least = 2 if sampling.sampler == "annealed_langevin" else 1
        steps = max(least, (evaluations - last) // each) * each + last
        sampling = dataclasses.replace(sampling, steps=min(sampling.steps, steps))
    train = dataclasses.replace(config.train, batch_size=batch, compute_dtype=dtype, steps_per_dispatch=dispatch)
    return dataclasses.replace(config, train=train, sampling=sampling)


# --------------------------------------------------------------------------------------------------------------- counts
def count_flops(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products of a traced program, two for a multiplication with addition.

    Nothing else counts, as usual for model FLOPs. Loops count as often as they run; a `while` of unknown length once.
    Products with the zeros that a strided convolution's gradient inserts do not count.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        out: Any = equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            total += 2.0 * math.prod(out.shape) * math.prod(lhs[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            spec = equation.params["dimension_numbers"].rhs_spec  # output features, input features, space
            rhs = equation.invars[1].aval.shape
            per_output = math.prod(rhs[axis] for axis in spec[1:])
            total += 2.0 * math.prod(out.shape) * per_output / math.prod(equation.params["lhs_dilation"])
        elif name == "cond":
            total += max(count_flops(branch) for branch in equation.params["branches"])
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(count_flops(inner) for inner in _inner(equation.params.values()))
    return total


def _inner(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _inner(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value


def abstract_step(phase: Phase, train: LoopSettings, shape: tuple[int, ...], mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """The training step of a phase, and the shapes of its arguments: nothing is made.

    Args:
        phase: of `phases_of`.
        train: with one step a call.
        shape: of an example.
        mesh: over which the step is split.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: create(phase.task.init(key), phase.optimizer), key)
    step = make_train_step(phase.task, phase.optimizer, phase.ema, train, mesh, sh.state_shardings(mesh, state))
    size = train.batch_size
    batch = {"x": jax.ShapeDtypeStruct((size, *shape), np.uint8), "label": jax.ShapeDtypeStruct((size,), np.int32)}
    return step, (state, batch, key)


def operations(jitted: Any, *args: Any) -> float:
    """`count_flops` of what a jitted function is to compute, whatever form its convolutions take on this backend.

    Winograd's algorithm has fewer multiplications than the convolution that it stands for; the model's count.
    """
    with convolution.native():  # another function, for what was traced outside is remembered
        return count_flops(jax.make_jaxpr(lambda *args: jitted.__wrapped__(*args))(*args))


def _compiled(jitted: Any, *args: Any, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """The compiled program, which a call with such arguments finds again, and what is known of it."""
    start = time.perf_counter()
    traced = jitted.trace(*args)
    lowered = traced.lower()
    middle = time.perf_counter()
    compiled = lowered.compile(options) if options else lowered.compile()
    facts = {"trace_s": middle - start, "compile_s": time.perf_counter() - middle}
    cpu = jax.default_backend() == "cpu"  # elsewhere convolutions are what they seem
    facts["flops"] = operations(jitted, *args) if cpu else count_flops(traced.jaxpr)
    with contextlib.suppress(Exception):  # not on every backend
        cost = compiled.cost_analysis()
        facts["flops_by_compiler"] = (cost[0] if isinstance(cost, list) else cost).get("flops")
    with contextlib.suppress(Exception):
        memory = compiled.memory_analysis()
        sizes = ("argument", "output", "temp", "generated_code")
        total = sum(getattr(memory, f"{name}_size_in_bytes") for name in sizes) - memory.alias_size_in_bytes
        facts["memory_bytes"] = total
    return compiled, facts


# ---------------------------------------------------------------------------------------------------------- contestants
class Model:
    """A run at the first step of one of its phases, shared by what is timed of it.

    Args:
        config: from `with_settings`.
        shape: of an example.
        phase: which; the last is what a run is about, the first of an LSGM its VAE alone.

    Raises:
        InputError: a config that learns no score.
    """

    def __init__(self, config: Config, shape: tuple[int, ...], phase: int = -1):
        classes = getattr(config.model, "num_classes", None)
        if models.classifies(config.model) or not models.sees_noise(config.model):
            raise InputError(f"model.name: {config.model.name!r} learns no score; choose a config that does")
        phases = phases_of(config, build.phases(config, shape, classes))
        self.config, self.shape, self.classes = config, shape, classes
        self.run = Run(phases, None, Path("unused"), config.train, record={})
        self.stage = self.run.stages[phase]
        task = self.stage.phase.task
        assert isinstance(task, ScoreTask | LatentModel)
        self.task: ScoreTask | LatentModel = task
        with jax.set_mesh(self.run.mesh):
            self.key = self.run._place(jax.random.key(0))
            self.state = jax.block_until_ready(self._initial())

    def _initial(self) -> Any:
        """The state before the first step; made on the host, since the program that makes it takes long to compile.

        No kernel is zero, as fresh ones of residual branches are and trained ones are not: zeros are multiplied faster.
        """
        stage = self.stage
        initial = jax.jit(
            lambda key: create(stage.phase.task.init(key), stage.phase.optimizer), out_shardings=stage.shardings
        )
        if jax.tree.leaves(stage.abstract.model_state):  # which must fit the parameters
            state = initial(self.key)
            return dataclasses.replace(state, step=jnp.full_like(state.step, stage.first))
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            names = [getattr(part, "key", "") for part in path]
            if names[-1] == "bias":
                return np.zeros(leaf.shape, np.float32)
            x = rng.standard_normal(leaf.shape, np.float32)
            if names[-1] == "frequencies":
                return 16 * x
            if names[-1] != "kernel":
                return 1 + 0.02 * x
            # A network that predicts next to nothing is a process of its own for samplers that choose their steps.
            return x * (1e-3 if names[0] == "out_conv" else 1.0) / math.sqrt(math.prod(leaf.shape[:-1]))

        shapes, places = jax.eval_shape(initial, self.key), stage.shardings
        state = jax.tree.map(
            lambda leaf, place: jax.device_put(np.zeros(leaf.shape, leaf.dtype), place), shapes, places
        )
        params = jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes.params), places.params)
        return dataclasses.replace(state, params=params, ema_params=jax.tree.map(jnp.copy, params))

    @property
    def num_parameters(self) -> int:
        """Trained ones."""
        return models.count_parameters(self.stage.abstract.params)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of what the process diffuses."""
        return self.task.latent_shape if isinstance(self.task, LatentModel) else self.task.event_shape

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Random images, (batch, ...), or (steps, batch, ...) when a call takes several steps."""
        train, rng = self.config.train, np.random.default_rng(0)
        steps = () if train.steps_per_dispatch == 1 else (train.steps_per_dispatch,)
        out = []
        for _ in range(BATCHES):
            x = rng.integers(0, 256, (*steps, train.batch_size, *self.shape), dtype=np.uint8)
            if self.config.vae is not None and self.config.vae.decoder == "bin":
                x = np.where(x < 128, 0, 255).astype(np.uint8)
            labels = rng.integers(0, self.classes or 1, x.shape[: len(steps) + 1], dtype=np.int32)
            out.append({"x": x, "label": labels})
        return out


class Training:
    """The training step, dispatched ahead of the device as a run does."""

    unit, settle = "step", 1

    def __init__(self, name: str, model: Callable[[], Model], options: dict[str, Any] | None = None):
        self.name, self._model, self._options = name, model, options

    def prepare(self) -> dict[str, Any]:
        """Compiles and takes the first steps; what is known of the program."""
        self.model = model = self._model()
        run, self.stride = model.run, model.config.train.steps_per_dispatch
        self.step = model.stage.step_fn
        self.data, self.place = model.batches(), run._batch_sharding
        self.state, model.state = model.state, None  # donated
        with jax.set_mesh(run.mesh):
            batch = sh.put_batch(self.data[0], self.place)
            compiled, facts = _compiled(self.step, self.state, batch, model.key, options=self._options)
        if self._options:
            self.step = compiled
        facts["flops"] /= self.stride
        facts["parameters"] = model.num_parameters
        start = time.perf_counter()
        self.time(1)
        return facts | {"first_s": time.perf_counter() - start}

    def time(self, count: int, ahead: int = AHEAD) -> tuple[float, int]:
        """Seconds of at least `count` steps, and how many; at most `ahead` calls wait for the device."""
        pending: collections.deque[Any] = collections.deque()
        calls = math.ceil(count / self.stride)
        busy, start = 0.0, time.perf_counter()
        with jax.set_mesh(self.model.run.mesh):
            for i in range(calls):
                before = time.thread_time()
                batch = sh.put_batch(self.data[i % BATCHES], self.place)
                self.state, metrics = self.step(self.state, batch, self.model.key)
                pending.append(metrics["loss"])
                busy += time.thread_time() - before
                if len(pending) > ahead:
                    pending.popleft().block_until_ready()
            jax.block_until_ready(self.state)
        self.host_ms = 1e3 * busy / (calls * self.stride)
        return time.perf_counter() - start, calls * self.stride

    def more(self, count: int) -> dict[str, Any]:
        """Milliseconds a step when the host waits for each one, and those in which the host works."""
        seconds, steps = self.time(count, ahead=0)
        blocked = 1e3 * seconds / steps
        self.time(count)
        return {"blocked_ms": blocked, "host_ms": self.host_ms, "finite": self._finite()}

    def _finite(self) -> bool:
        return int(sh.fetch(self.state.bad_steps)) == 0


class Evaluations:
    """The score, a call each: the network, and the k x k matrices that make a score of its output."""

    unit, settle = "evaluation", 1

    def __init__(self, name: str, model: Callable[[], Model]):
        self.name, self._model = name, model

    def prepare(self) -> dict[str, Any]:
        """As `Training.prepare`."""
        self.model = model = self._model()
        run, batch, task = model.run, model.config.train.batch_size, model.task
        self.weights = model.state.averaged
        z = jax.random.normal(model.key, (batch, task.sde.k, *model.event_shape))
        self.z, self.t = run._place(z), run._place(jnp.linspace(0.01, 1.0, batch))
        known: dict[str, Any] = {} if task.num_classes is None else {"labels": jnp.zeros(batch, jnp.int32)}
        self.call = jax.jit(lambda weights, z, t: task.score_fn(weights, **known)(z, t))
        _, facts = _compiled(self.call, self.weights, self.z, self.t)
        self.time(1)
        return facts | {"parameters": model.num_parameters}

    def time(self, count: int) -> tuple[float, int]:
        """Seconds of `count` evaluations."""
        start = time.perf_counter()
        jax.block_until_ready([self.call(self.weights, self.z, self.t) for _ in range(count)][-1])
        return time.perf_counter() - start, count

    def more(self, count: int) -> dict[str, Any]:
        """Nothing."""
        return {}


class Sampling:
    """The config's sampler, whole in one program, samples fetched; in units of network evaluations."""

    unit, settle = "evaluation", 0

    def __init__(self, name: str, model: Callable[[], Model], steps: int):
        self.name, self._model, self._steps = name, model, steps

    def prepare(self) -> dict[str, Any]:
        """As `Training.prepare`."""
        self.model = model = self._model()
        self.weights = model.state.averaged
        plan, places = model.config.sampling, jax.tree.map(lambda x: x.sharding, self.weights)

        self.sampler = draw.sampler_of(model.task, plan, model.run.mesh, places, model.config.train.batch_size)
        with jax.set_mesh(model.run.mesh):
            _, facts = _compiled(self.sampler._draw, self.weights, model.key, np.uint32(0), None)
        del facts["flops"]  # of a loop whose length the program decides
        self.draws = 0
        _, self.nfe = self.time(1)
        sampling = model.config.sampling
        published = self.nfe if registry.is_adaptive(sampling.sampler) else self._steps
        known = {"sampler": sampling.sampler, "nfe": self.nfe, "nfe_of_config": published}
        return facts | known | {"parameters": model.num_parameters}

    def time(self, count: int) -> tuple[float, int]:
        """Seconds of as many draws of a batch as make `count` evaluations, at least one, and the evaluations."""
        batch, evaluations = self.model.config.train.batch_size, 0
        start = time.perf_counter()
        while evaluations < count:
            self.draws += 1
            drawn = self.sampler(self.weights, jax.random.fold_in(self.model.key, self.draws), batch)
            assert drawn is not None
            evaluations += drawn[1]
        return time.perf_counter() - start, evaluations

    def more(self, count: int) -> dict[str, Any]:
        """Nothing."""
        return {}
