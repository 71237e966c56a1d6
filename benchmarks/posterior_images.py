"""Sampling images given a measurement, by a trained network: consistency, class agreement, diversity.

    python benchmarks/posterior_images.py --run runs/edm_mnist                  # about half an hour on two cores
    python benchmarks/posterior_images.py --run runs/edm_mnist --process=psld --methods mmps pigdm --inputs 32

Of held-out images the left half, the means over 4 x 4 pixels or a random tenth of the pixels are known, with noise of
0.05 (in [-1, 1]).
Of --samples each it is said
    residual    the root mean square of A x - y in units of the noise: about 1 where the measurement is met, and below
                where a sample follows its noise too
    class       the share of samples that an independent classifier (a support vector machine on 10,000 training
                images; its own accuracy on the held-out images is printed) puts into the class of the image
    spread      the standard deviation over the samples of an image, mean over its pixels
    distance    the root mean square distance of a sample to the image

Samples are drawn by UniPC of order 3 on the grid "auto" from the known first score, as `sgmjax.sample` does (c_pigdm
is a sampler itself, on the same grid). --pictures keeps of each method a picture: inputs, what was measured, and the
samples below. Writes a JSON, a row a line, to --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rows import read, write

from sgmjax import load_run, samplers, score
from sgmjax.commands.inputs import read_operator
from sgmjax.data import to_float
from sgmjax.evaluation.pictures import picture, save_picture, to_arrays
from sgmjax.training.load import load_data

HERE = Path(__file__).resolve().parent
WORDS = ("inpaint:half", "super_resolution:4", "random:0.1")
NOISE = 0.05


def classifier(path: str, run: Any) -> Any:
    """predict(images in the network's range) -> classes."""
    from sklearn.svm import SVC

    data = load_data(path, run, "train", None).arrays()
    x = np.asarray(to_float(data["x"][:10_000], run.task.centered))
    machine = SVC(C=5.0).fit(x.reshape(len(x), -1), data["label"][:10_000])
    return lambda images: machine.predict(np.asarray(images).reshape(len(images), -1))


def measure(run: Any, word: str, method: str, x: np.ndarray, each: int, steps: int, options: dict[str, Any]) -> Any:
    """(samples (inputs, each, *event), y (inputs, *measured), operator)."""
    task, (operator, _) = run.task, read_operator(word, run.task.event_shape)
    clean = np.asarray(jax.vmap(operator)(x))
    y = clean + NOISE * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    times = samplers.time_grid("auto", steps + 1, sde=task.sde)  # the first score is known

    numbers = jnp.arange(np.prod(task.event_shape), dtype=jnp.float32).reshape(task.event_shape)
    where = np.zeros(numbers.size, np.float32)
    if method == "replacement":
        where[np.asarray(operator(numbers), int)] = 1

    def draw(variables, key, x, y):
        score_fn, more = score.analytic_start(task.score_fn(variables), task.sde, 0.0, 1.0), {}
        if method == "replacement":
            more["constraint"] = samplers.inpaint(task.sde, x, where.reshape(task.event_shape))
        else:
            known = samplers.measurement(operator, y, NOISE)
            if method == "c_pigdm":
                return samplers.c_pigdm(
                    key, score_fn, task.sde, x.shape, times=times, measurement=known, **options
                )[0]  # fmt: skip
            score_fn = samplers.posterior_score(score_fn, task.sde, known, method=method, **options)
        return samplers.unipc(
            key, score_fn, task.sde, x.shape, times=times, order=3, denoise="tweedie", **more
        )[0]  # fmt: skip

    draw = jax.jit(draw)
    key = jax.random.key(0)
    drawn = [np.asarray(draw(run.variables, jax.random.fold_in(key, i), x, y)) for i in range(each)]
    return np.clip(np.stack(drawn, axis=1), -1 if task.centered else 0, 1), y, operator


def show(folder: Path, name: str, x: np.ndarray, y: np.ndarray, found: np.ndarray, centered: bool) -> None:
    """The first twelve inputs, what was measured of them where that is an image, and their samples."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [x[:12], *([np.kron(y[:12], np.ones((1, 4, 4, 1)))] if y.ndim == 4 else []), *np.moveaxis(found[:12], 1, 0)]
    images = to_arrays(np.concatenate(rows), True, centered)
    save_picture(folder / f"{name}.png", picture(images, limit=len(images), columns=len(rows[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a run on images with classes")
    parser.add_argument("--process", help="to sample with another process than the run's")
    parser.add_argument("--methods", nargs="*", default=["mmps", "tmpd", "pigdm", "c_pigdm", "dps", "replacement"])
    parser.add_argument("--words", nargs="*", default=list(WORDS), help="what is known")
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4, help="of each input")
    parser.add_argument("--steps", type=int, default=30, help="evaluations of the network")
    parser.add_argument("--scale", type=float, default=1.0, help="of dps")
    parser.add_argument("--pictures", type=Path, help="folder for them")
    parser.add_argument("--out", type=Path, default=HERE / "posterior_images.json")
    flags = parser.parse_args()
    process = {"name": flags.process} if flags.process else None
    run = load_run(flags.run, process=process)
    assert run.config is not None
    predict = classifier(flags.run, run)
    held_out = load_data(flags.run, run, "eval", None).read(np.arange(2000))
    every = np.asarray(to_float(held_out["x"], run.task.centered))
    accuracy = float(np.mean(predict(every) == held_out["label"]))
    print(f"the classifier is right on {100 * accuracy:.1f}% of held-out images")
    x, labels = every[: flags.inputs], held_out["label"][: flags.inputs]
    rows = read(flags.out)
    for word in flags.words:
        for method in flags.methods:
            if method == "replacement" and word.startswith("super"):
                continue
            options = {"scale": flags.scale} if method == "dps" else {}
            found, y, operator = measure(run, word, method, x, flags.samples, flags.steps, options)
            flat = found.reshape(-1, *found.shape[2:])
            off = np.asarray(jax.vmap(operator)(flat)).reshape(len(x), flags.samples, *y.shape[1:]) - y[:, None]
            row = {
                "data": run.config.data.name, "process": flags.process or run.config.sde.name, "known": word,
                "method": method, "steps": flags.steps, "inputs": len(x), "samples": flags.samples, "noise": NOISE,
                "residual": round(float(np.sqrt(np.mean(off**2)) / NOISE), 3),
                "class": round(float(np.mean(predict(flat) == np.repeat(labels, flags.samples))), 3),
                "spread": round(float(np.mean(found.std(axis=1))), 4),
                "distance": round(float(np.sqrt(np.mean((found - x[:, None]) ** 2))), 4),
                "classifier": round(accuracy, 4),
            }  # fmt: skip
            if flags.pictures:
                show(flags.pictures, f"{word.replace(':', '_')}_{method}", x, y, found, run.task.centered)
            same = ("data", "process", "known", "method", "steps")
            rows = [old for old in rows if any(old[k] != row[k] for k in same)] + [row]
            write(flags.out, rows)
            print(*(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
