"""Features by name, their weights, and extraction in batches."""

from __future__ import annotations

import hashlib
import http.server
import threading

import jax
import numpy as np
import pytest

from sgmjax import _files
from sgmjax import sharding as sh
from sgmjax._inputs import InputError
from sgmjax.evaluation import features
from sgmjax.evaluation.features import Extractor, Features, load_features
from sgmjax.evaluation.statistics_file import Convention


def sums(dim: int = 3):
    """Features of which one is wrong if a batch is mixed up: sums over an image times 1, 2, 3."""

    def apply(variables, images):
        total = images.astype(np.float32).sum(axis=(1, 2, 3))
        return total[:, None] * variables[None, :], total[:, None]

    return Features("sums", Convention("sums"), dim, apply, np.arange(1.0, 1.0 + dim, dtype=np.float32), batch_size=4)


@pytest.mark.parametrize("devices, batch", [(1, None), (1, 100), (8, 4), (8, 16)])
def test_every_image_counts_once(devices, batch):
    images = np.random.default_rng(0).integers(0, 9, (13, 2, 2, 1)).astype(np.uint8)
    extractor = Extractor(sums(), sh.make_mesh(1, jax.devices()[:devices]), batch)
    found, logits = extractor(images)
    total = images.sum(axis=(1, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(found, total[:, None] * np.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(logits, total[:, None])


def test_features_that_are_wrong():
    mesh = sh.make_mesh(1, jax.devices()[:1])
    images = np.ones((5, 2, 2, 1), np.uint8)
    with pytest.raises(InputError, match=r"features 'sums' have shape \(3,\), not \(2,\)"):
        one = sums()
        Extractor(Features("sums", one.convention, 2, one.apply, one.variables), mesh)(images)
    with pytest.raises(InputError, match="hold NaN or infinities"):
        one = sums()
        Extractor(Features("sums", one.convention, 3, one.apply, one.variables * np.nan), mesh)(images)


def test_pixels_and_a_new_one(monkeypatch):
    found = load_features("pixels", (2, 2, 1))
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    rows, logits = Extractor(found, sh.make_mesh(1, jax.devices()[:1]))(images)
    np.testing.assert_allclose(rows, images.reshape(2, 4) / 255, rtol=1e-6)
    assert logits is None
    monkeypatch.setitem(features.FEATURES, "mine", lambda shape: sums())
    assert load_features("mine", (2, 2, 1)).name == "sums"
    with pytest.raises(InputError, match="no features called 'dino'; there are inception, .*, mine"):
        load_features("dino", (2, 2, 1))
    with pytest.raises(InputError, match="'inception' are of images of 1 or 3 channels"):
        load_features("inception", (7,))


def test_they_say_what_they_take_and_give(monkeypatch):
    monkeypatch.setattr(features, "inception_weights", lambda: ({}, "none"))
    monkeypatch.setattr(features, "inception_params", lambda weights: {})
    assert load_features("inception", (8, 8, 3)).discrete and load_features("inception_tf1", (8, 8, 3)).discrete
    found = load_features("pixels", (2, 2, 1))
    assert not found.discrete and not found.has_classes((2, 2, 1), True) and sums().has_classes((2, 2, 1), False)


# -------------------------------------------------------------------------------------------------------------- weights
BODY = b"these are no weights" * 100


@pytest.fixture
def server():
    """A server on this machine that gives BODY for any path, and fails for /gone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/gone":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BODY if self.path != "/short" else BODY[:100])

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_download_is_checked(tmp_path, server):
    good = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
    target = tmp_path / "cache" / "weights"
    features.download(f"{server}/weights", target, **good)
    assert target.read_bytes() == BODY
    target.unlink()
    for path, asked, message in (
        ("/gone", good, "could not be fetched .*; fetch .*/gone and put it at"),
        ("/short", good, "has 100 bytes, and the weights 2000"),
        ("/long", good | {"size": 50}, "has 51 bytes, and the weights 50"),
        ("/other", good | {"sha256": "0" * 64}, "has the SHA-256"),
    ):
        with pytest.raises(InputError, match=message) as error:
            features.download(server + path, target, **asked)
        assert "\n" not in str(error.value) and list(target.parent.iterdir()) == []


def test_without_weights_it_says_what_to_fetch(tmp_path, monkeypatch, server):
    monkeypatch.setenv(_files.CACHE, str(tmp_path))
    monkeypatch.delenv(features.FILE, raising=False)
    monkeypatch.setattr(features, "URL", f"{server}/gone")
    with pytest.raises(InputError, match="the Inception weights are not here and could not be fetched") as error:
        load_features("inception", (32, 32, 3))
    for word in (f"fetch {server}/gone and put it at {tmp_path}/gone", features.FILE, "features 'pixels'"):
        assert word in str(error.value)
    monkeypatch.setenv(features.FILE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(InputError, match="SGMJAX_INCEPTION=.*nowhere.pth: no such file"):
        load_features("inception", (32, 32, 3))
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    monkeypatch.setenv(features.FILE, str(tmp_path / "broken.npz"))
    with pytest.raises(InputError, match="Inception weights: cannot read"):
        load_features("inception", (32, 32, 3))
