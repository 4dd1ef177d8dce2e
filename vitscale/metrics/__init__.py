"""Every metric, declared once.  The exporter, metrics.jsonl, the console, the page, the report, Grafana, the model card and the guide's
tables are made from this; recipes and sweeps ask it which number ranks runs.  Needs no torch."""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import chain

from vitscale.metrics.metric import EVALUATED, Curve, Metric, Panel, text
from vitscale.metrics.of_features import OF_FEATURES
from vitscale.metrics.of_objectives import NUMBERS, Numbers
from vitscale.metrics.system import EVALUATED_IMAGES, EVALUATION_LOSS, LEARNED, MACHINES, PANELS, PROGRESS, SPENT, TRAINING_LOSS

__all__ = ["BY_NAME", "COLUMNS", "JUDGES", "METRICS", "OF_EVALUATIONS", "OF_FEATURES", "OF_STEPS", "Metric", "Numbers", "curves",
           "is_evaluation", "metrics_of", "numbers_of", "text"]


def _numbers(when: str) -> tuple[Metric, ...]:
    """Of all objectives, each once.  Raises ValueError where two that are not the same have one name."""
    found: dict[str, Metric] = {}
    for metric in chain.from_iterable(getattr(numbers, when) for numbers in NUMBERS.values()):
        if found.setdefault(metric.column, metric) != metric:
            raise ValueError(f"two metrics have the column {metric.column}")
    return tuple(found.values())


OF_EVALUATIONS = (*_numbers("evaluation"), *OF_FEATURES.values(), EVALUATION_LOSS)
_ALL = (*PROGRESS, *LEARNED, *_numbers("training"), *OF_EVALUATIONS, EVALUATED_IMAGES, *SPENT, *MACHINES)
METRICS = tuple(metric for metric in _ALL if metric.name)           # those that Prometheus is told
BY_NAME = {metric.name: metric for metric in METRICS}
COLUMNS = {metric.column: metric for metric in _ALL if metric.column}       # those of metrics.jsonl that are numbers
OF_STEPS = tuple(metric for column, metric in COLUMNS.items() if not column.startswith(EVALUATED))
if len(BY_NAME) < len(METRICS) or len(COLUMNS) < sum(bool(metric.column) for metric in _ALL):
    raise ValueError("two metrics have one name or one column")
# The numbers that runs are judged by, each once, the loss last.
JUDGES = (*dict.fromkeys(numbers.judge for numbers in NUMBERS.values() if numbers.judge != EVALUATION_LOSS), *OF_FEATURES.values(),
          EVALUATION_LOSS)


def numbers_of(objective: str) -> Numbers:
    """Of an objective by its name in a recipe."""
    return NUMBERS.get(objective, Numbers())


def is_evaluation(row: Mapping[str, object]) -> bool:
    """Whether a row of metrics.jsonl is one of an evaluation; every objective's has a loss."""
    return EVALUATION_LOSS.column in row


def metrics_of(row: Mapping[str, object]) -> dict[str, object]:
    """A row of metrics.jsonl -> {metric name: value} as `Exporter.update` takes it; columns that are no series are left out.

    An evaluation's row carries `time` too, but is no step and does not move `last_step_timestamp_seconds`.
    """
    found = {metric.name: value for column, value in row.items() if (metric := COLUMNS.get(column)) is not None and metric.name}
    if TRAINING_LOSS.column not in row:
        found.pop("last_step_timestamp_seconds", None)
    return found


def curves() -> dict[Panel, list[tuple[str, Metric, Curve]]]:
    """(column, metric, curve) of what each panel draws, panels in their order, then those that only objectives have."""
    found: dict[Panel, list[tuple[str, Metric, Curve]]] = {panel: [] for panel in PANELS}
    for column, metric, curve in _curves():
        found.setdefault(curve.panel, []).append((column, metric, curve))
    return found


def _curves() -> Iterator[tuple[str, Metric, Curve]]:
    for column, metric in COLUMNS.items():
        if metric.curve is not None:
            yield column, metric, metric.curve
    for metric in OF_EVALUATIONS:
        if metric.curve is not None:
            label = f"{metric.curve.label}, averaged weights"
            yield metric.averaged, metric, dataclasses.replace(metric.curve, label=label, colour=metric.curve.colour + 3, compared="")
