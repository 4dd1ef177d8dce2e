"""Stochastic depth by groups: which samples of each keep which residual branch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitscale.data.draws import SHARES, group_uniforms
from vitscale.shapes.drop_path import kept_of_group


def keep_of_groups(
    rates: Sequence[float], seed: int, epoch: int, places: NDArray[np.int64], group: int, size: int, view: int = 0,
) -> NDArray[np.float32]:
    """For samples at `places` (m,) of the epoch, ascending in whole groups of which the last may lack some, in a micro-batch of `size`: 1
    where a branch is kept, of each group for exactly kept_of_group(rate, group) of its places.  -> (R, size)

    Places where no sample is are drawn among the others, so that each sample is as likely to stay.
    """
    numbers = np.unique(places // group)
    draws = group_uniforms(seed, epoch, numbers, len(rates) * group, first=SHARES, view=view).reshape(len(numbers), len(rates), group)
    ranks = np.broadcast_to(np.arange(group), (size // group, len(rates), group)).copy()        # of groups of dummies the first stay
    ranks[:len(numbers)] = draws.argsort(axis=2, kind="stable").argsort(axis=2)
    kept = ranks < np.array([kept_of_group(rate, group) for rate in rates])[:, None]
    return kept.transpose(1, 0, 2).reshape(len(rates), size).astype(np.float32)
