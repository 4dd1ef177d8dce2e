"""What a run writes down and shows while it goes: rows of metrics and samples, the exporter, the display, the outcome."""

import contextlib
import functools
import json
import logging
import shlex
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vitscale.checkpoint.lease import Lease, LeaseLost
from vitscale.cluster.used import Used, note_used, write_recipe
from vitscale.counts import plural
from vitscale.data import StepBatch, Stream
from vitscale.errors import EXIT_DONE, EXIT_REQUEUE
from vitscale.files import write_atomically
from vitscale.metrics import metrics_of
from vitscale.metrics.system import EVALUATION_LOSS
from vitscale.observe.console import ProgressDisplay as Display
from vitscale.observe.console import make_console
from vitscale.observe.jsonl import JsonLines, cut_after
from vitscale.observe.meters import Meters
from vitscale.observe.readings import process_memory
from vitscale.observe.report import leave_papers
from vitscale.observe.skipped import Skipped
from vitscale.observe.telling import only_tells
from vitscale.observe.totals import METRICS as METRICS_FILE
from vitscale.observe.totals import QUARANTINE as QUARANTINE_FILE
from vitscale.observe.totals import Totals
from vitscale.observe.trackers import Trackers
from vitscale.parallel.engine import Engine
from vitscale.parallel.world import World
from vitscale.plan.forecast import forecast
from vitscale.recipe import Recipe
from vitscale.recipe.beside import CLASSES
from vitscale.recipe.known import known_names
from vitscale.recipe.redact import redacted
from vitscale.resilience.guard import RollBack
from vitscale.resilience.outcome import write_outcome
from vitscale.resilience.restarts import attempts_of, restarts_by_cause
from vitscale.resilience.skips import rollbacks
from vitscale.runfolder import ENVIRONMENT, RECIPE, last_row
from vitscale.train.environment import write_environment
from vitscale.train.facts import versions
from vitscale.train.goodput import Goodput, goodput_ratio
from vitscale.train.pace import RankPace
from vitscale.train.prepare import Prepared
from vitscale.train.prometheus import RankMetrics
from vitscale.train.restore import is_held
from vitscale.train.size import device_peak_flops
from vitscale.train.state import Moment, Progress
from vitscale.train.step import StepResult

log = logging.getLogger(__name__)
SAMPLES_FILE = "logs/samples.jsonl"
HURRY_S = 10.0      # for trackers to end when a run is asked to stop: whoever asked may kill it soon


class Recorder:
    """Every rank has one, since some of what is recorded must be gathered; rank 0 writes, while it holds the lease.

    All of it only tells: whatever fails to be written or shown is said, and training goes on.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None, meters: Meters,
                 goodput: Goodput | None, start: Moment, nodes: Sequence[str], engine: Engine, stream: Stream,
                 before: Mapping[str, Any] | None = None) -> None:
        """`start`: where this attempt resumes from; `before`: the settings that the checkpoint there was written with."""
        self.recipe, self.prepared, self.world, self.lease, self.meters, self.goodput = recipe, prepared, world, lease, meters, goodput
        self._steps_since_row, self._checkpoint_failures = 0, 0
        peak_flops = 0.0
        with only_tells("the peak of this device"):
            peak_flops = device_peak_flops(recipe, world)
        known = forecast(recipe)
        meters.rate(known.flops_per_image if known else 0, peak_flops, world.size)
        self._pace = RankPace(nodes, recipe.resilience.straggler_ratio) if world.is_first and world.size > 1 else None
        self._open = contextlib.ExitStack()
        self._stream, self._metrics = stream, None
        if recipe.observe.exporter:
            self._metrics = self._open.enter_context(RankMetrics(recipe, prepared.folder, world, engine, stream, nodes))
        self._files = _Files(self._open, recipe, prepared, lease, start, before) if lease is not None else None
        self._published: deque[dict[str, Any]] = deque()     # checkpoints whose rows are to be written
        if self._files is not None and lease is not None:
            self._environment = functools.partial(write_environment, recipe, prepared, world, nodes, peak_flops, lease.number)
            if not (prepared.folder / ENVIRONMENT).exists():        # else it tells of steps that were made, and this attempt has made none
                with only_tells(ENVIRONMENT):
                    self._environment()
            meters.repeat(max(self._files.images_before - start.images, 0))
            with only_tells("the metrics of this attempt"):
                self._export(self._files.metrics() | {
                    "build_info": {"version": versions()["vitscale"]} | versions(), "attempt_start_timestamp_seconds": time.time(),
                    "devices": world.size, "device_peak_flops": peak_flops or None, "target_images": prepared.schedule.total})

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)

    def step(self, batch: StepBatch, result: StepResult, lr: float, now: Moment, bad: list[dict[str, Any]]) -> None:
        """Book a step that has just ended; `bad` are this rank's samples of it that could not be used.

        Collective when samples are logged or some rank had bad ones.
        """
        if self._files is not None and not self._files.trains:
            self._files.note_settings()
            with only_tells(ENVIRONMENT):
                self._environment()
        if self.recipe.data.log_samples:
            self._log_samples(batch, now)
        if result.bad:
            self.quarantine(bad)
        phases = self.meters.end_step(batch.size)
        if self._metrics is not None:
            with only_tells("the metrics of a step"):
                self._metrics.step(now.step, result, phases)
        if self._pace is not None:
            with only_tells("the ranks' pace"):
                self._pace.step(result.own_s, result.probe_s, sum(phases[name] for name in ("data_wait", "h2d", "compute", "optimizer")))
        if not result.applied:
            log.warning("step %d: loss %s, gradient norm %s: not finite, the update was skipped on all ranks",
                        now.step, result.loss, result.grad_norm)
        self._steps_since_row += 1
        wanted = result.stop or not result.applied or now.images >= self.prepared.schedule.total
        if self._files is None or (self._steps_since_row < self.recipe.observe.log_every and not wanted):
            return
        self._steps_since_row = 0
        with only_tells("a step's row"):
            self._tell(self._files, batch, result, lr, now)

    def _tell(self, files: "_Files", batch: StepBatch, result: StepResult, lr: float, now: Moment) -> None:
        row = {"step": now.step, "images": now.images, "epoch": batch.epoch, "time": time.time(), "loss": result.loss, "lr": lr,
               "grad_norm": result.grad_norm, **result.numbers, "applied": result.applied, **self.meters.row(),
               **(self._pace.row() if self._pace else {}), **self._memory(), "loader_ready": self._stream.ready}
        self._write_published(files)
        files.row(row)
        eta_s = self.meters.eta_s(self.prepared.schedule.total - now.images)
        files.show(lambda display: display.step(row, eta_s))
        self._export(metrics_of(row) | {
            "eta_seconds": eta_s, "images_per_second_per_device": self.meters.images_per_second / self.world.size,
            "nonfinite_steps_total": files.totals.nonfinite, **self._goodput("run_seconds_total")})

    def rollback(self, verdict: RollBack, now: Moment, to: Moment, skips: list[tuple[int, int]]) -> None:
        """Book that the run goes back from `now` to `to`, from where it passes over `skips` (merged)."""
        log.warning("rolled back from step %d to step %d, passing over images %d to %d: %s", now.step, to.step, *verdict.skip,
                    verdict.reason)
        if self._files is None:
            return
        with only_tells("the row of a rollback"):
            self._files.row({"event": "rollback", "step": now.step, "to_step": to.step, "skip": list(verdict.skip),
                             "cause": verdict.cause, "reason": verdict.reason, "time": time.time()})
        self._files.go_back_to(to.step)
        reached = self._files.images_before = max(self._files.images_before, now.images)
        passed_over = sum(max(min(end, reached) - max(start, to.images), 0) for start, end in skips)
        self.meters.repeat(reached - to.images - passed_over)
        self._export({"rollbacks_total": self._files.rollbacks})

    def quarantine(self, bad: list[dict[str, Any]], split: str = "train") -> None:
        """Write down samples that could not be used, of all ranks.  Collective."""
        parts = self.world.gather(bad)
        if parts is not None and self._files is not None:
            with only_tells(QUARANTINE_FILE):
                self._files.quarantine([row | {"split": split} for part in parts for row in part])
                self._export({"samples_skipped_total": self._files.totals.skipped})

    def last_bad(self, bad: list[dict[str, Any]]) -> None:
        """Write down this rank's bad samples when they end the run, in which no rank waits for another any more."""
        for row in bad:
            log.error("could not be used: %s", json.dumps(row))
        if self._files is not None:
            with only_tells(QUARANTINE_FILE):
                self._files.quarantine([row | {"split": "train"} for row in bad])

    def evaluation(self, result: dict[str, float], now: Moment) -> None:
        if self._files is not None:
            with only_tells("the row of an evaluation"):
                row = {"step": now.step, "images": now.images, "time": time.time(), **result}
                self._files.row(row)
                self._files.show(lambda display: display.evaluated(row))
                self._export(metrics_of(row))

    def checkpoint_published(self, step: int, seconds: float) -> None:
        """Called by the checkpoint's thread, which writes no rows itself."""
        self._published.append({"event": "checkpoint", "step": step, "seconds": seconds, "time": time.time()})
        self._export({"checkpoint_seconds": seconds, "checkpoint_last_success_timestamp_seconds": time.time()})

    def checkpoint_failed(self) -> None:
        """Called by the checkpoint's thread."""
        self._checkpoint_failures += 1
        self._export({"checkpoint_failures_total": self._checkpoint_failures})

    def _write_published(self, files: "_Files") -> None:
        while self._published:
            files.row(self._published.popleft())

    def _export(self, values: dict[str, Any]) -> None:
        """Of the run; rank 0's alone."""
        if self._metrics is not None and self._files is not None:
            with only_tells("the metrics of the run"):
                self._metrics.update(values)

    def _memory(self) -> dict[str, float | None]:
        """Bytes that this process holds now, and the most that torch has held on its GPU."""
        on_gpu = self.world.device.type == "cuda"
        return {"resident_bytes": process_memory().get("rank_resident_bytes"),
                "device_bytes": torch.cuda.max_memory_allocated(self.world.device) if on_gpu else None}

    def _goodput(self, name: str) -> dict[str, Any]:
        spent = self.goodput.run_seconds() if self.goodput is not None else {}
        return {name: spent, "goodput_ratio": goodput_ratio(spent)} if spent else {}

    def end(self, exit_code: int, reason: str, progress: Progress, cause: str | None = None) -> int:
        """Close the books and write the outcome; returns `exit_code`."""
        if self._files is not None and self.lease is not None:
            self.lease.check()
            with only_tells("the rows of the last checkpoints"):
                self._write_published(self._files)
            totals = self._files.totals
            best = progress.best if is_held(self.prepared.folder, progress.best) else None
            write_outcome(self.prepared.folder, exit_code, reason, cause=cause, step=progress.now.step, images=progress.now.images,
                          best=best, attempt=self.lease.number, **self._goodput("run_seconds"),
                          samples_skipped=totals.skipped, rollbacks=self._files.rollbacks.total(),
                          checkpoint_failures=self._checkpoint_failures, versions=versions(), **totals.evaluation)
            if exit_code == EXIT_REQUEUE:       # there may be seconds left, and the run goes on
                self._files.hurry()
            self._open.close()      # the display goes before the last words come
            if exit_code != EXIT_REQUEUE:
                leave_papers(self.prepared.folder)
            log.info("%s at step %d (%s): %s", "done" if exit_code == EXIT_DONE else "ended", progress.now.step,
                     plural(progress.now.images, "image"), reason)
            log.info("run folder %s; metrics in %s", self.prepared.folder, self.prepared.folder / METRICS_FILE)
            if exit_code == EXIT_DONE:
                log.info("next: %s", what_next(self.recipe, self.prepared.folder))
        return exit_code

    def _log_samples(self, batch: StepBatch, now: Moment) -> None:
        """{"step", "position", "ids"}: the ids that the ranks really trained on, in the order of the global batch."""
        pairs = ((micro.index.tolist(), micro.ids.tolist()) for micro in (batch.micro if self.world.leads else ()))
        mine = [(index, sample) for indices, ids in pairs for index, sample in zip(indices, ids, strict=True) if index >= 0]
        parts = self.world.gather(mine)
        if parts is not None and self._files is not None:
            with only_tells(SAMPLES_FILE):
                ids = [sample for _, sample in sorted(pair for part in parts for pair in part)]
                self._files.samples({"step": now.step, "position": batch.position, "ids": ids})


def what_next(recipe: Recipe, folder: Path) -> str:
    """The commands that use a trained model: of one with labels its accuracy and predictions, of another its features."""
    run = shlex.quote(str(folder))
    if not recipe.objective.wants_labels:
        return f"`vitscale embed IMAGES -m {run}` for its features, `vitscale explain {run} IMAGES` for what it looks at"
    data = "" if recipe.data.val else " --data SHARDS"
    return f"`vitscale eval {run}{data}` for its accuracy, `vitscale predict IMAGES -m {run}` for its predictions"


class _Files:
    """What rank 0 has open."""

    def __init__(self, stack: contextlib.ExitStack, recipe: Recipe, prepared: Prepared, lease: Lease, start: Moment,
                 before: Mapping[str, Any] | None) -> None:
        folder = self._folder = prepared.folder
        self._lease, self.trains = lease, False     # whether this attempt has made a step
        settings = redacted(recipe.model_dump(mode="json"))
        self._used, self._before = Used(lease.number, start.step, settings), before
        self._names = known_names(recipe.model_dump(mode="json"), recipe.model.classes)
        if not (folder / RECIPE).exists():
            with only_tells(RECIPE):
                write_recipe(folder, settings)
        self.totals = Totals(folder)
        self.images_before = self.totals.images
        self._rows = stack.enter_context(JsonLines(folder / METRICS_FILE))
        self._log_samples = recipe.data.log_samples
        self._cut = stack.enter_context(contextlib.ExitStack())
        self._quarantine: JsonLines
        self._samples: JsonLines
        self._skipped = Skipped()
        self._trackers: Trackers | None = None
        self._display: Display | None = None
        recorded = self.totals.steps
        self.go_back_to(start.step)
        if recorded > start.step:
            with only_tells("the row of a resume"):
                self.row({"event": "resume", "step": recorded, "to_step": start.step, "time": time.time()})
        with only_tells("the trackers"):
            self._trackers = Trackers(recipe.observe.trackers, folder, settings, step=start.step, recorded=recorded,
                                      evaluated=last_row(folder / METRICS_FILE, EVALUATION_LOSS.column).get("step", 0))
        epoch = None if recipe.data.mix else prepared.train.num_samples      # a mixture's sets have epochs of their own
        with only_tells("the display"):
            self._display = Display(make_console(), total_images=prepared.schedule.total, num_samples=epoch)
            self._display.__enter__()
        stack.push(self._close)

    def note_settings(self) -> None:
        """Write down with which settings this attempt trains; once it does."""
        self.trains = True
        with only_tells("the settings of this attempt"):
            self._lease.check()
            note_used(self._folder, self._used, self._before)
            if self._names and not (self._folder / CLASSES).exists():       # for when the shards lie elsewhere, or nowhere
                write_atomically(self._folder / CLASSES, "".join(f"{name}\n" for name in self._names), durable="content")

    def go_back_to(self, step: int) -> None:
        """Open anew the files that read as if no step was ever repeated, without what came after `step`."""
        if step < self._used.step:      # from before this attempt began
            self._used = replace(self._used, step=step)
            self.note_settings()
        self._cut.close()
        for row in _forget_after(self._folder / QUARANTINE_FILE, step - 1):      # its rows count batches from 0
            self.totals.skip(row, times=-1)
        self.rollbacks = Counter(row["cause"] for row in rollbacks(self._folder))
        self._quarantine = self._cut.enter_context(JsonLines(self._folder / QUARANTINE_FILE))
        if self._log_samples:
            _forget_after(self._folder / SAMPLES_FILE, step)
            self._samples = self._cut.enter_context(JsonLines(self._folder / SAMPLES_FILE))
        self._write_totals()
        if self._trackers is not None:
            self._trackers.go_back(step)

    def row(self, row: dict[str, Any]) -> None:
        self._lease.check()
        self._rows.write(row | {"attempt": self._lease.number})
        self.totals.metric(row)
        if self.totals.is_due:
            self._write_totals()
        if self._trackers is not None:
            with only_tells("the trackers"):
                self._trackers.row(row)

    def show(self, act: Callable[[Display], None]) -> None:
        if self._display is not None:
            with only_tells("the display"):
                act(self._display)

    def samples(self, row: dict[str, Any]) -> None:
        self._lease.check()
        self._samples.write(row)

    def quarantine(self, rows: list[dict[str, Any]]) -> None:
        self._lease.check()
        for row in rows:
            self._quarantine.write(row)
            self.totals.skip(row)
        with only_tells("the words about skipped samples"):
            self._skipped.tell(rows)

    def metrics(self) -> dict[str, Any]:
        """Of all that happened before, to this run."""
        return {"nonfinite_steps_total": self.totals.nonfinite, "rollbacks_total": self.rollbacks,
                "samples_skipped_total": self.totals.skipped, "restarts_total": restarts_by_cause(attempts_of(self._folder))}

    def hurry(self) -> None:
        """The end must not wait long for anybody."""
        if self._trackers is not None:
            self._trackers.patience_s = HURRY_S

    def _write_totals(self) -> None:
        self.totals.write(self._rows.end, self._quarantine.end)

    def _close(self, *error: Any) -> None:
        """Before the files: with the display gone, their last words find a console that is nobody's."""
        with only_tells("the words about skipped samples"):
            self._skipped.flush()
        for part in (self._display, self._trackers):
            if part is not None:
                with only_tells("closing the display and the trackers"):
                    part.__exit__(*error)
        with contextlib.suppress(LeaseLost):
            self._lease.check()
            self._write_totals()


def _forget_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut the rows of steps after `step`, which will be repeated, so that the file reads as if the run had never been interrupted."""
    try:
        return cut_after(path, step)
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("%s: %s; the rows of steps that are repeated stay in it", path, error.strerror or error)
        return []
