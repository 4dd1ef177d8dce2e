"""A run's Prometheus exporter: its own registry, a loopback address by default, and never a reason for training to stop."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics, start_http_server

from vitscale.observe.names import METRICS, Metric

log = logging.getLogger(__name__)

Setter = Callable[[Any], None]


class Exporter:
    """Serves the metrics of names.METRICS at http://host:port/metrics until `close()`.

    `port` 0 takes a free one.  `discovery` is where a file_sd file (a JSON list of `{targets, labels}`) is put for Prometheus to find this
    exporter: written beside and renamed, so never seen half; removed at close.  Where the address cannot be had there is one warning, no
    exporter, and every method does nothing.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        discovery: Path | None = None,
        labels: Mapping[str, str] | None = None,        # of the target: run, node, ...
    ) -> None:
        self.address: str | None = None                 # "host:port", or None where there is no exporter
        self._server = None
        self._discovery: Path | None = None
        self._complained = False
        disable_created_metrics()                       # else every counter and histogram gains a series that the table does not name
        registry = CollectorRegistry()
        self._setters = {metric.name: _setter(metric, registry) for metric in METRICS}
        try:
            self._server, _ = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            log.warning("no metrics exporter: %s:%d cannot be bound (%s); set observe.exporter_port=0 for a free port", host, port, error)
            return
        bound = self._server.server_port
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        if discovery is not None:
            try:
                _publish(discovery, [{"targets": [self.address], "labels": dict(labels or {})}])
                self._discovery = discovery
            except OSError as error:
                log.warning("the metrics exporter at %s is not announced: %s cannot be written (%s)", self.address, discovery, error)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set metrics by name without prefix: {"loss": 2.3, "images_total": 4096, "step_phase_seconds": {"compute": 0.12}, ...}.

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
                self._setters[name](value)
            except Exception as error:      # whatever it is, a number that cannot be shown must not stop a run
                if not self._complained:
                    self._complained = True
                    log.warning("metric %s cannot be set to %r (%s: %s); said once", name, value, type(error).__name__, error)

    def close(self) -> None:
        """Stop serving and withdraw the announcement.  May be called twice."""
        if self._discovery is not None:
            try:
                if str(self.address) in self._discovery.read_text():        # not if another attempt has announced itself meanwhile
                    self._discovery.unlink()
            except OSError as error:
                log.warning("%s cannot be removed (%s)", self._discovery, error)
            self._discovery = None
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = self.address = None


def _setter(metric: Metric, registry: CollectorRegistry) -> Setter:
    """Register `metric` and return what sets it.  Label children are made once, since looking them up costs more than setting them."""
    if metric.kind == "info":
        return Info(metric.full_name.removesuffix("_info"), metric.help, registry=registry).info
    family: Any
    bind: Callable[[Any], Setter]
    if metric.kind == "counter":
        family, bind = Counter(metric.full_name, metric.help, metric.labels, registry=registry), _raise_to
    elif metric.kind == "gauge":
        family, bind = Gauge(metric.full_name, metric.help, metric.labels, registry=registry), attrgetter("set")
    else:
        family = Histogram(metric.full_name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
        bind = attrgetter("observe")
    if not metric.labels:
        return bind(family)
    children: dict[str, Setter] = {}

    def set_each(values: Mapping[str, float]) -> None:
        for label, value in values.items():
            if label not in children:
                children[label] = bind(family.labels(label))
            children[label](value)

    return set_each


def _raise_to(child: Counter) -> Setter:
    """A counter only rises; what it is given are totals."""
    reached = 0.0

    def set_total(total: float) -> None:
        nonlocal reached
        if total > reached:
            child.inc(total - reached)
            reached = total

    return set_total


def _publish(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")      # file_sd patterns (*.json) do not match it
    beside.write_text(json.dumps(value))
    beside.replace(path)
