"""Recipes of older versions of vitscale in today's keys: one table for recipe files, overrides, sweeps, saved runs and checkpoints."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from vitscale.errors import RecipeError
from vitscale.recipe.schema import CHOICES, FORMAT, Recipe


@dataclass(frozen=True)
class Upgrade:
    """What the format `to` has changed in the one before it; all keys are dotted."""

    to: int
    renamed: Mapping[str, str] = field(default_factory=dict)    # key -> its new name or place
    retired: Mapping[str, str] = field(default_factory=dict)    # key -> what to do instead, for who still gives it
    added: Mapping[str, Any] = field(default_factory=dict)      # key -> the value that does what was done without it, if not its default


UPGRADES: tuple[Upgrade, ...] = ()      # in order; the last one's `to` is schema.FORMAT.  0.1.0 wrote format 1, without saying so


def upgrade(values: Mapping[str, Any], source: str, saved: bool = False) -> tuple[dict[str, Any], list[str]]:
    """(plain values of a recipe in today's keys, what was done to them in words).  `source` names them in errors.

    `saved`: a run wrote them, every key there was; then those that have come since get what does as was done without them, as they do in
    a file that states its format.  Keys that no format has known stay as they are, for others to refuse or to pass over.
    Raises RecipeError for a later version's format, and where a key is given by both its names.
    """
    states_format = saved or "format" in values
    found, notes = copy.deepcopy(dict(values)), list[str]()
    since = found.pop("format", 1)
    latest = max((one.to for one in UPGRADES), default=FORMAT)
    if isinstance(since, bool) or not isinstance(since, int) or since < 1:
        raise RecipeError(f"{source}: 1 mistake\n  format  wants a whole number from 1 to {latest}, got {since!r}; a new recipe needs none")
    if since > latest:
        raise RecipeError(f"{source}: was written by a later version of vitscale (format {since}; this one reads up to {latest}); "
                          "`pip install --upgrade vitscale`")
    for step in UPGRADES:
        if step.to <= since:
            continue
        for old, new in step.renamed.items():
            if not is_given(found, old):
                continue
            if is_given(found, new):
                raise RecipeError(f"{source}: 1 mistake\n  {old}  is the old name of {new}, which is given too; leave it out")
            put(found, new, _take_out(found, old))
            notes.append(f"{old} is now {new}")
        for old, instead in step.retired.items():
            if is_given(found, old):
                notes.append(f"{old} ({_take_out(found, old)}) is no key any more: {instead}")
        for key, value in step.added.items() if states_format else ():
            if not is_given(found, key) and _is_section(found, key.rpartition(".")[0]):
                put(found, key, value)
    return {**found, "format": latest}, notes


def _take_out(values: dict[str, Any], key: str) -> Any:
    """take(), also of a section that nothing is left in."""
    value, section = take(values, key), key.rpartition(".")[0]
    while section and values and not _at(values, section):
        take(values, section)
        section = section.rpartition(".")[0]
    return value


def renamed_to(key: str) -> str | None:
    """What a dotted key of an older format is called today; None if it is none that was renamed."""
    new = key
    for step in UPGRADES:
        new = step.renamed.get(new, new)
    return None if new == key else new


@dataclass(frozen=True)
class Understood:
    """A saved recipe as far as this version understands it."""

    recipe: Recipe
    unknown: Mapping[str, Any]      # dotted key -> value: keys that the schema does not know, or values that it does not allow any more
    notes: tuple[str, ...] = ()     # what has become of keys that were renamed or retired


def understood(values: Mapping[str, Any], source: str) -> Understood:
    """A recipe that some version of vitscale has saved, with every default filled in.  Raises RecipeError for what is none."""
    found, notes = upgrade(values, source, saved=True)
    unknown: dict[str, Any] = {}
    while True:
        try:
            return Understood(Recipe.model_validate(found), unknown, tuple(notes))
        except ValidationError as error:
            keys = [key for item in error.errors() if item["type"] != "missing" and is_given(found, key := dotted(item["loc"]))]
            if not keys or any(item["type"] == "missing" for item in error.errors()):
                first = error.errors()[0]
                raise RecipeError(f"{source}: is no recipe of this version of vitscale ({dotted(first['loc'])}: {first['msg']})") from None
            unknown |= {key: take(found, key) for key in keys if is_given(found, key)}
        except (TypeError, AttributeError, KeyError, RecursionError) as error:      # of a check that trusts a section to be one
            raise RecipeError(f"{source}: is no recipe of this version of vitscale ({error})") from None


def listed(unknown: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} ({value})" for key, value in unknown.items())


def of_model(unknown: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the unknown keys without which the model may be another one: keys of the model or its adapters, and not switched off."""
    return {key: value for key, value in unknown.items() if key.partition(".")[0] in ("model", "lora") and not is_off(value)}


def is_off(value: Any) -> bool:
    """Whether a setting that is not known here does nothing, as far as its value tells."""
    return value is None or value is False or value in (0, "", "none", [], {})


def dotted(loc: tuple[Any, ...]) -> str:
    """Where pydantic found a mistake, without the name of the section that it chose: ("model", "vit", "width") -> model.width."""
    if len(loc) > 1 and loc[0] in CHOICES and loc[1] in CHOICES[str(loc[0])][1]:
        loc = (loc[0], *loc[2:])
    place = next((at for at, part in enumerate(loc) if isinstance(part, int)), len(loc))       # a list stands or falls as a whole
    return ".".join(str(part) for part in loc[:place])


def is_given(values: Mapping[str, Any], key: str) -> bool:
    inner: Any = values
    for part in key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True


def take(values: dict[str, Any], key: str) -> Any:
    """Remove a dotted key that is given; returns its value."""
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    return values.pop(last)


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        values[part] = inner = inner if isinstance(inner, dict) else {}
        values = inner
    values[last] = value


def _is_section(values: Mapping[str, Any], key: str) -> bool:
    """Whether there is a section at a dotted key, or at the top ("")."""
    return isinstance(_at(values, key) if key else values, Mapping)


def _at(values: Mapping[str, Any], key: str) -> Any:
    inner: Any = values
    for part in key.split("."):
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    return inner
