"""Opens the folder of a run, or its file (`tensors`): what it learnt, as functions and variables.

run = load_run("runs/psld_digits")  # or "psld_digits.safetensors"
samples, info = run.sample(key, 64)
score_fn = run.score_fn()
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from sgmjax._files import run_name, user_path
from sgmjax._inputs import InputError
from sgmjax._say import say as say_on_stdout
from sgmjax._types import Key
from sgmjax.config import SDE, Config, from_dict, to_dict
from sgmjax.data import DataError, Dataset, load, npz
from sgmjax.data.classes import check_same
from sgmjax.data.examples import check_values
from sgmjax.evaluation import features
from sgmjax.samplers.common import EARLIEST_SURE
from sgmjax.samplers.grids import host_noise_level, host_time_at
from sgmjax.tasks import build
from sgmjax.tasks.base import Variables
from sgmjax.tasks.features import FeatureTask
from sgmjax.tasks.score import ScoreTask
from sgmjax.training import tensors, tuned, workdir
from sgmjax.training.checkpoint import Checkpointer


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run folder's content.

    Attributes:
        task: what is learnt at its newest readable checkpoint.
        variables: the averaged parameters there, and the networks' state.
        step: steps taken until then.
        config: the run's settings; None of a run of `fit`.
    """

    task: Any
    variables: Variables
    step: int
    config: Config | None

    @property
    def plan(self) -> Any:
        """How samples are drawn, a `samplers.Plan`: the section `sampling` of the run's config."""
        if self.config is None:
            raise workdir.WorkdirError("the run has no config, which would say how samples are drawn; give a Plan")
        return self.config.sampling

    def score_fn(self, **options: Any) -> Any:
        """The score function for samplers; options as of the task's."""
        return self.task.score_fn(self.variables, **options)

    def sample(self, key: Key, num: int, plan: Any = None, **options: Any) -> Any:
        """`num` samples and a `SampleInfo`, by a plan, or as the run's config says; options as of the task's."""
        return self.task.sample(self.variables, key, num, self.plan if plan is None else plan, **options)


def load_run(
    path: str | os.PathLike,
    *,
    task: Callable[[], Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    process: Mapping[str, Any] | None = None,
    sharding: jax.sharding.Sharding | None = None,
    say: Callable[[str], None] = say_on_stdout,
    averaged: bool = True,
    best: bool = False,
) -> LoadedRun:
    """Reads the config and the averaged parameters of a run folder, or of a run's file; writes nothing.

    Args:
        path: the run folder, or what `python -m sgmjax.export_checkpoint --format=safetensors` has made of one; or the
            name of a run that comes with sgmjax, as "psld_digits"; "zoo:psld_digits" is never a folder.
        task: of a run of `fit`: a function that makes its (last) task.
        sampling: settings of the `sampling` section to use in place of the run's, as {"steps": 100}; `options` are
            added to the run's, unless the sampler is another one. What the run has set for a sampler of another kind
            is passed over.
        process: the process to sample, score and measure with in place of the run's, a section `sde` of a config, as
            {"name": "psld", "gamma": 0.02}: see `ScoreTask.as_process`. `config.sde` is then this one, and sampling
            ends where it has the noise level of the run's own end, unless `sampling` says where.
        sharding: where the variables shall lie; None: on the first device.
        say: receives a line for every damaged checkpoint that is passed over.
        averaged: False takes the parameters being trained, without their moving average.
        best: takes the averaged parameters that `train.keep_best` has kept, in place of the newest.

    Raises:
        WorkdirError: there is no run, or it has no checkpoint yet.
        ConfigError: settings that cannot work.
        CheckpointError: there are checkpoints, and none can be read.

    Examples:
        >>> import tempfile
        >>> from sgmjax import config
        >>> settings = config.from_dict({
        ...     "data": {"name": "ring", "eval_split": None},
        ...     "sde": {"name": "vp"},
        ...     "model": {"name": "mlp", "depth": 1},
        ...     "optimizer": {"warmup_steps": 0},
        ...     "train": {"steps": 2, "batch_size": 8},
        ...     "sampling": {"sampler": "em", "steps": 2, "num": 8},
        ... })
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = sgmjax.train(settings, folder)
        ...     run = sgmjax.load_run(folder)
        compiling the training step ...
        >>> run.step
        2
        >>> samples, info = run.sample(jax.random.key(0), 8)
        >>> samples.shape, info.nfe
        ((8, 2), 2)
    """
    path, config = tensors.find(path), None
    if process is not None and task is not None:
        raise InputError("process: is of a run with a config; make a task of your own with the process that you want")
    if task is None:
        config = read_config(path, sampling if process is None else None)
        if process is None:
            config = _with_tuned_grid(path, config, None)
        about = workdir.read_data(path)
        known = {"class_names": about.class_names, "discrete": about.discrete}
        parts = build.phases(config, about.shape, about.num_classes, **known)
    else:
        parts = [(task(), 1)]
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(parts[0][0].init, jax.random.key(0))
    if tensors.is_tensor_file(path):
        if best:
            raise workdir.WorkdirError(f"{run_name(path)} is one file, without best parameters beside it")
        step, raw, average = tensors.read(path, shapes)
        variables = jax.device_put(average if averaged else raw, sharding)
    else:
        step, variables = _of_folder(path, shapes, sharding, say, averaged=averaged, best=best)
    ends = itertools.accumulate(steps for _, steps in parts)
    learnt = next((one for (one, _), end in zip(parts, ends, strict=True) if step <= end), parts[-1][0])
    if process is not None:
        learnt, config = _as_process(learnt, read_config(path, sampling), process, ends="t_min" in (sampling or {}))
        config = _with_tuned_grid(path, config, process)
    return LoadedRun(learnt, variables, step, config)


def _as_process(task: Any, config: Config, process: Mapping[str, Any], *, ends: bool) -> tuple[Any, Config]:
    """The task and the config of a run that samples with another process."""
    section = SDE.read(process, "process")
    sde = build.process(section)
    if not isinstance(task, ScoreTask):
        raise InputError(
            f"process: {section.name!r} is for a run that has learnt a score of data; a prior of latent variables, or "
            "a classifier, is of the process that it was trained with; leave it out"
        )
    plan = config.sampling
    if not ends:
        level = host_noise_level(task.sde, np.asarray([plan.t_min]))
        plan = dataclasses.replace(plan, t_min=max(EARLIEST_SURE, float(host_time_at(sde, level)[0])))
    return task.as_process(sde), dataclasses.replace(config, sde=section, sampling=plan)


def _with_tuned_grid(path: str | os.PathLike, config: Config, process: Mapping[str, Any] | None) -> Config:
    """The config with the times of grid "tuned", where they are not in it, from the run's folder."""
    if config.sampling.grid != "tuned" or config.sampling.times:
        return config
    return dataclasses.replace(config, sampling=tuned.fill(path, config.sampling, process))


def _of_folder(
    path: str | os.PathLike, shapes: Variables, sharding: Any, say: Callable[[str], None], *, averaged: bool, best: bool
) -> tuple[int, Variables]:
    """The step and the variables of a run folder's newest readable checkpoint."""
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)
    with _quiet_orbax():
        folder = "best" if best else "checkpoints"
        found = Checkpointer(path, read_only=True, folder=folder).restore_variables(abstract, say, averaged=averaged)
    if found is None and best:
        raise workdir.WorkdirError(
            f"{path} has kept no best parameters; train with train.keep_best, or take the newest"
        )
    if found is None:
        raise workdir.WorkdirError(f"no checkpoint in {path} yet; let the run go on until its first one")
    return found


def read_config(path: str | os.PathLike, sampling: Mapping[str, Any] | None = None) -> Config:
    """The config of a run folder, with other settings of the `sampling` section; see `load_run`.

    Raises:
        WorkdirError: there is no run. ConfigError: settings that cannot work.
    """
    settings, given = to_dict(workdir.read_config(path)), dict(sampling or {})
    wanted = {f"sampling.{key}" for key in given}  # the rest are the run's, for its own sampler
    if given.get("sampler", settings["sampling"]["sampler"]) != settings["sampling"]["sampler"]:
        settings["sampling"]["options"] = {}  # another sampler's
    options = dict(settings["sampling"]["options"]) | dict(given.pop("options", {}))
    settings["sampling"] |= given | {"options": options}
    return from_dict(settings, refuse=lambda key: key in wanted)


def load_features(name: str, task: Any) -> features.Features:
    """The features of a name in `evaluation.features.FEATURES`, or of the run of a feature network.

    Args:
        name: of either; of a run its folder, its safetensors file, or `zoo:name` where it comes with sgmjax.
        task: of the model whose samples are compared: what its examples look like.

    Raises:
        InputError: there is no such name or run, or it is of other examples.
    """
    path = user_path(tensors.find(name), "features")
    is_file = tensors.is_tensor_file(path) and path.is_file()
    if name in features.FEATURES or not (is_file or (path / "config.json").is_file()):
        return features.load_features(name, task.event_shape)
    run = load_run(path)
    if not isinstance(run.task, FeatureTask):
        raise InputError(
            f"features: {run_name(path)} is no run of a feature network; train one, as configs/features_mnist.py does"
        )
    ours, theirs = ((one.event_shape, one.discrete) for one in (task, run.task))
    if ours != theirs:
        one, other = (f"{'uint8' if d else 'float32'} examples of shape {tuple(s)}" for s, d in (ours, theirs))
        raise InputError(f"features: the network in {run_name(path)} is of {other}, and the samples are {one}")
    version = f"{path.stem if is_file else path.name} step {run.step} ({features.digest(run.variables)})"
    return features.Features(
        name, features.Convention(version), run.task.dim, run.task.features, run.variables, run.task.batch_size
    )


def load_data(
    path: str | os.PathLike, run: LoadedRun, split: Literal["train", "eval"], file: str | None = None
) -> Dataset:
    """The data of a run, for what is done with it afterwards.

    Args:
        path: the run's, as of `load_run`.
        run: what `load_run` found there.
        split: training or held-out data.
        file: an .npz with the data to use instead (flag --data), see `sgmjax.data.npz.load_given`.

    Raises:
        DataError: no such data, or others than the run was trained on. InputError: a file that is no such archive.
    """
    task, path = run.task, tensors.find(path)
    if file is not None:
        dataset = npz.load_given(file, split, task.num_classes)
    elif workdir.read_data(path).given or run.config is None:
        raise DataError(
            f"--data: the run in {run_name(path)} was trained on a data set given in Python, which its folder does not "
            "hold; give held-out data, as --data=FILE.npz with arrays x and, for classes, labels"
        )
    else:
        dataset = load(run.config.data, split)
    ours, found = (task.event_shape, task.discrete), (dataset.shape, dataset.discrete)
    if ours != found:
        one, other = (f"{'uint8' if d else 'float32'} examples of shape {tuple(s)}" for s, d in (ours, found))
        raise DataError(f"{dataset.name}: the run in {run_name(path)} was trained on {one}, and these are {other}")
    if task.num_classes is not None:
        check_same(task.num_classes, task.class_names, dataset)
    check_values(dataset, task.centered)
    return dataset


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without orbax's warnings that a folder opened for reading is read-only."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
