"""A whole run without labels is judged by its features while it goes on, keeps what they say is best, and asks one anchor alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from masks import MASKS, masked
from running import UNLABELLED, Run, train
from safetensors.torch import load_file, save_file

import vitscale
from vitscale.checkpoint.store import EMA_WEIGHTS, STATE, WEIGHTS, read_whole
from vitscale.export.folder import write_safetensors

pytestmark = pytest.mark.slow       # whole runs
AVERAGE = "objective.centring=average"      # so that there is a centre to carry over


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Path, str]:
    """The folder in which the run `seen` was made, and what was printed."""
    place = tmp_path_factory.mktemp("seen")
    (place / "data").mkdir()
    (place / "data" / "digits").symlink_to(digits)
    masked(digits, place / "data" / "masked")
    (place / "seen.yaml").write_text(UNLABELLED)
    return place, train(place, AVERAGE, *MASKS, recipe="seen.yaml")


def test_features_judge_stop_and_choose(seen: tuple[Path, str]) -> None:
    place, output = seen
    run = Run(place / "runs" / "seen")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in told] == [10, 20]            # nothing gains 1, so the second evaluation ends it
    for row in told:
        assert 0.15 < row["eval_knn"] < 1                       # by chance a tenth
        assert 0.15 < row["eval_linear"] < 1
        assert 1 < row["eval_rankme"] <= 32
        assert 0.4 < row["eval_miou"] < 1                       # all of one class: a third
    steps = [row for row in rows if "information" in row]
    assert steps
    assert all(0 <= row["information"] <= 1 and row["teacher_entropy"] > 0 and row["divergence"] > -1e-3 for row in steps)
    best = max(told, key=lambda row: row["eval_knn"])
    kept = sorted(folder.name for folder in (run.folder / "checkpoints").iterdir())
    assert f"step-{best['step']:08d}" in kept
    assert "k-nn" in output
    features = ("eval_knn", "eval_linear", "eval_rankme", "eval_miou")       # which a sweep reads there
    assert [run.outcome[name] for name in features] == pytest.approx([told[-1][name] for name in features], rel=1e-6)


def test_a_next_phase_begins_there_and_an_anchor_that_has_become_another_is_refused(seen: tuple[Path, str]) -> None:
    """With heads, teacher and centres; and it goes on, as if nothing had happened, with the anchor that it began with."""
    place, anchor = seen[0], seen[0] / "anchor"
    write_safetensors(vitscale.load(place / "runs" / "seen"), anchor)
    begun = ("name=anchored", "init=runs/seen", "duration=2 steps", "optim.warmup=0 steps", "evaluate={}", "objective.gram=2",
             "objective.gram_teacher=anchor", "objective.gram_image=16", "checkpoint={every: 1 steps, keep: 2, best: null}", AVERAGE,
             "optim.lr=0", "objective.momentum=1.0", "objective.centre_momentum=0.999")
    output = train(place, *begun, recipe="seen.yaml")
    assert "the teacher is that run's, and so is objective.centre, objective.patch_centre" in output
    run, before = Run(place / "runs" / "anchored"), Run(place / "runs" / "seen")
    losses = run.losses
    first, last = (one.folder / "checkpoints" / one.checkpoints[at] for one, at in ((run, 0), (before, -1)))
    for name in (WEIGHTS, EMA_WEIGHTS):
        found, wanted = load_file(first / name), load_file(last / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    found, wanted = (read_whole(one / STATE, "objective.") for one in (first, last))
    assert found.keys() == wanted.keys() == {"centre", "patch_centre"}
    for name, centre in wanted.items():
        torch.testing.assert_close(found[name], centre, rtol=0, atol=2e-3)
        assert centre.abs().max() > 0.01
    shutil.rmtree(run.folder / "checkpoints" / "step-00000002")
    (run.folder / "outcome.json").unlink()

    weights = load_file(anchor / WEIGHTS)
    save_file({name: value * 1.001 for name, value in weights.items()}, anchor / WEIGHTS, metadata={"format": "pt"})
    refused = train(place, *begun, recipe="seen.yaml", code=2)
    assert "frozen_hash" in refused
    assert "--accept-changes" in refused
    assert run.checkpoints == ["step-00000001"]
    save_file(weights, anchor / WEIGHTS, metadata={"format": "pt"})
    assert "resuming from step-00000001" in train(place, *begun, recipe="seen.yaml")
    assert run.losses == pytest.approx(losses, rel=1e-6)
