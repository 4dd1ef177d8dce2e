"""Which rows of metrics.jsonl count after kills, resumes and rollbacks: every reader of it gives the same answer, that of a plain model."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.observe.dashboard.table import Table
from vitscale.observe.dashboard.view import run_view
from vitscale.observe.totals import METRICS, Totals
from vitscale.runfolder import last_row

ACTS = st.lists(st.one_of(st.tuples(st.just("steps"), st.integers(1, 6)), st.tuples(st.just("evaluate"), st.just(0)),
                          st.tuples(st.just("checkpoint"), st.integers(0, 3)), st.tuples(st.just("rollback"), st.integers(1, 9)),
                          st.tuples(st.just("resume"), st.integers(1, 9)), st.tuples(st.just("resume without a word"), st.integers(1, 9))),
                max_size=25)


def life(acts: list[tuple[str, int]]) -> tuple[list[dict[str, Any]], dict[int, float], dict[int, float]]:
    """-> the rows of a run, and what stands in the end: step -> loss, step -> loss of the evaluation."""
    rows: list[dict[str, Any]] = []
    losses: dict[int, float] = {}
    evaluations: dict[int, float] = {}
    step, serial = 0, 0

    def cut(last: int) -> None:
        for held in (losses, evaluations):
            for gone in [at for at in held if at > last]:
                del held[gone]

    for act, value in acts:
        if act == "steps":
            for _ in range(value):
                step, serial = step + 1, serial + 1
                cut(step - 1)
                losses[step] = float(serial)
                rows.append({"step": step, "images": 8 * step, "time": 1e9 + serial, "loss": float(serial), "applied": True, "attempt": 1})
        elif act == "evaluate" and step:
            serial += 1
            evaluations[step] = float(serial)
            rows.append({"step": step, "images": 8 * step, "time": 1e9 + serial, "eval_loss": float(serial), "eval_top1": 0.5})
        elif act == "checkpoint" and step:      # told later than it was taken
            rows.append({"event": "checkpoint", "step": max(step - value, 1), "seconds": 1.0, "time": 1e9 + serial})
        elif act == "rollback" or act.startswith("resume"):
            to = max(step - value, 0)
            if act in ("rollback", "resume"):
                rows.append({"event": act, "step": step, "to_step": to, "time": 1e9 + serial})
                cut(to)
            step = to
    return rows, losses, evaluations


@settings(max_examples=150, deadline=None)
@given(ACTS)
def test_every_reader_sees_the_same(tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]) -> None:
    rows, losses, evaluations = life(acts)
    folder = tmp_path_factory.mktemp("run")
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Table(folder / METRICS)
    table.refresh()
    view = run_view(folder, table, axis="step")
    assert dict(zip(view["x"], view["series"].get("loss", {}).get("mean", []), strict=True)) == losses
    assert dict(zip(view["evaluations"]["x"], view["evaluations"].get("eval_loss", []), strict=True)) == evaluations
    last = max(losses, default=None)
    assert last_row(folder / METRICS, "loss").get("loss") == losses.get(last or 0)
    last = max(evaluations, default=None)
    assert last_row(folder / METRICS, "eval_loss").get("eval_loss") == evaluations.get(last or 0)
    totals = Totals(folder)
    assert totals.evaluation.get("eval_loss") == evaluations.get(last or 0)
    assert totals.steps == max((row["step"] for row in rows if "loss" in row), default=0)
    told = Totals(folder.with_name("none"))
    for row in rows:
        told.metric(row)
    assert told.evaluation == totals.evaluation
