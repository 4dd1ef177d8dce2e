"""Which settings bind a run to its checkpoints, and which are the user's to change: a kind for every key of the schema."""

import copy
import logging
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vitscale.errors import CheckpointError, RecipeError
from vitscale.recipe import Recipe
from vitscale.recipe.bound import changes, differences, refuse_changes, settings_of, tell_changes
from vitscale.recipe.check import default_lanes
from vitscale.recipe.kinds import KINDS, kind_of, named
from vitscale.recipe.load import check_recipe
from vitscale.recipe.schema import MixSet
from vitscale.recipe.upgrade import put

RECIPE = {
    "name": "x", "global_batch": 64, "duration": "2 epochs",
    "model": {"size": "tiny", "patch": 4, "image": 8, "classes": 10},
    "data": {"train": "train-{0..3}.tar", "lanes": 16},
    "objective": {"loss": "binary_cross_entropy"},      # which data.multi_label wants
    "optim": {"lr": 1e-3},
}
CHECKPOINT = Path("runs/x/checkpoints/step-00000010")


def settings(recipe: dict[str, Any] = RECIPE, index_hash: str = "ab") -> dict[str, Any]:
    return settings_of(check_recipe(recipe, "x.yaml").model_dump(mode="json"), index_hash)


def keys_of(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted keys of a section and of all that it may hold, every one of several that stand for each other."""
    for name, field in section.model_fields.items():
        inner = [kind for kind in kinds_in(field.annotation) if kind is not MixSet]      # a list stands or falls as a whole
        yield from (key for kind in inner for key in keys_of(kind, f"{above}{name}."))
        if not inner:
            yield above + name


def kinds_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from kinds_in(argument)


def with_(key: str, value: Any) -> dict[str, Any]:
    """RECIPE with `value` at a dotted key."""
    recipe = copy.deepcopy(RECIPE)
    *path, last = key.split(".")
    section: dict[str, Any] = recipe
    for name in path:
        section = section.setdefault(name, {})
    section[last] = value
    return recipe


BINDING = [
    ("model.size", "small"), ("model.patch", 2), ("model.image", 16), ("model.classes", 11), ("model.channels", 1), ("model.pool", "mean"),
    ("model.position", "sincos"), ("model.qkv_bias", False), ("model.layer_scale", 0.1), ("model.dropout", 0.1), ("model.drop_path", 0.1),
    ("model.width", 96), ("objective.loss", "cross_entropy"), ("objective.label_smoothing", 0.1), ("data.augment.crop", "center"),
    ("data.augment.scale", [0.2, 1.0]), ("data.augment.flip", 0.0), ("data.augment.mean", [0.5, 0.5, 0.5]), ("data.label", "json"),
    ("data.lanes", 32), ("data.group", 2), ("global_batch", 128), ("seed", 1),
    ("data.repeats", 2), ("data.class_map", "names.txt"), ("data.multi_label", True), ("data.exif_orientation", "apply"),
    ("data.image", "left.png"), ("lora", {"rank": 4, "alpha": 8.0, "targets": ["attn.qkv"]}), ("init", "w.safetensors"),
    ("optim.lr", 2e-3), ("optim.schedule", "linear"), ("optim.clip_norm", 1.0), ("duration", "3 epochs"), ("ema", {"decay": 0.9}),
    ("parallel.precision", "bf16"), ("evaluate.crop", 1.0), ("resilience.max_nonfinite", 2), ("resilience.spike", None),
]
# where the data lies, how it is read, where the run lies and what it shows says nothing about what the run is
FREE = [
    ("parallel.engine", "fsdp"), ("checkpoint.keep", 7), ("evaluate.every", "1 epochs"), ("micro_batch", 8),
    ("resilience.hang_timeout", 5.0), ("checkpoint.every", "3 steps"),
    ("data.train", ["elsewhere-{0..3}.tar"]), ("data.val", "val.tar"), ("data.workers", 3), ("data.prefetch", 9),
    ("data.index_dir", "/tmp/x"), ("data.num_samples", 100), ("data.max_bad_fraction", 0.5), ("data.log_samples", True),
    ("observe.log_every", 10),
]


def refused(now: dict[str, Any], accept: bool = False) -> str:
    """What the refusal says, "" if there is none."""
    try:
        refuse_changes(changes(settings(), now), str(CHECKPOINT), str(CHECKPOINT), accept)
    except CheckpointError as error:
        return str(error)
    return ""


def test_nothing_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vitscale")
    assert changes(settings(), settings()) == []
    tell_changes([], CHECKPOINT.name)
    assert caplog.text == ""


@pytest.mark.parametrize(("key", "value"), BINDING, ids=[key for key, _ in BINDING])
def test_a_setting_that_makes_it_another_run_is_refused(key: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    now = settings(with_(key, value))
    said = refused(now)
    (line,) = [line for line in said.splitlines() if line.startswith(f"  {key}: ")]
    assert line.endswith(f"-> {value}")
    assert str(CHECKPOINT) in said
    with pytest.raises(CheckpointError):
        refuse_changes(changes(now, settings()), str(CHECKPOINT), "", accept=False)       # and the other way round
    assert f"name=NEW (init={CHECKPOINT}" in said
    if KINDS.get(key) == "order":        # a position in one order means nothing in another, whatever is accepted
        assert f"--accept-changes cannot help, since what a run began with, and which sample comes when, stays ({key}" in said
        assert refused(now, accept=True) == said
    else:
        assert said.endswith("--accept-changes")
        assert refused(now, accept=True) == ""
        tell_changes(changes(settings(), now), CHECKPOINT.name)
        assert f"accepted change since step-00000010: {key}: " in caplog.text


def test_writing_down_the_default_changes_nothing() -> None:
    lanes = default_lanes(check_recipe(RECIPE, "x.yaml"))
    assert differences(settings(), settings(with_("data.lanes", lanes))) == []
    assert differences(settings(), settings(with_("data.group", 1))) == []


def test_every_key_of_the_schema_has_its_kind() -> None:
    """Of whatever family and objective; and no kind is of a key that is gone."""
    keys = set(keys_of(Recipe))
    assert [key for key in sorted(keys) if named(key) is None] == []
    known = [name for name in KINDS if name not in ("index_hash", "frozen_hash")]       # which are no keys
    assert [name for name in known if not any(f"{key}.".startswith(f"{name}.") for key in keys)] == []
    assert {"model.depths", "model.registers", "objective.mask_ratio", "objective.decoder.width", "lora.rank", "resilience.spike.window",
            "data.augment.erasing.mode", "parallel.tensor", "evaluate.early_stopping.patience"} <= keys


def test_a_change_of_any_key_is_refused_or_free_by_its_kind() -> None:
    saved = settings()
    for key in sorted(set(keys_of(Recipe)) - {"format"}):
        now = copy.deepcopy(saved)
        put(now, key, "something else")
        (change,) = changes(saved, now)
        assert change.kind == kind_of(key) == KINDS[named(key) or ""], key
        assert (f"  {change.key}: " in refused(now)) == (change.kind != "free"), key
        assert bool(refused(now, accept=True)) == (change.kind == "order"), key


@pytest.mark.parametrize(("key", "other", "value"), [
    ("micro_batch", "model.dropout", 0.1), ("parallel.processes", "model.dropout", 0.1), ("evaluate.every", "evaluate.early_stopping", {})])
def test_some_keys_shape_training_together_with_others_alone(key: str, other: str, value: Any) -> None:
    recipe = check_recipe(RECIPE, "x.yaml").model_dump(mode="json")
    assert kind_of(key, recipe) == "free"
    put(recipe, other, value or {"patience": 3})
    assert kind_of(key, recipe) == "training"


def test_the_weights_of_a_mixture_bind_and_its_paths_do_not() -> None:
    def mixed(weight: float, path: str) -> dict[str, Any]:
        recipe = with_("data.mix", [{"shards": path, "weight": weight}, {"shards": "b-{0..3}.tar", "weight": 1.0}])
        del recipe["data"]["train"]
        return settings(recipe | {"duration": "100 steps"})

    assert changes(mixed(1.0, "a-{0..3}.tar"), mixed(1.0, "moved/a-{0..3}.tar")) == []
    (change,) = changes(mixed(1.0, "a-{0..3}.tar"), mixed(2.0, "a-{0..3}.tar"))
    assert (change.key, change.kind) == ("data.mix", "order")


def test_other_shards_are_refused() -> None:
    assert "index_hash: ab -> cd" in refused(settings(index_hash="cd"), accept=True)


@pytest.mark.parametrize(("key", "value"), FREE, ids=[key for key, _ in FREE])
def test_what_is_free_to_change_is_logged(key: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vitscale")
    now = settings(with_(key, value))
    assert refused(now) == ""
    tell_changes(changes(settings(), now), CHECKPOINT.name)
    assert f"changed since step-00000010: {key}: " in caplog.text


def test_all_changes_are_told_at_once() -> None:
    recipe = with_("seed", 5)
    recipe["model"]["pool"] = "mean"
    recipe["optim"]["lr"] = 1.0
    lines = [line for line in refused(settings(recipe)).splitlines() if "->" in line]
    assert lines == ["  model.pool: token -> mean", "  optim.lr: 0.001 -> 1.0", "  seed: 0 -> 5"]


def test_a_section_that_came_or_went_counts_as_one_change() -> None:
    gone = {key: value for key, value in settings().items() if key != "model"}
    assert "model: " in refused(gone)
    without_data = {key: value for key, value in settings().items() if key != "data"}
    (change,) = changes(without_data, settings())
    assert (change.key, change.old, change.kind) == ("data", None, "order")


def test_names_that_merely_begin_alike_are_not_taken_for_each_other() -> None:
    assert named("seeds") is None
    assert named("models.a") is None
    assert named("data.labels") is None


def test_differences() -> None:
    assert differences({}, {}) == []
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [1], "d": 2}}) == []
    assert differences({"z": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 3, "c": 1, "e": 4}, "a": 5}) == [
        ("b.d", 2, 3), ("b.e", None, 4), ("a", None, 5), ("z", 1, None)]
    assert differences({"a": {"b": 1}}, {"a": None}) == [("a", {"b": 1}, None)]
    assert differences({"a": None}, {}) == []      # absent is null


@pytest.mark.parametrize("value", ["no such value", -7, [1]], ids=repr)
def test_what_is_wrong_with_a_value_is_said_once_under_its_own_key(value: Any) -> None:
    """Also of one that may be of several kinds, a word or a number."""
    said = {key: text.splitlines()[1:] for key in sorted(set(keys_of(Recipe))) if (text := refusal(with_(key, value)))}
    for key, lines in said.items():
        keys = [line.split()[0] for line in lines if line.startswith(f"  {key}")]
        assert [one for one in keys if one.removeprefix(f"{key}.").isdigit() or one == key] == keys, lines
        assert len(keys) == len(set(keys)), lines
    assert sum(any(line.startswith(f"  {key}") for line in lines) for key, lines in said.items()) > 50


def refusal(recipe: dict[str, Any]) -> str:
    try:
        check_recipe(recipe, "x.yaml")
    except RecipeError as error:
        return str(error)
    return ""
