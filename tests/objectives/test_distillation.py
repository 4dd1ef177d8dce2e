"""Distillation: the papers' formulas, what the teacher sees, and teachers that do not fit."""

import json

import pytest
import torch
import torch.nn.functional as F

from vitscale.errors import RecipeError
from vitscale.objectives import Seen, build_task
from vitscale.objectives.distillation import teacher_loss
from vitscale.recipe.check import contradictions
from vitscale.recipe.objectives import Distillation
from vitscale.recipe.schema import Deit, Recipe
from vitscale.recipe.teacher import teacher_classes

MODEL = Deit(family="deit", width=16, depth=1, heads=2, mlp=24, patch=4, image=8, classes=7)


def logits(seed):
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 3


def test_hard_is_cross_entropy_with_the_teacher_s_choice():
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(teacher_loss(student, teacher, "hard", 3.0), F.cross_entropy(student, teacher.argmax(1), reduction="none"))


def test_soft_is_t_squared_times_the_divergence_written_out():
    student, teacher, temperature = logits(0).double(), logits(1).double(), 2.0
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(1)
    torch.testing.assert_close(teacher_loss(student, teacher, "soft", temperature).double(), expected, rtol=1e-5, atol=1e-6)
    assert teacher_loss(teacher, teacher, "soft", temperature).abs().max() < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_each_head_has_its_part(alpha):
    task = build_task(MODEL, Distillation(name="distillation", teacher="t", alpha=alpha))
    task.teacher = lambda images: logits(1)
    labels, by_label, by_teacher = torch.arange(5), logits(2), logits(3)
    seen = Seen(torch.zeros(5, 3, 8, 8), labels)
    expected = (1 - alpha) * F.cross_entropy(by_label, labels, reduction="none")
    expected += alpha * F.cross_entropy(by_teacher, logits(1).argmax(1), reduction="none")
    torch.testing.assert_close(task.losses((by_label, by_teacher), seen), expected)
    torch.testing.assert_close(task.evaluation_losses(by_label, seen), F.cross_entropy(by_label, labels, reduction="none"))


def recipe(teacher, **objective):
    return Recipe.model_validate({
        "name": "r", "model": MODEL.model_dump(), "data": {"train": ("x.tar",)}, "optim": {"lr": 1e-3}, "global_batch": 8,
        "duration": "1 epochs", "objective": {"name": "distillation", "teacher": str(teacher), **objective},
    })


def test_a_teacher_with_other_classes_is_found_when_the_recipe_is_checked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b"}}))
    assert contradictions(recipe(tmp_path)) == [("objective.teacher", f"{tmp_path} tells 2 classes apart, model.classes are 7")]
    (tmp_path / "recipe.yaml").write_text("model: {classes: 7}")
    assert contradictions(recipe(tmp_path)) == []
    assert contradictions(recipe(tmp_path / "elsewhere")) == []         # on another machine, perhaps: training will tell


@pytest.mark.parametrize(("name", "text", "word"), [
    ("recipe.yaml", "model: {}", "no readable teacher"), ("config.json", "{", "no readable teacher"), ("other", "", "holds neither"),
])
def test_a_folder_that_is_no_teacher_is_named(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=word):
        teacher_classes(str(tmp_path))


def test_a_head_without_its_objective_is_refused():
    values = recipe("t").model_dump() | {"objective": {"name": "classification"}}
    assert [key for key, _ in contradictions(Recipe.model_validate(values))] == ["objective.name"]
