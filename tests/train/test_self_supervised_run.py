"""A whole run without labels is judged by its features while it goes on, and keeps what they say is best."""

import json
import shutil
from pathlib import Path

import pytest
from running import UNLABELLED, Run, train

from vitscale.checkpoint.store import read_facts
from vitscale.recipe.load import check_recipe
from vitscale.train.teacher import frozen_hash

pytestmark = pytest.mark.slow       # a whole run


def test_features_judge_stop_and_choose(place: Path) -> None:
    (place / "seen.yaml").write_text(UNLABELLED)
    output = train(place, recipe="seen.yaml")
    run = Run(place / "runs" / "seen")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in told] == [10, 20]            # nothing gains 1, so the second evaluation ends it
    for row in told:
        assert 0.15 < row["eval_knn"] < 1                       # by chance a tenth
        assert 0.15 < row["eval_linear"] < 1
        assert 1 < row["eval_rankme"] <= 32
    steps = [row for row in rows if "information" in row]
    assert steps
    assert all(0 <= row["information"] <= 1 and row["teacher_entropy"] > 0 and row["divergence"] > -1e-3 for row in steps)
    best = max(told, key=lambda row: row["eval_knn"])
    kept = sorted(folder.name for folder in (run.folder / "checkpoints").iterdir())
    assert f"step-{best['step']:08d}" in kept
    assert "k-nn" in output

    short = ("init=runs/seen", "duration=2 steps", "optim.warmup=0 steps", "evaluate={}", "checkpoint.best=null")
    train(place, "name=free", *short, recipe="seen.yaml")
    anchored = ("name=anchored", *short, "objective.gram=2", "objective.gram_teacher=runs/seen", "objective.gram_image=16",
                "checkpoint={every: 1 steps, keep: 2}")
    train(place, *anchored, recipe="seen.yaml")
    losses = [Run(place / "runs" / name).losses for name in ("free", "anchored")]
    assert losses[0][1] + 1e-4 < losses[1][1] < losses[0][1] + 1        # the anchor sees more pixels, so it is not the student itself

    last = Run(place / "runs" / "anchored").folder / "checkpoints" / "step-00000002"
    shutil.move(last, place / "kept")
    (last.parent.parent / "outcome.json").unlink()
    output = train(place, *anchored, recipe="seen.yaml")                # asks the same anchor again
    assert "resuming from step-00000001" in output
    assert Run(place / "runs" / "anchored").losses[2] == pytest.approx(losses[1][2], rel=1e-6)
    facts, recipe = read_facts(last), check_recipe(read_facts(last).recipe, "saved")
    recipe = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"gram_teacher": str(run.folder)})})
    assert facts.frozen == frozen_hash(recipe)
    shutil.rmtree(run.folder / "checkpoints")                           # it has gone on training
    shutil.copytree(place / "runs" / "free" / "checkpoints", run.folder / "checkpoints")
    assert facts.frozen != frozen_hash(recipe)
    shutil.rmtree(last)
    (last.parent.parent / "outcome.json").unlink()
    refused = train(place, *anchored, recipe="seen.yaml", code=2)
    assert "frozen_hash" in refused
    assert "--accept-changes" in refused
