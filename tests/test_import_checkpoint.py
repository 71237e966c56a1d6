"""Official checkpoints become run folders: the network gives the recorded outputs, and training goes on."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import official_files
import pytest
import refdata

from sgmjax import interop
from sgmjax._inputs import InputError
from sgmjax.commands import import_checkpoint, published, train
from sgmjax.config import MODEL, from_dict
from sgmjax.training.load import load_run

SETTINGS = {
    "psld": {
        "data": {"name": "folder", "image_size": 16, "eval_split": None},
        "sde": {"name": "psld"},
        "model": {"name": "ncsnpp", "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,)},
        "train": {"batch_size": 8, "log_every": 1, "eval_every": 0, "sample_every": 0},
        "sampling": {"sampler": "em", "steps": 2, "num": 8, "batch_size": 8, "grid_images": 8},
    },
    "ncsnv2": {
        "data": {"name": "folder", "image_size": 16, "centered": False},
        "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0},
        "model": {"name": "ncsnv2", "ngf": 4},
        "objective": {
            "matching": "dsm", "weighting": "annealed", "parameterization": "score", "time_conditioning": "sigma",
            "time_sampling": "levels", "num_levels": 232, "reduce": "half_sum",
        },
        "sampling": {"sampler": "annealed_langevin", "grid": "levels", "steps": 233, "options": {"steps_per_level": 1}},
    },
}  # fmt: skip
CHECKPOINTS = {"psld": ("psld_*.json", ".ckpt"), "ncsnv2": ("ncsnv2repo_*.json", ".pth")}


def official(source: str):
    """The first recorded checkpoint of a repository, and settings of a run that has its network and process."""
    pattern, ending = CHECKPOINTS[source]
    configs = sorted((refdata.REFERENCE / "checkpoints").glob(pattern))
    if not configs:
        pytest.skip(f"no checkpoints/{pattern} in {refdata.REFERENCE}")
    file, config = refdata.beside(configs[0], ending), json.loads(configs[0].read_text())
    settings = {name: dict(section) for name, section in SETTINGS[source].items()}
    if source == "psld":
        with np.load(refdata.beside(configs[0], "_expected.npz")) as arrays:
            network = interop.from_psld_config(config, image_size=arrays["input"].shape[-1])
        if network.module.out_channels < network.event_shape[-1]:  # noise in the momentum alone
            settings["sde"] |= {"gamma": 0.0, "nu": 4.0}
    else:
        network = interop.from_ncsnv2_config(config)
        model, levels = config["model"], len(network.sigmas)
        settings["sde"] |= {"sigma_min": model["sigma_end"], "sigma_max": model["sigma_begin"]}
        settings["sde"] |= {"sigma_dist": model["sigma_dist"]}
        settings["objective"] |= {"num_levels": levels}
        settings["sampling"] |= {"steps": levels + 1}
        settings["data"] |= {"centered": network.module.centered}
    settings["data"]["image_size"] = network.event_shape[0]
    known = MODEL.parameters(settings["model"]["name"])
    settings["model"] |= {name: getattr(network.module, name) for name in known}
    return file, settings, network


def config_file(folder, settings) -> str:
    path = folder / "official.py"
    path.write_text(f"from sgmjax.config import complete\n\n\ndef get_config():\n    return complete({settings!r})\n")
    return f"--config={path}"


def run_command(source, file, *words) -> int:
    return import_checkpoint.main(["import_checkpoint", f"--source={source}", f"--checkpoint={file}", *words])


@pytest.mark.parametrize("source", [pytest.param("psld", marks=pytest.mark.slow), "ncsnv2"])
def test_a_checkpoint_becomes_a_run(source: str, reference, tmp_path, capsys):
    pytest.importorskip("torch")
    file, settings, network = official(source)
    assert run_command(source, file, config_file(tmp_path, settings), f"--workdir={tmp_path / 'run'}") == 0
    assert "is now the run" in capsys.readouterr().out
    with np.load(refdata.beside(file, "_expected.npz")) as archive:
        arrays = {k: np.moveaxis(v, 1, -1) if v.ndim == 4 else v for k, v in archive.items()}
    averaged, raw = (load_run(tmp_path / "run", averaged=flag) for flag in (True, False))
    assert averaged.step == raw.step > 0
    apply = jax.jit(averaged.task.network.apply)
    for run, prefix in ((averaged, "ema_"), (raw, "")):
        name = "score_fn_output_f32" if source == "psld" else "output_f32"
        expected = arrays[prefix + (name if prefix or source == "psld" else f"model_{name}")]
        cond = arrays["time"] if source == "psld" else network.sigmas[arrays["labels"]]
        output = apply({"params": run.variables.params}, jnp.asarray(arrays["input"]), jnp.asarray(cond, jnp.float32))
        assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(reference, tmp_path, capsys):
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    file, settings, network = official("psld")
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (*network.event_shape[:2], 3), np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
    flags = [config_file(tmp_path, settings), f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.data.data_dir={tmp_path}"]
    assert run_command("psld", file, *flags) == 0
    before = load_run(tmp_path / "run")
    assert train.main(["train", *flags, f"--config.train.steps={before.step + 2}"]) == 0
    assert f"going on from step {before.step}" in capsys.readouterr().out
    after = load_run(tmp_path / "run")
    assert after.step == before.step + 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [before.step + 1, before.step + 2]
    assert run_command("psld", file, *flags) == 2  # the folder is taken


@pytest.mark.parametrize("sigma_dist", ["geometric", "uniform"])
def test_the_noise_levels_are_those_of_the_config(sigma_dist, monkeypatch, tmp_path):
    """Against which the table in an official checkpoint is compared."""
    seen = []

    def read(content, path, network):
        seen.append(network.sigmas)
        raise InputError("seen")

    monkeypatch.setattr(interop.ncsnv2, "ncsnv2_of", read)
    settings = SETTINGS["ncsnv2"] | {"sde": SETTINGS["ncsnv2"]["sde"] | {"sigma_dist": sigma_dist}}
    found = interop.Recognised("ncsnv2", "", "a checkpoint of ncsnv2", [], tmp_path / "a.pth")
    with pytest.raises(InputError, match="seen"):
        published.convert(found, from_dict(settings), (16, 16, 3), None)
    table = (np.geomspace if sigma_dist == "geometric" else np.linspace)(50.0, 0.01, 232)
    np.testing.assert_allclose(seen[0], table, rtol=2e-7)
    with pytest.raises(InputError, match="sde.name is 'psld', and .* is a checkpoint of ncsnv2: use ve"):
        published.check_source(found, from_dict(SETTINGS["psld"]))


TOLD = [
    ("psld", {"time_conditioning": "t999"}, "'t999' is not what the networks of psld have .*'psld': that is 't'$"),
    (
        "psld",
        {"parameterization": "score"},
        "objective.parameterization: 'score' .* of psld .*: that is 'eps' or 'mixed'",
    ),
    ("psld", {"parameterization": "v"}, "objective.parameterization is 'v', which makes a denoiser"),
    ("psld", {"parameterization": "mixed"}, None),
    ("cld", {"time_conditioning": "t999"}, "objective.time_conditioning: 't999' is not what the networks of cld have"),
    ("scoresde", {"time_conditioning": "t"}, "'t' is not .* of scoresde .*'ve': that is 'sigma' or 'level'"),
    ("scoresde", {"parameterization": "eps"}, "'eps' is not .* of scoresde .*'ve': that is 'score'"),
    ("scoresde vp", {"time_conditioning": "t"}, "'t' is not .* of scoresde .*'vp': that is 't999'"),
    ("scoresde vp", {"parameterization": "mixed", "time_conditioning": "t999"}, "'mixed' .*: that is 'eps'"),
    ("scoresde vp", {"parameterization": "eps", "time_conditioning": "t999"}, None),
]


@pytest.mark.parametrize("program, objective, message", TOLD)
def test_what_a_network_is_told_and_predicts_is_that_of_the_program(program, objective, message, tmp_path):
    """No weight says so: one that is read otherwise gives noise."""
    source, _, process = program.partition(" ")
    settings = official_files.SETTINGS[source]
    settings = settings | {"objective": settings.get("objective", {}) | objective}
    if process:
        settings = settings | {"sde": {"name": process}, "model": official_files.NETWORK}
    found = interop.Recognised(source, "", f"a checkpoint of {source}", [], tmp_path / "a.pth")
    config = from_dict(settings | {"sampling": official_files.SAMPLING})
    if message is None:
        published.check_source(found, config)
        published.check_told(config, source)
        return
    with pytest.raises(InputError, match=message) as error:
        published.check_source(found, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, words, message",
    [
        ({"nf": 2}, [], "has shape"),  # twice as wide
        ({"num_res_blocks": 2}, [], "state dict"),
        ({}, ["--source=wrong"], "--source"),
        ({}, ["--checkpoint=nowhere.ckpt"], "checkpoint: cannot read nowhere.ckpt: No such file"),
        ({}, ["--image_shape=16,16"], "height,width,channels"),
        ({}, ["--config.data.image_size=None"], "--image_shape: of data 'folder'"),
        ({}, ["--source=scoresde"], "--source: scoresde, but"),
    ],
)
def test_what_does_not_fit_is_one_line(change, words, message, reference, tmp_path, capsys):
    pytest.importorskip("torch")
    file, settings, _ = official("psld")
    settings["model"] |= {name: settings["model"][name] * factor for name, factor in change.items()}
    assert run_command("psld", file, config_file(tmp_path, settings), f"--workdir={tmp_path / 'run'}", *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "run" / "config.json").exists()
