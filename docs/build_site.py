"""What the site has beside the pages of this folder: notebooks, the reference, the commands. A hook of mkdocs.

    mkdocs build --strict          # into build/site
    python docs/build_site.py            # before: executes the notebooks (minutes), whose pages then have pictures

Formulas become MathML, which browsers show without a script; links to files of the repository lead there.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import griffe

from sgmjax.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "build" / "notebooks"  # their executed copies

# The rooms of the reference, with what they are for.
ROOMS = {
    "sgmjax": "At hand",
    "sgmjax.sdes": "Processes",
    "sgmjax.sdes.noise_levels": "Noise levels",
    "sgmjax.score": "Scores",
    "sgmjax.preconditioning": "Denoisers",
    "sgmjax.models": "Networks",
    "sgmjax.objectives": "Losses",
    "sgmjax.samplers": "Samplers",
    "sgmjax.samplers.measurements": "Measurements",
    "sgmjax.samplers.plan": "Plans of sampling",
    "sgmjax.exact": "Exact scores",
    "sgmjax.data": "Data",
    "sgmjax.data.toy": "Sets in the plane",
    "sgmjax.metrics": "Metrics",
    "sgmjax.evaluation.metrics": "Metrics of a run",
    "sgmjax.tasks": "Tasks",
    "sgmjax.interop": "Official checkpoints",
    "sgmjax.config": "Configurations",
    "sgmjax.sharding": "Several devices",
}


def public_names(room: str) -> list[str]:
    """What a room offers: its `__all__`; else the functions and classes that it defines. Rooms themselves apart."""
    module = importlib.import_module(room)
    names = getattr(module, "__all__", None)
    if names is None:
        found = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        names = [
            name
            for name, value in found.items()
            if getattr(value, "__module__", None) == room and (inspect.isfunction(value) or inspect.isclass(value))
        ]
    return [n for n in names if not n.startswith("_") and not inspect.ismodule(getattr(module, n))]


def reference_page(room: str) -> str:
    """Markdown: the room's docstring, then every public name's."""
    lines = [f"# {ROOMS[room]}: `{room}`", "", f"::: {room}", "    options:", "      members: false"]
    lines += ["      show_root_heading: false", "      show_root_toc_entry: false", ""]
    for name in sorted(public_names(room), key=str.lower):
        lines += [f"::: {room}.{name}", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Markdown: what `python -m sgmjax.<command> --help` says first."""
    lines = ["# Commands", "", "`python -m sgmjax.<command> --helpfull` names every flag.", ""]
    for command, file in COMMANDS.items():
        text = importlib.import_module("sgmjax." + file.removesuffix(".py").replace("/", ".")).__doc__ or ""
        lines += [f"## {command}", "", "```text", text.strip(), "```", ""]
    return "\n".join(lines)


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, of its executed copy where there is one, and its pictures by name."""
    import nbformat
    from nbconvert import MarkdownExporter

    copy = EXECUTED / path.name
    notebook = nbformat.read(copy if copy.exists() else path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != "install"]
    title = notebook.cells[0]
    title.source = "\n\n".join(part for part in title.source.split("\n\n") if "`OWNER`" not in part)
    title.source = title.source.replace("![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)",
                                        "Open in Colab")  # fmt: skip
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources={"output_files_dir": path.stem})
    return body, dict(resources.get("outputs") or {})


class Samplers(griffe.Extension):
    """Of griffe, which reads the reference: a sampler's `**options` by name, as they are at run time."""

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        if not any("on_grid" in str(decorator.value) for decorator in func.decorators):
            return
        sampler = getattr(importlib.import_module(func.path.rpartition(".")[0]), func.name)
        if func.docstring is not None and sampler.__doc__:
            func.docstring.value = sampler.__doc__
        known = {parameter.name for parameter in func.parameters}
        for parameter in inspect.signature(sampler).parameters.values():
            if parameter.name not in known:
                default = "jnp.float32" if parameter.name == "dtype" else repr(parameter.default)
                keyword = griffe.ParameterKind.keyword_only
                func.parameters.add(griffe.Parameter(parameter.name, kind=keyword, default=default))
        if "options" in known:
            del func.parameters["options"]


# ---- hooks


def on_config(config: Any) -> Any:
    titles = [{ROOMS[room]: f"reference/{room}.md"} for room in ROOMS]
    pages = [f"notebooks/{path.stem}.md" for path in _notebooks()]
    config.nav = [*config.nav, {"Notebooks": pages}, {"Reference": [*titles, {"Commands": "reference/commands.md"}]}]
    config.watch.append(str(NOTEBOOKS))
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for room in ROOMS:
        files.append(File.generated(config, f"reference/{room}.md", content=reference_page(room)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for path in _notebooks():
        body, pictures = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=body))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to the repository's files: to the notebook's page, or to the repository."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+notebooks/(\w+)\.ipynb\)", rf"]({up}notebooks/\1.md)", markdown)
    return re.sub(r"\]\(\.\./((?!notebooks/)[\w./-]+)\)", rf"]({config.repo_url}/blob/main/\1)", markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Formulas as MathML."""
    import html as entities

    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        tex = entities.unescape(match[2].strip())
        return convert(tex[2:-2], display="block" if match[1] == "div" else "inline")

    return re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', formula, html, flags=re.DOTALL)


def _notebooks() -> list[Path]:
    first = "quickstart"
    return sorted(NOTEBOOKS.glob("*.ipynb"), key=lambda path: (path.stem != first, path.stem))


def execute() -> None:
    """Execute the notebooks that have changed since their copy, into `EXECUTED`."""
    import nbformat
    from nbclient import NotebookClient

    EXECUTED.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for path in _notebooks():
        copy, notebook = EXECUTED / path.name, nbformat.read(path, as_version=4)
        source = [cell.source for cell in notebook.cells]
        if copy.exists() and [cell.source for cell in nbformat.read(copy, as_version=4).cells] == source:
            continue
        print(f"executing {path.name} ...", end=" ", flush=True)
        start = time.monotonic()
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(EXECUTED)}}).execute()
        nbformat.write(notebook, copy)
        print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(execute())
