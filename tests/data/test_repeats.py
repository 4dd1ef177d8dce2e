"""Repeated augmentation: each sample and copy once in a stretch of `repeats` epochs, each batch whole copies, on any world."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.order import Order
from vitscale.errors import DataError
from vitscale.recipe import Duration

FEW = settings(max_examples=80, deadline=None)


@st.composite
def repeated(draw):
    group, repeats = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([2, 3, 4]))
    lanes = group * draw(st.integers(1, 6))
    batch = repeats * draw(st.sampled_from([lanes * draw(st.integers(1, 3)), group * draw(st.integers(1, 12))]))
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8))
    counts.append(max(lanes - sum(counts), 1))
    return Order(counts, draw(st.integers(0, 2**40)), batch, lanes, group, repeats=repeats)


def batches(order, stretch):
    batch = order.batch_at(stretch * order.epoch_size)
    while batch.epoch == stretch:
        yield batch
        batch = order.batch_at(batch.end)


@FEW
@given(repeated(), st.integers(0, 3))
def test_each_sample_and_copy_comes_once(order, stretch):
    seen = []
    for batch in batches(order, stretch):
        every = np.arange(batch.size)
        ids, copies = order.sample_ids(batch.start, every), order.copies(batch.start, every)
        pairs = list(zip(ids.tolist(), copies.tolist(), strict=True))
        distinct = sorted(set(ids.tolist()))
        assert len(distinct) * order.repeats == batch.size
        assert sorted(pairs) == [(one, copy) for one in distinct for copy in range(order.repeats)]      # all copies are in one batch
        seen += pairs
    assert sorted(seen) == [(one, copy) for one in range(order.num_samples) for copy in range(order.repeats)]


@FEW
@given(repeated(), st.integers(1, 12), st.integers(0, 12))
def test_ranks_take_each_once_in_whole_groups(order, world, step):
    if world > order.global_batch // order.group:
        return
    batch = order.batch_at(order.position_of(step))
    assert order.step_of(batch.start) == step
    shares = [order.share(batch, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(batch.size))
    owner = {int(index): rank for rank, share in enumerate(shares) for index in share}
    assert all(owner[index] == owner[index // order.group * order.group] for index in owner)
    assert max(map(len, shares)) <= order.max_share(world)
    alone = order.sample_ids(batch.start, np.arange(batch.size))
    for share in shares:
        assert (order.sample_ids(batch.start, share) == alone[share]).all()


def test_the_samples_come_in_the_order_of_one_copy():
    plain, twice = Order([30, 14], 3, 8, 8, 2), Order([30, 14], 3, 16, 8, 2, repeats=2)
    for step in range(6):
        one, two = plain.batch_at(plain.position_of(step)), twice.batch_at(twice.position_of(step))
        half = plain.sample_ids(one.start, np.arange(one.size)).tolist()
        assert twice.sample_ids(two.start, np.arange(two.size)).tolist() == half + half
    assert twice.owns_lanes(4)
    assert not Order([30, 14], 3, 16, 16, 2, repeats=2).owns_lanes(4)


def test_the_order_of_repeats_never_changes():
    """Golden: whoever changes it breaks the resume of every run there is."""
    order = Order([3, 4], 7, 4, 2, repeats=2)
    assert [order.sample_ids(position, np.arange(4)).tolist() for position in (0, 4, 8, 14)] == GOLDEN


def test_a_batch_that_copies_do_not_divide_is_refused():
    with pytest.raises(DataError, match=r"global_batch: 8 is not a multiple of 3 data\.repeats"):
        Order([30], 0, 8, 4, 1, repeats=3)


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 11, 12, 100])
def test_durations_in_steps_end_where_the_order_does(steps):
    order = Order([44], 0, 16, 8, repeats=2)
    assert Duration(steps, "steps").images(44, 16, 2) == order.position_of(steps)
    assert Duration(3, "epochs").images(44, 16, 2) == 132


GOLDEN = [[3, 0, 3, 0], [6, 1, 6, 1], [4, 2, 4, 2], [0, 6, 0, 6]]
