"""The decision what a starting attempt resumes from: the newest checkpoint that is whole."""

import fnmatch
import logging
import os
from collections.abc import Callable
from pathlib import Path

from vitscale.checkpoint.store import REPLACED, checkpoints_in, fault_in, is_foreign
from vitscale.errors import CheckpointError
from vitscale.files import fsync_folder, is_there, names_in, rename

log = logging.getLogger(__name__)


def newest_whole(folder: Path, also: Callable[[Path], str | None] = lambda checkpoint: None) -> Path | None:
    """The newest checkpoint that verifies.  A damaged one is named in the log and moved aside, and the one before it is looked at.

    `also`, given one that verifies, may find more that is wrong with it.

    Raises CheckpointError if there were checkpoints and none is whole (starting afresh would be a surprise), or if another version
    of vitscale wrote the newest.
    """
    for name in fnmatch.filter(names_in(folder), f"{REPLACED}step-*"):      # a kill came between two names
        if not is_there(final := folder / name.removeprefix(REPLACED)):
            rename(folder / name, final)
    damaged = []
    for checkpoint in reversed(checkpoints_in(folder)):
        reason = fault_in(checkpoint) or also(checkpoint)
        if reason is None:
            return checkpoint
        if is_foreign(checkpoint):
            raise CheckpointError(f"{checkpoint}: {reason}; resume with the version that wrote it, or start anew under another name")
        set_aside_damaged(checkpoint, reason)
        damaged.append(f"{checkpoint.name}: {reason}")
    if damaged:
        raise CheckpointError(f"{folder}: no checkpoint is whole ({'; '.join(damaged)}); restore one, or start anew under another name")
    return None


def set_aside_damaged(checkpoint: Path, reason: str) -> None:
    aside = set_aside(checkpoint, "damaged")
    log.error("checkpoint %s is damaged: %s; kept as %s, trying the one before it", checkpoint.name, reason, aside.name)


def set_aside(checkpoint: Path, why: str) -> Path:
    """Give a checkpoint a name (`why`-step-N) under which nothing is resumed from it and retention does not delete it; returns it."""
    number, aside = 1, checkpoint.with_name(f"{why}-{checkpoint.name}")
    while os.path.lexists(aside):
        number += 1
        aside = checkpoint.with_name(f"{why}-{checkpoint.name}-{number}")
    rename(checkpoint, aside)
    fsync_folder(checkpoint.parent)
    return aside
