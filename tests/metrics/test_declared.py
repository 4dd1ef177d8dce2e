"""The declarations keep to Prometheus' conventions and to each other, and names of columns stand nowhere else."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from running import Run

import vitscale
from vitscale import metrics
from vitscale.metrics import (
    BY_NAME,
    COLUMNS,
    JUDGES,
    METRICS,
    OF_EVALUATIONS,
    OF_STEPS,
    Numbers,
    curves,
    metrics_of,
    numbers_of,
    of_objectives,
)
from vitscale.metrics.guide import written
from vitscale.metrics.metric import EVALUATED, evaluated, trained
from vitscale.metrics.of_objectives import declare
from vitscale.metrics.system import ACCURACY, BESIDE, LEARNED, PHASES
from vitscale.recipe.objectives import OBJECTIVES

PACKAGE = Path(vitscale.__file__).parent


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


def test_a_phase_is_a_label_and_a_column():
    assert BY_NAME["step_phase_seconds"].labels == ("phase",)
    assert {f"seconds_{phase}" for phase in PHASES} <= COLUMNS.keys()


def test_an_evaluation_is_no_step():
    assert metrics_of({"step": 3, "time": 9.0, "loss": 2.0, "images_per_second": 5.0, "own_max_s": 1.0}) == {
        "steps_total": 3, "last_step_timestamp_seconds": 9.0, "loss": 2.0, "images_per_second": 5.0,
    }
    assert metrics_of({"step": 3, "time": 9.0, "eval_top1": 0.5}) == {"steps_total": 3, "eval_top1_ratio": 0.5}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_is_judged_by_a_number_that_it_tells(objective):
    numbers = numbers_of(objective)
    assert numbers.judge in (*numbers.evaluation, OF_EVALUATIONS[-1])
    assert numbers.judge in JUDGES
    assert all(judge.better and judge.title and judge.word for judge in JUDGES)


def test_every_column_is_drawn_by_its_own_panel_once():
    drawn = [column for panel in curves().values() for column, _, _ in panel]
    assert len(drawn) == len(set(drawn))
    assert {metric.averaged for metric in OF_EVALUATIONS} < set(drawn)


def test_what_a_run_records_is_declared(unbroken: Run):
    for row in unbroken.rows():
        assert row.keys() <= COLUMNS.keys() | set(BESIDE)


@pytest.mark.parametrize(("made", "judges", "said"), [
    (trained("epoch", "Epochs", len, panel=ACCURACY, title="Epoch"), False, "has a column epoch already"),
    (evaluated("new", "A number", len, panel=ACCURACY, title="New"), True, "wants a judge .* with `better`, got eval_new"),
    (trained("new", "A number", len, panel=ACCURACY, title="New"), True, "wants a judge that its evaluations tell, .* got new"),
])
def test_what_cannot_be_declared_is_refused(made, judges, said, monkeypatch):
    monkeypatch.setattr(of_objectives, "NUMBERS", {})
    with pytest.raises(ValueError, match=said):
        declare("new", made, judge=made if judges else None)
    assert of_objectives.NUMBERS == {}


def test_two_numbers_of_one_column_are_refused(monkeypatch):
    ours, theirs = (evaluated("new", what, len, panel=ACCURACY, title="New") for what in ("One", "Another"))
    monkeypatch.setattr(metrics, "NUMBERS", {"ours": Numbers((), (ours,)), "same": Numbers((), (ours,))})
    assert metrics._numbers("evaluation") == (ours,)
    metrics.NUMBERS["theirs"] = Numbers((), (theirs,))
    with pytest.raises(ValueError, match="two metrics have the column eval_new"):
        metrics._numbers("evaluation")


def test_the_guide_has_the_tables_that_are_declared():
    guide = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    assert guide == written(guide), "make docs"
    for name in ("series", "columns"):
        with pytest.raises(ValueError, match=f"0 places for the table of {name}"):
            written(guide.replace(f"<!-- {name} -->", ""))


# Who measures a column names it once, as the key under which it is handed on; files of another form have names of their own.
MEASURED_IN = {"grad_norm": "train/record.py", "loader_ready": "train/record.py", "resident_bytes": "train/record.py",
               "device_bytes": "train/record.py", "images_per_second": "observe/meters.py", "mfu": "observe/meters.py",
               "skew": "train/pace.py", "own_max_s": "train/pace.py", "own_median_s": "train/pace.py"}
OTHER_FILES = {"plan/measured.py", "bench/step.py"}     # of a benchmark
EVERYDAY = {"step", "images", "time", "loss", "lr"}     # words that mean other things too


def test_names_of_columns_stand_in_no_other_module():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name.startswith("metrics/") or "_shipped" in name:
            continue
        text = path.read_text()
        found += [f"{name}: {column}" for column in re.findall(rf"\b{EVALUATED}(?:ema_)?(?:{_keys()})\b", text)]
        if name not in OTHER_FILES:
            strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            found += [f"{name}: {column}" for column in strings
                      if column in COLUMNS.keys() - EVERYDAY and MEASURED_IN.get(column) != name]
    assert found == []


def test_the_page_names_no_number_of_learning():
    """What a tile says beside a number of the system, such as the peak that MFU is a share of, is the page's own."""
    learned = {metric.column for metric in LEARNED} - EVERYDAY
    for path in sorted((PACKAGE / "observe" / "dashboard" / "static").glob("*.js")):
        text = path.read_text()
        assert re.findall(rf"\b{EVALUATED}(?:ema_)?(?:{_keys()})\b|\b(?:{'|'.join(learned)})\b|\btop-?[15]\b", text, re.IGNORECASE) == []


def _keys() -> str:
    return "|".join([*(metric.key for metric in OF_EVALUATIONS), "images"])


def test_the_check_would_see_one():
    assert re.search(rf"\b{EVALUATED}(?:ema_)?(?:{_keys()})\b", 'row["eval_ema_top1"]')
    assert {"grad_norm", "seconds_compute", "mfu"} <= COLUMNS.keys() - EVERYDAY
    assert {metric.column for metric in OF_STEPS} >= MEASURED_IN.keys()
