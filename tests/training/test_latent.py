"""LSGM as a run: both stages, resume in either, what reaches which parameters, the bound, and settings that clash."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refdata

from sgmjax import sharding
from sgmjax.commands import control, evaluate
from sgmjax.config import ConfigError, DataConfig, from_dict, to_dict
from sgmjax.data import DataError, load
from sgmjax.data.base import DataError as BaseDataError
from sgmjax.data.binarize import dynamic
from sgmjax.evaluation import metrics
from sgmjax.evaluation.nelbo import NelboSettings, example_nelbo
from sgmjax.objectives.time_law import lsgm_mode
from sgmjax.tasks import VAETask, Variables, build, build_latent, latent
from sgmjax.training import run as running
from sgmjax.training.checkpoint import Checkpointer
from sgmjax.training.load import LoadedRun, load_run
from sgmjax.training.train import check_vae_from, setup, train

OPTIMIZER = {"name": "adamax", "learning_rate": 1e-2, "learning_rate_min": 1e-3, "warmup_steps": 1, "ema_decay": 0.0}
SETTINGS = {
    "data": {"name": "digits", "binarize": "static", "eval_split": None},
    "vae": {
        "encoder_channels": 4, "decoder_channels": 4, "ch_mult": (1, 1), "groups_per_scale": 2, "latents_per_group": 2,
        "preprocess_cells": 1, "postprocess_cells": 1, "encoder_cells": 1, "decoder_cells": 1, "decoder": "bin",
    },
    "sde": {"name": "vp"},
    "model": {"name": "ncsnpp", "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.1},
    "objective": {"t_min": 0.01, "time_conditioning": "t999"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-2, "warmup_steps": 1, "weight_decay": 1e-4},
    "latent": {
        "vae_steps": 3, "vae_optimizer": OPTIMIZER, "vae_finetune": OPTIMIZER | {"name": "adamw"},
        "prior_spectral_weight": 1e-3, "q_ema": True,
    },
    "train": {"steps": 6, "batch_size": 8, "log_every": 1, "eval_every": 0, "sample_every": 0, "checkpoint_every": 2},
    "sampling": {"sampler": "em", "steps": 2, "num": 8, "batch_size": 8},
}  # fmt: skip


def config(**sections):
    names = {*SETTINGS, *sections}
    return from_dict({name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in names})


def task(**sections):
    return build.task(config(**sections), (8, 8, 1), 10)


def state_of(folder, run):
    checkpointer = Checkpointer(folder, read_only=True)
    state, _ = checkpointer.restore(lambda step: run.abstract)
    return jax.tree.map(np.asarray, state)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class Stop:
    """Interrupts a run after `step`, as a signal would."""

    name = "SIGTERM"
    step = 0

    def __enter__(self):
        self.received = False
        return self

    def __exit__(self, *_):
        pass

    def check(self, step):
        self.received = step >= Stop.step
        return self.received


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lsgm")
    assert train(config(), folder).status == "finished"
    return folder


# In the first stage, between both, in the second.
@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_goes_on_bitwise_in_either_stage(finished, tmp_path, monkeypatch, step):
    """All of the state, averages of batch norm and vectors of power iterations included, over eight devices."""
    monkeypatch.setattr(Stop, "step", step)
    with monkeypatch.context() as patch:
        patch.setattr(running, "Interrupt", Stop)
        assert train(config(), tmp_path).status == "interrupted"
    assert train(config(), tmp_path).status == "finished"
    run = setup(config(train={"steps": 7}), tmp_path / "other")
    ours, theirs = state_of(tmp_path, run), state_of(finished, run)
    assert jax.tree.leaves(ours.model_state["batch_stats"])
    assert jax.tree.leaves(ours.model_state["spectral"])
    assert_equal(ours, theirs)
    with np.load(tmp_path / "samples" / "final.npz") as a, np.load(finished / "samples" / "final.npz") as b:
        np.testing.assert_array_equal(a["samples"], b["samples"])


@pytest.mark.slow
def test_a_run_on_one_device_goes_on_bitwise_there_and_closely_on_eight(finished, tmp_path, monkeypatch):
    """The batch's statistics are those of the whole batch however many devices hold it."""
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(Stop, "step", 4)
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "make_mesh", one)
        assert train(config(), tmp_path / "whole").status == "finished"
        patch.setattr(running, "Interrupt", Stop)
        assert train(config(), tmp_path / "parts").status == "interrupted"
    shutil.copytree(tmp_path / "parts", tmp_path / "eight")
    assert train(config(), tmp_path / "eight").status == "finished"
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "make_mesh", one)
        assert train(config(), tmp_path / "parts").status == "finished"
    run = setup(config(train={"steps": 7}), tmp_path / "other")
    whole, parts, eight = (state_of(tmp_path / name, run) for name in ("whole", "parts", "eight"))
    assert_equal(whole, parts)
    for other in (eight, state_of(finished, run)):  # roundings differ, and steps of Adamax magnify small gradients
        a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.model_state)]) for s in (whole, other))
        assert 0 < np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(a)


@pytest.mark.slow
def test_the_first_stage_leaves_the_prior_alone_and_a_frozen_vae_stays(finished, tmp_path):
    """And `latent.vae_from` begins with the VAE of another run."""
    frozen = {"vae_from": str(finished), "vae_steps": 0, "train_vae": False, "q_ema": False}
    read = {name: value for name, value in SETTINGS["latent"].items() if not name.startswith("vae_")}
    settings = from_dict({**SETTINGS, "latent": read | frozen, "train": {**SETTINGS["train"], "steps": 2}})
    train(settings, tmp_path)
    before, after = load_run(finished), load_run(tmp_path)
    assert_equal(before.variables.params["vae"], after.variables.params["vae"])
    assert_equal(before.variables.state["batch_stats"], after.variables.state["batch_stats"])
    fresh = after.task.init(jax.random.fold_in(jax.random.key(0), 0)).params["prior"]["mixing_logit"]
    assert np.abs(after.variables.params["prior"]["mixing_logit"] - fresh).max() > 0
    only = config(latent={"vae_steps": 2}, train={"steps": 2})
    train(only, tmp_path / "vae")
    run = load_run(tmp_path / "vae")
    assert isinstance(run.task, VAETask)
    initial = run.task.init(jax.random.fold_in(jax.random.key(0), 0)).params
    assert_equal(run.variables.params["prior"], jax.tree.map(np.asarray, initial["prior"]))
    assert any(
        np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-4
        for a, b in zip(jax.tree.leaves(run.variables.params["vae"]), jax.tree.leaves(initial["vae"]), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("process", ["vp", "psld"])
def test_bound_with_a_normal_prior_in_closed_form(process):
    """With all of the mixing on the normal score the prior is N(0, I): ODE and weighted objective give its bound."""
    p = task(sde={"name": process}, model={"dropout": 0.0}, latent={"mixing_logit_init": -40.0})
    variables = p.init(jax.random.key(0))
    x = load(config().data).read(np.arange(1))["x"][0]
    settings = NelboSettings(trace="exact", posterior_samples=2, draws=4096, t_min=1e-5)
    times = lsgm_mode(p.sde, "ll_iw", t_min=1e-5)
    found = jax.jit(lambda key: example_nelbo(p, settings, times, variables, key, x))(jax.random.key(1))
    assert found["ode"] == pytest.approx(float(found["normal"]), abs=0.02)
    # One draw has a standard deviation of some 80 (VP) to 100 nats (PSLD) with 64 latent variables; 8,192 of them are
    # averaged. At t_min = 0.01 PSLD's bound would be 60 nats above: its momenta have left their initial law by then.
    assert found["weighted"] == pytest.approx(float(found["normal"]), abs=5.0)
    kl = float(jnp.sum(found["kl"]))
    assert kl + float(found["reconstruction"]) == pytest.approx(float(found["weighted"]), rel=1e-4)


def drawn_by_numpy(p):
    """Parameters and state like those of `init`, of which most of the time would go into compilation."""
    params, state = jax.eval_shape(p.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), params)
    ones = ("var", "active")
    return params, jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key in ones), leaf.dtype), state
    )


def test_idle_latent_channels_are_left_to_the_normal_prior():
    p = task(latent={"drop_inactive": True})
    params, state = drawn_by_numpy(p)
    # a posterior of mean and log-sigma 0, that of the prior, for the first channel of the first group
    posterior = params["vae"]["decoder_0_first"]["posterior"]
    latents = p.vae.latents_per_group
    idle = jnp.arange(2 * latents) % latents == 0
    posterior["log_weight_norm"] = jnp.where(idle, -40.0, posterior["log_weight_norm"])
    posterior["bias"] = jnp.where(idle, 0.0, posterior["bias"] + 1.0)
    after, new = latent.drop_inactive(p)(Variables(params, state), load(config().data), None)
    assert new["active"][0] == 0
    assert new["active"][1] == 1
    assert after["prior"]["mixing_logit"][0, 0] == -15
    assert after["prior"]["mixing_logit"][0, 1] == p.latent.mixing_logit_init
    z = jax.random.normal(jax.random.key(1), (2, 1, *p.latent_shape))
    moved = z.at[..., 0].add(1.0)
    eps = jax.jit(p.eps_fn(Variables(after, new)))
    a, b = eps(z, jnp.full(2, 0.5)), eps(moved, jnp.full(2, 0.5))
    np.testing.assert_array_equal(a[..., 1:], b[..., 1:])  # what the network says does not depend on an idle channel
    assert (p.latent.p_weighting, p.score_fn(Variables(after, new)).hears) == ("ll_iw", "drift")


def test_the_guide_for_users_of_lsgm_measures_what_can_be():
    text = (refdata.ROOT / "docs" / "from_lsgm.md").read_text()
    for name in re.findall(r"--nll_ode_eval .*--metrics=([\w,]+)`", text)[0].split(","):
        metrics.check(name, task())


@pytest.mark.slow
def test_metric_nelbo_and_refusals_of_the_command(finished, capsys):
    assert evaluate.main(["evaluate", f"--workdir={finished}", "--metrics=nelbo", "--split=train", "--num=8"]) == 0
    assert "NELBO, prior by the probability-flow ODE" in capsys.readouterr().out
    (record,) = (finished / "metrics").glob("nelbo_step*.json")
    t_min = json.loads(record.read_text())["settings"]["t_min"]
    assert t_min == config().sampling.t_min != config().objective.t_min
    assert "of nelbo that where its samples end (sampling.t_min)" in " ".join((evaluate.__doc__ or "").split())
    assert evaluate.main(["evaluate", f"--workdir={finished}", "--metrics=bpd"]) == 2
    assert "use nelbo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"binarize": "none"}}, "binary decoder|grey values"),
        ({"vae": {"decoder": "dl"}}, "need vae.decoder='bin'"),
        ({"model": {"ch_mult": (1, 1, 1, 1)}}, "latent variables of"),
        ({"model": {"attn_resolutions": (16,)}}, "latent variables of"),
        ({"vae": {"pad": 1, "num_scales": 2, "ch_mult": (1, 1, 1)}}, "vae.pad"),
        ({"objective": {"t_min": 0.0}}, "sigma2_0"),
        (
            {"objective": {"t_min": 0.0}, "sde": {"sigma2_0": 1e-3}, "model": {"embedding_type": "fourier"}},
            "objective.t_min: 0, of which the network takes the logarithm",
        ),
        ({"data": {"centered": False}}, "data.centered"),
        ({"objective": {"parameterization": "mixed"}}, "predicts eps"),
    ],
)
def test_settings_that_clash_are_refused_in_one_line(sections, words):
    with pytest.raises(ConfigError, match=words) as error:
        task(**sections)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"colorize": True}, "act on the images"),
        ({"start_time": 0.5}, "act on the images"),
        ({"guidance": 2.0}, "act on the images"),
        ({"interpolate_samples": True}, "--interpolate_samples: turns the noise of chains of images"),
        ({"interpolate": True, "reconstruct": True}, "choose one of them"),
    ],
)
def test_samples_that_a_latent_prior_does_not_have_are_refused_in_one_line(settings, words):
    chains = config(sde={"name": "ve"}, sampling={"sampler": "annealed_langevin", "steps": 22})
    with pytest.raises(ConfigError, match=words) as error:
        control.Control(**settings).check(LoadedRun(build.task(chains, (8, 8, 1), 10), None, 0, chains), None)
    assert "\n" not in str(error.value)
    for possible in ({"interpolate": True}, {"reconstruct": True}):
        control.Control(**possible).check(LoadedRun(task(), None, 0, config()), None)


@pytest.mark.slow
def test_a_vae_of_another_architecture_is_refused(finished):
    with pytest.raises(ConfigError, match="vae.latents_per_group: 2 there, 3 here"):
        check_vae_from(config(vae={"latents_per_group": 3}, latent={"vae_from": str(finished)}))


def test_grey_data_of_any_set_are_refused_by_a_binary_decoder():
    settings = dataclasses.replace(config(), data=DataConfig(name="digits"))
    with pytest.raises(ConfigError, match="grey values"):
        build_latent.check_images(settings, load(settings.data))
    build_latent.check_images(config(), load(config().data))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latent": {"vae_steps": 7}, "train": {"steps": 6}, "vae": {}}, "latent.vae_steps: 7 is above"),
        ({"latent": {"vae_steps": 1}}, "without a section vae"),
        ({"objective": {"t_min": 0.0}}, "objective.t_min: 0"),
    ],
)
def test_stages_that_cannot_be(settings, words):
    with pytest.raises(ConfigError, match=words):
        from_dict(settings)


def test_settings_survive_a_round_trip():
    assert from_dict(to_dict(config())) == config()


def test_static_binarisation_is_one_draw_with_the_right_mean():
    grey = load(DataConfig(name="digits")).arrays()["x"].astype(np.float64) / 255
    first, again = (load(DataConfig(name="digits", binarize="static")).arrays()["x"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(first)) == {0, 255}
    error = (first / 255.0 - grey).mean()
    spread = np.sqrt((grey * (1 - grey)).sum()) / grey.size
    assert abs(error) < 4 * spread
    assert np.all(first[grey == 0] == 0)
    assert np.all(first[grey == 1] == 255)
    with pytest.raises(BaseDataError, match=r"ring \(train\) has no images"):
        load(DataConfig(name="ring", binarize="static"))
    assert DataError is BaseDataError


def test_dynamic_binarisation_has_the_mean_of_the_image():
    x = jnp.asarray([0, 51, 255], jnp.uint8).reshape(1, 3, 1, 1)
    drawn = dynamic(jax.random.key(0), jnp.broadcast_to(x, (4000, 3, 1, 1)))
    mean = np.asarray(drawn).mean(axis=0).ravel()
    np.testing.assert_allclose(mean[[0, 2]], [-1, 1])
    assert abs(mean[1] - (2 * 0.2 - 1)) < 4 * 2 * np.sqrt(0.2 * 0.8 / 4000)
