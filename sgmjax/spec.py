"""Settings, read against the signature of what they are for.

A section of a configuration is `{"name": "psld", "gamma": 0.01}`: a `Table` has the constructor of that name, and keys,
types, ranges and defaults are those of its signature. A dataclass is a constructor too. Types are those that a file can
hold: int, float, bool, str, `Literal`, `tuple` and dataclasses, perhaps `| None`, perhaps `Annotated` with a range of
`sgmjax._ranges`. Of a union the members that are such types are read; the others, arrays say, are for programs.

    PROCESSES = Table("sde", {"psld": psld, "vp": vp}, default="psld")
    section = PROCESSES.read({"name": "psld", "gamma": 0.02})
    section.gamma, section.settings, section.build()
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from sgmjax._files import user_path
from sgmjax._inputs import InputError
from sgmjax._ranges import Range, check_range

PATH = object()  # marks a setting that is a path: `~` in it is the home folder
UserPath = Annotated[str, PATH]
REQUIRED = inspect.Parameter.empty
_SCALARS: dict[Any, str] = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


class ConfigError(InputError):
    """A setting that cannot work. The message is one line: the key, what is wrong, and the fix."""


class _WrongType(ConfigError):
    """A value that another type may take."""


class Settings(dict):
    """Settings by name; as a type, those of something not known here. Hashable: not to be changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted((name, repr(value)) for name, value in self.items())))


class Parameter(NamedTuple):
    hint: Any
    default: Any  # REQUIRED: there is none

    @property
    def may_be_none(self) -> bool:
        return types.NoneType in _members(self.hint)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Constructors by name.

    Attributes:
        title: the section's name in a configuration, for messages.
        constructors: by name; looked up at every use.
        default: the name that a section without one has.
        given: parameters that the caller of `Section.build` gives, and no configuration.
        also: dataclasses whose fields stand in the section beside the constructor's, for others to read.
    """

    title: str
    constructors: Mapping[str, Callable[..., Any]]
    default: str
    given: frozenset[str] = frozenset()
    also: tuple[Any, ...] = ()

    def parameters(self, name: str) -> dict[str, Parameter]:
        """What can be set of a constructor. TypeError: something whose type no configuration can hold."""
        sources, given = (self.constructors[name], *self.also), {*self.given, "name"}
        found = {key: p for source in sources for key, p in parameters(source).items() if key not in given}
        for key, parameter in found.items():
            if not _members(parameter.hint):
                raise TypeError(f"{self.title} {name!r}: annotate {key} with a type of settings (see sgmjax.spec)")
        return found

    def read(self, value: Any, path: str = "") -> Section:
        """The section of a dictionary {"name": ..., setting: value, ...}; raises as `spec.read`."""
        path = path or self.title
        value = _mapping(value, path)
        name = value.get("name", self.default)
        if not isinstance(name, str) or name not in self.constructors:
            have = ", ".join(self.constructors) + _like(name, self.constructors)
            raise ConfigError(f"{path}.name: no {self.title} called {name!r}; choose one of {have}")
        settings = {key: item for key, item in value.items() if key != "name"}
        for key in settings:
            if key in self.given and key in parameters(self.constructors[name]):
                raise ConfigError(f"{path}.{key}: follows from the data and the other settings; leave it out")
        return Section(self, name, Settings(_read_fields(self.parameters(name), settings, path, name)))

    def section(self, name: str, /, **settings: Any) -> Section:
        """As `read`."""
        return self.read({"name": name, **settings})


@dataclasses.dataclass(frozen=True, repr=False)
class Section:
    """The name of a constructor in a table and all its settings, each an attribute too: `section.gamma`. Hashable."""

    table: Table
    name: str
    settings: Settings

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings", {})
        if name not in settings:
            raise AttributeError(f"{self.__dict__.get('name')} has no setting {name!r}{_names(settings)}")
        return settings[name]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.settings.items())})"

    @property
    def constructor(self) -> Callable[..., Any]:
        return self.table.constructors[self.name]

    def build(self, **given: Any) -> Any:
        """What the constructor makes of the settings and of `given`; raises what it raises."""
        own = parameters(self.constructor)
        return self.constructor(**given, **{key: value for key, value in self.settings.items() if key in own})

    def replace(self, **changes: Any) -> Section:
        """The section with other settings; raises as `Table.read`."""
        return self.table.read({"name": self.name, **self.settings, **changes})


# -------------------------------------------------------------------------------------------------------- signatures
@functools.cache
def parameters(constructor: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a function, class or dataclass, by name."""
    plain = isinstance(constructor, type) and not dataclasses.is_dataclass(constructor)
    hints = typing.get_type_hints(constructor.__init__ if plain else constructor, include_extras=True)
    found = inspect.signature(constructor).parameters.values()
    named = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: Parameter(hints.get(p.name), p.default) for p in named}


def fields(section: Any) -> dict[str, Parameter]:
    """The settings of a `Section` or a dataclass: their types and defaults."""
    return section.table.parameters(section.name) if isinstance(section, Section) else parameters(type(section))


def _members(hint: Any) -> list[Any]:
    """The types of a union that a configuration can hold; of another type itself, if it is one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [member for argument in arguments for member in _members(argument)]
    if origin is Annotated and arguments[0] is not Section:  # whose table is among the conditions
        members = _members(arguments[0])
        return [m if m is types.NoneType else Annotated[m, *arguments[1:]] for m in members]
    if origin is tuple:
        return [hint] if all(_members(a) for a in arguments if a is not ...) else []
    known = hint in (*_SCALARS, types.NoneType, Settings) or dataclasses.is_dataclass(hint)
    return [hint] if known or origin in (Literal, Annotated) else []


# ----------------------------------------------------------------------------------------------------------- reading
def read(hint: Any, value: Any, path: str) -> Any:
    """A value as the type `hint`; integers are taken where a float is meant, lists where a tuple is.

    Raises:
        ConfigError: a wrong key, type or value, by its path ("": the whole configuration), and the fix.
    """
    members = _members(hint)
    if value is None and types.NoneType in members:
        return None
    members = [member for member in members if member is not types.NoneType]
    if len(members) == 1:
        return _read_one(members[0], value, path)
    for member in members:
        try:
            return _read_one(member, value, path)
        except _WrongType:
            pass
    raise _wrong_type(path, members, value)


def _read_one(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        hint, *conditions = arguments
        if hint is Section:
            return next(table for table in conditions if isinstance(table, Table)).read(value, path)
        value = _read_one(hint, value, path)
        for condition in conditions:
            if isinstance(condition, Range):
                check_range(value, condition, path, ConfigError)
            elif condition is PATH:
                try:
                    value = str(user_path(value, path))
                except InputError as error:
                    raise ConfigError(str(error)) from None
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(value):
            raise ConfigError(f"{path}: expected {len(kinds)} values, got {len(value)}: {value!r}")
        return tuple(read(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if dataclasses.is_dataclass(hint):
        return typing.cast(Any, hint)(**_read_fields(parameters(hint), _mapping(value, path), path))
    if hint is Settings:
        return Settings(_mapping(value, path))
    found = _scalar(hint, value, path)
    if origin is Literal:
        found = next((word for word in arguments if isinstance(value, type(word)) and value == word), None)
    if found is None:
        raise _wrong_type(path, [hint], value)
    return found


def _scalar(hint: Any, value: Any, path: str) -> Any:
    """The value as an int, float, bool or str; None if it is something else."""
    is_bool = type(value).__name__ in ("bool", "bool_")  # NumPy's too; and True is no integer here
    if hint is bool and is_bool:
        return bool(value)
    if hint is int and isinstance(value, numbers.Integral) and not is_bool:
        return operator.index(value)
    if hint is float and isinstance(value, numbers.Real) and not is_bool:
        if not math.isfinite(value):
            raise ConfigError(f"{path}: must be finite, got {value}")
        return float(value)
    return str(value) if hint is str and isinstance(value, str) else None


def _mapping(value: Any, path: str) -> Mapping[Any, Any]:
    value = to_dict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    if not isinstance(value, Mapping):
        raise _WrongType(f"{path or 'config'}: expected a dictionary of settings, got {_show(value)}")
    return value


def _read_fields(known: Mapping[str, Parameter], value: Mapping[Any, Any], path: str, owner: str = "") -> dict:
    """All settings of a section, by default where they are absent. `owner`: the name of its constructor."""
    names, of = (["name", *known], f" of {owner}") if owner else ([*known], "")
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: no such setting{of}" + (_like(key, names, prefix) or _names(names)))
    for key, (hint, default) in known.items():
        if default is REQUIRED and key not in value:
            raise ConfigError(f"{prefix}{key}: must be given for {owner or path}; set it to {_words(_members(hint))}")
    found = {}
    for key, (hint, default) in known.items():
        given = value.get(key, default)
        if isinstance(given, Mapping) and dataclasses.is_dataclass(default) and not isinstance(default, Section):
            given = to_dict(default) | dict(given)  # what is left out is this field's default, not its type's
        found[key] = read(hint, given, prefix + key)
    return found


# ------------------------------------------------------------------------------------------------------------- words
def _like(word: Any, words: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _names(words: Iterable[str]) -> str:
    return "; there are " + ", ".join(words)


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"


def _words(members: list[Any]) -> str:
    """Types in words."""
    words = []
    for member in members:
        hint = typing.get_args(member)[0] if typing.get_origin(member) is Annotated else member
        if typing.get_origin(hint) is Literal:
            words.append("one of " + ", ".join(map(str, typing.get_args(hint))))
        elif hint is bool and len(members) > 1:
            words.append("True, False")
        else:
            words.append(_SCALARS.get(hint, "a tuple" if typing.get_origin(hint) is tuple else "a dictionary"))
    return " or ".join(words)


def _wrong_type(path: str, members: list[Any], value: Any) -> ConfigError:
    choices = [word for member in members if typing.get_origin(member) is Literal for word in typing.get_args(member)]
    got = f"{value!r}{_like(value, map(str, choices))}" if choices else _show(value)
    return _WrongType(f"{path}: expected {_words(members)}, got {got}")


# ----------------------------------------------------------------------------------------------------------- writing
def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries of a section or a dataclass of them, all settings included.

    Examples:
        >>> from sgmjax import config
        >>> config.to_dict(config.from_dict({"sde": {"name": "vp"}}))["sde"]["beta_max"]
        20.0
    """
    if isinstance(config, Section):
        return {"name": config.name, **config.settings}
    return {
        field.name: to_dict(value) if dataclasses.is_dataclass(value := getattr(config, field.name)) else value
        for field in dataclasses.fields(config)
    }
