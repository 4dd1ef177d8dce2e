"""The Grafana dashboards, made from the table of metrics: a query that names what the table has not is refused where it is written.

    python -m vitscale.observe.grafana launch/monitoring/grafana        writes those of the checkout anew
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitscale.metrics import BY_NAME, curves
from vitscale.metrics.metric import PREFIX
from vitscale.metrics.system import PANELS

_WIDTH = 24                 # of Grafana's grid
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_R = 'run=~"$run"'
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Query:
    """`expr` is PromQL; `legend` names each series by its labels."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class GrafanaPanel:
    """One picture."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"                 # as Grafana names it
    kind: str = "timeseries"            # or stat, table, bargauge, heatmap
    width: int = 8
    height: int = 7
    help: str = ""
    stacked: bool = False
    decimals: int | None = None
    warn: float | None = None           # from there on yellow, and from `bad` on red; with bad < warn: below
    bad: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One dashboard: rows of panels under a title each, and the variables that its queries use, of which `query` gives the values."""

    uid: str
    title: str
    help: str
    rows: Mapping[str, Sequence[GrafanaPanel]]
    variables: Mapping[str, str]


def one(title: str, expr: str, unit: str = "short", **more: Any) -> GrafanaPanel:
    """A number."""
    return GrafanaPanel(title, (Query(expr),), unit, **{"kind": "stat", "width": 4, "height": 4, **more})


def line(title: str, *queries: tuple[str, str], unit: str = "short", **more: Any) -> GrafanaPanel:
    """Curves over time: (PromQL, legend) each."""
    return GrafanaPanel(title, tuple(Query(*query) for query in queries), unit, **more)


def _learning() -> Iterator[GrafanaPanel]:
    """Those of the page that show how training goes, what objectives tell among it; averaged weights have no series."""
    units = {"ratio": "percentunit", "bytes": "bytes", "seconds": "s", "number": "short"}
    for panel, drawn in curves().items():
        queries = [(f"max({metric.full_name}{{{_R}}})", curve.label) for column, metric, curve in drawn
                   if metric.name and column == metric.column]
        if queries and (panel.learning or panel not in PANELS):
            yield line(panel.title, *queries, unit=units[panel.unit], help=panel.aside, **{"width": 12, "height": 8} if panel.wide else {})


_RUNS = {"run": "label_values(vitscale_steps_total, run)"}
_STEP = 'phase!~"checkpoint|evaluate"'

FLEET = Dashboard("vitscale-fleet", "vitscale: all runs", "Which runs are there, how far and how fast, and which need somebody.", {
    "Now": [
        one("Runs", "count(count by (run) (vitscale_steps_total))"),
        one("Devices", "sum(vitscale_devices)"),
        one("Images per second, all runs", "sum(vitscale_images_per_second)", decimals=0),
        one("Alerts that fire", 'sum(ALERTS{alertname=~"Vitscale.+", alertstate="firing"}) or vector(0)', warn=1, bad=1),
        one("Nodes that answer", 'sum(up{job="vitscale"})'),
        one("Restarts in the last day", "sum(max_over_time(run:vitscale_restarts:sum[1d]) - min_over_time(run:vitscale_restarts:sum[1d]))"),
    ],
    "Runs": [
        line("Progress", ("run:vitscale_progress:ratio", "{{run}}"), unit="percentunit", kind="bargauge"),
        line("Time to the end", ("max by (run) (vitscale_eta_seconds)", "{{run}}"), unit="s", kind="bargauge"),
        line("Seconds since the last step", ("run:vitscale_last_step_age:seconds", "{{run}}"), unit="s", kind="bargauge", warn=120,
             bad=600),
        line("Images per second", ("sum by (run) (vitscale_images_per_second)", "{{run}}"), width=12, height=8),
        line("Model FLOP/s utilisation", ("max by (run) (vitscale_mfu_ratio)", "{{run}}"), unit="percentunit", width=12, height=8),
        line("Loss", ("max by (run) (vitscale_loss)", "{{run}}"), width=12, height=8),
        line("Goodput: time spent on steps that count", ("max by (run) (vitscale_goodput_ratio)", "{{run}}"), unit="percentunit", width=12,
             height=8),
    ],
}, {})

RUN = Dashboard("vitscale-run", "vitscale: one run", "Is it fast, healthy and on time; what it waits for; which rank is slow.", {
    "Now": [
        one("Progress", f"run:vitscale_progress:ratio{{{_R}}}", "percentunit"),
        one("Time to the end", f"max(vitscale_eta_seconds{{{_R}}})", "s"),
        one("Images per second", f"sum(vitscale_images_per_second{{{_R}}})", decimals=0),
        one("Per device", f"sum(vitscale_images_per_second_per_device{{{_R}}})", decimals=1),
        one("Model FLOP/s utilisation", f"max(vitscale_mfu_ratio{{{_R}}})", "percentunit", decimals=1),
        one("of a device's peak", f"max(vitscale_device_peak_flops{{{_R}}})", "flops", decimals=1),
        one("Goodput", f"max(vitscale_goodput_ratio{{{_R}}})", "percentunit", decimals=1),
        one("Seconds since the last step", f"run:vitscale_last_step_age:seconds{{{_R}}}", "s", warn=120, bad=600),
        one("Since the last checkpoint", f"run:vitscale_checkpoint_age:seconds{{{_R}}}", "s", warn=3600, bad=7200),
        one("Restarts", f"run:vitscale_restarts:sum{{{_R}}}", warn=1, bad=3),
        one("Waits for data", f"run:vitscale_data_wait:ratio_rate5m{{{_R}}}", "percentunit", decimals=1, warn=0.05, bad=0.1),
        one("Slowest rank over the median", f"max(vitscale_rank_step_skew_ratio{{{_R}}})", decimals=2, warn=1.1, bad=1.2),
    ],
    "Speed": [
        line("Images per second", (f"sum(vitscale_images_per_second{{{_R}}})", "now"),
             (f"run:vitscale_images_per_second:median1h{{{_R}}}", "its median over an hour"), width=12, height=8),
        line("Where a step's time goes", (f"run:vitscale_step_phase:seconds{{{_R}}}", "{{phase}}"), unit="s", width=12, height=8,
             stacked=True, help="Seconds of one step by phase, mean over ranks; checkpoints and evaluations spread over the steps."),
        line("Time of a step's compute", *((f"histogram_quantile({q}, sum by (le) (rate(vitscale_step_phase_seconds_bucket"
             f'{{{_R}, phase="compute"}}[$__rate_interval])))', f"{q:.0%}") for q in (0.5, 0.9, 0.99)), unit="s"),
        line("Wall time so far", (f"max by (bucket) (vitscale_run_seconds_total{{{_R}}})", "{{bucket}}"), unit="s", kind="bargauge"),
        line("Model FLOP/s utilisation", (f"max(vitscale_mfu_ratio{{{_R}}})", "MFU"), unit="percentunit"),
    ],
    "Learning": [
        *_learning(),
        line("Steps left out and rollbacks", (f"max(vitscale_nonfinite_steps_total{{{_R}}})", "not finite"),
             (f"sum by (cause) (vitscale_rollbacks_total{{{_R}}})", "back for {{cause}}")),
    ],
    "Ranks": [
        line("Own time of a step by rank", (f"vitscale_rank_own_seconds{{{_R}}}", "{{rank}} on {{node}}"), unit="s", width=12, height=8,
             help="Before the rank's first exchange with others: who is slow here makes all wait."),
        line("Wait for other ranks by rank", (f'rate(vitscale_rank_phase_seconds_total{{{_R}, phase="communication"}}[$__rate_interval])',
             "{{rank}} on {{node}}"), unit="percentunit", width=12, height=8),
        line("Slowest rank over the median", (f"max(vitscale_rank_step_skew_ratio{{{_R}}})", "times")),
        line("Wait for the exchange of gradients in a backward pass",
             (f"vitscale_rank_gradient_exchange_seconds{{{_R}}}", "{{rank}} on {{node}}"), unit="s", help="ddp alone tells it."),
    ],
    "What the night cost": [
        line("Restarts by cause", (f"max by (cause) (vitscale_restarts_total{{{_R}}})", "{{cause}}")),
        line("Until a checkpoint is published",
             (f"sum(vitscale_checkpoint_seconds_sum{{{_R}}}) / sum(vitscale_checkpoint_seconds_count{{{_R}}})", "mean"), unit="s"),
        line("Checkpoints that failed", (f"max(vitscale_checkpoint_failures_total{{{_R}}})", "in this attempt")),
    ],
}, _RUNS)

DATA = Dashboard("vitscale-data", "vitscale: data plane", "Whether the devices are fed, by which ranks, and what could not be read.", {
    "Feeding the devices": [
        line("Share of a step spent waiting for data", (f"run:vitscale_data_wait:ratio_rate5m{{{_R}}}", "{{run}}"), unit="percentunit",
             width=12, height=8),
        line("The same by rank", (
             f'sum by (run, rank) (rate(vitscale_rank_phase_seconds_total{{{_R}, phase="data_wait"}}[$__rate_interval])) / '
             f"sum by (run, rank) (rate(vitscale_rank_phase_seconds_total{{{_R}, {_STEP}}}[$__rate_interval]))", "{{rank}}"),
             unit="percentunit", width=12, height=8),
        line("Micro-batches that stood ready", (f"min by (run) (vitscale_rank_ready_batches{{{_R}}})", "least, {{run}}"),
             (f"avg by (run) (vitscale_rank_ready_batches{{{_R}}})", "mean, {{run}}"),
             help="0: the threads cannot keep up; more of them are data.workers, more ahead data.prefetch."),
        line("Samples read per second", (f"sum by (run) (rate(vitscale_rank_samples_total{{{_R}}}[$__rate_interval]))", "{{run}}")),
        line("Bytes read per second", (f"sum by (run) (rate(vitscale_rank_read_bytes_total{{{_R}}}[$__rate_interval]))", "{{run}}"),
             unit="Bps"),
        line("Move to the device, mean per step", (
            f'sum by (run) (rate(vitscale_step_phase_seconds_sum{{{_R}, phase="h2d"}}[$__rate_interval])) / '
            f'sum by (run) (rate(vitscale_step_phase_seconds_count{{{_R}, phase="h2d"}}[$__rate_interval]))', "{{run}}"), unit="s"),
    ],
    "Bad samples": [
        line("Samples skipped by reason", (f"sum by (reason) (vitscale_samples_skipped_total{{{_R}}})", "{{reason}}"), width=12, height=8),
        line("Share of samples skipped in the last hour", (f"run:vitscale_samples_skipped:ratio1h{{{_R}}}", "{{run}}"), unit="percentunit",
             width=12, height=8),
    ],
}, _RUNS)

_N = 'node=~"$node"'
CLUSTER = Dashboard("vitscale-cluster", "vitscale: cluster health", "Nodes and devices: memory, disks, power, who does not answer.", {
    "Nodes": [
        line("Exporters that answer", ('sum by (node) (up{job="vitscale"})', "{{node}}"), kind="bargauge"),
        line("Host memory left", (f"min by (node) (vitscale_host_memory_available_bytes{{{_N}}} / vitscale_host_memory_size_bytes{{{_N}}})",
             "{{node}}"), unit="percentunit"),
        line("Disk left", (f"min by (node, disk) (node:vitscale_disk_free:ratio{{{_N}}})", "{{disk}} of {{node}}"), unit="percentunit"),
        line("Disk left, bytes", (f"min by (node, disk) (vitscale_disk_free_bytes{{{_N}}})", "{{disk}} of {{node}}"), unit="bytes"),
        line("Host memory of ranks", (f"sum by (node) (vitscale_rank_resident_bytes{{{_N}}})", "{{node}}"), unit="bytes"),
        line("Scrapes take", ('max by (node) (scrape_duration_seconds{job="vitscale"})', "{{node}}"), unit="s"),
    ],
    "Devices": [
        line("Utilisation", *((f"{how} by (node) (vitscale_device_utilization_ratio{{{_N}}})", f"{word} of {{{{node}}}}")
                              for how, word in (("avg", "mean"), ("min", "least"), ("max", "most"))), unit="percentunit"),
        line("Memory in use", (f"max by (node) (vitscale_device_memory_used_bytes{{{_N}}} / vitscale_device_memory_size_bytes{{{_N}}})",
             "fullest of {{node}}"), unit="percentunit"),
        line("Memory torch has held at most", (f"max by (node) (vitscale_device_memory_allocated_bytes{{{_N}}})", "most of {{node}}"),
             unit="bytes"),
        line("Power", (f"sum by (node) (vitscale_device_power_watts{{{_N}}})", "{{node}}"), unit="watt"),
        line("Temperature", (f"max by (node) (vitscale_device_temperature_celsius{{{_N}}})", "hottest of {{node}}"), unit="celsius"),
        line("Own time of a step, slowest rank of each node", (f"max by (node) (vitscale_rank_own_seconds{{{_N}}})", "{{node}}"), unit="s"),
    ],
}, {"node": 'label_values(up{job="vitscale"}, node)'})

BOARDS = {"fleet": FLEET, "run": RUN, "data": DATA, "cluster": CLUSTER}


def dashboard(board: Dashboard) -> dict[str, Any]:
    """As Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top, number = 0, 0
    for title, row in board.rows.items():
        number += 1
        panels.append({"type": "row", "id": number, "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1}})
        left, top, height = 0, top + 1, 0
        for panel in row:
            if left + panel.width > _WIDTH:
                left, top, height = 0, top + height, 0
            number += 1
            panels.append(_panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": panel.height}))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    variables: list[dict[str, Any]] = [{
        "type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1, "hide": 0, "options": [],
        "multi": False, "includeAll": False, "skipUrlSync": False}]
    for name, query in board.variables.items():
        variable = {"type": "query", "name": name, "label": name, "datasource": SOURCE, "query": query, "refresh": 2, "sort": 1, "hide": 0,
                    "options": [], "multi": False, "includeAll": False, "skipUrlSync": False}
        if board is not RUN:
            variable |= {"current": {"text": "All", "value": "$__all"}, "multi": True, "includeAll": True, "allValue": ".*"}
        variables.append(variable)
    return {
        "uid": board.uid, "title": board.title, "description": board.help, "tags": ["vitscale"], "timezone": "browser", "editable": True,
        "graphTooltip": 1, "schemaVersion": 39, "version": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables}, "panels": panels, "annotations": {"list": [_restarts()] if "run" in board.variables else []},
        "links": [{"title": "vitscale", "type": "dashboards", "tags": ["vitscale"], "asDropdown": True, "includeVars": True,
                   "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""}],
    }


def _restarts() -> dict[str, Any]:
    """Marks on the time axis of every picture."""
    return {"name": "Attempts", "enable": True, "hide": False, "iconColor": "orange", "datasource": SOURCE, "useValueForTime": True,
            "expr": checked(f"max by (run) (vitscale_attempt_start_timestamp_seconds{{{_R}}}) * 1000"),
            "titleFormat": "an attempt of {{run}} begins"}


def _panel(panel: GrafanaPanel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "mappings": []}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.warn is not None and panel.bad is not None:
        steps = [{"color": "green", "value": None}, {"color": "yellow", "value": panel.warn}, {"color": "red", "value": panel.bad}]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.kind == "timeseries":
        defaults["custom"] = {"drawStyle": "line", "fillOpacity": 60 if panel.stacked else 5, "showPoints": "auto", "spanNulls": 60000,
                              "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"}}
        options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                   "tooltip": {"mode": "multi", "sort": "desc"}}
    elif panel.kind == "bargauge":
        options |= {"orientation": "horizontal", "displayMode": "basic", "showUnfilled": True}
        if panel.unit == "percentunit":
            defaults |= {"min": 0, "max": 1}
    targets = [{"refId": chr(ord("A") + place), "expr": checked(query.expr), "legendFormat": query.legend or "__auto", "datasource": SOURCE,
                "instant": panel.kind == "bargauge", "range": panel.kind != "bargauge"} for place, query in enumerate(panel.queries)]
    return {"type": panel.kind, "id": number, "title": panel.title, "description": panel.help, "gridPos": place, "datasource": SOURCE,
            "targets": targets, "options": options, "fieldConfig": {"defaults": defaults, "overrides": []}}


def checked(expr: str) -> str:
    """The expression; raises ValueError for a metric that is not in the table."""
    for name in re.findall(rf"(?<![\w:]){PREFIX}(\w+)", expr):
        bases = {name} | {name.removesuffix(suffix) for suffix in _SUFFIXES["histogram"]}
        if not any(base in BY_NAME and (base == name) != (BY_NAME[base].kind == "histogram") for base in bases):
            raise ValueError(f"{PREFIX}{name} is not in the table of metrics: {expr}")
    return expr


def files(dashboards: str, prometheus: str = "http://127.0.0.1:9090") -> Iterator[tuple[str, str]]:
    """(path, text) of what Grafana is given, below a folder of its own: dashboards, and its provisioning, which names where they lie
    when Grafana reads it (`dashboards`) and the address of Prometheus."""
    for name, board in BOARDS.items():
        yield f"dashboards/{name}.json", json.dumps(dashboard(board), indent=1) + "\n"
    source = {"name": "vitscale", "uid": "vitscale", "type": "prometheus", "access": "proxy", "url": prometheus, "isDefault": True}
    yield "provisioning/datasources/vitscale.yml", _yaml({"apiVersion": 1, "datasources": [source]})
    provider = {"name": "vitscale", "folder": "vitscale", "type": "file", "allowUiUpdates": True, "options": {"path": dashboards}}
    yield "provisioning/dashboards/vitscale.yml", _yaml({"apiVersion": 1, "providers": [provider]})


def _yaml(value: dict[str, Any]) -> str:
    return "# Made by vitscale/observe/grafana.py.\n" + yaml.safe_dump(value, sort_keys=False)


def main(folder: Path) -> None:
    for name, text in files("/var/lib/grafana/dashboards/vitscale"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
