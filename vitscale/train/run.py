"""The program: from a recipe to a trained model.  Read it from top to bottom."""

import contextlib
import functools
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vitscale.checkpoint.lease import Lease, LeaseLost, refuse_if_held
from vitscale.checkpoint.room import Unwritten
from vitscale.checkpoint.store import CheckpointWriter
from vitscale.cluster import resumable
from vitscale.cluster.tries import RestartLoop, Tries
from vitscale.counts import plural
from vitscale.data import StepBatch, open_stream
from vitscale.data.crumbs import Crumbs, Setting, find_crashers
from vitscale.data.descriptors import raise_limit
from vitscale.data.remote import PATIENCE
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, CheckpointError, DataError, StorageError, UserError
from vitscale.files import storage_errors
from vitscale.metrics import COLUMNS
from vitscale.metrics.system import EVALUATED_IMAGES
from vitscale.models.lora import with_adapters
from vitscale.objectives import build_task
from vitscale.observe.console import make_console, setup_logging
from vitscale.observe.meters import Meters
from vitscale.observe.profile import StepProfiler
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.optim.groups import freeze_
from vitscale.parallel.engines import open_engine
from vitscale.parallel.launch import hold_lifeline
from vitscale.parallel.rank_info import RankInfo, node_name
from vitscale.parallel.state import all_finite
from vitscale.parallel.world import World, joined, wait_as_long_as_it_takes
from vitscale.recipe import Duration, Recipe
from vitscale.resilience.guard import Guard, RollBack
from vitscale.resilience.lasterror import ECHO_S, LastError, most_telling, note_error, say, tell
from vitscale.resilience.outcome import why_stopped, write_outcome
from vitscale.resilience.preflight import preflight
from vitscale.resilience.restarts import begin_attempt
from vitscale.resilience.roll import answer
from vitscale.resilience.signals import StopFlag
from vitscale.resilience.watchdog import Watchdog
from vitscale.train.coupling import Coupling
from vitscale.train.evaluate import EvaluationLeft, evaluate
from vitscale.train.facts import facts_of
from vitscale.train.features import judging
from vitscale.train.goodput import Goodput
from vitscale.train.pace import PROBE_EVERY, Probe
from vitscale.train.prepare import Prepared, prepare
from vitscale.train.record import Recorder
from vitscale.train.restore import Start, carry_over, find_start, initial_values, restore, restore_newest
from vitscale.train.rollback import decide
from vitscale.train.size import size_up
from vitscale.train.state import Moment, Progress, SaveClock, due
from vitscale.train.step import Inputs, StepResult, train_step
from vitscale.train.teacher import frozen_hash, give_teacher

log = logging.getLogger(__name__)


def run(recipe: Recipe, place: RankInfo, stop: StopFlag, accept_changes: bool = False) -> int:
    """Train, or resume training, as one rank of `place.size`; returns the exit code of the run.  Raises UserError, on every rank alike."""
    hold_lifeline()
    raise_limit()
    meters = Meters()
    prepared = _prepared(recipe, place, accept_changes)
    if isinstance(prepared, str):
        if place.rank == 0:
            log.info("%s", prepared)
        return EXIT_DONE
    setup_logging(make_console() if place.rank == 0 else None, prepared.folder / "logs" / f"rank-{place.rank}.log")
    answer(prepared.folder, place.rank, place.size, node_name())
    refused = _note_try(recipe, prepared) if place.rank == 0 else None      # before anything that may end it
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(joined(recipe.parallel, place))
        lease, goodput, start, crashers, mistake = None, None, None, None, None
        if world.is_first:
            with meters.phase("restore"):
                try:
                    lease = stack.enter_context(_holding(prepared.folder))
                    stop.farewell = functools.partial(_leave_early, prepared.folder, lease, "before the first step")
                    stop.last_word = functools.partial(_leave_early, prepared.folder, lease, "twice, and ended at once", "SIGINT")
                    goodput = stack.enter_context(Goodput(prepared.folder, lease, meters))
                    with storage_errors():
                        start = find_start(recipe, prepared, lease, accept_changes)
                        crashers = find_crashers(prepared.folder, [prepared.train, prepared.val], Setting.of(recipe), start.attempt)
                        _count(prepared, world, start, goodput, refused)
                except UserError as error:
                    mistake = error
        start, crashers, mistake = world.broadcast((start, crashers, mistake))
        if mistake is not None:
            raise mistake       # no rank waits for one that is gone
        nodes = world.broadcast(world.gather(node_name()))
        watchdog = stack.enter_context(Watchdog(prepared.folder, rank=world.rank, nodes=nodes, attempt=start.attempt,
                                           settings=recipe.resilience))
        meters.watch(watchdog.changed)
        try:
            if recipe.resilience.preflight:
                preflight(recipe, prepared.folder, [index for index in (prepared.train, prepared.val) if index is not None], world)
            with storage_errors(), contextlib.closing(Crumbs.open(prepared.folder, world.rank, crashers)) as crumbs:
                return Session(recipe, prepared, world, lease, stop, meters, goodput, watchdog, crumbs).run(start)
        except Exception as error:
            if stop.cut_short:          # that has been told, and is why
                raise
            failed = _note_failure(error, recipe, prepared, world, lease, watchdog, start)
            if isinstance(error, UserError):
                raise
            say(error, failed)
            return failed.code


class Session:
    """One attempt at training, on one rank: what it holds, and its verbs in the order of a run: build, resume, train, evaluate, save,
    roll_back, leave or finish.  All are collective."""

    def __init__(self, recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None, stop: StopFlag, meters: Meters,
                 goodput: Goodput | None, watchdog: Watchdog, crumbs: Crumbs) -> None:
        """lease, goodput: rank 0's alone."""
        self.recipe, self.prepared, self.world, self.lease, self.stop = recipe, prepared, world, lease, stop
        self.meters, self.goodput, self.watchdog, self.crumbs = meters, goodput, watchdog, crumbs
        self.on_gpu = world.device.type == "cuda"
        self.bad: list[dict[str, Any]] = []     # unreadable samples of the step that this rank answers for
        self.save_owed = False          # a checkpoint is due, and waits until the guard is calm
        self.went_back = False          # the last step ended in a rollback
        self.patience_over = False

    def run(self, start: Start) -> int:
        """From there to the end of the run or of this attempt; returns the exit code."""
        with contextlib.ExitStack() as stack:
            self.build(start, stack)
            self.resume(start, stack)
            gc.collect()
            gc.freeze()     # what startup made stays: else Python looks through all of it every few steps, each rank at another moment
            stack.callback(gc.unfreeze)
            try:
                return self.train()
            except EvaluationLeft:
                self.progress.owes_evaluation = True
                return self.leave()

    def build(self, start: Start, stack: contextlib.ExitStack) -> None:
        """The model and its optimizer under their engine, and the stream of batches."""
        recipe, world = self.recipe, self.world
        self.work = size_up(recipe, self.prepared.train, world)
        self.engine = open_engine(recipe.parallel, world, self.work)
        self.task = build_task(recipe.model, recipe.objective)
        give_teacher(self.task, recipe, self.engine)
        self.frozen = frozen_hash(recipe) if world.is_first else None
        build = functools.partial(with_adapters, self.task.build, recipe.lora) if recipe.lora else self.task.build
        model = self.engine.materialise(build, initial_values(recipe, self.task, start))
        if frozen := freeze_(model, recipe.optim.freeze):
            log.info("optim.freeze=%s: %s parameters are frozen", recipe.optim.freeze, f"{frozen:,}")
        drop_rates = model.drop_rates
        self.engine.adopt(model, build_optimizer(model, recipe.optim))
        self.ema = WeightAverage(self.engine.model, recipe.ema.decay if recipe.ema else 1.0) if recipe.ema or self.task.momentum else None
        self.coupling = Coupling(self.task, self.engine, self.ema)
        self.stream = stack.enter_context(open_stream(
            recipe, self.prepared.train, "train", drop_rates=drop_rates, on_request=self.on_gpu, **self._share(self.bad)))
        self.inputs = Inputs(world.device, recipe.data.augment, self.stream.peek if self.on_gpu else None)

    def resume(self, start: Start, stack: contextlib.ExitStack) -> None:
        """Everything to where `start` left it, and open what records the run from there."""
        recipe, prepared, world = self.recipe, self.prepared, self.world
        self.watchdog.reading(lambda: self.stream.progress, slack_s=PATIENCE.silence_s if self.stream.is_remote else 0.0)
        with self.meters.phase("restore"):
            start, self.progress = restore_newest(start, recipe, prepared, world, self.lease, self.put)
        self.guard = Guard(recipe.resilience, self.progress.now.step, self.progress.guard)
        self.record = stack.enter_context(Recorder(
            recipe, prepared, world, self.lease, self.meters, self.goodput, self.progress.now, self.watchdog.nodes, self.engine,
            self.stream, start.facts.recipe if start.facts else None))
        self.profile = stack.enter_context(StepProfiler(recipe.profile, prepared.folder, world, self.watchdog.nodes))
        self.writer = stack.enter_context(CheckpointWriter(
            prepared.folder / "checkpoints", rank=world.rank, lease=self.lease, attempt=start.attempt, settings=recipe.checkpoint,
            on_published=self.record.checkpoint_published, on_failed=self.record.checkpoint_failed))
        if start.checkpoint is not None:
            self.writer.last_step = self.progress.now.step      # it is there already, should this attempt be asked to stop before a step
        self.clock = SaveClock(recipe.checkpoint.every, asks=world.is_first)
        self.patience_over = self.progress.out_of_patience(recipe.evaluate.early_stopping)

    def put(self, found: Start, again: bool = False) -> Progress:
        """Everything to there.  `again`: the weights are not initial values any more."""
        anew = (lambda: initial_values(self.recipe, self.task, found)) if again else None
        progress = restore(found, self.engine, self.ema, self.stream, self.coupling, anew)
        if found.checkpoint is None:
            carry_over(self.recipe, self.task, self.ema, self.coupling)
        return progress

    def train(self) -> int:
        """Step by step to the end; returns the exit code.  Raises EvaluationLeft."""
        if self.watchdog.is_on:
            wait_as_long_as_it_takes()
        self.meters.begin()
        self.stop.begin()
        self.watchdog.begin(self.progress.now.step)
        self.probe = Probe(self.world.device) if self.world.size > 1 else None
        if self.progress.owes_evaluation and self.prepared.val is not None:
            self.evaluate()
            if self.patience_over or self.at_end:       # no later checkpoint will tell of it
                self.save(again=True)
        while not self.at_end and not self.patience_over:
            before = self.progress.now
            batch, result = self.step()
            ended = self.follow_up(before, batch, result)
            if ended is not None:
                return ended
        return self.finish()

    @property
    def at_end(self) -> bool:
        return self.stream.ends_at(self.prepared.schedule.total)

    def step(self) -> tuple[StepBatch, StepResult]:
        """The next global batch: read, trained on, recorded."""
        self.profile.begin(self.progress.now.step + 1)
        with self.meters.phase("data_wait"):
            try:
                batch = next(self.stream)
            except DataError:
                self.record.last_bad(self.bad)
                raise
        if self.recipe.model.dropout:   # the one draw that is not made by sample: by step and rank, so that it repeats on as many ranks
            torch.manual_seed(hash((self.recipe.seed, batch.step, self.world.data_rank)))
        schedule, seen = self.prepared.schedule, self.prepared.schedule.now(batch.end)
        lr = schedule.lr(batch.end)
        if self.recipe.optim.weight_decay_end is not None:
            self.engine.set_weight_decay(schedule.weight_decay(batch.end) / self.recipe.optim.weight_decay)
        with self.meters.phase("compute"):
            surveyed = self.coupling.of_step(batch, self.inputs, seen)
        result = train_step(self.engine, batch, self.task, self.inputs, lr, bool(self.stop), len(self.bad), self.meters,
                            self.probe if batch.step % PROBE_EVERY == 0 else None, save=self.clock.due, surveyed=surveyed)
        now = self.progress.now = Moment(batch.step + 1, batch.end)
        self.watchdog.step_ended(now.step)
        if result.applied:
            self.coupling.applied(seen)
        self.record.step(batch, result, lr, now, self.bad)
        self.bad.clear()
        self.profile.end(now.step, self.at_end or result.stop)
        return batch, result

    def follow_up(self, before: Moment, batch: StepBatch, result: StepResult) -> int | None:
        """What is due after a step; returns the exit code where the attempt ends with it."""
        now, finished, evaluates = self.progress.now, self.at_end, self.prepared.val is not None
        verdict = self.guard.judge(now.step, batch.position, batch.end, result.loss, result.applied)
        if result.stop and not finished:    # an evaluation that is due now is made up: there may be half a minute left
            self.progress.owes_evaluation = evaluates and self._due(self.recipe.evaluate.every, before)
            return self.leave()
        if verdict is None and finished:
            verdict = self.guard.judge_end(now.step, batch.position, batch.end, self.is_sound())
        self.went_back = verdict is not None
        if verdict is not None:
            return self.roll_back(verdict)
        is_best = evaluates and (finished or self._due(self.recipe.evaluate.every, before)) and self.evaluate()
        self.save_owed = self.save_owed or result.save or self._due(self.recipe.checkpoint.every, before)
        if finished or self.patience_over or is_best or (self.save_owed and self.guard.calm):
            if finished or self.is_sound():
                self.save()
                self.save_owed = False
            else:                           # the next step shows it
                self.progress.unwritten(now.step)
                self.patience_over = False
        return None

    def evaluate(self) -> bool:
        """On the validation shards, the averaged weights too; returns whether it is the best so far.  Raises EvaluationLeft."""
        assert self.prepared.val is not None
        unusable: list[dict[str, Any]] = []
        with self.meters.phase("evaluate"), judging(self.recipe, self.engine.model) as features, open_stream(
                _patient(self.recipe), self.prepared.val, "val", **self._share(unusable)) as val:
            now = self.prepared.schedule.now(self.progress.now.images)
            result = evaluate(self.engine, self.watchdog.over(val), self.coupling, now, self.recipe.data.augment, self.stop, features)
            found = list(unusable)
            if self.ema is not None and self.task.momentum is None:
                with self.ema.swapped():
                    self.engine.weights_changed()
                    averaged = evaluate(self.engine, self.watchdog.over(val), self.coupling, now, self.recipe.data.augment, self.stop)
                self.engine.weights_changed()
                result |= {COLUMNS[column].averaged: value for column, value in averaged.items()}
        readable = result[EVALUATED_IMAGES.column]
        if readable < self.prepared.val.num_samples:
            log.warning("data.val: %d of %s could not be used; quarantine.jsonl names what failed",
                        self.prepared.val.num_samples - readable, plural(self.prepared.val.num_samples, "sample"))
            self.record.quarantine([row | {"step": self.progress.now.step - 1} for row in found], split="val")
        self.record.evaluation(result, self.progress.now)
        self.progress.owes_evaluation = False
        is_best, self.patience_over = self.progress.note(result, self.recipe.checkpoint.best, self.recipe.evaluate.early_stopping)
        return is_best

    def is_sound(self) -> bool:
        """Whether the weights are finite, on all ranks."""
        with self.meters.phase("checkpoint"):
            return not self.world.any(not all_finite(self.engine.model))

    def save(self, again: bool = False) -> None:
        """A checkpoint of this step.  `again`: it is there, but knows nothing of its evaluation."""
        self.clock.restart()
        if self.writer.last_step == self.progress.now.step and not again:
            return
        with self.meters.phase("checkpoint"):
            self.writer.settle()
            self.progress.unwritten(self.writer.lost_step)
            self.progress.guard = self.guard.memory()
            tensors = self.engine.tensors() | self.coupling.tensors()
            if self.ema is not None:
                tensors |= {f"ema.{name}": value for name, value in self.ema.tensors().items()}
            self.writer.save(tensors, facts_of(
                self.recipe, self.prepared, self.world, self.progress, self.stream, self.frozen), again)

    def roll_back(self, verdict: RollBack) -> int | None:
        """To before the update at fault; returns the exit code where the run ends instead."""
        with self.meters.phase("restore"):
            self.writer.settle()
            again = decide(self.recipe, self.prepared, self.world, self.lease, verdict)
            if not isinstance(again, str):
                left = self.progress.now
                _, self.progress = restore_newest(
                    again, self.recipe, self.prepared, self.world, self.lease, functools.partial(self.put, again=True))
                self.progress.owes_evaluation = False       # made up when the attempt that began there did
                self.guard = Guard(self.recipe.resilience, self.progress.now.step, self.progress.guard)
                self.writer.last_step = None    # a checkpoint of that step would now be another one
                self.record.rollback(verdict, left, self.progress.now, self.stream.order.skips)
                self.world.barrier()            # no rank counts on from there before all do
        if isinstance(again, str):
            return self._end(EXIT_FAILED, again, verdict.cause)
        self.watchdog.begin(self.progress.now.step)
        self.save_owed, self.patience_over = False, self.progress.out_of_patience(self.recipe.evaluate.early_stopping)
        return None

    def leave(self) -> int:
        """Because someone asked: another attempt resumes from here."""
        if self.guard.calm and self.is_sound():     # else the checkpoint before is the better one to resume from
            self.save()
        asked = why_stopped(self.stop.reason, ask=self.world.is_first)
        return self._end(EXIT_REQUEUE, asked.reason, asked.cause)

    def finish(self) -> int:
        """All is trained.  Raises EvaluationLeft."""
        if not self.guard.ever_updated:
            return self._end(EXIT_FAILED, "not one update was made: the loss or the gradient of every batch was not finite", "nonfinite")
        if self.went_back:      # to the end: all batches after the checkpoint are passed over
            patience_over = self.patience_over
            if self.prepared.val is not None:
                self.evaluate()
            self.save(again=True)
            self.patience_over = patience_over
        reason = "patience of early stopping ran out" if self.patience_over else f"trained for {self.recipe.duration}"
        return self._end(EXIT_DONE, reason)

    def _end(self, exit_code: int, reason: str, cause: str | None = None) -> int:
        with self.meters.phase("checkpoint"):
            try:
                self.writer.wait()
            except Unwritten as error:      # to say "done", or to let another attempt start further back, would hide the loss
                self.progress.unwritten(self.writer.lost_step)
                exit_code, reason, cause = error.exit_code, f"{reason}, but the last checkpoint is lost: {error}", "disk"
        return self.record.end(exit_code, reason, self.progress, cause)

    def _share(self, bad: list[dict[str, Any]]) -> dict[str, Any]:
        """What open_stream() is told of this rank; the samples that cannot be used go into `bad`."""
        return {"rank": self.world.data_rank, "world": self.world.data_size, "micro_batch": self.work.micro_batch,
                "num_draws": self.task.num_draws, "local_ranks": self.world.local_size, "pin": self.on_gpu,
                "on_bad": bad.append if self.world.leads else None, "crumbs": self.crumbs}

    def _due(self, every: Duration | None, before: Moment) -> bool:
        return due(every, before, self.progress.now, self.prepared.train.num_samples)


def _prepared(recipe: Recipe, place: RankInfo, accept_changes: bool) -> Prepared | str:
    """What training needs to know before ranks join, or, in words, that the run is done.  Raises UserError, on every rank alike."""
    if place.prepared:
        return prepare(recipe, look=False)
    if (over := resumable.look(recipe, accept_changes)) is not None:
        return over
    prepared = prepare(recipe, look=place.rank == 0)
    return resumable.look(recipe, accept_changes, prepared.train.hash, prepared.schedule.total) or prepared


def _note_failure(error: Exception, recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None, watchdog: Watchdog,
                  start: Start) -> LastError:
    """Write down what ended this attempt, for whoever starts the next; returns what most tells why, which may be another rank's."""
    if not isinstance(error, UserError):
        watchdog.defer_to_hang()
    failed = note_error(prepared.folder, error, rank=world.rank, size=world.size, node=watchdog.nodes[world.rank], attempt=start.attempt,
                        step=watchdog.steps, exclude=recipe.resilience.exclude_bad_nodes)
    with contextlib.suppress(LeaseLost, StorageError):      # who has lost the lease must not write, nor can who cannot look
        if lease is not None:
            lease.check()
            failed = most_telling(prepared.folder, start.attempt, failed, ECHO_S if world.size > 1 else 0.0) or failed
            facts = dict(error.facts) if isinstance(error, UserError) and not failed.rank else {}
            if recipe.resilience.exclude_bad_nodes and "nodes" in facts:
                facts["exclude"] = facts["nodes"]       # the launcher leaves them out of the next attempt
            tell(prepared.folder, failed, **facts)
    return failed


def _patient(recipe: Recipe) -> Recipe:
    """For evaluation: it counts bad samples and leaves them out, but does not throw the training away for them."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad_fraction": 1.0})})


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[Lease]:
    lease = Lease.take(folder)
    try:
        yield lease
    finally:
        lease.release()


def _leave_early(folder: Path, lease: Lease, when: str, sent: str) -> None:
    lease.check()
    asked = why_stopped(sent, when)
    log.warning("%s", asked.reason)
    write_outcome(folder, EXIT_REQUEUE, asked.reason, cause=asked.cause, attempt=lease.number)
    lease.release()


def _note_try(recipe: Recipe, prepared: Prepared) -> RestartLoop | None:
    """Note that the run is tried, unless whoever started this process has; returns why this try is one too many, if it is."""
    try:
        refuse_if_held(prepared.folder)
    except (CheckpointError, OSError):
        return None             # who is turned away at the door has not tried; taking the lease says why, to all ranks
    try:
        Tries(prepared.folder, recipe.resilience.max_restarts).begin()
    except RestartLoop as refused:
        return refused
    return None


def _count(prepared: Prepared, world: World, start: Start, goodput: Goodput, refused: RestartLoop | None) -> None:
    """Write this attempt down beside those before it.  Raises `refused`, and writes it down as the outcome."""
    step, images = (start.facts.step, start.facts.data["position"]) if start.facts else (0, 0)
    begin_attempt(prepared.folder, start.attempt, started=goodput.started, step=step, images=images, ranks=world.size,
                  seconds=goodput.run_seconds())
    if refused is not None:
        write_outcome(prepared.folder, refused.exit_code, str(refused), attempt=start.attempt, **refused.facts)
        raise refused
