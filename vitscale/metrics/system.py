"""What every run tells, whatever its objective: how far it is, how fast, what it learns, where its time goes, what the machines do.

Prometheus conventions: base units (seconds, not milliseconds), counters end in `_total`, ratios lie in 0..1, labels take few values.
"""

from vitscale.metrics.metric import Curve, Metric, Panel

PHASES = ("data_wait", "h2d", "compute", "optimizer", "communication", "checkpoint", "evaluate")
DISKS = ("runs", "cache")
BUCKETS = ("startup", "restore", "train", "repeated", "data_wait", "checkpoint", "evaluate", "waiting", "lost")    # train/goodput.py
CAUSES_OF_ROLLBACK = ("nonfinite", "spike")
# Why a sample could not be used.  read: it is not there, cut short, or not to be had; storage: its file system went on failing
REASONS = ("read", "storage", "image", "format", "bomb", "truncated", "decode", "crash", "label")
# Why an attempt ended.
CAUSES = ("done", "wrong_input", "crash", "killed", "signal", "time_limit", "preemption", "cancelled", "requeued", "node_failure", "hang",
          "nonfinite", "spike", "preflight", "bad_node", "device", "memory", "network", "disk", "restarts")

# Columns of metrics.jsonl that are no metric: of a step's row, and of what happened beside the steps.
BESIDE = ("epoch", "applied", "attempt", "own_s", "slowest_rank", "event", "to_step", "skip", "cause", "reason", "seconds")

# From a small model's step on one device to a checkpoint on a busy file system.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

# Pictures, in the order in which the page shows them.
THROUGHPUT = Panel("Throughput", aside="images/s")
MFU_SHARE = Panel("MFU", "ratio", aside="share of the stated peak")
LOSS = Panel("Loss", loggable=True, positive=False, learning=True, wide=True)
STEP_TIME = Panel("Where a step's time goes", "seconds", aside="seconds per logged step", positive=False, zero=True, stacked=True)
ACCURACY = Panel("Accuracy", "ratio", most=1.0, learning=True, wide=True)
LEARNING_RATE = Panel("Learning rate", learning=True)
GRADIENT = Panel("Gradient norm", aside="before clipping", loggable=True, learning=True)
MEMORY = Panel("Memory", "bytes")
READY = Panel("Batches ready", aside="when the first rank asked", positive=False, zero=True)
SKEW = Panel("Slowest rank over the median", positive=False)
PANELS = (THROUGHPUT, MFU_SHARE, LOSS, STEP_TIME, ACCURACY, LEARNING_RATE, GRADIENT, MEMORY, READY, SKEW)

TRAINING_LOSS = Metric("loss", "gauge", "Training loss, mean over the last global batch.", column="loss", word="loss",
                       curve=Curve(LOSS, "training", 0, "Training loss"), better="lower")
EVALUATION_LOSS = Metric("eval_loss", "gauge", "Loss of the last evaluation, mean over its images.", column="eval_loss", word="loss",
                         title="Loss", what="Loss", curve=Curve(LOSS, "evaluation", 1, "Loss of evaluations"), better="lower")
EVALUATED_IMAGES = Metric("", "gauge", "Images of the evaluation that could be read.", column="eval_images")
SPEED = Metric("images_per_second", "gauge", "Training images per second over the last steps, without evaluations and checkpoints.",
               column="images_per_second", curve=Curve(THROUGHPUT, "images/s", 0, "Images/s"))
MFU = Metric("mfu_ratio", "gauge", "Model FLOP/s over the devices' peak FLOP/s, 0 to 1.", column="mfu", unit="ratio",
             curve=Curve(MFU_SHARE, "MFU", 2, "MFU"))
GRAD_NORM = Metric("grad_norm", "gauge", "Global gradient norm before clipping, last step.", column="grad_norm",
                   curve=Curve(GRADIENT, "gradient norm", 5, "Gradient norm"))

SLOWEST = Metric("", "gauge", "The slowest rank's own time of a step, mean since the row before.", column="own_max_s", unit="seconds")

PROGRESS = (
    Metric("build_info", "info", "Versions of what runs.", ("version", "torch", "python")),
    # How far it is, and how fast.
    Metric("images_total", "counter", "Training images seen; the position in the sample order.", column="images"),
    Metric("target_images", "gauge", "Training images after which the run is done."),
    Metric("steps_total", "counter", "Optimizer steps taken.", column="step"),
    Metric("last_step_timestamp_seconds", "gauge", "When the last step ended, seconds since 1970.", column="time"),
    Metric("attempt_start_timestamp_seconds", "gauge", "When this attempt began to train, seconds since 1970."),
    Metric("eta_seconds", "gauge", "Time to the end of the run at its present speed."),
    SPEED,
    Metric("images_per_second_per_device", "gauge", "The same over the number of devices."),
    Metric("devices", "gauge", "Ranks of the run, each with a device of its own."),
    MFU,
    Metric("device_peak_flops", "gauge", "FLOP/s of one device that mfu_ratio is held against; on a CPU measured, else its data sheet's."),
)

LEARNED = (
    TRAINING_LOSS,
    GRAD_NORM,
    Metric("learning_rate", "gauge", "Learning rate of the last step.", column="lr", word="lr",
           curve=Curve(LEARNING_RATE, "learning rate", 4, "Learning rate")),
)       # and what the objective tells: of_objectives.py

_COLOURS = {"data_wait": 1, "h2d": 3, "compute": 0, "optimizer": 2, "communication": 6, "checkpoint": 4, "evaluate": 5}

SPENT = (
    # Where the time goes.
    Metric("step_phase_seconds", "histogram", "Time of one step by phase, of each rank of the node.", ("phase",), _SECONDS, PHASES, "node"),
    *(Metric("", "gauge", f"Time of the first rank in phase {phase} since the row before.", column=f"seconds_{phase}", unit="seconds",
             curve=Curve(STEP_TIME, "host to device" if phase == "h2d" else phase.replace("_", " "), _COLOURS[phase])) for phase in PHASES),
    Metric("rank_phase_seconds_total", "counter", "Time of all steps by phase.", ("rank", "phase"), (), PHASES, "rank"),
    Metric("rank_own_seconds", "gauge", "Time of the last step before the rank's first exchange with others.", ("rank",), scope="rank"),
    SLOWEST,
    Metric("", "gauge", "The median over ranks of the same.", column="own_median_s", unit="seconds"),
    Metric("rank_gradient_exchange_seconds", "gauge", "Time that a backward pass waited for the exchange of gradients; ddp alone tells it.",
           ("rank",), scope="rank"),
    Metric("rank_step_skew_ratio", "gauge", "The slowest rank's own time of a step over the median of the others', 1 or more.",
           column="skew", curve=Curve(SKEW, "times", 6)),
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
)

MACHINES = (
    # Data.
    Metric("samples_skipped_total", "counter", "Samples not trained on, by reason.", ("reason",), (), REASONS),
    Metric("rank_samples_total", "counter", "Samples read in this attempt.", ("rank",), scope="rank"),
    Metric("rank_read_bytes_total", "counter", "Bytes of image files read in this attempt.", ("rank",), scope="rank"),
    Metric("rank_ready_batches", "gauge", "Micro-batches that stood ready when the last step asked for its own.", ("rank",), scope="rank"),
    Metric("", "gauge", "The first rank's micro-batches that stood ready.", column="loader_ready", curve=Curve(READY, "batches", 1)),
    # Machines.
    Metric("rank_resident_bytes", "gauge", "Host memory of the rank's process.", ("rank",), scope="rank"),
    Metric("", "gauge", "Host memory of the first rank's process.", column="resident_bytes", unit="bytes",
           curve=Curve(MEMORY, "host, ranks of the first node", 5, "Host memory")),
    Metric("host_memory_available_bytes", "gauge", "Host memory of the node that is left to programs.", scope="node"),
    Metric("host_memory_size_bytes", "gauge", "Host memory of the node.", scope="node"),
    Metric("disk_free_bytes", "gauge", "Space left to the user where the run folder lies, or the cache of shards.", ("disk",), (), DISKS,
           "node"),
    Metric("disk_size_bytes", "gauge", "Size of that file system.", ("disk",), (), DISKS, "node"),
    Metric("device_memory_used_bytes", "gauge", "Memory in use on the rank's GPU, of all processes (NVML).", ("rank",), scope="rank"),
    Metric("device_memory_size_bytes", "gauge", "Memory of the rank's GPU (NVML).", ("rank",), scope="rank"),
    Metric("device_memory_allocated_bytes", "gauge", "The most that torch has held on the rank's GPU at once.", ("rank",), scope="rank"),
    Metric("", "gauge", "The most that torch has held on the first rank's GPU at once.", column="device_bytes", unit="bytes",
           curve=Curve(MEMORY, "GPU, most so far, first rank", 0, "GPU memory")),
    Metric("device_utilization_ratio", "gauge", "Share of time in which the rank's GPU ran a kernel, 0 to 1 (NVML).", ("rank",),
           scope="rank"),
    Metric("device_power_watts", "gauge", "Power that the rank's GPU draws (NVML).", ("rank",), scope="rank"),
    Metric("device_temperature_celsius", "gauge", "Temperature of the rank's GPU (NVML).", ("rank",), scope="rank"),
)
