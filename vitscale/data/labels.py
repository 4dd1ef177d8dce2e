"""The class number of a sample, or its several, and the check before training that labels are what the recipe says."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.data.bad import BadSample
from vitscale.data.index import SetIndex
from vitscale.data.reader import ShardReader
from vitscale.errors import DataError


@dataclass(frozen=True)
class LabelRule:
    """Where a sample's class stands, and how it is written."""

    member: str                             # extension
    path: tuple[str, ...] = ()              # of a JSON member: keys, or places in lists
    names: Mapping[str, int] | None = None  # class number of each name; None: classes are written as numbers
    several: bool = False                   # a sample has any number of classes, also none

    @classmethod
    def of(cls, label: str, class_map: str | None = None, multi_label: bool = False) -> "LabelRule":
        """`data.label` (`cls`, `json:annotation.class`), `data.class_map` and `data.multi_label`.

        Raises DataError for a class map that cannot be used.
        """
        names = read_class_map(Path(class_map)) if class_map else None
        if label.startswith("json:"):
            return cls("json", tuple(label.removeprefix("json:").split(".")), names, multi_label)
        return cls(label, (), names, multi_label)


def read_class_map(path: Path) -> dict[str, int]:
    """A name on each line; the first is class 0.  Raises DataError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.class_map: {path} cannot be read ({error})") from None
    while lines and not lines[-1]:
        lines.pop()
    names: dict[str, int] = {}
    for number, name in enumerate(lines):
        if not name or name in names:
            why = f"{name!r} is there already, as class {names[name]}" if name else "it is empty"
            raise DataError(f"data.class_map: {path}, line {number + 1}: {why}; give each class a line with a name of its own")
        names[name] = number
    if not names:
        raise DataError(f"data.class_map: {path} holds no names")
    return names


_WHOLE = re.compile(rb"(?:\xef\xbb\xbf)?\s*([+-]?[0-9]+)\s*")      # after the mark that some editors begin UTF-8 with


def parse_label(raw: bytes) -> int:
    """`b"12\\n"` -> 12.  Raises BadSample("label"), also for what Python alone takes for a number: 1_0."""
    found = _WHOLE.fullmatch(raw) if len(raw) < 64 else None
    if found is None:
        raise BadSample("label", f"its label is no whole number: {raw[:40]!r}")
    return int(found[1])


def _parts(value: Any, rule: LabelRule) -> list[Any]:
    """A sample's label as it is written; if it may have several, each of them: of a JSON list, of numbers between spaces or commas, or of
    names each on a line of its own (they may hold spaces and commas)."""
    if not rule.several:
        return [value]
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig", "replace")
        if rule.names is not None:
            return [line.strip() for line in value.splitlines() if line.strip()]
    if isinstance(value, str) and rule.names is None:
        return [part for part in re.split(r"[\s,]+", value) if part]
    return value if isinstance(value, list) else [value]


def _number(value: Any) -> int:
    """A class number as it is written.  Raises BadSample("label")."""
    if isinstance(value, (bytes, str)):
        return parse_label(value if isinstance(value, bytes) else value.encode())
    if type(value) is not int:              # true is an int to Python
        raise BadSample("label", f"its label is no whole number: {str(value)[:40]}")
    return value


def _once(classes: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(classes))


def classes_in(raw: bytes, rule: LabelRule) -> list[int]:
    """The class numbers that a label member's bytes hold, one unless rule.several, for who has no index; of any size.

    Raises BadSample("label").
    """
    value: Any = raw
    try:
        if rule.path:
            value = json.loads(raw)
            for key in rule.path:
                value = value[int(key) if isinstance(value, list) else key]
        parts = _parts(value, rule)
        if rule.names is not None:
            return _once(rule.names[part.decode("utf-8-sig").strip() if isinstance(part, bytes) else part] for part in parts)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        where = f"at '{'.'.join(rule.path)}' of" if rule.path else "as"
        raise BadSample("label", f"no class stands {where} its label: {raw[:40]!r}") from None
    return _once(_number(part) for part in parts)


def labels_of(index: SetIndex, reader: ShardReader, shard: int, number: int, rule: LabelRule, classes: int) -> list[int]:
    """The classes of one sample, each 0 to classes - 1, in the order they are written: one, or with rule.several any number.

    Raises BadSample("label") for what cannot be understood; DataError for a member or field that is missing, a name that the class map
    does not know, and a class that the model does not have, since more than one sample will be like that.
    """
    members = {ext: (offset, size) for ext, offset, size in index.shard(shard).members(number)}
    if rule.member not in members:
        raise no_label(index, shard, number, rule.member, list(members))
    raw = reader.pread(shard, *members[rule.member])
    value = _field(index, shard, number, rule, raw) if rule.path else raw
    found = []
    for part in _parts(value, rule):
        one = _number(part) if rule.names is None else _by_name(index, shard, number, rule.names, part)
        if not 0 <= one < classes:
            raise outside(index, shard, number, one, classes)
        found.append(one)
    return _once(found)


def _by_name(index: SetIndex, shard: int, number: int, names: Mapping[str, int], value: Any) -> int:
    """The class number of a name."""
    name = value.decode("utf-8-sig", "replace").strip() if isinstance(value, bytes) else value
    if not isinstance(name, str):
        raise BadSample("label", f"its label is no name: {str(name)[:40]}")
    if name not in names:
        raise DataError(f"{named(index, shard, number)} has the label {name[:80]!r}, which is no class of data.class_map "
                        f"({len(names)} names); add it, or give another class map")
    return names[name]


def _field(index: SetIndex, shard: int, number: int, rule: LabelRule, raw: bytes) -> Any:
    """What stands at the rule's path in a JSON text."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadSample("label", f"its {rule.member} member is no JSON: {raw[:40]!r}") from None
    for key in rule.path:
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            has = f"keys {', '.join(map(str, value))[:80]}" if isinstance(value, dict) else f"{str(value)[:40]} there"
            raise DataError(f"{named(index, shard, number)} has no '{'.'.join(rule.path)}' in its {rule.member} (it has {has}, "
                            f"not '{key}'); name the field with data.label, such as json:annotation.class")
    return value


def named(index: SetIndex, shard: int, number: int) -> str:
    """A sample, for messages."""
    return f"{index.paths[shard]}: sample '{index.key_of(shard, number)}'"


def no_label(index: SetIndex, shard: int, number: int, label: str, extensions: list[str]) -> DataError:
    """The error for a sample without its label member."""
    return DataError(
        f"{index.paths[shard]}: sample '{index.key_of(shard, number)}' has no '{label}' member (it has {', '.join(extensions)}); "
        + (index.apart(shard) or "name the label field with data.label, or, where no sample has one, pack the images with their labels")
    )


def outside(index: SetIndex, shard: int, number: int, value: int, classes: int) -> DataError:
    """The error for a label that the model has no class for."""
    return DataError(
        f"{index.paths[shard]}: sample '{index.key_of(shard, number)}' has the label {value}, but model.classes is {classes} "
        f"(labels 0 to {classes - 1}); set model.classes to the number of classes, or name another label field with data.label"
    )


def check_labels(
    index: SetIndex, label: str, classes: int, limit: int = 256, class_map: str | None = None, multi_label: bool = False,
) -> int:
    """Read up to `limit` labels, spread evenly over the shards and inside them; -> how many were read.

    Raises DataError for the first sample whose `label` is missing, is no whole number (or no name of the class map), or lies outside
    [0, classes).  A run still meets every label: this only finds early what is wrong with most of them.
    """
    rule, reader = LabelRule.of(label, class_map, multi_label), ShardReader(index)
    done = 0
    for shard, number in index.spread(limit):
        try:
            labels_of(index, reader, shard, number, rule, classes)
        except BadSample as error:
            wanted = "the name of a class as text" if rule.names else "the class as a whole number"
            if rule.several:
                wanted = "a list of " + ("names of classes" if rule.names else "whole numbers")
            hint = "" if rule.several else ", or a list of them with data.multi_label"
            raise DataError(f"{named(index, shard, number)}: {error}; wanted is {wanted}{hint}") from None
        done += 1
    reader.close()
    return done
