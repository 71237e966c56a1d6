"""What numbers mean: metrics of real images against real ones, and of real ones made worse in known ways.

    python benchmarks/metrics_scale.py --features=runs/features_mnist --data=mnist

Prints a Markdown table and writes it as JSON with --out. The sets are as large as the held-out data: held-out images
as they are, blurred, noised, shifted, with a class missing, two classes twice as frequent, training images copied;
and fewer of them, for the bias of N.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from sgmjax import data, metrics
from sgmjax import sharding as sh
from sgmjax._cli import use_compilation_cache
from sgmjax.evaluation.features import Extractor
from sgmjax.metrics.manifold import radii
from sgmjax.tasks import FeatureTask
from sgmjax.training.load import load_features, load_run


def changed(x: np.ndarray, labels: np.ndarray, training: np.ndarray, rng: np.random.Generator) -> dict:
    """Sets of images by what was done to them."""
    unit = x.astype(np.float32)

    def levels(v: np.ndarray) -> np.ndarray:
        return np.clip(np.round(v), 0, 255).astype(np.uint8)

    def blurred(sigma: float) -> np.ndarray:
        reach = int(np.ceil(3 * sigma))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        out = unit
        for axis in (1, 2):
            out = np.apply_along_axis(lambda v: np.convolve(v, kernel, mode="same"), axis, out)
        return levels(out)

    half = np.isin(labels, [0, 1])
    return {
        "held-out images": x,
        "1,000 of them": x[rng.permutation(len(x))[:1000]],
        "2,500 of them": x[rng.permutation(len(x))[:2500]],
        "blurred, sigma 0.5": blurred(0.5),
        "blurred, sigma 1": blurred(1.0),
        "noise, 5% of the range": levels(unit + 12.75 * rng.standard_normal(x.shape)),
        "noise, 20% of the range": levels(unit + 51.0 * rng.standard_normal(x.shape)),
        "shifted by one pixel": np.roll(x, 1, axis=2),
        "class 3 missing": x[labels != 3],
        "classes 0, 1 twice as frequent": np.concatenate([x, x[half]]),
        "training images": training[rng.permutation(len(training))[: len(x)]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", required=True, help="run folder of a feature network")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--out", default=None, help="JSON file")
    values = parser.parse_args()
    use_compilation_cache()
    settings = {} if values.data_dir is None else {"data_dir": values.data_dir}
    training, held_out = (data.load(values.data, split=split, **settings) for split in ("train", "eval"))
    run = load_run(values.features)
    assert isinstance(run.task, FeatureTask)
    extractor = Extractor(load_features(values.features, run.task), sh.make_mesh())
    real = training.read(np.arange(training.num_examples))["x"]
    whole = held_out.read(np.arange(held_out.num_examples))
    reference, _ = extractor(real)
    statistics = metrics.statistics(reference)
    balls = {k: radii(reference, k) for k in (3, 5)}
    rows = {}
    for name, x in changed(whole["x"], whole["label"], real, np.random.default_rng(0)).items():
        start = time.perf_counter()
        features, logits = extractor(x)
        assert logits is not None  # of a classifier
        pr = metrics.precision_recall(features, reference, real_radii=balls[3])
        dc = metrics.density_coverage(features, reference, real_radii=balls[5])
        kid = metrics.kid(features, reference)
        near = metrics.nearest(features, reference).distances[:, 0]
        rows[name] = {
            "num": len(x),
            "FD": metrics.frechet_distance(metrics.statistics(features), statistics),
            "KID x 1000": 1000 * kid.mean,
            "MIND": metrics.monge_inception_distance(features, reference),
            "IS": metrics.inception_score(logits).mean,
            "precision": pr.precision,
            "recall": pr.recall,
            "density": dc.density,
            "coverage": dc.coverage,
            "nearest": float(np.median(near)),
        }
        print(f"# {name}: {time.perf_counter() - start:.0f} s", flush=True)
    columns = list(rows["held-out images"])
    print(f"| {values.data} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.4g}" if c != "num" else f"{row[c]:,}" for c in columns) + " |")
    if values.out:
        with open(values.out, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
