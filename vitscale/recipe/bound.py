"""Whether a recipe still describes the run that was begun with another: their settings side by side, and what of that may not change."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.errors import CheckpointError, RecipeError
from vitscale.recipe.check import default_group, default_lanes
from vitscale.recipe.kinds import Kind, kind_of
from vitscale.recipe.redact import redacted
from vitscale.recipe.upgrade import is_off, put, understood

log = logging.getLogger(__name__)
BRANCH = "branch.json"              # {step, trunk, recipe} in a run's folder: the checkpoint of that step is the trunk's, to be gone on
                                    # from with this recipe
GONE = "no key of this version"     # stands for the value of one where it is not known
_UNKNOWN = " (unknown)"             # behind such a key among settings, where a section of today's may have its name


@dataclass(frozen=True)
class Change:
    """One setting that is another than it was."""

    key: str        # dotted
    old: Any
    new: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def settings_of(recipe: Mapping[str, Any], index_hash: str | None = None, source: str = "recipe") -> dict[str, Any]:
    """A recipe, today's or one that another version saved, as plain values for comparing: every default filled in, credentials hidden; the
    sets of a mixture by their weights, and the shards by `index_hash`, which says what they hold and not where they lie.

    What today's schema does not know stays, if it did anything.  Raises RecipeError for what is no recipe.
    """
    read = understood(recipe, source)
    found: dict[str, Any] = redacted(read.recipe.model_dump(mode="json", exclude={"format"}))
    found["data"] |= {"lanes": default_lanes(read.recipe), "group": default_group(read.recipe),
                      "mix": [{"weight": part["weight"]} for part in found["data"]["mix"]]}
    for key, value in read.unknown.items():
        if not is_off(value):
            put(found, key + _UNKNOWN, redacted(value))
    return found if index_hash is None else found | {"index_hash": index_hash}


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two settings_of(), in the order of the recipe."""
    found = []
    for marked, old, new in differences(saved, now):
        key = marked.removesuffix(_UNKNOWN)
        if key != marked:
            old, new = (GONE if one is None else one for one in (old, new))
        found.append(Change(key, old, new, kind_of(key, now)))
    return found


def refuse_changes(found: Sequence[Change], since: str, remedy: str, accept: bool, done: bool = False) -> None:
    """Raises CheckpointError, naming every key with its old and new value, for changes that shape training, unless `accept`; for those of
    the order of samples always.  The others are the user's right.

    `since`: what the run stands at.  `remedy`: weights that another run may begin with, as init takes them; "": there are none.
    `done`: its own settings leave nothing to train.
    """
    order = [change for change in found if change.kind == "order"]
    training = [change for change in found if change.kind == "training"]
    if order or (training and not accept):
        listed = "\n".join(f"  {change}" for change in [*training, *order])
        anew = f"start another run with them: name=NEW{f' (init={remedy} gives it these weights)' if remedy else ''}"
        ways = f"undo this, {anew}, or resume this run all the same: --accept-changes"
        ways += " and a longer duration, since it is done" if done else ""
        if order:       # the position in one order means nothing in another
            ways = (f"undo this, or {anew}; --accept-changes cannot help, since what a run began with, and which sample comes when, stays "
                    f"({', '.join(change.key for change in order)})")
        stands = f"{since} (the run is done)" if done else since
        raise CheckpointError(f"{stands}: the recipe does not describe this run any more:\n{listed}\n{ways}")


def tell_changes(found: Sequence[Change], since: str) -> None:
    """Say in the log what the run continues with from here."""
    for change in found:
        if change.kind != "free":
            log.warning("accepted change since %s: %s", since, change)
        elif change.key not in ("name", "runs_dir"):
            log.info("changed since %s: %s", since, change)


def read_settings(recipe: Mapping[str, Any], index_hash: str | None, source: str) -> dict[str, Any]:
    """settings_of() of what a checkpoint or a run folder holds.  Raises CheckpointError."""
    try:
        return settings_of(recipe, index_hash, source)
    except RecipeError as error:
        raise CheckpointError(f"{error}; resume with the version that wrote it, or start anew under another name (name=NEW)") from None


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, saved value, value now) of all that differs, in the order of the recipe."""
    found: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys([*now, *saved]):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [(f"{key}.{inner}", before, after) for inner, before, after in differences(old, new)]
        elif old != new:
            found.append((key, old, new))
    return found
