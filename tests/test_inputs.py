"""What a user hands over: every kind of broken file, path, number and label is one line that names it."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgmjax._files import check_writable, read_array, read_arrays, regular_file, replacing, user_path
from sgmjax._inputs import InputError, check_labels, check_numbers, one_line, shown


def _npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


GOOD = _npz(mask=np.arange(4096.0).reshape(64, 64), labels=np.arange(3))


def _refuses(call, *words: str) -> None:
    with pytest.raises(InputError) as info:
        call()
    text = str(info.value)
    assert "\n" not in text and len(text) < 1000
    for word in words:
        assert word in text, text


# ---------------------------------------------------------------------------------------------------------------- files
def test_arrays_are_read_by_content(tmp_path):
    """A name says nothing: an .npy called .npz, an .npz without an ending."""
    (tmp_path / "plain").write_bytes(GOOD)
    np.testing.assert_array_equal(
        read_array(tmp_path / "plain", ("x", "mask"), "--mask"), np.arange(4096.0).reshape(64, 64)
    )
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.arange(5))
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz", ("mask",), "--mask"), np.arange(5))
    assert read_array(tmp_path / "plain", ("other",), "--mask", required=False) is None
    assert read_array(tmp_path / "a.npz", ("labels",), "--mask", required=False) is None  # what it holds is not labels
    assert list(read_arrays(tmp_path / "plain", "--mask")) == ["mask", "labels"]


def _with_objects() -> bytes:
    file = io.BytesIO()
    np.savez(file, mask=np.array([{}, None], object))
    return file.getvalue()


def _zip_of_text() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mask.npy", "no array at all")
    return file.getvalue()


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00v\x00" + header.ljust(117).encode() + b"\n"


BROKEN = {
    "empty": b"",
    "text": b"just some words\n",
    "cut": GOOD[: len(GOOD) // 2],
    "head": GOOD[:40],
    "objects": _with_objects(),
    "zip": _zip_of_text(),
    "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zeros": bytes(1000),
    "magic only": b"PK\x03\x04",
    "npy header": b"\x93NUMPY\x01\x00",
    "npy giant": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"),
    "npy code": _npy("__import__('os').system('true')"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_one_line(tmp_path, content):
    (tmp_path / "mask.npz").write_bytes(content)
    _refuses(lambda: read_array(tmp_path / "mask.npz", ("mask",), "--inpaint"), "--inpaint: ", "mask.npz")


def test_flipped_bits_are_found(tmp_path):
    """A flip in an array's bytes is refused; one in what says nothing about them (a date) may pass, unchanged."""
    for place in np.random.default_rng(0).integers(0, len(GOOD), 60):
        content = bytearray(GOOD)
        content[place] ^= 0x10
        (tmp_path / "mask.npz").write_bytes(content)
        try:
            arrays = read_arrays(tmp_path / "mask.npz", "--inpaint")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            if "mask" in arrays:  # else it is called something else now
                np.testing.assert_array_equal(arrays["mask"], np.arange(4096.0).reshape(64, 64))


def test_a_missing_array_names_those_there_are(tmp_path):
    (tmp_path / "a.npz").write_bytes(GOOD)
    _refuses(
        lambda: read_array(tmp_path / "a.npz", ("x", "samples"), "--input"), "no array x or samples", "mask, labels"
    )


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    _refuses(lambda: regular_file(tmp_path / "fifo", "--input"), "no regular file")  # opening it would block
    _refuses(lambda: regular_file(tmp_path, "--input"), "is a folder")
    _refuses(lambda: regular_file("/dev/zero", "--input"), "/dev/zero is no regular file")
    _refuses(lambda: regular_file(tmp_path / "none", "--input"), "No such file")
    _refuses(lambda: regular_file(tmp_path / ("x" * 300), "--input"), "too long")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    _refuses(lambda: regular_file(tmp_path / "loop", "--input"), "loop")


# ---------------------------------------------------------------------------------------------------------------- paths
def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/runs/a") == Path("/home/me/runs/a")
    assert user_path(Path("~")) == Path("/home/me")
    assert user_path("runs/~a") == Path("runs/~a")
    _refuses(lambda: user_path("~nobody-of-that-name/x", "--workdir"), "--workdir", "~nobody-of-that-name")
    _refuses(lambda: user_path("", "--workdir"), "--workdir: is empty")
    _refuses(lambda: user_path("a\0b", "--workdir"), "NUL")


def test_writable(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "out.npz", "--out")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    _refuses(lambda: check_writable(tmp_path, "--out"), "--out", "is a folder")
    (tmp_path / "file").write_text("")
    _refuses(lambda: check_writable(tmp_path / "file" / "out.npz", "--out"), "--out: cannot write")
    check_writable(tmp_path / "file", "--out")
    assert (tmp_path / "file").read_text() == ""


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.json"
    with replacing(target) as partial:
        partial.write_text("1")
        assert not target.exists()
    with pytest.raises(OSError, match="full"), replacing(target) as partial:
        partial.write_text("2")
        raise OSError("full")
    assert target.read_text() == "1" and [path.name for path in tmp_path.iterdir()] == ["a.json"]


# -------------------------------------------------------------------------------------------------------------- numbers
def test_numbers():
    check_numbers(np.zeros((2, 3), np.uint8), "x", low=0, high=1)
    check_numbers(jnp.zeros((2,), jnp.bfloat16), "x")
    jax.jit(lambda x: check_numbers(x, "x") or x)(jnp.full(2, jnp.nan))  # its values are not known
    bad = np.zeros((4, 3), np.float32)
    bad[2, 1] = bad[3, 0] = np.nan
    _refuses(lambda: check_numbers(bad, "x"), "x[2, 1] is nan: it must be finite", "2 of 12 values")
    _refuses(lambda: check_numbers(np.array([0.0, 1.0, -np.inf]), "x"), "x[2] is -inf")
    _refuses(lambda: check_numbers(np.array([1.0, 1.5]), "x", low=-1, high=1), "x[1] is 1.5: the largest is 1")
    _refuses(lambda: check_numbers(np.array(-2.0), "x", low=-1), "x is -2.0: the least is -1")
    _refuses(lambda: check_numbers(np.array([1e300, 1.0]), "x", high=1), "x[0] is 1e+300: the largest")
    _refuses(lambda: check_numbers(np.ones(2, complex), "x"), "must be real numbers, got complex128")
    _refuses(lambda: check_numbers(np.array(["a"]), "x"), "must be real numbers")
    _refuses(lambda: check_numbers(np.ones(2, bool), "x"), "must be real numbers, got bool")
    _refuses(lambda: check_numbers(np.ones(2), "x", integers=True), "must be integers, got float64")


# --------------------------------------------------------------------------------------------------------------- labels
def test_labels():
    check_labels(np.array([0, 3, 1]), 4, length=3)
    check_labels(jnp.array([0, 3], jnp.int32), 4)
    check_labels([2, 0], 3)
    check_labels(np.zeros(0, np.int64), 3)
    jax.jit(lambda y: check_labels(y, 4) or y)(jnp.array([7]))
    _refuses(
        lambda: check_labels(np.array([1, 2, 3, 4]), 4), "labels[3] is 4: 4 classes are 0 to 3; number the classes"
    )
    _refuses(lambda: check_labels(np.array([0, -1]), 4, "y"), "y[1] is -1")
    _refuses(lambda: check_labels(np.array([-1]), None), "labels[0] is -1: none may be negative")
    _refuses(lambda: check_labels(np.array([0.0, 1.0]), 4), "must be integers, got float64")
    _refuses(lambda: check_labels(np.array([True]), 4), "must be integers, got bool")
    _refuses(lambda: check_labels(np.array(["cat"]), 4), "must be integers")
    _refuses(lambda: check_labels(np.zeros(3, int), 4, length=4), "shape (3,), expected (4,)")
    with pytest.raises(InputError, match="must be integers, got float32"):
        jax.jit(lambda y: check_labels(y, 4) or y)(jnp.array([0.5]))


# ----------------------------------------------------------------------------------------------------------------- text
def test_text_from_outside():
    assert shown(os.fsdecode(b"run\xff")) == "run\\xff"  # a name that is not UTF-8
    assert shown("a\nb\x1b[31m\t") == "a\\nb\\x1b[31m\\t"
    assert shown(Path("a/b")) == "a/b" and shown(b"\xe9") == "\\xe9" and shown("h\u00e9") == "h\u00e9"
    assert len(shown("x" * 10_000)) < 250
    assert one_line(ValueError("two\nlines")) == "two lines" and one_line(KeyError()) == "KeyError"
