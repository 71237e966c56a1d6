"""The site: its mistakes are those that are made, its reference is whole, and it is built without a warning."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import re
import shutil
import socketserver
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import refdata

DOCS = refdata.ROOT / "docs"
MISTAKES = (DOCS / "mistakes.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", MISTAKES, flags=re.DOTALL)


@pytest.fixture(scope="module")
def site():
    """docs/build_site.py."""
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_twenty_mistakes():
    assert sum(bool(message) for _, message in BLOCKS) >= 20


@pytest.mark.parametrize("code, message", BLOCKS[1:], ids=[message.split(":")[0][:40] for _, message in BLOCKS[1:]])
def test_a_mistake_says_what_the_page_says(code, message):
    scope = {}
    exec(BLOCKS[0][0], scope)
    with pytest.raises(ValueError) as caught:
        exec(code, scope)
    assert str(caught.value) == message.strip()


def test_every_public_name_is_in_the_reference(site):
    import sgmjax

    rooms = {f"sgmjax.{name}" for name in sgmjax.__all__ if name in ("samplers", "sdes", "models", "objectives")}
    assert rooms < set(site.ROOMS)
    for room in site.ROOMS:
        module = importlib.import_module(room)
        page = site.reference_page(room)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if name.startswith("_"):
                continue
            if isinstance(value, type(sys)):
                assert value.__name__ in site.ROOMS or value.__name__ in ("sgmjax.evaluation", "sgmjax.training"), name
            else:
                assert f"::: {room}.{name}\n" in page, name


def test_every_public_name_has_a_docstring(site):
    """Constants apart, whose line in the source says what they are."""
    for room in site.ROOMS:
        module = importlib.import_module(room)
        for name in site.public_names(room):
            value = getattr(module, name)
            if callable(value) and getattr(value, "__module__", "").startswith("sgmjax"):
                assert (value.__doc__ or "").strip(), f"{room}.{name}"


def test_every_page_is_in_the_navigation():
    nav = (refdata.ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert {path.name for path in DOCS.glob("*.md")} == set(re.findall(r"[\w-]+\.md", nav))


class _Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values.get("id"), values.get("name")}
        self.links += [values[key] for key in ("href", "src") if values.get(key)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=refdata.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return out


@pytest.mark.slow
def test_the_site_has_no_broken_link(built: Path):
    pages = {path.resolve(): _Page(path.read_text()) for path in built.rglob("*.html") if path.name != "404.html"}
    broken, within = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            within += 1
            if not target.exists():
                broken.append((path.name, link))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append((str(path), link))
    assert within > 1000
    assert not broken


@pytest.mark.slow
def test_formulas_are_formulas(built: Path):
    """As MathML, with nothing of TeX left."""
    page = (built / "mathematics" / "index.html").read_text()
    assert page.count("<math") > 20 and 'class="arithmatex"' not in page
    assert "<msubsup>" in page or "<msub>" in page


def test_versions_agree():
    """Of the package, the changes and the citation."""
    number = re.search(r'^version = "(.*)"$', (refdata.ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert number is not None
    assert re.search(r"^## (.*)$", (refdata.ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1] == number[1]  # pyright: ignore[reportOptionalSubscript]
    assert f"\nversion: {number[1]}\n" in (refdata.ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_a_browser_finds_nothing_to_complain_of(built: Path, tmp_path):
    """Chromium's console stays empty, and formulas and pictures have a size."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here")
    with socketserver.TCPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(built))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in ("", "mathematics/", "samplers/", "reference/sgmjax.samplers/", "notebooks/quickstart/"):
            url = f"http://127.0.0.1:{server.server_address[1]}/{page}"
            command = [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}", "--dump-dom", url,
            ]  # fmt: skip
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            said = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
            assert not said, (page, said)
            assert len(run.stdout) > 5000
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):  # noqa: A002
        pass
