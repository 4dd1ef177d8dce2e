"""Where training begins: at the newest good checkpoint or at first values; at an attempt's start, and again after a rollback."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.resume import newest_whole, refuse_changes, set_aside
from vitscale.checkpoint.store import STATE, Facts, checkpoints_in, read_facts, read_into, shapes_in, step_of
from vitscale.checkpoint.weights import read_start
from vitscale.data import Stream
from vitscale.errors import CheckpointError
from vitscale.models import initial_value
from vitscale.models.lora import BASE, UP
from vitscale.objectives import Task
from vitscale.optim.ema import Ema
from vitscale.parallel.engine import Engine, ValueOf
from vitscale.recipe import Recipe
from vitscale.recipe.bound import bound_settings
from vitscale.resilience.skips import remembered, rollbacks, undone_by
from vitscale.train.prepare import Prepared
from vitscale.train.state import Moment, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where this attempt begins, or goes back to, as rank 0 found it."""

    attempt: int
    checkpoint: Path | None     # None: first values
    facts: Facts | None
    skips: list[tuple[int, int]]


class NothingGood(CheckpointError):
    """There are checkpoints, but rollbacks have undone them all."""


def find_start(recipe: Recipe, prepared: Prepared, lease: Lease, accept_changes: bool) -> Start:
    """The newest good checkpoint of this very run, or first values.  For rank 0."""
    start = newest_good(prepared.folder, lease)
    if start.checkpoint is not None and start.facts is not None:
        refuse_changes(bound_settings(start.facts.recipe, start.facts.data["index_hash"]),
                       bound_settings(recipe.model_dump(mode="json"), prepared.train.hash), start.checkpoint, accept_changes)
        if recipe.init is not None:
            log.info("going on from %s; init=%s was for the first weights only", start.checkpoint.name, recipe.init)
    return start


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
    checkpoint = newest_whole(run_folder / "checkpoints")
    facts = read_facts(checkpoint) if checkpoint is not None else None
    known = [tuple(skip) for skip in facts.data["skips"]] if facts else []
    return Start(lease.number, checkpoint, facts, remembered(run_folder, known))


def _skips_of(checkpoint: Path) -> list[tuple[int, int]]:
    try:
        return [(start, end) for start, end in read_facts(checkpoint).data["skips"]]
    except CheckpointError:     # damaged, or another version's: that is found and said by newest_whole
        return []


def first_values(recipe: Recipe, task: Task, start: Start) -> ValueOf:
    """Each parameter's first value: from `init`, or drawn by (seed, name) and so the same on every rank and engine."""
    with torch.device("meta"):
        skeleton = task.build()
    weights: dict[str, Tensor] = {}
    if recipe.init is not None and start.checkpoint is None:
        weights = read_start(Path(recipe.init), skeleton, recipe.objective.name)

    def value(name: str, shape: torch.Size) -> Tensor:
        if UP in name:              # an adapter adds nothing at first
            return torch.zeros(shape)
        name = name.replace(BASE, ".")
        return weights[name] if name in weights else initial_value(skeleton, name, shape, recipe.seed)

    return value


def restore(start: Start, engine: Engine, ema: Ema | None, stream: Stream, anew: Callable[[], ValueOf] | None = None) -> Progress:
    """Put weights, optimizer, averages and data to where the checkpoint left them, or where training begins.  Collective.

    `anew`: where first values come from if there is no checkpoint; None: the weights have them already.
    """
    if start.checkpoint is None or start.facts is None:
        if anew is not None:
            engine.begin_anew(anew())
            if ema is not None:
                ema.restart()
        if anew is not None or start.skips:
            stream.load_state_dict(stream.state_dict() | {"position": 0, "skips": start.skips})
        return Progress()
    state, facts = start.checkpoint / STATE, start.facts
    shapes = shapes_in(state)
    engine.restore(shapes, lambda targets: read_into(state, targets))
    if ema is not None and any(name.startswith("ema.") for name in shapes):
        read_into(state, {f"ema.{name}": value for name, value in ema.tensors().items()})
    elif ema is not None:
        ema.restart()
    stream.load_state_dict(facts.data | {"skips": start.skips})
    progress = Progress(Moment(facts.step, facts.data["position"]), facts.best, dict(facts.stopping), dict(facts.guard),
                        facts.owes_evaluation)
    log.info("going on from %s: step %d, %d images seen; it was written by %s on %d rank(s)", start.checkpoint.name,
             facts.step, progress.now.images, facts.engine, facts.world_size)
    return progress
