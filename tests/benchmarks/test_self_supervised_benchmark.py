"""The benchmark of learning without labels goes in its smallest form, does nothing twice, and says of each seed what it is to say."""

import json
import subprocess
from pathlib import Path

import pytest

from vitscale.data import pack_digits
from vitscale.recipe.load import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = """
name: {name}_cifar10
model: {{family: vit, width: 16, depth: 1, heads: 1, mlp: 32, patch: 4, image: 8, channels: 1, classes: 0, pool: mean}}
data: {{train: digits.tar, label: null, lanes: 8{views}}}
objective: {objective}
optim: {{lr: 1e-3}}
global_batch: 64
duration: 1 epochs
parallel: {{device: cpu}}
"""
VIEWS = ", views: [{name: global, count: 2}, {name: local, count: 2, image: 4}]"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import self_supervised
    return self_supervised


def test_the_smallest_form_writes_its_row_and_does_nothing_twice(program, tmp_path, monkeypatch):
    import report

    digits = pack_digits(tmp_path / "digits")
    for name, views, objective in (("dino", VIEWS, "{name: dino, prototypes: 32, hidden: 16, bottleneck: 8}"),
                                   ("mae", "", "{name: mae, decoder: {width: 16, depth: 1, heads: 1}}")):
        (tmp_path / f"{name}_cifar10.yaml").write_text(RECIPE.format(name=name, views=views, objective=objective))
    starts, start = [], subprocess.run
    monkeypatch.setattr(program.subprocess, "run", lambda command, **how: (starts.append(command), start(command, **how))[1])
    recipe = load_recipe(tmp_path / "dino_cifar10.yaml")
    flops = program.training_flops_per_image(recipe.model, recipe.objective, recipe.data.views)
    minutes = 400 * flops / 60 / program.RATE       # of 400 images

    def measure(*objectives: str) -> dict[str, dict]:
        program.main(["--train", f"{digits}/train-*.tar", "--val", f"{digits}/val-*.tar", "--seeds", "3", "--minutes", str(minutes),
                      "--objectives", *objectives, "--recipes", str(tmp_path), "--work", str(tmp_path / "work"),
                      "--rows", str(tmp_path / "rows"), "--curves", str(tmp_path / "curves.png")])
        row = json.loads((tmp_path / "rows" / "self-supervised.json").read_text())
        assert str(tmp_path) not in json.dumps(row)
        return {one["name"]: one for one in row["figures"]}

    alone = measure("dino")
    trains = [command for command in starts if "vitscale" in command]
    assert len(trains) == 1
    assert "duration=400 images" in trains[0]
    both = measure("dino", "mae")
    trains = [command for command in starts if "vitscale" in command]
    assert [Path(command[4]).stem for command in trains] == ["dino_cifar10", "mae_cifar10"]     # what was done is not done again
    assert {name: both[name] for name in alone} == alone
    assert all(15 < both[f"{name}: 20-NN"]["value"] <= 100 for name in (program.RAW, program.NORMALISED, program.UNTRAINED, "dino", "mae"))
    above = both["dino: above mae, seed by seed"]
    assert above["value"] == pytest.approx(both["dino: 20-NN"]["value"] - both["mae: 20-NN"]["value"])
    assert above["met"] == (above["value"] > 0)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    (finished,) = (tmp_path / "work" / "finished").glob("dino-*")
    before = json.loads(finished.read_text())
    finished.unlink()                               # as after a kill between a run's end and its judgement
    assert measure("dino", "mae") == both
    assert json.loads(finished.read_text())["curve"] == before["curve"]
    assert len(before["curve"]) >= 6
    assert before["curve"][-1][0] == 400
    text = report.render([json.loads((tmp_path / "rows" / "self-supervised.json").read_text())])
    assert "dino: above raw pixels, seed by seed" in text


def test_what_is_said_of_seeds_holds_for_the_worst_of_them(program):
    def found(*shares):
        return [{"knn": share} for share in shares]

    figures = {one["name"]: one for one in program.figures_of({
        program.RAW: found(0.3), program.UNTRAINED: found(0.25, 0.28), "dino": found(0.4, 0.29), "mae": found(0.2, 0.3)})}
    assert figures["dino: above raw pixels, seed by seed"]["met"] is False
    assert figures["dino: above raw pixels, seed by seed"]["high"] == pytest.approx(10)
    assert figures["dino: above an untrained network, seed by seed"]["met"] is True
    assert figures["dino: above mae, seed by seed"]["low"] == pytest.approx(-1)
    assert not any(name.startswith("mae: above") for name in figures)


def test_what_is_compared_has_one_backbone_and_one_set_of_images(program):
    recipes = [load_recipe(f"{name}_cifar10") for name in program.OBJECTIVES]
    for one in recipes[1:]:
        assert one.model == recipes[0].model
        assert one.data.train == recipes[0].data.train
        assert (one.data.augment.mean, one.data.augment.std) == (recipes[0].data.augment.mean, recipes[0].data.augment.std)
