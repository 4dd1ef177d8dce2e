"""Where training begins: at the newest good checkpoint or at initial values; at an attempt's start, and again after a rollback."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.checkpoint.facts import FACTS, Damaged, RunFacts
from vitscale.checkpoint.foreign import is_foreign_folder
from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.resume import newest_whole, set_aside, set_aside_damaged
from vitscale.checkpoint.store import EMA_WEIGHTS, STATE, WEIGHTS, checkpoints_in, read_facts, read_into, shapes_in, step_of
from vitscale.checkpoint.weights import find_weights, read_saved, read_start, teaches
from vitscale.cluster.resumable import meant
from vitscale.counts import plural
from vitscale.data import Stream
from vitscale.errors import CheckpointError
from vitscale.models import initial_value
from vitscale.models.lora import BASE, UP
from vitscale.objectives import Task
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Engine, ValueOf
from vitscale.parallel.state import fill_first_
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.recipe.bound import Change, changes, read_settings, refuse_changes, settings_of, tell_changes
from vitscale.recipe.external import package_of
from vitscale.resilience.skips import remembered, rollbacks, undone_by
from vitscale.train.coupling import Coupling
from vitscale.train.prepare import Prepared
from vitscale.train.state import Moment, Progress
from vitscale.train.teacher import frozen_hash

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where this attempt begins, or goes back to, as rank 0 found it."""

    attempt: int
    checkpoint: Path | None     # None: initial values
    facts: RunFacts | None
    skips: list[tuple[int, int]]


class NothingGood(CheckpointError):
    """There are checkpoints, but rollbacks have undone them all."""


def find_start(recipe: Recipe, prepared: Prepared, lease: Lease, accept_changes: bool) -> Start:
    """The newest good checkpoint of this very run, or initial values.  For rank 0."""
    start = newest_good(prepared.folder, lease)
    if start.checkpoint is not None and start.facts is not None:
        read_saved(start.facts.recipe, start.checkpoint / FACTS)        # names what is not known here
        found = _changes(start.checkpoint, start.facts, recipe, prepared)
        refuse_changes(found, str(start.checkpoint), str(start.checkpoint), accept_changes)
        tell_changes(found, start.checkpoint.name)
        for package, version in package_of(recipe.model).items():
            if (before := start.facts.versions.get(package, version)) != version:
                log.warning("%s was written with %s %s, and %s is installed now: another version may build another model",
                            start.checkpoint.name, package, before, version)
        if recipe.init is not None:
            log.info("resuming from %s; init=%s was for the first weights only", start.checkpoint.name, recipe.init)
    return start


def _changes(checkpoint: Path, facts: RunFacts, recipe: Recipe, prepared: Prepared) -> list[Change]:
    """What differs from the settings that a checkpoint of this run stands for."""
    then = read_settings(meant(prepared.folder, facts.step, facts.recipe), facts.data["index_hash"], str(checkpoint / FACTS))
    now = settings_of(recipe.model_dump(mode="json"), prepared.train.hash)
    if facts.frozen is not None and recipe.objective.frozen is not None:
        then, now = then | {"frozen_hash": facts.frozen}, now | {"frozen_hash": frozen_hash(recipe)}
    return changes(then, now)


def newest_good(run_folder: Path, lease: Lease) -> Start:
    """The newest checkpoint that is whole and that no rollback has undone; those that one has are set aside.  For rank 0.

    Aside, not deleted: they show what came before the spike, and after a false alarm renaming them and deleting a line of skips.jsonl
    gives back what was trained.  Whatever a kill left undone of this is done by the next attempt, since all of it follows from
    skips.jsonl.  Raises NothingGood; starting afresh would be a surprise.
    """
    checkpoints, back = checkpoints_in(run_folder / "checkpoints"), rollbacks(run_folder)
    undone = {path: row for path in checkpoints if back and (row := undone_by(back, step_of(path), _skips_of(path)))}
    if undone and len(undone) == len(checkpoints):
        row = next(iter(undone.values()))
        raise NothingGood(f"{run_folder}: no checkpoint from before step {row['before_step']} is left to go back to: {row['reason']}; "
                          "start anew under another name, and keep more checkpoints (checkpoint.keep)")
    for path, row in undone.items():
        lease.check()
        log.warning("checkpoint %s is from after the update at fault (step %d); kept as %s", path.name, row["before_step"],
                    set_aside(path, "undone").name)
    checkpoint = newest_whole(run_folder / "checkpoints", also=_lacking)
    facts = read_facts(checkpoint) if checkpoint is not None else None
    if facts is not None and not is_held(run_folder, facts.best):
        facts = replace(facts, best=None)
    known = [tuple(skip) for skip in facts.data["skips"]] if facts else []
    return Start(lease.number, checkpoint, facts, remembered(run_folder, known))


def _skips_of(checkpoint: Path) -> list[tuple[int, int]]:
    try:
        return [(start, end) for start, end in read_facts(checkpoint).data["skips"]]
    except CheckpointError:     # damaged, or another version's: that is found and said by newest_whole
        return []


def is_held(run_folder: Path, best: Mapping[str, Any] | None) -> bool:
    """Whether the checkpoint that `best` names is there."""
    return best is not None and any(step_of(path) == best["step"] for path in checkpoints_in(run_folder / "checkpoints"))


def _lacking(checkpoint: Path) -> str | None:
    """What a checkpoint does not say of a run's data."""
    missing = [name for name in ("index_hash", "position", "skips") if name not in read_facts(checkpoint).data]
    return f"{FACTS} says nothing of {', '.join(f'data.{name}' for name in missing)}" if missing else None


def initial_values(recipe: Recipe, task: Task, start: Start) -> ValueOf:
    """Each parameter's first value: from `init`, or drawn by (seed, name) and so the same on every rank and engine."""
    with torch.device("meta"):
        skeleton = task.build()
    weights: dict[str, Tensor] = {}
    if recipe.init is not None and start.checkpoint is None:
        weights = read_start(Path(recipe.init), skeleton, recipe.objective.name, recipe.model)

    def value(name: str, shape: torch.Size) -> Tensor:
        if UP in name:              # an adapter adds nothing at first
            return torch.zeros(shape)
        name = name.replace(BASE, ".")
        return weights[name] if name in weights else initial_value(skeleton, name, shape, recipe.seed)

    return value


def carry_over(recipe: Recipe, task: Task, ema: WeightAverage | None, coupling: Coupling) -> None:
    """What `init` gives a new run besides weights, if it names one whose teacher is an average too: the teacher, and what both remember in
    their objectives' states.  Collective.  Raises CheckpointError."""
    if recipe.init is None or ema is None or task.momentum is None or is_foreign_folder(Path(recipe.init)):
        return
    folder = find_weights(Path(recipe.init)).parent
    if not teaches(folder / WEIGHTS) or not (folder / EMA_WEIGHTS).is_file():
        return
    with torch.device("meta"):
        skeleton = task.build()
    weights = read_start(folder / EMA_WEIGHTS, skeleton, recipe.objective.name)
    fill_first_({f"model.{name}": target for name, target in ema.tensors().items() if name in weights}, lambda name, shape: weights[name])
    shapes = shapes_in(folder / STATE)
    if kept := {name: value for name, value in coupling.tensors().items() if shapes.get(name) == value.shape}:
        read_into(folder / STATE, kept)
    log.info("init=%s: the teacher is that run's%s", recipe.init, f", and so is {', '.join(kept)}" if kept else "")


def restore_newest(start: Start, recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None,
                   put: Callable[[Start], Progress]) -> tuple[Start, Progress]:
    """`put(start)`, or, if that checkpoint turns out to be damaged, of the newest before it that is not; and which it was.  Collective.

    Files can agree with their manifest and hold nonsense all the same, as after a bit that flipped in memory before they were written.
    Raises CheckpointError, on every rank alike.
    """
    while True:
        try:
            return start, put(start)
        except CheckpointError as error:
            answer: Start | CheckpointError | None = None
            if lease is not None:
                try:
                    answer = _before(start, error, recipe, prepared, lease)
                except CheckpointError as other:
                    answer = other
            answer = world.broadcast(answer)
            if not isinstance(answer, Start):
                raise (answer or error) from None
            start = answer


def _before(start: Start, error: CheckpointError, recipe: Recipe, prepared: Prepared, lease: Lease) -> Start:
    """Where to begin instead of at a checkpoint that could not be restored.  Raises `error` if that may be no damage: what another
    recipe asks for need not be in it."""
    if start.checkpoint is None or start.facts is None:
        raise error
    if not isinstance(error, Damaged) and any(
            change.kind != "free" for change in _changes(start.checkpoint, start.facts, recipe, prepared)):
        raise error
    lease.check()
    set_aside_damaged(start.checkpoint, str(error).removeprefix(f"{start.checkpoint}/"))
    again = newest_good(prepared.folder, lease)
    if again.checkpoint is None:
        raise CheckpointError(f"{prepared.folder / 'checkpoints'}: no checkpoint is whole ({error}); restore one, or start anew under "
                              "another name")
    return again


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A CheckpointError of someone who was given what `path` holds, but not its name, names it."""
    try:
        yield
    except CheckpointError as error:
        raise error if str(path.parent) in str(error) else CheckpointError(f"{path}: {error}") from None


def restore(start: Start, engine: Engine, ema: WeightAverage | None, stream: Stream, coupling: Coupling | None = None,
            anew: Callable[[], ValueOf] | None = None) -> Progress:
    """Put weights, optimizer, averages, the objective's state and data to where the checkpoint left them, or to the beginning.  Collective.

    `anew`: where initial values come from if there is no checkpoint; None: the weights have them already.
    """
    if start.checkpoint is None or start.facts is None:
        if anew is not None:
            engine.begin_anew(anew())
            if ema is not None:
                ema.restart()
            if coupling is not None:
                coupling.restart()
        if anew is not None or start.skips:
            stream.load_state_dict(stream.state_dict() | {"position": 0, "skips": start.skips})
        return Progress()
    state, facts = start.checkpoint / STATE, start.facts
    shapes = shapes_in(state)
    with _naming(state):
        engine.restore(shapes, lambda targets: read_into(state, targets))
    if ema is not None and any(name.startswith("ema.") for name in shapes):
        read_into(state, {f"ema.{name}": value for name, value in ema.tensors().items()})
    elif ema is not None:
        ema.restart()
    if coupling is not None and (kept := coupling.tensors()):
        read_into(state, kept)
    with _naming(start.checkpoint / FACTS):
        stream.load_state_dict(facts.data | {"skips": start.skips})
    progress = Progress(Moment(facts.step, facts.data["position"]), facts.best, dict(facts.stopping), dict(facts.guard),
                        facts.owes_evaluation)
    log.info("resuming from %s: step %d, %s seen; it was written by %s on %s", start.checkpoint.name, facts.step,
             plural(progress.now.images, "image"), facts.engine, plural(facts.world_size, "rank"))
    return progress
