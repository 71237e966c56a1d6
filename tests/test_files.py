"""Files on a disk and in a bucket behave alike: one that only one can make, one that appears whole, one that grows."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from sgmjax import _files
from sgmjax._inputs import InputError


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    """An empty folder of either kind."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("bucket")
    return _files.user_path(f"gs://bucket/{request.node.originalname}")


def test_names():
    path = _files.user_path("gs://bucket/runs/a")
    assert isinstance(path, epath.Path) and str(path / "config.json") == "gs://bucket/runs/a/config.json"
    assert _files.is_remote(path) and not _files.is_remote("runs/gs")
    assert isinstance(_files.user_path("runs/a"), Path) and _files.absolute(path) == path
    assert _files.absolute(Path("a")) == Path.cwd() / "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gs://", "--workdir: gs:// names no bucket; write gs://bucket/folder"),
        ("gs:///", "names no bucket"),
        ("gs://bucket/run[1]", "no name in a bucket can have [ here"),
        ("s3://bucket/a", "--workdir: s3://bucket/a: no s3:// here; give a path, or gs://bucket/folder"),
        ("https://host/a", "no https:// here"),
        ("", "--workdir: is empty"),
    ],
)
def test_what_is_no_path_is_refused(text, said):
    with pytest.raises(InputError) as error:
        _files.user_path(text, "--workdir")
    assert said in str(error.value)


def test_long_names_are_cut_and_stay_different():
    assert _files.short("as_psld_gamma0.02") == "as_psld_gamma0.02"
    long = ["_".join(["é", *"order=3 scale=1".split() * 40, end]) for end in "ab"]
    first, other = (_files.short(name) for name in long)
    assert (
        first != other and first[:150] == long[0][:150] and {len(n.encode()) <= 180 for n in (first, other)} == {True}
    )


def test_a_bucket_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"pip install 'sgmjax\[gcs\]'"):
        _files.user_path("gs://bucket/a", "--workdir")


def test_of_many_that_create_a_file_one_succeeds(folder):
    path, found = folder / "lock", []
    folder.mkdir(parents=True, exist_ok=True)

    def try_it(number: int) -> None:
        if _files.create(path, str(number)):
            found.append(number)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1 and path.read_text() == str(found[0])
    assert not _files.create(path, "late")
    assert path.read_text() == str(found[0])


def test_a_file_appears_whole_or_not_at_all(folder):
    with _files.replacing(folder / "a.npz") as partial, partial.open("wb") as file:
        np.savez(file, x=np.arange(5))
    np.testing.assert_array_equal(_files.read_array(folder / "a.npz", ("x",), "--data"), np.arange(5))
    with pytest.raises(RuntimeError), _files.replacing(folder / "a.npz") as partial:
        partial.write_text("half")
        raise RuntimeError
    np.testing.assert_array_equal(_files.read_array(folder / "a.npz", ("x",), "--data"), np.arange(5))
    assert _files.sizes(folder) == {"a.npz": _files.sizes(folder)["a.npz"]}


def test_a_changed_object_is_read_anew(folder, monkeypatch, tmp_path):
    monkeypatch.setenv(_files.CACHE, str(tmp_path / "cache"))
    for value in (1.0, 2.0):  # of the same size
        with _files.replacing(folder / "x.npy") as partial, partial.open("wb") as file:
            np.save(file, np.full(3, value))
        for _ in range(2):
            assert _files.read_array(folder / "x.npy", (), "--data")[0] == value
    if _files.is_remote(folder):  # of the same bytes on disk as long as nothing has changed
        copy = _files.local_copy(folder / "x.npy", "--data")
        before = copy.stat()
        assert _files.local_copy(folder / "x.npy", "--data").stat() == before
    with pytest.raises(InputError, match=r"--data: cannot read .*none.npy"):
        _files.read_array(folder / "none.npy", (), "--data")


def test_touched_files_are_younger(folder):
    for name in ("a", "b"):
        (folder / name).write_text(name)
    time.sleep(0.05)
    _files.touch(folder / "a")
    assert _files.modified(folder / "a") > _files.modified(folder / "b")
    assert (folder / "a").read_text() == "a"
    _files.overwrite(folder / "a", folder / "b")
    assert (folder / "b").read_text() == "a" and not (folder / "a").exists()


def test_folders_move_and_go(folder):
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("one", "b/two"):
        (folder / "a" / name).write_text("text")
    assert _files.sizes(folder / "a") == {"one": 4, "b/two": 4}
    _files.move(folder / "a", folder / "c")
    assert _files.sizes(folder / "c") == {"one": 4, "b/two": 4} and not (folder / "a").exists()
    _files.move(folder / "c" / "one", folder / "single")
    assert _files.sizes(folder) == {"c/b/two": 4, "single": 4}
    _files.remove_folder(folder / "c")
    assert _files.sizes(folder) == {"single": 4}
    _files.remove_folder(folder / "none")


def test_a_file_that_grows_is_there_when_it_is_asked_for(folder):
    (folder / "log").write_text("1\n")
    mirror = _files.Mirror(folder, ["log", "new"])
    with (mirror.place / "log").open("a") as file:
        file.write("2\n")
        file.flush()
        mirror.sync()  # soon
        mirror.sync(wait=True)
        assert (folder / "log").read_text() == "1\n2\n"
        file.write("3\n")
    (mirror.place / "events").mkdir()
    (mirror.place / "events" / "new").write_text("e")
    mirror.close()
    assert (folder / "log").read_text() == "1\n2\n3\n" and (folder / "events" / "new").read_text() == "e"


def test_writable_or_not(folder):
    _files.check_writable(folder / "new" / "x.npz", "--out")
    assert not (folder / "new" / "x.npz").exists()
    (folder / "there" / "x").mkdir(parents=True, exist_ok=True)
    (folder / "there" / "x" / "y").write_text("")
    with pytest.raises(InputError, match="--out: .*x is a folder"):
        _files.check_writable(folder / "there" / "x", "--out")


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(InputError, match="--out: cannot write gs://none/a/x.npz"):
        _files.check_writable(_files.user_path("gs://none/a/x.npz"), "--out")


def test_a_folder_of_data_is_copied_once(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv(_files.CACHE, str(tmp_path))
    folder = _files.user_path("gs://bucket/data")
    for name in ("a/1.txt", "2.txt"):
        (folder / name).write_text(name)
    copy = _files.local_folder(folder, "data.data_dir")
    assert _files.sizes(copy) == {"2.txt": 5, "a/1.txt": 7}
    before = (copy / "2.txt").stat()
    (folder / "a" / "1.txt").write_text("changed")
    assert _files.local_folder(folder, "data.data_dir") == copy
    assert (copy / "a" / "1.txt").read_text() == "changed" and (copy / "2.txt").stat() == before
    with pytest.raises(InputError, match="there is nothing in gs://bucket/none"):
        _files.local_folder(_files.user_path("gs://bucket/none"), "data.data_dir")
