"""The classes of a data set: their order, their names, and the words by which a user means them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sgmjax._inputs import InputError, check_labels, shown
from sgmjax.data.base import DataError, Dataset

Names = tuple[str, ...]


def in_order(names: Iterable[str]) -> Names:
    """Distinct names in the order of their numbers: alphabetical, or as numbers (2 before 10) if all are."""
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=int) if all(map(_is_number, distinct)) else distinct)


def plain(names: Names | None) -> bool:
    """Whether the names say no more than the numbers do: there are none, or they are 0, 1, 2, ..."""
    return names is None or names == tuple(map(str, range(len(names))))


def listed(names: Names, limit: int = 12) -> str:
    """`0 bird, 1 cat, 2 dog`, in one line; of many classes the first and the last."""
    words = [f"{number} {shown(name, 60)}" for number, name in enumerate(names)]
    return ", ".join(words if len(words) <= limit else [*words[: limit - 2], "...", words[-1]])


def to_labels(words: Sequence[str], num_classes: int, names: Names | None, what: str) -> np.ndarray:
    """What a user calls some classes, as labels (n,) int32.

    A word is the name of a class, or its number. Where names are numbers that differ from the classes' own (the
    folders 1, 2, 3 are the classes 0, 1, 2), only names are understood: `1` would be two classes.

    Args:
        words: as `["cat", "0"]`.
        num_classes: how many classes there are.
        names: theirs, or None.
        what: flag or array, for messages.

    Raises:
        InputError: a word that is no class, or two.
    """
    known = {} if names is None else {name: number for number, name in enumerate(names)}
    ambiguous = not plain(names) and any(map(_is_number, known))
    labels = []
    for word in words:
        if word in known:
            labels.append(known[word])
        elif _is_number(word) and int(word) < num_classes and not ambiguous:
            labels.append(int(word))
        else:
            there = f"0 to {num_classes - 1}"
            if ambiguous:
                there = f"called {', '.join(map(shown, known))}; some names are numbers, so give names"
            elif names is not None and not plain(names):
                there = f"{listed(names)}; give names or numbers"
            raise InputError(f"{what}: {shown(word)!r} is no class; they are {there}")
    return np.asarray(labels, np.int32)


def checked_labels(
    label: object, length: int, num_classes: int | None, names: Sequence[str] | None, where: str
) -> tuple[np.ndarray, int | None, Names | None]:
    """The labels (length,) int32 of examples in memory, how many classes there are, and their names.

    Args:
        label: integers 0 ... num_classes - 1, or None: zeros, and no classes.
        length: of the data.
        num_classes: None: that of the names, or what the labels show if every class from 0 on is among them.
        names: of the classes, in the order of their numbers; or None.
        where: for messages.

    Raises:
        DataError: labels, names or a number of classes that cannot be, by the first that is wrong.
    """
    if names is not None:
        names = tuple(map(str, names))
        if len(set(names)) < len(names) or num_classes not in (None, len(names)):
            raise DataError(
                f"{where}: class_names must be {num_classes or len(names)} different names, got {listed(names)}"
            )
        num_classes = len(names)
    if label is None:
        if num_classes is not None:
            raise DataError(f"{where}: num_classes={num_classes} means nothing without labels; give both or neither")
        return np.zeros(length, np.int32), None, None
    if num_classes is not None and num_classes < 1:
        raise DataError(f"{where}: num_classes must be at least 1, got {num_classes}")
    shape = np.shape(label)  # type: ignore[arg-type]
    if shape != (length,):
        raise DataError(f"{where}: {length} examples but labels of shape {shape}, expected ({length},)")
    try:
        check_labels(label, num_classes, f"{where}: labels")
    except InputError as error:
        raise DataError(str(error)) from None
    values = np.asarray(label).astype(np.int64)
    if num_classes is None and length:
        present = np.unique(values)
        num_classes = len(present)
        if present[-1] != num_classes - 1:
            missing = int(np.flatnonzero(present != np.arange(num_classes))[0])
            raise DataError(
                f"{where}: labels go up to {present[-1]} and {missing} is not among them; number the classes from 0 "
                "(np.unique(label, return_inverse=True)[1]), or say how many there are, by class_names or "
                f"num_classes={present[-1] + 1}"
            )
    return values.astype(np.int32), num_classes, names


def check_same(num_classes: int | None, names: Names | None, dataset: Dataset) -> None:
    """Checks that the labels of other data mean what those of training mean.

    Args:
        num_classes, names: of the training data; without names only the number is compared.
        dataset: the other data.

    Raises:
        DataError: another number of classes, or the first of another name.
    """
    theirs = dataset.class_names
    if dataset.num_classes != num_classes:
        have, trained = (
            "no labels" if n is None else f"{n} classes" + ("" if c is None or plain(c) else f" ({listed(c)})")
            for n, c in ((dataset.num_classes, theirs), (num_classes, names))
        )
        differ = f"have {have}, training had {trained}"
    elif names is not None and theirs is not None and names != theirs:
        place = next(i for i, (a, b) in enumerate(zip(names, theirs, strict=True)) if a != b)
        differ = f"have the class {place} {shown(theirs[place])!r}, which in training was {shown(names[place])!r}"
    else:
        return
    raise DataError(f"{dataset.name}: the data {differ}; the network knows the classes of its training, so use these")


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()
