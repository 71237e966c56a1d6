"""Features of images, in which samples and data are compared: networks by name, and their weights.

    network = load_features("inception", event_shape=(32, 32, 3))
    features, logits = extract(network, images, mesh)

A new one is a function of the shape of an example that gives a `Features`, and its name in `FEATURES`; a trained one is
named by its run (`training.load.load_features`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sgmjax import sharding as sh
from sgmjax._files import cache_folder, local_copy, read_arrays, replacing, user_path
from sgmjax._inputs import InputError, one_line, shown
from sgmjax._say import say
from sgmjax.evaluation.statistics_file import INCEPTION, Convention
from sgmjax.metrics.inception import DIM, InceptionV3, Resize, inception_params, preprocess

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 95_628_359
FILE = "SGMJAX_INCEPTION"  # environment: the file of weights

Apply = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A function from images to features.

    Attributes:
        name: as the user calls it.
        convention: what makes its numbers comparable with those of others.
        dim: numbers in a feature vector.
        apply: apply(variables, images) -> features (batch, dim) and logits (batch, classes) or None; images as the data
            hold them, uint8 or floats.
        variables: its parameters.
        batch_size: images at a time that suit it.
        discrete: whether images must be uint8.
    """

    name: str
    convention: Convention
    dim: int
    apply: Apply
    variables: Any = ()
    batch_size: int = 500
    discrete: bool = False

    @functools.cached_property
    def digest(self) -> str:
        """Of its parameters, see `digest`."""
        return digest(self.variables)

    def has_classes(self, event_shape: tuple[int, ...], discrete: bool) -> bool:
        """Whether it gives logits of examples of this shape, uint8 if `discrete`, else floats; computes nothing."""
        images = jax.ShapeDtypeStruct((1, *event_shape), jnp.uint8 if discrete else jnp.float32)
        return jax.eval_shape(self.apply, self.variables, images)[1] is not None


def pixels(event_shape: tuple[int, ...]) -> Features:
    """The numbers of an example themselves, of uint8 scaled to [0, 1]."""

    def apply(variables, images):
        x = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        return x.reshape(len(images), -1), None

    return Features("pixels", Convention("pixels"), math.prod(event_shape), apply)


def inception(event_shape: tuple[int, ...], *, preprocessing: Resize = "pytorch_fid") -> Features:
    """The Inception network of FID, with the preprocessing of pytorch-fid, or of TensorFlow 1 ("tf1").

    Raises:
        InputError: for examples that are no images, or weights that are not there: what to fetch and where to put it.
    """
    if len(event_shape) != 3 or event_shape[-1] not in (1, 3):
        raise InputError(
            f"features 'inception' are of images of 1 or 3 channels, and examples have shape {event_shape}; use "
            "features 'pixels', or the run folder of a feature network"
        )
    weights, version = inception_weights()
    params, network = inception_params(weights), InceptionV3()

    def apply(variables, images):
        out: Any = network.apply({"params": variables}, preprocess(images, convention=preprocessing))
        return out.pool3, out.logits_unbiased

    name = "inception" if preprocessing == "pytorch_fid" else f"inception_{preprocessing}"
    return Features(name, Convention(version, preprocessing), DIM, apply, params, batch_size=50, discrete=True)


def inception_tf1(event_shape: tuple[int, ...]) -> Features:
    """As `inception`, with the preprocessing of TensorFlow 1: for statistics of TTUR, EDM and guided-diffusion."""
    return inception(event_shape, preprocessing="tf1")


FEATURES: dict[str, Callable[[tuple[int, ...]], Features]] = {
    "inception": inception,
    "inception_tf1": inception_tf1,
    "pixels": pixels,
}


def load_features(name: str, event_shape: tuple[int, ...]) -> Features:
    """The features of a name in `FEATURES`.

    Raises:
        InputError: no such name, or features that examples of this shape have not.
    """
    if name not in FEATURES:
        raise InputError(
            f"no features called {shown(repr(name), 60)}; there are {', '.join(FEATURES)}, and runs of feature "
            "networks: their folders or files, or one that comes with sgmjax, as zoo:features_mnist"
        )
    return FEATURES[name](tuple(event_shape))


# -------------------------------------------------------------------------------------------------------------- weights
def inception_weights() -> tuple[dict[str, np.ndarray], str]:
    """The state dict of FID's Inception network, and the name of it for `Convention`.

    From the file that $SGMJAX_INCEPTION names (pytorch-fid's .pth, or an .npz of the same names), from the cache, or by
    a download into the cache whose size and SHA-256 are checked. A .pth is read once, by PyTorch, and kept as .npz.
    Other weights than the published ones are named by their checksum.

    Raises:
        InputError: there are none: what to fetch and where to put it.
    """
    if given := os.environ.get(FILE):
        path = local_copy(user_path(given, FILE), FILE)
        if not path.is_file():
            raise InputError(f"{FILE}={shown(given)}: no such file; it is that of {URL}")
        found = _sha256(path)
        return _state_dict(path), INCEPTION if found == SHA256 else f"inception-v3 with weights {found[:8]}"
    folder = cache_folder()
    kept, raw = folder / f"inception-{SHA256[:8]}.npz", folder / URL.rpartition("/")[2]
    if kept.is_file():
        return _state_dict(kept), INCEPTION
    if not raw.is_file():
        download(URL, raw, size=SIZE, sha256=SHA256)
    _check_file(raw, SIZE, SHA256)
    arrays = _state_dict(raw)
    with replacing(kept) as partial, partial.open("wb") as file:
        np.savez(file, **cast("dict[str, Any]", arrays))
    return arrays, INCEPTION


def _state_dict(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return read_arrays(path, "Inception weights")
    from sgmjax.interop import torch_file
    from sgmjax.interop.weights import arrays_of

    return arrays_of(torch_file.load(path), shown(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, *, size: int, sha256: str) -> None:
    """Fetches a file in one move, checked; nothing is left of one that does not fit.

    Raises:
        InputError: it cannot be fetched: what to do by hand; or it is another file.
    """
    say(f"fetching {url} ({size / 1e6:.0f} MB) ...")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as partial:
            with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as file:
                left = size + 1
                while left > 0 and (piece := answer.read(min(left, 1 << 20))):
                    file.write(piece)
                    left -= len(piece)
            _check_file(partial, size, sha256)
    except (urllib.error.URLError, OSError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise InputError(
            f"the Inception weights are not here and could not be fetched ({one_line(error, 80)}); fetch {url} and put "
            f"it at {path}, or name the file in {FILE}; features 'pixels' and run folders of feature networks need none"
        ) from None


def _check_file(path: Path, size: int, sha256: str) -> None:
    there = path.stat().st_size
    if there != size:
        raise InputError(
            f"{shown(path)} has {there} bytes, and the weights {size}: damaged, or another file; remove it"
        )
    if (found := _sha256(path)) != sha256:
        raise InputError(f"{shown(path)} has the SHA-256 {found[:8]}..., and the weights {sha256[:8]}...; remove it")


# ----------------------------------------------------------------------------------------------------------- extraction
@functools.lru_cache(maxsize=2)
def extractor_of(features: Features, mesh: Mesh) -> Extractor:
    """The `Extractor` of features, the same one while they are in use: its program is compiled once."""
    return Extractor(features, mesh)


def digest(variables: Any) -> str:
    """Eight letters that tell one set of parameters from another."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(jax.device_get(leaf))
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:8]


class Extractor:
    """Features of any number of images, in batches of one size over all devices.

    Args:
        features: what to compute.
        mesh: from `make_mesh`.
        batch_size: images at a time over all devices; None: the features' own. Rounded up to a multiple of the devices.
    """

    def __init__(self, features: Features, mesh: Mesh, batch_size: int | None = None):
        self.features = features
        unit = math.lcm(mesh.size, jax.process_count())
        self._size = math.ceil((batch_size or features.batch_size) / unit) * unit
        self._mesh = mesh
        self._variables = sh.replicate(jax.device_get(features.variables), mesh)
        self._apply = jax.jit(
            features.apply,
            in_shardings=(sh.replicated(mesh), sh.batch_sharding(mesh)),
            out_shardings=sh.batch_sharding(mesh),
        )

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Features (n, dim) float32, and logits (n, classes) or None; the last batch is filled up.

        Raises:
            InputError: the features are not finite.
        """
        local = self._size // jax.process_count()
        features, logits = [], []
        for start in range(0, len(images), self._size):
            mine = (start + jax.process_index() * local + np.arange(local)) % len(images)
            placed = sh.put_batch({"x": images[mine]}, sh.batch_sharding(self._mesh))["x"]
            found, said = sh.fetch(self._apply(self._variables, placed))
            features.append(found)
            if said is not None:
                logits.append(said)
        whole = np.concatenate(features)[: len(images)].astype(np.float32, copy=False)
        if whole.shape[1:] != (self.features.dim,):
            raise InputError(
                f"features {self.features.name!r} have shape {whole.shape[1:]}, not ({self.features.dim},)"
            )
        if not np.isfinite(whole).all():
            raise InputError(f"features {self.features.name!r} of these images hold NaN or infinities")
        return whole, np.concatenate(logits)[: len(images)] if logits else None
