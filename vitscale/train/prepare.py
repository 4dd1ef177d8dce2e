"""What must be right before any rank starts: the run folder, the shards, their index, their labels."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.data.index import SetIndex, open_index
from vitscale.data.labels import check_labels
from vitscale.data.mask import MaskRule, check_masks
from vitscale.data.mixture import order_of
from vitscale.data.quickstart import pack_digits
from vitscale.errors import DataError, RecipeError, StorageError
from vitscale.files import patiently
from vitscale.observe.trackers import check_trackers
from vitscale.optim.schedule import Schedule
from vitscale.recipe import Recipe
from vitscale.recipe.check import train_urls
from vitscale.runfolder import run_folder

log = logging.getLogger(__name__)
_LOOKS = 256            # samples of a set that are looked at before a run
Progress = Callable[[int, int], None]       # (shards done, shards in all)


@dataclass(frozen=True)
class Prepared:
    """A recipe whose inputs were found to be there and sound."""

    folder: Path                # the run folder
    train: SetIndex
    val: SetIndex | None
    schedule: Schedule


def prepare(recipe: Recipe, on_progress: Progress | None = None, look: bool = True) -> Prepared:
    """Make the run folder, pack a built-in data set if its shards are absent, index, and look at labels.

    `look` False: another process has looked at the labels, or does; a thousand ranks need not do it too.
    Raises RecipeError or DataError for whatever the user can mend.  Safe to call in many processes at once.
    """
    check_trackers(recipe.observe.trackers)
    folder = run_folder(recipe)
    try:
        for made in (folder / "logs", folder / "checkpoints"):
            patiently(made, lambda made=made: made.mkdir(parents=True, exist_ok=True))      # type: ignore[misc]
        writable = os.access(folder, os.W_OK) and os.access(folder / "checkpoints", os.W_OK)
    except StorageError:
        raise
    except OSError as error:
        raise RecipeError(f"runs_dir: the run folder {folder} cannot be made ({error.strerror}); choose another runs_dir") from None
    if not writable:
        raise RecipeError(f"runs_dir: the run folder {folder} is not writable; choose another runs_dir, or another name")
    train = training_set(recipe, on_progress)
    val = _opened(recipe, recipe.data.val, on_progress) if recipe.data.val else None
    declared = recipe.data.num_samples
    if declared is not None and declared != train.num_samples:
        lost = f" and {train.lost} lost to damage" if train.lost else ""
        raise DataError(f"data.num_samples says {declared}, the shards hold {train.num_samples}{lost}; correct it, or check data.train")
    wants, judged = recipe.objective.wants_labels, bool({"knn", "linear"} & {*recipe.evaluate.features})
    for index, labelled in ((train, wants), (val, wants or judged)):
        if look and index is not None:
            for shard, number in index.spread(_LOOKS):      # names a sample in which it is not clear which member is the image
                index.image_of(shard, number)
        if look and index is not None and labelled and recipe.data.label is not None:
            check_labels(index, recipe.data.label, recipe.model.classes, class_map=recipe.data.class_map,
                         multi_label=recipe.data.multi_label)
    if look and val is not None and (masks := MaskRule.of(recipe)) is not None:
        check_masks(val, masks)
    order_of(recipe, train)     # lanes, batch and group against the number of samples
    epoch = None if recipe.data.mix else train.num_samples
    schedule = Schedule.of(recipe.optim, recipe.duration, epoch, recipe.global_batch, recipe.data.repeats)
    return Prepared(folder, train, val, schedule)


def training_set(recipe: Recipe, on_progress: Progress | None = None) -> SetIndex:
    """The index of the training shards; a built-in set is packed if it is absent.  Raises DataError."""
    if recipe.data.prepare == "digits":
        pack_digits(Path(train_urls(recipe)[0]).parent)
    return _opened(recipe, train_urls(recipe), on_progress)


def _opened(recipe: Recipe, urls: Sequence[str], on_progress: Progress | None) -> SetIndex:
    data = recipe.data
    return open_index(urls, data.index_dir, on_progress, group_members=data.group_members, image=data.image)
