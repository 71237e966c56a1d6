"""Prepares a TFDS data set for training: downloads it and writes it in a format that is read without TensorFlow.

    python -m sgmjax.data.prepare cifar10 --data_dir=~/tensorflow_datasets
    python -m sgmjax.data.prepare --list

Writing needs TensorFlow, which training does not: install the extra, `pip install 'sgmjax[prepare]'`, here or in an
environment of its own on the machine that holds the data. Reading needs none of it.

Exit codes: 0 the data set is prepared (also if it was before); 1 it could not be, with one line on standard error that
says why; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from sgmjax._files import user_path
from sgmjax.data.base import DataError
from sgmjax.data.tfds import check_random_access, data_dir_or_default, find_builder, import_tfds

FILE_FORMAT = "array_record"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    data_dir = data_dir_or_default(arguments.data_dir)
    try:
        if arguments.list:
            _print_list(data_dir)
        else:
            print(prepare(arguments.name, data_dir, manual_dir=arguments.manual_dir))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # --list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sgmjax.data.prepare",
        description="Download a TFDS image set and write it for training without TensorFlow.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="name as in TFDS: cifar10, celeb_a, name/config, name:version")
    what.add_argument("--list", action="store_true", help="list what is prepared, and the names that TFDS knows")
    parser.add_argument(
        "--data_dir", help="where data sets are kept (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    )
    parser.add_argument(
        "--manual_dir", help="where you have put files that TFDS cannot download (default: DATA_DIR/downloads/manual)"
    )
    return parser


def prepare(name: str, data_dir: str, *, manual_dir: str | None = None) -> str:
    """Makes sure that a data set is on disk.

    Args:
        name: as in TFDS.
        data_dir: where data sets are kept; created if need be.
        manual_dir: where files are that TFDS cannot download itself.

    Returns:
        A sentence saying where the data set is, and whether it was there before.

    Raises:
        DataError: unknown name, TensorFlow missing, present in another format, or the reason why TFDS failed.
    """
    ready = find_builder(name, data_dir)
    if ready is not None:
        check_random_access(ready, name, data_dir)
        return f"{name} is already prepared in {ready.data_path} ({_sizes(ready)})"
    _check_known(name)
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError("preparing a data set needs TensorFlow (training does not): pip install 'sgmjax[prepare]'")
    tfds = import_tfds()
    try:
        user_path(data_dir, "--data_dir").mkdir(parents=True, exist_ok=True)
        builder = tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)
        builder = find_builder(name, data_dir)
    except Exception as error:  # whatever a data set's own code raises: one line, the cause with it
        raise DataError(f"could not prepare {name} in {data_dir}: {_first_line(error)}") from error
    if builder is None:
        raise DataError(f"TFDS wrote {name} but it cannot be found in {data_dir}: give its config too, as name/config")
    check_random_access(builder, name, data_dir)
    return f"prepared {name} in {builder.data_path} ({_sizes(builder)})"


def _check_known(name: str) -> None:
    names = import_tfds().list_builders(with_community_datasets=False)
    base = name.split("/")[0].split(":")[0]
    if base not in names:
        close = difflib.get_close_matches(base, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"TFDS has no data set {base!r}: {hint}see python -m sgmjax.data.prepare --list")


def _sizes(builder: Any) -> str:
    return ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _print_list(data_dir: str) -> None:
    names = import_tfds().list_builders(with_community_datasets=False)
    present = sorted(p.name for p in user_path(data_dir).glob("*") if any(p.glob("**/dataset_info.json")))
    print(f"Prepared in {data_dir}:", *(present or ["nothing"]))
    print(f"\nTFDS knows {len(names)} data sets (images and others; https://www.tensorflow.org/datasets/catalog):")
    print(
        textwrap.fill(" ".join(names), width=110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    )


if __name__ == "__main__":
    sys.exit(main())
