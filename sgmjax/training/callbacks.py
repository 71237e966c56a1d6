"""What is done with the averaged parameters while a run goes on and at its end: one form, whatever it is.

A callback says when it is due, and gives numbers for the log or writes files:

    class Histogram(Callback):
        every = 500
        def __call__(self, moment):
            return {"largest": float(max(jnp.max(jnp.abs(w)) for w in jax.tree.leaves(moment.variables.params)))}

    fit(phases, data, "runs/mine", callbacks=[Histogram()])
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sgmjax import sharding as sh
from sgmjax._files import AnyPath, read_array
from sgmjax._inputs import InputError
from sgmjax._say import say
from sgmjax.evaluation import draw, metrics, pictures
from sgmjax.evaluation.subject import Unfinished
from sgmjax.tasks.base import Variables
from sgmjax.training.load import load_features

# What the random keys of a run are for besides its steps; each use has its own.
EVALUATION, PREVIEW, FINAL, METRICS = 2, 3, 4, 5
ACCURACY = "accuracy.npz"  # of a classifier's run: `t`, `accuracy`, `step`


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """What a callback sees of a run.

    Attributes:
        step: steps taken.
        steps: of the whole run.
        task: what is learnt at this step.
        variables: averaged parameters and the networks' state, on the devices.
        data, held_out: the data sets; `held_out` may be None.
        batch_size: examples a step.
        folder: the run folder.
        mesh: the devices.
        key: the run's; fold in a number of your own.
        image: shows a picture, uint8 (H, W, 3), among TensorBoard's events, `image(name, picture)`.
        interrupted: whether a signal asks the run to stop; for what takes long.
    """

    step: int
    steps: int
    task: Any
    variables: Variables
    data: Any
    held_out: Any
    batch_size: int
    folder: AnyPath
    mesh: Mesh
    key: jax.Array
    image: Callable[[str, np.ndarray], None] = lambda name, image: None
    interrupted: Callable[[], bool] = lambda: False

    def random(self, *uses: int) -> jax.Array:
        """The run's key with numbers folded in, on all devices."""
        key = self.key
        for use in uses:
            key = jax.random.fold_in(key, use)
        return sh.replicate(key, self.mesh)

    @property
    def places(self) -> Any:
        """Where the variables lie."""
        return jax.tree.map(lambda x: x.sharding, self.variables)


class Callback:
    """One that does nothing; override what is needed.

    Attributes:
        every: steps between two calls; 0: only after the last step.
    """

    every: int = 0

    def due(self, step: int, steps: int) -> bool:
        """Whether it is called after this step of so many."""
        return step == steps or (self.every > 0 and step % self.every == 0)

    def __call__(self, moment: Moment) -> Mapping[str, float] | None:
        """What is done; the numbers are logged. May return None where there are none."""
        return {}

    def told(self, moment: Moment, numbers: Mapping[str, float]) -> None:
        """Told, after a step for which some callback was due, all numbers of that step."""

    def finish(self, moment: Moment) -> bool:
        """What is done once, after the last checkpoint; False if a signal came in between, and it is to be repeated.

        What takes long asks `moment.interrupted` now and then. (`__call__` may raise `evaluation.metrics.Unfinished`.)
        """
        return True

    def finished(self, folder: AnyPath, steps: int) -> str | None:
        """What `finish` has left in the folder of a run of so many steps, in words; "" for nothing, None: not yet."""
        return ""


class _OfTask:
    """What was made for a task, until another one comes."""

    def __init__(self) -> None:
        self._task, self._made = None, None

    def __call__(self, task: Any, make: Callable[[], Any]) -> Any:
        if self._task is not task:
            self._task, self._made = task, make()
        return self._made


class HeldOut(Callback):
    """The loss and the task's metrics on held-out data, as `eval_loss`, ..., at the same times and noises every time.

    Args:
        every: steps between two calls; 0: only after the last step.
        batches: of `Moment.batch_size` examples; None: all of the data.
    """

    def __init__(self, every: int = 1000, batches: int | None = 8):
        self.every, self._batches = every, batches
        self._compiled = _OfTask()

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """The numbers."""
        if moment.held_out is None:
            return {}
        task = moment.task
        found = draw.held_out_metrics(
            self._compiled(task, lambda: draw.make_eval_loss(task.loss, moment.mesh, moment.places)),
            moment.variables,
            moment.random(EVALUATION),
            moment.held_out,
            moment.batch_size,
            self._batches,
            moment.mesh,
        )
        words = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        say(f"step {moment.step}  held-out {words}")
        return {f"eval_{name}": value for name, value in found.items()}


class Pictures(Callback):
    """Samples as `samples/step_<n>.png` and among TensorBoard's events.

    Args:
        plan: a `samplers.Plan`.
        every: steps between two; 0: none.
        num: samples.
    """

    def __init__(self, plan: Any, every: int = 1000, num: int = 64):
        self._plan, self.every, self._num = plan, every, num
        self._compiled = _OfTask()

    def due(self, step: int, steps: int) -> bool:
        """Not after the last step, where `FinalSamples` draws."""
        return self.every > 0 and step % self.every == 0 and step < steps

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Draws and writes."""
        task = moment.task
        sampler = self._compiled(task, lambda: _sampler(moment, self._plan, self._num))
        drawn = sampler(moment.variables, moment.random(PREVIEW, moment.step), self._num, stop=moment.interrupted)
        if drawn is None:
            raise Unfinished("stopped while samples were drawn")
        samples = pictures.to_arrays(drawn[0], task.discrete, task.centered)
        image = pictures.picture(samples, centered=task.centered)
        if jax.process_index() == 0:
            pictures.save_picture(moment.folder / "samples" / f"step_{moment.step}.png", image)
        moment.image("samples", image)
        return {}


class FinalSamples(Callback):
    """`samples/final.npz` (`samples`, `step`, `nfe`) and `final.png` at the end; of images the pixel Frechet distance.

    Args:
        plan: a `samplers.Plan`.
        num: samples.
        batch_size: samples drawn at a time.
    """

    def __init__(self, plan: Any, num: int = 1000, batch_size: int = 500):
        self._plan, self._num, self._size = plan, num, min(batch_size, num)

    def due(self, step: int, steps: int) -> bool:
        """Never while the run goes on."""
        return False

    def finish(self, moment: Moment) -> bool:
        """Draws and writes."""
        task, folder = moment.task, moment.folder / "samples"
        say(f"drawing {self._num} samples ...")
        start = time.perf_counter()
        sampler = _sampler(moment, self._plan, self._size)
        drawn = sampler(moment.variables, moment.random(FINAL), self._num, stop=moment.interrupted)
        if drawn is None:
            return False
        samples = pictures.to_arrays(drawn[0], task.discrete, task.centered)
        if jax.process_index() == 0:
            pictures.save_picture(folder / "final.png", pictures.picture(samples, centered=task.centered))
            pictures.save_arrays(folder / "final.npz", samples=samples, step=moment.step, nfe=drawn[1])
        say(f"{self._num} samples, NFE {drawn[1]}, in {time.perf_counter() - start:.1f} s: {folder / 'final.npz'}")
        if len(task.event_shape) == 3 and jax.process_index() == 0:
            draw.print_frechet(samples, moment.data, task.centered)
        return True

    def finished(self, folder: AnyPath, steps: int) -> str | None:
        """Whether the samples are there and belong to a run of so many steps."""
        file = folder / "samples" / "final.npz"
        return f"samples in {file}" if _step_in(file) >= steps else None


class Metrics(Callback):
    """Metrics of `evaluation.metrics` on held-out data, logged and written to `metrics/<name>_step<n>.json`.

    Args:
        names: of `evaluation.metrics.METRICS`.
        plan: a `samplers.Plan`.
        every: steps between two calls; 0: only after the last step.
        settings: how it is measured; None: as `python -m sgmjax.evaluate` does.
        subject: what else `evaluation.metrics.Subject` has: num, batch_size, t_min, mirrored.
    """

    def __init__(
        self,
        names: Sequence[str],
        plan: Any,
        every: int = 0,
        *,
        settings: metrics.Settings | None = None,
        **subject: Any,
    ):
        self.names, self._plan, self.every = tuple(names), plan, every
        self._settings, self._subject = settings or metrics.Settings(), subject
        self._programs = _OfTask()

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        """Measures, says, writes; the numbers."""
        held_out = moment.held_out is not None
        data, others = (moment.held_out, moment.data) if held_out else (moment.data, None)
        subject = metrics.Subject(
            task=moment.task, variables=moment.variables, data=data, plan=self._plan, mesh=moment.mesh,
            others=None if others is None else lambda: others, held_out=held_out,
            programs=self._programs(moment.task, dict), stop=moment.interrupted, **self._subject,
        )  # fmt: skip
        numbers: dict[str, float] = {}
        settings = self._settings
        if set(self.names) & set(metrics.IN_FEATURES) and isinstance(settings.features, str):
            self._settings = settings = dataclasses.replace(
                settings, features=load_features(settings.features, moment.task)
            )
        for name in self.names:
            start = time.perf_counter()
            found = metrics.METRICS[name](subject, settings)
            seconds = round(time.perf_counter() - start, 2)
            common = {"metric": name, "step": moment.step, "parameters": "ema", "seed": settings.seed}
            common |= {"split": "test" if held_out else "train", "data": data.name, "seconds": seconds}
            metrics.write(moment.folder / "metrics" / f"{name}_step{moment.step}.json", found, common)
            for line in found.lines:
                say(f"step {moment.step}  {line}")
            numbers |= found.numbers
        return numbers


class Accuracy(Callback):
    """What a classifier ends with: how often it is right at each noise level, on held-out data if there are any."""

    def due(self, step: int, steps: int) -> bool:
        """Never while the run goes on."""
        return False

    def finish(self, moment: Moment) -> bool:
        """Measures, says and writes it."""
        held_out = moment.held_out is not None
        data = moment.held_out if held_out else moment.data
        times, accuracy = draw.accuracy_by_time(moment.task.accuracy, moment.variables, data, moment.mesh)
        words = ", ".join(f"{100 * a:.1f}% at t={t:g}" for t, a in zip(times, accuracy, strict=True))
        say(f"accuracy on {'held-out' if held_out else 'training'} data: {words}")
        if jax.process_index() == 0:
            pictures.save_arrays(moment.folder / ACCURACY, t=times, accuracy=accuracy, step=moment.step)
        return True

    def finished(self, folder: AnyPath, steps: int) -> str | None:
        """Whether the table is there and belongs to a run of so many steps."""
        return f"accuracy in {folder / ACCURACY}" if _step_in(folder / ACCURACY) >= steps else None


def complete(callbacks: Sequence[Callback], folder: AnyPath, steps: int) -> str | None:
    """What a run that is complete has left, in words; None: something is missing, or nothing tells."""
    found = [callback.finished(folder, steps) for callback in callbacks]
    return None if None in found else ", ".join(words for words in found if words) or None


def _sampler(moment: Moment, plan: Any, size: int) -> draw.Sampler:
    return draw.sampler_of(moment.task, plan, moment.mesh, moment.places, size)


def _step_in(file: AnyPath) -> int:
    try:
        return int(read_array(file, ("step",), "final results"))
    except (InputError, TypeError):
        return -1
