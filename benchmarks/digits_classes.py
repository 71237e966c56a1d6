"""Which digits a run drew: a classifier that has no part in the drawing counts the classes of the samples.

python benchmarks/digits_classes.py runs/psld_digits/samples/final.npz

Of the 8 x 8 digits a support vector machine trained on the real ones, of MNIST the feature network that comes with
sgmjax (docs/evaluation.md). Of samples drawn with --labels, which the file then holds too, it says how many are what
was asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np


def small_digits() -> Callable[[np.ndarray], np.ndarray]:
    """Classes of 8 x 8 digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    images = images / 16
    accuracy = cross_val_score(SVC(), images, labels, cv=3).mean()
    print(f"the classifier is right for {100 * accuracy:.1f}% of held-out real digits")
    print(f"real digits of each class: {np.bincount(labels).tolist()} of {len(labels)}")
    machine = SVC().fit(images, labels)
    return lambda samples: machine.predict(samples.reshape(len(samples), -1) / 255)


def mnist() -> Callable[[np.ndarray], np.ndarray]:
    """Classes of MNIST's digits."""
    import jax

    from sgmjax import load_run
    from sgmjax.training.load import load_features

    network = load_features("zoo:features_mnist", load_run("psld_mnist").task)
    apply = jax.jit(lambda images: network.apply(network.variables, images)[1])
    return lambda samples: np.argmax(np.asarray(apply(samples)), axis=1)


def main(path: str) -> int:
    """Prints the counts; status 1 if a class is missing."""
    with np.load(path) as run:
        samples = run["samples"]
        asked = run["labels"] if "labels" in run else None
    classes = {(8, 8): small_digits, (28, 28): mnist}
    if samples.shape[1:3] not in classes:
        print(f"{path}: samples of shape {samples.shape[1:]}; there are classifiers of 8 x 8 digits and of MNIST")
        return 2
    found = classes[samples.shape[1:3]]()(samples)
    counts = np.bincount(found, minlength=10)
    for digit, count in enumerate(counts):
        print(f"{digit}: {count:5d} of {len(samples)} samples")
    if asked is not None:
        print(f"{100 * np.mean(found == asked):.1f}% of the samples are of the class that was asked for")
    return int((counts == 0).any())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
