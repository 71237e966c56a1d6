"""What `python -m sgmjax.sample` does beyond drawing: guidance, inpainting, colourisation, starts from data.

    control = Control(guidance=2.0, classifier=load_run("runs/classifier_digits"))
    x, info = control.sample_fn(run)(control.variables(run), key, 64, labels=jnp.full(64, 3))

The mathematics is in `sgmjax.samplers.{guidance, inpainting, editing}`; here a run's settings meet it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgmjax import samplers
from sgmjax._inputs import InputError, check_labels
from sgmjax._ranges import NON_NEGATIVE, check_range
from sgmjax.commands.inputs import read_inputs
from sgmjax.config import ConfigError, differences, to_dict
from sgmjax.data import Dataset
from sgmjax.evaluation import pictures
from sgmjax.samplers import measurements, plan, posterior, registry
from sgmjax.samplers.declaration import own_settings
from sgmjax.tasks import ClassifierTask, LatentTask
from sgmjax.tasks.vae import LatentModel
from sgmjax.training.load import LoadedRun, load_run

REPLACEMENT = "replacement"
C_PIGDM = "c_pigdm"  # a sampler of its own
_METHODS = ", ".join((*posterior.METHODS, C_PIGDM))
COLUMNS = 8  # images of an interpolation, and inputs shown beside one another


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """How the samples of a run shall be steered. Check it with `check` before anything is drawn.

    Attributes:
        guidance: strength; None: 1 with a classifier, else none.
        interval: noise levels between which that is the strength; at others it is 1.
        classifier: a run of one, for classifier guidance; None: classifier-free, if labels are given.
        mask: (*event) or what broadcasts to it, 1 where the input is kept: inpainting.
        colorize: keep the grey part of the input.
        inverse: what was measured of the input, and its name: `commands.inputs.read_operator`.
        noise: standard deviation of the noise in it, in the network's range.
        method: how `mask`, `colorize` and `inverse` are sampled: "replacement" (not `inverse`), or a method of
            `samplers.posterior_score`; or "c_pigdm", with the sampler "conjugate"; None: "mmps", and "replacement"
            with `repeats`.
        method_options: settings of the method.
        repeats: times each step is taken by "replacement"; see `samplers.inpaint`.
        start_time: start from the input noised to this time.
        interpolate: draw rows of images between input i and input i + 1.
        interpolate_samples: draw rows of samples that turn into one another, by `annealed_langevin_interpolation`.
        reconstruct: the inputs through the VAE and back, in place of samples.
    """

    guidance: float | None = None
    interval: tuple[float, float] | None = None
    classifier: LoadedRun | None = None
    mask: np.ndarray | None = None
    colorize: bool = False
    inverse: tuple[measurements.Operator, str] | None = None
    noise: float = 0.01
    method: str | None = None
    method_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeats: int = 1
    start_time: float | None = None
    interpolate: bool = False
    interpolate_samples: bool = False
    reconstruct: bool = False

    @property
    def needs_input(self) -> bool:
        steered = self.constrained or self.start_time is not None
        return steered or self.interpolate or self.reconstruct

    @property
    def constrained(self) -> bool:
        """Whether something of the inputs is known."""
        return self.mask is not None or self.colorize or self.inverse is not None

    @property
    def how(self) -> str:
        """The method."""
        return self.method or ("mmps" if self.repeats == 1 else REPLACEMENT)

    @property
    def replaces(self) -> bool:
        return self.constrained and self.how == REPLACEMENT

    @property
    def operator(self) -> measurements.Operator:
        """What is known of an input, as a function of it."""
        if self.inverse is not None:
            return self.inverse[0]
        return measurements.colorization() if self.mask is None else measurements.inpainting(self.mask)

    @property
    def strength(self) -> float:
        """Of the guidance; 1 where nothing is said: the score of the class itself."""
        return 1.0 if self.guidance is None else self.guidance

    @property
    def guide(self) -> samplers.Guidance:
        return samplers.Guidance(self.strength, *(self.interval or ()))

    def check(self, run: LoadedRun, labels: np.ndarray | None) -> None:
        """Raise ConfigError, in one line, for what does not fit the run or cannot be done together.

        InputError: labels that are no classes.
        """
        settings = run.plan
        self._check_latent(run, self.constrained)
        if (self.mask is not None) + self.colorize + (self.inverse is not None) > 1:
            raise ConfigError("--inpaint, --colorize and --inverse: choose one of them")
        if self.interpolate and (self.constrained or self.start_time is not None):
            raise ConfigError("--interpolate goes with neither --inpaint, --colorize, --inverse nor --start_time")
        if self.interpolate_samples:
            if settings.sampler != "annealed_langevin":
                raise ConfigError(
                    f"--interpolate_samples: turns the noise of Langevin chains, and {settings.sampler!r} has none; "
                    "use --sampler=annealed_langevin, or --interpolate between held-out images"
                )
            if self.needs_input:
                raise ConfigError(
                    "--interpolate_samples goes with neither --interpolate, --inpaint, --colorize, --start_time nor "
                    "--reconstruct"
                )
        self._check_method(settings)
        if self.start_time is not None:
            if registry.is_adaptive(settings.sampler):
                raise ConfigError(f"--start_time: {settings.sampler!r} has no grid to start within; use --sampler=em")
            if not settings.t_min < self.start_time < 1:
                bounds = f"between {settings.t_min:g} (sampling.t_min) and 1"
                raise ConfigError(f"--start_time: must lie {bounds}, got {self.start_time:g}")
        if self.colorize and (len(run.task.event_shape) != 3 or run.task.event_shape[-1] != 3):
            raise ConfigError("--colorize: the data of this run have no colours; it needs images of three channels")
        if self.interpolate and run.task.num_classes is not None and labels is None:
            raise ConfigError("--interpolate: the network of this run needs a class; give one, as --labels=3")
        if self.interpolate and labels is not None and len(set(labels.tolist())) > 1:
            raise ConfigError("--interpolate: between images of one class; give one in --labels")
        self._check_guidance(run, labels)
        if labels is not None:
            known = run.task if self.classifier is None else self.classifier.task
            if known.num_classes is None:
                raise ConfigError("--labels: the network of this run knows no classes; leave it out")
            check_labels(labels, known.num_classes, "--labels")

    def _check_method(self, settings: Any) -> None:
        """What concerns the ways in which something is known of the inputs."""
        if self.repeats != 1 and not self.replaces:
            raise ConfigError(
                f"--resample: means something with --inpaint or --colorize by --method={REPLACEMENT} only"
            )
        if not self.constrained:
            for flag, given in (("method", self.method), ("method_options", self.method_options)):
                if given:
                    raise ConfigError(f"--{flag}: of what? it goes with --inverse, --inpaint and --colorize")
        if not self.constrained or self.replaces:
            if self.method_options:
                raise ConfigError(f"--method_options: --method={REPLACEMENT} has none; leave it out")
            if self.noise != type(self).noise:
                raise ConfigError(
                    f"--noise: is of what was measured, by --method={_METHODS}, and means nothing here; leave it out"
                )
        if not self.constrained:
            return
        check_range(self.noise, NON_NEGATIVE, "--noise", ConfigError)
        if self.replaces:
            if self.inverse is not None:
                raise ConfigError(f"--method={REPLACEMENT}: for --inpaint and --colorize; take {_METHODS}")
            if registry.is_adaptive(settings.sampler):
                raise ConfigError(
                    f"--method={REPLACEMENT}: {settings.sampler!r} chooses its own steps; use --sampler=em"
                )
            return
        if self.how == C_PIGDM:
            _check_c_pigdm(settings, self.method_options)
            return
        try:
            posterior.check_method(self.how, self.method_options, self.noise)
        except InputError as error:
            text = str(error).replace(", ".join(posterior.METHODS), f"{_METHODS}, {REPLACEMENT}")
            raise ConfigError(f"--method: {text}") from None

    def _check_latent(self, run: LoadedRun, constrained: bool) -> None:
        """What concerns runs with a VAE, or needs one."""
        if not isinstance(run.task, LatentModel):
            if self.reconstruct:
                raise ConfigError("--reconstruct: the run has no VAE to reconstruct images with")
            return
        guided = self.guidance is not None or self.classifier is not None
        if constrained or guided or self.start_time is not None:
            raise ConfigError(
                "--inpaint, --colorize, --inverse, --start_time, --guidance: act on the images, and the prior of this "
                "run models latent variables; use a run without a VAE"
            )
        if self.interpolate_samples:
            raise ConfigError(
                "--interpolate_samples: turns the noise of chains of images, and the prior of this run models latent "
                "variables; use --interpolate, between held-out images"
            )
        if self.reconstruct and self.interpolate:
            raise ConfigError("--reconstruct, --interpolate: choose one of them")
        if self.interpolate and not isinstance(run.task, LatentTask):
            raise ConfigError("--interpolate: along the flow of the prior, which this run has not trained yet")

    def _check_guidance(self, run: LoadedRun, labels: np.ndarray | None) -> None:
        check_range(self.guidance, NON_NEGATIVE, "--guidance", ConfigError)
        if self.interval is not None:
            if self.guidance is None:
                raise ConfigError("--guidance_interval: of which strength? give --guidance=2")
            try:
                samplers.Guidance.of(self.guide)
            except InputError as error:
                raise ConfigError(f"--guidance_interval: {error}") from None
        if self.classifier is None and self.guidance is None:
            return
        if labels is None:
            raise ConfigError("--guidance, --classifier: towards which class? give --labels=3")
        if self.classifier is not None:
            _check_classifier(run, self.classifier)
        elif run.task.num_classes is None:
            raise ConfigError("--guidance: the network of this run knows no classes; give --classifier=<a run of one>")
        elif self.guidance != 1.0 and not run.task.label_dropout:
            raise ConfigError(
                "--guidance: this run was trained without objective.label_dropout, so that its network knows no score "
                "without a class; leave it out, or train with label_dropout=0.1"
            )

    def inputs(
        self,
        word: str,
        run: LoadedRun,
        num: int,
        labels: np.ndarray | None,
        held_out: Callable[[], Dataset] | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The inputs of `sample_fn` for `num` samples, from `read_inputs`; and the labels, those of the inputs if none.

        Eight inputs are used in turn; an interpolation of row i goes from input i to input i + 1.
        """
        if not self.needs_input:
            return {}, labels
        if self.interpolate:
            x, _ = read_inputs(word, run, num + 1, held_out)
            return {"x0": x[:-1], "x1": x[1:]}, labels
        x, own = read_inputs(word, run, min(num, COLUMNS), held_out)
        turn = np.arange(num) % len(x)
        if labels is None and own is not None and run.task.num_classes is not None:
            labels = own[turn]
        if not self.constrained or self.replaces:
            return {"x0": x[turn]}, labels
        y = np.asarray(jax.vmap(self.operator)(x))
        if self.inverse is not None:
            y = y + self.noise * np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
        return {"x0": x[turn], "y": y[turn]}, labels

    # ------------------------------------------------------------------------------------------------------ drawing
    def variables(self, run: LoadedRun) -> dict[str, Any]:
        """The parameters that `sample_fn` takes: the run's, and the classifier's beside them."""
        classifier = {} if self.classifier is None else {"classifier": self.classifier.variables}
        return {"score": run.variables, **classifier}

    def sample_fn(self, run: LoadedRun) -> Callable[..., Any]:
        """sample_fn(variables, key, num, *, labels=None, x0=None, x1=None, y=None) -> samples and a `SampleInfo`.

        x0 are the inputs (num, *event), y what was measured of them (num, *measured), x1 the other ends of an
        interpolation. Samples of either interpolation are (num, COLUMNS, *event). The NFE counts calls of the score
        function; see `cost`.
        """
        plain = self.classifier is None and self.strength == 1.0
        if plain and not self.needs_input and not self.interpolate_samples:
            return lambda variables, key, num, **labels: run.task.sample(
                variables["score"], key, num, run.plan, **labels
            )

        task = run.task

        def sample(variables, key, num: int, *, labels: Any = None, x0: Any = None, x1: Any = None, y: Any = None):
            options: dict[str, Any]
            label_key, start_key, key = jax.random.split(key, 3)
            if labels is None and task.num_classes is not None:
                labels = jax.random.randint(label_key, (num,), 0, task.num_classes)
            settings, sde = run.plan, task.sde
            if self.replaces or self.guidance is not None:  # at t = 1 too the score is another
                settings = dataclasses.replace(settings, analytic_start=settings.analytic_start or False)
            if self.reconstruct:
                x = task.reconstruct(variables["score"], key, x0)
                return x, samplers.SampleInfo(nfe=0, state=None)
            if self.interpolate:
                one = None if labels is None else labels[:1]  # one class for any number of states

                def along(z, t):
                    each = None if one is None else jnp.broadcast_to(one, z.shape[:1])
                    return self._score_fn(task, variables, each)(z, t)

                tolerances = {"rtol": settings.rtol, "atol": settings.atol}
                options = {"t_min": settings.t_min, **{k: v for k, v in tolerances.items() if v is not None}}
                if isinstance(run.task, LatentModel):
                    x, nfe = task.interpolate(variables["score"], key, x0, x1, COLUMNS, **options)
                else:
                    x, nfe = samplers.interpolate(key, along, sde, x0, x1, num=COLUMNS, **options)
                return x, samplers.SampleInfo(nfe=nfe, state=None)
            if self.interpolate_samples:
                each = None if labels is None else jnp.repeat(labels, COLUMNS)
                score_fn = self._score_fn(task, variables, each)
                rows = functools.partial(samplers.annealed_langevin_interpolation, num=COLUMNS)
                return plan.draw(settings, key, score_fn, sde, (num, *task.event_shape), sampler=rows)
            score_fn = self._score_fn(task, variables, labels)
            options = {}
            if self.start_time is not None:
                options = {"start": self.start_time, "initial": samplers.noised(start_key, sde, x0, self.start_time)}
            if self.constrained and not self.replaces:
                y = jax.vmap(self.operator)(x0) if y is None else y
                known = samplers.measurement(self.operator, y, self.noise)
                own = dict(self.method_options)
                if self.how == C_PIGDM:
                    options["sampler"] = functools.partial(samplers.c_pigdm, measurement=known, **own)
                else:
                    options["given"] = lambda score_fn: samplers.posterior_score(
                        score_fn, sde, known, method=self.how, **own
                    )
            elif self.mask is not None:
                options["constraint"] = samplers.inpaint(sde, x0, self.mask, repeats=self.repeats)
            elif self.colorize:
                options["constraint"] = samplers.colorize(sde, x0, repeats=self.repeats)
            x, info = plan.draw(settings, key, score_fn, sde, (num, *task.event_shape), **options)
            if self.mask is not None and x0 is not None:  # also where the sampler stops before t = 0
                x = jnp.where(jnp.broadcast_to(jnp.asarray(self.mask) > 0, x.shape), x0, x)
            return x, info

        return sample

    def _score_fn(self, task: Any, variables: dict[str, Any], labels):
        if self.classifier is None:
            return task.score_fn(variables["score"], labels=labels, guidance=self.guide)
        own = labels if task.num_classes is not None else None
        score_fn = task.score_fn(variables["score"], labels=own)
        logits_fn = self.classifier.task.logits_fn(variables["classifier"])
        return samplers.guided_score(score_fn, logits_fn, labels, self.guide, sde=task.sde)

    def cost(self) -> str:
        """What stands behind each score evaluation, in words."""
        if self.constrained and not self.replaces:
            return " (each with derivatives of the network)"
        if self.classifier is not None:
            return " (each with one of the classifier and its gradient)"
        return " (two of the network each: with and without the class)" if self.strength != 1.0 else ""

    @property
    def name(self) -> str:
        """What the files of such samples begin with."""
        parts = {
            "inpaint": self.mask is not None,
            "colorize": self.colorize,
            "" if self.inverse is None else self.inverse[1]: self.inverse is not None,
            "" if self.method is None else self.method: self.method is not None,
            f"noise_{self.noise:g}": self.noise != type(self).noise,
            f"from_{self.start_time or 0:g}": self.start_time is not None,
            "interpolate": self.interpolate,
            "interpolate_samples": self.interpolate_samples,
            "reconstruct": self.reconstruct,
            "guided_" + "_".join(f"{v:g}" for v in (self.strength, *(self.interval or ()))): self.guidance is not None
            or self.classifier is not None,
        }
        return "".join(f"{part}_" for part, there in parts.items() if there)

    def picture(self, task: Any, samples: np.ndarray, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
        """The samples (from `pictures.to_arrays`) below the inputs and what was kept of them.

        Returns:
            The picture, uint8 (H, W, 3), and what its rows are; "" where all are samples.
        """
        if self.interpolate or self.interpolate_samples:
            flat = samples.reshape(-1, *task.event_shape)
            return pictures.picture(flat, limit=12 * COLUMNS, columns=COLUMNS, centered=task.centered), ""
        if not inputs or len(task.event_shape) != 3:
            return pictures.picture(samples, centered=task.centered), ""
        x0 = inputs["x0"][:COLUMNS]
        above = {"the inputs": x0}
        if self.mask is not None:
            middle = np.float32(0.0 if task.centered else 0.5)
            above["what is known"] = np.where(np.broadcast_to(self.mask > 0, x0.shape), x0, middle)
        if self.colorize:
            above["what is known"] = np.broadcast_to(x0.mean(axis=-1, keepdims=True), x0.shape)
        if self.inverse is not None:
            above["the measurement as an image"] = _projected_back(
                self.operator, inputs["y"][:COLUMNS], x0, task.centered
            )
        below = {}
        full = len(samples) // len(x0)
        if self.constrained and full > 1:
            each = samples[: full * len(x0)].astype(np.float32).reshape(full, *x0.shape)
            spread = 2 * each.std(axis=0) + (0 if task.discrete or not task.centered else -1)
            top = 255 if task.discrete else 1
            for name, part in (("their mean", each.mean(axis=0)), ("twice their standard deviation", spread)):
                below[name] = np.minimum(part, top).astype(samples.dtype)
        last = (12 - len(above) - len(below)) * len(x0)
        top_rows = pictures.to_arrays(np.concatenate(list(above.values())), task.discrete, task.centered)
        shown = np.concatenate([top_rows, samples[:last], *below.values()])
        image = pictures.picture(shown, limit=12 * len(x0), columns=len(x0), centered=task.centered)
        return image, ", ".join([*above, "samples", *below])


def _projected_back(operator: measurements.Operator, y: np.ndarray, x0: np.ndarray, centered: bool) -> np.ndarray:
    """The image of least length with this measurement, about the middle of the range: by conjugate gradients."""
    middle = np.float32(0.0 if centered else 0.5)
    measured, push = jax.linearize(jax.vmap(operator), jnp.full_like(x0, middle))
    pull = jax.linear_transpose(push, jnp.asarray(x0))
    weights, _ = jax.scipy.sparse.linalg.cg(lambda w: push(pull(w)[0]), y - measured, maxiter=50)
    low = np.float32(-1.0 if centered else 0.0)
    return np.clip(np.asarray(middle + pull(weights)[0]), low, 1.0)


def _check_c_pigdm(settings: Any, options: Mapping[str, Any]) -> None:
    """Raise ConfigError where `samplers.c_pigdm` cannot be what samples."""
    if settings.sampler != "conjugate":
        raise ConfigError(f"--method={C_PIGDM}: is a sampler itself; leave --sampler={settings.sampler} out")
    if settings.options:
        raise ConfigError(f"--options: of --method={C_PIGDM} give them as --method_options=lam=0.5")
    if settings.grid == "tuned" or settings.restarts:
        raise ConfigError(f"--method={C_PIGDM}: neither a tuned grid nor restarts are for it; take --grid=auto")
    known = own_settings(samplers.c_pigdm).keys() - {"measurement"}
    for name in options:
        if name not in known:
            raise ConfigError(
                f"--method_options: method {C_PIGDM!r} has no setting {name!r}; there are {', '.join(sorted(known))}"
            )


def load_classifier(path: str, run: LoadedRun, **options: Any) -> LoadedRun:
    """The run of a classifier for the score network of another.

    Args:
        path: its folder.
        run: that of the score network.
        options: as `load_run`.

    Raises:
        ConfigError: it is not one, or belongs to other data or another process. And as `load_run`.
    """
    classifier = load_run(path, **options)
    _check_classifier(run, classifier)
    return classifier


def _check_classifier(run: LoadedRun, guide: LoadedRun) -> None:
    """Raise ConfigError unless the classifier's noised data are those of the score network."""
    task, classifier = run.task, guide.task
    if not isinstance(classifier, ClassifierTask):
        raise ConfigError(
            "--classifier: this is the run of a score network; train a classifier, as configs/classifier_digits.py does"
        )
    if classifier.event_shape != task.event_shape or classifier.centered != task.centered:
        raise ConfigError(
            f"--classifier: it was trained on {classifier.event_shape} (centered={classifier.centered}), this run on "
            f"{task.event_shape} (centered={task.centered})"
        )
    if task.num_classes is not None:
        known = (task.class_names, classifier.class_names)
        if task.num_classes != classifier.num_classes or (None not in known and known[0] != known[1]):
            raise ConfigError("--classifier: it was trained on other classes than this run; give one of the same data")
    ours, theirs = (to_dict(one.config.sde) for one in (run, guide) if one.config is not None)
    ignored = ("numerical_eps", "factor")  # not the law of the process
    changed = [f"{key} {a} here, {b} there" for key, a, b in differences(ours, theirs) if key not in ignored]
    if changed:
        raise ConfigError(
            f"--classifier: it was trained on another process: sde {', '.join(changed[:3])}; --process and its "
            "settings sample this run with that one"
        )
