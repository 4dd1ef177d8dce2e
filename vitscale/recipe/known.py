"""What data and weights know about themselves: taken over where a recipe is silent, compared where it speaks.

Sources, the first that knows a key counts: the run that is gone on with; for classes data.class_map, or classes.txt beside the shards; then
the weights that `init` names.  What was taken over stands in the recipe from then on, and so in the run's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.counts import plural
from vitscale.errors import RecipeError
from vitscale.recipe.beside import Unreached, class_lists, read_names
from vitscale.recipe.objectives import OBJECTIVES
from vitscale.recipe.upgrade import is_given, put, understood
from vitscale.recipe.weights import checkpoint_of, known_of, read_object

TAKEN = ("model.image", "model.channels", "model.patch", "model.classes", "data.augment.mean", "data.augment.std", "evaluate.crop")
DIGITS = tuple(map(str, range(10)))     # of the set that data.prepare packs


@dataclass(frozen=True)
class Note:
    """What was taken over, or is said otherwise elsewhere, in a sentence."""

    text: str
    differs: bool = False


def settle(values: dict[str, Any], strict: bool = False, compare: bool = True) -> list[Note]:
    """Put what is known into a recipe's plain values where they say nothing of it; what was done, and what differs.

    strict: raise Unreached where a store does not say whether a classes.txt is there, of which the model's size hangs.
    compare: also ask what the recipe says itself; a store only if `strict`.
    """
    silent = [key for key in TAKEN if not is_given(values, key)]
    if not silent and not compare:
        return []
    notes: list[Note] = []
    run = _of_run(values)
    for key in list(silent) if run is not None else ():
        if is_given(run or {}, key) and (key != "model.patch" or _family(run) == _family(values)):
            put(values, key, _at(run, key))
            silent.remove(key)
    labelled = _wants_labels(values)
    names: dict[str, tuple[str, ...]] = {}
    if labelled and ("model.classes" in silent or compare):
        try:
            names = _class_names(values, far="model.classes" in silent or strict)
        except Unreached as error:
            if strict:
                raise
            notes.append(Note(f"model.classes is not given, and {error}", differs=True))
    if names:
        where, first = next(iter(names.items()))
        _settle(values, {"model.classes": len(first)}, silent, where, notes)
        notes += _named_otherwise(names)
    init = _at(values, "init")
    known = known_of(Path(init)) if isinstance(init, str) and init and run is None else None     # of first weights alone
    if known is not None:
        alike = known.family.replace("deit", "vit") == _family(values) != "convnext"
        about = {key: value for key, value in known.values.items()
                 if (labelled or key != "model.classes") and (alike or key != "model.patch")}
        _settle(values, about, silent, f"init={init}", notes)
        if known.squeezed:
            notes.append(Note(f"init={init} was given all of an image, squeezed to a square; here its middle is cut out", differs=True))
        if known.resampling != "bicubic":
            notes.append(Note(f"images were resized by {known.resampling} for init={init}; here they are by bicubic", differs=True))
        if names and known.names and len(known.names) == len(first) == _at(values, "model.classes"):
            notes += _named_otherwise({where: first, f"init={init}": known.names})
    return notes


def known_names(values: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The names of a recipe's classes, of those files that are near; () where none are known, or not so many."""
    lists = _class_names(values, far=False) if _wants_labels(values) else {}
    first = next(iter(lists.values()), ())
    return first if len(first) == classes else ()


def _settle(values: dict[str, Any], about: Mapping[str, Any], silent: list[str], where: str, notes: list[Note]) -> None:
    taken, other = [], []
    for key, value in about.items():
        if key in silent:
            put(values, key, value)
            silent.remove(key)
            taken.append(f"{key} {_short(value)}")
        elif not _same(now := _at(values, key), value):
            other.append(f"{key} is {_short(now)}, there {_short(value)}")
    if taken:
        notes.append(Note(f"taken over from {where}, since the recipe does not say: {', '.join(taken)}"))
    if other:
        notes.append(Note(f"{where} says otherwise: {'; '.join(other)}", differs=True))


def _of_run(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that is gone on with, defaults too; None where nothing has been trained yet."""
    name, runs = _at(values, "name"), _at(values, "runs_dir") or "runs"
    if not isinstance(name, str) or not name or not isinstance(runs, str):
        return None
    try:
        facts = checkpoint_of(Path(runs) / name)
        return understood(read_object(facts)["recipe"], str(facts)).recipe.model_dump(mode="json") if facts is not None else None
    except (OSError, ValueError, KeyError, TypeError, RecipeError):     # damaged, which is said when it is to be restored
        return None


def _class_names(values: Mapping[str, Any], far: bool) -> dict[str, tuple[str, ...]]:
    """{where: names} of the classes of the training shards, and then of those for validation."""
    found: dict[str, tuple[str, ...]] = {}
    class_map = _at(values, "data.class_map")
    if isinstance(class_map, str) and (names := read_names(Path(class_map))):
        found[class_map] = names
    mix = _at(values, "data.mix")
    shards = [_at(one, "shards") for one in mix] if isinstance(mix, (list, tuple)) else []
    sets = [[one] if isinstance(one, str) else one for one in (_at(values, "data.train"), *shards, _at(values, "data.val"))]
    found |= class_lists([url for one in sets if isinstance(one, (list, tuple)) for url in one if isinstance(url, str)], far)
    if not found and _at(values, "data.prepare") == "digits":
        found["the digits"] = DIGITS
    return found


def _named_otherwise(lists: Mapping[str, tuple[str, ...]]) -> list[Note]:
    """Where one list of names is not the first of them."""
    (where, first), *rest = lists.items()
    notes = []
    for other, names in rest:
        if names == first:
            continue
        if len(names) != len(first):
            notes.append(Note(f"{other} names {plural(len(names), 'class')}, {where} {len(first)}", differs=True))
            continue
        place = next(number for number, (a, b) in enumerate(zip(first, names, strict=True)) if a != b)
        order = "the same in another order" if sorted(names) == sorted(first) else "others"
        notes.append(Note(f"the classes of {other} are not those of {where}, but {order}: class {place} is {_short(names[place])} there, "
                          f"{_short(first[place])} here", differs=True))
    return notes


def _wants_labels(values: Mapping[str, Any]) -> bool:
    name = _at(values, "objective.name")
    if isinstance(name, str) and name in OBJECTIVES and not OBJECTIVES[name].wants_labels:
        return False
    return not is_given(values, "data.label") or _at(values, "data.label") is not None


def _family(values: Mapping[str, Any] | None) -> Any:
    family = _at(values, "model.family")
    return "vit" if family in (None, "deit") else family


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _same(now: Any, value: Any) -> bool:
    if isinstance(now, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(now) == len(value) and all(_same(*pair) for pair in zip(now, value, strict=True))
    number = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (now, value))
    return abs(now - value) <= 5e-4 if number else now == value       # 0.485 and 0.48500001 are one


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:60]
