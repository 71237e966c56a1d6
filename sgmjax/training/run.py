"""The loop: restores or starts, takes steps, calls the callbacks, saves, and ends."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax import sharding as sh
from sgmjax._files import AnyPath
from sgmjax._inputs import InputError, shown
from sgmjax._say import say
from sgmjax.evaluation.subject import Unfinished
from sgmjax.tasks.base import Variables
from sgmjax.training import earlier, trouble, workdir
from sgmjax.training.callbacks import Callback, Moment
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.interrupt import Interrupt
from sgmjax.training.lock import RunLock
from sgmjax.training.logging import MetricsWriter, Progress
from sgmjax.training.phase import NonFiniteError, Phase, Result, Settings
from sgmjax.training.state import TrainState, create
from sgmjax.training.step import make_train_step, step_batch_sharding

_INIT, _TRAIN = range(2)  # what the random keys of a run are for; `callbacks` has the others
AHEAD = 2  # dispatches that may wait for the devices


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A phase between its first step and its last, compiled."""

    phase: Phase
    first: int
    end: int
    step_fn: Any
    abstract: TrainState  # what its checkpoints hold
    shardings: TrainState


class _Begun(NamedTuple):
    """Where a run is: what a checkpoint says of it."""

    state: TrainState
    step: int
    iterator: Any  # None: has seen no data
    window: list[Any]  # metrics since the last line of the log
    owed: bool = False  # a signal came before the callbacks that were due after the step


class Run:
    """A run that passed all checks; `execute` does it.

    Args:
        phases, data, held_out, callbacks, seed: as of `fit`.
        path: the run folder.
        settings: how steps are taken; the section `train` of a config is such.
        record: what `config.json` shall say.
        changed: settings that are others than in the folder's run, as (name, old, new).
        given: the data were given in Python: the folder says so to the commands.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        data: Any,
        path: AnyPath,
        settings: Settings,
        *,
        record: Mapping[str, Any],
        held_out: Any = None,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        changed: Sequence[tuple[str, Any, Any]] = (),
        given: bool = False,
    ):
        self.path, self.settings, self.record, self.changed, self.given = path, settings, record, changed, given
        self.data, self.held_out, self.callbacks = data, held_out, tuple(callbacks)
        self.seed, self.key = seed, jax.random.key(seed)
        self.steps = sum(phase.steps for phase in phases)
        self.mesh = sh.make_mesh(settings.fsdp)
        self._batch_sharding = step_batch_sharding(settings, self.mesh)
        self.lock: RunLock | None = None  # taken when it is executed, if not before
        self.stages, first = [], 0
        for phase in phases:
            self.stages.append(self._stage_of(phase, first))
            first += phase.steps
        one = self.stages[0]
        self.initial = jax.jit(
            lambda key: create(one.phase.task.init(key), one.phase.optimizer), out_shardings=one.shardings
        )

    def _stage_of(self, phase: Phase, first: int) -> _Stage:
        task, optimizer = phase.task, phase.optimizer
        shapes = jax.eval_shape(lambda key: create(task.init(key), optimizer), self.key)
        places = sh.state_shardings(self.mesh, shapes)
        abstract = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)
        step_fn = make_train_step(task, optimizer, phase.ema, self.settings, self.mesh, places, first=first)
        return _Stage(phase, first, first + phase.steps, step_fn, abstract, places)

    def stage(self, step: int) -> _Stage:
        """The stage that takes the step after `step`."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])

    @property
    def abstract(self) -> TrainState:
        """What a checkpoint holds at most."""
        return max((stage.abstract for stage in self.stages), key=lambda state: len(jax.tree.leaves(state)))

    # ------------------------------------------------------------------------------------------------ beginning, end
    def execute(self) -> Result:
        """Restores or starts, takes the remaining steps, lets the callbacks finish; releases the lock."""
        self.lock = self.lock or RunLock(self.path, say)
        with self.lock:
            earlier.tidy(self.path, say)
            checkpointer, trouble_met = Checkpointer(self.path, self.settings.keep_checkpoints), None
            try:
                with trouble.explained(self.path):
                    result = self._execute(checkpointer)
            except trouble.TroubleError as error:
                trouble_met = error
                raise
            finally:
                if not isinstance(trouble_met, trouble.LostProcessError):  # else it would wait for what never comes
                    try:
                        with trouble.explained(self.path):
                            checkpointer.close()
                    finally:
                        trouble.sweep(self.path)
            sh.wait_for_all("sgmjax_end")  # whoever started them may end the others when one has ended
        return result

    def _execute(self, checkpointer: Checkpointer) -> Result:
        with jax.set_mesh(self.mesh), Interrupt() as interrupt:
            begun = self._begin(checkpointer)
            state, step, host_ms = begun.state, begun.step, None
            if step < self.steps or begun.owed:
                state, step, host_ms = self._take_steps(begun, checkpointer, interrupt)
            if interrupt.received or not self._finish(self._moment(state, step, interrupt), interrupt):
                assert interrupt.received is not None
                checkpointer.wait()
                say(f"stopped by {interrupt.name} after step {step}, saved; the same command goes on from there")
                return Result("interrupted", step, self.path, host_ms, int(interrupt.received), state.averaged)
        return Result("finished", step, self.path, host_ms, None, state.averaged)

    def _finish(self, moment: Moment, interrupt: Interrupt) -> bool:
        """Lets the callbacks finish; False: a signal came in between."""
        for callback in self.callbacks:
            if callback.finish(moment) is False:
                if interrupt.received is None:
                    name = type(callback).__name__
                    raise InputError(f"{name}.finish returned False, which says that a signal came; return True")
                return False
        return True

    def adopt(self, variables: Variables, averaged: Variables, step: int, data: workdir.DataRecord) -> None:
        """Writes the folder of a run that has taken `step` steps to these variables, with an optimiser that has not."""
        with RunLock(self.path, say), jax.set_mesh(self.mesh):
            workdir.write_record(self.path, self.record, data)
            checkpointer = Checkpointer(self.path, self.settings.keep_checkpoints)
            stage = self.stage(step - 1)  # which has taken the last of them
            try:
                places = stage.shardings
                begin = jax.jit(functools.partial(create, optimizer=stage.phase.optimizer), out_shardings=places)
                state = begin(jax.device_put(variables, Variables(places.params, places.model_state)))
                state = dataclasses.replace(state, step=jnp.full_like(state.step, step))
                ema = jax.device_put(averaged.params, places.ema_params)
                self._save(checkpointer, _Begun(dataclasses.replace(state, ema_params=ema), step, None, []))
            finally:
                checkpointer.close()

    def _begin(self, checkpointer: Checkpointer) -> _Begun:
        index, count = jax.process_index(), jax.process_count()
        local = self.settings.batch_size // count
        iterator = self.data.iterator(local, seed=self.seed, process_index=index, process_count=count)
        found = checkpointer.restore(lambda step: self.stage(step - 1).abstract, say, check_meta=_meta_problem)
        self._write_record(0 if found is None else int(sh.fetch(found[0].step)))
        if found is None:
            state = self.initial(self._place(jax.random.fold_in(self.key, _INIT)))
            return _Begun(self._started(state, self.stages[0]), 0, iterator, [])
        state, meta = found
        self.key = jax.random.wrap_key_data(jnp.asarray(meta["key"], jnp.uint32), impl=meta["key_impl"])
        step = int(sh.fetch(state.step))
        if meta["data"] is not None:  # else parameters from elsewhere, which have seen none of it
            iterator.set_state(meta["data"])  # the same in all processes, and good for any number of them
        say(f"going on from step {step} of {self.steps} in {self.path}")
        return _Begun(state, step, iterator, meta["window"], meta.get("owed", False))

    def _write_record(self, step: int) -> None:
        """Writes `config.json`, when it is certain from which step on the run has its settings."""
        data = workdir.DataRecord.of(self.data, given=self.given)
        workdir.write_record(self.path, self.record, data, changed=self.changed, step=step)
        for name, old, new in self.changed:
            also = "; what depends on it (learning_rate_min, KL coefficients) too" if name == "train.steps" else ""
            say(f"from step {step} on {name} is {new}, before {old}{also}")

    def _started(self, state: TrainState, stage: _Stage) -> TrainState:
        """The state with which a phase begins: a new optimiser, and what its `start` makes of the variables."""
        if stage.first > 0:
            fresh = jax.jit(lambda params: stage.phase.optimizer.init(params), out_shardings=stage.shardings.opt_state)
            state = dataclasses.replace(state, opt_state=fresh(state.params))
        if stage.phase.start is None:
            return state
        before = Variables(state.params, state.model_state)
        return self._with(state, stage.phase.start(before, self.data, self._place(self.key)))

    def _with(self, state: TrainState, variables: Variables) -> TrainState:
        """The state with other variables, from which the average begins too."""
        places = self.stages[0].shardings
        params = jax.device_put(variables.params, places.params)
        return dataclasses.replace(
            state,
            params=params,
            ema_params=jax.tree.map(jnp.copy, params),
            model_state=jax.device_put(variables.state, places.model_state),
        )

    def _place(self, key: jax.Array) -> jax.Array:
        return sh.replicate(key, self.mesh)

    def _moment(self, state: TrainState, step: int, interrupt: Interrupt, writer: Any = None) -> Moment:
        return Moment(
            step=step, steps=self.steps, task=self.stage(step - 1).phase.task, variables=state.averaged,
            data=self.data, held_out=self.held_out, batch_size=self.settings.batch_size, folder=self.path,
            mesh=self.mesh, key=self.key,
            image=lambda name, image: None if writer is None else writer.image(step, name, image),
            interrupted=lambda: interrupt.check(step),
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- steps
    def _take_steps(
        self, begun: _Begun, checkpointer: Checkpointer, interrupt: Interrupt
    ) -> tuple[TrainState, int, float]:
        settings, stride = self.settings, self.settings.steps_per_dispatch
        state, step, iterator, window, owed = begun
        key = self._place(jax.random.fold_in(self.key, _TRAIN))
        first, stage = step, self.stage(step - 1 if owed else step)
        host_seconds, host_steps = 0.0, 0
        pending: collections.deque[jax.Array] = collections.deque()
        writer = MetricsWriter(self.path, step - owed)
        unit = "images" if len(stage.phase.task.event_shape) == 3 else "examples"
        if step < self.steps:
            say(f"compiling the training step for {jax.device_count()} x {jax.devices()[0].device_kind} ...")
        gc.collect()
        gc.freeze()  # what lives until now is not searched again: a full collection would take longer than many steps
        progress = Progress(self.steps, step, settings.batch_size, unit)
        postponed = False  # a checkpoint, until a step is good: those of bad ones would push out the good
        try:
            while step < self.steps or owed:
                if not owed:
                    if self.stage(step) is not stage:
                        stage, first = self.stage(step), step
                        say(f"step {step}: compiling the next stage ...")
                    if step == stage.first > 0:
                        state = self._started(state, stage)
                    start, busy = time.perf_counter(), time.thread_time()
                    batch = sh.put_batch(_stacked(iterator, stride), self._batch_sharding)
                    state, metrics = stage.step_fn(state, batch, key)
                    window.append(metrics)
                    pending.append(metrics["loss"])
                    busy = time.thread_time() - busy
                    step += stride
                    if len(pending) > AHEAD:  # bounds the batches that lie in memory; the only wait of a plain step
                        pending.popleft().block_until_ready()
                    if step == first + stride:  # the first call compiled: neither the host's time nor progress
                        pending.clear()
                        metrics["loss"].block_until_ready()
                        say(f"compiled in {time.perf_counter() - start:.1f} s")
                        progress.pause(start)
                    else:
                        host_seconds += busy
                        host_steps += stride
                stopping, owed = interrupt.check(step), False
                due = [callback for callback in self.callbacks if callback.due(step, self.steps)]
                logs = step == stage.end or self._due(step, settings.log_every)  # metrics of two phases do not mix
                saves = stopping or step == stage.end or self._due(step, settings.checkpoint_every)
                if due or logs or saves or postponed:
                    window, start, row = jax.device_get(window), time.perf_counter(), {}
                    owed = stopping and bool(due)  # what is due may take long: it is done when the run goes on
                    if logs and not owed:
                        row = _means(window)
                        rate, host_ms = math.nan, math.nan  # of no step
                        if step > begun.step:
                            rate = progress.update(step, row["loss"])
                            host_ms = 1e3 * host_seconds / max(host_steps, 1)
                        bad = int(sh.fetch(state.bad_steps))
                        row |= {"examples_per_second": rate, "host_ms": host_ms, "bad_steps": bad}
                    if due and not owed:
                        progress.break_line()
                        moment = self._moment(state, step, interrupt, writer)
                        try:
                            for callback in due:
                                row |= _numbers(callback, moment)
                        except Unfinished:  # a signal came in between
                            owed = stopping = saves = True
                        else:
                            for callback in self.callbacks:
                                callback.told(moment, row)
                    if not owed:
                        if row:
                            writer.write(step, row)
                        window = [] if logs else window
                    streak = int(sh.fetch(state.bad_streak))
                    self._health(streak, step, stage, checkpointer)
                    if self.lock is not None:
                        self.lock.check()
                    good = stopping or step == stage.end or streak == 0
                    saves, postponed = (saves or postponed) and good, (saves or postponed) and not good
                    if saves and step > begun.step:  # else it is there, and says what is owed
                        writer.save()
                        self._save(checkpointer, _Begun(state, step, iterator, window, owed))
                    checkpointer.poll()
                    progress.pause(start)
                if stopping:
                    break
        finally:
            gc.unfreeze()
            progress.break_line()
            writer.close()
        return state, step, 1e3 * host_seconds / max(host_steps, 1)

    def _due(self, step: int, every: int) -> bool:
        return step == self.steps or (every > 0 and step % every == 0)

    def _health(self, streak: int, step: int, stage: _Stage, checkpointer: Checkpointer) -> None:
        if streak < (limit := self.settings.max_bad_steps):
            return
        checkpointer.wait()
        before = [saved for saved in checkpointer.steps() if saved <= step - streak]
        raise NonFiniteError(
            f"the loss or its gradient was not finite in {limit} steps in a row, up to step {step - streak + limit}; "
            "lower optimizer.learning_rate, lengthen optimizer.warmup_steps, set optimizer.grad_clip, or use "
            f"train.compute_dtype=float32; {stage.phase.remedies}"
            + (
                f"the last checkpoint before them is step {before[-1]}"
                if before
                else "no checkpoint is from before them"
            )
        )

    def _save(self, checkpointer: Checkpointer, now: _Begun) -> None:
        state, step, iterator, window, owed = now
        meta = {
            "step": step,
            "config": self.record,
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "key_impl": str(jax.random.key_impl(self.key)),
            "data": None if iterator is None else iterator.get_state(),
            "window": jax.tree.map(lambda x: np.asarray(x).tolist(), window),
            "owed": owed,
        }
        checkpointer.save(step, state, meta)


def _numbers(callback: Callback, moment: Moment) -> dict[str, float]:
    """What a callback finds, as numbers.

    Raises:
        InputError: something that is none.
    """
    found = callback(moment)
    try:
        return {str(name): float(value) for name, value in ({} if found is None else found).items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"{type(callback).__name__}: returned {shown(repr(found), 80)}; a callback returns a number for each "
            "name, or nothing"
        ) from None


def _stacked(iterator: Any, stride: int) -> dict[str, np.ndarray]:
    """The batches of a dispatch."""
    if stride == 1:
        return next(iterator)
    batches = [next(iterator) for _ in range(stride)]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _meta_problem(meta: Any) -> str | None:
    """What is wrong with the meta dictionary of a checkpoint; None: it is what `Run._save` writes."""
    if not isinstance(meta, dict):
        return f"a dictionary was expected, not {type(meta).__name__}"
    for name, kind in {"key": list, "key_impl": str, "data": dict | None, "window": list}.items():
        if name not in meta or not isinstance(meta[name], kind):
            return f"it has no {name}, or one of another form"
    return None


def _means(window: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over the steps in which it was finite."""
    out = {}
    for name in window[0]:
        values = np.concatenate([np.ravel(np.asarray(metrics[name], np.float64)) for metrics in window])
        finite = values[np.isfinite(values)]
        out[name] = float(finite.mean()) if finite.size else float("nan")
    return out
