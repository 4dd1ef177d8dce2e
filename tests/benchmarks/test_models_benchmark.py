"""The benchmarks of models run in their smallest forms, and the tables of architectures are those of today's models."""

import json
import sys
from pathlib import Path

import pytest

from vitscale.data import pack_digits

ROOT = Path(__file__).parents[2]
pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def _programs():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def figures(row: Path) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in json.loads(row.read_text())["figures"]}


def test_steps_against_transformers(tmp_path):
    import models

    models.main(["--rounds", "1", "--batch", "1", "--models", "ViT-micro", "--rows", str(tmp_path)])
    found = figures(tmp_path / "models-step.json")
    assert found["ViT-micro: vitscale"] > 0
    assert 0.1 < found["ViT-micro: ratio of speed"] < 10        # no speed is asserted but a collapse
    dropping = figures(tmp_path / "drop-path.json")
    assert dropping["left out"] == pytest.approx(dropping["ratio of speed"] * dropping["masked"])
    assert 0.1 < dropping["ratio of speed"] < 10


@pytest.mark.slow       # four real runs, each several seconds to start
def test_a_student_with_a_teacher(tmp_path):
    import distillation

    digits = pack_digits(tmp_path / "digits")
    size = ["model.image=16", "data.augment.flip=0", "optim.warmup=5 steps", "global_batch=20"]
    distillation.main([
        "--train", f"{digits}/train-*.tar", "--val", f"{digits}/val-*.tar", "--teacher-shards", "3", "--student-shards", "1",
        "--seeds", "1", "--epochs", "3", "--rows", str(tmp_path),
        "--teacher", *size, "model.family=convnext", "model.widths=[16,32]", "model.depths=[1,1]", "optim.lr=1e-2",
        "--student", *size, "model.width=16", "model.depth=1", "model.heads=2", "model.mlp=24", "model.patch=4", "optim.lr=1e-3"])
    row = json.loads((tmp_path / "distillation.json").read_text())
    assert row["shards"]["samples"] == 180
    assert "3 passes over 180 images of CIFAR-10, 1 seeds" in row["title"]
    assert row["title"].endswith("by 359 images")
    found = figures(tmp_path / "distillation.json")
    assert {name.partition(":")[0] for name in found} == {"teacher, 540 images", *distillation.STUDENTS}
    assert found["teacher, 540 images: top-1"] > 20             # ten digits
    for name in [*distillation.STUDENTS][1:]:
        taught, alone = (100 - found[f"{one}: top-1"] for one in (name, "alone"))
        assert found[f"{name}: errors, against alone, seed by seed"] == pytest.approx(taught / alone)


def test_the_tables_of_architectures_are_those_of_today(tmp_path):
    import zoo

    found = {entry: zoo.error(entry) for entry in zoo.ENTRIES}
    assert max(found.values()) < 1e-5
    page = (ROOT / "docs" / "models.md").read_text()
    for entry in found:
        assert f"| {entry.name} | {entry.source} | {zoo.count_params(entry.section, entry.objective):,} |" in page
