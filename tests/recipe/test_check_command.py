"""`vitscale recipes check` names what cannot be in recipes without labels: of each one line, by its key, and the sound ones stay sound."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vitscale.cli.app import recipes_app
from vitscale.recipe.text import write_yaml

BASE: dict[str, Any] = {
    "model": {"width": 16, "depth": 1, "heads": 2, "mlp": 24, "patch": 4, "image": 16, "classes": 0},
    "data": {"train": "t-*.tar", "label": None, "views": [{"name": "global", "count": 2}, {"name": "local", "image": 8}]},
    "optim": {"lr": 1e-3}, "global_batch": 64, "duration": "2 steps"}
SMALL = {"prototypes": 24, "hidden": 12, "bottleneck": 8}
GRAM = {"name": "dinov2", "patch_prototypes": 20, **SMALL, "gram": 2.0, "gram_image": 24}
OF_CLASSES = {"model.classes": 7, "data.label": "cls", "data.views": []}
SELF = ("dino", "ibot", "dinov2", "lejepa")

# what is wrong: (changes by dotted key, the key that is named, words of the sentence)
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "a view that the patch does not divide": ({"data.views": [{"name": "a", "count": 2}, {"name": "b", "image": 10}]},
                                              "data.views.1.image", "patches of 4"),
    "an image that the patch does not divide": ({"model.image": 18}, "model.image", "18"),
    "one view": ({"data.views": [{"name": "a"}]}, "data.views", "2 at least"),
    "all patches masked": ({"objective": {"name": "ibot", **SMALL, "mask_share": [0.5, 1]}}, "objective.mask_share", "below 1"),
    "masks of less than a patch": ({"objective": {"name": "ibot", **SMALL, "mask_share": [0.01, 0.02]}}, "objective.mask_share",
                                   "less than one"),
    "all of MAE's patches masked": ({"objective": {"name": "mae", "mask_ratio": 0.97}, "data.views": []}, "objective.mask_ratio",
                                    "leaves 0"),
    "all of inpainting's squares masked": ({"objective": {"name": "inpainting", "mask_patch": 16}, "data.views": []},
                                           "objective.mask_ratio", "all 1 squares"),
    "a group smaller than KoLeo's": ({"objective": {"name": "dinov2", **SMALL, "koleo_group": 8}, "data.group": 4}, "data.group",
                                     "objective.koleo_group 8"),
    "a batch smaller than KoLeo's group": ({"objective": {"name": "dinov2", **SMALL}, "global_batch": 8, "data.lanes": 16}, "global_batch",
                                           "data.group 16"),
    "a micro-batch smaller than KoLeo's group": ({"objective": {"name": "dinov2", **SMALL}, "micro_batch": 8}, "micro_batch",
                                                 "data.group 16"),
    "KoLeo of one": ({"objective": {"name": "dinov2", "koleo_group": 1}}, "objective.koleo_group", "2"),
    "no prototypes": ({"objective": {"name": "dino", "prototypes": 0}}, "objective.prototypes", "2"),
    "no prototypes of patches": ({"objective": {"name": "dinov2", "patch_prototypes": 0}}, "objective.patch_prototypes", "2"),
    "no directions": ({"objective": {"name": "lejepa", "directions": 0}}, "objective.directions", "1"),
    "dropout where a step is looked at twice": ({"objective": {"name": "lejepa"}, "model.dropout": 0.1}, "model.dropout", "drop_path"),
    "an anchor whose patch does not divide": ({"objective": GRAM | {"gram_teacher": "seven"}}, "objective.gram_image", "7 of a patch"),
    "an anchor of other channels": ({"objective": GRAM | {"gram_teacher": "grey"}}, "objective.gram_teacher", "model.channels is 3"),
    "an anchor without patches": ({"objective": GRAM | {"gram_teacher": "swin"}}, "objective.gram_teacher", "family swin"),
    "an anchor that is no folder of a model": ({"objective": GRAM | {"gram_teacher": "empty"}}, "objective.gram_teacher", "holds neither"),
    "an anchor that cannot be read": ({"objective": GRAM | {"gram_teacher": "torn"}}, "objective.gram_teacher", "no readable teacher"),
    "an anchor of nonsense": ({"objective": GRAM | {"gram_teacher": "nonsense"}}, "objective.gram_teacher", "model.patch is 'four'"),
    "a teacher of other channels": (OF_CLASSES | {"objective": {"name": "distillation", "teacher": "grey"}}, "objective.teacher",
                                    "model.channels is 3"),
    "a teacher of other classes": (OF_CLASSES | {"objective": {"name": "distillation", "teacher": "seven"}, "model.classes": 8},
                                   "objective.teacher", "model.classes are 8"),
    "a teacher that is no folder of a model": (OF_CLASSES | {"objective": {"name": "distillation", "teacher": "empty"}},
                                               "objective.teacher", "holds neither"),
    "no anchor": ({"objective": {"name": "ibot", **SMALL, "gram": 1.0}}, "objective.gram_teacher", "earlier run"),
    "an average beside the teacher": ({"ema": {"decay": 0.9}}, "ema", "leave ema out"),
    "a teacher that is another family's": ({"model": {"family": "swin", "size": "tiny", "classes": 0}, "data.views": [
        {"name": "a", "count": 2}]}, "objective.name", "not swin"),
} | {
    f"{name} under {engine}": ({"objective": {"name": name}, "parallel.engine": engine}, "parallel.engine",
                               f"surveys a whole step before it learns from it, which {engine}" if name == "lejepa" else
                               f"fp32 average of the weights, of which {engine}")
    for name in SELF for engine in ("zero", "accelerate")}
SOUND: dict[str, dict[str, Any]] = {
    **{name: {"objective": {"name": name}} for name in SELF},
    "an anchor that is not there yet": {"objective": GRAM | {"gram_teacher": "runs/later"}},
    "an anchor of its own patch": {"objective": GRAM | {"gram_teacher": "seven", "gram_image": 21}},
    "an anchor of another library": {"objective": GRAM | {"gram_teacher": "theirs"}},
}


def written(folder: Path, recipes: dict[str, dict[str, Any]]) -> None:
    for number, changes in enumerate(recipes.values()):
        values = json.loads(json.dumps({"objective": {"name": "dino", **SMALL}, **BASE})) | {"name": f"r{number}"}
        for path, value in changes.items():
            section, _, last = path.rpartition(".")
            (values.setdefault(section, {}) if section else values)[last] = value
        (folder / f"{number:03d}.yaml").write_text(write_yaml(values))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With folders of teachers."""
    monkeypatch.chdir(tmp_path)
    for name, section in {"seven": {"patch": 7, "image": 14}, "grey": {"channels": 1}, "swin": {"family": "swin"},
                          "nonsense": {"patch": "four"}}.items():
        (tmp_path / name).mkdir()
        values = {"family": "vit", **BASE["model"], "classes": 7, **section}
        (tmp_path / name / "config.json").write_text(json.dumps({"vitscale": "1", "model": values}))
    for name, text in {"torn": "{", "theirs": '{"model_type": "dinov2", "patch_size": 14}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipes").mkdir()
    return tmp_path


def test_each_mistake_is_one_line_with_its_key(place: Path) -> None:
    written(place / "recipes", {name: changes for name, (changes, _, _) in BAD.items()})
    result = CliRunner().invoke(recipes_app, ["check", "recipes"])
    assert result.exit_code == 2, result.output
    told: dict[str, list[str]] = {}
    for line in result.stderr.splitlines():
        if line.startswith("recipes/"):
            lines = told.setdefault(line.partition(".yaml")[0].rpartition("/")[2], [])
        else:
            lines.append(line.strip())
    wrong = {}
    for number, (name, (_, key, words)) in enumerate(BAD.items()):
        lines = told.get(f"{number:03d}", ["sound"])
        if len(lines) != 1 or lines[0].split()[0] != key or words not in lines[0]:
            wrong[name] = lines
    assert not wrong


def test_what_is_sound_is_said_to_be(place: Path) -> None:
    written(place / "recipes", SOUND)
    result = CliRunner().invoke(recipes_app, ["check", "recipes"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(": sound; ") == len(SOUND)
