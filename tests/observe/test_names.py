"""The one table keeps to Prometheus' conventions."""

import re
from collections import Counter
from pathlib import Path

import pytest

from vitscale.observe.names import BY_NAME, COLUMNS, METRICS, PHASES, metrics_of


def test_no_name_is_given_twice():
    assert [name for name, count in Counter(metric.name for metric in METRICS).items() if count > 1] == []


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_conventions(metric):
    assert re.fullmatch(r"vitscale_[a-z][a-z0-9_]*", metric.full_name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.kind == "info")
    assert not re.search(r"_(ms|millis|milliseconds|us|minutes|hours|percent|kb|mb|gb|kilobytes|megabytes|gigabytes)(_|$)", metric.name)
    assert not re.search(r"_(sum|count|bucket)$", metric.name)      # a histogram's own
    assert metric.help.endswith(".")
    assert "ratio" not in metric.name or re.search("0 to 1|1 or more", metric.help)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(metric.buckets)
    assert metric.labels == ("rank", *metric.labels[1:]) if metric.scope == "rank" else "rank" not in metric.labels
    assert len(metric.labels) - (metric.scope == "rank") <= 1 or metric.kind == "info"
    assert bool(metric.values) == bool(set(metric.labels) - {"rank"}) or metric.kind == "info"      # no label can grow without bound


def test_every_column_is_a_metric():
    assert set(COLUMNS.values()) <= set(BY_NAME)
    assert BY_NAME["step_phase_seconds"].labels == ("phase",)
    assert "data_wait" in PHASES


def test_an_evaluation_is_no_step():
    assert metrics_of({"step": 3, "time": 9.0, "loss": 2.0, "images_per_second": 5.0}) == {
        "steps_total": 3, "last_step_timestamp_seconds": 9.0, "loss": 2.0, "images_per_second": 5.0,
    }
    assert metrics_of({"step": 3, "time": 9.0, "eval_top1": 0.5}) == {"steps_total": 3, "eval_top1_ratio": 0.5}


def test_the_guide_has_the_same_table():
    guide = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `vitscale_")]
    assert rows == [f"| `{metric.full_name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.scope} | {metric.help} |"
                    for metric in METRICS]
