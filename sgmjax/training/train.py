"""A run by a configuration: reads the data, builds the task, and trains.

result = train(config, "runs/digits")
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax

from sgmjax import models
from sgmjax._files import AnyPath
from sgmjax._inputs import InputError
from sgmjax._ranges import check_memory
from sgmjax._say import say
from sgmjax.config import (
    Config,
    ConfigError,
    OptimizerConfig,
    check,
    differences,
    to_dict,
    validate_for_devices,
)
from sgmjax.data.classes import check_same, listed, plain
from sgmjax.data.examples import check_values
from sgmjax.evaluation import metrics, pictures
from sgmjax.tasks import build
from sgmjax.tasks.build_latent import check_images
from sgmjax.tasks.latent import LatentTask, drop_inactive, with_vae
from sgmjax.tasks.vae import REMEDIES, LatentModel
from sgmjax.training import earlier, horizon, workdir
from sgmjax.training.best import Best
from sgmjax.training.callbacks import Accuracy, Callback, FinalSamples, HeldOut, Metrics, Pictures, complete
from sgmjax.training.load import load_features, load_run
from sgmjax.training.optimizer import ema_decay, grouped_ema_decay, make_grouped_optimizer, make_optimizer
from sgmjax.training.phase import Phase, Result
from sgmjax.training.run import Run

_TRAINING_ONLY = ("kl_", "spectral_weight", "remat", "approximate_tails")  # settings of `vae` that no weight depends on


def train(
    config: Config,
    folder: str | os.PathLike,
    *,
    task: Any = None,
    dataset: Any = None,
    eval_dataset: Any = None,
    allow_changes: Sequence[str] = (),
    restart: bool = False,
) -> Result:
    """Trains, or goes on training, in a run folder.

    Args:
        config: the run's settings.
        folder: the run folder.
        task: what is learnt; default what the config says.
        dataset: training data; default `data.load(config.data, "train")`.
        eval_dataset: held-out data; default that of the config if neither `dataset` nor this is given.
        allow_changes: settings of `train` and `optimizer` that may differ from those of the folder's run, as
            `optimizer.learning_rate`; the change is recorded in its config.json.
        restart: begin from step 0 in a folder that holds a run, whose files are moved into `earlier/<n>`.

    Raises:
        ConfigError, WorkdirError, ValueError: before anything is compiled: settings, folder or data that cannot work;
            another process trains in the folder.
        CheckpointError: all checkpoints of the folder are damaged or gone, or are of another network.
        NonFiniteError: after `train.max_bad_steps` bad steps in a row.
        TroubleError: a full disk, a lost process.

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
        compiling the training step ...
        >>> result.status, result.step
        ('finished', 2)
    """
    run = setup(
        config, folder, task=task, dataset=dataset, eval_dataset=eval_dataset, allow_changes=allow_changes,
        restart=restart,
    )  # fmt: skip
    return run if isinstance(run, Result) else run.execute()


def setup(
    config: Config,
    folder: str | os.PathLike,
    *,
    task: Any = None,
    dataset: Any = None,
    eval_dataset: Any = None,
    allow_changes: Sequence[str] = (),
    restart: bool = False,
) -> Run | Result:
    """All checks of `train`, and nothing that takes long: a run ready to execute, or the result of a complete one.

    From here on the run has the lock of its folder, until it has been executed or is forgotten.
    """
    check(config)
    validate_for_devices(config, jax.device_count(), jax.process_count())
    with earlier.entered(folder, restart=restart) as entry:
        changed = workdir.check_config(entry.path, config, allow_changes)
        callbacks = callbacks_of(config)
        if there := complete(callbacks, entry.path, config.train.steps):
            say(f"{entry.path} is complete: {config.train.steps} steps, {there}")
            return Result("complete", config.train.steps, entry.path)
        earlier.check_resumable(entry.path)
        run = _prepared(config, entry.path, task, dataset, eval_dataset, callbacks, changed)
        run.lock = entry.keep()
        return run


def callbacks_of(config: Config) -> list[Callback]:
    """What a configuration asks for besides the steps."""
    train, sampling = config.train, config.sampling
    held_out = HeldOut(train.eval_every, train.eval_batches)
    best = train.keep_best
    beside = "eval_" if best is None or best.startswith("eval_") else f"{best.partition('_')[0]}_"
    kept = [] if best is None else [Best(best, beside=beside)]
    if models.classifies(config.model):
        return [held_out, *kept, *([Accuracy()] if models.sees_noise(config.model) else [])]
    found = [held_out, Pictures(sampling, train.sample_every, sampling.grid_images)]
    if train.metrics:
        subject = {"num": sampling.num, "batch_size": sampling.batch_size, "t_min": config.objective.t_min}
        settings = metrics.Settings(features=train.metrics_features)
        more = {"mirrored": config.data.flip, "settings": settings, **subject}
        found.append(Metrics(train.metrics, sampling, train.metrics_every, **more))
    return [*found, *kept, FinalSamples(sampling, sampling.num, sampling.batch_size)]


def _prepared(
    config: Config,
    path: AnyPath,
    task: Any,
    dataset: Any,
    eval_dataset: Any,
    callbacks: Sequence[Callback],
    changed: Sequence[tuple[str, Any, Any]],
) -> Run:
    """What of `setup` reads the data and looks at the task."""
    given = dataset is not None
    if dataset is None:
        from sgmjax import data

        dataset = data.load(config.data, "train")
        if eval_dataset is None and config.data.eval_split is not None:
            eval_dataset = data.load(config.data, "eval")
    resizable = not given and config.data.name != "npz"
    _check_data(config, dataset, eval_dataset, resizable)
    if models.classifies(config.model) or getattr(config.model, "num_classes", None) is not None:
        workdir.check_classes(path, dataset)
        if eval_dataset is not None:
            check_same(dataset.num_classes, dataset.class_names, eval_dataset)
    if not plain(dataset.class_names):
        say(f"classes: {listed(dataset.class_names)}")
    if task is None:
        options = {"class_names": dataset.class_names, "discrete": dataset.discrete, "resizable": resizable}
        parts = build.phases(config, dataset.shape, dataset.num_classes, **options)
    else:
        parts = [(task, config.train.steps)]
    check_metrics(config, parts[-1][0], eval_dataset is not None)
    if config.vae is not None:
        check_images(config, dataset)
        check_vae_from(config)
    if not models.classifies(config.model):
        pictures.check(dataset.shape)
    _check_sizes(config, dataset.shape)
    for line in horizon.outlasting(config):
        say(line)
    run = Run(
        phases_of(config, parts), dataset, path, config.train, record={"config": to_dict(config)},
        held_out=eval_dataset, callbacks=callbacks, seed=config.seed, changed=changed, given=given,
    )  # fmt: skip
    workdir.check_space(path, run.abstract, config.train.keep_checkpoints, dataset.shape, config.sampling.num)
    return run


def phases_of(config: Config, parts: Sequence[tuple[Any, int]]) -> list[Phase]:
    """Tasks, each over so many steps, with the optimisers of the config.

    Args:
        config: the settings.
        parts: of `tasks.build.phases`.
    """
    found = []
    for task, steps in parts:
        decayed = models.trainable_mask(jax.eval_shape(task.init, jax.random.key(0)).params)
        if isinstance(task, LatentModel):
            groups = _groups(config, task)
            optimizer = make_grouped_optimizer(groups, decayed, steps=steps)
            ema: Any = functools.partial(grouped_ema_decay, groups, tuple(decayed))
            found.append(Phase(task, steps, optimizer, ema, _start(config, task, first=not found), REMEDIES))
        else:
            optimizer = make_optimizer(config.optimizer, decayed, steps=steps)
            found.append(Phase(task, steps, optimizer, functools.partial(ema_decay, config.optimizer)))
    return found


def _groups(config: Config, task: LatentModel) -> dict[str, OptimizerConfig]:
    """The optimisers of a phase by the groups of parameters that it moves."""
    latent = config.latent
    if not isinstance(task, LatentTask):
        return {"vae": latent.vae_optimizer}
    return {"prior": config.optimizer} | ({"vae": latent.vae_finetune} if latent.train_vae else {})


def _start(config: Config, task: LatentModel, *, first: bool) -> Any:
    """What a phase of an LSGM does before its first step."""
    latent = config.latent
    todo: list[Any] = []
    if first and (path := latent.vae_from) is not None:
        todo.append(lambda *args: with_vae(jax.device_get(load_run(path).variables))(*args))
    if isinstance(task, LatentTask) and latent.drop_inactive:
        todo.append(drop_inactive(task))
    if not todo:
        return None

    def start(variables, data, key):
        for one in todo:
            variables = one(variables, data, key)
        return variables

    return start


# --------------------------------------------------------------------------------------------------------------- checks
def _check_sizes(config: Config, shape: tuple[int, ...]) -> None:
    """That the batches of a dispatch and the samples fit into the memory of this machine."""
    train, sampling = config.train, config.sampling
    batch = train.batch_size * train.steps_per_dispatch // jax.process_count()
    check_memory("train.batch_size", batch, shape, fix="give a smaller one, or more train.grad_accumulation")
    check_memory("sampling.batch_size", min(sampling.batch_size, sampling.num), shape, fix="give a smaller one")
    for name in ("num", "grid_images"):
        check_memory(f"sampling.{name}", getattr(sampling, name), shape, fix="give fewer")


def _check_data(config: Config, dataset: Any, eval_dataset: Any, resizable: bool) -> None:
    """That the two parts of the data fit one another, and what networks see is finite and in its range."""
    check_values(dataset, config.data.centered)
    if eval_dataset is None:
        return
    check_values(eval_dataset, config.data.centered)
    if eval_dataset.shape != dataset.shape:
        fix = "; set data.image_size to give both one size" if resizable else ""
        raise ConfigError(
            f"data: training examples have shape {dataset.shape} and held-out ones {eval_dataset.shape}{fix}"
        )
    if eval_dataset.discrete != dataset.discrete:
        one, other = ("uint8" if part.discrete else "floats" for part in (dataset, eval_dataset))
        raise ConfigError(f"data: training examples are {one} and held-out ones {other}; give both the same type")


def check_metrics(config: Config, task: Any, held_out: bool) -> None:
    """That what shall be measured on the way can be, and that it is the number whose best parameters are kept.

    Raises:
        ConfigError: naming the setting.
    """
    train = config.train
    for name in train.metrics:
        try:
            metrics.check(name, task, config.sampling.num)
        except InputError as error:
            raise ConfigError(f"train.metrics: {error}") from None
        if name in metrics.TWO_PARTS and not held_out:
            raise ConfigError(f"train.metrics: {name} compares samples with training and held-out data; give both")
    if set(train.metrics) & set(metrics.IN_FEATURES):
        try:
            features = load_features(train.metrics_features, task)
            for name in train.metrics:
                metrics.check(name, task, config.sampling.num, metrics.Settings(features=features))
        except InputError as error:
            raise ConfigError(f"train.metrics_features: {error}") from None
    best = train.keep_best
    measured = held_out and best is not None and best.startswith("eval_")
    if best is not None and not measured and not any(f"{best}_".startswith(f"{name}_") for name in train.metrics):
        fix = "give held-out data" if best.startswith("eval_") else "add it to train.metrics"
        raise ConfigError(f"train.keep_best: nothing measures {best!r} during training; {fix}")


def check_vae_from(config: Config) -> None:
    """That the VAE of `latent.vae_from` has this one's architecture.

    Raises:
        ConfigError: naming the first settings that differ.
    """
    path = config.latent.vae_from
    if path is None:
        return
    try:
        there = workdir.read_config(path)
    except workdir.WorkdirError as error:
        raise ConfigError(f"latent.vae_from: {error}") from None
    if there.vae is None:
        raise ConfigError(f"latent.vae_from: the run in {path} has no VAE")
    changed = [
        f"vae.{key}: {old} there, {new} here"
        for key, old, new in differences(to_dict(there.vae), to_dict(config.vae))
        if not key.startswith(_TRAINING_ONLY)
    ]
    if changed:
        raise ConfigError(f"latent.vae_from: the VAE in {path} is another one ({'; '.join(changed[:3])})")
