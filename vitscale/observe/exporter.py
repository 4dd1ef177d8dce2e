"""A node's Prometheus exporter: its own registry, a loopback address by default, and never a reason for training to stop."""

import json
import logging
import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from vitscale.metrics import METRICS, Metric
from vitscale.metrics.system import PHASES
from vitscale.observe.board import Board

log = logging.getLogger(__name__)


class Exporter(Collector):
    """Serves the metrics of names.METRICS at http://host:port/metrics until `close()`: those that are given to `update`, and of each rank
    what stands on the `board` of this node.

    A step costs it as good as nothing: text is made at a scrape, by a thread of the server.  `port` 0 takes a free one.  `discovery` is
    where a file_sd file (a JSON list of `{targets, labels}`) is put for Prometheus to find this exporter: written beside and renamed, so
    never seen half; removed at close.  Where the address cannot be had there is one warning, no exporter, and every method does nothing.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        discovery: Path | None = None,
        labels: Mapping[str, str] | None = None,        # of the target: run, node
        board: Board | None = None,
        tells_run: bool = True,                         # False: another node's exporter tells what is of the run
    ) -> None:
        self.address: str | None = None                 # "host:port", or None where there is no exporter
        self._board, self._tells_run = board, tells_run
        self._server = None
        self._discovery: Path | None = None
        self._complained = False
        self._held = {metric.name: _HOLDERS[metric.kind](metric, tells_run) for metric in METRICS if not _on_board(metric)}
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, _ = start_http_server(port, addr=host, registry=registry)
        except Exception as error:      # of the socket, of the host's name, of a machine that has no more threads
            log.warning("no metrics exporter: %s:%d cannot be bound (%s); set observe.exporter_port=0 for a free port", host, port, error)
            return
        bound = self._server.server_port
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        if discovery is not None:
            try:
                _publish(discovery, [{"targets": [self.address], "labels": dict(labels or {})}])
                self._discovery = discovery
            except (OSError, ValueError) as error:
                log.warning("the metrics exporter at %s is not announced: %s cannot be written (%s)", self.address, discovery, error)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set metrics by name without prefix: {"loss": 2.3, "images_total": 4096, "run_seconds_total": {"train": 0.12}, ...}.

        Counters take their total so far and never fall (after a rollback they wait for what was repeated, then rise again from there);
        histograms take one observation; a metric with a label takes {label value: number}; an info {label: text}; None is passed over.
        A wrong name or value is logged once and otherwise ignored.
        """
        if self._server is None:
            return
        for name, value in values.items():
            if value is None:
                continue
            try:
                self._held[name].put(value)
            except Exception as error:      # whatever it is, a number that cannot be shown must not stop a run
                if not self._complained:
                    self._complained = True
                    log.warning("metric %s cannot be set to %r (%s: %s); said once", name, value, type(error).__name__, error)

    def collect(self) -> Iterator[Family]:
        """Called at each scrape, by its thread."""
        for metric in METRICS:
            if not _on_board(metric):
                if self._tells_run or metric.scope != "run":
                    yield self._held[metric.name].family()
            elif self._board is not None:
                yield _from_board(metric, self._board)

    def describe(self) -> list[Family]:
        """Nothing is known twice: registering need not collect."""
        return []

    def close(self) -> None:
        """Stop serving and withdraw the announcement.  May be called twice."""
        if self._discovery is not None:
            try:
                if str(self.address) in self._discovery.read_text():        # not if another attempt has announced itself meanwhile
                    self._discovery.unlink()
            except (OSError, ValueError) as error:
                log.warning("%s cannot be removed (%s)", self._discovery, error)
            self._discovery = None
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = self.address = None


class _Holder(Protocol):
    """The last value of a metric."""

    def __init__(self, metric: Metric, from_start: bool) -> None: ...
    def put(self, value: Any) -> None: ...
    def family(self) -> Family: ...


class _Gauge:
    """Nothing is shown before the first value: a 0 that nobody measured would be read as one."""

    def __init__(self, metric: Metric, from_start: bool) -> None:
        self.metric = metric
        self.values: dict[str, float] = {}

    def put(self, value: Any) -> None:
        if self.metric.labels:
            for label, one in value.items():
                self._put(self._known(label), float(one))
        else:
            self._put("", float(value))

    def _known(self, label: str) -> str:
        if label not in self.metric.values:
            raise ValueError(f"{label!r} is no {self.metric.labels[0]}; there are {', '.join(self.metric.values)}")
        return label

    def _put(self, label: str, value: float) -> None:
        self.values[label] = value

    def family(self) -> Family:
        made = GaugeMetricFamily(self.metric.full_name, self.metric.help, labels=self.metric.labels)
        for label, value in list(self.values.items()):
            made.add_metric([label] if self.metric.labels else [], value)
        return made


class _Counter(_Gauge):
    """It begins at 0 with every label there is, since Prometheus sees no rise from nothing to 1; and it only rises."""

    def __init__(self, metric: Metric, from_start: bool) -> None:
        super().__init__(metric, from_start)
        self.values = dict.fromkeys(metric.values or ("",), 0.0) if from_start else {}

    def _put(self, label: str, value: float) -> None:
        if value > self.values.get(label, 0.0):
            self.values[label] = value

    def family(self) -> Family:
        made = CounterMetricFamily(self.metric.full_name, self.metric.help, labels=self.metric.labels)
        for label, value in list(self.values.items()):
            made.add_metric([label] if self.metric.labels else [], value)
        return made


class _Histogram:
    def __init__(self, metric: Metric, from_start: bool) -> None:
        self.metric, self.counts, self.total = metric, [0] * (len(metric.buckets) + 1), 0.0

    def put(self, value: Any) -> None:
        self.total += float(value)
        self.counts[bisect_left(self.metric.buckets, value)] += 1

    def family(self) -> Family:
        made = HistogramMetricFamily(self.metric.full_name, self.metric.help)
        made.add_metric([], _buckets(self.metric, self.counts), self.total)
        return made


class _Info:
    def __init__(self, metric: Metric, from_start: bool) -> None:
        self.metric, self.value = metric, dict[str, str]()

    def put(self, value: Any) -> None:
        self.value = {label: str(value[label]) for label in self.metric.labels}

    def family(self) -> Family:
        made = InfoMetricFamily(self.metric.full_name.removesuffix("_info"), self.metric.help)
        if self.value:
            made.add_metric([], self.value)
        return made


_HOLDERS: dict[str, type[_Holder]] = {"gauge": _Gauge, "counter": _Counter, "histogram": _Histogram, "info": _Info}


def _on_board(metric: Metric) -> bool:
    return metric.scope == "rank" or metric.name == "step_phase_seconds"


def _from_board(metric: Metric, board: Board) -> Family:
    made: Family
    if metric.kind == "histogram":
        made = histogram = HistogramMetricFamily(metric.full_name, metric.help, labels=metric.labels)
        for phase in PHASES:
            counts, total = board.histogram(phase)
            histogram.add_metric([phase], _buckets(metric, counts), total)
        return made
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    made = numbers = kind(metric.full_name, metric.help, labels=metric.labels)
    for rank in board.ranks:
        if metric.labels == ("rank",):
            value = board.of_rank(rank).get(metric.name)
            if value is not None:
                numbers.add_metric([str(rank)], value)
        else:
            for phase, seconds in board.phase_seconds(rank).items():
                numbers.add_metric([str(rank), phase], seconds)
    return made


def _buckets(metric: Metric, counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus' own: each bucket counts all that is not above its bound."""
    found, below = [], 0
    for bound, count in zip((*metric.buckets, math.inf), counts, strict=True):
        below += count
        found.append(("+Inf" if math.isinf(bound) else repr(bound), float(below)))
    return found


def _publish(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")      # file_sd patterns (*.json) do not match it
    beside.write_text(json.dumps(value))
    beside.replace(path)
