"""Which settings make a run the run that it is: what its checkpoints, and its place in a sweep, are held against."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from vitscale.recipe.check import default_group, default_lanes
from vitscale.recipe.schema import Recipe

# A run with another value of one of these would not be the same run.  (The shards are compared by their index hash, not their paths.)
ORDER = ("data.lanes", "data.group", "data.mix", "data.repeats", "global_batch", "seed", "index_hash")      # decide which sample comes when
BOUND = ("model", "objective", "lora", "data.augment", "data.label", "data.class_map", "data.multi_label", "data.exif_orientation",
         "data.image", *ORDER)


def bound_settings(recipe: Mapping[str, Any], index_hash: str) -> dict[str, Any]:
    """A recipe as plain values, for comparing: the shards stand there by what they hold, not by where they lie or how they are read.

    A recipe that an older vitscale wrote gains the defaults of keys that have come since.
    """
    resolved: dict[str, int] = {}
    with contextlib.suppress(ValidationError):      # of one with keys that have gone, every difference is shown as it is
        valid = Recipe.model_validate(recipe)
        recipe = valid.model_dump(mode="json")
        resolved = {"lanes": default_lanes(valid), "group": default_group(valid)}
    hidden = ("train", "val", "index_dir", "prepare", "workers", "prefetch", "log_samples", "num_samples", "max_bad_fraction",
              "cache_dir", "cache_bytes")
    data = {key: value for key, value in (recipe.get("data") or {}).items() if key not in hidden} | resolved
    if data.get("mix"):
        data["mix"] = [{"weight": part["weight"]} for part in data["mix"]]
    rest = {key: value for key, value in recipe.items() if key not in ("name", "runs_dir", "observe", "profile", "init")}
    return rest | {"data": data, "index_hash": index_hash}


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


def concerned(key: str, names: Iterable[str]) -> list[str]:
    """Which of the dotted `names` a dotted key lies in, or holds."""
    return [name for name in names if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.")]
