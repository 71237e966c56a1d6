"""A bucket on this machine: the emulator of Google's storage, as a server that processes of the tests can reach."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

NAME = "bucket"
_CONTROL = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
os.environ.setdefault(_CONTROL, "false")  # else gcsfs asks a service which the emulator lacks, for half a second


@contextlib.contextmanager
def served(name: str = NAME) -> Iterator[dict[str, str]]:
    """Serves an empty bucket; gives the environment variables by which it is found, and sets them here too."""
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class Refused(Exception):
        """The object is not of the generation that was asked for."""

    class Conditional(Storage):
        """The emulator's storage, with the condition that an upload may have and the emulator leaves out."""

        wanted: str | None = None

        def create_file(self, bucket_name: str, file_name: str, *content: Any) -> None:
            if self.wanted not in (None, self.generation(bucket_name, file_name)):
                raise Refused
            super().create_file(bucket_name, file_name, *content)

        def generation(self, bucket_name: str, file_name: str) -> str:
            try:
                return str(self.get_file_obj(bucket_name, file_name)["generation"])
            except NotFound:
                return "0"

    storage, lock = Conditional(use_memory_fs=True), threading.Lock()  # made for one request at a time

    class Handler(RequestHandler):
        """Answers as the emulator, and says and heeds generations, without which writers do not see each other."""

        def _one(self, do: Callable[[], None]) -> None:
            address = urlparse(self.path)
            asked, found = parse_qs(address.query), re.fullmatch(r".*/b/([^/]+)/o/([^/]+)", address.path)
            self.generation = None
            with lock, contextlib.suppress(ConnectionError):  # whoever asks may have been killed
                storage.wanted = asked.get("ifGenerationMatch", [None])[0]
                if found:
                    self.generation = storage.generation(found[1], unquote(found[2]))
                    if storage.wanted not in (None, self.generation):
                        return self.send_error(412)
                    if asked.get("ifGenerationNotMatch") == [self.generation]:
                        return self.send_error(304)
                try:
                    do()
                except Refused:
                    self.send_error(412)

        def end_headers(self) -> None:
            if self.generation not in (None, "0"):
                self.send_header("x-goog-generation", self.generation)
            super().end_headers()

        def do_GET(self) -> None:
            self._one(super().do_GET)

        def do_POST(self) -> None:
            self._one(super().do_POST)

        def do_PUT(self) -> None:
            self._one(super().do_PUT)

        def do_PATCH(self) -> None:
            self._one(super().do_PATCH)

        def do_DELETE(self) -> None:
            self._one(super().do_DELETE)

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    buckets.create_bucket(name, storage)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    variables = {
        "STORAGE_EMULATOR_HOST": address,  # of gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        _CONTROL: "false",
    }
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield variables
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        server.shutdown()
        server.server_close()
