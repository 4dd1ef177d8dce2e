"""Sets mixed by weight: shares of every batch, each set in epochs of its own, the same on any world and after any resume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_augment_stream import write

from vitscale.data import open_index, open_stream
from vitscale.data.mixture import Mixture, lanes_by_weight
from vitscale.errors import CheckpointError, DataError, RecipeError
from vitscale.recipe.load import check_recipe
from vitscale.train.prepare import prepare
from vitscale.train.step import device_inputs

FEW = settings(max_examples=50, deadline=None)


@st.composite
def mixtures(draw):
    group = draw(st.sampled_from([1, 1, 2]))
    sets = draw(st.integers(1, 4))
    lanes = group * draw(st.integers(sets * 2, 12))
    counts = [[*draw(st.lists(st.integers(0, 20), min_size=1, max_size=4)), lanes] for _ in range(sets)]
    weights = [draw(st.sampled_from([1.0, 1.5, 2.0])) for _ in range(sets)]
    return Mixture(counts, weights, draw(st.integers(0, 2**64 - 1)), lanes * draw(st.integers(1, 3)), lanes, group), counts


@FEW
@given(mixtures(), st.integers(0, 50))
def test_every_batch_has_each_sets_share(given_, step):
    order, counts = given_
    batch = order.batch_at(order.position_of(step))
    assert (batch.size, batch.step, order.step_of(batch.start)) == (order.global_batch, step, step)
    ids = order.sample_ids(batch.start, np.arange(batch.size))
    ends = np.cumsum([sum(one) for one in counts])
    shares = np.bincount(np.searchsorted(ends, ids, side="right"), minlength=len(counts))
    assert shares.tolist() == [owned * order.global_batch // order.lanes for owned in order.set_lanes]


@FEW
@given(mixtures())
def test_each_set_goes_through_epochs_of_its_own(given_):
    order, counts = given_
    ends = np.cumsum([0, *(sum(one) for one in counts)])
    seen = []
    for step in range(3 * max(sum(one) for one in counts) // order.global_batch + 3):
        every = np.arange(order.global_batch)
        position = order.position_of(step)
        seen += zip(order.epochs(position, every).tolist(), order.sample_ids(position, every).tolist(), strict=True)
    for first, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        mine = [(epoch, one) for epoch, one in seen if first <= one < end]
        for epoch in range(len(mine) // (end - first)):
            assert sorted(one for at, one in mine if at == epoch) == list(range(first, end))


@FEW
@given(mixtures(), st.integers(0, 9))
def test_ranks_take_each_once(given_, step):
    order, _ = given_
    batch = order.batch_at(order.position_of(step))
    alone = order.sample_ids(batch.start, np.arange(batch.size))
    for world in range(1, order.global_batch // order.group + 1):
        shares = [order.share(batch, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(batch.size))
        assert max(map(len, shares)) <= order.max_share(world)
        assert all((order.sample_ids(batch.start, share) == alone[share]).all() for share in shares)


@pytest.mark.parametrize(("weights", "lanes", "group", "owned"), [
    ([1, 1], 8, 1, [4, 4]), ([2, 1], 8, 1, [5, 3]), ([0.7, 0.2, 0.1], 80, 8, [56, 16, 8]), ([1, 1, 1], 8, 1, [3, 3, 2]), ([5], 6, 2, [6]),
])
def test_lanes_by_largest_remainder(weights, lanes, group, owned):
    assert lanes_by_weight(weights, lanes, group) == owned


def test_a_weight_too_small_for_a_lane_is_refused():
    with pytest.raises(DataError, match=r"data\.mix: set 2 of 2 gets none of the 4 blocks of lanes"):
        lanes_by_weight([1, 0.01], 8, 2)


def mixing(folders, batch=16, lanes=8, duration="10 steps", weights=(3.0, 1.0), **data):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 16, "patch": 4, "classes": 7}, "runs_dir": str(folders[0].parent / "runs"),
        "data": {"mix": [{"shards": f"{folder}/s-*.tar", "weight": weight} for folder, weight in zip(folders, weights, strict=True)],
                 "lanes": lanes, "workers": 2, "group": 2, "augment": {"mixup": 0.8, "rand_augment": {}}, **data},
        "optim": {"lr": 1e-3}, "global_batch": batch, "duration": duration,
    }, "test")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = [tmp_path_factory.mktemp("mix") / name for name in ("one", "two")]
    for folder, count in zip(made, (44, 20), strict=True):
        folder.mkdir()
        write(folder, count)
    return made


def collect(recipe, world, steps, start=None):
    index, seen, state = open_index([url for one in recipe.data.mix for url in one.shards]), {}, None
    for rank in range(world):
        with open_stream(recipe, index, rank=rank, world=world, micro_batch=4) as stream:
            if start:
                stream.load_state_dict(start)
            for _ in range(steps):
                batch = next(stream)
                for one in batch.micro:
                    given, _, _ = device_inputs(one, torch.device("cpu"), recipe.data.augment)
                    images, targets = given.images, given.labels
                    for slot in np.flatnonzero(one.index.numpy() >= 0).tolist():
                        seen[batch.step, int(one.index[slot])] = int(one.ids[slot]), images[slot].numpy().tobytes(), targets[slot].tolist()
            state = stream.state_dict()
    return seen, state


def test_pixels_are_equal_on_any_world_and_after_a_resume(folders):
    whole, _ = collect(mixing(folders), 1, 8)
    assert len(whole) == 8 * 16
    for world in (2, 3, 4):
        assert collect(mixing(folders), world, 8)[0] == whole
    before, state = collect(mixing(folders), 2, 5)
    after, _ = collect(mixing(folders), 3, 3, state)
    assert before | after == whole
    with pytest.raises(CheckpointError, match="set_lanes"):
        collect(mixing(folders, weights=(1.0, 1.0)), 1, 1, state)


def test_sets_of_one_shape_are_shuffled_apart():
    order = Mixture([[20, 20, 20], [20, 20, 20]], [1, 1], 3, 8, 8)
    ids = np.concatenate([order.sample_ids(order.position_of(step), np.arange(8)) for step in range(15)]).reshape(-1, 2, 4)
    assert (ids[:, 0] != ids[:, 1] - 60).mean() > 0.8


def test_the_order_of_a_mixture_never_changes():
    """Golden: whoever changes it breaks the resume of every run there is."""
    order = Mixture([[3, 4], [2]], [2, 1], 7, 6, 3)
    assert [order.sample_ids(6 * step, np.arange(6)).tolist() for step in range(3)] == GOLDEN


def test_steps_of_a_mixture_are_always_whole(folders):
    assert prepare(mixing(folders, batch=24)).schedule.total == 240


def test_steps_of_repeats_end_with_the_stretch(folders):
    plain = mixing(folders, mix=[], train=f"{folders[0]}/s-*.tar", repeats=2)
    assert prepare(plain).schedule.total == 88 + 4 * 16         # 44 samples twice make six steps, the last of 8


def test_it_is_prepared_and_its_sizes_are_checked(folders):
    prepared = prepare(mixing(folders))
    assert prepared.train.num_samples == 64
    assert prepared.schedule.total == 160
    wrong = [{"shards": f"{folders[0]}/s-*.tar", "num_samples": 44}, {"shards": f"{folders[1]}/s-*.tar", "num_samples": 21}]
    with pytest.raises(DataError, match=r"data\.mix\.1\.num_samples says 21, its shards hold 20"):
        prepare(mixing(folders, mix=wrong))


def test_what_a_mixture_does_not_go_with(folders):
    for change, message in [
        ({"duration": "3 epochs"}, r"duration +a mixture \(data\.mix\) has no epochs; give steps or images"),
        ({"lanes": 6}, r"data\.lanes +6 do not divide global_batch 16"),
        ({"train": "a.tar"}, r"data\.train +give shards here, or sets of them in data\.mix, not both"),
        ({"mix": []}, r"data\.train +give shards here, or sets of them in data\.mix\n?"),
        ({"repeats": 2}, r"data\.repeats +does not go with data\.mix"),
        ({"num_samples": 64}, r"data\.num_samples +a mixture has no epochs"),
        ({"prepare": "digits"}, r"data\.prepare +does not go with data\.mix"),
        ({"mix": [{"shards": "a.tar", "weigth": 1}]}, r"data\.mix\.0\.weigth +is no key of data\.mix\.0; the keys are shards, weight"),
        ({"mix": [{"shards": "pipe:a"}]}, r"data\.mix +pipe: URLs run a shell"),
    ]:
        with pytest.raises(RecipeError, match=message):
            mixing(folders, **change)


GOLDEN = [[3, 0, 8, 6, 1, 7], [4, 2, 8, 5, 0, 7], [6, 1, 8, 3, 2, 7]]
