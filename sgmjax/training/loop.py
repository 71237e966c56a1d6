"""A training run, from an empty folder (or where it was left off) to its final samples.

    result = train(config, "runs/digits")

A run that was interrupted in whatever way goes on from its last checkpoint and ends with the same bits: step n draws
from `fold_in(key, n)`, and the data iterator's state is part of the checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax._inputs import InputError, read_array
from sgmjax._ranges import check_memory
from sgmjax.data.classes import check_same, listed, plain
from sgmjax.data.examples import check_values
from sgmjax.models import trainable_mask
from sgmjax.training import earlier, evaluation, horizon, pictures, trouble, workdir
from sgmjax.training import sharding as sh
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.config import CLASSIFIERS, Config, ConfigError, check, to_dict, validate_for_devices
from sgmjax.training.interrupt import Interrupt
from sgmjax.training.lock import RunLock
from sgmjax.training.logging import MetricsWriter, Progress, say
from sgmjax.training.packing import GroupedPacking, Packing
from sgmjax.training.state import TrainState, create, make_grouped_optimizer, make_optimizer
from sgmjax.training.step import make_train_step, stateless, step_batch_sharding

# What the random keys of a run are for; each use has its own.
_INIT, _TRAIN, _EVAL, _SAMPLE, _FINAL = range(5)
ACCURACY = "accuracy.npz"  # of a classifier's run: `t`, `accuracy`, `step`
_AHEAD = 2  # dispatches that may wait for the devices


class NonFiniteError(RuntimeError):
    """Too many steps in a row with a loss or gradient that is not finite. The last good checkpoint is intact."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
        status: `finished`, `interrupted` (a signal; the state is saved) or `complete` (nothing was left to do).
        step: steps taken.
        workdir: the run folder.
        signal: the number of the signal that interrupted it, else None.
        host_ms: milliseconds the training thread worked per step (batch, dispatch), waiting for the devices or for
            anything else not counted; None without steps.
    """

    status: str
    step: int
    workdir: Path
    host_ms: float | None = None
    signal: int | None = None


def train(
    config: Config,
    folder: str | os.PathLike,
    *,
    problem: Any = None,
    dataset: Any = None,
    eval_dataset: Any = None,
    allow_changes: Sequence[str] = (),
    restart: bool = False,
) -> Result:
    """Trains, or goes on training, in a run folder.

    Args:
        config: the run's settings.
        folder: the run folder.
        problem: what is learnt; default `build.problem(config, ...)`.
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
    """
    run = setup(
        config, folder, problem=problem, dataset=dataset, eval_dataset=eval_dataset, allow_changes=allow_changes,
        restart=restart,
    )  # fmt: skip
    return run if isinstance(run, Result) else run.execute()


def setup(
    config: Config,
    folder: str | os.PathLike,
    *,
    problem: Any = None,
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
    path = workdir.prepare(folder)
    lock = RunLock(path, say)
    try:
        if restart:
            earlier.set_aside(path, say)
        changed = workdir.check_config(path, config, allow_changes)
        if _complete(path, config.train.steps):
            accuracy = path / ACCURACY
            found = f"accuracy in {accuracy}" if accuracy.exists() else f"samples in {path / 'samples' / 'final.npz'}"
            say(f"{path} is complete: {config.train.steps} steps, {found}")
            lock.release()
            return Result("complete", config.train.steps, path)
        earlier.check_resumable(path)
        run = _prepared(config, path, problem, dataset, eval_dataset)
    except BaseException:
        lock.release()
        raise
    run.lock, run.new_settings = lock, changed
    return run


def _prepared(config: Config, path: Path, problem: Any, dataset: Any, eval_dataset: Any) -> Run:
    """What of `setup` reads the data and looks at the problem."""
    given = dataset is not None
    if dataset is None:
        from sgmjax import data

        dataset = data.load(config.data, "train")
        if eval_dataset is None and config.data.eval_split is not None:
            eval_dataset = data.load(config.data, "eval")
    resizable = not given and config.data.name != "npz"
    _check_data(config, dataset, eval_dataset, resizable)
    if config.model.name in CLASSIFIERS or getattr(config.model, "num_classes", None) is not None:
        workdir.check_classes(path, dataset)
        if eval_dataset is not None:
            check_same(dataset.num_classes, dataset.class_names, eval_dataset)
    if not plain(dataset.class_names):
        say(f"classes: {listed(dataset.class_names)}")
    if problem is None:
        from sgmjax.training import build

        options = {"class_names": dataset.class_names, "discrete": dataset.discrete, "resizable": resizable}
        problem = build.problem(config, dataset.shape, dataset.num_classes, **options)
    if config.vae is not None:
        from sgmjax.training.latent import check_images

        check_images(config, dataset)
    _check_sizes(config, dataset.shape)
    for line in horizon.outlasting(config):
        say(line)
    run = Run(config, path, problem, dataset, eval_dataset, given=given)
    workdir.check_space(path, run.abstract, config.train.keep_checkpoints, dataset.shape, config.sampling.num)
    return run


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


def _complete(path: Path, steps: int) -> bool:
    """Whether the final samples (a classifier's final accuracy) are there and belong to a run of so many steps."""
    for file in (path / "samples" / "final.npz", path / ACCURACY):
        with contextlib.suppress(InputError, TypeError):
            return int(read_array(file, ("step",), "final results")) >= steps
    return False


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What is done from step `first` until step `end`; nearly all runs have one."""

    problem: Any
    first: int
    end: int
    step_fn: Any
    eval_loss: Any
    preview: evaluation.Sampler
    fresh: Any  # the state with new moments: how this stage begins where another one ended


class Run:
    """A run that passed all checks; `execute` does it.

    A problem may have more than `build.Problem` has, and then
        stages(steps): parts of the run, ((end, problem), ...), over the same parameters.
        optimizers: settings by group, where its parameters {group: parameters} have optimisers of their own.
        start_from(params, state), begin(params, state, dataset): what is done before the first step of the run, of a
            stage, as new parameters and state.
        init_with_state(key), init_state(key), train_loss(params, key, batch, context): of networks that carry a state;
            its `loss_fn` and `sample_fn` take {"params": parameters, "state": that state} in place of parameters.
    """

    def __init__(
        self, config: Config, path: Path, problem: Any, dataset: Any, eval_dataset: Any, *, given: bool = False
    ):
        self.given = given  # the data were given in Python: the folder says so to the commands
        self.lock: RunLock | None = None  # taken when it is executed, if not before
        self.new_settings: Sequence[tuple[str, Any, Any]] = ()  # since the folder's run was last trained
        self.config, self.path, self.problem = config, path, problem
        self.dataset, self.eval_dataset = dataset, eval_dataset
        self.mesh = sh.make_mesh(config.train.fsdp)
        self.key = jax.random.key(config.seed)

        shapes = jax.eval_shape(problem.init, self.key)
        grouped = hasattr(problem, "optimizers")
        self._packing = GroupedPacking(shapes) if grouped else Packing(shapes)
        stateful = hasattr(problem, "init_state")
        state_shapes = jax.eval_shape(problem.init_state, self.key) if stateful else {}
        self._state_packing = Packing(state_shapes) if stateful else None
        parts = problem.stages(config.train.steps) if hasattr(problem, "stages") else ((config.train.steps, problem),)
        optimizers, first = [], 0
        decayed = self._packing.pack_scalars(trainable_mask(shapes))
        for end, part in parts:
            if grouped:
                optimizers.append(make_grouped_optimizer(part.optimizers, decayed, steps=end - first))
            else:
                optimizers.append(make_optimizer(config.optimizer, decayed, steps=end - first))
            first = end

        def initial(key):
            if self._state_packing is None:
                return create(key, lambda key: self._packing.pack(problem.init(key)), optimizers[0])
            params, model_state = problem.init_with_state(key)
            packed = self._state_packing.pack(model_state)
            return create(key, lambda _: self._packing.pack(params), optimizers[0], packed)

        state = jax.eval_shape(initial, self.key)
        shardings = sh.state_shardings(self.mesh, state)
        self._initial = jax.jit(initial, out_shardings=shardings)
        self._pack = jax.jit(self._packing.pack, out_shardings=shardings.params)
        if self._state_packing is not None:
            self._pack_model_state = jax.jit(self._state_packing.pack, out_shardings=shardings.model_state)
        # what checkpoints hold: the same with trees of parameters
        trees = dataclasses.replace(state, params=shapes, ema_params=shapes, model_state=state_shapes)
        self.abstract: TrainState = jax.tree.map(
            lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
            trees,
            sh.state_shardings(self.mesh, trees),
        )
        self._batch_sharding = step_batch_sharding(config, self.mesh)
        self._draws = hasattr(problem, "sample_fn")  # a classifier does not
        places = self._weights(shardings)
        self.stages = self._build_stages(parts, optimizers, shardings, places)
        sampling = config.sampling
        size = min(sampling.batch_size, sampling.num)
        self._final = evaluation.Sampler(self._sample_fn(parts[-1][1]), self.mesh, places, size)

    def _build_stages(self, parts: Any, optimizers: list[Any], shardings: TrainState, places: Any) -> list[_Stage]:
        config, stages, first = self.config, [], 0
        for (end, problem), optimizer in zip(parts, optimizers, strict=True):
            step_fn = make_train_step(
                problem.train_loss if hasattr(problem, "train_loss") else stateless(problem.loss_fn),
                config,
                optimizer,
                self.mesh,
                shardings,
                self._packing,
                state_packing=self._state_packing,
                optimizer_config=getattr(problem, "optimizers", None),
            )

            def fresh(state, optimizer=optimizer):
                return dataclasses.replace(state, opt_state=optimizer.init(state.params))

            def loss(weights, key, batch, train, problem=problem):
                return problem.loss_fn(self._unpack(weights), key, batch, train)

            stages.append(
                _Stage(
                    problem=problem,
                    first=first,
                    end=end,
                    step_fn=step_fn,
                    eval_loss=evaluation.make_eval_loss(loss, self.mesh, places),
                    preview=evaluation.Sampler(
                        self._sample_fn(problem), self.mesh, places, config.sampling.grid_images
                    ),
                    fresh=jax.jit(fresh, donate_argnums=0, in_shardings=(shardings,), out_shardings=shardings),
                )
            )
            first = end
        return stages

    def _weights(self, state: TrainState) -> Any:
        """What evaluation takes of a state: the averaged parameters, with the networks' state if there is one."""
        if self._state_packing is None:
            return state.ema_params
        return {"params": state.ema_params, "state": state.model_state}

    def _unpack(self, weights: Any) -> Any:
        if self._state_packing is None:
            return self._packing.unpack(weights)
        params = self._packing.unpack(weights["params"])
        return {"params": params, "state": self._state_packing.unpack(weights["state"])}

    def _sample_fn(self, problem: Any) -> Any:
        def sample(weights, key, num, **labels):
            return problem.sample_fn(self._unpack(weights), key, num, **labels)

        return sample

    def _stage(self, step: int) -> _Stage:
        """The stage that takes the step after `step`."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])

    # ------------------------------------------------------------------------------------------------ beginning, end
    def execute(self) -> Result:
        """Restores or starts, takes the remaining steps, draws the final samples."""
        self.lock = self.lock or RunLock(self.path, say)
        with self.lock:
            earlier.tidy(self.path, say)
            checkpointer, lost = Checkpointer(self.path, self.config.train.keep_checkpoints), False
            try:
                with trouble.explained(self.path):
                    result = self._execute(checkpointer)
            except trouble.LostProcessError:
                lost = True
                raise
            finally:
                if not lost:  # else it would wait for what never comes
                    with trouble.explained(self.path):
                        checkpointer.close()
            sh.wait_for_all("sgmjax_end")  # whoever started them may end the others when one has ended
        return result

    def _execute(self, checkpointer: Checkpointer) -> Result:
        train = self.config.train
        with jax.set_mesh(self.mesh), Interrupt() as interrupt:
            state, step, iterator, window = self._begin(checkpointer)
            host_ms = None
            if step < train.steps:
                state, step, host_ms = self._steps(state, step, iterator, window, checkpointer, interrupt)
            if interrupt.received or not self._finish(state, step, interrupt):
                assert interrupt.received is not None
                checkpointer.wait()
                say(f"stopped by {interrupt.name} after step {step}, saved; the same command goes on from there")
                return Result("interrupted", step, self.path, host_ms, int(interrupt.received))
        return Result("finished", step, self.path, host_ms)

    def adopt(
        self, params: Any, ema_params: Any, step: int, event_shape: tuple[int, ...], num_classes: int | None
    ) -> None:
        """Writes the folder of a run that has taken `step` steps to these parameters, with an optimiser that has not.

        Args:
            params, ema_params: trees as of `problem.init`.
            step: steps taken.
            event_shape, num_classes: of the data, which need not be there.
        """
        with RunLock(self.path, say):
            self._adopt(params, ema_params, step, event_shape, num_classes)

    def _adopt(self, params: Any, ema_params: Any, step: int, event_shape: Any, num_classes: int | None) -> None:
        workdir.write_config(self.path, self.config, workdir.DataRecord(event_shape, num_classes, discrete=True))
        checkpointer = Checkpointer(self.path, self.config.train.keep_checkpoints)
        try:
            with jax.set_mesh(self.mesh):
                state = self._initial(self._place(jax.random.fold_in(self.key, _INIT)))
                state = dataclasses.replace(
                    state,
                    step=jnp.full_like(state.step, step),
                    params=self._pack(params),
                    ema_params=self._pack(ema_params),
                )
                self._save(checkpointer, state, step, None, [])
        finally:
            checkpointer.close()

    def _begin(self, checkpointer: Checkpointer) -> tuple[TrainState, int, Any, list[dict[str, float]]]:
        index, count = jax.process_index(), jax.process_count()
        local = self.config.train.batch_size // count
        iterator = self.dataset.iterator(local, seed=self.config.seed, process_index=index, process_count=count)
        found = checkpointer.restore(self.abstract, say, check_meta=_meta_problem)
        self._record(0 if found is None else int(sh.fetch(found[0].step)))
        if found is None:
            state = self._initial(self._place(jax.random.fold_in(self.key, _INIT)))
            if hasattr(self.problem, "start_from"):
                state = self._changed(state, self.problem.start_from)
            return self._begin_stage(state, self.stages[0]), 0, iterator, []
        state, meta = found
        state = dataclasses.replace(state, params=self._pack(state.params), ema_params=self._pack(state.ema_params))
        if self._state_packing is not None:
            state = dataclasses.replace(state, model_state=self._pack_model_state(state.model_state))
        self.key = jax.random.wrap_key_data(jnp.asarray(meta["key"], jnp.uint32), impl=meta["key_impl"])
        step = int(sh.fetch(state.step))
        if meta["data"] is not None:  # else parameters from elsewhere, which have seen none of it
            iterator.set_state(meta["data"])  # the same in all processes, and good for any number of them
        say(f"going on from step {step} of {self.config.train.steps} in {self.path}")
        return state, step, iterator, meta["window"]

    def _record(self, step: int) -> None:
        """Writes `config.json`, when it is certain from which step on the run has its settings."""
        data = workdir.DataRecord.of(self.dataset, given=self.given)
        workdir.write_config(self.path, self.config, data, changed=self.new_settings, step=step)
        for name, old, new in self.new_settings:
            say(f"from step {step} on {name} is {new}, before {old}")

    def _begin_stage(self, state: TrainState, stage: _Stage) -> TrainState:
        if not hasattr(stage.problem, "begin"):
            return state
        return self._changed(state, lambda params, model_state: stage.problem.begin(params, model_state, self.dataset))

    def _changed(self, state: TrainState, change: Any) -> TrainState:
        """The state with the parameters and the networks' state that `change` makes of them."""
        assert self._state_packing is not None
        before = self._packing.unpack(state.params), self._state_packing.unpack(state.model_state)
        params, model_state = change(*before)
        if params is before[0] and model_state is before[1]:
            return state
        packed = self._pack(params)
        return dataclasses.replace(
            state,
            params=packed,
            ema_params=jax.tree.map(jnp.copy, packed),
            model_state=self._pack_model_state(model_state),
        )

    def _place(self, key: jax.Array) -> jax.Array:
        return jax.device_put(key, sh.replicated(self.mesh))

    # -------------------------------------------------------------------------------------------------------- steps
    def _steps(
        self,
        state: TrainState,
        step: int,
        iterator: Any,
        window: list[Any],
        checkpointer: Checkpointer,
        interrupt: Interrupt,
    ) -> tuple[TrainState, int, float]:
        train = self.config.train
        stride = train.steps_per_dispatch
        key = self._place(jax.random.fold_in(self.key, _TRAIN))
        first, stage = step, self._stage(step)
        host_seconds, host_steps = 0.0, 0
        pending: collections.deque[jax.Array] = collections.deque()
        writer = MetricsWriter(self.path, step)
        unit = "images" if self.problem.is_image else "examples"
        say(f"compiling the training step for {jax.device_count()} x {jax.devices()[0].device_kind} ...")
        progress = Progress(train.steps, step, train.batch_size, unit)
        gc.collect()
        gc.freeze()  # what lives until now is not searched again: a full collection would take longer than many steps
        try:
            while step < train.steps:
                if self._stage(step) is not stage:
                    stage, first = self._stage(step), step
                    say(f"step {step}: compiling the next stage ...")
                if step == stage.first > 0:
                    state = self._begin_stage(stage.fresh(state), stage)
                start, busy = time.perf_counter(), time.thread_time()
                batch = sh.put_batch(self._next(iterator), self._batch_sharding)
                state, metrics = stage.step_fn(state, batch, key)
                window.append(metrics)
                pending.append(metrics["loss"])
                busy = time.thread_time() - busy
                step += stride
                if len(pending) > _AHEAD:  # bounds the batches that lie in memory; the only wait of a plain step
                    pending.popleft().block_until_ready()
                if step == first + stride:  # the first call compiled: neither the host's time per step nor progress
                    pending.clear()
                    metrics["loss"].block_until_ready()
                    say(f"compiled in {time.perf_counter() - start:.1f} s")
                    progress.pause(start)
                else:
                    host_seconds += busy
                    host_steps += stride
                stopping = interrupt.check(step)
                if self._occasion(step, stopping):
                    window = jax.device_get(window)
                    start = time.perf_counter()
                    window = self._report(state, step, window, writer, progress, host_seconds / max(host_steps, 1))
                    self._health(state, step, checkpointer)
                    if self.lock is not None:
                        self.lock.check()
                    if stopping or step == stage.end or self._due(step, train.checkpoint_every):
                        self._save(checkpointer, state, step, iterator, window)
                    checkpointer.poll()
                    progress.pause(start)
                if stopping:
                    break
        finally:
            gc.unfreeze()
            progress.break_line()
            writer.close()
        return state, step, 1e3 * host_seconds / max(host_steps, 1)

    def _next(self, iterator: Any) -> dict[str, np.ndarray]:
        stride = self.config.train.steps_per_dispatch
        if stride == 1:
            return next(iterator)
        batches = [next(iterator) for _ in range(stride)]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def _occasion(self, step: int, stopping: bool) -> bool:
        train = self.config.train
        every = (train.log_every, train.eval_every, train.sample_every, train.checkpoint_every)
        ends = any(step == stage.end for stage in self.stages)  # metrics of two stages do not mix
        return stopping or ends or any(self._due(step, n) for n in every)

    def _report(
        self,
        state: TrainState,
        step: int,
        window: list[Any],
        writer: MetricsWriter,
        progress: Progress,
        host_seconds: float,
    ) -> list[Any]:
        """Logs, evaluates and draws what is due; returns the metrics that wait for the next log line."""
        train, stage = self.config.train, self._stage(step - 1)
        row: dict[str, float] = {}
        if self._due(step, train.log_every) or step == stage.end:
            row = _means(window)
            rate = progress.update(step, row["loss"])
            row |= {
                "examples_per_second": rate,
                "host_ms": 1e3 * host_seconds,
                "bad_steps": int(sh.fetch(state.bad_steps)),
            }
            window = []
        if self.eval_dataset is not None and self._due(step, train.eval_every):
            held_out = evaluation.held_out_metrics(
                stage.eval_loss,
                self._weights(state),
                self._place(jax.random.fold_in(self.key, _EVAL)),
                self.eval_dataset,
                train.batch_size,
                train.eval_batches,
                self.mesh,
            )
            row |= {f"eval_{name}": value for name, value in held_out.items()}
            progress.break_line()
            say(f"step {step}  held-out " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items()))
        if row:
            writer.write(step, row)
        if self._draws and train.sample_every and step % train.sample_every == 0 and step < train.steps:
            key = jax.random.fold_in(jax.random.fold_in(self.key, _SAMPLE), step)
            drawn = stage.preview(self._weights(state), self._place(key), self.config.sampling.grid_images)
            assert drawn is not None
            samples = pictures.to_arrays(drawn[0], self.problem.discrete, self.problem.centered)
            image = pictures.picture(samples, centered=self.problem.centered)
            if jax.process_index() == 0:
                pictures.save_picture(self.path / "samples" / f"step_{step}.png", image)
            writer.image(step, "samples", image)
        return window

    def _health(self, state: TrainState, step: int, checkpointer: Checkpointer) -> None:
        streak, limit = int(sh.fetch(state.bad_streak)), self.config.train.max_bad_steps
        if streak < limit:
            return
        checkpointer.wait()
        good = checkpointer.steps()
        raise NonFiniteError(
            f"the loss or its gradient was not finite in {limit} steps in a row, up to step {step - streak + limit}; "
            "lower optimizer.learning_rate, lengthen optimizer.warmup_steps, set optimizer.grad_clip, or use "
            "train.compute_dtype=float32; "
            + getattr(self._stage(step - 1).problem, "remedies", "")
            + (f"the last good checkpoint, step {good[-1]}, is intact" if good else "there is no checkpoint yet")
        )

    def _save(self, checkpointer: Checkpointer, state: TrainState, step: int, iterator: Any, window: list[Any]) -> None:
        meta = {
            "step": step,
            "config": to_dict(self.config),
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "key_impl": str(jax.random.key_impl(self.key)),
            "data": None if iterator is None else iterator.get_state(),
            "window": jax.tree.map(lambda x: np.asarray(x).tolist(), window),
        }
        trees = {name: self._packing.unpack(getattr(state, name)) for name in ("params", "ema_params")}
        if self._state_packing is not None:
            trees["model_state"] = self._state_packing.unpack(state.model_state)
        checkpointer.save(step, dataclasses.replace(state, **trees), meta)

    # -------------------------------------------------------------------------------------------------------- samples
    def _finish(self, state: TrainState, step: int, interrupt: Interrupt) -> bool:
        """Draws and writes the final samples; False if a signal came in between."""
        if not self._draws:
            self._report_accuracy(state, step)
            return True
        num = self.config.sampling.num
        say(f"drawing {num} samples ...")
        start = time.perf_counter()
        key = self._place(jax.random.fold_in(self.key, _FINAL))
        drawn = self._final(self._weights(state), key, num, stop=lambda: interrupt.check(step))
        if drawn is None:
            return False
        samples = pictures.to_arrays(drawn[0], self.problem.discrete, self.problem.centered)
        folder = self.path / "samples"
        if jax.process_index() == 0:
            pictures.save_picture(folder / "final.png", pictures.picture(samples, centered=self.problem.centered))
            pictures.save_arrays(folder / "final.npz", samples=samples, step=step, nfe=drawn[1])
        say(f"{num} samples, NFE {drawn[1]}, in {time.perf_counter() - start:.1f} s: {folder / 'final.npz'}")
        if self.problem.is_image and jax.process_index() == 0:
            evaluation.print_frechet(samples, self.dataset, self.problem.centered)
        return True

    def _report_accuracy(self, state: TrainState, step: int) -> None:
        """What a classifier ends with: how often it is right at each noise level, on held-out data if there are any."""
        dataset = self.dataset if self.eval_dataset is None else self.eval_dataset
        params = self._packing.unpack(state.ema_params)
        times, accuracy = evaluation.accuracy_by_time(self.problem.accuracy, params, dataset, self.mesh)
        words = ", ".join(f"{100 * a:.1f}% at t={t:g}" for t, a in zip(times, accuracy, strict=True))
        say(f"accuracy on {'training' if self.eval_dataset is None else 'held-out'} data: {words}")
        if jax.process_index() == 0:
            pictures.save_arrays(self.path / ACCURACY, t=times, accuracy=accuracy, step=step)


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
