"""Recipes of other versions: renamed, retired, added and unknown keys in files, overrides, sweeps, saved runs and checkpoints."""

import copy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vitscale.errors import RecipeError
from vitscale.recipe import Recipe, load_recipe, upgrade
from vitscale.recipe.bound import GONE, changes, settings_of
from vitscale.recipe.load import check_recipe
from vitscale.recipe.text import write_yaml
from vitscale.recipe.upgrade import Upgrade, is_given, is_off, of_model, put, take, understood
from vitscale.scaling.expand import expand
from vitscale.scaling.sweep import load_sweep

TABLE = (
    Upgrade(2, renamed={"optim.rate": "optim.learning_rate", "batch": "global_batch"},
            retired={"observe.beep": "look at the page"}, added={"data.augment.mix_prob": 0.25, "ema.decay": 0.5}),
    Upgrade(3, renamed={"optim.learning_rate": "optim.lr", "loader.threads": "data.workers"}, added={"evaluate.crop": 0.75}),
)
PLAIN: dict[str, Any] = load_recipe("quickstart").model_dump(mode="json")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "UPGRADES", TABLE)


def keys_of(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted keys of a section and of those that it holds whatever they are, in the recipe PLAIN."""
    for name, field in section.model_fields.items():
        inner = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) else None
        chosen = {"model": "Vit", "objective": "Classification"}.get(name) if not above else None
        if chosen:
            options = [one for part in typing.get_args(field.annotation) for one in (part, *typing.get_args(part))]
            inner = next(one for one in options if isinstance(one, type) and one.__name__ == chosen)
        if inner is None:
            yield above + name
        else:
            yield from keys_of(inner, f"{above}{name}.")


def moved(values: dict[str, Any], *pairs: tuple[str, str]) -> dict[str, Any]:
    found = copy.deepcopy(values)
    for old, new in pairs:
        put(found, new, take(found, old))
    return found


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("since", [1, 2])
def test_renamed_keys_are_understood_wherever_they_stand(since: int, tmp_path: Path) -> None:
    """In a file, as an override, in what a run saved, in a sweep."""
    old_lr = "optim.rate" if since == 1 else "optim.learning_rate"
    pairs = [("optim.lr", old_lr), ("data.workers", "loader.threads"), *([("global_batch", "batch")] if since == 1 else [])]
    old = moved({key: value for key, value in PLAIN.items() if key != "format"}, *pairs)
    told: list[Any] = []
    assert check_recipe(old, "x.yaml", tell=told.append).model_dump(mode="json") == {**PLAIN, "format": 3}
    assert any(note.text.startswith(f"x.yaml: {old_lr} is now optim.") for note in told)
    assert load_recipe("quickstart", [f"{old_lr}=7", "loader.threads=3"]).data.workers == 3
    saved = {**old, "format": since, "evaluate": {key: value for key, value in old["evaluate"].items() if key != "crop"}}
    read = understood(saved, "run.json")
    assert read.unknown == {}
    assert read.recipe.model_dump(mode="json") == {**PLAIN, "format": 3, "evaluate": {**PLAIN["evaluate"], "crop": 0.75}}     # as then
    (tmp_path / "old.yaml").write_text(write_yaml(old))
    for key in (old_lr, "optim.lr"):        # what the command line says counts, by whatever name
        assert load_recipe(tmp_path / "old.yaml", [f"{key}=0.5"]).optim.lr == 0.5
    (tmp_path / "sweep.yaml").write_text(write_yaml({
        "name": "s", "base": str(tmp_path / "old.yaml"), "mode": "grid", "axes": {"samples": [960]}, "set": {old_lr: 0.125},
        "sizes": {"widths": [8], "head_width": 8}}))
    asked, source = load_sweep(str(tmp_path / "sweep.yaml"))
    assert {(run.recipe.optim.lr, run.recipe.data.workers) for run in expand(asked, source, tmp_path / "out").runs} == {(0.125, 1)}


@pytest.mark.usefixtures("table")
def test_a_key_that_has_come_since_takes_what_was_done_without_it() -> None:
    """In what a run saved, and in a file that states its format; a new recipe has today's default."""
    old = copy.deepcopy(PLAIN)
    take(old, "data.augment.mix_prob")
    take(old, "evaluate.crop")
    assert understood({**old, "format": 1}, "run.json").recipe.data.augment.mix_prob == 0.25
    assert understood({**old, "format": 2}, "run.json").recipe.data.augment.mix_prob == 1.0
    assert understood(old, "run.json").recipe.ema is None           # a section that is off is not switched on
    assert check_recipe({**old, "format": 1}, "x.yaml").evaluate.crop == 0.75
    assert check_recipe({key: value for key, value in old.items() if key != "format"}, "x.yaml").evaluate.crop == 0.875
    now = {**PLAIN, "format": 3}
    now = put_all(now, {"data.augment.mix_prob": 0.25, "evaluate.crop": 0.75})
    assert changes(settings_of({**old, "format": 1}), settings_of(now)) == []


def put_all(values: dict[str, Any], pairs: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(values)
    for key, value in pairs.items():
        put(found, key, value)
    return found


@pytest.mark.usefixtures("table")
def test_what_is_wrong_is_said_with_the_new_name() -> None:
    with pytest.raises(RecipeError, match=r"optim\.rate  is the old name of optim\.learning_rate, which is given too"):
        check_recipe(put_all({**PLAIN, "format": 1}, {"optim.rate": 1.0, "optim.learning_rate": 1.0}), "x.yaml")
    with pytest.raises(RecipeError, match=r"optim\.rate +is called optim\.lr since format"):
        check_recipe(put_all({**PLAIN, "format": 3}, {"optim.rate": 1.0}), "x.yaml")
    with pytest.raises(RecipeError, match=r"written by a later version of vitscale \(format 4; this one reads up to 3\)"):
        check_recipe({**PLAIN, "format": 4}, "x.yaml")
    for wrong in (0, "two", True, None):
        with pytest.raises(RecipeError, match="format  wants a whole number from 1 to 3"):
            check_recipe({**PLAIN, "format": wrong}, "x.yaml")
    told: list[Any] = []
    check_recipe(put_all({**PLAIN, "format": 1}, {"observe.beep": 3}), "x.yaml", tell=told.append)
    assert told[0].text == "x.yaml: observe.beep (3) is no key any more: look at the page"


def test_today_is_the_last_of_the_table() -> None:
    assert [one.to for one in upgrade.UPGRADES] == list(range(2, 2 + len(upgrade.UPGRADES)))
    assert max((one.to for one in upgrade.UPGRADES), default=1) == upgrade.FORMAT == PLAIN["format"]
    for one in upgrade.UPGRADES:
        known = set(keys_of(Recipe))
        assert not known & (set(one.renamed) | set(one.retired))


@pytest.mark.parametrize("key", sorted(set(keys_of(Recipe)) - {"format"}))
def test_any_key_may_be_unknown(key: str) -> None:
    """As if a later version had dropped it: it is named, everything else means what it did, and nothing unresolved is compared."""
    old, needed = moved(PLAIN, (key, f"{key}_of_old")), ""
    try:
        read = understood(old, "run.json")
    except RecipeError as error:        # without these there is no run
        needed = str(error)
    if needed:
        assert key in ("name", "global_batch", "duration", "optim.lr", "data.train")
        assert f"({key}: " in needed or key == "data.train"
        return
    value = _at(PLAIN, key)
    assert read.unknown == {f"{key}_of_old": value}
    assert (of_model(read.unknown) != {}) == (key.startswith("model.") and not is_off(value))
    found = changes(settings_of(old), settings_of(PLAIN))
    expected = {f"{key}_of_old"} if not is_off(value) else set()
    if is_given(read.recipe.model_dump(mode="json"), key) and _at(read.recipe.model_dump(mode="json"), key) != value:
        expected.add(key)
    assert all(change.new == GONE for change in found if change.key.endswith("_of_old"))
    assert {change.key for change in found} - {"data.lanes", "data.group"} == expected - {"data.lanes", "data.group"}


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
