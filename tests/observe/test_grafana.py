"""Dashboards: by Grafana's own schema, from the table of metrics alone, and as they lie in launch/monitoring."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema.validators import validator_for

from vitscale.observe.grafana import BOARDS, checked, dashboard, files, main
from vitscale.observe.prometheus_files import MONITORING

SCHEMA = json.loads((Path(__file__).parents[1] / "golden" / "grafana_dashboard.schema.json").read_text())
VALIDATOR = validator_for(SCHEMA)(SCHEMA)


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_schema_takes_it(name: str) -> None:
    assert [f"{list(error.path)}: {error.message}" for error in VALIDATOR.iter_errors(dashboard(BOARDS[name]))] == []


@pytest.mark.parametrize(("path", "value"), [
    (("panels", 1, "gridPos", "w"), "wide"), (("panels", 1, "type"), None), (("templating", "list", 0, "type"), "datasauce"),
    (("graphTooltip",), "often"),
])
def test_the_schema_would_see_a_mistake(path: tuple[str | int, ...], value: object) -> None:
    broken = copy.deepcopy(dashboard(BOARDS["run"]))
    at: object = broken
    for key in path[:-1]:
        at = at[key]        # type: ignore[index]
    at[path[-1]] = value    # type: ignore[index]
    assert list(VALIDATOR.iter_errors(broken))


def test_those_in_the_checkout_are_the_ones_that_the_code_makes(tmp_path: Path) -> None:
    main(tmp_path)
    lie = {path.relative_to(MONITORING / "grafana"): path.read_text() for path in (MONITORING / "grafana").rglob("*") if path.is_file()}
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert lie == made, "python -m vitscale.observe.grafana launch/monitoring/grafana"


def test_uids_and_titles_are_ones_own_and_panels_do_not_overlap() -> None:
    assert len({board.uid for board in BOARDS.values()}) == len(BOARDS)
    for board in BOARDS.values():
        made = dashboard(board)
        taken: set[tuple[int, int]] = set()
        for panel in made["panels"]:
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells
        assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])


def test_only_recorded_names_and_variables_that_are_declared_are_used() -> None:
    recorded = {rule["record"] for group in yaml.safe_load((MONITORING / "recording.yml").read_text())["groups"] for rule in group["rules"]}
    for board in BOARDS.values():
        text = json.dumps([panel.queries for row in board.rows.values() for panel in row], default=lambda query: query.expr)
        assert set(re.findall(r"\b(?:run|node):[\w:]+", text)) <= recorded
        assert set(re.findall(r"\$(\w+)", text)) - {"__rate_interval"} == set(board.variables)


@pytest.mark.parametrize("expr", ["vitscale_los", "rate(vitscale_step_phase_seconds[5m])", "vitscale_loss_bucket", "sum(vitscale_images)"])
def test_a_metric_that_is_not_in_the_table_is_refused(expr: str) -> None:
    with pytest.raises(ValueError, match="not in the table"):
        checked(expr)


def test_provisioning_says_where_the_dashboards_lie() -> None:
    made = dict(files("/somewhere/dashboards", "http://10.0.0.1:9090"))
    assert yaml.safe_load(made["provisioning/dashboards/vitscale.yml"])["providers"][0]["options"] == {"path": "/somewhere/dashboards"}
    assert yaml.safe_load(made["provisioning/datasources/vitscale.yml"])["datasources"][0]["url"] == "http://10.0.0.1:9090"
