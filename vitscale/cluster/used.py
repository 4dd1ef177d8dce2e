"""settings.jsonl of a run folder: with which settings each attempt has trained, and so which of them made which steps.

A row is written when an attempt has made its first step, never before and never by one that makes none.  recipe.yaml holds the settings of
the last such attempt, under a header that names what was changed on the way.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.errors import RecipeError
from vitscale.files import patiently, read_bytes, write_atomically
from vitscale.recipe.bound import Change, changes, settings_of
from vitscale.recipe.text import write_yaml
from vitscale.runfolder import RECIPE, printable

FILE = "settings.jsonl"


@dataclass(frozen=True)
class Used:
    """What one attempt trained with."""

    attempt: int
    step: int                       # of the checkpoint that it resumed from: its own steps come after; 0: from the start
    recipe: Mapping[str, Any]       # every key, credentials hidden


@dataclass(frozen=True)
class Changed:
    """What an attempt did otherwise than the one whose steps it resumed from."""

    attempt: int
    step: int                       # the first made so
    found: Sequence[Change]

    def __str__(self) -> str:
        return f"from step {self.step} on (attempt {self.attempt}): {', '.join(map(str, self.found))}"


def used_in(folder: Path) -> list[Used]:
    """In the order of the attempts.  A row that cannot be read is passed over."""
    path, found = folder / FILE, []
    known: dict[int, Mapping[str, Any]] = {}
    for line in read_bytes(path).splitlines() if patiently(path, path.is_file) else []:
        try:
            row = json.loads(line)
            recipe = row["recipe"] if "recipe" in row else known[row["as_attempt"]]
            one = Used(int(row["attempt"]), int(row["step"]), dict(recipe))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        known[one.attempt] = one.recipe
        found.append(one)
    return found


def lasting(rows: Sequence[Used]) -> list[Used]:
    """Those whose steps stand: what an attempt made after the checkpoint that a later one resumed from was made again."""
    found: list[Used] = []
    for row in rows:
        while found and found[-1].step >= row.step:
            found.pop()
        found.append(row)
    return found


def changed_in(folder: Path) -> list[Changed]:
    """What was changed in the course of a run, of what shapes training, in the order of the steps."""
    return _changed(lasting(used_in(folder)))


def _changed(rows: Sequence[Used]) -> list[Changed]:
    told = []
    for before, after in itertools.pairwise(rows):
        try:
            found = [one for one in changes(settings_of(before.recipe), settings_of(after.recipe)) if one.kind != "free"]
        except RecipeError:             # of a version that this one does not understand
            continue
        if found:
            told.append(Changed(after.attempt, after.step + 1, found))
    return told


def note_used(folder: Path, new: Used, before: Mapping[str, Any] | None = None) -> None:
    """Write the row of an attempt that has begun to train, and its settings as recipe.yaml.  Only for the holder of the run folder.

    before: the settings of the checkpoint that it resumed from, for a run whose earlier attempts are not known here.  Raises OSError.
    """
    rows = [one for one in used_in(folder) if one.attempt != new.attempt]
    if not rows and before is not None:
        rows = [Used(0, 0, before)]
    rows.append(new)
    lines: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        same = number > 0 and rows[number - 1].recipe == row.recipe
        held = {"as_attempt": rows[number - 1].attempt} if same else {"recipe": row.recipe}
        lines.append({"attempt": row.attempt, "step": row.step} | held)
    write_atomically(folder / FILE, "".join(json.dumps(line) + "\n" for line in lines))
    write_recipe(folder, new.recipe, _changed(lasting(rows)))


def write_recipe(folder: Path, recipe: Mapping[str, Any], changed: Sequence[Changed] = ()) -> None:
    """recipe.yaml, under a header that says what of it did not hold from the start.  Raises OSError."""
    head = ""
    if changed:
        lines = [f"#   {printable(str(one))}" for one in changed]
        head = "\n".join([f"# Not all steps were made with these settings; {FILE} holds those of each attempt.  Changed:", *lines, "", ""])
    write_atomically(folder / RECIPE, head + write_yaml(dict(recipe)))
