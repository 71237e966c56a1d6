"""What the commands share: one-line errors, where configs are found, the compilation cache."""

from __future__ import annotations

import ast
import collections
import ctypes
import hashlib
import importlib.util
import io
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sgmjax._files import trouble, user_path
from sgmjax._inputs import InputError, one_line, shown
from sgmjax._ranges import Range, check_range

if TYPE_CHECKING:
    from sgmjax.config import Config

USER_ERROR = 2  # exit status


class UsageError(InputError):
    """A command line that cannot work."""


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Calls `main` and exits with its status; a mistake of the user's is one line on stderr and status 2.

    With `SGMJAX_TRACEBACK=1` the whole traceback is shown.
    """
    _quiet()
    keep_memory()
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):  # a name of a file need not be UTF-8, a terminal need not speak it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    sys.exit(status)


def serve(argv: Sequence[str], read_flags: Callable[[Sequence[str]], Any], work: Callable[[Any], None]) -> int:
    """What a command on a finished run does: `work(read_flags(argv))`; returns the exit status.

    What the user can mend is one line, see `is_users`.
    """
    try:
        values = read_flags(argv)
        use_compilation_cache()
        from sgmjax.sharding import initialize_distributed

        initialize_distributed()
        work(values)
    except Exception as error:
        if is_users(error):
            return fail(error)
        from sgmjax.training.trouble import no_memory

        if (why := no_memory(error)) is not None:
            fix = "give a smaller --batch_size (where the command has none, a smaller --num)"
            return fail(UsageError(f"out of memory ({why}): {fix}"))
        raise
    return 0


def is_users(error: BaseException) -> bool:
    """Whether an error is one that the user can mend, to be said in one line; else it is a bug, whose traceback tells.

    So are an `InputError`, a checkpoint that cannot be read, a file that the system refuses, a bucket that cannot be
    reached, and a package that is not there.
    """
    from sgmjax.training.checkpoint import CheckpointError

    if trouble(error) is not None:
        return True
    if isinstance(error, OSError):
        return error.filename is not None or error.errno is not None
    if isinstance(error, ModuleNotFoundError):
        return not str(error.name).startswith("sgmjax")
    return isinstance(error, InputError | CheckpointError)


def progress(total: int, unit: str = "") -> Callable[[int], None]:
    """show(done): a line on stderr, rewritten with each call and with the rate since now; silent without a terminal."""
    start = time.perf_counter()

    def show(done: int) -> None:
        if sys.stderr.isatty():
            rate = done / (time.perf_counter() - start)
            print(f"\r{done}/{total}  {rate:,.1f}{unit}/s", end="\n" if done == total else "", file=sys.stderr)

    return show


def fail(error: BaseException, status: int = USER_ERROR) -> int:
    """Prints an error in one line; returns the exit status."""
    if os.environ.get("SGMJAX_TRACEBACK", "0") not in ("", "0"):
        raise error
    print(f"error: {one_line(error, 2000)}", file=sys.stderr, flush=True)
    return status


_PATHS = "sgmjax paths"  # absl's word for a group of flags is "module"


def define_path(values: Any, name: str, default: str | None, text: str) -> None:
    """Defines a flag that is a path, or a word in place of one: `parse_flags` makes `~` the home folder in it."""
    from absl import flags

    flags.DEFINE_string(name, default, text, flag_values=values)
    values.register_flag_by_module(_PATHS, values[name])


def parse_flags(values: Any, argv: Sequence[str], ranges: Mapping[str, Range] | None = None) -> list[str]:
    """Parses absl flags.

    Args:
        values: the flags.
        argv: the words of the command line, the command first.
        ranges: of the flags that are numbers; each must have one.

    Raises:
        UsageError: an unknown flag or bad value, a number out of its range, or words that are no flags.
        InputError: a flag of `define_path` that is no path.
    """
    from absl import flags

    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise UsageError(str(error).replace("flag --", "--")) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; settings are given as --name=value")
    for flag in values.flags_by_module_dict().get(_PATHS, ()):
        if flag.value is not None:
            flag.value = str(user_path(flag.value, f"--{flag.name}"))
    for name in values:
        if values[name].flag_type() in ("int", "float"):
            check_range(values[name].value, (ranges or {})[name], f"--{name}", UsageError)
    return rest


def show_help(doc: str | None, values: Any) -> NoReturn:
    """Prints a command's docstring and its flags, and ends the program."""
    print(doc)
    found = {flag.name: flag.help for flag in map(values.__getitem__, sorted(values))}  # -h is --help
    print("\n".join(f"  --{name}: {text}" for name, text in found.items()))
    raise SystemExit(0)


def split_overrides(argv: Sequence[str], flag: str = "config") -> tuple[list[str], list[tuple[str, Any]]]:
    """Takes `--config.train.steps=5`, `--config.train.steps 5`, `--config.data.flip` and `--noconfig.data.flip` out.

    Args:
        argv: words of a command line.
        flag: in place of `config`.

    Returns:
        The other words, and (path, value) pairs. A value is a Python literal where it reads as one, else a string.

    Raises:
        UsageError: a path without a name.
    """
    rest, overrides = [], []
    words = collections.deque(argv)
    while words:
        word = words.popleft()
        stripped = word.removeprefix("-").removeprefix("-")
        if word == stripped or not stripped.startswith((f"{flag}.", f"no{flag}.")):
            rest.append(word)
            continue
        path, equals, text = stripped.partition("=")
        if path.startswith(f"no{flag}."):
            text = "False"
        elif not equals:
            text = words.popleft() if words and not words[0].startswith("--") else "True"
        path = path.partition(".")[2]
        if not path:
            raise UsageError(f"{word}: which setting? write --{flag}.<name>=<value>")
        overrides.append((path, literal(text)))
    return rest, overrides


def literal(text: str) -> Any:
    """A word of a command line as the Python literal that it reads as, else as a string."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def override(settings: dict[str, Any], overrides: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Puts values into nested dictionaries, for `config.from_dict` to check.

    A new `sde.name` or `model.name` empties its section first: its settings are those of another process or network. So
    does a new `sampling.sampler` with `sampling.options`.
    """
    firsts = (".name", "sampling.sampler")
    for path, value in sorted(overrides, key=lambda item: not item[0].endswith(firsts)):  # stable: names first
        *sections, name = path.split(".")
        place = settings
        for i, section in enumerate(sections):
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--config.{path}: {'.'.join(sections[: i + 1])} is a setting, not a section")
            place = inner
        if name == "name" and sections in (["sde"], ["model"]) and place.get("name") != value:
            place.clear()
        if path == "sampling.sampler" and place.get("sampler") != value:
            place["options"] = {}
        place[name] = value
    return settings


def find_config(name: str) -> tuple[Path, str | None]:
    """The path of a config file, and the argument for its `get_config`.

    Args:
        name: `configs/psld_cifar.py`, `/some/where/mine.py`, or `psld_digits` for one that comes with sgmjax; an
            argument may follow after a colon.

    Raises:
        UsageError: there is no such file; names those there are.
    """
    text, _, argument = name.partition(":")
    if not text:
        raise UsageError("--config: is empty; give the file, or the name of a config")
    path = Path(text)
    if path.is_file():
        return path, argument or None
    folders = config_folders()
    for folder in folders:
        candidate = folder / path.with_suffix(".py").name
        if candidate.is_file() and path.parent.name in ("", "configs"):
            return candidate, argument or None
    known = sorted({file.stem for folder in folders for file in folder.glob("*.py") if file.stem[0] != "_"})
    raise UsageError(
        f"--config: there is no file {shown(text)}; configs that come with sgmjax: {', '.join(known) or 'none'}"
    )


def load_config(path: Path, argument: str | None = None) -> dict[str, Any]:
    """What the function `get_config` of a file returns, as nested dictionaries.

    Raises:
        UsageError: the file has no such function, or does not run. ConfigError: it asks for settings there are not.
    """
    from sgmjax.config import ConfigError

    spec = importlib.util.spec_from_file_location(f"sgmjax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        settings = module.get_config() if argument is None else module.get_config(argument)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # the file is the user's program: anything can happen in it
        raise UsageError(f"--config: {path}: {type(error).__name__}: {error}") from error
    settings = settings.to_dict() if hasattr(settings, "to_dict") else settings
    if not isinstance(settings, dict):
        raise UsageError(f"--config: get_config of {path} returned {type(settings).__name__}; return complete({{...}})")
    return settings


def read_config(name: str, overrides: Sequence[tuple[str, Any]]) -> tuple[Config, str]:
    """The typed config of a `--config` flag with the overrides of `split_overrides`, and how its run folder is called.

    Raises:
        UsageError, ConfigError: naming the file or setting, and the fix.
    """
    path, argument = find_config(name)
    config = overridden(load_config(path, argument), overrides)
    return config, path.stem if argument is None else f"{path.stem}_{argument}"


def overridden(settings: Any, overrides: Sequence[tuple[str, Any]]) -> Config:
    """The typed config of settings with the overrides of `split_overrides`.

    Raises:
        UsageError, ConfigError: naming the setting, and the fix.
    """
    from sgmjax.config import from_dict, parse, unread

    given = {key for key, _ in overrides} | set(unread(parse(settings)))  # else an override has made it idle
    return from_dict(
        override(settings, overrides), refuse=lambda key: any(f"{one}.".startswith(f"{key}.") for one in given)
    )


def config_folders() -> list[Path]:
    """Where configs lie: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).resolve().parent
    return [folder for folder in (package.parent / "configs", package / "_configs") if folder.is_dir()]


def keep_memory() -> None:
    """On a CPU, memory that a step has freed stays with the process for the next step.

    glibc gives the gigabyte of a training step's intermediate results back to the system and asks for it again at
    every step; the system's clearing of its pages took a third of the step. It must be called before threads are
    begun. Where the environment speaks for glibc's allocator, where there is none, or with an accelerator, nothing is
    done.
    """
    theirs = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.getenv("GLIBC_TUNABLES", "")
    if theirs or platform.libc_ver()[0] != "glibc" or _may_have_accelerator():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-8, 1)  # M_ARENA_MAX: one heap; those of threads other than the first cannot hold large arrays
    mallopt(-4, 0)  # M_MMAP_MAX: large arrays in the heap too
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: whose end is never given back


def _may_have_accelerator() -> bool:
    """Whether JAX may find one, judged without starting it."""
    platforms = os.getenv("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    return any(importlib.util.find_spec(name) is not None for name in ("jax_plugins", "libtpu"))


def use_compilation_cache() -> None:
    """Keeps compiled programs for the next run, in the user's cache folder or `$JAX_COMPILATION_CACHE_DIR`.

    There is one folder per kind of processor, since a program must not run on a lesser one. A folder that cannot be
    used only costs the time of compiling again. `JAX_COMPILATION_CACHE_DIR=` (empty) turns it off.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "sgmjax" / "xla" / _processor()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_raise_persistent_cache_errors", False)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    try:
        flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    return hashlib.sha256((platform.machine() + platform.processor() + flags).encode()).hexdigest()[:12]


def _warn(
    message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A warning to the user is one line; those of libraries to programmers keep their place in the code."""
    if category is UserWarning and file is None:
        print(f"warning: {message}", file=sys.stderr)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def _quiet() -> None:
    """Keeps the libraries' informational logs out of the run's own lines."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
