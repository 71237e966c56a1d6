"""Files of a data set's statistics, `mu` and `sigma` of its features: our own, and those met in the wild.

A number is worth comparing only where the other was made in the same way. Our files say how (`Convention`); of others
the source is recognised by what they hold, and what it implies is said. Where a file does not say how its images were
resized, whoever gives it must.

    source                              file                          read as
    sgmjax                              .npz mu, sigma, convention    its own convention
    pytorch-fid, NCSNv2, LSGM, EDM,     .npz mu, sigma                what the caller says: "pytorch_fid", or
    TTUR (Heusel et al. 2017)                                         "tf1" (TTUR, EDM)
    guided-diffusion                    .npz mu, sigma, mu_s, ...     "tf1": the graph of TensorFlow 1
    score_sde, CLD-SGM                  .npz pool_3                   "tfgan", which no feature network here imitates
    torch-fidelity (PSLD)               .pt mu, sigma                 "tf1"

Pickles (EDM2's .pkl) are not read: opening one runs what is in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sgmjax._files import regular_file, replacing
from sgmjax._inputs import InputError, check_numbers, one_line, shown
from sgmjax.metrics import Statistics, statistics

INCEPTION = "inception-2015-12-05"
PREPROCESSING = ("pytorch_fid", "tf1", "tfgan")
_KEYS = "mu and sigma, or pool_3"


@dataclasses.dataclass(frozen=True)
class Convention:
    """How features were made; two sets are comparable if theirs are equal.

    Attributes:
        network: of the features, "inception-2015-12-05", "pixels", or a network of the user's own with its checksum.
        preprocessing: how images come to it, "pytorch_fid", "tf1", "tfgan", or "none".
    """

    network: str
    preprocessing: str = "none"

    def __str__(self) -> str:
        return self.network if self.preprocessing == "none" else f"{self.network}, {self.preprocessing}"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A data set's statistics as read from a file.

    Attributes:
        statistics: of its features.
        convention: how they were made.
        about: whatever else the file says, and who wrote it.
    """

    statistics: Statistics
    convention: Convention
    about: dict[str, Any]


def write_statistics(
    path: str | os.PathLike, found: Statistics, convention: Convention, about: Mapping[str, Any] | None = None
) -> None:
    """Writes an .npz that `read_statistics` reads, and pytorch-fid too.

    Args:
        path: of the file.
        found: mean and covariance.
        convention: how the features were made.
        about: JSON-able: which data, which split, ...
    """
    text = json.dumps({"convention": dataclasses.asdict(convention), "about": dict(about or {})})
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, mu=found.mu, sigma=found.sigma, num=found.num, sgmjax=text)


def read_statistics(path: str | os.PathLike, *, preprocessing: str | None = None) -> Reference:
    """Statistics of any of the formats above.

    Args:
        path: of the file.
        preprocessing: how its images were resized and scaled, where the file leaves it open: "pytorch_fid" or "tf1".

    Raises:
        InputError: no such file, a damaged one, one without statistics (the keys that it has are named), or one that
            does not say how it was made, when the caller does not either.
    """
    file = regular_file(path, "statistics")
    if preprocessing is not None and preprocessing not in PREPROCESSING:
        raise InputError(f"preprocessing: {preprocessing!r} is unknown; choose one of {', '.join(PREPROCESSING)}")
    if file.suffix == ".pkl":
        raise InputError(f"{shown(file)} is a pickle, and opening one runs what is in it; give an .npz of mu and sigma")
    arrays = _of_torch(file) if file.suffix in (".pt", ".pth") else _of_npz(file)
    if "sgmjax" in arrays:
        return _ours(file, arrays)
    source, implied = _source(file, arrays)
    if implied is not None and preprocessing not in (None, implied):
        raise InputError(
            f"{shown(file)}: statistics of {source} were made with preprocessing {implied!r}, not {preprocessing!r}"
        )
    chosen = implied or preprocessing
    if chosen is None:
        raise InputError(
            f"{shown(file)} holds mu and sigma and does not say how its images were resized; say 'pytorch_fid' "
            "(pytorch-fid's, NCSNv2's and LSGM's files) or 'tf1' (TTUR's and EDM's)"
        )
    if "pool_3" in arrays:
        features = np.asarray(arrays["pool_3"])
        check_numbers(features, f"{shown(file)}: pool_3")
        found = statistics(features.reshape(len(features), -1))
    else:
        found = _statistics(file, arrays)
    return Reference(found, Convention(INCEPTION, chosen), {"source": source, "file": str(file)})


def check_same(reference: Convention, samples: Convention, what: str) -> None:
    """Raises InputError where statistics and features were not made in the same way.

    Args:
        reference: of the statistics.
        samples: of the features that shall be compared with them.
        what: name of the statistics, for the message.
    """
    if reference != samples:
        raise InputError(
            f"{what} are of another convention ({reference}) than the features here ({samples}), and their distance "
            "would mean nothing; give statistics made as these are, or the data themselves"
        )


def _source(file: Path, arrays: Mapping[str, Any]) -> tuple[str, str | None]:
    """Who writes such files, and what preprocessing that implies."""
    keys = set(arrays)
    if file.suffix in (".pt", ".pth"):
        return "torch-fidelity", "tf1"
    if {"mu", "sigma"} <= keys:
        return ("guided-diffusion", "tf1") if "mu_s" in keys else ("pytorch-fid or the like", None)
    if "pool_3" in keys:
        return "score_sde or CLD-SGM", "tfgan"
    if keys == {"arr_0"}:
        raise InputError(f"{shown(file)} holds images (arr_0) and no statistics; give them as data")
    there = shown(", ".join(sorted(keys)) or "nothing", 120)
    raise InputError(f"{shown(file)} holds {there}, where statistics are {_KEYS}")


def _of_npz(file: Path) -> dict[str, Any]:
    wanted = {"mu", "sigma", "num", "sgmjax", "pool_3"}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return {name: archive[name] if name in wanted else None for name in archive.files}
    except Exception as error:  # whatever a broken file makes zipfile, zlib and NumPy raise
        raise InputError(f"{shown(file)} is damaged, or no .npz: {one_line(error, 100)}") from None


def _of_torch(file: Path) -> dict[str, Any]:
    from sgmjax.interop import torch_file

    found = torch_file.load(file)
    if not isinstance(found, Mapping):
        raise InputError(f"{shown(file)} holds a {type(found).__name__}, where statistics are a dict of mu and sigma")
    return {str(key): np.asarray(value) for key, value in found.items() if hasattr(value, "__array__")}


def _statistics(file: Path, arrays: Mapping[str, Any], num: int = 0) -> Statistics:
    for name in ("mu", "sigma"):
        if np.asarray(arrays[name]).dtype.kind != "f":
            raise InputError(f"{shown(file)}: {name} has numbers of type {np.asarray(arrays[name]).dtype}, not floats")
    try:
        return Statistics(arrays["mu"], arrays["sigma"], num)
    except InputError as error:
        raise InputError(f"{shown(file)}: {error}") from None


def _ours(file: Path, arrays: Mapping[str, Any]) -> Reference:
    try:
        said = json.loads(str(arrays["sgmjax"]))
        convention, num = Convention(**said["convention"]), int(arrays["num"])
        about = dict(said["about"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{shown(file)}: what it says about itself cannot be read: {one_line(error, 80)}") from None
    if not {"mu", "sigma"} <= set(arrays):
        raise InputError(f"{shown(file)} lacks mu or sigma")
    return Reference(_statistics(file, arrays, num), convention, about | {"source": "sgmjax", "file": str(file)})
