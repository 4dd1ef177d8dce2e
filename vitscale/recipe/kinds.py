"""What it means for a run under way when a key of its recipe changes: one kind for every key of the schema."""

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["order", "training", "free"]

# order     decides where a run begins or which sample comes when: its place in one order means nothing in another, so it never changes
# training  shapes the steps, what an evaluation's numbers mean, or when training ends: it changes only if the user says so
# free      how, where and how often: every step stays what it was
# A name stands for all keys below it that have no line of their own.
KINDS: dict[str, Kind] = {
    "format": "free", "name": "free", "runs_dir": "free", "init": "order", "seed": "order",
    "model": "training", "objective": "training", "optim": "training", "lora": "training", "ema": "training", "duration": "training",
    "global_batch": "order", "micro_batch": "free", "profile": "free",
    "data.train": "free", "data.val": "free", "data.num_samples": "free",      # what the shards hold counts: index_hash
    "data.mix": "order", "data.lanes": "order", "data.group": "order", "data.repeats": "order", "data.group_members": "order",
    "data.label": "training", "data.image": "training", "data.class_map": "training", "data.multi_label": "training",
    "data.mask": "training", "data.mask_classes": "training", "data.exif_orientation": "training",
    "data.augment": "training", "data.views": "training",
    "data.index_dir": "free", "data.cache_dir": "free", "data.cache_bytes": "free", "data.prepare": "free", "data.workers": "free",
    "data.prefetch": "free", "data.max_bad_fraction": "free", "data.log_samples": "free",
    "parallel": "free", "parallel.precision": "training",       # all else of it gives the same step, but for the order of sums
    "checkpoint.every": "free", "checkpoint.keep": "free", "checkpoint.best": "free", "checkpoint.background": "free",
    "evaluate.every": "free", "evaluate.crop": "training", "evaluate.early_stopping": "training", "evaluate.features": "free",
    "observe.log_every": "free", "observe.exporter": "free", "observe.exporter_port": "free", "observe.trackers": "free",
    "observe.peak_flops": "free",
    "resilience.max_nonfinite": "training", "resilience.spike": "training",     # which batches are passed over
    "resilience.max_rollbacks": "free", "resilience.max_restarts": "free", "resilience.hang_timeout": "free",
    "resilience.startup_timeout": "free", "resilience.straggler_ratio": "free", "resilience.preflight": "free",
    "resilience.exclude_bad_nodes": "free",
    "index_hash": "order",                  # no key: what the shards of data.train, or data.mix, hold
    "frozen_hash": "training",              # no key: the weights of objective.teacher, or objective.gram_teacher
}


def named(key: str) -> str | None:
    """The name in KINDS that a dotted key falls under, the longest; None: there is none."""
    parts = key.split(".")
    return next((name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in KINDS), None)


def kind_of(key: str, recipe: Mapping[str, Any] | None = None) -> Kind:
    """The kind of a dotted key, or of a whole section, in the run of `recipe` (plain values), on which it hangs with a few.

    A key that the schema does not know counts as what the keys beside it are, if they are all free, else as one that shapes training.
    """
    if key in ("micro_batch", "parallel.processes") and _value(recipe, "model.dropout"):
        return "training"                   # its draws are made by rank and micro-batch
    if key == "evaluate.every" and _value(recipe, "evaluate.early_stopping"):
        return "training"                   # patience is counted in evaluations
    if (name := named(key)) is not None:
        return KINDS[name]
    beside = f"{key}." if any(name.startswith(f"{key}.") for name in KINDS) else f"{key.rpartition('.')[0]}."
    kinds = {kind for name, kind in KINDS.items() if name.startswith(beside)}
    return "order" if beside == f"{key}." and "order" in kinds else "free" if kinds == {"free"} else "training"


def _value(recipe: Mapping[str, Any] | None, key: str) -> Any:
    found: Any = recipe
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
