"""The sets of views of a step's samples: what is drawn for each, and the part of it that a micro-batch is planned by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitscale.data.augment import Erase, Ops
from vitscale.data.batch import ViewPlan
from vitscale.data.draws import COLOURS, CROP, ERASE, FLIP, JITTER, RANDAUGMENT, THREE
from vitscale.data.policy import erasures, operations, wants_colours
from vitscale.recipe.schema import Augment
from vitscale.recipe.views import ViewKind

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DrawnViews:
    """Of one set, v views of n samples."""

    kind: ViewKind
    draws: Floats               # (v, n, columns)
    colours: Floats | None      # (v, n, 8), if its augmentation wants them

    def plan(self, part: slice, size: int) -> ViewPlan:
        """For some of the samples, in a micro-batch of `size`."""
        augment, image = self.kind.augment, self.kind.image
        draws = self.draws[:, part]
        count, known = draws.shape[:2]
        flat = draws.reshape(count * known, draws.shape[2])
        colours = None if self.colours is None else self.colours[:, part].reshape(count * known, self.colours.shape[2])
        places = (np.arange(count)[:, None] * size + np.arange(known)).ravel()      # of each view among the micro-batch's
        ops = operations(augment, flat, image, colours)
        erase = erasures(augment.erasing, flat[:, ERASE], image) if augment.erasing else None
        return ViewPlan(
            image, draws[:, :, CROP], draws[:, :, FLIP] < augment.flip,
            Ops.of(replace(ops, rows=places[ops.rows]) if ops else None),
            Erase.of(replace(erase, rows=places[erase.rows])) if erase else None, self.kind.same_as is not None)


def drawn_views(kinds: Sequence[ViewKind], drawn: Callable[[int, int, Sequence[int]], Floats]) -> Iterator[DrawnViews]:
    """drawn: (columns, the first of them, the v views' numbers among those of all sets) -> (v, n, columns) uniforms of a step's samples."""
    first = 0
    for kind in kinds:
        start = first if kind.same_as is None else kind.same_as
        numbers = range(start, start + kind.count)
        first += kind.count
        draws = drawn(_columns(kind.augment), 0, numbers)
        colours = drawn(COLOURS.stop - COLOURS.start, COLOURS.start, numbers) if wants_colours(kind.augment) else None
        yield DrawnViews(kind, draws, colours)


def _columns(augment: Augment) -> int:
    """How many of a sample's columns are looked at, so that no more are computed."""
    if augment.rand_augment:
        return RANDAUGMENT.stop
    if augment.erasing:
        return ERASE.stop
    return THREE.stop if augment.three_augment else JITTER.stop if any(augment.color_jitter) else FLIP + 1
