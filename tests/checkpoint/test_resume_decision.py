"""Which settings bind a run to its checkpoints, and which are the user's to change."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from vitscale.checkpoint.resume import refuse_changes
from vitscale.errors import CheckpointError
from vitscale.recipe.bound import BOUND, ORDER, bound_settings, differences
from vitscale.recipe.check import default_lanes
from vitscale.recipe.load import check_recipe

RECIPE = {
    "name": "x", "global_batch": 64, "duration": "2 epochs",
    "model": {"size": "tiny", "patch": 4, "image": 8, "classes": 10},
    "data": {"train": "train-{0..3}.tar", "lanes": 16},
    "objective": {"loss": "binary_cross_entropy"},      # which data.multi_label wants
    "optim": {"lr": 1e-3},
}
CHECKPOINT = Path("runs/x/checkpoints/step-00000010")


def settings(recipe: dict[str, Any] = RECIPE, index_hash: str = "ab") -> dict[str, Any]:
    return bound_settings(check_recipe(recipe, "x.yaml").model_dump(mode="json"), index_hash)


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
    ("data.image", "left.png"), ("lora", {"rank": 4, "alpha": 8.0, "targets": ["attn.qkv"]}),
]
FREE = [
    ("optim.lr", 2e-3), ("optim.schedule", "linear"), ("optim.clip_norm", 1.0), ("duration", "3 epochs"), ("parallel.engine", "fsdp"),
    ("parallel.precision", "bf16"), ("checkpoint.keep", 7), ("evaluate.every", "1 epochs"), ("ema", {"decay": 0.9}), ("micro_batch", 8),
    ("resilience.max_nonfinite", 2),
]
# where the data lies, how it is read, where the run lies and what it shows says nothing about what the run is
HIDDEN = [
    ("data.train", ["elsewhere-{0..3}.tar"]), ("data.val", "val.tar"), ("data.workers", 3), ("data.prefetch", 9),
    ("data.index_dir", "/tmp/x"), ("data.num_samples", 100), ("data.max_bad_fraction", 0.5), ("data.log_samples", True),
    ("name", "y"), ("runs_dir", "z"), ("observe.log_every", 10), ("init", "w.safetensors"),
]


def test_nothing_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refuse_changes(settings(), settings(), CHECKPOINT, accept=False)
    assert caplog.text == ""


@pytest.mark.parametrize(("key", "value"), BINDING, ids=[key for key, _ in BINDING])
def test_a_setting_that_makes_it_another_run_is_refused(key: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    now = settings(with_(key, value))
    with pytest.raises(CheckpointError) as refusal:
        refuse_changes(settings(), now, CHECKPOINT, accept=False)
    (line,) = [line for line in str(refusal.value).splitlines() if line.startswith(f"  {key}: ")]
    assert line.endswith(f"-> {value}")
    assert str(CHECKPOINT) in str(refusal.value)
    with pytest.raises(CheckpointError):
        refuse_changes(now, settings(), CHECKPOINT, accept=False)       # and the other way round
    if key in ORDER:        # a position in one order means nothing in another, whatever is accepted
        assert f"init={CHECKPOINT}" in str(refusal.value)
        with pytest.raises(CheckpointError, match="init="):
            refuse_changes(settings(), now, CHECKPOINT, accept=True)
    else:
        assert "--accept-changes" in str(refusal.value)
        refuse_changes(settings(), now, CHECKPOINT, accept=True)
        assert f"accepted change since step-00000010: {key}: " in caplog.text


def test_writing_down_the_default_changes_nothing() -> None:
    lanes = default_lanes(check_recipe(RECIPE, "x.yaml"))
    assert differences(settings(), settings(with_("data.lanes", lanes))) == []
    assert differences(settings(), settings(with_("data.group", 1))) == []


def test_every_bound_name_is_tried() -> None:
    tried = [key for key, _ in BINDING] + ["objective", "index_hash", "data.mix"]
    assert all(any(key == name or key.startswith(name + ".") for key in tried) for name in BOUND)


def test_the_weights_of_a_mixture_bind_and_its_paths_do_not() -> None:
    def mixed(weight: float, path: str) -> dict[str, Any]:
        recipe = with_("data.mix", [{"shards": path, "weight": weight}, {"shards": "b-{0..3}.tar", "weight": 1.0}])
        del recipe["data"]["train"]
        return settings(recipe | {"duration": "100 steps"})

    refuse_changes(mixed(1.0, "a-{0..3}.tar"), mixed(1.0, "moved/a-{0..3}.tar"), CHECKPOINT, accept=False)
    with pytest.raises(CheckpointError, match=r"data\.mix"):
        refuse_changes(mixed(1.0, "a-{0..3}.tar"), mixed(2.0, "a-{0..3}.tar"), CHECKPOINT, accept=False)


def test_other_shards_are_refused() -> None:
    with pytest.raises(CheckpointError, match="index_hash: ab -> cd"):
        refuse_changes(settings(), settings(index_hash="cd"), CHECKPOINT, accept=False)


@pytest.mark.parametrize(("key", "value"), FREE, ids=[key for key, _ in FREE])
def test_what_is_free_to_change_is_logged(key: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refuse_changes(settings(), settings(with_(key, value)), CHECKPOINT, accept=False)
    assert f"changed since step-00000010: {key}: " in caplog.text


@pytest.mark.parametrize(("key", "value"), HIDDEN, ids=[key for key, _ in HIDDEN])
def test_what_does_not_describe_the_run_is_not_compared(key: str, value: Any) -> None:
    assert differences(settings(), settings(with_(key, value))) == []


def test_all_changes_are_told_at_once() -> None:
    recipe = with_("seed", 5)
    recipe["model"]["pool"] = "mean"
    recipe["optim"]["lr"] = 1.0
    with pytest.raises(CheckpointError) as refusal:
        refuse_changes(settings(), settings(recipe), CHECKPOINT, accept=False)
    lines = [line for line in str(refusal.value).splitlines() if "->" in line]
    assert lines == ["  model.pool: token -> mean", "  seed: 0 -> 5"]


def test_a_section_that_came_or_went_counts_as_one_change() -> None:
    gone = {key: value for key, value in settings().items() if key != "model"}
    with pytest.raises(CheckpointError, match="model: "):
        refuse_changes(settings(), gone, CHECKPOINT, accept=False)
    without_data = {key: value for key, value in settings().items() if key != "data"}
    with pytest.raises(CheckpointError, match="data: None -> "):
        refuse_changes(without_data, settings(), CHECKPOINT, accept=False)


def test_names_that_merely_begin_alike_are_free() -> None:
    saved, now = ({"seeds": value, "models": {"a": value}, "data": {"labels": value}} for value in (1, 2))
    assert len(differences(saved, now)) == 3
    refuse_changes(saved, now, CHECKPOINT, accept=False)


def test_differences() -> None:
    assert differences({}, {}) == []
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [1], "d": 2}}) == []
    assert differences({"z": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 3, "c": 1, "e": 4}, "a": 5}) == [
        ("b.d", 2, 3), ("b.e", None, 4), ("a", None, 5), ("z", 1, None)]
    assert differences({"a": {"b": 1}}, {"a": None}) == [("a", {"b": 1}, None)]
    assert differences({"a": None}, {}) == []      # absent is null
