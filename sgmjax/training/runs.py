"""Opens the folder of a run: what it learnt, as functions and parameters.

run = load_run("runs/psld_digits")
samples, info = run.problem.sample_fn(run.params, key, 64)
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax

from sgmjax.data import DataError, Dataset, load, npz
from sgmjax.data.classes import check_same
from sgmjax.data.examples import check_values
from sgmjax.training import build, workdir
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.config import Config, from_dict, to_dict
from sgmjax.training.logging import say as say_on_stdout


class LoadedRun(NamedTuple):
    """A run folder's content.

    Attributes:
        problem: the functions of the run: `sde`, `eps_fn`, `score_fn`, `sample_fn`, `loss_fn`; of a classifier's run
            `sde`, `logits_fn`, `loss_fn`.
        params: the averaged parameters of the newest readable checkpoint; with the networks' state, where they have
            one, {"params": parameters, "state": state}.
        step: steps taken until then.
    """

    problem: Any  # build.Problem or build.Classifier
    params: Any
    step: int


def load_run(
    path: str | os.PathLike,
    *,
    sampling: Mapping[str, Any] | None = None,
    sharding: jax.sharding.Sharding | None = None,
    say: Callable[[str], None] = say_on_stdout,
    averaged: bool = True,
) -> LoadedRun:
    """Reads the config and the averaged parameters of a run folder; writes nothing.

    Args:
        path: the run folder.
        sampling: settings of the `sampling` section to use in place of the run's, as {"steps": 100}; `options` are
            added to the run's, unless the sampler is another one. What the run has set for a sampler of another kind
            is passed over.
        sharding: where the parameters shall lie; None: on the first device.
        say: receives a line for every damaged checkpoint that is passed over.
        averaged: False takes the parameters being trained, without their moving average.

    Raises:
        WorkdirError: there is no run, or it has no checkpoint yet.
        ConfigError: settings that cannot work.
        CheckpointError: there are checkpoints, and none can be read.
    """
    config = read_config(path, sampling)
    about = workdir.read_data(path)
    known = {"class_names": about.class_names, "discrete": about.discrete}
    problem: Any = build.problem(config, about.shape, about.num_classes, **known)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    stateful = hasattr(problem, "init_state")
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    state_shapes = jax.eval_shape(problem.init_state, jax.random.key(0)) if stateful else {}
    abstract, state = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), (shapes, state_shapes)
    )
    with _quiet_orbax():
        found = Checkpointer(path, read_only=True).restore_ema(abstract, say, model_state=state, averaged=averaged)
    if found is None:
        raise workdir.WorkdirError(f"no checkpoint in {path} yet; let the run go on until its first one")
    step, params, state = found
    if stateful:
        params = {"params": params, "state": state}
    if hasattr(problem, "stages"):
        steps = problem.config.train.steps
        problem = next(part for end, part in problem.stages(steps) if step <= end)
    return LoadedRun(problem, params, step)


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


def load_data(
    path: str | os.PathLike, problem: Any, split: Literal["train", "eval"], file: str | None = None
) -> Dataset:
    """The data of a run, for what is done with it afterwards.

    Args:
        path: the run folder.
        problem: of the run.
        split: training or held-out data.
        file: an .npz with the data to use instead (flag --data), see `sgmjax.data.npz.load_given`.

    Raises:
        DataError: no such data, or others than the run was trained on. InputError: a file that is no such archive.
    """
    if file is not None:
        dataset = npz.load_given(file, split, problem.num_classes)
    elif workdir.read_data(path).given:
        raise DataError(
            f"--data: the run in {path} was trained on a data set given in Python, which its folder does not hold; "
            "give held-out data, as --data=FILE.npz with arrays x and, for classes, labels"
        )
    else:
        dataset = load(problem.config.data, split)
    ours, found = (problem.event_shape, problem.discrete), (dataset.shape, dataset.discrete)
    if ours != found:
        one, other = (f"{'uint8' if d else 'float32'} examples of shape {tuple(s)}" for s, d in (ours, found))
        raise DataError(f"{dataset.name}: the run in {path} was trained on {one}, and these are {other}")
    if problem.num_classes is not None:
        check_same(problem.num_classes, problem.class_names, dataset)
    check_values(dataset, problem.centered)
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
