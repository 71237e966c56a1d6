"""What a run writes down: metrics, progress, pictures."""

from __future__ import annotations

import gc
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from sgmjax.evaluation.pictures import picture, save_arrays, save_picture, to_arrays
from sgmjax.training.logging import MetricsWriter, Progress, duration, truncate


def test_metrics_of_steps_to_come_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 40, "lo')
    truncate(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    writer = MetricsWriter(tmp_path, 20, tensorboard=False)
    writer.write(30, {"loss": math.nan, "eval_loss": 2.0})
    writer.close()
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 30, "loss": None, "eval_loss": 2.0}


def test_a_new_run_drops_what_an_aborted_one_left(tmp_path):
    """A run killed before its first checkpoint starts again at step 0."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    MetricsWriter(tmp_path, 0, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_events_that_cannot_be_written_leave_no_file_open(tmp_path):
    """An open one would be a ResourceWarning, an error here."""
    (tmp_path / "tensorboard").write_text("a file is in the way")
    with pytest.raises(OSError):
        MetricsWriter(tmp_path, 0)
    gc.collect()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (18_420, "5h07m"), (183_600, "2d03h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 12.0])
    monkeypatch.setattr("sgmjax.training.logging.time.perf_counter", lambda: next(clock))
    stream = io.StringIO()
    progress = Progress(100, 0, 8, stream=stream)  # at 0
    assert progress.update(10, 0.5) == pytest.approx(40)  # at 2: 10 steps of 8 in 2 s
    progress.pause(4.0)  # at 10: 6 s do not count
    assert progress.update(20, 0.25) == pytest.approx(20)  # at 12: 10 steps of 8 in 4 s
    assert stream.getvalue().splitlines() == [
        "step  10/100  loss 0.5  40 images/s  ETA 18s",
        "step  20/100  loss 0.25  20 images/s  ETA 32s",
    ]


def test_progress_on_a_terminal_is_one_line():
    stream = Terminal()
    progress = Progress(10, 0, 8, stream=stream)
    progress.update(1, 0.5)
    progress.update(2, 0.5)
    assert stream.getvalue().count("\r") == 2 and "\n" not in stream.getvalue()
    progress.break_line()
    progress.break_line()
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("centered", [True, False])
def test_pixels(centered):
    """All 256 values come back, what is outside is clipped, and NaN is no white noise."""
    values = np.arange(256)
    unit = values / 255
    x = (2 * unit - 1 if centered else unit).reshape(1, 16, 16, 1).astype(np.float32)
    np.testing.assert_array_equal(to_arrays(x, True, centered).ravel(), values)
    low = -1.0 if centered else 0.0
    extreme = np.array([low - 3, 3.0], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(to_arrays(extreme, True, centered).ravel(), [0, 255])


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
    grid = picture(images)
    # 3 columns and 2 rows of images enlarged 8 times, gaps of 2
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3) and grid.dtype == np.uint8
    shown = grid[2 + 66 : 66 + 66 : 8, 2 + 66 : 66 + 66 : 8]  # second row, second column
    np.testing.assert_array_equal(shown, np.broadcast_to(images[4], (8, 8, 3)))
    save_picture(tmp_path / "grid.png", grid)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid)


def test_scatter():
    image = picture(np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32))
    assert image.ndim == 3 and image.shape[-1] == 3 and len(np.unique(image)) > 10


def test_arrays_are_written_in_one_move(tmp_path):
    save_arrays(tmp_path / "a.npz", samples=np.arange(3), step=7)
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["step"] == 7 and archive["samples"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
