"""Which sample stands at which position when several sets of shards are mixed by weight.  Pure: knows neither torch nor ranks."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vitscale.data.index import SetIndex
from vitscale.data.order import Order
from vitscale.data.shards import expand
from vitscale.errors import DataError
from vitscale.recipe import Recipe
from vitscale.recipe.check import default_group, default_lanes

_ENDLESS = 2**40        # batches: an endless stream is one epoch that never ends
_GOLDEN = 0x9E3779B97F4A7C15    # so that the seeds of sets lie far apart


def order_of(recipe: Recipe, index: SetIndex) -> Order:
    """The order of the training samples that the recipe describes; `index` is of the shards of data.train, or of all of data.mix."""
    lanes, group, mix = default_lanes(recipe, index.num_samples), default_group(recipe), recipe.data.mix
    if not mix:
        return Order(index.counts, recipe.seed, recipe.global_batch, lanes, group, repeats=recipe.data.repeats)
    return Mixture(set_counts(recipe, index), [one.weight for one in mix], recipe.seed, recipe.global_batch, lanes, group)


def set_counts(recipe: Recipe, index: SetIndex) -> list[NDArray[np.int64]]:
    """For each set of data.mix the samples of each of its shards.  Raises DataError when a set holds none, or not as many as it says."""
    counts = np.split(index.counts, np.cumsum([len(expand(one.shards)) for one in recipe.data.mix])[:-1])
    for number, (one, held) in enumerate(zip(recipe.data.mix, counts, strict=True)):
        if one.num_samples not in (None, held.sum()):
            raise DataError(f"data.mix.{number}.num_samples says {one.num_samples}, its shards hold {held.sum()}; correct one of them")
        if held.sum() == 0:
            raise DataError(f"data.mix.{number}: its shards hold no samples at all")
    return counts


def lanes_by_weight(weights: Sequence[float], lanes: int, group: int) -> list[int]:
    """How many of the lanes each set owns: in proportion to the weights by largest remainder, in blocks of `group`; the first of equals
    gets more.  Raises DataError when one gets none."""
    blocks = lanes // group
    exact = [weight / sum(weights) * blocks for weight in weights]
    owned = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda one: owned[one] - exact[one])
    for one in by_remainder[:blocks - sum(owned)]:
        owned[one] += 1
    if min(owned) == 0:
        raise DataError(f"data.mix: set {owned.index(0) + 1} of {len(owned)} gets none of the {blocks} blocks of lanes by its weight; "
                        "give more data.lanes, or a larger weight")
    return [count * group for count in owned]


class Mixture(Order):
    """Endless batches, each with the same share of every set: set s owns lanes [first_s, first_s + lanes_s) and runs through epochs of its
    own there, each in the order that an Order of its shards and lanes_s lanes has.  A batch is never partial.

    counts: for each set the samples of each of its shards; ids continue from one set to the next.
    """

    def __init__(
        self, counts: Sequence[Sequence[int] | NDArray[np.int64]], weights: Sequence[float], seed: int, global_batch: int, lanes: int,
        group: int = 1, skips: Iterable[tuple[int, int]] = (),
    ) -> None:
        super().__init__(np.concatenate([np.asarray(one, np.int64) for one in counts]), seed, global_batch, lanes, group, skips)
        if global_batch % lanes:
            raise DataError(f"data.lanes: {lanes} do not divide global_batch {global_batch}, which a mixture (data.mix) wants")
        self.epoch_size, self.steps_per_epoch = _ENDLESS * global_batch, _ENDLESS
        self.set_lanes = lanes_by_weight(weights, lanes, group)
        self._first_lanes = np.cumsum([0, *self.set_lanes])
        self._sets = [
            Order(one, (seed + number * _GOLDEN) % 2**64, owned, owned)
            for number, (one, owned) in enumerate(zip(counts, self.set_lanes, strict=True))]
        self._set_ids = np.cumsum([0, *(one.num_samples for one in self._sets)])

    def sample_ids(self, position: int, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        ids = np.empty(len(indices), np.int64)
        for number, rows, epochs, places in self._places(position, indices):
            for epoch in np.unique(epochs):
                now = epochs == epoch
                # a set's positions are asked for one by one: its own batches play no part
                ids[rows[now]] = self._set_ids[number] + self._sets[number].ids_at(int(epoch), places[now])
        return ids

    def epochs(self, position: int, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        epochs = np.empty(len(indices), np.int64)
        for _, rows, of_set, _ in self._places(position, indices):
            epochs[rows] = of_set
        return epochs

    def _places(
        self, position: int, indices: Sequence[int] | NDArray[np.int64],
    ) -> Iterable[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """For each set: its number, which rows of `indices` are its, and their epoch and place in the set."""
        turn, lane = np.divmod(position + np.asarray(indices, np.int64), self.lanes)
        for number, one in enumerate(self._sets):
            first, end = self._first_lanes[number:number + 2].tolist()
            rows = np.flatnonzero((lane >= first) & (lane < end))
            epochs, places = np.divmod(turn[rows] * (end - first) + lane[rows] - first, one.num_samples)
            yield number, rows, epochs, places
