"""A run in one file: a checkpoint's parameters with the run's config.json, as safetensors, which hold no programs.

Tensors: `params/...` those being trained, `ema/...` their average, `state/...` what the networks carry besides.
Metadata: `format` "sgmjax", `step`, `config.json` (the text of the run folder's), `sha256` (of the tensors in the order
of their names; who changes them leaves it out). A file for sampling has `ema/...` alone, perhaps in half precision.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sgmjax._files import ZOO, AnyPath, in_zoo, regular_file, replacing, user_path, zoo
from sgmjax._inputs import InputError, check_numbers, one_line, shown
from sgmjax.interop.torch_file import MAX_STEP
from sgmjax.tasks.base import Variables

FORMAT = "sgmjax"
GROUPS = ("params", "ema", "state")


def is_tensor_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of such a file, by its ending, and not of a run folder."""
    found = user_path(path, "--workdir")
    return found.suffix == ".safetensors" and not found.is_dir()


def folder_of(path: str | os.PathLike[str]) -> AnyPath:
    """Where what is made of a run lies: its folder, or one beside its file, of the same name; of a run that comes with
    sgmjax `runs/zoo_<name>`."""
    found = user_path(path, "--workdir")
    if in_zoo(found):
        return user_path("runs") / f"zoo_{found.stem}"
    return found.with_suffix("") if is_tensor_file(found) else found


def find(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path, or `zoo:name` where it is the name of a run that comes with sgmjax, and of nothing that is there."""
    name = os.fspath(path)
    return f"{ZOO}{name}" if name in zoo() and not user_path(path, "--workdir").exists() else path


def write(
    path: str | os.PathLike[str], record: Mapping[str, Any], step: int, params: Any, averaged: Any, state: Any
) -> None:
    """Writes a run's file.

    Args:
        path: where.
        record: the run's config.json.
        step: steps taken.
        params, averaged: trees of the same form; params None: the averaged ones alone, in half precision.
        state: of the networks; {} for most.
    """
    import safetensors.numpy  # here and below: only who has such files needs it

    arrays: dict[str, np.ndarray] = {
        f"{group}/{name}": np.array(jax.device_get(leaf))
        for group, tree in zip(GROUPS, ({} if params is None else params, averaged, state), strict=True)
        for name, leaf in named(tree).items()
    }
    if params is None:
        arrays |= {name: _half(array, name) for name, array in arrays.items() if name.startswith("ema/")}
    metadata = {
        "format": FORMAT,
        "step": str(step),
        "config.json": json.dumps(record),
        "sha256": _checksum(arrays),
    }
    with replacing(path) as partial:
        partial.write_bytes(_in_order(safetensors.numpy.save(arrays, metadata)))  # save_file lets nobody else read it


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose metadata stand in order, which the library draws anew: equal runs are equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a run's file.

    Raises:
        InputError: no such file, or one that is damaged or of something else.
    """
    return _open(path, lambda file: dict(file.metadata() or {}))


def read_record(path: str | os.PathLike[str]) -> Any:
    """The config.json in a run's file. Raises InputError as `read_metadata`."""
    try:
        return json.loads(read_metadata(path)["config.json"])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)}: its config.json is damaged: {one_line(error, 120)}") from None


def read(path: str | os.PathLike[str], abstract: Variables) -> tuple[int, Variables, Variables]:
    """The step, the variables being trained, and the averaged ones, as NumPy arrays of the types that are wanted.

    Every tensor of the file is checked and used: floats of another type become the wanted one. In a file with the
    averaged parameters alone they are those being trained too.

    Args:
        path: the file.
        abstract: the shapes and types of the run's variables.

    Raises:
        InputError: as `read_metadata`; a tensor that the run does not have, or lacks, or of another shape; numbers that
            are not finite, or not those that were written.
    """

    def content(file: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())

    arrays, metadata = _open(path, content)
    groups = GROUPS if any(name.startswith("params/") for name in arrays) else GROUPS[1:]
    wanted = {f"{group}/{name}": leaf for group in groups for name, leaf in named(_group(abstract, group)).items()}
    for name in [*arrays, *wanted]:
        problem = None
        if name not in wanted:
            problem = "which the network of its config does not have"
        elif name not in arrays:
            problem = "is missing"
        elif arrays[name].shape != wanted[name].shape:
            problem = f"has shape {arrays[name].shape}, and the network of its config {wanted[name].shape}"
        elif (np.dtype(wanted[name].dtype).kind in "iub") != (arrays[name].dtype.kind in "iub"):
            problem = f"has numbers of type {arrays[name].dtype}, expected {wanted[name].dtype}"
        if problem is not None:
            raise InputError(f"{shown(path)}: tensor '{shown(name)}' {problem}")
    if "sha256" in metadata and metadata["sha256"] != _checksum(arrays):
        raise InputError(f"{shown(path)} is damaged: its numbers are not those that were written (checksum)")
    step = metadata.get("step", "")
    if not step.isdecimal() or int(step[:20]) > MAX_STEP:
        raise InputError(f"{shown(path)}: 'step' is {shown(step, 40)}: must be a whole number, 0 to {MAX_STEP:,}")
    for name, array in arrays.items():
        if array.dtype.kind == "f" or str(array.dtype) == "bfloat16":
            check_numbers(array, f"{shown(path)}: '{name}'")
        arrays[name] = array.astype(wanted[name].dtype)
    trees = {group: _filled(_group(abstract, group), f"{group}/", arrays) for group in groups}
    averaged = Variables(trees["ema"], trees["state"])
    return int(step), Variables(trees.get("params", averaged.params), averaged.state), averaged


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, `down_0/conv_0/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _group(variables: Variables, group: str) -> Any:
    return variables.state if group == "state" else variables.params


def _filled(tree: Any, prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[prefix + name] for name in named(tree)])


def _half(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(
            f"tensor '{shown(name)}' has numbers above 65504, which half precision does not; leave out --half"
        )
    return half


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _open(path: str | os.PathLike[str], content: Any) -> Any:
    """What `content` takes of the opened file, if it is one of ours."""
    import safetensors

    file = regular_file(path, "safetensors")
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            metadata = dict(opened.metadata() or {})
            found = content(opened) if metadata.get("format") == FORMAT else None
    except Exception as error:  # whatever a broken file makes the library raise
        raise InputError(f"{shown(file)} is damaged, or no safetensors file: {one_line(error, 120)}") from None
    if found is None or "config.json" not in metadata:
        raise InputError(f"{shown(file)} was not written by sgmjax: it has no config.json in its metadata")
    return found
