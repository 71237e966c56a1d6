"""Opens the checkpoint files of PyTorch, without running anything that is pickled in them.

They are opened by PyTorch's own loader of weights alone. What else a file refers to by name (the argparse namespace of
LSGM, the settings of Lightning, NumPy's scalars) is neither imported nor called: objects without behaviour stand in
its place, which keep the attributes. PyTorch is imported here and nowhere else.
"""

from __future__ import annotations

import _compat_pickle
import builtins
import collections
import io
import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgmjax._files import regular_file
from sgmjax._inputs import InputError, one_line, shown

MAX_STEP = 2**31 - 1  # the training state counts steps in 32 bits
_LEGACY = 5  # pickles at the head of a file from before PyTorch 1.6: magic number, version, system, object, keys


class Inert:
    """Stands for an object of a class that is not loaded: takes what it is made of, keeps its attributes."""

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class InertMapping:
    """The same for kinds of dictionaries, whose entries the loader puts into this one type only."""

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        return collections.OrderedDict()


def load(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` put into a file, tensors on the CPU.

    Args:
      path: the file.

    Raises:
      InputError: no such file, PyTorch is missing, or the file is no checkpoint of PyTorch, damaged, or made to run
        programs.
    """
    try:
        import torch  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("reading PyTorch checkpoints needs PyTorch: pip install 'sgmjax[torch]'") from None
    file = regular_file(path, "checkpoint")
    names = _names(file)
    if calls := sorted(name for module, name in names if module == "builtins" and not _is_type(name)):
        raise InputError(
            f"{shown(file)} calls {shown(', '.join(calls))}: it is made to run programs, and is not opened"
        )
    for stand_in in (Inert, InertMapping):
        others: list[Any] = [type(name, (stand_in,), {"__module__": module}) for module, name in names]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(others):
                warnings.simplefilter("ignore")  # of pickle versions, for people who write checkpoints
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            continue
        except Exception as error:  # whatever a broken file makes the loader raise
            raise InputError(f"{shown(file)} is damaged, or no PyTorch checkpoint: {one_line(error, 120)}") from None
    foreign = sorted(f"{m}.{n}" for m, n in names if m.partition(".")[0] not in ("torch", "collections", "_codecs"))
    if not foreign:
        raise InputError(f"{shown(file)} is damaged, or no PyTorch checkpoint")
    raise InputError(
        f"{shown(file)} refers to {shown(', '.join(foreign))}, so that it is more than weights, and is not opened; "
        "save the state dicts alone"
    )


def _is_type(name: str) -> bool:
    return isinstance(getattr(builtins, name, None), type)


def _names(file: Path) -> set[tuple[str, str]]:
    """(module, name) of whatever the pickles in a checkpoint refer to.

    Raises:
      InputError: the file is no checkpoint, or a damaged one.
    """
    scripted = False
    with open(file, "rb") as stream:
        head = stream.read(2)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
                inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(inside) == 1 and (broken := archive.testzip()) is not None:  # PyTorch looks at no checksums
                    raise zipfile.BadZipFile(f"the checksum of {shown(broken)} in it is wrong")
                pickles, count = io.BytesIO(archive.read(inside[0]) if len(inside) == 1 else b""), 1
        elif head == b"PK":
            raise zipfile.BadZipFile("its end is missing")
        else:
            pickles, count = open(file, "rb"), _LEGACY
        with pickles:
            opcodes = [found for _ in range(count) for found in pickletools.genops(pickles)]
    except zipfile.BadZipFile as error:
        raise InputError(f"{shown(file)} is damaged: {one_line(error)}") from None
    except Exception:  # zipfile and pickletools have many ways to say it
        what = "is not a PyTorch checkpoint" if head else "is empty"
        raise InputError(f"{shown(file)} {what}") from None
    if scripted:
        raise InputError(f"{shown(file)} is a TorchScript program; save the model's state_dict() with torch.save")
    return {today(*str(argument).split(" ", 1)) for code, argument, _ in opcodes if code.name == "GLOBAL"}


def today(module: str, name: str) -> tuple[str, str]:
    """A name as loaders look it up: Python 2's names are today's."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[(module, name)]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


# ------------------------------------------------------------------------------------------------------- what is inside
def entry(checkpoint: Any, key: str, path: Any, kind: type = object) -> Any:
    """An entry of a checkpoint.

    Args:
      checkpoint: what `load` gave, or an entry of it.
      key: its name.
      path: the file, for messages.
      kind: what the entry must be: Mapping, list, ...

    Raises:
      InputError: there is none, or it is something else.
    """
    if not isinstance(checkpoint, Mapping) or key not in checkpoint:
        raise InputError(f"{shown(path)} has no entry '{key}'; is it a checkpoint of this repository?")
    value = checkpoint[key]
    if not isinstance(value, kind):
        wanted = {"Mapping": "dict"}.get(kind.__name__, kind.__name__)
        raise InputError(f"{shown(path)}: the entry '{key}' is a {type(value).__name__}, expected a {wanted}")
    return value


def step_of(value: Any, path: Any, name: str) -> int:
    """The number of optimiser steps, an integer or a tensor of one.

    Raises:
      InputError: something else, or a number that no run can have reached.
    """
    number = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_STEP:
        raise InputError(
            f"{shown(path)}: '{name}' is {shown(value, 40)}: must be a whole number of steps, 0 to {MAX_STEP:,}"
        )
    return number
