"""The one data path of a rank: recipe, index and place among the ranks -> micro-batches, in the exact order, resumable anywhere."""

import copy
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from vitscale.data import remote
from vitscale.data.ahead import Ahead, OnBad
from vitscale.data.batch import Fetcher, MicroBatch, SamplePlan, StepBatch, ViewPlan
from vitscale.data.cache import ShardCache
from vitscale.data.crop import CentreCrop, RandomCrop
from vitscale.data.crumbs import Watching
from vitscale.data.draws import KEEP, TASK, uniforms
from vitscale.data.drop_path import keep_of_groups
from vitscale.data.index import SetIndex
from vitscale.data.labels import LabelRule
from vitscale.data.mask import MaskRule
from vitscale.data.mix import plan_mix
from vitscale.data.mixture import order_of
from vitscale.data.order import Batch, Order, merge_skips
from vitscale.data.views import drawn_views
from vitscale.errors import CheckpointError, DataError
from vitscale.processes import usable_cores
from vitscale.recipe import Augment, Recipe
from vitscale.recipe.check import default_group, drop_group
from vitscale.recipe.views import ViewKind, view_kinds

_SET = 0        # of the key of a draw: one index, in which every sample has an id of its own, also of a mixture
_VAL = 1        # the same of an evaluation


@overload
def open_stream(recipe: Recipe, index: SetIndex, split: Literal["train"] = "train", *, rank: int, world: int, micro_batch: int,
                drop_rates: Sequence[float] = (), num_draws: int = 0, local_ranks: int = 1, pin: bool = False, on_bad: OnBad | None = None,
                on_request: bool = False, crumbs: Watching | None = None) -> "Stream": ...
@overload
def open_stream(recipe: Recipe, index: SetIndex, split: Literal["val"], *, rank: int, world: int, micro_batch: int,
                drop_rates: Sequence[float] = (), num_draws: int = 0, local_ranks: int = 1, pin: bool = False, on_bad: OnBad | None = None,
                on_request: bool = False, crumbs: Watching | None = None) -> "EvalStream": ...
def open_stream(recipe: Recipe, index: SetIndex, split: Literal["train", "val"] = "train", *, rank: int, world: int, micro_batch: int,
                drop_rates: Sequence[float] = (), num_draws: int = 0, local_ranks: int = 1, pin: bool = False, on_bad: OnBad | None = None,
                on_request: bool = False, crumbs: Watching | None = None) -> "Stream | EvalStream":
    """The stream of one rank.

    micro_batch: samples of a forward pass; a multiple of the group.  drop_rates: probability of dropping each of the model's residual
    branches (2L).  num_draws: uniforms that the objective wants for each sample.  local_ranks: ranks on this machine, which share its
    cores.  pin: page-locked memory, for a GPU.
    on_bad: called for each sample that could not be used, with step, position, id, shard, key, reason and detail.
    on_request: further batches are begun when Stream.peek() is called, and only then as long as one is left (ahead.py).
    crumbs: where samples are written down while they are decoded, and which must not be.
    Raises DataError when batch, lanes, group and ranks do not suit the samples or each other.
    """
    data, model, train = recipe.data, recipe.model, split == "train"
    group = default_group(recipe) if train else 1
    if micro_batch % group:
        raise DataError(f"micro_batch: {micro_batch} is not a multiple of data.group {group}")
    views = view_kinds(recipe)
    label = None
    if data.label is not None and (recipe.objective.wants_labels or (not train and {"knn", "linear"} & {*recipe.evaluate.features})):
        label = LabelRule.of(data.label, data.class_map, data.multi_label)
    fetcher = Fetcher(index, label=label, classes=model.classes, channels=model.channels, group=group,
                      crops=[_crop(recipe, one.augment) for one in views] if train else [CentreCrop(recipe.evaluate.crop)],
                      exif=data.exif_orientation == "apply", cache=ShardCache(data.cache_dir, data.cache_bytes), crumbs=crumbs, split=split,
                      mask=None if train else MaskRule.of(recipe))
    workers = data.workers or max(usable_cores() // local_ranks, 1)
    if train:
        order = order_of(recipe, index)
        num_micro = math.ceil(order.max_share(world) / micro_batch)
    else:
        num_micro = math.ceil(math.ceil(index.num_samples / world) / micro_batch)
    ahead = Ahead(fetcher, workers=workers, depth=max(data.prefetch, num_micro if train else 1), pin=pin,
                  max_bad_fraction=data.max_bad_fraction, on_bad=on_bad, on_request=on_request)
    if train:
        return Stream(index.hash, order, ahead, rank=rank, world=world, micro_batch=micro_batch, num_micro=num_micro, views=views,
                      classes=model.classes, drop_rates=drop_rates, drop_group=drop_group(recipe), num_draws=num_draws)
    return EvalStream(index, ahead, rank=rank, world=world, micro_batch=micro_batch, num_micro=num_micro, seed=recipe.seed,
                      num_draws=num_draws, image=model.image)


def _crop(recipe: Recipe, augment: Augment) -> RandomCrop | CentreCrop:
    return RandomCrop(augment.scale, augment.ratio) if augment.crop == "random" else CentreCrop(recipe.evaluate.crop)


class Stream:
    """Endless iterator over a rank's part of each global batch, from `position` on.

    position: images seen; it stands after the last step handed out, however far ahead the threads are.  wait_s: seconds the consumer
    waited for the last step; ready: micro-batches that were there when it asked.  read, bytes, skipped: samples handed out by this rank,
    of their image files, and those of them that could not be used, by reason.
    """

    def __init__(
        self, index_hash: str, order: Order, ahead: Ahead, *, rank: int, world: int, micro_batch: int, num_micro: int,
        views: Sequence[ViewKind], classes: int, drop_rates: Sequence[float], drop_group: int | None = None, num_draws: int = 0,
    ) -> None:
        self.index_hash, self.order = index_hash, order
        self.num_micro, self.micro_batch = num_micro, micro_batch
        self.position = 0
        self.wait_s, self.ready = 0.0, 0
        self._ahead, self._rank, self._world = ahead, rank, world
        self._views, self._classes, self._num_views = views, classes, sum(one.count for one in views if one.same_as is None)
        self._drop_rates = np.asarray(drop_rates, np.float64) if any(drop_rates) else None
        self._drop_group = drop_group
        self._num_draws = num_draws
        self._follow()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StepBatch:
        started, self.ready = time.perf_counter(), self._ahead.ready
        batch = self.order.next(self.position)
        try:
            micro = [self._ahead.take() for _ in range(self.num_micro)]
        except BaseException:
            self._follow()                          # nothing was handed out: the next call gives this step again
            raise
        self.position = batch.end
        self.wait_s = time.perf_counter() - started
        epoch = batch.start // self.order.num_samples
        return StepBatch(batch.step, batch.start, batch.end, epoch, batch.size, [one for one in micro if one is not None], self.order.seed)

    def peek(self) -> MicroBatch | None:
        """The first micro-batch of the next step, if it is there by now.  Nothing is handed out by that."""
        return self._ahead.peek()

    def ends_at(self, images: int) -> bool:
        """Whether no step is left that starts before `images` have been seen; skipped ones do not count."""
        return self.order.next(self.position).start >= images

    def until(self, images: int) -> Iterator[StepBatch]:
        """Steps that start before `images` have been seen."""
        while not self.ends_at(images):
            yield next(self)

    @property
    def read(self) -> int:
        return self._ahead.read

    @property
    def bytes(self) -> int:
        return self._ahead.bytes

    @property
    def skipped(self) -> Counter[str]:
        return self._ahead.skipped

    @property
    def progress(self) -> int:
        """A number that grows as long as reading gets on, whether or not a step is whole.  Any thread may ask."""
        return self._ahead.fetched + remote.progress()

    @property
    def is_remote(self) -> bool:
        return any(map(remote.is_remote, self._ahead.fetcher.index.urls))

    def state_dict(self) -> dict[str, Any]:
        """All that decides which samples come next."""
        return {**self._fixed(), "position": self.position, "skips": [list(skip) for skip in self.order.skips]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.  Raises CheckpointError naming each setting that differs from when the state was saved."""
        state = {"repeats": 1, "set_lanes": [], **state}        # they were not always written
        missing = [name for name in (*self._fixed(), "position", "skips") if name not in state]
        if missing:
            raise CheckpointError(f"the data state lacks {', '.join(missing)}")
        differing = [f"{name} was {state[name]}, is now {value}" for name, value in self._fixed().items() if state[name] != value]
        if differing:
            raise CheckpointError("the order of samples would change: " + "; ".join(differing))
        try:
            self.order.batch_at(state["position"])
        except DataError as error:
            raise CheckpointError(f"the data state is damaged: {error}") from None
        self.order.skips = merge_skips(state["skips"])
        self.position = state["position"]
        self._follow()

    def skip(self, start: int, end: int) -> None:
        """Pass over the batches that start in positions [start, end), from now on and after every resume."""
        self.order.skips = merge_skips([*self.order.skips, (start, end)])
        self._follow()

    def close(self) -> None:
        """End the threads promptly."""
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fixed(self) -> dict[str, Any]:
        order = self.order
        return {"index_hash": self.index_hash, "seed": order.seed, "global_batch": order.global_batch, "lanes": order.lanes,
                "group": order.group, "repeats": order.repeats, "set_lanes": order.set_lanes}

    def _follow(self) -> None:
        shards = self._coming(copy.deepcopy(self.order), self.position) if self._ahead.wants_shards else iter(())
        self._ahead.follow((plan for batch in self.order.batches(self.position) for plan in self._plans(batch)), shards)

    def _coming(self, order: Order, position: int) -> Iterator[NDArray[np.int64]]:
        """The shards of each plan.  order: one of its own, since what Order keeps at hand is not for two threads."""
        for batch in order.batches(position):
            shard, _ = order.locate(order.sample_ids(batch.start, order.share(batch, self._rank, self._world)))
            for micro in range(self.num_micro):
                yield shard[micro * self.micro_batch:(micro + 1) * self.micro_batch]

    def _plans(self, batch: Batch) -> Iterator[SamplePlan]:
        order, first = self.order, self._views[0]
        index = order.share(batch, self._rank, self._world)
        ids, epochs, copies = (of(batch.start, index) for of in (order.sample_ids, order.epochs, order.copies))
        shard, number = order.locate(ids)

        def drawn(count: int, start: int = 0, views: Sequence[int] = (0,)) -> NDArray[np.float64]:
            """(v, n, count)"""
            epoch, sample, copy_of = (np.tile(one, len(views)) for one in (epochs, ids, copies))
            numbers = np.repeat(np.asarray(views, np.int64), len(ids))
            return uniforms(order.seed, _SET, epoch, sample, copy_of, count, start, numbers).reshape(len(views), len(ids), count)

        views = list(drawn_views(self._views, drawn))
        keep = None
        if self._drop_rates is not None and self._drop_group is None:
            rates = self._drop_rates
            keep = (drawn(len(rates), KEEP, range(self._num_views)) >= rates).transpose(2, 0, 1).astype(np.float32)
        wanted = drawn(self._num_draws, TASK)[0] if self._num_draws else None
        places = batch.start % order.epoch_size + index
        for micro in range(self.num_micro):
            part = slice(micro * self.micro_batch, (micro + 1) * self.micro_batch)
            kept = None if keep is None else keep[:, :, part]
            if self._drop_rates is not None and self._drop_group is not None:
                kept = np.stack([keep_of_groups(
                    self._drop_rates.tolist(), order.seed, batch.epoch, places[part], self._drop_group, self.micro_batch, view)
                    for view in range(self._num_views)], axis=1)
            yield SamplePlan(
                batch.step, batch.start, self.micro_batch, index[part], ids[part], shard[part], number[part],
                tuple(one.plan(part, self.micro_batch) for one in views), kept,
                plan_mix(first.augment, order.seed, batch.epoch, places[part], order.group, self.micro_batch, first.image, self._classes),
                None if wanted is None else wanted[part])


class EvalStream:
    """One pass over a set in the order of its shards for each `for` loop: every sample once over all ranks.  No choice is random but those
    that an objective wants, and these are the same in every pass.

    Every rank gets the same number of micro-batches; the tails are masked.
    """

    def __init__(
        self, index: SetIndex, ahead: Ahead, *, rank: int, world: int, micro_batch: int, num_micro: int, seed: int, num_draws: int,
        image: int,
    ) -> None:
        self._image = image
        self.num_samples = index.num_samples        # over all ranks
        self.num_micro, self.micro_batch = num_micro, micro_batch
        self._seed, self._num_draws = seed, num_draws
        self._first_ids = np.concatenate([[0], np.cumsum(index.counts)])
        self._ahead, self._rank, self._world = ahead, rank, world

    def __len__(self) -> int:
        return self.num_micro

    def __iter__(self) -> Iterator[MicroBatch]:
        self._ahead.follow(self._plans(), (plan.shard for plan in self._plans()))
        while (micro := self._ahead.take()) is not None:
            yield micro

    @property
    def read(self) -> int:
        return self._ahead.read

    @property
    def skipped(self) -> Counter[str]:
        return self._ahead.skipped

    def close(self) -> None:
        """End the threads promptly."""
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plans(self) -> Iterator[SamplePlan]:
        each, more = divmod(self.num_samples, self._world)
        start = self._rank * each + min(self._rank, more)
        stop = start + each + (self._rank < more)
        for micro in range(self.num_micro):
            low = start + micro * self.micro_batch
            ids = np.arange(low, max(low, min(low + self.micro_batch, stop)))
            shard = np.searchsorted(self._first_ids, ids, side="right") - 1
            views = (ViewPlan(self._image, None, np.zeros((1, len(ids)), bool)),)
            yield SamplePlan(0, 0, self.micro_batch, ids, ids, shard, ids - self._first_ids[shard], views, None,
                             draws=uniforms(self._seed, _VAL, 0, ids, 0, self._num_draws, first=TASK) if self._num_draws else None)
