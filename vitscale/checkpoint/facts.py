"""What a checkpoint says of its moment besides tensors: run.json, held to the form that it was written in before anything believes it."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import vitscale
from vitscale.errors import CheckpointError, StorageError, said
from vitscale.files import read_regular
from vitscale.recipe import Recipe

FORMAT = 1
FACTS = "run.json"
MAX_BYTES = 256 * 2**20     # of a JSON file: a manifest of ten thousand ranks is 2 MiB
MAX_DEPTH = 64              # of one in another: a recipe has 5, and what is walked later must not run out of stack


class Damaged(CheckpointError):
    """A file of a checkpoint is not what vitscale wrote, whatever the recipe says."""


@dataclass(frozen=True)
class RunFacts:
    """Everything about a moment of a run that is not a tensor."""

    step: int                       # batches passed; where the data stands is data["position"]
    data: dict[str, Any]            # the stream's state: index hash, seed, position, skips, ...
    recipe: dict[str, Any]          # resolved
    engine: str
    world_size: int
    best: dict[str, Any] | None = None      # {"step", "metric", "value"} of the best evaluation so far
    stopping: dict[str, Any] = field(default_factory=dict)     # early stopping's memory
    guard: dict[str, Any] = field(default_factory=dict)        # the losses against which the next ones are judged
    owes_evaluation: bool = False       # the evaluation of this step was left when the run was asked to stop
    versions: dict[str, str] = field(default_factory=dict)
    frozen: str | None = None           # sha256 of the weights of the frozen network that the objective asks


def read_facts(checkpoint: Path) -> RunFacts:
    """Raises CheckpointError for another version's, Damaged naming the file and the key that is wrong."""
    path = checkpoint / FACTS
    values = read_object(path)
    number = values.pop("format", None)
    if type(number) is not int:
        raise Damaged(f"{path}: is unreadable (format is {short(number)})")
    if number != FORMAT:
        raise CheckpointError(f"{checkpoint}: was written by another version of vitscale ({FACTS} has format {number}, this one reads "
                              f"{FORMAT})")
    try:
        facts = RunFacts(**values)
    except TypeError as error:          # a key too many, or one is missing
        raise Damaged(f"{path}: is unreadable ({str(error).removeprefix('Facts.__init__() ')})") from None
    if wrong := next(_wrong_in(facts), None):
        raise Damaged(f"{path}: is unreadable ({wrong})")
    return facts


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a regular file, each of its keys given once.  Raises Damaged naming the file and what is wrong, StorageError where
    it is not the file that fails."""
    try:
        value = json.loads(read_regular(path, MAX_BYTES), object_pairs_hook=_once)
    except FileNotFoundError:
        raise Damaged(f"{path}: is missing") from None
    except StorageError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise Damaged(f"{path}: is unreadable ({said(error)})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path}: is unreadable (holds {short(value)}, wants a JSON object)")
    if _is_deeper(value, MAX_DEPTH):
        raise Damaged(f"{path}: is unreadable (nested deeper than {MAX_DEPTH})")
    return value


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return False
    return True


def _whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and not math.isnan(value)


def _ranges(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 and all(map(_whole, one)) and one[0] <= one[1]
                                           for one in value)


def _named(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, kind) for inner in value.values())


# Dotted key -> (what it is to be, in words; the test).  A key with "?" may be absent.
_Rule = tuple[str, Callable[[Any], bool]]
_WHOLE: _Rule = "a whole number of 0 or more", _whole
_OBJECT: _Rule = "an object", lambda value: isinstance(value, dict)
_TEXT: _Rule = "text", lambda value: isinstance(value, str)
_NUMBER: _Rule = "a number", _number
_RULES: dict[str, _Rule] = {
    "step": _WHOLE, "data": _OBJECT, "recipe": _OBJECT, "engine": _TEXT,
    "world_size": ("a whole number of 1 or more", lambda value: _whole(value, 1)),
    "best": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "stopping": _OBJECT, "guard": _OBJECT, "owes_evaluation": ("true or false", lambda value: isinstance(value, bool)),
    "versions": ("an object of texts", lambda value: _named(value, str)),
    "frozen": ("a text or null", lambda value: value is None or isinstance(value, str)),
    "data.index_hash?": _TEXT, "data.position?": _WHOLE, "data.skips?": ("a list of ranges [start, end)", _ranges),
    "data.seed?": ("a whole number", lambda value: type(value) is int), "data.global_batch?": _WHOLE, "data.lanes?": _WHOLE,
    "data.group?": _WHOLE, "data.repeats?": _WHOLE,
    "data.set_lanes?": ("a list of whole numbers", lambda value: isinstance(value, list) and all(map(_whole, value))),
    "best.step": _WHOLE, "best.metric": _TEXT, "best.value": _NUMBER,
    "stopping.metric?": _TEXT, "stopping.value?": _NUMBER, "stopping.evaluations?": _WHOLE,
    "guard.losses?": ("a list of finite numbers", lambda value: isinstance(value, list)
                      and all(_number(loss) and math.isfinite(loss) for loss in value)),
    "guard.scale?": ("a finite number or null", lambda value: value is None or (_number(value) and math.isfinite(value))),
}


def _wrong_in(facts: RunFacts) -> Iterator[str]:
    for key, (wanted, is_right) in _RULES.items():
        section, _, name = key.rstrip("?").rpartition(".")
        holder = getattr(facts, section) if section else vars(facts)
        if holder is None or (key.endswith("?") and name not in holder):
            continue
        if name not in holder:
            yield f"{section}.{name} is missing"
        elif not is_right(holder[name]):
            yield f"{key.rstrip('?')} is {short(holder[name])}, wants to be {wanted}"
    yield from _wrong_in_recipe(facts.recipe, facts.versions.get("vitscale") == vitscale.__version__)


def _wrong_in_recipe(recipe: Mapping[str, Any], of_this_version: bool) -> Iterator[str]:
    """Another version's recipe may have other keys and values; but a section is a section, and this version's has the types of its keys."""
    try:
        Recipe.model_validate(recipe)
    except ValidationError as error:
        for one in error.errors():
            if (len(one["loc"]) <= 1 and one["type"] in ("model_type", "model_attributes_type", "dict_type")) or (
                    of_this_version and one["type"].endswith(("_type", "_parsing"))):
                yield f"recipe.{'.'.join(map(str, one['loc']))}: {one['msg']}"
    except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:      # of a check that trusts a section to be one
        yield f"recipe is not one ({said(error)})"
