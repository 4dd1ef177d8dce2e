"""Whether a run may be resumed with the recipe that it is given, asked before anything of the run is touched.  Needs no torch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.cluster.state import last_word
from vitscale.errors import EXIT_DONE, CheckpointError, RecipeError, StorageError
from vitscale.files import names_in
from vitscale.recipe import Recipe
from vitscale.recipe.bound import BRANCH, changes, read_settings, refuse_changes, settings_of
from vitscale.recipe.redact import redacted
from vitscale.recipe.text import read_yaml
from vitscale.runfolder import CHECKPOINTS, RECIPE, holder_of, read_object, run_folder

FACTS = "run.json"          # of a checkpoint: vitscale/checkpoint/facts.py


@dataclass(frozen=True)
class Stand:
    """What there is of a run, and the settings that it was made with."""

    place: Path                     # the checkpoint, or recipe.yaml where there is none any more
    recipe: Mapping[str, Any]       # as it was saved
    step: int
    images: int
    index_hash: str | None


def stand_of(folder: Path) -> Stand | None:
    """By the newest checkpoint that says so; None: nothing has been trained that could be gone on from.  Verifies no checkpoint."""
    names = [name for name in names_in(folder / CHECKPOINTS) if name.startswith("step-") and name[5:].isdecimal() and name.isascii()]
    for name in sorted(names, key=lambda name: int(name[5:]), reverse=True):
        place = folder / CHECKPOINTS / name
        told = read_object(place / FACTS)
        recipe, data = told.get("recipe"), told.get("data")
        if isinstance(recipe, dict) and isinstance(data, dict) and type(step := told.get("step")) is int:
            images, shards = data.get("position"), data.get("index_hash")
            return Stand(place, meant(folder, step, recipe), step, images if type(images) is int else 0,
                         shards if isinstance(shards, str) else None)
    return None


def meant(folder: Path, step: int, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that a checkpoint binds the run in `folder` to: those that it was written with, or, of one that a sweep took from
    another run, those that the branch is to have."""
    branch = read_object(folder / BRANCH)
    return branch["recipe"] if branch.get("step") == step and isinstance(branch.get("recipe"), dict) else recipe


def look(recipe: Recipe, accept: bool, index_hash: str | None = None, total: int | None = None) -> str | None:
    """None: the run may begin, or go on.  Else it is done already, in a sentence, and nothing is to be touched.

    index_hash, total: of the shards, and images after which the recipe has trained, where they are known.  Raises CheckpointError for
    settings that are not those of the run, unless `accept`, and where they leave nothing to train.
    """
    folder = run_folder(recipe)
    outcome = last_word(folder, holder_of(folder, time.time()))
    done = outcome.get("exit_code") == EXIT_DONE
    stand = stand_of(folder) or (_recorded(folder, outcome) if done else None)
    if stand is None:
        return _done(folder, outcome) if done else None
    known = stand.index_hash if index_hash is not None else None
    found = changes(read_settings(stand.recipe, known, str(stand.place)),
                    settings_of(recipe.model_dump(mode="json"), index_hash if known is not None else None))
    shaping = [change for change in found if change.kind != "free"]
    if done and not shaping:
        elsewhere = known is None and stand.index_hash is not None and _shards(stand.recipe) != _shards(recipe.model_dump(mode="json"))
        return None if elsewhere else _done(folder, outcome)        # whether they are the same shards, another look will tell
    refuse_changes(shaping, str(stand.place), str(stand.place) if stand.place.name != RECIPE else "", accept, done)
    if shaping and total is not None and stand.images >= total:
        listed = "\n".join(f"  {change}" for change in shaping)
        raise CheckpointError(f"{stand.place}: the run has seen {stand.images} images, and with these settings is over after {total}, so "
                              f"that nothing would be trained with what is new:\n{listed}\ngive a longer duration, or name=NEW")
    return None


def _shards(recipe: Mapping[str, Any]) -> Any:
    """Where a recipe's training shards lie."""
    data = recipe.get("data") or {}
    return redacted([data.get("train"), [one.get("shards") for one in data.get("mix") or ()]])


def _done(folder: Path, outcome: Mapping[str, Any]) -> str:
    step = f" at step {outcome['step']}" if type(outcome.get("step")) is int else ""
    return f"{folder} is done{step} ({outcome.get('reason', '')}): nothing is left to train; name=NEW begins another run"


def _recorded(folder: Path, outcome: Mapping[str, Any]) -> Stand | None:
    """By what a run recorded whose checkpoints are gone."""
    path = folder / RECIPE
    try:
        recipe = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except StorageError:
        raise
    except (OSError, ValueError, RecipeError):
        return None
    step, images = (value if type(value := outcome.get(key)) is int else 0 for key in ("step", "images"))
    return Stand(path, recipe, step, images, None) if isinstance(recipe, dict) else None
