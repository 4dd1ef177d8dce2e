"""The order of samples: the same for every world, each sample once, resumable anywhere, and never to change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.draws import CROP, FLIP, KEEP, inside_permutation, uniforms
from vitscale.data.order import Order, merge_skips
from vitscale.errors import DataError

FEW = settings(max_examples=60, deadline=None)


@st.composite
def orders(draw):
    group = draw(st.sampled_from([1, 1, 2, 3]))
    lanes = group * draw(st.integers(1, 12))
    batch = draw(st.sampled_from([lanes * draw(st.integers(1, 3)), group * draw(st.integers(1, 40))]))
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    counts.append(max(lanes - sum(counts), 1))
    return Order(counts, draw(st.integers(0, 2**64 - 1)), batch, lanes, group)


def taken(order, batch, world):
    """(batch indices, ids) of all ranks joined, in batch order."""
    index = np.concatenate([order.share(batch, rank, world) for rank in range(world)])
    ids = np.concatenate([order.sample_ids(batch.start, order.share(batch, rank, world)) for rank in range(world)])
    at = np.argsort(index)
    return index[at].tolist(), ids[at].tolist()


@FEW
@given(orders())
def test_global_batches_do_not_depend_on_the_world(order):
    for batch in (order.next(0), order.next(order.position_of(order.steps_per_epoch - 1)), order.next(order.position_of(7))):
        alone = order.sample_ids(batch.start, np.arange(batch.size)).tolist()
        for world in range(1, min(16, order.global_batch // order.group) + 1):
            assert taken(order, batch, world) == (list(range(batch.size)), alone)


@pytest.mark.parametrize(("batch", "steps"), [(4, 3), (5, 3), (11, 2), (12, 1), (13, 1)])
def test_an_epoch_has_a_step_for_each_batch_begun(batch, steps):
    order = Order([7, 5], 0, batch, lanes=1)
    assert order.steps_per_epoch == steps
    assert [order.position_of(step) for step in (steps - 1, steps, steps + 1)] == [(steps - 1) * batch, 12, 12 + min(batch, 12)]


@FEW
@given(orders(), st.integers(0, 5))
def test_every_sample_exactly_once_in_an_epoch(order, epoch):
    position, ids = epoch * order.num_samples, []
    while position < (epoch + 1) * order.num_samples:
        batch = order.next(position)
        assert batch.epoch == epoch
        assert batch.size == min(order.global_batch, (epoch + 1) * order.num_samples - position)      # only the last is partial
        ids += order.sample_ids(batch.start, np.arange(batch.size)).tolist()
        position = batch.end
    assert sorted(ids) == list(range(order.num_samples))


@FEW
@given(orders(), st.integers(0, 200))
def test_step_and_epoch_follow_from_the_position_alone(order, step):
    position = order.position_of(step)
    batch = order.batch_at(position)
    assert (batch.step, order.step_of(position)) == (step, step)
    assert order.position_of(step + 1) == batch.end
    fresh = Order(order.counts, order.seed, order.global_batch, order.lanes, order.group)       # a resume: nothing is remembered
    indices = np.arange(batch.size)[::-1]
    assert fresh.sample_ids(position, indices).tolist() == order.sample_ids(position, np.arange(batch.size))[::-1].tolist()


@FEW
@given(orders(), st.integers(1, 16), st.integers(0, 30))
def test_groups_stay_whole_and_no_rank_gets_more_than_said(order, world, step):
    if world > order.global_batch // order.group:
        with pytest.raises(DataError, match="ranks are more than"):
            order.max_share(world)
        return
    batch = order.batch_at(order.position_of(step))
    shares = [order.share(batch, rank, world) for rank in range(world)]
    owner = {int(index): rank for rank, share in enumerate(shares) for index in share}
    assert all(owner[index] == owner[index // order.group * order.group] for index in owner)
    full = order.batch_at(0)
    assert max(len(order.share(full, rank, world)) for rank in range(world)) == order.max_share(world)
    assert max(map(len, shares)) <= order.max_share(world)
    assert all((np.diff(share) > 0).all() for share in shares)
    if not order.owns_lanes(world):
        blocks = [-(-len(share) // order.group) for share in shares]
        assert max(blocks) - min(blocks) <= 1


def test_owned_lanes_read_few_shards():
    """Read amplification: shards that each rank reads in an epoch, summed over ranks, over the shards there are."""
    order = Order([50] * 128, 0, 64, 64)
    worlds = {}
    for world in (1, 8, 64):
        touched = 0
        for rank in range(world):
            ids = np.concatenate([order.sample_ids(batch.start, order.share(batch, rank, world))
                                  for batch in map(order.batch_at, range(0, order.num_samples, 64))])
            touched += len(np.unique(order.locate(ids)[0]))
        worlds[world] = touched / 128
    assert worlds[1] == 1
    assert worlds[8] <= 1.1
    assert worlds[64] <= 1.5        # lanes of 100 samples across shards of 50


def test_lanes_are_owned_only_where_the_world_divides_them():
    order = Order([100], 0, 16, 8, 2)
    assert [order.owns_lanes(world) for world in (1, 2, 3, 4, 8)] == [True, True, False, True, False]
    assert order.share(order.batch_at(0), 1, 4).tolist() == [2, 3, 10, 11]
    assert order.share(order.batch_at(0), 0, 3).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_largest_share_of_a_set_smaller_than_a_batch():
    order = Order([10], 0, 24, 8)
    assert [order.max_share(world) for world in (1, 2, 3, 4, 8)] == [10, 6, 4, 4, 2]
    assert [len(order.share(order.batch_at(0), rank, 4)) for rank in range(4)] == [4, 2, 2, 2]


def test_skipped_batches_are_passed_over_whole():
    order = Order([10], 0, 4, 2)
    plain = [batch for batch, _ in zip(order.batches(0), range(8), strict=False)]
    assert [(batch.start, batch.end, batch.epoch, batch.step) for batch in plain[:5]] == [
        (0, 4, 0, 0), (4, 8, 0, 1), (8, 10, 0, 2), (10, 14, 1, 3), (14, 18, 1, 4)]
    order.skips = merge_skips([(5, 9), (14, 15), (9, 10), (3, 3)])
    assert order.skips == [(5, 10), (14, 15)]
    assert [batch.start for batch, _ in zip(order.batches(0), range(4), strict=False)] == [0, 4, 10, 18]
    assert order.next(8) == plain[3]
    assert order.next(18).step == 5             # skipped steps count, so that the step follows from the position


def test_the_order_never_changes():
    """Golden: whoever changes the order breaks the resume of every run there is."""
    order = Order([3, 0, 5, 9, 1, 2], seed=7, global_batch=8, lanes=4, group=2)
    batches = [order.sample_ids(batch.start, np.arange(batch.size)).tolist() for batch, _ in zip(order.batches(0), range(6), strict=False)]
    assert batches == GOLDEN_BATCHES
    assert inside_permutation(2**63, 3, 1, 6).tolist() == GOLDEN_INSIDE
    assert uniforms(7, 0, 3, [11], 0, 3)[0].tolist() == GOLDEN_UNIFORMS


GOLDEN_BATCHES = [
    [14, 12, 5, 18, 9, 15, 4, 17],
    [11, 13, 3, 0, 16, 8, 6, 1],
    [10, 7, 19, 2],
    [4, 17, 2, 16, 3, 19, 13, 15],
    [5, 18, 14, 11, 6, 0, 8, 10],
    [7, 1, 9, 12],
]
GOLDEN_INSIDE = [5, 4, 3, 1, 0, 2]
GOLDEN_UNIFORMS = [0.8945405279866397, 0.26352845770975974, 0.2789723496917623]


@FEW
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.lists(st.integers(0, 2**50), min_size=1, max_size=5), st.integers(0, 3),
       st.integers(0, 40), st.integers(0, 5))
def test_many_philoxes_at_once_equal_numpys(seed, epoch, ids, repeat, count, block):
    ours = uniforms(seed, 2, epoch, ids, repeat, count, first=4 * block)
    for row, sample in zip(ours, ids, strict=True):
        bits = np.random.Philox(key=np.array([seed, 3 | 2 << 8], np.uint64), counter=np.array([0, epoch, sample, repeat], np.uint64))
        raw = bits.random_raw(4 * block + count)[4 * block:]
        assert ((raw >> np.uint64(11)) * 2.0**-53 == row).all()
    assert ours.shape == (len(ids), count)


def test_draws_do_not_depend_on_how_many_are_asked_for():
    assert CROP.stop == FLIP
    assert KEEP % 4 == 0
    wide = uniforms(1, 0, 0, range(50), 0, KEEP + 8)
    assert (uniforms(1, 0, 0, range(50), 0, FLIP + 1) == wide[:, :FLIP + 1]).all()
    assert (uniforms(1, 0, 0, range(50), 0, 8, first=KEEP) == wide[:, KEEP:]).all()
    assert (wide >= 0).all()
    assert (wide < 1).all()
    assert abs(wide.mean() - 0.5) < 0.02


def test_a_cold_start_in_a_huge_set_is_quick():
    order = Order(np.full(20_000, 10_000), 0, 1024, 256)
    batch = order.batch_at(order.position_of(123_456))
    ids = order.sample_ids(batch.start, order.share(batch, 3, 64))
    shard, inner = order.locate(ids)
    assert (order.first_ids[shard] + inner == ids).all()
    assert (inner < 10_000).all()


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"lanes": 11}, "data.lanes: 11 lanes are more than the 10 samples"),
    ({"lanes": 3, "group": 2}, "data.lanes: 3 is not a multiple of data.group 2"),
    ({"global_batch": 3, "group": 2}, "global_batch: 3 is not a multiple"),
    ({"seed": -1}, "seed: wants"),
    ({"counts": [0, 0]}, "no samples"),
])
def test_what_cannot_be_ordered_is_refused(kwargs, message):
    with pytest.raises(DataError, match=message):
        Order(**{"counts": [10], "seed": 0, "global_batch": 4, "lanes": 4, "group": 1, **kwargs})


def test_a_position_inside_a_batch_is_refused():
    with pytest.raises(DataError, match="not the start of a batch"):
        Order([10], 0, 4, 2).next(5)
