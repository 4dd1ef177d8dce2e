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
from vitscale.checkpoint.store import Writer
from vitscale.cluster import going_on
from vitscale.cluster.tries import RestartLoop, Tries
from vitscale.data import open_stream
from vitscale.data.crumbs import Crumbs
from vitscale.data.descriptors import raise_limit
from vitscale.data.remote import PATIENCE
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, CheckpointError, DataError, StorageError, UserError
from vitscale.files import storage_errors
from vitscale.models.lora import with_adapters
from vitscale.objectives import build_task
from vitscale.observe.console import make_console, setup_logging
from vitscale.observe.goodput import Goodput
from vitscale.observe.meters import Meters
from vitscale.observe.profile import Profile
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import Ema
from vitscale.optim.groups import freeze_
from vitscale.parallel.engines import open_engine
from vitscale.parallel.launch import hold_lifeline
from vitscale.parallel.place import Place, node_name
from vitscale.parallel.state import all_finite
from vitscale.parallel.world import World, joined, wait_as_long_as_it_takes
from vitscale.recipe import Recipe
from vitscale.resilience.guard import Guard, Verdict
from vitscale.resilience.lasterror import ECHO_S, most_telling, note_error, say, tell
from vitscale.resilience.outcome import why_stopped, write_outcome
from vitscale.resilience.preflight import preflight
from vitscale.resilience.restarts import begin_attempt
from vitscale.resilience.roll import answer
from vitscale.resilience.signals import StopFlag
from vitscale.resilience.watchdog import Watchdog
from vitscale.train.crashers import crashers_of
from vitscale.train.evaluate import EvaluationLeft, evaluate
from vitscale.train.facts import facts_of
from vitscale.train.pace import PROBE_EVERY, Probe
from vitscale.train.prepare import Prepared, prepare
from vitscale.train.record import Recorder
from vitscale.train.restore import Start, find_start, first_values, restore, restore_newest
from vitscale.train.rollback import decide
from vitscale.train.size import size_up
from vitscale.train.state import Moment, SaveClock, due
from vitscale.train.step import Inputs, train_step
from vitscale.train.teacher import give_teacher

log = logging.getLogger(__name__)


def run(recipe: Recipe, place: Place, stop: StopFlag, accept_changes: bool = False) -> int:
    """Train, or go on training, as one rank of `place.size`; returns the exit code of the run.  Raises UserError, on every rank alike."""
    hold_lifeline()
    raise_limit()
    meters = Meters()
    over = None if place.prepared else going_on.look(recipe, accept_changes)        # on every rank alike
    if over is None:
        prepared = prepare(recipe, look=place.rank == 0 and not place.prepared)
        if not place.prepared:
            over = going_on.look(recipe, accept_changes, prepared.train.hash, prepared.schedule.total)
    if over is not None:
        if place.rank == 0:
            log.info("%s", over)
        return EXIT_DONE
    setup_logging(make_console() if place.rank == 0 else None, prepared.folder / "logs" / f"rank-{place.rank}.log")
    answer(prepared.folder, place.rank, node_name())
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
                        crashers = crashers_of(recipe, prepared, start.attempt)
                        _count(prepared, world, start, goodput, refused)
                except UserError as error:
                    mistake = error
        start, crashers, mistake = world.broadcast((start, crashers, mistake))
        if mistake is not None:
            raise mistake       # no rank waits for one that is gone
        nodes = world.broadcast(world.gather(node_name()))
        dog = stack.enter_context(Watchdog(prepared.folder, rank=world.rank, nodes=nodes, attempt=start.attempt,
                                           settings=recipe.resilience))
        meters.watch(dog.changed)
        try:
            if recipe.resilience.preflight:
                preflight(recipe, prepared.folder, [index for index in (prepared.train, prepared.val) if index is not None], world)
            with storage_errors(), contextlib.closing(Crumbs.open(prepared.folder, world.rank, crashers)) as crumbs:
                return _train(recipe, prepared, world, lease, start, stop, meters, goodput, dog, crumbs)
        except Exception as error:
            if stop.cut_short:          # that has been told, and is why
                raise
            if not isinstance(error, UserError):
                dog.give_way()
            failed = note_error(prepared.folder, error, rank=world.rank, size=world.size, node=nodes[world.rank], attempt=start.attempt,
                                step=dog.steps, exclude=recipe.resilience.exclude_bad_nodes)
            with contextlib.suppress(LeaseLost, StorageError):      # who has lost the lease must not write, nor can who cannot look
                if lease is not None:
                    lease.check()
                    failed = most_telling(prepared.folder, start.attempt, failed, ECHO_S if world.size > 1 else 0.0) or failed
                    facts = dict(error.facts) if isinstance(error, UserError) and not failed.rank else {}
                    if recipe.resilience.exclude_bad_nodes and "nodes" in facts:
                        facts["exclude"] = facts["nodes"]       # the launcher leaves them out of the next attempt
                    tell(prepared.folder, failed, **facts)
            if isinstance(error, UserError):
                raise
            say(error, failed)
            return failed.code


def _train(recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None, start: Start, stop: StopFlag, meters: Meters,
           goodput: Goodput | None, dog: Watchdog, crumbs: Crumbs) -> int:
    work = size_up(recipe, prepared.train, world)
    engine = open_engine(recipe.parallel, world, work)
    task = build_task(recipe.model, recipe.objective)
    give_teacher(task, recipe, world.device)
    build = functools.partial(with_adapters, task.build, recipe.lora) if recipe.lora else task.build
    model = engine.materialise(build, first_values(recipe, task, start))
    if frozen := freeze_(model, recipe.optim.freeze):
        log.info("optim.freeze=%s: %s numbers stay as they are", recipe.optim.freeze, f"{frozen:,}")
    drop_rates = model.drop_rates
    engine.adopt(model, build_optimizer(model, recipe.optim))
    ema = Ema(engine.model, recipe.ema.decay) if recipe.ema else None
    schedule, num_samples = prepared.schedule, prepared.train.num_samples

    with contextlib.ExitStack() as stack:
        bad: list[dict[str, Any]] = []      # unreadable samples of the step that this rank answers for
        on_gpu = world.device.type == "cuda"
        stream = stack.enter_context(open_stream(
            recipe, prepared.train, "train", rank=world.data_rank, world=world.data_size, micro_batch=work.micro_batch,
            drop_rates=drop_rates, num_draws=task.num_draws, local_ranks=world.local_size, pin=on_gpu,
            on_bad=bad.append if world.leads else None, late=on_gpu, crumbs=crumbs))
        inputs = Inputs(world.device, recipe.data.augment, stream.coming if on_gpu else None)
        dog.reading(lambda: stream.progress, slack_s=PATIENCE.silence_s if stream.is_remote else 0.0)
        with meters.phase("restore"):
            start, progress = restore_newest(start, recipe, prepared, world, lease,
                                             lambda found: restore(found, engine, ema, stream))
        guard = Guard(recipe.resilience, progress.now.step, progress.guard)
        record = stack.enter_context(Recorder(recipe, prepared, world, lease, meters, goodput, progress.now, dog.nodes,
                                              engine, stream, start.facts.recipe if start.facts else None))
        profile = stack.enter_context(Profile(recipe.profile, prepared.folder, world, dog.nodes))
        writer = stack.enter_context(Writer(
            prepared.folder / "checkpoints", rank=world.rank, lease=lease, attempt=start.attempt, settings=recipe.checkpoint,
            on_published=record.checkpoint_published, on_failed=record.checkpoint_failed))
        if start.checkpoint is not None:
            writer.last_step = progress.now.step    # it is there already, should this attempt be asked to stop before a step

        clock = SaveClock(recipe.checkpoint.every, asks=world.is_first)

        def is_sound() -> bool:
            """Whether the weights are finite, on all ranks."""
            with meters.phase("checkpoint"):
                return not world.any(not all_finite(engine.model))

        def save(again: bool = False) -> None:
            """`again`: the checkpoint of this step is there, but knows nothing of its evaluation."""
            clock.restart()
            if writer.last_step == progress.now.step and not again:
                return
            with meters.phase("checkpoint"):
                writer.settle()
                progress.unwritten(writer.lost_step)
                progress.guard = guard.memory()
                tensors = engine.tensors()
                if ema is not None:
                    tensors |= {f"ema.{name}": value for name, value in ema.tensors().items()}
                writer.save(tensors, facts_of(recipe, prepared, world, progress, stream), again)

        def evaluate_now() -> tuple[bool, bool]:
            assert prepared.val is not None
            unusable: list[dict[str, Any]] = []
            with meters.phase("evaluate"):
                val = open_stream(
                    _patient(recipe), prepared.val, "val", rank=world.data_rank, world=world.data_size, micro_batch=work.micro_batch,
                    num_draws=task.num_draws, local_ranks=world.local_size, pin=on_gpu, on_bad=unusable.append if world.leads else None,
                    crumbs=crumbs)
                with val:
                    result = evaluate(engine, dog.over(val), task, recipe.data.augment, stop)
                    found = list(unusable)
                    if ema is not None:
                        with ema.swapped():
                            engine.weights_changed()
                            averaged = evaluate(engine, dog.over(val), task, recipe.data.augment, stop)
                        engine.weights_changed()
                        result |= {name.replace("eval_", "eval_ema_"): value for name, value in averaged.items()}
            if result["eval_images"] < prepared.val.num_samples:
                log.warning("data.val: %d of %d samples could not be used; quarantine.jsonl names them",
                            prepared.val.num_samples - result["eval_images"], prepared.val.num_samples)
                record.quarantine([row | {"step": progress.now.step - 1} for row in found], split="val")
            record.evaluation(result, progress.now)
            progress.owes_evaluation = False
            return progress.note(result, recipe.checkpoint.best, recipe.evaluate.early_stopping)

        def go_back(verdict: Verdict) -> str | None:
            """To before the update at fault; returns why the run ends instead, if it does."""
            nonlocal progress, guard
            with meters.phase("restore"):
                writer.settle()
                again = decide(recipe, prepared, world, lease, verdict)
                if isinstance(again, str):
                    return again
                left = progress.now
                _, progress = restore_newest(
                    again, recipe, prepared, world, lease,
                    lambda found: restore(found, engine, ema, stream, anew=lambda: first_values(recipe, task, found)))
                progress.owes_evaluation = False        # made up when the attempt that began there did
                guard = Guard(recipe.resilience, progress.now.step, progress.guard)
                writer.last_step = None     # a checkpoint of that step would now be another one
                record.rollback(verdict, left, progress.now, stream.order.skips)
                world.barrier()             # no rank counts on from there before all do
            dog.begin(progress.now.step)
            return None

        def end(exit_code: int, reason: str, cause: str | None = None) -> int:
            with meters.phase("checkpoint"):
                try:
                    writer.wait()
                except Unwritten as error:      # to say "done", or to let another attempt start further back, would hide the loss
                    progress.unwritten(writer.lost_step)
                    exit_code, reason, cause = error.exit_code, f"{reason}, but the last checkpoint is lost: {error}", "disk"
            return record.end(exit_code, reason, progress, cause)

        def leave() -> int:
            if guard.calm and is_sound():       # else the checkpoint before is the better one to go on from
                save()
            asked = why_stopped(stop.reason, ask=world.is_first)
            return end(EXIT_REQUEUE, asked.reason, asked.cause)

        gc.collect()
        gc.freeze()         # what startup made stays: else Python looks through all of it every few steps, each rank at another moment
        stack.callback(gc.unfreeze)
        if dog.is_on:
            wait_as_long_as_it_takes()
        meters.begin()
        stop.begin()
        dog.begin(progress.now.step)
        probe = Probe(world.device) if world.size > 1 else None
        owed, went_back, patience_over = False, False, progress.out_of_patience(recipe.evaluate.early_stopping)
        if progress.owes_evaluation and prepared.val is not None:
            try:
                _, patience_over = evaluate_now()
            except EvaluationLeft:
                return leave()
            if patience_over or stream.ends_at(schedule.total):     # no later checkpoint will tell of it
                save(again=True)
        while not stream.ends_at(schedule.total) and not patience_over:
            profile.begin(progress.now.step + 1)
            with meters.phase("data_wait"):
                try:
                    batch = next(stream)
                except DataError:
                    record.last_bad(bad)
                    raise
            if recipe.model.dropout:    # the one draw that is not made by sample: by step and rank, so that it repeats on as many ranks
                torch.manual_seed(hash((recipe.seed, batch.step, world.data_rank)))
            lr = schedule.lr(batch.end)
            result = train_step(engine, batch, task, inputs, lr, bool(stop), len(bad), meters,
                                probe if batch.step % PROBE_EVERY == 0 else None, save=clock.due)
            before, progress.now = progress.now, Moment(batch.step + 1, batch.end)
            dog.step_ended(progress.now.step)
            if ema is not None and result.applied:
                ema.update()
            record.step(batch, result, lr, progress.now, bad)
            bad.clear()
            finished = stream.ends_at(schedule.total)
            profile.end(progress.now.step, finished or result.stop)

            verdict = guard.judge(progress.now.step, batch.position, batch.end, result.loss, result.applied)
            if result.stop and not finished:    # an evaluation that is due now is made up: there may be half a minute left
                progress.owes_evaluation = prepared.val is not None and due(recipe.evaluate.every, before, progress.now, num_samples)
                return leave()
            if verdict is None and finished:
                verdict = guard.judge_end(progress.now.step, batch.position, batch.end, is_sound())
            went_back = verdict is not None
            if verdict is not None:
                if (failed := go_back(verdict)) is not None:
                    return end(EXIT_FAILED, failed, verdict.cause)
                owed, patience_over = False, progress.out_of_patience(recipe.evaluate.early_stopping)
                continue

            is_best = False
            if prepared.val is not None and (finished or due(recipe.evaluate.every, before, progress.now, num_samples)):
                try:
                    is_best, patience_over = evaluate_now()
                except EvaluationLeft:
                    progress.owes_evaluation = True
                    return leave()
            owed = owed or result.save or due(recipe.checkpoint.every, before, progress.now, num_samples)
            if finished or patience_over or is_best or (owed and guard.calm):
                if not finished and not is_sound():     # the next step shows it
                    progress.unwritten(progress.now.step)
                    patience_over = False
                    continue
                save()
                owed = False
        if not guard.ever_updated:
            return end(EXIT_FAILED, "not one update was made: the loss or the gradient of every batch was not finite", "nonfinite")
        if went_back and prepared.val is not None:      # to the end: all batches after the checkpoint are passed over
            try:
                evaluate_now()
            except EvaluationLeft:
                progress.owes_evaluation = True
                return leave()
        if went_back:
            save(again=True)
        return end(EXIT_DONE, "patience of early stopping ran out" if patience_over else f"trained for {recipe.duration}")


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
