"""Which digits a run drew: a support vector machine trained on the real ones counts the classes of the samples.

python benchmarks/digits_classes.py runs/psld_digits/samples/final.npz

Of samples drawn with --labels, which the file then holds too, it says how many are what was asked for.
"""

from __future__ import annotations

import sys

import numpy as np


def main(path: str) -> int:
    """Prints the counts; status 1 if a class is missing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    images = images / 16
    accuracy = cross_val_score(SVC(), images, labels, cv=3).mean()
    with np.load(path) as run:
        samples = run["samples"].reshape(len(run["samples"]), -1) / 255
        asked = run["labels"] if "labels" in run else None
    found = SVC().fit(images, labels).predict(samples)
    counts = np.bincount(found, minlength=10)
    for digit, count in enumerate(counts):
        print(f"{digit}: {count:5d} of {len(samples)} samples, {np.sum(labels == digit)} of {len(labels)} real")
    if asked is not None:
        print(f"{100 * np.mean(found == asked):.1f}% of the samples are of the class that was asked for")
    print(f"the classifier is right for {100 * accuracy:.1f}% of held-out real digits")
    return int((counts == 0).any())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
