"""Statistics files: those recorded as met in the wild, ours, and what is refused in one line."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import refdata

from sgmjax._inputs import InputError
from sgmjax.evaluation.statistics_file import Convention, check_same, read_statistics, write_statistics
from sgmjax.metrics import statistics

FRECHET = refdata.load_npz("inception/frechet.npz")


@pytest.mark.parametrize("path", refdata.files("inception/stats_example_*.npz"))
def test_recorded_files(path):
    """Each layout gives the mean and covariance (divided by n - 1) that NumPy gives."""
    arrays = refdata.load_npz(f"inception/{path.name}")
    if "pool_3" in arrays:
        found = read_statistics(path)
        assert found.convention.preprocessing == "tfgan"
        x = arrays["pool_3"].astype(np.float64)
        mu, sigma = x.mean(axis=0), np.cov(x, rowvar=False)
        assert found.statistics.num == len(x)
    else:
        with pytest.raises(InputError, match="does not say how its images were resized; say 'pytorch_fid'"):
            read_statistics(path)
        found = read_statistics(path, preprocessing="pytorch_fid")
        mu, sigma = arrays["mu"], arrays["sigma"]
    np.testing.assert_allclose(found.statistics.mu, mu, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.statistics.sigma, sigma, rtol=1e-10, atol=1e-14)


@pytest.fixture
def some():
    return statistics(np.random.default_rng(0).standard_normal((40, 6)))


def test_ours_come_back(tmp_path, some):
    path, convention = tmp_path / "mine.npz", Convention("pixels")
    write_statistics(path, some, convention, {"data": "digits train"})
    found = read_statistics(path)
    np.testing.assert_array_equal(found.statistics.mu, some.mu)
    np.testing.assert_array_equal(found.statistics.sigma, some.sigma)
    assert found.statistics.num == 40 and found.convention == convention and found.about["data"] == "digits train"
    with np.load(path) as archive:  # what pytorch-fid reads
        assert {"mu", "sigma"} <= set(archive.files)


def test_guided_diffusion_and_torch_fidelity(tmp_path, some):
    path = tmp_path / "VIRTUAL.npz"
    extra = {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "arr_0": np.zeros((2, 4, 4, 3), np.uint8)}
    np.savez(path, mu=some.mu, sigma=some.sigma, **extra)
    assert read_statistics(path).convention.preprocessing == "tf1"
    with pytest.raises(InputError, match="guided-diffusion were made with preprocessing 'tf1', not 'pytorch_fid'"):
        read_statistics(path, preprocessing="pytorch_fid")
    torch = pytest.importorskip("torch")
    torch.save({"mu": torch.tensor(some.mu).float(), "sigma": torch.tensor(some.sigma)}, tmp_path / "fidelity.pt")
    found = read_statistics(tmp_path / "fidelity.pt")
    np.testing.assert_array_equal(found.statistics.sigma, some.sigma)
    assert found.convention.preprocessing == "tf1" and found.about["source"] == "torch-fidelity"


def test_another_convention_is_refused(some):
    ours = Convention("inception-2015-12-05", "pytorch_fid")
    check_same(ours, Convention("inception-2015-12-05", "pytorch_fid"), "x")
    for other in (Convention("inception-2015-12-05", "tf1"), Convention("pixels")):
        with pytest.raises(InputError, match="the statistics in x.npz are of another convention"):
            check_same(other, ours, "the statistics in x.npz")


def wrong(tmp_path, kind, some):
    path = tmp_path / "file.npz"
    if kind == "none":
        return tmp_path / "nowhere.npz", "cannot read"
    if kind == "pickle":
        path = tmp_path / "edm2.pkl"
        path.write_bytes(pickle.dumps({"fid": {"mu": some.mu, "sigma": some.sigma}}))
        return path, "is a pickle, and opening one runs what is in it"
    if kind == "images":
        np.savez(path, np.zeros((2, 4, 4, 3), np.uint8))
        return path, r"holds images \(arr_0\)"
    if kind == "names":
        np.savez(path, mean=some.mu, cov=some.sigma)
        return path, "holds cov, mean, where statistics are mu and sigma, or pool_3"
    if kind == "shape":
        np.savez(path, mu=some.mu[:3], sigma=some.sigma)
        return path, r"mu must be \(d,\) and sigma \(d, d\)"
    if kind == "nan":
        np.savez(path, mu=some.mu * np.nan, sigma=some.sigma)
        return path, "not finite"
    if kind == "objects":
        np.savez(path, mu=np.array([Evil()], object), sigma=some.sigma)
        return path, "damaged, or no .npz"
    np.savez(path, mu=some.mu, sigma=some.sigma)
    whole = path.read_bytes()
    if kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "bits":
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo("sigma.npy").header_offset + 200
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    else:
        path.write_bytes(b"")
    return path, "damaged, or no .npz"


class Evil:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    "kind", ["none", "pickle", "images", "names", "shape", "nan", "objects", "cut", "bits", "empty"]
)
def test_files_that_cannot_be(tmp_path, monkeypatch, kind, some):
    monkeypatch.chdir(tmp_path)
    path, message = wrong(tmp_path, kind, some)
    with pytest.raises(InputError, match=message) as error:
        read_statistics(path, preprocessing="pytorch_fid")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
