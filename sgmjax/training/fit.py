"""A training run, from an empty folder (or where it was left off) to its end.

    phases = [Phase(task, steps=10_000, optimizer=optax.adam(2e-4))]
    result = fit(phases, data.arrays(x), "runs/mine")

A run that was interrupted in whatever way goes on from its last checkpoint and ends with the same bits: step n draws
from `fold_in(key, n)`, and the data iterator's state is part of the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sgmjax._inputs import InputError, one_line
from sgmjax._ranges import COUNT, COUNT_OR_ZERO, check_range
from sgmjax._say import say
from sgmjax.training import earlier, workdir
from sgmjax.training.callbacks import Callback, complete
from sgmjax.training.phase import Phase, Result, Settings
from sgmjax.training.run import Run


def fit(
    phases: Sequence[Phase],
    data: Any,
    folder: str | os.PathLike,
    *,
    held_out: Any = None,
    callbacks: Sequence[Callback] = (),
    settings: Settings | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    restart: bool = False,
) -> Result:
    """Trains, or goes on training, in a run folder.

    Args:
        phases: what is learnt, one after the other.
        data: training data, of `sgmjax.data` (`data.arrays(x)`, `data.load("digits")`).
        folder: the run folder; `load_run(folder, task=...)` opens it.
        held_out: other data, for callbacks.
        callbacks: what is done with the averaged parameters on the way and at the end.
        settings: how steps are taken.
        seed: of all that is random.
        config: what else shall stand in the folder's config.json, and be the same when the run goes on.
        restart: begin from step 0 in a folder that holds a run, whose files are moved into `earlier/<n>`.

    Raises:
        InputError: before anything is compiled: phases, settings, folder or data that cannot work; another process
            trains in the folder.
        CheckpointError: all checkpoints of the folder are damaged or gone, or are of another network.
        NonFiniteError: after `settings.max_bad_steps` bad steps in a row.
        TroubleError: a full disk, a lost process.

    Examples:
        >>> import tempfile, optax
        >>> class Mean:  # a task: learns the mean of its data
        ...     event_shape = (1,)
        ...     def init(self, key):
        ...         return tasks.Variables({"mean": jnp.zeros(())})
        ...     def loss(self, variables, key, batch, *, step, ema, train):
        ...         return jnp.mean((batch["x"] - variables.params["mean"]) ** 2), {}, {}
        >>> phase = sgmjax.Phase(Mean(), steps=20, optimizer=optax.sgd(0.5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = sgmjax.fit([phase], data.arrays(np.full((100, 1), 3.0)), folder)
        compiling the training step ...
        >>> result.status, result.step, round(float(result.variables.params["mean"]), 2)
        ('finished', 20, 3.0)
    """
    settings = settings or Settings()
    _check(phases, data, settings, callbacks)
    # more steps are a reason to go on, but where a phase ends the next one began
    record = {"seed": seed, "steps": [phase.steps for phase in phases[:-1]], "train": dataclasses.asdict(settings)}
    record = {"task": [type(phase.task).__name__ for phase in phases]} | record | dict(config or {})
    try:
        json.dumps(record)
    except (TypeError, ValueError) as error:
        raise InputError(f"config: stands in config.json, and JSON cannot hold it: {one_line(error)}") from None
    with earlier.entered(folder, restart=restart) as entry:
        workdir.check_record(entry.path, record)
        steps = sum(phase.steps for phase in phases)
        if there := complete(callbacks, entry.path, steps):
            say(f"{entry.path} is complete: {steps} steps, {there}")
            return Result("complete", steps, entry.path)
        earlier.check_resumable(entry.path)
        options: dict[str, Any] = {"held_out": held_out, "callbacks": callbacks, "seed": seed, "given": True}
        run = Run(phases, data, entry.path, settings, record={"fit": record}, **options)
        run.lock = entry.keep()
    return run.execute()


def _check(phases: Sequence[Phase], data: Any, settings: Settings, callbacks: Sequence[Callback]) -> None:
    if not phases:
        raise InputError("phases: there is none; give at least one Phase(task, steps, optimizer)")
    counts: dict[str, int] = {f"phases[{i}].steps": phase.steps for i, phase in enumerate(phases)}
    counts |= {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise InputError(f"{name}: expected a whole number, got {count!r}")
        check_range(count, COUNT_OR_ZERO if name == "checkpoint_every" else COUNT, name)
    called = {f"callbacks[{i}].every": callback.every for i, callback in enumerate(callbacks)}
    counts |= called
    for name in (*list(counts)[: len(phases)], "log_every", "checkpoint_every", *called):
        if counts[name] % settings.steps_per_dispatch:
            raise InputError(
                f"{name}: {counts[name]} is not a multiple of steps_per_dispatch={settings.steps_per_dispatch}"
            )
    if jax.device_count() % settings.fsdp:
        raise InputError(f"fsdp: {settings.fsdp} does not divide the {jax.device_count()} devices")
    parts = math.lcm(jax.device_count(), jax.process_count()) * settings.grad_accumulation
    if settings.batch_size % parts:
        raise InputError(f"batch_size: {settings.batch_size} cannot be divided into {parts} equal parts")
    for i, phase in enumerate(phases):
        for name in ("event_shape", "init", "loss"):
            if not hasattr(phase.task, name):
                raise InputError(
                    f"phases[{i}].task: {type(phase.task).__name__} has no {name}; a task has event_shape, init and "
                    "loss (sgmjax.tasks.Task)"
                )
        shape = tuple(phase.task.event_shape)
        if shape != tuple(data.shape):
            raise InputError(f"data: examples have shape {tuple(data.shape)}, and the task's event_shape is {shape}")
