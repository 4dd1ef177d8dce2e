"""A whole run without labels is judged by its features while it goes on, and keeps what they say is best."""

import json
from pathlib import Path

import pytest
from running import UNLABELLED, Run, train

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
    train(place, "name=anchored", *short, "objective.gram=2", "objective.gram_teacher=runs/seen", "objective.gram_image=16",
          recipe="seen.yaml")
    free, anchored = (Run(place / "runs" / name).losses[1] for name in ("free", "anchored"))
    assert free + 1e-4 < anchored < free + 1                    # the anchor looks at twice the pixels, so it is not the student itself
