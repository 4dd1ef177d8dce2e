"""A run whose features have collapsed says so on its page and in its report, by the alert's own thresholds, and no other run does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitscale.metrics import COLUMNS
from vitscale.observe.dashboard.table import Table
from vitscale.observe.dashboard.view import run_view
from vitscale.observe.prometheus_files import MONITORING

GUARDED = {metric.column: metric for metric in COLUMNS.values() if metric.least is not None}


def notices(folder: Path, rows: list[dict[str, Any]], total: Any = 100_000) -> list[str]:
    """Of a run whose steps, of 100 images each, and evaluations have these numbers."""
    (folder / "environment.json").write_text(json.dumps({"total_images": total}))
    lines = [{"step": step, "images": 100 * step, "time": 1e9 + step, "attempt": 1, "applied": True,
              **({} if "eval_loss" in row else {"loss": 1.0}), **row} for step, row in enumerate(rows, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Table(folder / "metrics.jsonl")
    table.refresh()
    found = run_view(folder, table)["notices"]
    assert run_view(folder, table, axis="step", points=5)["notices"] == found
    return found


@pytest.mark.parametrize("column", GUARDED)
def test_a_planted_collapse_is_a_line_and_features_that_are_sound_are_none(tmp_path: Path, column: str) -> None:
    least = GUARDED[column].least
    assert least is not None

    def row(value: float) -> dict[str, Any]:
        return {column: value} | ({"eval_loss": 1.0} if column.startswith("eval_") else {})

    steps: list[dict[str, Any]] = [{}] * 150
    sound, gone = row(2 * least), row(0.5 * least)
    (line,) = notices(tmp_path, [*steps, *[gone] * 60])
    assert "no longer apart" in line
    assert "teacher_temp" in line
    assert notices(tmp_path, [*steps, *[gone] * 60, *[sound] * 61]) == []               # it has come back
    assert notices(tmp_path, [{}, *[gone] * 60]) == []                                  # it has hardly begun
    assert notices(tmp_path, [*steps, *[sound] * 60]) == []
    assert notices(tmp_path, steps) == []
    for total in (None, "many", 0.0):                                                   # nobody knows how far it is
        assert notices(tmp_path, [*steps, gone], total) == []


def test_the_alert_and_the_page_ask_alike() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    (rule,) = [rule for group in groups for rule in group["rules"] if rule["alert"] == "VitscaleCollapse"]
    asked = " or ".join(f"{metric.full_name} < {metric.least:g}" for metric in GUARDED.values())
    assert f"({asked})" in rule["expr"]
    assert "/ vitscale_target_images > 0.1" in rule["expr"]
