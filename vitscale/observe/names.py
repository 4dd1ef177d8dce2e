"""Every metric's name, once.  The exporter, the dashboards and the alert rules are made from this table.

Prometheus conventions: base units (seconds, not milliseconds), counters end in `_total`, ratios lie in 0..1, labels take few values.
`metrics.jsonl` uses the short column names of its rows (`loss`, `lr`, ...); COLUMNS says which metric each of them is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "vitscale_"

PHASES = ("data_wait", "h2d", "compute", "optimizer", "checkpoint", "evaluate")
BUCKETS = ("startup", "restore", "train", "repeated", "data_wait", "checkpoint", "evaluate", "waiting", "lost")    # observe/goodput.py

# From a small model's step on one device to a checkpoint on a busy file system.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True)
class Metric:
    """One family of time series; `name` is without the prefix."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()         # of a histogram: upper bounds, in its unit

    @property
    def full_name(self) -> str:
        """As a query writes it."""
        return PREFIX + self.name


METRICS = (
    Metric("build_info", "info", "Versions of what runs.", ("version", "torch", "python")),
    Metric("images_total", "counter", "Training images seen; the position in the sample order."),
    Metric("steps_total", "counter", "Optimizer steps taken."),
    Metric("loss", "gauge", "Training loss, mean over the last global batch."),
    Metric("grad_norm", "gauge", "Global gradient norm before clipping, last step."),
    Metric("learning_rate", "gauge", "Learning rate of the last step."),
    Metric("mfu_ratio", "gauge", "Model FLOP/s over the devices' peak FLOP/s, 0 to 1."),
    Metric("eval_top1_ratio", "gauge", "Top-1 accuracy of the last evaluation, 0 to 1."),
    Metric("eval_top5_ratio", "gauge", "Top-5 accuracy of the last evaluation, 0 to 1."),
    Metric("eval_loss", "gauge", "Loss of the last evaluation, mean over its images."),
    Metric("step_phase_seconds", "histogram", "Time of one step by phase, on this rank.", ("phase",), _SECONDS),
    Metric("checkpoint_seconds", "histogram", "Time from the decision to write a checkpoint until it is published.", (), _SECONDS),
    Metric("checkpoint_last_success_timestamp_seconds", "gauge", "When the last checkpoint was published, seconds since 1970."),
    Metric("checkpoint_failures_total", "counter", "Checkpoints of this attempt that could not be written."),
    Metric("last_step_timestamp_seconds", "gauge", "When the last step ended, seconds since 1970."),
    Metric("nonfinite_steps_total", "counter", "Steps whose update was left out for a loss or gradient that was not finite."),
    Metric("rollbacks_total", "counter", "Times the run went back to a checkpoint, by what its losses were.", ("cause",)),
    Metric("samples_skipped_total", "counter", "Samples not trained on, by reason.", ("reason",)),
    Metric("rank_step_skew_ratio", "gauge", "The slowest rank's own time of a step over the median of the others', 1 or more."),
    Metric("run_seconds_total", "counter", "Wall time of the run, over all attempts, by what it was spent on.", ("bucket",)),
    Metric("goodput_ratio", "gauge", "Share of the run's wall time spent on steps that count, 0 to 1."),
    Metric("restarts_total", "counter", "Restarts of the run by cause.", ("cause",)),
)

BY_NAME = {metric.name: metric for metric in METRICS}

# Column of a row of metrics.jsonl -> metric.  `time` is seconds since 1970; `seconds_<phase>` are read off by that pattern.
COLUMNS = {
    "step": "steps_total",
    "images": "images_total",
    "time": "last_step_timestamp_seconds",
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "mfu": "mfu_ratio",
    "skew": "rank_step_skew_ratio",
    "eval_top1": "eval_top1_ratio",
    "eval_top5": "eval_top5_ratio",
    "eval_loss": "eval_loss",
}


def metrics_of(row: Mapping[str, object]) -> dict[str, object]:
    """A row of metrics.jsonl -> {metric name: value} as `Exporter.update` takes it; columns that are no metric are left out.

    An evaluation's row (`eval_top1` and others) carries `time` too, but is no step and does not move `last_step_timestamp_seconds`.
    """
    found = {COLUMNS[column]: value for column, value in row.items() if column in COLUMNS}
    if "loss" not in row:
        found.pop("last_step_timestamp_seconds", None)
    return found
