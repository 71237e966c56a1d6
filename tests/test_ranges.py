"""Numbers that cannot work, sizes that no machine holds, and files of masks and starts: one line before the work."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax import _cli, _ranges, samplers, sdes
from sgmjax._inputs import InputError
from sgmjax._ranges import check_memory, check_range
from sgmjax.commands import (
    control,
    evaluate,
    export_checkpoint,
    import_checkpoint,
    inputs,
    noise_levels,
    sample,
    train,
    tune_grid,
)
from sgmjax.config import ConfigError, from_dict
from sgmjax.data import arrays
from sgmjax.training import train as training

pytestmark = pytest.mark.usefixtures("one_device")

TINY = {
    "data": {"name": "ring", "num_samples": 64},
    "model": {"name": "mlp", "width": 8, "depth": 1},
    "optimizer": {"warmup_steps": 1, "ema_decay": 0.5},
    "train": {"steps": 2, "batch_size": 16, "log_every": 1, "eval_every": 0, "sample_every": 0, "checkpoint_every": 0},
    "sampling": {"num": 8, "batch_size": 8, "steps": 3, "grid_images": 8},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranges") / "run"
    training.train(from_dict(TINY), folder)
    return folder


RIGHT_AND_WRONG = {
    "FINITE": ([0, -1e300, 2], [np.inf, -np.inf, np.nan]),
    "POSITIVE": ([1e-300, 3], [0, -1, np.nan, np.inf]),
    "NON_NEGATIVE": ([0, 1e9], [-1e-9, np.nan, np.inf]),
    "COUNT": ([1, 2**31 - 1], [0, -1, 2**31, 10**20]),
    "COUNT_OR_ZERO": ([0, 2**31 - 1], [-1, 2**31]),
    "SIDE": ([1, 2**14], [0, 2**14 + 1]),
    "SEED": ([0, 2**32 - 1], [-1, 2**32]),
    "FRACTION": ([0, 0.999], [1, -0.1, np.nan]),
    "OPEN_UNIT": ([1e-9, 0.999], [0, 1, np.nan]),
    "TOLERANCE": ([1e-12, 1], [0, 1.1, np.inf, np.nan]),
}


@pytest.mark.parametrize("name", RIGHT_AND_WRONG)
def test_ranges(name):
    wanted, (right, wrong) = getattr(_ranges, name), RIGHT_AND_WRONG[name]
    for value in (*right, None):
        check_range(value, wanted, "x")
    for value in (*wrong, "word", [1]):
        with pytest.raises(ConfigError, match="^the thing: must be "):
            check_range(value, wanted, "the thing", ConfigError)


def test_arrays_and_traced_numbers():
    with pytest.raises(InputError, match="strength: must be finite, got nan"):
        check_range(jnp.array([1.0, jnp.nan]), _ranges.FINITE, "strength")
    check_range(np.ones(3), _ranges.FINITE, "strength")
    jax.jit(lambda s: check_range(s, _ranges.FINITE, "strength"))(jnp.nan)  # not known while it is compiled


def test_every_number_of_every_command_has_a_range():
    """`parse_flags` looks the range of each number up; a flag without one would be a KeyError here."""
    commands = {
        sample: sample.RANGES,
        evaluate: evaluate.RANGES,
        noise_levels: noise_levels.RANGES,
        tune_grid: tune_grid.RANGES,
    }
    for command, ranges in commands.items():
        assert command.main(["x", *(f"--{name}=-1" for name in list(ranges)[:1])]) == 2
    for command in (train, import_checkpoint, export_checkpoint):
        assert command.main(["x", "--unknown"]) == 2


@pytest.mark.parametrize("strength", [np.nan, np.inf, -np.inf])
def test_guidance_that_is_no_number(strength):
    sde = sdes.vp()
    with pytest.raises(InputError, match="strength: must be finite"):
        samplers.cfg_score(lambda z, t: z, lambda z, t: z, strength)
    with pytest.raises(InputError, match="strength: must be finite"):
        samplers.guided_score(lambda z, t: z, lambda z, t: z, 0, strength, sde=sde)
    with pytest.raises(ConfigError, match="--guidance: must be zero or positive"):
        control.Control(guidance=strength)._check_guidance(None, None)  # type: ignore[arg-type]


def test_memory(monkeypatch):
    """24 GB hold 8,000 float32 examples of 3 MB each (1000 x 1000 x 3 has 12 MB), not 10,000 of them."""
    monkeypatch.setattr(_ranges, "memory", lambda: 24 * 10**9)
    check_memory("--num", 2000, (1000, 1000, 3), fix="give fewer")
    check_memory("--num", 8000, (1000, 1000, 3), itemsize=1, fix="give fewer")
    text = (
        "--num: 2,001 examples of 1000 x 1000 x 3 numbers take 24 GB, and this machine has 24 GB of memory; give fewer"
    )
    with pytest.raises(InputError, match=text):
        check_memory("--num", 2001, (1000, 1000, 3), fix="give fewer")
    monkeypatch.setattr(_ranges, "memory", lambda: None)
    check_memory("--num", 10**18, (1000, 1000, 3), fix="give fewer")
    assert _ranges.memory() is None


GIANTS = [
    ("train", "--config=psld_toy --config.train.batch_size=2000000000", "train.batch_size: "),
    ("train", "--config=psld_digits --config.sampling.num=2000000000", "sampling.num: 2,000,000,000 examples"),
    ("train", "--config=psld_toy --config.data.num_samples=2000000000", "data.num_samples: 2,000,000,000 examples"),
    ("train", "--config=psld_digits --config.data.image_size=16000", "data.image_size: 1,498 examples"),
    ("train", "--config=psld_digits --config.train.steps=1e20", "train.steps: expected an integer"),
    ("train", "--config=", "--config: is empty"),
    ("sample", "--num=100000000000000000000", "--num: must be at most 2147483647, got 1000"),
    ("sample", "--rtol=inf --sampler=ode", "--rtol: must be above 0 and at most 1, got inf"),
    ("sample", "--guidance=nan", "--guidance: must be zero or positive, got nan"),
    ("sample", "--seed=18446744073709551616", "--seed: must be at most 4294967295"),
    ("evaluate", "--atol=inf", "--atol: must be above 0 and at most 1, got inf"),
    ("evaluate", "--batch_size=20000000000", "--batch_size: must be at most 2147483647"),
    ("noise_levels", "--data=digits --image_size=100000", "--image_size: must be at most 16384, got 100000"),
    ("noise_levels", "--data=digits --image_size=16384", "data.image_size: 1,498 examples of 16384 x 16384"),
    ("noise_levels", "--data=digits --steps_per_level=100000000000000000000", "--steps_per_level: must be at most"),
    (
        "import_checkpoint",
        "--image_shape=64,64,1000000000 --source=psld --config=psld_celeba64 --checkpoint=x",
        "--image_shape: height,width,channels, as 64,64,3, each at most 16384",
    ),
]


@pytest.mark.parametrize(("command", "words", "message"), GIANTS, ids=[f"{c} {w[-40:]}" for c, w, _ in GIANTS])
def test_giants(finished, tmp_path, monkeypatch, capsys, command, words, message):
    monkeypatch.setattr(_ranges, "memory", lambda: 10**10)
    commands = (train, sample, evaluate, noise_levels, tune_grid, import_checkpoint)
    main = {module.__name__.split(".")[-1]: module for module in commands}[command].main
    folders = {
        "train": f"--workdir={tmp_path}/new",
        "sample": f"--workdir={finished}",
        "evaluate": f"--workdir={finished}",
    }
    words = [*words.split(), *([folders[command]] if command in folders else [])]
    assert main([command, *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_names_that_are_not_text(capsys):
    """A name of a file with a byte that is no UTF-8 is written as such a byte."""
    name = b"/nowhere/\xff".decode("utf-8", "surrogateescape")
    assert sample.main(["sample", f"--workdir={name}"]) == 2
    assert r"/nowhere/\xff" in capsys.readouterr().err
    with pytest.raises(_cli.UsageError, match=r"no file /nowhere/\\xff"):
        _cli.find_config(name)


# ---------------------------------------------------------------------------------------------------- masks and starts
def _run(event_shape, **options):
    from sgmjax.tasks import build
    from sgmjax.training.load import LoadedRun

    network = {"name": "ncsnpp", "nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    settings = {**TINY, "model": network} if len(event_shape) == 3 else TINY
    config = from_dict(settings)
    return LoadedRun(build.task(config, event_shape, None, **options), None, 0, config)


MASKS = {
    "nan": (np.array([np.nan, 1.0]), r"mask\[0\] is nan: it must be finite"),
    "complex": (np.ones(2, complex), "mask: must be real numbers, got complex128"),
    "two": (np.array([0, 2]), r"mask\[1\] is 2: the largest is 1"),
    "half": (np.array([0.5, 1.0]), "mask must be 1 where the data are known and 0 elsewhere"),
    "words": (np.array(["a", "b"]), "mask: must be real numbers, got <U1"),
    "objects": (np.array([{}, None], object), "Python objects"),
    "shape": (np.ones((3, 5)), "does not broadcast"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(tmp_path, name):
    array, message = MASKS[name]
    np.savez(tmp_path / "m.npz", mask=array)
    with pytest.raises(InputError, match=f"^--inpaint.*{message}"):
        inputs.read_mask(str(tmp_path / "m.npz"), (2,))


def test_masks_that_are_right(tmp_path):
    for dtype in (bool, np.uint8, np.int64, np.float32, np.float64):
        np.savez(tmp_path / "m.npz", mask=np.array([1, 0], dtype))
        assert inputs.read_mask(str(tmp_path / "m.npz"), (2,)).tolist() == [1, 0]
    np.save(tmp_path / "m.npy", np.array([1, 0]))
    assert inputs.read_mask(str(tmp_path / "m.npy"), (2,)).tolist() == [1, 0]


STARTS = {
    "nan": (np.array([[0.0, np.nan]]), r"x\[0, 1\] is nan: it must be finite"),
    "huge": (np.full((1, 2), 1e300), r"x\[0, 0\] is 1e\+300: the largest is 1e\+06"),
    "complex": (np.ones((1, 2), complex), "x: must be real numbers"),
    "integers": (np.ones((1, 2), np.int32), "images must be uint8 or floats, got int32"),
    "shape": (np.ones((1, 3)), r"has \(1, 3\), and this run makes \(2,\)"),
    "none": (np.ones((0, 2)), r"has \(0, 2\), and this run makes \(2,\)"),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts(tmp_path, name):
    array, message = STARTS[name]
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(InputError, match=f"^--input: .*{message}"):
        inputs.read_inputs(str(tmp_path / "x.npz"), _run((2,)), 4)


def test_starts_of_images_are_in_the_range_of_images(tmp_path):
    x = np.zeros((2, 8, 8, 1), np.float32)
    x[1, 2, 3, 0] = 100.0
    np.savez(tmp_path / "x.npz", x=x)
    run = _run((8, 8, 1))
    with pytest.raises(InputError, match=r"^--input: x\[1, 2, 3, 0\] is 100.0: the largest is 1.*give x / 127.5 - 1"):
        inputs.read_inputs(str(tmp_path / "x.npz"), run, 4)
    np.savez(tmp_path / "x.npz", x=(x > 0).astype(np.uint8) * 255)
    found, labels = inputs.read_inputs(str(tmp_path / "x.npz"), run, 3)
    assert labels is None and found.shape == (3, 8, 8, 1) and found[1].max() == 1.0 and found[2].max() == -1.0


def test_data_whose_numbers_are_too_large_for_the_noise(tmp_path):
    """In float32 noise of size 1 is lost beside 1e8: such data can be trained on only when they are standardised."""
    x = np.full((64, 2), 1e8)
    with pytest.raises(InputError, match=r"\[0, 0\] is 1000+.0: the largest is 1e\+06.*standardise the data"):
        training.setup(from_dict(TINY), tmp_path, dataset=arrays(x))


# ------------------------------------------------------------------------------------------------------------ evaluate
@pytest.mark.slow
def test_one_example_has_no_error_bar(finished, capsys):
    """The number is written and printed; that of one example has no standard error."""
    flags = [f"--workdir={finished}", "--num=1", "--rtol=1e-2", "--atol=1e-2", "--draws=2"]
    assert evaluate.main(["evaluate", *flags]) == 0
    out = capsys.readouterr().out
    assert "probability-flow ODE: " in out and "+-" not in out
    found = json.loads((finished / "metrics" / "bpd_step2.json").read_text())["results"]["ode"]
    assert np.isfinite(found["mean"]) and found["standard_error"] is None


def test_what_would_be_lost_is_refused_before(finished, tmp_path, capsys):
    """Files that cannot be written, and a metric that one sample does not have, are said before the work."""
    (tmp_path / "x.npz").mkdir()
    (tmp_path / "x.json").mkdir()
    for command, out, message in (
        (evaluate, f"{tmp_path}/x.json", "x.json is a folder"),
        (evaluate, "/dev/null/x", "--out: cannot write /dev/null/x"),
        (evaluate, "/proc/x", "--out: cannot write /proc/x"),
        (sample, f"{tmp_path}/x", "x.npz is a folder"),
        (sample, "/dev/null/x", "--out: cannot write /dev/null/x"),
    ):
        assert command.main(["x", f"--workdir={finished}", f"--out={out}"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and message in err, err
