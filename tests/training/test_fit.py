"""`fit` with tasks of one's own: trained, gone on with bitwise, reloaded, watched by callbacks, refused in one line."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import tiny

import sgmjax
from sgmjax import data
from sgmjax._inputs import InputError
from sgmjax.evaluation.metrics import Unfinished
from sgmjax.tasks import Variables
from sgmjax.training import run as running
from sgmjax.training.callbacks import Callback, HeldOut
from sgmjax.training.checkpoint import Checkpointer, MismatchError
from sgmjax.training.phase import NonFiniteError, Phase, Settings

SETTINGS = Settings(batch_size=16, log_every=5, checkpoint_every=10)


class Regression:
    """y = x w + b, from rows (x, y)."""

    event_shape = (3,)

    def init(self, key):
        return Variables({"w": jnp.zeros(2), "b": jnp.zeros(())}, {"seen": jnp.zeros((), jnp.int32)})

    def loss(self, variables, key, batch, *, step, ema, train):
        x, y = batch["x"][:, :2], batch["x"][:, 2]
        error = x @ variables.params["w"] + variables.params["b"] - y
        seen = variables.state["seen"] + (len(y) if train else 0)
        return jnp.mean(error**2), {"bias": jnp.mean(error)}, {"seen": seen}


def rows(num=400, seed=0):
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(num, 2))
    return data.arrays(np.column_stack([x, x @ [0.5, -1.0] + 0.25 + 0.01 * draws.normal(size=num)]))


def fit(folder, steps=60, *, task=None, optimizer=None, **options):
    phase = Phase(task or Regression(), steps, optimizer or optax.adam(0.05), lambda count: jnp.asarray(0.5))
    return sgmjax.fit([phase], rows(), folder, **{"settings": SETTINGS, **options})


def arrays_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(sgmjax.load_run(folder, task=Regression).variables)]


class Stop:
    """Interrupts a run after `step`, as a signal would."""

    name, step = "SIGTERM", 0

    def __enter__(self):
        self.received = None
        return self

    def __exit__(self, *_):
        pass

    def check(self, step):
        self.received = 15 if step >= Stop.step else None
        return self.received is not None


def test_a_task_of_ones_own_is_trained_gone_on_with_and_reloaded(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole", 200)
    assert whole.status == "finished" and whole.step == 200
    run = sgmjax.load_run(tmp_path / "whole", task=Regression)
    np.testing.assert_allclose(run.variables.params["w"], [0.5, -1.0], atol=0.02)
    np.testing.assert_allclose(run.variables.params["b"], 0.25, atol=0.02)
    assert run.step == 200 and run.config is None and run.variables.state["seen"] == 200 * 16
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.variables), jax.device_get(whole.variables))
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "step", 33)
        patch.setattr(running, "Interrupt", Stop)
        assert fit(tmp_path / "parts", 200).status == "interrupted"
    assert fit(tmp_path / "parts", 200).status == "finished"
    for ours, theirs in zip(arrays_of(tmp_path / "parts"), arrays_of(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_phases_begin_with_their_own_optimisers_and_starts(tmp_path, monkeypatch):
    """The second has momentum, which Adam's checkpoint does not hold, and starts from doubled weights."""

    def double(variables, data, key):
        assert data.num_examples == 400
        return Variables(jax.tree.map(lambda x: 2 * x, variables.params), variables.state)

    phases = [
        Phase(Regression(), 20, optax.adam(0.05)),
        Phase(Regression(), 20, optax.sgd(1e-9, momentum=0.9), lambda count: jnp.asarray(0.0), double),
    ]
    sgmjax.fit(phases, rows(), tmp_path / "whole", settings=SETTINGS)
    first = Checkpointer(tmp_path / "whole", read_only=True)
    assert first.steps() == [30, 40]
    before = fit(tmp_path / "first", 20).variables.params  # the same steps, whatever the average
    for at in (20, 25):
        with monkeypatch.context() as patch:
            patch.setattr(Stop, "step", at)
            patch.setattr(running, "Interrupt", Stop)
            folder = tmp_path / str(at)
            assert sgmjax.fit(phases, rows(), folder, settings=SETTINGS).status == "interrupted"
        assert sgmjax.fit(phases, rows(), folder, settings=SETTINGS).step == 40
        for ours, theirs in zip(arrays_of(folder), arrays_of(tmp_path / "whole"), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    raw = sgmjax.load_run(tmp_path / "first", task=Regression, averaged=False).variables.params
    after = sgmjax.load_run(tmp_path / "whole", task=Regression, averaged=False).variables.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-5), after, raw)
    assert jax.tree.structure(before) == jax.tree.structure(raw)


class Watch(Callback):
    every = 20

    def __init__(self):
        self.seen = []

    def __call__(self, moment):
        self.seen.append(moment.step)
        return {"weight": float(moment.variables.params["w"][0])}

    def finish(self, moment):
        (moment.folder / "watched").write_text(str(moment.step))
        return True

    def finished(self, folder, steps):
        file = folder / "watched"
        return f"what was watched in {file}" if file.exists() and int(file.read_text()) >= steps else None


def test_callbacks_log_and_finish(tmp_path, capsys):
    watch = Watch()
    fit(tmp_path, held_out=rows(48, 1), callbacks=[watch, HeldOut(every=30, batches=None)])
    assert watch.seen == [20, 40, 60] and (tmp_path / "watched").read_text() == "60"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "weight" in row] == [20, 40, 60]
    assert [row["step"] for row in logged if {"eval_loss", "eval_bias"} <= row.keys()] == [30, 60]
    capsys.readouterr()
    assert fit(tmp_path, callbacks=[watch]).status == "complete"
    assert capsys.readouterr().out == f"{tmp_path} is complete: 60 steps, what was watched in {tmp_path}/watched\n"


@pytest.mark.parametrize("at", [20, 60])
@pytest.mark.parametrize("inside", [False, True])
def test_a_signal_is_answered_before_what_takes_long_and_that_is_done_later(tmp_path, monkeypatch, at, inside):
    """The signal comes before the callbacks that are due after a step, or while one of them works."""

    class Asks(Callback):
        every, inside, begun = 20, False, 0

        def __call__(self, moment):
            self.begun += 1
            if inside and moment.step == at:
                Asks.inside = True
            if moment.interrupted():
                raise Unfinished("stopped")

    class Within(Stop):
        def check(self, step):
            self.received = 15 if Asks.inside else None
            return self.received is not None

    def logged(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: row.get(name) for name in ("step", "loss", "bias", "weight", "bad_steps")} for row in lines]

    fit(tmp_path / "whole", callbacks=[Watch()])
    watch, asks = Watch(), Asks()
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "step", at)
        patch.setattr(running, "Interrupt", Within if inside else Stop)
        assert fit(tmp_path / "parts", callbacks=[asks, watch]).status == "interrupted"
    assert asks.begun == at // 20 - (not inside)
    Asks.inside, inside = False, False
    assert watch.seen == list(range(20, at, 20)) and logged(tmp_path / "parts")[-1]["step"] == at - 5
    assert Checkpointer(tmp_path / "parts", read_only=True).steps()[-1] == at
    assert fit(tmp_path / "parts", callbacks=[asks, watch]).status == "finished"
    assert watch.seen == [20, 40, 60] and (tmp_path / "parts" / "watched").read_text() == "60"
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    for ours, theirs in zip(arrays_of(tmp_path / "parts"), arrays_of(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Odd(Callback):
    """What a notebook's callback may do; `gives` is what it returns."""

    every = 10

    def __init__(self, gives=None, finishes=None):
        self._gives, self._finishes = gives, finishes

    def __call__(self, moment):
        return self._gives

    def finish(self, moment):
        moment.image("last", np.zeros((2, 2, 3), np.uint8))
        return self._finishes


def test_callbacks_as_they_are_written(tmp_path):
    """Nothing returned, numbers of NumPy and JAX, pictures at the end; what is no number is said so by name."""

    class Plain(Regression):
        def loss(self, variables, key, batch, *, step, ema, train):
            value, _, state = super().loss(variables, key, batch, step=step, ema=ema, train=train)
            return value, {"one": 1.0}, state

    numbers = {"f": np.float32(0.5), "i": np.int64(2), "j": jnp.asarray(3.0)}
    held_out = {"held_out": rows(48, 1), "callbacks": [Odd(), Odd(numbers), HeldOut(every=10)]}
    assert fit(tmp_path / "a", 10, task=Plain(), **held_out).status == "finished"
    row = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (row["f"], row["i"], row["j"], row["one"], row["eval_one"]) == (0.5, 2.0, 3.0, 1.0, 1.0)
    with pytest.raises(InputError, match=r"Odd: returned \{'w': 'heavy'\}; a callback returns a number for each name"):
        fit(tmp_path / "b", 10, callbacks=[Odd({"w": "heavy"})])
    with pytest.raises(InputError, match="Odd.finish returned False, which says that a signal came; return True"):
        fit(tmp_path / "c", 10, callbacks=[Odd(finishes=False)])


def test_what_turned_bad_pushes_no_good_checkpoint_out(tmp_path):
    """And the last good one is named. Data of one value make (x w)^2, by steps of 0.1 or 10, fall or explode."""

    class Square:
        event_shape = (1,)

        def init(self, key):
            return Variables({"w": jnp.ones(())}, {})

        def loss(self, variables, key, batch, *, step, ema, train):
            return jnp.mean((batch["x"] * variables.params["w"]) ** 2) + jnp.where(step >= 12, jnp.nan, 0.0), {}, {}

    settings = Settings(batch_size=16, log_every=5, checkpoint_every=5, max_bad_steps=20, keep_checkpoints=2)
    phase = Phase(Square(), 60, optax.sgd(0.1))
    with pytest.raises(NonFiniteError, match="up to step 32; .*the last checkpoint before them is step 10$"):
        sgmjax.fit([phase], data.arrays(np.ones((64, 1))), tmp_path, settings=settings)
    assert Checkpointer(tmp_path, read_only=True).steps() == [5, 10]
    assert float(sgmjax.load_run(tmp_path, task=Square).variables.params["w"]) < 1


def test_a_network_whose_arrays_are_all_large(tmp_path):
    class Large(Regression):
        def init(self, key):
            return Variables({"w": jnp.zeros((2, 10_000))}, {})

        def loss(self, variables, key, batch, *, step, ema, train):
            return jnp.mean((batch["x"][:, :2] @ variables.params["w"]) ** 2), {}, {}

    assert fit(tmp_path, 10, task=Large()).status == "finished"
    assert sgmjax.load_run(tmp_path, task=Large).variables.params["w"].shape == (2, 10_000)


def test_another_optimiser_is_a_mismatch_and_nothing_is_moved(tmp_path):
    fit(tmp_path, 20)
    with pytest.raises(MismatchError, match="of another optimiser: train/opt_state"):
        fit(tmp_path, 30, optimizer=optax.sgd(0.1, momentum=0.9))
    assert Checkpointer(tmp_path, read_only=True).steps() == [10, 20] and not (tmp_path / "damaged").exists()


def test_a_checkpoint_of_another_format_is_said_so(tmp_path):
    """Format 1 joined small arrays in the optimiser's state; its averaged parameters are plain trees."""
    fit(tmp_path, 20)
    for step in (10, 20):
        file = tmp_path / "checkpoints" / str(step) / "meta" / "metadata"
        meta = json.loads(file.read_text())
        assert meta.pop("format") == 2
        file.write_text(json.dumps(meta))
        (file.parents[1] / "sums.json").unlink()
    with pytest.raises(MismatchError, match="has format 1, and this version of sgmjax writes format 2: samples can"):
        fit(tmp_path, 20)
    assert Checkpointer(tmp_path, read_only=True).steps() == [10, 20]
    assert sgmjax.load_run(tmp_path, task=Regression).step == 20


def test_checksums_are_taken_off_the_training_thread(tmp_path, monkeypatch):
    threads = []
    seal = running.Checkpointer._seal

    def spy(self, step):
        threads.append(threading.current_thread())
        seal(self, step)

    monkeypatch.setattr(running.Checkpointer, "_seal", spy)
    fit(tmp_path, 20)
    assert len(threads) == 2 and threading.main_thread() not in threads
    assert all((tmp_path / "checkpoints" / step / "sums.json").exists() for step in ("10", "20"))


BAD = [
    (lambda folder: sgmjax.fit([], rows(), folder), "phases: there is none"),
    (
        lambda folder: sgmjax.fit([Phase(object(), 1, optax.sgd(0.1))], rows(), folder),
        r"phases\[0\].task: object has no event_shape; a task has event_shape, init and loss",
    ),
    (lambda folder: fit(folder, 0), r"phases\[0\].steps: must be positive, got 0"),
    (lambda folder: fit(folder, 1.5), r"phases\[0\].steps: expected a whole number, got 1.5"),
    (lambda folder: fit(folder, settings=Settings(batch_size=12)), "batch_size: 12 cannot be divided into 8 equal"),
    (lambda folder: fit(folder, settings=Settings(fsdp=3)), "fsdp: 3 does not divide the 8 devices"),
    (lambda folder: fit(folder, 61, settings=Settings(steps_per_dispatch=2)), r"phases\[0\].steps: 61 is not a mult"),
    (
        lambda folder: fit(folder, callbacks=[Watch(), HeldOut(every=5)], settings=Settings(steps_per_dispatch=2)),
        r"callbacks\[1\].every: 5 is not a multiple of steps_per_dispatch=2",
    ),
    (lambda folder: fit(folder, config={"lr": np.float32(0.1)}), "config: stands in config.json, and JSON cannot"),
    (lambda folder: fit(folder, task=tiny.Task()), r"examples have shape \(3,\), and the task's event_shape is \(2,\)"),
]


@pytest.mark.parametrize(("call", "words"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_is_one_line_and_leaves_nothing(tmp_path, call, words):
    with pytest.raises(InputError, match=words) as error:
        call(tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused(tmp_path):
    fit(tmp_path, 20)
    with pytest.raises(InputError, match=r"holds a run with other settings \(seed: 0 there, 1 now\)"):
        fit(tmp_path, 20, seed=1)
    with pytest.raises(InputError, match=r"open it with load_run\(.*, task=...\)"):
        sgmjax.load_run(tmp_path)
    assert fit(tmp_path, 20, settings=Settings(batch_size=16, log_every=4, checkpoint_every=10)).status == "finished"
    assert fit(tmp_path, 20, seed=1, restart=True).status == "finished" and (tmp_path / "earlier" / "1").is_dir()
