"""Network snapshots of NVlabs/edm: the weights and the arguments of the network, without running what is in the file.

A snapshot is a pickle of {`ema`, `loss_fn`, `augment_pipe`, `dataset_kwargs`} whose modules carry the source code of
their classes, which the official loader executes. Nothing of it is needed for the weights: each module is stored as
its attributes, among them `_parameters`, `_buffers` and `_modules`. So the pickle is read with an unpickler that knows
no class and no function of the file: modules become objects without behaviour that keep their attributes, and tensors
are put together by PyTorch's loader of weights alone. The source code stays text.

`edm_network.edm_denoiser` makes a denoiser of what is read.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sgmjax._files import regular_file
from sgmjax._inputs import InputError, one_line, shown
from sgmjax.interop.torch_file import Inert, today
from sgmjax.interop.weights import as_array

MODULE, FUNCTION = "torch_utils.persistence", "_reconstruct_persistent_obj"
_DEPTH = 64  # of modules in modules


@dataclasses.dataclass(frozen=True)
class OfficialEDM:
    """What a snapshot says about the averaged network.

    Attributes:
      class_name: of the outermost module, as `EDMPrecond`.
      init_kwargs: what it was made with: numbers, words, lists and dicts; whatever else there was, by its class's name.
      state_dict: official names, as PyTorch's `state_dict()` gives them, to float32 arrays.
      dataset_kwargs: as `init_kwargs`, of the training data; {} where the file has none.
    """

    class_name: str
    init_kwargs: dict[str, Any]
    state_dict: dict[str, np.ndarray]
    dataset_kwargs: dict[str, Any]


def is_edm(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a pickle of persistent objects; reads its instructions and runs none."""
    file = regular_file(path, "checkpoint")
    try:
        with open(file, "rb") as stream:
            words = {arg for _, arg, _ in pickletools.genops(stream) if isinstance(arg, str)}
    except Exception:  # pickletools has many ways to say it
        return False
    return f"{MODULE} {FUNCTION}" in words or {MODULE, FUNCTION} <= words


def read_edm(path: str | os.PathLike[str]) -> OfficialEDM:
    """The averaged network of an EDM snapshot, `network-snapshot-<kimg>.pkl`.

    Args:
      path: the file.

    Raises:
      InputError: PyTorch is missing, or the file is none, damaged, or holds something else.
    """
    try:
        import torch  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("reading PyTorch checkpoints needs PyTorch: pip install 'sgmjax[torch]'") from None
    file = regular_file(path, "checkpoint")
    try:
        with open(file, "rb") as stream:
            content = _Unpickler(stream).load()
    except InputError:
        raise
    except Exception as error:  # whatever a broken file makes pickle and PyTorch raise
        raise InputError(f"{shown(file)} is damaged, or no snapshot of EDM: {one_line(error, 120)}") from None
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, _Persistent):
        raise InputError(f"{shown(file)} is no snapshot of EDM: it has no network 'ema'")
    state = {
        key: as_array(value, f"{shown(file)}: '{shown(key)}'") for key, value in _state_dict(network, file).items()
    }
    kwargs = [_plain(found) for found in (vars(network).get("_init_kwargs"), content.get("dataset_kwargs"))]
    init, data = (found if isinstance(found, dict) else {} for found in kwargs)
    return OfficialEDM(network.class_name, init, state, data)


# ----------------------------------------------------------------------------------------------------------- unpickling
class _Persistent(Inert):
    """A module of the file: its attributes, and the name of its class."""

    class_name = ""


class _Dict(dict):
    """Stands for kinds of dictionaries."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        super().__init__()


class _Maker:
    """A function that a pickle may call. A pickle can set attributes of what it names; this lets none be set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the file changes a function ({name})")


class _Unpickler(pickle.Unpickler):
    """Reads a pickle without looking anything up: whatever it names is one of few constructors here, or inert."""

    def find_class(self, module: str, name: str) -> Any:
        import torch  # type: ignore[import-not-found]

        module, name = today(module, name)
        made = _MAKERS.get((module, name))
        if made is not None:
            return _Maker(made)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if name == "EasyDict":
            return type(name, (_Dict,), {})
        return type(name.rpartition(".")[2], (Inert,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the file refers to data outside of it")


def _persistent(meta: Any) -> Any:
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict):
        raise pickle.UnpicklingError("a module without attributes")
    found = _Persistent()
    vars(found).update({str(key): value for key, value in state.items()})
    found.class_name = str(meta.get("class_name"))
    return found


def _storage(data: Any) -> Any:
    """A storage, which plain pickles hold as the bytes of a file of PyTorch's."""
    import torch  # type: ignore[import-not-found]

    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a storage that is no bytes")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Any:
    import torch  # type: ignore[import-not-found]
    from torch._utils import _rebuild_tensor  # type: ignore[import-not-found]

    numbers = [offset, *size, *stride]
    if not all(isinstance(n, int) and 0 <= n < 2**40 for n in numbers):
        raise pickle.UnpicklingError("a tensor of an impossible shape")
    if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _rebuild_tensor(storage, offset, tuple(size), tuple(stride))


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    (MODULE, FUNCTION): _persistent,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_rest: tensor,
    ("_codecs", "encode"): lambda text, _encoding="latin1": text.encode("latin1"),  # bytes in old pickles
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("builtins", "set"): lambda items=(): set(items),
}


# ------------------------------------------------------------------------------------------------------- what is inside
def _state_dict(module: Any, file: Path, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """What the module's `state_dict()` would give."""
    if depth > _DEPTH:
        raise InputError(f"{shown(file)} is damaged: its modules contain each other")
    attributes = vars(module)
    hidden = attributes.get("_non_persistent_buffers_set")
    hidden = hidden if isinstance(hidden, set) else set()
    found: dict[str, Any] = {}
    for group in ("_parameters", "_buffers"):
        for name, value in _named(attributes, group, file).items():
            if value is not None and not (group == "_buffers" and name in hidden):
                found[f"{prefix}{name}"] = value
    for name, inner in _named(attributes, "_modules", file).items():
        if isinstance(inner, Inert):
            found |= _state_dict(inner, file, f"{prefix}{name}.", depth + 1)
        elif inner is not None:
            raise InputError(f"{shown(file)}: '{shown(prefix + name)}' is no module, but a {type(inner).__name__}")
    return found


def _named(attributes: Mapping[str, Any], group: str, file: Path) -> dict[str, Any]:
    found = attributes.get(group, {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{shown(file)} is damaged: '{group}' of a module is no dict of names")
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """Numbers, words, lists and dicts as they are, else the name of the class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth <= _DEPTH and isinstance(value, list | tuple):
        return type(value)(_plain(item, depth + 1) for item in value)
    if depth <= _DEPTH and isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    return type(value).__name__
