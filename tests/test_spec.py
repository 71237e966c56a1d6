"""Sections read against signatures: each type, each error, and what a caller gives beside the settings."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from flax import linen as nn

from sgmjax._ranges import Fraction, PositiveFloat, PositiveInt
from sgmjax.spec import ConfigError, Section, Settings, Table, UserPath, fields, read, to_dict


def shop(
    *,
    count: PositiveInt = 3,
    rate: PositiveFloat | np.ndarray = 0.5,
    share: Annotated[float | None, Fraction.__metadata__[0]] = None,
    on: bool = True,
    word: str = "a",
    size: Literal["small", "large"] = "small",
    level: Literal[1, 2] = 1,
    sizes: tuple[PositiveInt, ...] = (1, 2),
    pair: tuple[int, float] = (1, 2.0),
    matrix: tuple[tuple[float, ...], ...] | Any = (),
    mode: bool | Literal["half", "double"] = False,
    either: PositiveInt | tuple[int, ...] | None = None,
    place: UserPath | None = None,
    more: Settings = Settings(),
    array: Any = None,
):
    return locals()


class Counter:
    def __init__(self, start: int, *, step: int = 1):
        self.start, self.step = start, step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    depth: PositiveInt = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    maybe: Inner | None = None


class Net(nn.Module):
    features: PositiveInt = 4
    act: Literal["relu", "swish"] = "relu"
    dtype: Any = None


TABLE = Table(
    "part",
    {"shop": shop, "counter": Counter, "outer": Outer, "net": Net},
    "shop",
    frozenset({"array", "dtype", "parent"}),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    part: Annotated[Section, TABLE] = TABLE.read({})
    steps: PositiveInt = 1


RIGHT = [
    ("count", 7, 7),
    ("count", np.int64(7), 7),
    ("rate", 2, 2.0),
    ("rate", np.float32(0.25), 0.25),
    ("share", 0, 0.0),
    ("share", None, None),
    ("on", False, False),
    ("on", np.bool_(False), False),
    ("word", "b", "b"),
    ("size", "large", "large"),
    ("level", 2, 2),
    ("sizes", [3], (3,)),
    ("sizes", (), ()),
    ("pair", [3, 4], (3, 4.0)),
    ("matrix", [[1, 2], (3, 4)], ((1.0, 2.0), (3.0, 4.0))),
    ("mode", True, True),
    ("mode", "half", "half"),
    ("either", 3, 3),
    ("either", [3], (3,)),
    ("either", None, None),
    ("place", None, None),
    ("place", "/a/b", "/a/b"),
    ("more", {"snr": 0.1}, {"snr": 0.1}),
]


@pytest.mark.parametrize(("key", "given", "expected"), RIGHT, ids=[f"{k}={v!r}" for k, v, _ in RIGHT])
def test_each_type(key, given, expected):
    section = TABLE.read({"name": "shop", key: given})
    found = section.settings[key]
    assert found == expected and type(found) is type(expected) or isinstance(found, Settings)
    assert getattr(section, key) is found and section.build(array=1)[key] is found
    assert {k for k, v in section.settings.items() if v != fields(section)[k].default} <= {key}
    assert TABLE.read(json.loads(json.dumps(to_dict(section)))) == section


WRONG = [
    ("count", 5.5, "part.count: expected an integer, got 5.5 (float)"),
    ("count", True, "part.count: expected an integer, got True (bool)"),
    ("count", None, "part.count: expected an integer, got None (NoneType)"),
    ("count", 0, "part.count: must be positive, got 0"),
    ("rate", "fast", "part.rate: expected a number, got 'fast' (str)"),
    ("rate", np.ones(2), "part.rate: expected a number, got array([1., 1.]) (ndarray)"),
    ("rate", float("inf"), "part.rate: must be finite, got inf"),
    ("rate", -1, "part.rate: must be positive, got -1.0"),
    ("share", 1.0, "part.share: must be at least 0 and below 1, got 1.0"),
    ("on", 1, "part.on: expected True or False, got 1 (int)"),
    ("word", 3, "part.word: expected a string, got 3 (int)"),
    ("size", "lage", "part.size: expected one of small, large, got 'lage'; did you mean large?"),
    ("size", ["small"], "part.size: expected one of small, large, got ['small']; did you mean small?"),
    ("level", 3, "part.level: expected one of 1, 2, got 3"),
    ("sizes", "12", "part.sizes: expected a tuple, got '12' (str)"),
    ("sizes", [1, "a"], "part.sizes[1]: expected an integer, got 'a' (str)"),
    ("sizes", [1, 0], "part.sizes[1]: must be positive, got 0"),
    ("pair", [1], "part.pair: expected 2 values, got 1: [1]"),
    ("matrix", [1], "part.matrix[0]: expected a tuple, got 1 (int)"),
    ("mode", "haf", "part.mode: expected True, False or one of half, double, got 'haf'; did you mean half?"),
    ("either", "x", "part.either: expected an integer or a tuple, got 'x' (str)"),
    ("either", -1, "part.either: must be positive, got -1"),
    ("place", " ", "part.place: is empty; give a path"),
    ("more", 3, "part.more: expected a dictionary of settings, got 3 (int)"),
    ("count", "x" * 99, f"part.count: expected an integer, got '{'x' * 56}... (str)"),
    ("cuont", 3, "part.cuont: no such setting of shop; did you mean part.count?"),
    ("q", 3, "part.q: no such setting of shop; there are name, count, rate, "),
    ("array", 3, "part.array: follows from the data and the other settings; leave it out"),
    ("name", "shp", "part.name: no part called 'shp'; choose one of shop, counter, outer, net; did you mean shop?"),
    ("name", 3, "part.name: no part called 3; choose one of shop, counter, outer, net"),
    ("name", "counter", "part.start: must be given for counter; set it to an integer"),
]


@pytest.mark.parametrize(("key", "given", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_each_error_names_the_setting_and_the_fix(key, given, message):
    with pytest.raises(ConfigError) as caught:
        TABLE.read({"name": "shop", key: given})
    text = str(caught.value)
    assert "\n" not in text and (text == message or message.endswith(", ") and text.startswith(message)), text


def test_a_section_that_is_no_dictionary():
    for value in (5, "shop", None, [("count", 3)]):
        with pytest.raises(ConfigError, match=r"^part: expected a dictionary of settings, got "):
            TABLE.read(value)
    with pytest.raises(ConfigError, match=r"^config: expected a dictionary of settings, got 5 \(int\)"):
        read(Whole, 5, "")


def test_functions_classes_dataclasses_and_modules():
    counter = TABLE.section("counter", start=2)
    assert (counter.build().start, counter.build().step) == (2, 1)
    outer = TABLE.section("outer", inner={"depth": 5})
    assert outer.build() == Outer(inner=Inner(depth=5)) and outer.inner.depth == 5
    net = TABLE.section("net", features=8)
    assert net.build(dtype="float32", name="mine") == Net(features=8, dtype="float32", name="mine")
    assert set(net.settings) == {"features", "act"} and net.constructor is Net


def test_dataclasses_in_dataclasses():
    whole = read(Whole, {"part": {"count": 4}, "steps": 2}, "")
    assert whole == Whole(part=TABLE.section("shop", count=4), steps=2)
    assert to_dict(whole)["part"]["count"] == 4 and read(Whole, to_dict(whole), "") == whole
    outer = read(Outer, {"maybe": {"depth": 3}, "inner": Inner(depth=4)}, "")
    assert outer == Outer(maybe=Inner(depth=3), inner=Inner(depth=4)) and read(Outer, {"maybe": None}, "") == Outer()
    for settings, message in (
        ({"stpes": 1}, "stpes: no such setting; did you mean steps?"),
        (
            {"part": {"name": "net", "act": "elu"}},
            "part.act: expected one of relu, swish, got 'elu'; did you mean relu?",
        ),
        ({"part": 1}, "part: expected a dictionary of settings, got 1 (int)"),
    ):
        with pytest.raises(ConfigError) as caught:
            read(Whole, settings, "")
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match=r"^maybe.dpth: no such setting; did you mean maybe.depth\?$"):
        read(Outer, {"maybe": {"dpth": 1}}, "")


def test_a_section_is_frozen_hashable_and_can_be_copied():
    section = TABLE.section("shop", count=4, more={"snr": [1]})
    same = TABLE.read({"count": 4, "more": {"snr": [1]}})
    assert section == same and hash(section) == hash(same) and section != section.replace(count=5)
    assert section.replace(count=5).replace(count=4) == section
    assert (
        copy.deepcopy(Whole()).part.settings == Whole().part.settings and pickle.loads(pickle.dumps(Inner())) == Inner()
    )
    assert repr(TABLE.section("counter", start=2)) == "counter(start=2, step=1)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        section.count = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="counter has no setting 'size'; there are start, step"):
        _ = TABLE.section("counter", start=2).size
    assert getattr(section, "num_classes", None) is None and not hasattr(section, "beta_min")
    with pytest.raises(ConfigError, match="part.count: must be positive"):
        section.replace(count=0)


def test_settings_for_others_stand_beside_those_of_the_constructor():
    table = Table("part", {"net": Net}, "net", frozenset({"dtype", "parent"}), also=(Inner,))
    section = table.read({"features": 8, "depth": 3})
    assert section.settings == {"features": 8, "act": "relu", "depth": 3} and section.depth == 3
    assert section.build() == Net(features=8)
    with pytest.raises(ConfigError, match=r"part\.depth: must be positive, got 0"):
        table.read({"depth": 0})


def test_a_constructor_without_types_is_a_mistake_of_the_program():
    table = Table("part", {"bare": lambda *, x=1: x}, "bare")
    with pytest.raises(TypeError, match=r"part 'bare': annotate x with a type of settings"):
        table.read({})


def test_a_table_is_looked_up_at_every_use(monkeypatch):
    constructors = {"shop": shop}
    table = Table("part", constructors, "shop")
    monkeypatch.setitem(constructors, "counter", Counter)
    assert table.section("counter", start=1).build().start == 1
