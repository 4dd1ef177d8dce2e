"""What rank 0 writes down and shows while a run goes: metrics.jsonl, samples.jsonl, quarantine.jsonl, the exporter, the display, the outcome."""

import contextlib
import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.checkpoint.files import write_atomically
from vitscale.checkpoint.lease import Lease
from vitscale.data import StepBatch
from vitscale.observe.console import Progress as Display
from vitscale.observe.console import make_console
from vitscale.observe.exporter import Exporter
from vitscale.observe.jsonl import JsonLines, read_rows
from vitscale.observe.meters import Meters
from vitscale.observe.names import metrics_of
from vitscale.parallel.world import World
from vitscale.plan.flops import training_flops_per_image
from vitscale.recipe import Recipe
from vitscale.recipe.text import write_yaml
from vitscale.resilience.outcome import write_outcome
from vitscale.train.facts import versions
from vitscale.train.prepare import Prepared
from vitscale.train.size import device_peak_flops
from vitscale.train.state import Moment, Progress
from vitscale.train.step import StepResult

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "logs/samples.jsonl"
QUARANTINE_FILE = "quarantine.jsonl"
EXPORTER_FILE = "exporter.json"


class Recorder:
    """Every rank has one, since some of what is recorded must be gathered; only rank 0 writes."""

    def __init__(self, recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None, attempt: int, meters: Meters, start: Moment) -> None:
        self.recipe, self.prepared, self.world, self.lease, self.attempt, self.meters = recipe, prepared, world, lease, attempt, meters
        self._open = contextlib.ExitStack()
        self._rows: JsonLines | None = None
        self._skipped: dict[str, int] = {}
        self._steps_since_row = 0
        meters.rate(training_flops_per_image(recipe.model), device_peak_flops(recipe, world), world.size)
        if not world.is_first:
            return
        folder = prepared.folder
        write_atomically(folder / "recipe.yaml", write_yaml(recipe.model_dump(mode="json")))
        seen = max((row.get("images", 0) for row in read_rows(folder / METRICS_FILE)), default=0)
        meters.repeat(max(seen - start.images, 0))
        self._rows = self._open.enter_context(JsonLines(folder / METRICS_FILE))
        self._quarantine = self._open.enter_context(JsonLines(folder / QUARANTINE_FILE))
        if recipe.data.log_samples:
            _forget_after(folder / SAMPLES_FILE, start.step)
            self._samples = self._open.enter_context(JsonLines(folder / SAMPLES_FILE))
        self._exporter: Exporter | None = None
        if recipe.observe.exporter:
            self._exporter = Exporter(port=recipe.observe.exporter_port, discovery=folder / EXPORTER_FILE, labels={"run": recipe.name})
            self._open.callback(self._exporter.close)
            self._exporter.update({"build_info": {"version": versions()["vitscale"], "torch": versions()["torch"], "python": versions()["python"]},
                                   "restarts_total": {"any": attempt - 1}})
        console = make_console()
        self._display = Display(console, total_images=prepared.schedule.total, num_samples=prepared.train.num_samples)
        self._open.enter_context(self._display)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def step(self, batch: StepBatch, result: StepResult, lr: float, now: Moment, bad: list[dict[str, Any]]) -> None:
        """Book a step that has just ended; `bad` are this rank's samples of it that could not be used.  Collective when the step's samples are logged or some were bad."""
        if self.recipe.data.log_samples:
            self._log_samples(batch, now)
        if result.bad:
            self._log_bad(bad)
        phases = self.meters.end_step(batch.size)
        if not result.applied:
            log.warning("step %d: loss %s, gradient norm %s: not finite, the update was skipped on all ranks", now.step, result.loss, result.grad_norm)
        self._steps_since_row += 1
        last = now.images >= self.prepared.schedule.total
        if self._rows is None or (self._steps_since_row < self.recipe.observe.log_every and not last):
            return
        self._steps_since_row = 0
        row = {"step": now.step, "images": now.images, "epoch": batch.epoch, "time": time.time(), "loss": result.loss, "lr": lr,
               "grad_norm": result.grad_norm, "applied": result.applied, **self.meters.row(), "attempt": self.attempt}
        self._write(row)
        self._display.step(row, self.meters.eta_s(self.prepared.schedule.total - now.images))
        if self._exporter is not None:
            self._exporter.update(metrics_of(row) | {"step_phase_seconds": phases, "run_seconds_total": self.meters.run_seconds()})

    def evaluation(self, result: dict[str, float], now: Moment) -> None:
        if self._rows is None:
            return
        row = {"step": now.step, "images": now.images, "time": time.time(), **result, "attempt": self.attempt}
        self._write(row)
        self._display.evaluated(row)
        if self._exporter is not None:
            self._exporter.update(metrics_of(row))

    def end(self, exit_code: int, reason: str, progress: Progress) -> int:
        """Write the outcome; returns `exit_code`."""
        if self._rows is not None and self.lease is not None:
            self.lease.check()
            evaluations = [row for row in read_rows(self.prepared.folder / METRICS_FILE) if "eval_loss" in row]
            latest = {key: value for key, value in evaluations[-1].items() if key.startswith("eval_")} if evaluations else {}
            write_outcome(self.prepared.folder, exit_code, reason, step=progress.now.step, images=progress.now.images, best=progress.best,
                          attempt=self.attempt, run_seconds=self.meters.run_seconds(), samples_skipped=self._skipped, versions=versions(), **latest)
            self._open.close()      # the display goes before the last words come
            log.info("%s after %d steps (%d images): %s", "ended" if exit_code else "done", progress.now.step, progress.now.images, reason)
        return exit_code

    def _write(self, row: dict[str, Any]) -> None:
        assert self._rows is not None
        if self.lease is not None:
            self.lease.check()
        self._rows.write(row)

    def _log_samples(self, batch: StepBatch, now: Moment) -> None:
        """{"step", "position", "ids"}: the ids that the ranks really trained on, in the order of the global batch."""
        mine = [(int(index), int(sample)) for micro in batch.micro for index, sample in zip(micro.index, micro.ids, strict=True) if index >= 0]
        parts = self.world.gather(mine)
        if parts is not None and self._rows is not None:
            ids = [sample for _, sample in sorted(pair for part in parts for pair in part)]
            self._samples.write({"step": now.step, "position": batch.position, "ids": ids})

    def _log_bad(self, bad: list[dict[str, Any]]) -> None:
        parts = self.world.gather(bad)
        if parts is None or self._rows is None:
            return
        for row in (row for part in parts for row in part):
            self._quarantine.write(row)
            self._skipped[row["reason"]] = self._skipped.get(row["reason"], 0) + 1
        if self._exporter is not None:
            self._exporter.update({"samples_skipped_total": self._skipped})


def _forget_after(path: Path, step: int) -> None:
    """Cut the rows of steps that will be repeated, so that the file reads as if the run had never been interrupted."""
    rows = list(read_rows(path))
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        write_atomically(path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept))
