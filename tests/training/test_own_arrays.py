"""Runs on one's own arrays, whatever their form: trained, gone on with, sampled, inpainted and evaluated."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import refdata
import tiers

from sgmjax import data
from sgmjax.commands import evaluate, sample
from sgmjax.commands.inputs import read_mask
from sgmjax.config import ConfigError, from_dict
from sgmjax.data import DataError
from sgmjax.evaluation import pictures
from sgmjax.metrics import frechet_distance, pixel_frechet
from sgmjax.training import horizon
from sgmjax.training import train as training

pytestmark = pytest.mark.usefixtures("one_device")

RNG = np.random.default_rng(0)
UNET = {"nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "dropout": 0.0, "attn_resolutions": ()}
FORMS = {  # examples, network
    "vectors": (RNG.normal(size=(64, 3)), {"name": "mlp", "width": 8, "depth": 1}),
    "signals": (RNG.normal(size=(64, 8, 2)), {"name": "unet1d", **UNET}),
    "rectangles": (RNG.integers(0, 256, (64, 8, 4, 1), np.uint8), {"name": "ncsnpp", **UNET}),
    "floats": (RNG.uniform(-1, 1, (64, 4, 4, 3)), {"name": "ncsnpp", **UNET}),
    "volumes": (RNG.normal(size=(64, 2, 3, 4, 1)), {"name": "mlp", "width": 8, "depth": 1}),
}


def config(model, steps=2, **sections):
    train = {"steps": steps, "batch_size": 16, "eval_every": 2, "sample_every": 0, "checkpoint_every": 1}
    settings = {
        "model": model,
        "optimizer": {"warmup_steps": 0, "ema_decay": 0.5},
        "train": train,
        "sampling": {"num": 8, "batch_size": 8, "steps": 3, "grid_images": 4},
    }
    return from_dict(settings | sections)


GONE_ON = ("vectors", "rectangles")  # floats, and the bytes of images; of the others another test


def finished(form, folder, gone_on):
    """A finished run on a file of arrays, gone on with once if so wished; its folder, the file, and the examples."""
    x, model = FORMS[form]
    np.savez(folder / "mine.npz", x=x[:48], x_test=x[48:])
    section = {"name": "npz", "path": str(folder / "mine.npz")}
    if gone_on:
        training.train(config(model, steps=1, data=section), folder / "run")
    result = training.train(config(model, data=section), folder / "run")
    assert (result.status, result.step) == ("finished", 2)
    return folder / "run", folder / "mine.npz", x, form


@pytest.fixture(scope="module", params=tiers.alike(FORMS, ("rectangles",)))
def run(request, tmp_path_factory):
    """See `finished`."""
    return finished(request.param, tmp_path_factory.mktemp(request.param), request.param in GONE_ON)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form not in GONE_ON])
def test_a_run_is_gone_on_with(form, tmp_path):
    finished(form, tmp_path, True)


def test_samples_are_of_the_type_and_shape_of_the_data(run):
    folder, _, x, form = run
    with np.load(folder / "samples" / "final.npz") as final:
        assert final["samples"].shape == (8, *x.shape[1:])
        assert final["samples"].dtype == (np.uint8 if form == "rectangles" else np.float32)
    assert (folder / "samples" / "final.png").stat().st_size > 100
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["eval_loss"] > 0


def test_inpainting_keeps_the_first_half_of_held_out_data(run):
    folder, _, x, form = run
    assert sample.main(["sample", f"--workdir={folder}", "--num=8", "--inpaint=half", f"--out={folder / 'half'}"]) == 0
    with np.load(folder / "half.npz") as archive:
        samples, inputs = archive["samples"], archive["inputs"]
    np.testing.assert_array_equal(inputs, x[48:56] if form == "rectangles" else x[48:56].astype(np.float32))
    axis = 2 if form in ("rectangles", "floats") else 1  # of images the left half
    known, rest = (np.split(v, [v.shape[axis] // 2], axis) for v in (samples, inputs))
    np.testing.assert_array_equal(known[0], rest[0])
    assert (known[1] != rest[1]).mean() > 0.9


@pytest.mark.slow
def test_the_likelihood_of_held_out_data(run):
    folder, _, x, form = run
    assert evaluate.main(["evaluate", f"--workdir={folder}", "--num=4", "--rtol=1e-2", "--atol=1e-2", "--draws=2"]) == 0
    result = json.loads((folder / "metrics" / "bpd_step2.json").read_text())
    unit = {"rectangles": "bits/dim", "vectors": "nats/example"}.get(form, "nats/dim")
    assert result["unit"] == unit and result["num"] == 4 and ("dequantization" in result) == (form == "rectangles")
    # The network has hardly moved from zero, and eps = 0 is a score of 0: its flow is linear and its density Gaussian,
    # far wider than the data. So all that is asked is that each is a number of the right order.
    assert 0 < abs(result["results"]["ode"]["mean"]) < 100


@pytest.mark.slow
def test_a_run_on_data_given_in_python_says_so_to_the_commands(tmp_path, capsys):
    x, model = FORMS["vectors"]
    labels = np.arange(64) % 4
    mine = data.arrays(x, labels, name="mine")  # the config goes on saying "digits", which must not be taken
    training.train(config({**model, "num_classes": 4}), tmp_path / "run", dataset=mine)
    capsys.readouterr()
    for words in (["evaluate"], ["sample", "--inpaint=half"], ["sample", "--start_time=0.5"]):
        main = evaluate.main if words[0] == "evaluate" else sample.main
        assert main([*words, f"--workdir={tmp_path / 'run'}"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "was trained on a data set given in Python" in err and "--data=FILE.npz" in err
    np.savez(tmp_path / "held_out.npz", x=x[:8], labels=labels[:8])
    flags = [f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'held_out.npz'}", f"--out={tmp_path / 'out'}"]
    assert sample.main(["sample", *flags, "--inpaint=half", "--num=8"]) == 0
    with np.load(tmp_path / "out.npz") as archive:
        np.testing.assert_array_equal(archive["inputs"], x[:8].astype(np.float32))
        assert archive["labels"].tolist() == labels[:8].tolist()
    assert evaluate.main(["evaluate", *flags, "--rtol=1e-2", "--atol=1e-2", "--draws=2"]) == 0
    result = json.loads((tmp_path / "out").read_text())
    assert result["num"] == 8 and "held_out.npz" in result["data"] and "exact" not in result["results"]
    capsys.readouterr()
    bad = {
        "shape": ({"x": np.zeros((4, 2)), "labels": np.zeros(4, int)}, "float32 examples of shape (3,), and these are"),
        "type": ({"x": np.zeros((4, 3), np.uint8), "labels": np.zeros(4, int)}, "and these are uint8 examples"),
        "labels": ({"x": np.zeros((4, 3))}, "the data have no labels, training had 4 classes"),
        "class": ({"x": np.zeros((4, 3)), "labels": np.full(4, 7)}, "labels[0] is 7: 4 classes are 0 to 3"),
        "nan": ({"x": np.full((4, 3), np.nan), "labels": np.zeros(4, int)}, "x[0, 0] is nan"),
    }
    for name, (arrays, message) in bad.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert evaluate.main(["evaluate", flags[0], f"--data={tmp_path / name}.npz"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and message in err, err
    for words, message in (
        (["evaluate", "--split=train", flags[1]], "has no training part"),
        (["evaluate", "--data=/nowhere.npz"], "--data: cannot read /nowhere.npz"),
        (["sample", "--num=8", flags[1]], "--data: nothing here starts from held-out data"),
    ):
        assert (evaluate.main if words[0] == "evaluate" else sample.main)([*words, flags[0]]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "held_out", "sections", "message"),
    [
        (np.zeros((32, 4, 4, 1)) + 2, None, {}, r"arrays\[0, 0, 0, 0\] is 2.0: the largest is 1.*scale or clip"),
        (np.zeros((32, 4, 4, 1)), np.zeros((4, 4, 4, 1)) - 2, {}, r"is -2.0: the least is -1"),
        (np.zeros((32, 4, 4, 1)), np.zeros((4, 4, 4, 1), np.uint8), {}, "examples are floats and held-out ones uint8"),
        (np.zeros((32, 4, 4, 1)), np.zeros((4, 4, 2, 1)), {}, r"shape \(4, 4, 1\) and held-out ones \(4, 2, 1\)$"),
        (np.zeros((32, 6, 4, 1)), None, {"model": {"name": "ncsnpp"}}, "multiple of 8; got 6: .* or give data of"),
        (np.zeros((32, 8, 8, 1)), None, {"data": {"uniform_dequantization": True}}, "is of 8-bit data"),
        (np.zeros((32, 8, 8, 1)), None, {"vae": {}}, "vae: its decoders are for 8-bit images, and arrays has floats"),
        (np.zeros((32, 8, 6, 1), np.uint8), None, {"vae": {}}, "square images, and these are 8 x 6; give data"),
    ],
    ids=range(8),
)  # fmt: skip
def test_data_that_cannot_be_trained_on_are_refused_before_compilation(tmp_path, train, held_out, sections, message):
    settings = {"model": {"name": "ncsnpp", **UNET}} | sections
    parts = {"dataset": data.arrays(train), "eval_dataset": None if held_out is None else data.arrays(held_out)}
    with pytest.raises((ConfigError, DataError), match=message) as error:
        training.setup(from_dict(settings), tmp_path / "run", **parts)
    assert "\n" not in str(error.value) and "image_size" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "word", "kept"),
    [
        ((8, 2), "half", [1, 1, 1, 1, 0, 0, 0, 0]),
        ((8, 2), "center", [1, 1, 0, 0, 0, 0, 1, 1]),
        ((4, 3, 2, 1), "half", [1, 1, 0, 0]),
    ],
)
def test_masks_of_signals_and_volumes(shape, word, kept):
    mask = np.broadcast_to(read_mask(word, shape), shape)
    np.testing.assert_array_equal(mask, np.broadcast_to(np.reshape(kept, (-1, *(1,) * (len(shape) - 1))), shape))


def test_pictures_of_what_is_no_image():
    signals = pictures.picture(np.stack([np.sin(np.linspace(0, 6, 32)), np.zeros(32)], -1)[None].repeat(5, 0))
    assert signals.dtype == np.uint8 and signals.shape[-1] == 3 and 0 < (signals < 128).any(-1).mean() < 0.5
    volumes = np.zeros((4, 3, 2, 2, 1), np.float32)
    volumes[:, 1, 0, 0], volumes[:, 0] = 5.0, 9.0  # the middle slice is shown, from its least to its largest
    expected = pictures.picture(np.where(volumes[:, 1] == 5.0, 255, 0).astype(np.uint8))
    np.testing.assert_array_equal(pictures.picture(volumes), expected)
    floats = np.array([-1.0, 1.0, 0.0, 0.5], np.float32).reshape(1, 2, 2, 1)
    levels = np.array([0, 255, 128, 191], np.uint8).reshape(1, 2, 2, 1)  # 127.5 (1 + v), to the nearest, ties to even
    np.testing.assert_array_equal(pictures.picture(floats), pictures.picture(levels))
    np.testing.assert_array_equal(pictures.picture((floats + 1) / 2, centered=False), pictures.picture(levels))


def test_frechet_of_floats_is_that_of_the_levels_they_stand_for():
    a, b = (RNG.integers(0, 256, (20, 2, 2, 1), np.uint8) for _ in range(2))
    expected = frechet_distance(a.reshape(20, -1) / 255.0, b.reshape(20, -1) / 255.0)
    floats = [data.to_float(v, True) for v in (a, b)]
    assert pixel_frechet(*floats) == pytest.approx(expected, rel=1e-5)
    assert pixel_frechet(*(data.to_float(v, False) for v in (a, b)), centered=False) == pytest.approx(
        expected, rel=1e-5
    )
    with pytest.raises(ValueError, match="the two sets hold uint8 and float32"):
        pixel_frechet(a, floats[1])


def test_noise_levels_of_a_file_of_arrays(tmp_path):
    from sgmjax.commands import noise_levels

    np.savez(tmp_path / "x.npz", x=[[0.0] * 8, [3.0] + [0.0] * 7, [0.0, 4.0] + [0.0] * 6] * 10)
    request = noise_levels.read_flags(["", f"--data={tmp_path / 'x.npz'}"])
    assert request.config.data.name == "npz" and noise_levels.main(["", f"--data={tmp_path / 'x.npz'}"]) == 0


# --------------------------------------------------------------------------------------- runs that are too short
def lines(steps=1000, vae=None, **optimizer):
    sections = {"optimizer": optimizer, "train": {"steps": steps}}
    return horizon.outlasting(from_dict(sections | ({} if vae is None else {"vae": {}, "latent": vae})))


def test_a_warmup_or_an_average_that_outlasts_the_run_is_said():
    (both,) = lines(warmup_steps=5000, ema_decay=0.9999, ema_warmup=False)  # 0.9999^1000 = 0.9048
    assert "optimizer ends after 1,000 steps, and its warmup takes 5,000 and the average" in both
    assert "still holds 90% of the network as it was" in both and "\n" not in both
    assert "set optimizer.warmup_steps=100 and optimizer.ema_decay=0.99 or optimizer.ema_warmup=True" in both
    (warmup,) = lines(warmup_steps=1000, ema_decay=0.99)
    assert "warmup takes 1,000;" in warmup and "average" not in warmup
    (average,) = lines(warmup_steps=999, ema_decay=0.999, ema_warmup=False)  # 0.999^1000 = 0.368
    assert "holds 37%" in average and "warmup takes" not in average
    assert lines(warmup_steps=999, ema_decay=0.9999, ema_warmup=True) == []
    assert lines(steps=3000, warmup_steps=100, ema_decay=0.999, ema_warmup=False) == []  # 0.999^3000 = 0.0497


def test_every_optimizer_of_a_latent_run_is_looked_at_over_its_own_steps():
    short = {"warmup_steps": 300}
    stages = {"vae_steps": 200, "vae_optimizer": short, "vae_finetune": {**short, "warmup_steps": 900}}
    found = lines(vae=stages, warmup_steps=800, ema_decay=0.9)
    assert [line.split(" ends")[0] for line in found] == [
        "note: latent.vae_optimizer", "note: optimizer", "note: latent.vae_finetune"
    ]  # fmt: skip
    assert "after 200 steps" in found[0] and "after 800 steps" in found[1] and "after 800 steps" in found[2]
    frozen = {"vae_steps": 200, "vae_optimizer": short, "train_vae": False}  # vae_finetune's own warmup takes 1,000
    assert len(lines(vae=frozen, warmup_steps=0, ema_decay=0.9)) == 1
    assert lines(steps=200, vae=stages | {"vae_optimizer": {"warmup_steps": 9}}) == []  # no second stage


def test_setup_says_it_before_anything_is_compiled(tmp_path, capsys):
    settings = from_dict({"model": {"name": "mlp"}, "optimizer": {"warmup_steps": 5000}, "train": {"steps": 100}})
    training.setup(settings, tmp_path / "run", dataset=data.arrays(FORMS["vectors"][0]))
    assert capsys.readouterr().out.count("its warmup takes 5,000") == 1


# ------------------------------------------------------------------------------------------------ the page's example
def example() -> str:
    text = (refdata.ROOT / "docs" / "own_data.md").read_text()
    (found,) = [
        part.split("```")[0] for part in text.split("```python\n")[1:] if "sgmjax.train(" in part.split("```")[0]
    ]
    return found


@pytest.mark.slow
def test_the_example_of_own_data_draws_the_four_modes(tmp_path):
    """The data: Gaussians of std 0.2 about (+-.98, +-.98), so P(|x_i| < .4) = P(-6.9 < n < -2.9) = .0019.

    Bound: ten times that, where a normal distribution has .31; measured .009 of 10,000 samples, and the sampling error
    of 2,000 coordinates is .002.
    """
    out = subprocess.run(
        [sys.executable, "-c", example()], cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=True
    )
    assert "note:" not in out.stdout  # neither warmup nor average outlasts the run
    with np.load(tmp_path / "runs" / "mine" / "samples" / "final.npz") as final:
        samples = final["samples"]
    assert len(samples) >= 1000
    assert np.mean(np.abs(samples) < 0.4) < 0.02
    modes = np.bincount((samples > 0) @ [2, 1], minlength=4) / len(samples)
    assert modes.min() > 0.15 and modes.max() < 0.35  # 1/4 each
    np.testing.assert_allclose(np.abs(samples).mean(0), 0.98, atol=0.06)
