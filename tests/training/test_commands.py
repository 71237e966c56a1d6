"""The commands, as a user types them: what they refuse in one line, and a run from nothing to samples."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiers
from refdata import ROOT

from sgmjax import _cli, sdes
from sgmjax import sharding as sh
from sgmjax._files import short
from sgmjax._inputs import InputError
from sgmjax.commands import sample, train, tune_grid
from sgmjax.config import from_dict
from sgmjax.evaluation import draw, pictures
from sgmjax.tasks import build
from sgmjax.training.load import load_run
from sgmjax.training.run import Run

TOY = {
    "data": {"name": "ring", "num_samples": 500},
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "optimizer": {"warmup_steps": 5},
    "train": {
        "steps": 12,
        "batch_size": 32,
        "log_every": 4,
        "eval_every": 6,
        "sample_every": 6,
        "checkpoint_every": 6,
    },
    "sampling": {"steps": 6, "num": 20, "grid_images": 8, "batch_size": 16},
}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "toy.py"
    path.write_text(f"from sgmjax.config import complete\n\n\ndef get_config():\n    return complete({TOY!r})\n")
    return path


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory) -> Path:
    """A run folder made by the command itself."""
    folder = tmp_path_factory.mktemp("run")
    assert train.main(["train", f"--config={config_file}", f"--workdir={folder}"]) == 0
    return folder


BAD_TRAIN = [
    (["--config.train.stpes=5"], "train.stpes: no such setting; did you mean train.steps?"),
    (["--config.trian.steps=5"], "trian: no such setting; did you mean train?"),
    (["--config.train.steps=many"], "train.steps: expected an integer, got 'many' (str)"),
    (["--config.train.steps=-5"], "train.steps: must be positive, got -5"),
    (["--config.train.steps.x=5"], "train.steps is a setting, not a section"),
    (["--config.train.batch_size=12"], "train.batch_size: 12 cannot be split over 8 devices; use 8 or 16"),
    (["--config.sde.gamma=0.5", "--config.sde.nu=0.5"], "gamma"),
    (["--config.sde.name=recipe", "--config.sde.D=((1,0),(0,-1))", "--config.sde.Q=((0,-1),(1,0))"], "sde: "),
    (["--config.data.name=nonsense"], "nonsense"),
    (["--config.data.name=folder", "--config.data.data_dir=/nowhere"], "/nowhere"),
    (["--config.sampling.sampler=magic"], "sampling.sampler: 'magic' is unknown; choose one of adaptive_sde"),
    (["--workdir=/dev/null/run"], "cannot write in the run folder /dev/null/run"),
    (["--steps=5"], "Unknown command line flag 'steps'"),
    (["steps=5"], "unexpected argument 'steps=5'"),
]


@pytest.mark.parametrize(("words", "message"), BAD_TRAIN, ids=range(len(BAD_TRAIN)))
def test_train_refuses_in_one_line(config_file, tmp_path, capsys, monkeypatch, words, message):
    def compiled(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(Run, "execute", compiled)
    command = ["train", f"--config={config_file}", *([] if "workdir" in words[0] else [f"--workdir={tmp_path}/run"])]
    assert train.main([*command, *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_impossible_attention_resolution(tmp_path, capsys):
    command = ["train", "--config=psld_digits", f"--workdir={tmp_path}/run", "--config.model.attn_resolutions=(5,)"]
    assert train.main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "attn_resolutions" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("def get_config(): 1 / 0", "ZeroDivisionError: division by zero"),
        ("import sgmjax.config as c\ndef get_config(): return c.complete({'sed': 1})", "did you mean seed?"),
    ],
)
def test_config_files_that_do_not_work(tmp_path, capsys, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert train.main(["train", f"--config={path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err


def test_every_kind_of_override(config_file):
    words = [
        "--config.train.steps=6",
        "--config.optimizer.grad_clip=None",
        "--config.optimizer.learning_rate",
        "1e-2",
        "--config.model.remat",
        "--noconfig.sampling.denoise",
        "--config.sde.name=vp",
        "--config.sde.beta_max=10",
        "--config.model.name=ncsnpp",
        "--config.model.ch_mult=1,2",
        "--config.data.name=pinwheel",
    ]
    _, config, workdir = train.read_flags(["train", *words, f"--config={config_file}"])
    expected = from_dict(
        {
            **TOY,
            "train": {**TOY["train"], "steps": 6},
            "optimizer": {**TOY["optimizer"], "grad_clip": None, "learning_rate": 0.01},
            "data": {**TOY["data"], "name": "pinwheel"},
            "sampling": {**TOY["sampling"], "denoise": False},
            "sde": {"name": "vp", "beta_max": 10},
            "model": {"name": "ncsnpp", "ch_mult": (1, 2), "remat": True},
        }
    )
    assert config == expected and workdir == os.path.join("runs", "toy")


def test_without_config_it_is_the_digits():
    _, config, workdir = train.read_flags(["train"])
    assert config.data.name == "digits" and workdir == os.path.join("runs", "psld_digits")


def test_help_names_every_flag_once(capsys):
    with pytest.raises(SystemExit):
        sample.main(["sample", "--help"])
    flags = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    assert len(flags) == len(set(flags)) > 20


def test_without_config_a_folder_says_its_own(finished, config_file, capsys):
    """And what the command line changes is compared with it."""
    _, config, workdir = train.read_flags(["train", f"--workdir={finished}", "--config.train.steps=9"])
    assert workdir == str(finished) and config.train.steps == 9
    assert dataclasses.replace(config, train=load_run(finished).config.train) == load_run(finished).config
    _, asked, _ = train.read_flags(["train", f"--workdir={finished}", "--config=psld_digits"])
    assert asked.data.name == "digits"


def test_a_run_from_the_command_line(finished, config_file, capsys):
    """Everything that a run folder should hold; run again, it is complete."""
    assert {"step_6.png", "final.png", "final.npz"} <= {path.name for path in (finished / "samples").iterdir()}
    with np.load(finished / "samples" / "final.npz") as final:
        assert final["samples"].shape == (20, 2) and final["nfe"] == 6 and np.isfinite(final["samples"]).all()
    logged = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [4, 6, 8, 12]
    assert train.main(["train", f"--config={config_file}", f"--workdir={finished}"]) == 0
    assert "is complete: 12 steps" in capsys.readouterr().out


def test_another_config_in_the_same_folder(finished, config_file, capsys):
    command = ["train", f"--config={config_file}", f"--workdir={finished}", "--config.model.width=32"]
    assert train.main(command) == 2
    assert "model.width: 16 there, 32 now" in capsys.readouterr().err


def test_sampling_from_a_run(finished, capsys):
    command = ["sample", f"--workdir={finished}", "--num=10", "--sampler=em", "--steps=8", "--grid=uniform", "--seed=1"]
    assert sample.main(command) == 0
    assert "NFE 8" in capsys.readouterr().out
    with np.load(finished / "samples" / "em_8_uniform_seed1.npz") as archive:
        first = archive["samples"]
        assert first.shape == (10, 2) and archive["step"] == 12 and archive["nfe"] == 8
    assert sample.main([*command, f"--out={finished}/again"]) == 0
    with np.load(finished / "again.npz") as archive:
        np.testing.assert_array_equal(archive["samples"], first)
    assert sample.main([*command, "--denoise=true", "--t_min=0.01"]) == 0  # drawn otherwise, so in another file
    with np.load(finished / "samples" / "em_8_uniform_denoised_t_min0.01_seed1.npz") as archive:
        assert not np.allclose(archive["samples"], first)
    assert (finished / "again.png").exists()


@pytest.mark.slow
def test_sampling_with_another_process(finished, capsys):
    """The run is PSLD's; its network is read as a denoiser, and the files say what was drawn."""
    command = ["sample", f"--workdir={finished}", "--num=4", "--process=cld", "--process.m_inv=2.0", "--steps=5"]
    assert sample.main(command) == 0
    first = finished / "samples" / "as_cld_m_inv2.0_sscs_5_quadratic_seed0.npz"
    assert sample.main([*command, "--process.m_inv=4", f"--out={finished}/four"]) == 0
    with np.load(first) as one, np.load(finished / "four.npz") as other:
        assert one["samples"].shape == (4, 2) and np.isfinite(one["samples"]).all() and one["nfe"] == 5
        assert not np.allclose(one["samples"], other["samples"])
    run = load_run(finished, process={"name": "cld", "m_inv": 2.0})
    assert run.task.sde.k == 2 and run.task.model.trained_as.name == "psld" and run.config.sde.m_inv == 2.0
    levels = [
        float(sdes.noise_level(one.task.sde, np.full(1, one.plan.t_min, np.float32))[0])
        for one in (run, load_run(finished))
    ]
    assert run.plan.t_min != load_run(finished).plan.t_min  # sampling ends at the same noise level
    np.testing.assert_allclose(*levels, rtol=1e-3)
    assert load_run(finished, process={"name": "cld"}, sampling={"t_min": 0.01}).plan.t_min == 0.01
    with pytest.raises(InputError, match="process: is of a run with a config"):
        load_run(finished, process={"name": "cld"}, task=lambda: None)
    capsys.readouterr()


@pytest.mark.slow
def test_a_tuned_grid_is_found(finished, capsys):
    """By what it was tuned for, and by nothing else; nearer to the teacher than the plain grids."""
    how = ["--sampler=unipc", "--steps=6", "--denoise=tweedie", "--options=order=3"]
    tune = ["tune_grid", f"--workdir={finished}", *how, "--num=16", "--levels=20", "--refine=0"]
    assert tune_grid.main(tune) == 0
    file = finished / "grids" / "unipc_6_order3.json"
    content = json.loads(file.read_text())
    assert content["error"] < min(content["plain"].values()) and len(content["times"]) == 6
    assert "noise levels 258, " in (out := capsys.readouterr().out) and str(file) in out
    run = load_run(finished, sampling={"sampler": "unipc", "steps": 6, "denoise": "tweedie", "grid": "tuned",
                                       "options": {"order": 3}})  # fmt: skip
    assert list(run.plan.times) == content["times"] and run.plan.t_min == content["times"][-1]
    assert run.plan.weights == ()
    draw = ["sample", f"--workdir={finished}", "--num=4", "--grid=tuned"]
    assert sample.main([*draw, *how]) == 0
    with np.load(finished / "samples" / "unipc_6_tuned_order3_tweedie_seed0.npz") as drawn:
        first = drawn["samples"]
        assert drawn["nfe"] == 6 and np.isfinite(first).all()
    assert sample.main([*draw, *how, "--t_min=0.2"]) == 2
    assert "--t_min: a tuned grid ends where it was tuned to" in capsys.readouterr().err
    assert sample.main([*draw, *how[:1], "--steps=7"]) == 2
    error = capsys.readouterr().err
    assert (
        "none for unipc, 7 steps" in error and "there: unipc, 6 steps, options {'order': 3}, denoise tweedie" in error
    )
    assert "python -m sgmjax.tune_grid" in error
    # another process has another grid, and the same one is written again
    assert tune_grid.main([*tune, "--process=cld"]) == 0 and tune_grid.main([*tune, "--seed=1"]) == 0
    assert sorted(path.name for path in file.parent.iterdir()) == ["as_cld_unipc_6_order3.json", file.name]
    assert json.loads(file.read_text())["seed"] == 1 and json.loads(file.read_text())["weights"] == []
    assert sample.main([*draw, *how, "--process=cld"]) == 0
    # learned weights go with it, and make other samples; not from a later start
    assert tune_grid.main([*tune[:-1], "--refine=2", "--seed=1", "--weights"]) == 0
    learned = json.loads(file.read_text())
    assert len(learned["weights"]) == 5 * 4 * 2 and learned["error"] < content["error"]
    assert sample.main([*draw, *how]) == 0
    with np.load(finished / "samples" / "unipc_6_tuned_order3_tweedie_seed0.npz") as again:
        assert again["nfe"] == 6 and not np.array_equal(again["samples"], first)
    assert sample.main([*draw, *how, "--start_time=0.5"]) == 2
    assert "tune without --weights and --analytic_start for this" in capsys.readouterr().err
    # an analytic start is a step more for the same evaluations
    assert tune_grid.main([*tune[:-1], "--refine=0", "--analytic_start"]) == 0
    free = json.loads(file.read_text())
    assert len(free["times"]) == len(learned["times"]) + 1 and len(free["mean"]) == 2 and free["std"] > 0
    assert sample.main([*draw, *how]) == 0
    with np.load(finished / "samples" / "unipc_6_tuned_order3_tweedie_seed0.npz") as again:
        assert again["nfe"] == 6 and np.isfinite(again["samples"]).all()
    assert sample.main([*draw, *how, "--start_time=0.5"]) == 2
    assert "--analytic_start for this" in capsys.readouterr().err
    assert sample.main([*draw, *how, "--restarts=3,1,0.1,0.3"]) == 2
    assert "grid 'tuned' of a run is of the way down alone" in capsys.readouterr().err
    file.write_text("{}")
    assert sample.main([*draw, *how]) == 2
    assert "is no tuned grid: delete it" in capsys.readouterr().err
    shutil.rmtree(file.parent)


@pytest.mark.slow
def test_sampling_with_restarts(finished, capsys):
    """Five steps, two restarts of two, and the last one."""
    command = ["sample", f"--workdir={finished}", "--num=8", "--sampler=unipc", "--steps=10", "--grid=rho"]
    assert sample.main([*command, "--denoise=True", "--restarts=3,2,0.3,2"]) == 0
    assert "NFE 10" in capsys.readouterr().out
    with np.load(finished / "samples" / "unipc_10_rho_restarts3-2-0.3-2_denoised_seed0.npz") as drawn:
        assert drawn["nfe"] == 10 and np.isfinite(drawn["samples"]).all()
    assert sample.main([*command, "--restarts=3,2,0.3"]) == 2
    assert "write levels,repeats,low,high, as 3,2,0.06,0.3" in capsys.readouterr().err


def test_samples_of_other_settings_stay(finished, capsys):
    """Names do not have all flags, --num among them: those of others get a digest."""
    words = ["sample", f"--workdir={finished}", "--sampler=em", "--steps=2", "--grid=uniform", "--seed=9"]
    folder, sizes = finished / "samples", []
    for num in (4, 6, 4):
        assert sample.main([*words, f"--num={num}"]) == 0
        files = sorted(folder.glob("em_2_uniform_seed9*.npz"), key=lambda path: len(path.name))
        sizes.append([len(np.load(path)["samples"]) for path in files])
        assert f"{files[num == 6]} and .png" in capsys.readouterr().out and files[-1].with_suffix(".png").exists()
    assert sizes == [[4], [4, 6], [4, 6]] and files[0].name == "em_2_uniform_seed9.npz"


def test_sampling_given_a_measurement(finished, capsys):
    """Of two numbers the first is known: samples have it to its noise by the posterior's score, exactly by name."""
    words = ["sample", f"--workdir={finished}", "--num=16", "--sampler=unipc", "--steps=12", "--grid=rho"]
    for more, name in (
        (
            ["--inverse=random:0.5", "--noise=0.1", "--method=mmps", "--method_options=iterations=2"],
            "random_0.5_mmps_noise_0.1_unipc_12_rho_iterations2_seed0",
        ),
        (["--inpaint=half"], "inpaint_unipc_12_rho_seed0"),
        (["--inpaint=half", "--method=replacement"], "inpaint_replacement_unipc_12_rho_seed0"),
    ):
        assert sample.main([*words, *more]) == 0
        assert ("derivatives" in capsys.readouterr().out) == ("replacement" not in name)
        with np.load(finished / "samples" / f"{name}.npz") as drawn:
            assert drawn["nfe"] == 12 and np.isfinite(drawn["samples"]).all()
            if "measured" in drawn:
                assert drawn["measured"].shape == (16, 1)
            if "inpaint" in name and "replacement" in name:
                np.testing.assert_array_equal(drawn["samples"][:, 0], drawn["inputs"][:, 0])


def test_samples_that_are_not_finite_are_told(finished, capsys):
    """A strength at which each step goes too far."""
    words = ["sample", f"--workdir={finished}", "--num=8", "--sampler=unipc", "--steps=12", "--grid=rho"]
    words += ["--inverse=random:0.5", "--noise=0.1", "--method=dps", "--method_options=scale=1e30"]
    assert sample.main(words) == 0
    assert "warning: 8 of 8 samples are not finite; take more --steps" in capsys.readouterr().out


@pytest.mark.slow
def test_images_far_outside_their_range_are_told(tmp_path, capsys):
    """Ten steps of Euler and Maruyama on a network that has learnt its data leave values of hundreds."""
    words = ["sample", "--workdir=zoo:psld_digits", "--num=8", f"--out={tmp_path / 'drawn'}"]
    assert sample.main([*words, "--sampler=em", "--grid=quadratic", "--steps=10"]) == 0
    warning = re.search(r"warning: (\d) of 8 samples lie far outside the range of images", capsys.readouterr().out)
    assert warning is not None and int(warning[1]) > 4
    assert sample.main([*words, "--sampler=unipc", "--grid=auto", "--steps=10", "--options=order=3"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_rows_of_a_picture_are_named(tmp_path, capsys):
    words = ["sample", "--workdir=zoo:psld_digits", "--num=20", "--sampler=unipc", "--steps=6", "--grid=auto"]
    words += ["--inverse=super_resolution:2", "--noise=0.1", "--method=pigdm", f"--out={tmp_path / 'drawn'}"]
    assert sample.main(words) == 0
    rows = "the inputs, the measurement as an image, samples, their mean, twice their standard deviation"
    assert f"from above: {rows}\n" in capsys.readouterr().out


@pytest.mark.parametrize("centered, middle, half", [(True, 0.0, 1.0), (False, 0.5, 0.5)])
def test_what_is_astray_is_counted(centered, middle, half):
    x = np.full((5, 2, 2, 1), middle, np.float32)
    x[0, 0, 0], x[1, 1, 1], x[2, 0, 1] = np.nan, middle + 3.1 * half, middle - 2.9 * half
    assert pictures.astray(x, True, centered) == (1, 1)
    assert pictures.astray(x, False, centered) == (1, 0)
    assert pictures.astray(np.full((2, 1), np.inf), True, centered) == (2, 0)


@pytest.mark.slow
def test_sampling_with_a_samplers_own_settings(finished, capsys):
    """9 evaluations: 3 steps of a predictor and two corrections each."""
    options = "--options=corrector_steps=2,snr=0.1,predictor=ancestral"
    command = ["sample", f"--workdir={finished}", "--num=8", "--sampler=pc", "--steps=9", "--denoise=False", options]
    assert sample.main(command) == 0
    assert "NFE 9" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", tiers.alike(["--sampler=ode", "--interpolate"], ["--interpolate"]))
def test_sampling_with_a_sampler_that_does_not_read_the_runs_settings(finished, capsys, words):
    """The run steps six times on a grid; the flow of an interpolation has tolerances, whatever its sampler."""
    command = ["sample", f"--workdir={finished}", "--num=2", "--rtol=0.5", "--atol=0.5", f"--out={finished}/other"]
    assert sample.main([*command, words]) == 0
    assert "NFE" in capsys.readouterr().out


BAD_SAMPLE = [
    ([], "--workdir: which run?"),
    (["--workdir=/nowhere"], "no run in /nowhere"),
    (["--workdir=RUN", "--steps=-5"], "--steps: must be positive, got -5"),
    (["--workdir=RUN", "--num=0"], "--num: must be positive, got 0"),
    (["--workdir=RUN", "--sampler=magic"], "sampling.sampler: 'magic' is unknown; choose one of adaptive_sde"),
    (["--workdir=RUN", "--grid=cubic"], "sampling.grid: expected one of uniform, quadratic, power, rho, "),
    (["--workdir=RUN", "--options=snr"], "--options: 'snr' is no setting; write name=value, as snr=0.2"),
    (["--workdir=RUN", "--sampler=pc", "--options=srn=0.2"], "sampling.options.srn: sampler 'pc' has no such setting"),
    (["--workdir=RUN", "--sampler=pc", "--options=corrector=mala"], "sampling: corrector must be one of"),
    (["--workdir=RUN", "--denoise=tweedy"], "sampling.denoise: expected True, False or one of"),
    (["--workdir=RUN", "--rtol=0.5"], "sampling.rtol: 0.5 means nothing for sampler 'sscs', which steps on a grid"),
    (["--workdir=RUN", "--sampler=ode", "--steps=9"], "sampling.steps: 9 means nothing for sampler 'ode'"),
    (["--workdir=RUN", "--interpolate", "--steps=9"], "sampling.steps: 9 means nothing for sampler 'ode'"),
    (["--workdir=RUN", "--interpolate", "--sampler=em"], "--sampler: --interpolate follows the ODE, which has no use"),
    (["--workdir=RUN", "--interpolate", "--denoise=tweedie"], "--denoise: --interpolate follows the ODE, which has"),
    (["--workdir=RUN", "--method_options=iterations=2"], "--method_options: of what? it goes with --inverse"),
    (
        ["--workdir=RUN", "--inpaint=half", "--method=replacement", "--method_options=a=1", "--sampler=em"],
        "--method_options: --method=replacement has none",
    ),
    (["--workdir=RUN", "--noise=0.5"], "--noise: is of what was measured, by --method=mmps, "),
    (["--workdir=RUN", "--input=mine.npz"], "--input: nothing here starts from data; it is for --inpaint, "),
    (["--workdir=RUN", "--process=psld", "--process.name=vp"], "--process.name: the name is --process=psld itself"),
    (["--workdir=RUN", "--labels=3"], "--labels: the network of this run knows no classes"),
    (["--workdir=RUN", "--steps=few"], "few"),
    (["--workdir=RUN", "--process=psdl"], "process.name: no sde called 'psdl'; choose one of vp, "),
    (["--workdir=RUN", "--process=psld", "--process.gama=1"], "process.gama: no such setting of psld; did you mean"),
    (["--workdir=RUN", "--process=psld", "--process.gamma=-1"], "process.gamma: must be zero or positive, got -1"),
    (["--workdir=RUN", "--process.gamma=1"], "--process.gamma: of which process? name it, as --process=psld"),
    (["--workdir=RUN", "--process=cld", "--sampler=edm"], "sampling: edm is written for processes of one variable"),
    (["--workdir=RUN", "--t_min=2"], "--t_min: must be between 0 and 1, both excluded, got 2"),
]


@pytest.mark.parametrize(("words", "message"), BAD_SAMPLE, ids=range(len(BAD_SAMPLE)))
def test_sample_refuses_in_one_line(finished, capsys, words, message):
    assert sample.main(["sample", *(word.replace("RUN", str(finished)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_as_programs():
    """Exit status and streams of a real process; `import sgmjax` alone loads nothing heavy."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def python(*words):
        return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120)

    done = python("-m", "sgmjax.train", "--config.train.stpes=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: train.stpes: no such setting; did you mean train.steps?\n"
    done = python("-c", "import sys, sgmjax; print(sgmjax.__version__, 'jax' in sys.modules, 'flax' in sys.modules)")
    assert done.stdout.split()[1:] == ["False", "False"], done.stderr


def test_files_of_samples_say_of_which_classes_they_are():
    """So that those of one class do not overwrite those of all."""
    assert sample.label_words(None) == "" and sample.label_words(["3", "big cat"]) == "_labels3-bigcat"
    many = [[*map(str, range(150)), last] for last in ("3", "4")]
    assert len({short(sample.label_words(words)) for words in many}) == 2


def test_a_name_that_is_no_run_names_those_that_come_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"give the --workdir of a run, or one of zoo:\w+, .*zoo:psld_digits"):
        load_run("psld_digit")


def test_labels():
    np.testing.assert_array_equal(sample.read_labels(["1", "3"], 10, 5), [1, 3, 1, 3, 1])
    assert sample.read_labels(None, 10, 5) is None
    with pytest.raises(_cli.UsageError, match="'10' is no class; they are 0 to 9"):
        sample.read_labels(["10"], 10, 5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", tiers.alike(["em", "sscs"], ["sscs"]))
def test_sampling_work_is_split_over_devices(sampler):
    """In the compiled program every device's network sees its part of the batch only, and the samples are the same."""
    config = from_dict({**TOY, "model": {"name": "mlp", "width": 24, "depth": 1}, "sampling": {"sampler": sampler}})
    task = build.task(config, (2,))
    variables = task.init(jax.random.key(0))

    def sample(variables, key, num):
        return task.sample(variables, key, num, config.sampling)

    drawn = {}
    for count in (1, 8):
        mesh = sh.make_mesh(1, jax.devices()[:count])
        places = jax.tree.map(lambda _: sh.replicated(mesh), variables)
        sampler_of = draw.Sampler(sample, mesh, places, 64)
        placed = jax.device_put(variables, places)
        key = jax.device_put(jax.random.key(1), sh.replicated(mesh))
        drawn[count], _ = sampler_of(placed, key, 64)
        with jax.set_mesh(mesh), jax.debug_key_reuse(False):
            text = sampler_of._draw.lower(placed, key, np.uint32(0), None).compile().as_text()
        assert re.search(rf"f32\[{64 // count}(,1)?,24\]", text)
        if count > 1:
            assert not re.search(r"f32\[64(,1)?,24\]", text)
    # rounding is relative to the largest numbers, which an untrained network's samples have
    np.testing.assert_allclose(drawn[8], drawn[1], rtol=1e-4, atol=max(1e-5, 1e-6 * np.abs(drawn[1]).max()))


def test_the_package_itself_says_which_commands_there_are():
    """Every module that runs as a command is named, and nothing that does not run."""
    from sgmjax.__main__ import COMMANDS, page

    files = [path.relative_to(ROOT / "sgmjax") for path in (ROOT / "sgmjax").rglob("*.py") if path.name[0] != "_"]
    runs = {
        ".".join(file.with_suffix("").parts)
        for file in files
        if 'if __name__ == "__main__":' in (ROOT / "sgmjax" / file).read_text()
    }
    assert runs == COMMANDS.keys()
    assert all(f"python -m sgmjax.{command} " in page() for command in runs) and "zoo:psld_mnist" in page()


def test_a_command_that_is_not_one_is_answered_with_those_that_are():
    found = subprocess.run([sys.executable, "-m", "sgmjax", "train"], capture_output=True, text=True)
    assert found.returncode == 1 and "write python -m sgmjax.train\n" in found.stderr
    assert "Traceback" not in found.stderr and "Trains a model." in found.stderr
