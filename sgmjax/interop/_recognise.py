"""Which program wrote a checkpoint: by what is in the file, not by its name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgmjax._files import regular_file
from sgmjax._inputs import InputError, shown
from sgmjax.interop import edm, scoresde_jax, torch_file

SOURCES = ("scoresde", "cld", "psld", "ncsnv2", "lsgm", "edm")
_MSGPACK_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # first byte of a dict that is not empty
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"  # of PyTorch's files from before 1.6


@dataclasses.dataclass(frozen=True)
class Recognised:
    """A checkpoint.

    Attributes:
      source: one of `SOURCES`.
      kind: which of its layouts: "" the usual; "jax" of score_sde's original; "classifier" of PSLD; "vae" or "joint" of
        LSGM.
      what: both in words.
      content: what the file holds.
      path: the file.
    """

    source: str
    kind: str
    what: str
    content: Any
    path: Path


def recognise(path: str | os.PathLike[str]) -> Recognised:
    """Opens a checkpoint and says whose it is. Nothing that is pickled in it is run.

    Args:
      path: the file.

    Raises:
      InputError: no such file, a damaged one, one of another program, or PyTorch is missing.

    Examples:
      >>> import flax.serialization, pathlib, tempfile
      >>> content = {"step": 5, "optimizer": {"target": {}}, "params_ema": {}}  # without its weights
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "checkpoint_5"
      ...     _ = path.write_bytes(flax.serialization.msgpack_serialize(content))
      ...     interop.recognise(path).what
      'a checkpoint of score_sde, the JAX original'
    """
    file = regular_file(path, "checkpoint")
    with open(file, "rb") as stream:
        head = stream.read(16)
    if head[:1] and head[0] in _MSGPACK_MAPS:
        content = scoresde_jax.load(file)
        if "params_ema" not in content or "optimizer" not in content:
            raise InputError(
                f"{shown(file)} is a flax checkpoint without 'optimizer' and 'params_ema', not score_sde's"
            )
        return Recognised("scoresde", "jax", "a checkpoint of score_sde, the JAX original", content, file)
    if head[:1] == b"\x80" and not head.startswith(_LEGACY) and edm.is_edm(file):
        return Recognised("edm", "", "a snapshot of EDM", edm.read_edm(file), file)
    content = torch_file.load(file)
    found = _of_torch(content)
    if found is None:
        have = ", ".join(shown(key, 40) for key in list(content)[:8]) if isinstance(content, Mapping) else ""
        raise InputError(
            f"{shown(file)} is no checkpoint of score_sde, CLD-SGM, PSLD, ncsnv2, LSGM or EDM: it holds a "
            f"{type(content).__name__}{f' of {have}' if have else ''}"
        )
    return Recognised(*found, content, file)


def _of_torch(content: Any) -> tuple[str, str, str] | None:
    """Source, kind and both in words, of what is in a file of PyTorch's."""
    if isinstance(content, list | tuple):
        if len(content) in (4, 5) and isinstance(content[0], Mapping):
            return "ncsnv2", "", "a checkpoint of ncsnv2"
        return None
    if not isinstance(content, Mapping):
        return None
    if "vae_state_dict" in content:
        if "dae_state_dict" in content:
            return "lsgm", "joint", "a checkpoint of LSGM, VAE and prior"
        return "lsgm", "vae", "a checkpoint of LSGM, the VAE alone"
    if "state_dict" in content and isinstance(content["state_dict"], Mapping):
        prefixes = {str(key).partition(".")[0] for key in content["state_dict"]}
        if "score_fn" in prefixes or "ema_score_fn" in prefixes:
            return "psld", "", "a checkpoint of PSLD"
        if "clf_fn" in prefixes:
            return "psld", "classifier", "a checkpoint of PSLD, a classifier"
        return None
    if "model" in content and "ema" in content and isinstance(content["model"], Mapping):
        if any(str(key).rpartition(".")[2] == "sigmas" for key in content["model"]):
            return "scoresde", "", "a checkpoint of score_sde_pytorch"
        return "cld", "", "a checkpoint of CLD-SGM"
    return None
