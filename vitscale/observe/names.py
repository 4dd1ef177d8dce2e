"""Every metric's name, once.  The exporter, the dashboards and the alert rules are made from this table.

Prometheus conventions: base units (seconds, not milliseconds), counters end in `_total`, ratios lie in 0..1, labels take few values.
`metrics.jsonl` uses the short column names of its rows (`loss`, `lr`, ...); COLUMNS says which metric each of them is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitscale.data.bad import REASONS
from vitscale.resilience.outcome import CAUSES

PREFIX = "vitscale_"

PHASES = ("data_wait", "h2d", "compute", "optimizer", "communication", "checkpoint", "evaluate")
DISKS = ("runs", "cache")
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
    values: tuple[str, ...] = ()            # all that the label can be, but for `rank`; of a counter each is there from the start, as 0
    scope: Literal["run", "node", "rank"] = "run"       # told once for the run, by each node, or for each rank

    @property
    def full_name(self) -> str:
        """As a query writes it."""
        return PREFIX + self.name


CAUSES_OF_ROLLBACK = ("nonfinite", "spike")

METRICS = (
    Metric("build_info", "info", "Versions of what runs.", ("version", "torch", "python")),
    # How far it is, and how fast.
    Metric("images_total", "counter", "Training images seen; the position in the sample order."),
    Metric("target_images", "gauge", "Training images after which the run is done."),
    Metric("steps_total", "counter", "Optimizer steps taken."),
    Metric("last_step_timestamp_seconds", "gauge", "When the last step ended, seconds since 1970."),
    Metric("attempt_start_timestamp_seconds", "gauge", "When this attempt began to train, seconds since 1970."),
    Metric("eta_seconds", "gauge", "Time to the end of the run at its present speed."),
    Metric("images_per_second", "gauge", "Training images per second over the last steps, without evaluations and checkpoints."),
    Metric("images_per_second_per_device", "gauge", "The same over the number of devices."),
    Metric("devices", "gauge", "Ranks of the run, each with a device of its own."),
    Metric("mfu_ratio", "gauge", "Model FLOP/s over the devices' peak FLOP/s, 0 to 1."),
    Metric("device_peak_flops", "gauge", "FLOP/s of one device that mfu_ratio is held against; on a CPU measured, else its data sheet's."),
    # What is learned.
    Metric("loss", "gauge", "Training loss, mean over the last global batch."),
    Metric("grad_norm", "gauge", "Global gradient norm before clipping, last step."),
    Metric("learning_rate", "gauge", "Learning rate of the last step."),
    Metric("eval_top1_ratio", "gauge", "Top-1 accuracy of the last evaluation, 0 to 1."),
    Metric("eval_top5_ratio", "gauge", "Top-5 accuracy of the last evaluation, 0 to 1."),
    Metric("eval_loss", "gauge", "Loss of the last evaluation, mean over its images."),
    # Where the time goes.
    Metric("step_phase_seconds", "histogram", "Time of one step by phase, of each rank of the node.", ("phase",), _SECONDS, PHASES, "node"),
    Metric("rank_phase_seconds_total", "counter", "Time of all steps by phase.", ("rank", "phase"), (), PHASES, "rank"),
    Metric("rank_own_seconds", "gauge", "Time of the last step before the rank's first exchange with others.", ("rank",), scope="rank"),
    Metric("rank_gradient_exchange_seconds", "gauge", "Time that a backward pass waited for the exchange of gradients; ddp alone tells it.",
           ("rank",), scope="rank"),
    Metric("rank_step_skew_ratio", "gauge", "The slowest rank's own time of a step over the median of the others', 1 or more."),
    Metric("run_seconds_total", "counter", "Wall time of the run, over all attempts, by what it was spent on.", ("bucket",), (), BUCKETS),
    Metric("goodput_ratio", "gauge", "Share of the run's wall time spent on steps that count, 0 to 1."),
    # What the night cost.
    Metric("checkpoint_seconds", "histogram", "Time from the decision to write a checkpoint until it is published.", (), _SECONDS),
    Metric("checkpoint_last_success_timestamp_seconds", "gauge", "When the last checkpoint was published, seconds since 1970."),
    Metric("checkpoint_failures_total", "counter", "Checkpoints of this attempt that could not be written."),
    Metric("restarts_total", "counter", "Restarts of the run by cause.", ("cause",), (), CAUSES),
    Metric("rollbacks_total", "counter", "Times the run went back to a checkpoint, by what its losses were.", ("cause",), (),
           CAUSES_OF_ROLLBACK),
    Metric("nonfinite_steps_total", "counter", "Steps whose update was left out for a loss or gradient that was not finite."),
    # Data.
    Metric("samples_skipped_total", "counter", "Samples not trained on, by reason.", ("reason",), (), REASONS),
    Metric("rank_samples_total", "counter", "Samples read in this attempt.", ("rank",), scope="rank"),
    Metric("rank_read_bytes_total", "counter", "Bytes of image files read in this attempt.", ("rank",), scope="rank"),
    Metric("rank_ready_batches", "gauge", "Micro-batches that stood ready when the last step asked for its own.", ("rank",), scope="rank"),
    # Machines.
    Metric("rank_resident_bytes", "gauge", "Host memory of the rank's process.", ("rank",), scope="rank"),
    Metric("host_memory_available_bytes", "gauge", "Host memory of the node that is left to programs.", scope="node"),
    Metric("host_memory_size_bytes", "gauge", "Host memory of the node.", scope="node"),
    Metric("disk_free_bytes", "gauge", "Space left to the user where the run folder lies, or the cache of shards.", ("disk",), (), DISKS,
           "node"),
    Metric("disk_size_bytes", "gauge", "Size of that file system.", ("disk",), (), DISKS, "node"),
    Metric("device_memory_used_bytes", "gauge", "Memory in use on the rank's GPU, of all processes (NVML).", ("rank",), scope="rank"),
    Metric("device_memory_size_bytes", "gauge", "Memory of the rank's GPU (NVML).", ("rank",), scope="rank"),
    Metric("device_memory_allocated_bytes", "gauge", "The most that torch has held on the rank's GPU at once.", ("rank",), scope="rank"),
    Metric("device_utilization_ratio", "gauge", "Share of time in which the rank's GPU ran a kernel, 0 to 1 (NVML).", ("rank",),
           scope="rank"),
    Metric("device_power_watts", "gauge", "Power that the rank's GPU draws (NVML).", ("rank",), scope="rank"),
    Metric("device_temperature_celsius", "gauge", "Temperature of the rank's GPU (NVML).", ("rank",), scope="rank"),
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
    "images_per_second": "images_per_second",
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
