"""Which sample stands at which position of an epoch.  Pure: knows neither torch nor ranks' processes."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitscale.data.draws import check_seed, inside_permutation, shard_permutation
from vitscale.errors import DataError


@dataclass(frozen=True)
class Batch:
    """The global batch of one step: positions [start, end) counted in images since the start of training."""

    start: int
    end: int
    epoch: int
    step: int           # steps before it, skipped ones counted, so that it follows from the position

    @property
    def size(self) -> int:
        return self.end - self.start


class Order:
    """Every global batch as a function of (samples per shard, seed, global batch, lanes) alone; never of the world that reads it.

    Epoch e permutes the shards by Philox(seed, e), and the samples inside each by Philox(seed, e, shard).  Their concatenation of n
    samples is cut into `lanes` lanes: with n = q * lanes + r, the first r have q + 1 samples and the others q.  Position p of the epoch is
    lane p % lanes, offset p // lanes.  Step s of the epoch takes [s * G, min((s + 1) * G, n)) for the global batch G: an epoch ends
    with a partial batch.  So one integer, the position e * n + s * G, is the whole state; `skips` are ranges of it to pass over.

    With `repeats` R (repeated augmentation: Hoffer et al. 2020; DeiT's sampler) the permuted n samples are gone through over R * n
    positions: a batch of G takes the next G / R of them, copy 0 of each, then copy 1 of each, and so on.  So each (sample, copy) comes
    exactly once in that stretch, which takes the place of the epoch in all that was said above; a schedule's epoch stays n images.

    counts: samples of each shard (0 is allowed).  group: consecutive positions of an epoch that stay on one rank.
    Raises DataError when lanes or batch do not suit the samples or each other.
    """

    def __init__(
        self, counts: Sequence[int] | NDArray[np.int64], seed: int, global_batch: int, lanes: int, group: int = 1,
        skips: Iterable[tuple[int, int]] = (), repeats: int = 1,
    ) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.first_ids = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)     # of each shard, in URL order; then the total
        self.num_samples = int(self.first_ids[-1])
        self.seed, self.global_batch, self.lanes, self.group = check_seed(seed), global_batch, lanes, group
        self.repeats, self.epoch_size = repeats, self.num_samples * repeats
        if self.num_samples == 0:
            raise DataError("the shards hold no samples at all")
        if lanes > self.num_samples:
            why = f", which a multiple of data.group {group} cannot be" if self.num_samples < group else ""
            raise DataError(f"data.lanes: {lanes} lanes are more than the {self.num_samples} samples; give at most that many{why}")
        for key, value in (("global_batch", global_batch), ("data.lanes", lanes)):
            if value % group:
                raise DataError(f"{key}: {value} is not a multiple of data.group {group}")
        if global_batch % (group * repeats):
            raise DataError(f"global_batch: {global_batch} is not a multiple of {repeats} data.repeats of data.group {group}")
        self.steps_per_epoch = -(-self.epoch_size // global_batch)
        self.set_lanes: list[int] = []          # of a mixture: how many lanes each set owns
        self.skips = merge_skips(skips)
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._inside: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    # Steps and positions

    def batch_at(self, position: int) -> Batch:
        """The batch that starts at `position` (images since the start), skipped or not.  Raises DataError inside a batch."""
        epoch, place = divmod(position, self.epoch_size)
        if position < 0 or place % self.global_batch:
            raise DataError(
                f"position {position} is not the start of a batch of {self.global_batch} in epochs of {self.epoch_size} samples")
        size = min(self.global_batch, self.epoch_size - place)
        return Batch(position, position + size, epoch, epoch * self.steps_per_epoch + place // self.global_batch)

    def next(self, position: int) -> Batch:
        """The first batch at or after `position` that is not skipped.  A batch is skipped, whole, when it starts in a skipped range."""
        batch = self.batch_at(position)
        while self._skipped(batch.start):
            batch = self.batch_at(batch.end)
        return batch

    def batches(self, position: int = 0) -> Iterator[Batch]:
        """Endless: every batch from `position` on that is not skipped."""
        while True:
            batch = self.next(position)
            yield batch
            position = batch.end

    def step_of(self, position: int) -> int:
        """Steps before `position`, skipped ones counted."""
        return self.batch_at(position).step

    def position_of(self, step: int) -> int:
        """Where step `step` starts, in images: the inverse of step_of."""
        epoch, inner = divmod(step, self.steps_per_epoch)
        return epoch * self.epoch_size + inner * self.global_batch

    def _skipped(self, position: int) -> bool:
        at = bisect_right(self.skips, position, key=lambda skip: skip[0]) - 1
        return at >= 0 and position < self.skips[at][1]

    # Samples

    def sample_ids(self, position: int, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the samples at `indices` (B,) of the batch that starts at `position`.  -> (B,)

        An id is the shard's cumulative offset in URL order plus the index in the shard: the same in every epoch.
        """
        epoch, place = divmod(position, self.epoch_size)
        return self.ids_at(epoch, place // self.repeats + np.asarray(indices, np.int64) % self._distinct(position))

    def ids_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the samples at `positions` (B,), 0..num_samples - 1, of the order of an epoch.  -> (B,)"""
        offset, lane = np.divmod(positions, self.lanes)
        long, rest = divmod(self.num_samples, self.lanes)
        rank = lane * long + np.minimum(lane, rest) + offset        # place in the epoch's concatenation of permuted shards
        permuted, starts = self._epoch(epoch)
        slot = np.searchsorted(starts, rank, side="right") - 1      # of equal starts the last: those before it are empty shards
        shard, inner = permuted[slot], rank - starts[slot]
        ids = np.empty(len(positions), np.int64)
        by_shard = np.argsort(shard, kind="stable")
        cuts = np.flatnonzero(np.diff(shard[by_shard])) + 1
        for members in np.split(by_shard, cuts) if len(by_shard) else ():
            one = int(shard[members[0]])
            ids[members] = self.first_ids[one] + self._shard(epoch, one)[inner[members]]
        return ids

    def copies(self, position: int, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of its `repeats` copies stands at `indices` (B,) of the batch that starts at `position`.  -> (B,)"""
        return np.asarray(indices, np.int64) // self._distinct(position)

    def epochs(self, position: int, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The epochs, as keys of draws know them, of the samples at `indices` (B,) of the batch that starts at `position`.  -> (B,)"""
        return np.full(len(indices), position // self.epoch_size)

    def _distinct(self, position: int) -> int:
        """Different samples in the batch that starts at `position`."""
        return min(self.global_batch, self.epoch_size - position % self.epoch_size) // self.repeats

    def locate(self, ids: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids (B,) -> (shard (B,), index in the shard (B,))."""
        wanted = np.asarray(ids, np.int64)
        shard = np.searchsorted(self.first_ids, wanted, side="right") - 1
        return shard, wanted - self.first_ids[shard]

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(shards in this epoch's order, where each starts in the concatenation)"""
        if epoch not in self._epochs:
            permuted = shard_permutation(self.seed, epoch, len(self.counts))
            sizes = self.counts[permuted]
            self._epochs[epoch] = permuted, np.cumsum(sizes) - sizes
            if len(self._epochs) > 2:                               # this one and, at the border, its neighbour
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _shard(self, epoch: int, shard: int) -> NDArray[np.int64]:
        key = epoch, shard
        found = self._inside.get(key)
        if found is None:
            count = int(self.counts[shard])
            found = inside_permutation(self.seed, epoch, shard, count)
            self._inside[key] = found.astype(np.uint16 if count < 2**16 else np.uint32)     # many are held at once
            if len(self._inside) > self.lanes + 64:                 # each lane stands in one shard, or at the border of two
                self._inside.popitem(last=False)
        else:
            self._inside.move_to_end(key)
        return found

    # Ranks

    def owns_lanes(self, world: int) -> bool:
        """Whether `world` ranks each keep lanes of their own, and so read few shards, or take a slice of each batch."""
        return self.global_batch % (self.lanes * self.repeats) == 0 and (self.lanes // self.group) % world == 0

    def share(self, batch: Batch, rank: int, world: int) -> NDArray[np.int64]:
        """The indices 0..size-1 of the batch that this rank takes, ascending, in whole groups.  Together the ranks take each once.

        Raises DataError when there are more ranks than groups in a full batch.
        """
        self._check_world(world)
        if self.owns_lanes(world):
            per = self.lanes // world
            lane = np.arange(batch.size) % self.lanes               # batches start at lane 0, since lanes divide the batch
            return np.flatnonzero(lane // per == rank)
        blocks = -(-batch.size // self.group)
        each, more = divmod(blocks, world)
        start = rank * each + min(rank, more)
        stop = start + each + (rank < more)
        return np.arange(start * self.group, min(stop * self.group, batch.size))

    def max_share(self, world: int) -> int:
        """The most samples that any rank gets in any batch: all ranks run as many micro-steps as this asks for."""
        self._check_world(world)
        size = min(self.global_batch, self.epoch_size)
        if self.owns_lanes(world):
            rounds, rest = divmod(size, self.lanes)
            per = self.lanes // world
            return rounds * per + min(rest, per)                    # rank 0's lanes come first
        groups = -(-size // self.group)
        return min(-(-groups // world) * self.group, size)

    def _check_world(self, world: int) -> None:
        if world > self.global_batch // self.group:
            raise DataError(
                f"{world} ranks are more than the {self.global_batch // self.group} groups of data.group {self.group} samples in a global "
                f"batch of {self.global_batch}; use fewer ranks or a larger global_batch"
            )


def merge_skips(skips: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Ranges [start, end) of positions, sorted, touching ones joined, empty ones gone."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((int(start), int(end)) for start, end in skips):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
