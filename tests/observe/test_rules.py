"""Recording and alert rules: Prometheus' own checker, a firing and a silent case for every alert, and no metric that the table has not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from vitscale.metrics import BY_NAME
from vitscale.observe.grafana import checked
from vitscale.observe.prometheus_files import MONITORING, RULES

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")


def rules(name: str) -> list[dict[str, object]]:
    read = yaml.safe_load((MONITORING / name).read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_takes_them() -> None:
    promtool("check", "config", str(MONITORING / "prometheus.yml"))     # and the rules that it names


@needs_promtool
def test_every_case_comes_out_as_written() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(MONITORING / "alerts_test.yml"))


@needs_promtool
def test_a_threshold_that_is_moved_would_be_seen(tmp_path: Path) -> None:
    for path in MONITORING.glob("*.yml"):
        shutil.copy(path, tmp_path)
    alerts = tmp_path / "alerts.yml"
    alerts.write_text(alerts.read_text().replace("ratio < 0.10", "ratio < 0.01"))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "alerts_test.yml")], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "VitscaleDiskNearlyFull" in done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    fires, silent = set(), set()
    for case in cases:
        name, says = case["name"].split(" ", 1)
        assert {one["alertname"] for one in case["alert_rule_test"]} == {name}
        for one in case["alert_rule_test"]:
            assert bool(one.get("exp_alerts")) == (says == "fires"), case["name"]
        (fires if says == "fires" else silent).add(name)
    assert fires == silent == {rule["alert"] for rule in rules("alerts.yml")}


@pytest.mark.parametrize("file", RULES)
def test_rules_ask_for_metrics_and_labels_of_the_table_alone(file: str) -> None:
    for rule in rules(file):
        expr = str(rule["expr"])
        checked(expr)
        for name, labels in re.findall(r"(?<![\w:])vitscale_(\w+)\{([^}]*)\}", expr):
            metric = next(BY_NAME[base] for base in (name, re.sub(r"_(sum|count|bucket)$", "", name)) if base in BY_NAME)
            assert set(re.findall(r"(\w+)\s*[=!]", labels)) <= {*metric.labels, "run", "node"}, expr


def test_a_recorded_name_that_is_asked_for_is_recorded() -> None:
    recorded = {str(rule["record"]) for rule in rules("recording.yml")}
    for rule in rules("alerts.yml"):
        assert set(re.findall(r"\b(?:run|node):[\w:]+", str(rule["expr"]))) <= recorded


def test_what_an_alert_says_stands_beside_what_to_do() -> None:
    for rule in rules("alerts.yml"):
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_guide_names_every_alert() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    assert re.findall(r"^\| (Vitscale\w+) \|", guide, re.MULTILINE) == [rule["alert"] for rule in rules("alerts.yml")]
