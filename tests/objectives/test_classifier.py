"""The classifier's cross entropy against the exact posterior of a mixture; its run and what it steers, by command."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from sgmjax import exact, objectives, sdes
from sgmjax.commands import evaluate, sample, train
from sgmjax.config import ConfigError, from_dict
from sgmjax.tasks import ScoreTask, Variables, build
from sgmjax.training.load import LoadedRun

pytestmark = pytest.mark.usefixtures("one_device")

MIXTURE = exact.mixture([[1.0, 0.0], [-1.0, 0.5]], 0.4, [0.7, 0.3])


@pytest.mark.parametrize("name", ["vp", "psld"])
def test_the_exact_posterior_has_the_smallest_cross_entropy(name: str):
    """With the same noise, it beats posteriors that are too sure, too unsure, or of another time."""
    sde = {"vp": sdes.vp(), "psld": sdes.psld()}[name]
    n = 20_000
    keys = jax.random.split(jax.random.key(0), 3)
    x0, labels = MIXTURE.sample(keys[0], n)
    t = jax.random.uniform(keys[1], (n,), minval=0.01, maxval=0.6)
    eps = jax.random.normal(keys[2], (n, sde.k, 2))

    @jax.jit
    def run(scale, shift):
        def logits(z, t):
            return scale * MIXTURE.classify(sde, z, t + shift)

        loss, right = objectives.classifier_loss(logits, sde, sde.augment(x0), labels, t, eps)
        return jnp.mean(loss), jnp.mean(right.astype(jnp.float32))

    best, accuracy = run(1.0, 0.0)
    assert best < min(run(0.6, 0.0)[0], run(1.6, 0.0)[0], run(1.0, 0.3)[0]) - 1e-3
    assert 0.75 < accuracy < 0.999


def test_cross_entropy_by_hand():
    """Two logits (0, log 3): -log 1/4 = log 4 for the first class, log 4/3 for the second."""
    sde = sdes.vp()
    logits = lambda z, t: jnp.broadcast_to(jnp.asarray([[0.0, np.log(3.0)]]), (len(z), 2))  # noqa: E731
    z0, labels = jnp.zeros((2, 1, 3)), jnp.asarray([0, 1])
    loss, right = objectives.classifier_loss(logits, sde, z0, labels, jnp.full(2, 0.5), jnp.ones((2, 1, 3)))
    np.testing.assert_allclose(loss, np.log([4.0, 4 / 3]), rtol=1e-6)
    np.testing.assert_array_equal(right, [False, True])


TOY = {
    "data": {"name": "ring", "num_samples": 2000},
    "model": {"name": "mlp_classifier", "width": 32, "depth": 1},
    "optimizer": {"warmup_steps": 5, "learning_rate": 1e-2, "ema_decay": 0.9},
    "train": {
        "steps": 150,
        "batch_size": 64,
        "log_every": 50,
        "eval_every": 50,
        "checkpoint_every": 150,
        "sample_every": 50,
    },
    "sampling": {"steps": 6, "num": 24, "grid_images": 8, "batch_size": 16},
}


def run_command(folder, settings) -> None:
    path = folder.with_suffix(".py")
    path.write_text(f"from sgmjax.config import complete\n\n\ndef get_config():\n    return complete({settings!r})\n")
    assert train.main(["train", f"--config={path}", f"--workdir={folder}"]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a classifier and of a score network that knows classes, by the command."""
    base = tmp_path_factory.mktemp("runs")
    run_command(base / "classifier", {name: section for name, section in TOY.items() if name != "sampling"})
    network = {"name": "mlp", "width": 16, "depth": 1, "num_classes": 8}
    steps = {"steps": 12, "batch_size": 32, "log_every": 6, "eval_every": 12, "sample_every": 0, "checkpoint_every": 12}
    run_command(
        base / "score", {**TOY, "model": network, "train": steps, "objective": {"label_dropout": 0.2}}
    )  # fmt: skip
    run_command(base / "plain", {**TOY, "model": {**network, "num_classes": None}, "train": steps})
    return base


def test_a_classifier_learns_by_the_command(runs, capsys):
    rows = [json.loads(line) for line in (runs / "classifier" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "eval_loss", "eval_accuracy"} <= set(rows[-1])
    assert rows[-1]["eval_accuracy"] > 2 / 8 and rows[-1]["eval_loss"] < np.log(8)
    with np.load(runs / "classifier" / "accuracy.npz") as archive:
        accuracy = archive["accuracy"]
        assert archive["step"] == 150 and accuracy[0] > 0.9 and accuracy[-1] < 0.3  # clean; pure noise: 1/8
    command = ["train", f"--config={runs / 'classifier.py'}", f"--workdir={runs / 'classifier'}"]
    assert train.main(command) == 0
    assert "is complete: 150 steps" in capsys.readouterr().out


def test_a_classifiers_run_is_not_evaluated(runs, capsys):
    assert evaluate.main(["evaluate", f"--workdir={runs / 'classifier'}"]) == 2
    assert "is a classifier's run; give that of a score network" in capsys.readouterr().err


CHAINS = ["--sampler=annealed_langevin", "--grid=logsnr", "--steps=13", "--options=steps_per_level=2"]
GOOD = [
    (["plain", "--classifier=CLASSIFIER", "--labels=3", "--guidance=2"], "guided_2_", 24),
    (["score", "--labels=3", "--guidance=2"], "guided_2_", 24),
    (["score", "--labels=3"], "", 24),
    (["plain", "--inpaint=half", "--resample=2", "--sampler=em"], "inpaint_", 32),
    (["score", "--start_time=0.5"], "from_0.5_", 32),
    (["plain", "--interpolate", "--num=3"], "interpolate_", 3),
    (["plain", "--interpolate_samples", "--num=3", *CHAINS], "interpolate_samples_", 3),
]


@pytest.mark.parametrize(
    "words, prefix, num",
    [
        pytest.param(*case, id=" ".join(case[0]), marks=[] if i in (1, 6) else pytest.mark.slow)
        for i, case in enumerate(GOOD)
    ],
)
def test_steering_by_the_command(runs, capsys, words, prefix, num):
    run, *flags = (word.replace("CLASSIFIER", str(runs / "classifier")) for word in words)
    before = {path.name for path in (runs / run / "samples").iterdir()}
    assert sample.main(["sample", f"--workdir={runs / run}", *flags]) == 0
    out = capsys.readouterr().out
    assert ("two of the network" in out) == ("--guidance=2" in flags and run == "score")
    assert ("classifier and its gradient" in out) == ("classifier" in "".join(flags))
    new = {path.name for path in (runs / run / "samples").iterdir()} - before
    (file,) = (name for name in new if name.endswith(".npz"))
    assert file.startswith(prefix) and file.replace(".npz", ".png") in new
    with np.load(runs / run / "samples" / file) as archive:
        x = archive["samples"]
        assert x.shape == ((num, 8, 2) if "interpolate" in prefix else (num, 2)) and np.isfinite(x).all()
        if "--inpaint=half" in flags:
            np.testing.assert_array_equal(x[:, 0], archive["inputs"][:, 0])
            assert archive["nfe"] == 11 and np.abs(x[:, 1] - archive["inputs"][:, 1]).min() > 0
        if "--start_time=0.5" in flags:
            assert len(archive["labels"]) == num  # of the inputs


BAD = [
    (["classifier"], "is a classifier's run"),
    (["plain", "--guidance=2"], "towards which class? give --labels=3"),
    (["plain", "--guidance=2", "--labels=3"], "knows no classes"),
    (["plain", "--classifier=PLAIN", "--labels=3"], "is the run of a score network; train a classifier"),
    (["plain", "--classifier=CLASSIFIER"], "towards which class?"),
    (["plain", "--classifier=CLASSIFIER", "--labels=8"], "they are 0 to 7"),
    (["plain", "--inpaint=half", "--sampler=ode", "--method=replacement"], "'ode' chooses its own steps"),
    (["plain", "--inpaint=center"], "needs images"),
    (["plain", "--inpaint=mask.npy"], "--inpaint: cannot read mask.npy"),
    (["plain", "--inpaint=/nowhere.npz"], "cannot read /nowhere.npz"),
    (["plain", "--colorize"], "have no colours"),
    (["plain", "--inpaint=half", "--colorize"], "choose one of them"),
    (["plain", "--inpaint=half", "--method=ddrm"], "choose one of mmps, tmpd, pigdm, dps, c_pigdm, replacement"),
    (["plain", "--inpaint=half", "--method=c_pigdm", "--sampler=em"], "is a sampler itself; leave --sampler=em out"),
    (
        ["plain", "--inpaint=half", "--method=c_pigdm", "--method_options=iterations=5"],
        "has no setting 'iterations'; there are data_std, lam, weight",
    ),
    (["plain", "--inpaint=half", "--noise=0"], "'mmps' needs noise in the measurement"),
    (
        ["plain", "--inpaint=half", "--method_options=scale=1"],
        "method 'mmps' has no such setting; there are iterations",
    ),
    (["plain", "--inpaint=half", "--method=mmps", "--resample=2"], "by --method=replacement only"),
    (["plain", "--method=mmps"], "--method: of what?"),
    (["score", "--labels=3", "--guidance_interval=0.1,2"], "of which strength? give --guidance=2"),
    (["score", "--labels=3", "--guidance=1", "--guidance_interval=3,2"], "it goes from 0 or more to a higher level"),
    (["score", "--labels=3", "--guidance=1", "--guidance_interval=3"], "give two noise levels, as 0.2,5"),
    (["plain", "--inverse=super_resolution:2"], "needs images, signals or volumes"),
    (["plain", "--inverse=random:2"], "the share must lie between 0 and 1"),
    (["plain", "--inverse=random"], "random of what? as super_resolution:4"),
    (["plain", "--inverse=rotation:3"], "is no measurement; there are super_resolution:4"),
    (["plain", "--inverse=random:0.5", "--method=replacement"], "for --inpaint and --colorize; take mmps"),
    (["plain", "--resample=3"], "means something with --inpaint"),
    (["plain", "--start_time=1.5"], "--start_time: must be between 0 and 1, both excluded, got 1.5"),
    (["plain", "--start_time=0.0001"], "must lie between 0.001"),
    (["plain", "--start_time=0.5", "--sampler=ode"], "has no grid to start within"),
    (["plain", "--interpolate", "--inpaint=half"], "goes with neither"),
    (["plain", "--interpolate_samples"], "turns the noise of Langevin chains, and 'sscs' has none"),
    (["plain", "--interpolate_samples", "--inpaint=half", *CHAINS], "goes with neither"),
    (["score", "--interpolate"], "needs a class"),
    (["score", "--interpolate", "--labels=1,2"], "between images of one class"),
    (["plain", "--start_time=0.5", "--input=images.txt"], "test, or an .npz"),
]


@pytest.mark.parametrize("words, message", tiers.alike(BAD, BAD[::3]), ids=[" ".join(words) for words, _ in BAD])
def test_what_cannot_be_is_one_line(runs, capsys, words, message):
    run, *flags = words
    places = {"PLAIN": str(runs / "plain"), "CLASSIFIER": str(runs / "classifier")}
    for name, place in places.items():
        flags = [flag.replace(name, place) for flag in flags]
    assert sample.main(["sample", f"--workdir={runs / run}", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def run_of(variables=None, **sections):
    settings = {"data": {"name": "ring"}, "model": {"name": "mlp", "width": 8, "depth": 1, "num_classes": 8}}
    config = from_dict(settings | sections)
    return LoadedRun(build.task(config, (2,), 8), variables, 0, config)


def test_classifier_of_another_process_is_refused():
    from sgmjax.commands.control import Control

    model = {"name": "mlp_classifier", "width": 8, "depth": 1}
    for sde, fits in (
        ({"name": "psld"}, True),
        ({"name": "psld", "numerical_eps": 1e-9}, True),
        ({"name": "vp"}, False),
    ):
        control = Control(classifier=run_of(model=model, sde=sde))
        if fits:
            control.check(run_of(), np.zeros(3, np.int32))
        else:
            with pytest.raises(ConfigError, match="another process: sde name psld here, vp there"):
                control.check(run_of(), np.zeros(3, np.int32))


def test_guidance_without_label_dropout_is_refused():
    from sgmjax.commands.control import Control

    with pytest.raises(ConfigError, match="trained without objective.label_dropout"):
        Control(guidance=2.0).check(run_of(), np.zeros(3, np.int32))
    Control(guidance=2.0).check(run_of(objective={"label_dropout": 0.1}), np.zeros(3, np.int32))


def test_label_dropout_hides_that_share_of_the_classes():
    """The labels that the network is given in training, of 4,000 examples: 3 standard errors of a share of 0.25."""
    given = []

    def network(params, x, cond, labels=None):
        given.append(labels)
        return x

    plain = run_of(objective={"label_dropout": 0.25}).task
    spy = dataclasses.replace(plain, model=dataclasses.replace(plain.model, network=network))
    batch = {"x": np.zeros((4000, 2), np.float32), "label": np.arange(4000, dtype=np.int32) % 8}
    for is_training in (True, False):
        spy.loss(Variables({}, {}), jax.random.key(0), batch, train=is_training)
    hidden = np.asarray(given[0]) == 8
    assert abs(hidden.mean() - 0.25) < 3 * (0.25 * 0.75 / 4000) ** 0.5
    np.testing.assert_array_equal(np.asarray(given[0])[~hidden], batch["label"][~hidden])
    np.testing.assert_array_equal(given[1], batch["label"])


def test_classifier_free_guidance_of_a_network_is_the_line_through_its_two_scores():
    p = run_of(objective={"label_dropout": 0.1}).task
    variables = jax.tree.map(lambda x: x + 0.1, p.init(jax.random.key(0)))
    z, t, labels = jnp.ones((4, 2, 2)), jnp.full(4, 0.5), jnp.arange(4)
    cond, none, both = (
        p.score_fn(variables, **kwargs)(z, t)
        for kwargs in ({"labels": labels}, {}, {"labels": labels, "guidance": 3.0})
    )
    np.testing.assert_allclose(both, none + 3 * (cond - none), rtol=1e-4, atol=1e-5)


def test_colour_images_are_colorized_and_inpainted():
    """Through what the command calls, with a stand-in for the network's score."""
    from sgmjax.commands.control import Control
    from sgmjax.commands.inputs import read_mask

    model = {"name": "ncsnpp", "nf": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    settings = {"data": {"name": "cifar10"}, "model": model, "sampling": {"steps": 5, "sampler": "em"}}
    config = from_dict(settings)

    class Stub(ScoreTask):
        def score_fn(self, variables, *, labels=None, guidance=1.0):
            return lambda z, t: -z

    plain = build.task(config, (4, 4, 3), 10)
    stub = Stub(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    stub = LoadedRun(stub, None, 0, config)
    x0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)), jnp.float32)
    how = {"method": "replacement"}
    for control in (Control(colorize=True, **how), Control(mask=read_mask("center", (4, 4, 3)), **how)):
        control.check(stub, None)
        draw = jax.jit(lambda key: control.sample_fn(stub)({"score": None}, key, 2, x0=x0)[0])  # noqa: B023
        x = draw(jax.random.key(0))
        same = np.isclose(x, x0, atol=1e-6).all(axis=(0, 3))
        if control.colorize:
            np.testing.assert_allclose(x.mean(-1), x0.mean(-1), atol=1e-5)
            assert not same.any()
        else:
            np.testing.assert_array_equal(same, np.pad(np.zeros((2, 2), bool), 1, constant_values=True))
        picture, _ = control.picture(stub.task, np.zeros((2, 4, 4, 3), np.uint8), {"x0": np.asarray(x0)})
        assert picture.dtype == np.uint8 and picture.shape[-1] == 3


@pytest.mark.parametrize("sections", [{"weighting": "likelihood"}, {"label_dropout": 0.1}])
def test_settings_that_mean_nothing_for_a_classifier(sections):
    (name,) = sections
    with pytest.raises(ConfigError, match=f"objective.{name}: means nothing for a classifier"):
        from_dict({"data": {"name": "ring"}, "model": {"name": "mlp_classifier"}, "objective": sections})


def test_a_classifier_needs_labels():
    with pytest.raises(ConfigError, match="needs data with labels"):
        build.task(from_dict({"data": {"name": "ring"}, "model": {"name": "mlp_classifier"}}), (2,), None)
