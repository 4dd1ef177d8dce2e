"""Runs that differ in the seed alone are told as a mean with its spread; every run of a sweep is listed with its state."""

import csv
import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vitscale.errors import DataError
from vitscale.scaling.collect import largest_of, rows_of
from vitscale.scaling.report import show_runs
from vitscale.scaling.seeds import over_seeds, say_seeds, setting_of, spread


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([float("nan"), float("inf")])), max_size=12))
def test_a_spread_is_the_mean_of_what_is_finite(values: list[float]) -> None:
    known = [value for value in values if np.isfinite(value)]
    told = spread(values)
    if not known:
        assert told is None
        return
    assert told is not None
    assert (told.runs, told.low, told.high) == (len(known), min(known), max(known))
    assert told.mean == pytest.approx(np.mean(known), abs=1e-6)
    if len(known) > 1:
        assert told.deviation == pytest.approx(np.std(known, ddof=1), rel=1e-6, abs=1e-6)
    else:
        assert told.deviation is None


def planned(name: str, n: int, seed: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "vit", "n": n, "d": 320, "u": 1000, "c": 6.0 * n * 320, "budget": 1e9, "shape": None, "seed": seed,
            "lr": 1e-3, "batch": 32, "level": 1e9, "held_out": False, "trunk": None, "branch_step": None} | more


def outcome(folder: Path, name: str, **told: Any) -> None:
    (folder / "runs" / name).mkdir(parents=True, exist_ok=True)
    (folder / "runs" / name / "outcome.json").write_text(json.dumps({"state": "done", "images": 320, "time": time.time()} | told))


def laid_out(folder: Path) -> list[dict[str, Any]]:
    """A sweep with runs in every state there is."""
    runs = [planned(f"a-s{seed}", 1000, seed) for seed in range(3)] + [planned(f"b-s{seed}", 2000, seed) for seed in range(3)]
    runs += [planned("a-lr", 1000, 0, lr=1e-2), planned("later", 4000, 0), planned("wrong", 5000, 0), planned("gone", 6000, 0)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({
        "metric": "eval_loss", "runs": runs, "pruned": [{"run": "tiny-x", "reason": "2 images are less than one batch"}]}))
    for seed, loss in enumerate((0.50, 0.60, 0.55)):
        outcome(folder, f"a-s{seed}", eval_loss=loss, eval_top1=1 - loss)
    outcome(folder, "b-s0", eval_loss=0.4, eval_top1=0.6)
    outcome(folder, "b-s1", state="failed", exit_code=3, reason="the loss was not finite")
    outcome(folder, "a-lr", eval_loss=0.1, eval_top1=0.9)
    outcome(folder, "wrong", state="wrong input", exit_code=2, reason="data.train: no such shards")
    lease = folder / "runs" / "gone" / "lease"          # began, and ended without a word
    lease.mkdir(parents=True)
    (lease / "1").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    os.utime(lease / "1", (time.time() - 3600, time.time() - 3600))
    (folder / "runs" / "gone" / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0, "images": 224}\n')
    return runs


def test_every_run_has_the_state_that_all_other_accounts_give(tmp_path: Path) -> None:
    runs = laid_out(tmp_path / "s")
    rows = {row["run"]: row for row in rows_of(tmp_path / "s")}
    assert list(rows) == [run["name"] for run in runs]
    assert {name: row["state"] for name, row in rows.items()} == {
        **{f"a-s{seed}": "done" for seed in range(3)}, "a-lr": "done", "b-s0": "done", "b-s1": "failed", "b-s2": "not started",
        "later": "not started", "wrong": "wrong input", "gone": "lost"}
    assert rows["gone"]["reason"].startswith("not finished: lost: attempt 1 ended without a word after step 7, last heard of ")
    assert rows["b-s1"]["reason"] == "not finished: failed: the loss was not finite"
    assert rows["later"]["reason"] == "not finished: not started"
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({"metric": "eval_loss", "runs": runs[-1:]}))
    with pytest.raises(DataError, match="gone: not finished: lost: attempt 1 ended without a word"):
        largest_of(str(tmp_path / "s"))


def test_seeds_are_told_as_mean_and_spread_and_learning_rates_are_no_seeds(tmp_path: Path) -> None:
    runs = laid_out(tmp_path / "s")
    assert setting_of(runs[0]) == setting_of(runs[1]) != setting_of(runs[3])
    assert setting_of(runs[0]) != setting_of(runs[6])
    told = json.loads((tmp_path / "s" / "sweep.json").read_text())
    lines = "\n".join(say_seeds(rows_of(tmp_path / "s"), told))
    assert ("a-s0, a-s1, a-s2: loss 0.5500 ± 0.0500, 0.5000 to 0.6000, of 3 seeds; "
            "top-1 45.00% ± 5.00%, 40.00% to 50.00%, of 3 seeds") in lines
    assert "b-s0, b-s1, b-s2: loss 0.4000, of 1 of 3 seeds" in lines
    assert "0.1000" not in lines                # the other learning rate's is not mixed in, nor is the best one told
    assert "runs of the sweep: 5 done, 2 not started, " in lines
    for state in ("1 failed", "1 wrong input", "1 lost", "1 refused"):
        assert state in lines
    assert over_seeds(runs[6:], {}) == []


def test_the_table_and_the_file_list_all_runs(tmp_path: Path) -> None:
    laid_out(tmp_path / "s")
    console = Console(file=io.StringIO(), width=200)
    show_runs(tmp_path / "s", console)
    text = console.file.getvalue()      # type: ignore[attr-defined]
    with open(tmp_path / "s" / "runs.csv", newline="") as file:
        listed = {row["run"]: row["state"] for row in csv.DictReader(file)}
    assert len(listed) == 10
    for name in listed:
        assert re.search(rf"^{name} ", text, re.MULTILINE)
    assert "mean ± standard deviation over seeds" in text
