"""What each device holds, computes and sends, read from compiled programs; and that the numbers stay the same."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiers
from training import test_latent, tiny

from sgmjax import sharding as sh
from sgmjax.commands.train import read_flags
from sgmjax.config import from_dict
from sgmjax.evaluation import draw
from sgmjax.tasks import build
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.run import Run
from sgmjax.training.state import create
from sgmjax.training.step import make_train_step
from sgmjax.training.train import phases_of, setup

BATCH, SHAPE, MIN_SIZE = 16, (4, 4, 1), 64
NETWORK = {"name": "ncsnpp", "nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (4,), "dropout": 0.0}
LANGEVIN = {
    "data": {"name": "digits", "image_size": 8},
    "model": {"name": "ncsnv2", "ngf": 8},
    "sde": {"name": "ve"},
    "objective": {
        "matching": "dsm", "weighting": "annealed", "parameterization": "score", "time_conditioning": "sigma",
        "time_sampling": "levels", "num_levels": 3, "reduce": "half_sum",
    },
    "sampling": {"steps": 7, "grid": "levels", "options": {"steps_per_level": 2}},
}  # fmt: skip


def config(**sections: dict[str, Any]) -> Any:
    """A small NCSN++ with group norm and attention on 4 x 4 images, as a phase space process has it."""
    settings = {
        "data": {"name": "digits", "image_size": 4}, "model": NETWORK, "sde": {"name": "psld"},
        "train": {"batch_size": BATCH},
    }  # fmt: skip
    return from_dict({name: {**settings.get(name, {}), **sections.get(name, {})} for name in {*settings, *sections}})


@dataclasses.dataclass
class Step:
    """A training step on the first `devices` devices, of which the state is split over `fsdp`."""

    config: Any
    devices: int
    fsdp: int
    shape: tuple[int, ...] = SHAPE
    optimizer: Any = None

    def __post_init__(self):
        (self.phase, *_) = phases_of(self.config, build.phases(self.config, self.shape, None))
        self.optimizer = self.optimizer or self.phase.optimizer
        self.mesh = sh.make_mesh(self.fsdp, jax.devices()[: self.devices])
        self.shapes = jax.eval_shape(self.initial, jax.random.key(0))
        self.places = sh.state_shardings(self.mesh, self.shapes, MIN_SIZE)
        task, settings = self.phase.task, self.config.train
        self.function = make_train_step(task, self.optimizer, self.phase.ema, settings, self.mesh, self.places)

    def initial(self, key):
        return create(self.phase.task.init(key), self.optimizer)

    def compiled(self) -> Any:
        batch = {
            "x": jax.ShapeDtypeStruct((BATCH, *self.shape), np.uint8),
            "label": jax.ShapeDtypeStruct((BATCH,), np.int32),
        }
        with jax.set_mesh(self.mesh):
            return self.function.lower(self.shapes, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()

    def taken(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """After one step with given images, from a state that any devices hold."""
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (BATCH, *self.shape), dtype=np.uint8)
        with jax.set_mesh(self.mesh):
            key = jax.device_put(jax.random.key(1), sh.replicated(self.mesh))
            placed = jax.device_put(jax.device_get(state), self.places)
            batch: dict[str, Any] = {"x": x, "label": np.zeros(BATCH, np.int32)}
            return self.function(placed, batch, key)


def collectives(compiled: Any) -> list[tuple[str, list[tuple[int, ...]]]]:
    """What a compiled program sends between devices: (operation, shapes of what comes out) of each, in order."""
    names = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast|ragged-all-to-all"
    found = re.findall(rf"^\s*(?:ROOT )?%\S+ = (.*?) ({names})(?:-start)?\(", compiled.as_text(), flags=re.M)
    dims = [re.findall(r"\w+\[([\d,]*)\]", types) for types, _ in found]
    shapes = [[tuple(int(n) for n in one.split(",") if n) for one in several] for several in dims]
    return [(name, out) for (_, name), out in zip(found, shapes, strict=True)]


def num_bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * (8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize)


# ---------------------------------------------------------------------------------------------------- the training step
@pytest.fixture(scope="module")
def data_parallel():
    return Step(config(), 8, 1).compiled()


@pytest.fixture(scope="module", params=tiers.alike([2, 4, 8], [8]))
def split(request):
    step = Step(config(), request.param, request.param)
    return step, step.compiled()


def divided(leaf: Any, devices: int) -> bool:
    return math.prod(leaf.shape) >= MIN_SIZE and any(n % devices == 0 for n in leaf.shape)


def test_a_device_is_given_its_part_of_the_state_and_of_the_batch(split):
    """The arguments of the compiled program, in bytes of one device: arrays of 64 numbers and more divided by N."""
    step, compiled = split
    leaves, n = jax.tree.leaves(step.shapes), step.devices
    whole = sum(num_bytes(leaf) for leaf in leaves if not divided(leaf, n))
    parts = sum(num_bytes(leaf) for leaf in leaves if divided(leaf, n))
    assert parts > 10 * whole  # most of it
    memory = compiled.memory_analysis()
    batch = BATCH // n * math.prod(SHAPE)  # of one byte; labels are not read
    assert memory.argument_size_in_bytes == whole + parts // n + batch + 8  # of the key
    assert memory.alias_size_in_bytes == whole + parts // n  # what goes out takes the place of what came in
    assert 0 <= memory.output_size_in_bytes - memory.alias_size_in_bytes < 64 * len(leaves)  # metrics and pointers


def test_parameters_are_gathered_once_and_activations_not_at_all(split):
    step, compiled = split
    found = collectives(compiled)
    assert {name for name, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    gathered = [shape for name, shapes in found if name == "all-gather" for shape in shapes]
    parameters = [leaf.shape for leaf in jax.tree.leaves(step.shapes.params) if divided(leaf, step.devices)]
    # XLA may gather an array in another order of its axes, or folded.
    assert sorted(map(math.prod, gathered)) == sorted(map(math.prod, parameters))


def test_the_state_of_psld_cifar_falls_as_one_over_the_devices():
    """Bytes of one device by the shapes of its parts: all but the arrays of less than 2^14 numbers, 2 in 1,000."""
    _, cifar, _ = read_flags(["train", "--config=configs/psld_cifar.py"])
    (phase,) = phases_of(cifar, build.phases(cifar, (32, 32, 3), None))
    shapes = jax.eval_shape(lambda key: create(phase.task.init(key), phase.optimizer), jax.random.key(0))
    leaves = jax.tree.leaves(shapes)
    small = sum(num_bytes(leaf) for leaf in leaves if math.prod(leaf.shape) < 2**14)
    total = sum(map(num_bytes, leaves))
    assert small < 0.002 * total and total > 1.5e9
    for devices in (1, 2, 4, 8):
        places = sh.state_shardings(sh.make_mesh(devices, jax.devices()[:devices]), shapes)
        pairs = zip(leaves, jax.tree.leaves(places), strict=True)
        held = sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in pairs)
        assert held == (total - small) // devices + small


def test_one_reduction_of_the_gradient(data_parallel):
    """All arrays of the gradient in one operation, with the loss; nothing else is sent."""
    ((name, shapes),) = collectives(data_parallel)
    parameters = jax.tree.leaves(Step(config(), 8, 1).shapes.params)
    assert name == "all-reduce" and len(parameters) > 60
    counts = collections.Counter(map(math.prod, shapes))
    counts.subtract(collections.Counter(math.prod(leaf.shape) for leaf in parameters))
    assert set(counts.elements()) <= {1} and min(counts.values()) == 0  # what is left are numbers: loss and metrics
    assert counts[1] <= 4


@pytest.mark.slow
def test_one_reduction_however_many_parameters():
    assert len(collectives(Step(config(model={"num_res_blocks": 2, "ch_mult": (1, 1)}), 8, 1).compiled())) == 1


def gradient_of(step: Step) -> tuple[float, Any, Any]:
    """Loss, gradient and the networks' state after one step with plain descent of rate 1: what has been subtracted."""
    state = jax.jit(step.initial)(jax.random.key(0))
    before = jax.device_get(state)
    after, metrics = step.taken(before)
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before.params, jax.device_get(after.params))
    return float(metrics["loss"]), gradient, jax.device_get(after.model_state)


def assert_same_step(settings, shape=SHAPE, rtol=1e-4):
    """One device, eight that copy the state, and 2 x 4 that split it; the differences are float32's sums in another
    order, relative to the largest element of each array."""
    one, copied, split = (Step(settings, *over, shape, optax.sgd(1.0)) for over in ((1, 1), (8, 1), (8, 4)))
    loss, gradient, model_state = gradient_of(one)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    assert largest > 0

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-5 * largest)

    for other in (copied, split):
        value, grads, new = gradient_of(other)
        np.testing.assert_allclose(value, loss, rtol=1e-5)
        jax.tree.map(close, grads, gradient)
        jax.tree.map(close, new, model_state)
    return model_state


@pytest.mark.slow
def test_group_norm_and_attention_are_those_of_one_device():
    assert_same_step(config(optimizer={"grad_clip": None}))


@pytest.mark.slow
def test_batch_norm_and_power_iterations_are_those_of_one_device():
    """Of the VAE of LSGM, whose batch norm takes its statistics over the whole batch, on all devices."""
    settings = test_latent.config(train={"batch_size": BATCH})
    state = assert_same_step(settings, (8, 8, 1))
    assert jax.tree.leaves(state["batch_stats"]) and jax.tree.leaves(state["spectral"])


# ------------------------------------------------------------------------------------------------------------- sampling
ADAPTIVE = {"rtol": 1e-2, "atol": 1e-2}
SAMPLING = {
    "em": {"steps": 3},
    "sscs": {"steps": 3},
    "ode": ADAPTIVE,
    "adaptive_sde": ADAPTIVE,
    "annealed_langevin": {},
    "gddim": {"steps": 3},
    "pc": {"steps": 3},
}


def sampler_on(name: str, devices: int, fsdp: int) -> tuple[Any, Any, Any]:
    """A sampler with the variables that it draws from, on their devices, and their shapes."""
    sections = LANGEVIN if name == "annealed_langevin" else {}
    sampling = {"sampler": name, "batch_size": BATCH, **SAMPLING[name], **sections.get("sampling", {})}
    settings = from_dict({**{"data": {"name": "digits", "image_size": 4}, "model": NETWORK, "sde": {"name": "psld"}},
                          **sections, "sampling": sampling})  # fmt: skip
    side = settings.data.image_size or 0
    task = build.task(settings, (side, side, 1))
    mesh = sh.make_mesh(fsdp, jax.devices()[:devices])
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    places = sh.state_shardings(mesh, shapes, MIN_SIZE)
    return draw.sampler_of(task, settings.sampling, mesh, places, BATCH), task, places


def program_of(sampler: Any, task: Any) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(task.init, key)
    with jax.debug_key_reuse(False):
        return sampler._draw.lower(variables, key, np.uint32(0), None).compile()


@pytest.mark.parametrize("name", tiers.alike(list(SAMPLING), ["ode"]))
def test_devices_draw_without_asking_each_other(name):
    """Not even in the adaptive solvers, whose loops run on each device until its own samples are done."""
    sampler, task, _ = sampler_on(name, 8, 1)
    assert collectives(program_of(sampler, task)) == []


def test_split_parameters_are_gathered_before_the_first_step():
    sampler, task, places = sampler_on("em", 8, 4)
    found = collectives(program_of(sampler, task))
    split = [place for place in jax.tree.leaves(places) if not place.is_fully_replicated]
    assert [name for name, _ in found] == ["all-gather"] * len(split) and split


@pytest.mark.slow
@pytest.mark.parametrize("name", ["em", "ode"])
def test_samples_are_those_of_one_device(name):
    drawn = []
    for devices, fsdp in ((1, 1), (8, 1), (8, 4)):
        sampler, task, places = sampler_on(name, devices, fsdp)
        variables = jax.device_put(jax.jit(task.init)(jax.random.key(0)), places)
        drawn.append(sampler(variables, jax.random.key(1), BATCH + 3))
    (samples, nfe), *others = drawn
    assert samples.shape == (BATCH + 3, *SHAPE)
    for x, used in others:  # a batch of another size may be rounded in another way
        np.testing.assert_allclose(x, samples, rtol=1e-4, atol=1e-4 * np.abs(samples).max())
        assert used == nfe


# --------------------------------------------------------------------------------------------- other numbers of devices
def losses_of(folder) -> list[float]:
    return [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def test_a_run_goes_from_four_devices_to_two_to_eight(tmp_path, monkeypatch):
    """Split in four, in two, and in eight with none copied: what is read is what was written, and the losses go on."""
    monkeypatch.setattr(sh, "state_shardings", functools.partial(sh.state_shardings, min_size=1))
    make_mesh = sh.make_mesh

    def go(folder, devices, fsdp, steps):
        settings = tiny.config(train={"steps": steps, "fsdp": fsdp, "log_every": 1, "eval_every": 0})
        given = {"task": tiny.Task(), "dataset": tiny.dataset()}
        with monkeypatch.context() as patch:
            patch.setattr(sh, "make_mesh", lambda fsdp=1: make_mesh(fsdp, jax.devices()[:devices]))
            run = setup(settings, folder, **given)
            assert isinstance(run, Run)
            there = Checkpointer(folder, read_only=True).restore(lambda step: run.abstract)
            assert run.execute().step == steps
            return jax.device_get(there and there[0]), run

    def newest(folder, run):
        found = Checkpointer(folder, read_only=True).restore(lambda step: run.abstract)
        assert found is not None
        return found[0]

    _, whole = go(tmp_path / "one", 1, 1, 30)
    _, run = go(tmp_path / "run", 4, 4, 10)
    for devices, fsdp, steps in ((2, 2, 20), (8, 8, 30)):
        written = newest(tmp_path / "run", run)
        assert {len(x.sharding.device_set) for x in jax.tree.leaves(written)} == {run.mesh.size}
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(written))
        read, run = go(tmp_path / "run", devices, fsdp, steps)
        jax.tree.map(np.testing.assert_array_equal, read, jax.device_get(written))
    assert len(losses_of(tmp_path / "run")) == 30
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(tmp_path / "one"), rtol=1e-5)
    for a, b in zip(
        *(jax.tree.leaves(newest(tmp_path / n, r)) for n, r in (("run", run), ("one", whole))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
