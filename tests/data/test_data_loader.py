"""The stream of a rank: the same samples, pixels and masks on any world and after any resume; bad samples; labels; tails."""

import io
import tarfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vitscale.data import check_labels, open_index, open_stream, uniforms
from vitscale.data.ahead import too_many_bad
from vitscale.data.crop import DRAWS, RandomCrop
from vitscale.data.decode import decode
from vitscale.data.index import SetIndex
from vitscale.errors import CheckpointError, DataError
from vitscale.recipe.load import check_recipe

RATES = (0.0, 0.0, 0.3, 0.3)


def png(number, size=12):
    """An image that no other number gives."""
    picture = np.random.Generator(np.random.Philox(number)).integers(0, 256, (size, size + number % 5, 3), np.uint8)
    return cv2.imencode(".png", picture)[1].tobytes()


def pack(folder, counts, *, bad=(), label=lambda number: b"%d\n" % (number % 7)):
    """Shards of `counts` samples; ids in `bad` hold garbage (or what a dict says)."""
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"s-{shard:03d}.tar", "w") as tar:
            for _ in range(count):
                replaced = bad.get(number) if isinstance(bad, dict) else b"garbage" if number in bad else None
                members = {"cls": label(number), "png": png(number) if replaced is None else replaced}
                for ext, data in members.items():
                    if data is not None:
                        info = tarfile.TarInfo(f"{number:06d}.{ext}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                number += 1
    return f"{folder}/s-*.tar"


def recipe(urls, *, batch=8, lanes=4, group=1, **data):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": 7, "channels": 3},
        "data": {"train": urls, "lanes": lanes, "group": group, "workers": 2, **data},
        "optim": {"lr": 1e-3}, "global_batch": batch, "duration": "1 epochs", "seed": 5,
    }, "test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("shards"), [9, 0, 14, 7])        # 30 samples


def collect(recipe, world, steps, micro=2, *, start=None, rates=RATES, **options):
    """{(step, batch index): (id, pixels, label, flip, keep)} over all ranks; the first state of rank 0 after `steps`."""
    seen, states, index = {}, [], open_index(recipe.data.train)
    for rank in range(world):
        with open_stream(recipe, index, rank=rank, world=world, micro_batch=micro, drop_rates=rates, **options) as stream:
            if start:
                stream.load_state_dict(start)
            for _ in range(steps):
                batch = next(stream)
                assert len(batch.micro) == stream.num_micro
                for one in batch.micro:
                    assert one.images.shape == (micro, 8, 8, 3)
                    for slot in range(micro):
                        if one.index[slot] < 0:
                            assert (one.weight[slot], one.ids[slot], one.labels[slot], int(one.images[slot].sum())) == (0, -1, 0, 0)
                            continue
                        keep = None if one.keep is None else tuple(one.keep[:, slot].tolist())
                        entry = (int(one.ids[slot]), one.images[slot].numpy().tobytes(), int(one.labels[slot]), bool(one.flip[slot]), keep,
                                 float(one.weight[slot]))
                        key = batch.step, int(one.index[slot])
                        assert key not in seen
                        seen[key] = entry
            states.append(stream.state_dict())
    assert all(state == states[0] for state in states)
    return seen, states[0]


@pytest.fixture(scope="module")
def unbroken(shards):
    return collect(recipe(shards), 1, 9)[0]


def test_one_process_sees_every_sample_once_with_its_label(unbroken):
    for epoch in (0, 1):
        part = {key: entry for key, entry in unbroken.items() if epoch * 4 <= key[0] < (epoch + 1) * 4}     # 30 = 8 + 8 + 8 + 6
        assert sorted(entry[0] for entry in part.values()) == list(range(30))
        assert all(entry[2] == entry[0] % 7 for entry in part.values())
        assert all(entry[5] == 1 for entry in part.values())
    first, second = ({entry[0]: entry[1:] for key, entry in unbroken.items() if key[0] // 4 == epoch} for epoch in (0, 1))
    assert sum(first[number] == second[number] for number in range(30)) < 5         # another epoch draws anew


@pytest.mark.parametrize(("world", "micro", "workers"), [(2, 2, 1), (2, 3, 3), (3, 2, 2), (4, 1, 1), (4, 8, 2), (8, 2, 1)])
def test_any_world_gives_the_same(shards, unbroken, world, micro, workers):
    seen, _ = collect(recipe(shards, workers=workers), world, 9, micro)
    assert seen == unbroken


def test_what_is_coming_is_the_same_and_late_batches_are_begun_when_asked_for(shards, unbroken):
    """A GPU's host takes batches late, and looks at the next one before it takes it."""
    late = collect(recipe(shards, prefetch=2), 1, 9, 8, on_request=True)[0]
    assert late == unbroken
    with open_stream(recipe(shards, prefetch=2), open_index(shards), rank=0, world=1, micro_batch=8, drop_rates=RATES,
                     on_request=True) as stream:
        for step in range(9):
            batch = next(stream)
            before = stream.state_dict(), stream.read
            ends = time.monotonic() + 10
            while (coming := stream.peek()) is None:
                assert time.monotonic() < ends
                time.sleep(0.01)
            assert (stream.state_dict(), stream.read) == before       # it was not handed out
            assert all(int(batch.micro[0].ids[slot]) == unbroken[step, slot][0] for slot in range(batch.size))
            known = int(coming.ids[0]), coming.images[0].numpy().tobytes()
            assert known == unbroken[step + 1, 0][:2] if step < 8 else known
    with open_stream(recipe(shards, prefetch=2), open_index(shards), rank=0, world=1, micro_batch=8, on_request=True) as stream:
        next(stream)
        time.sleep(0.2)
        assert stream._ahead.fetched == stream._ahead._made * 2 == 4        # two batches of two pieces: no third was begun
        stream.peek()
        assert stream._ahead._made == 3


@pytest.mark.parametrize("stopped", [1, 3, 4, 6])
def test_resume_on_another_world_goes_on_exactly(shards, unbroken, stopped):
    before, state = collect(recipe(shards), 2, stopped)
    assert state["position"] == (30 * (stopped // 4) + 8 * (stopped % 4))
    after, _ = collect(recipe(shards, prefetch=1), 3, 9 - stopped, 3, start=state)
    assert before | after == unbroken


def test_groups_do_not_change_the_order_of_lanes_nor_split(shards):
    alone, _ = collect(recipe(shards, group=2), 1, 5, 4)
    for world in (2, 3, 4):
        assert collect(recipe(shards, group=2), world, 5, 2)[0] == alone
    with pytest.raises(DataError, match=r"micro_batch: 3 is not a multiple of data\.group 2"):
        open_stream(recipe(shards, group=2), open_index(shards), rank=0, world=1, micro_batch=3)


def test_flip_and_keep_have_their_rates(shards):
    seen, _ = collect(recipe(shards), 1, 40, 8)
    flips = [entry[3] for entry in seen.values()]
    keep = np.array([entry[4] for entry in seen.values()])
    assert abs(np.mean(flips) - 0.5) < 0.1
    assert keep[:, :2].all()
    assert abs(keep[:, 2:].mean() - 0.7) < 0.06
    assert abs(np.corrcoef(keep[:, 2], keep[:, 3])[0, 1]) < 0.2
    assert collect(recipe(shards), 1, 1, 8, rates=(0.0, 0.0))[0][0, 0][4] is None


def test_until_stops_at_a_position_and_skips_are_kept(shards):
    with open_stream(recipe(shards), open_index(shards), rank=0, world=1, micro_batch=8) as stream:
        next(stream)
        stream.skip(8, 20)
        assert [(batch.step, batch.position, batch.size) for batch in stream.until(60)] == [
            (3, 24, 6), (4, 30, 8), (5, 38, 8), (6, 46, 8), (7, 54, 6)]
        assert stream.position == 60
        assert stream.wait_s >= 0
        state = stream.state_dict()
    assert state["skips"] == [[8, 20]]
    with open_stream(recipe(shards), open_index(shards), rank=0, world=1, micro_batch=8) as again:
        again.load_state_dict(state | {"position": 8})
        assert next(again).position == 24


@pytest.mark.parametrize(("change", "message"), [
    ({"seed": 6}, "seed was 6, is now 5"), ({"index_hash": "0"}, "index_hash was 0"),
    ({"lanes": 2, "group": 9}, "lanes was 2.*group was 9"), ({"position": 5}, "damaged: position 5 is not the start"),
])
def test_a_state_of_another_order_is_refused(shards, change, message):
    with open_stream(recipe(shards), open_index(shards), rank=0, world=1, micro_batch=8) as stream:
        with pytest.raises(CheckpointError, match=message):
            stream.load_state_dict(stream.state_dict() | change)
        with pytest.raises(CheckpointError, match="lacks skips"):
            stream.load_state_dict({key: value for key, value in stream.state_dict().items() if key != "skips"})


def test_more_ranks_than_samples_of_a_batch_are_refused(shards):
    with pytest.raises(DataError, match="9 ranks are more than the 8 groups"):
        open_stream(recipe(shards), open_index(shards), rank=0, world=9, micro_batch=1)


# Evaluation

@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_evaluation_takes_each_sample_once_in_equal_steps(shards, world):
    streams = [open_stream(recipe(shards), open_index(shards), "val", rank=rank, world=world, micro_batch=4) for rank in range(world)]
    for _ in range(2):                      # each loop is a whole pass
        passes = [list(stream) for stream in streams]
        assert len({len(one) for one in passes}) == 1
        assert all(len(one) == len(stream) for one, stream in zip(passes, streams, strict=True))
        micros = [micro for one in passes for micro in one]
        ids = torch.cat([micro.ids[micro.weight > 0] for micro in micros])
        assert ids.tolist() == list(range(30))
        assert not any(micro.flip.any() for micro in micros)
        assert all(micro.keep is None and len(micro.ids) == 4 for micro in micros)
    for stream in streams:
        stream.close()


# Bad samples and labels

def test_without_groups_a_bad_sample_is_masked_counted_and_told(tmp_path, unbroken, monkeypatch):
    monkeypatch.setattr("vitscale.data.batch.torch.empty", lambda shape, dtype, **_: torch.full(shape, 9, dtype=dtype))
    urls = pack(tmp_path, [9, 0, 14, 7], bad={4: b"garbage", 11: png(11)[:60], 29: b""})
    told = []
    seen, _ = collect(recipe(urls, max_bad_fraction=0.5), 1, 4, on_bad=told.append)
    assert sorted((bad["id"], bad["reason"], bad["key"]) for bad in told) == [
        (4, "format", "000004"), (11, "truncated", "000011"), (29, "format", "000029")]
    assert {key for key, entry in seen.items() if entry[5] == 0} == {(bad["step"], bad["position"] - 8 * bad["step"]) for bad in told}
    assert not any(any(entry[1]) for entry in seen.values() if entry[5] == 0)
    assert {key: entry[0] for key, entry in seen.items()} == {key: unbroken[key][0] for key in seen}        # positions do not shift
    good = {key: entry for key, entry in seen.items() if entry[5] == 1}
    assert good == {key: unbroken[key] for key in good}
    assert told[0]["shard"].endswith(".tar")


def test_in_a_group_the_next_readable_sample_takes_its_place(tmp_path, shards):
    whole, _ = collect(recipe(shards, group=4), 1, 4, 4, rates=())
    at = {entry[0]: key for key, entry in whole.items()}
    groups = {}
    for number, (step, index) in sorted(at.items(), key=lambda item: item[1]):
        groups.setdefault((step, index // 4), []).append(number)
    first, second = groups[0, 0], groups[1, 1]
    bad = {first[3], *second}                   # the last of one group, and the whole of another
    urls = pack(tmp_path, [9, 0, 14, 7], bad=bad)
    for world in (1, 2):
        told = []
        seen, _ = collect(recipe(urls, group=4, max_bad_fraction=0.9, lanes=8), world, 4, 4, rates=(), on_bad=told.append)
        plain, _ = collect(recipe(shards, group=4, lanes=8), 1, 4, 4, rates=())
        places = {entry[0]: key for key, entry in plain.items()}
        assert len(told) == len(bad)
        for key, entry in plain.items():
            members = [number for number, (step, index) in places.items() if (step, index // 4) == (key[0], key[1] // 4)]
            if entry[0] not in bad:
                assert seen[key] == entry
            elif set(members) <= bad:
                assert seen[key][5] == 0
            else:
                after = sorted((number for number in members if number not in bad),
                               key=lambda number: (places[number][1] < key[1], places[number][1]))
                assert seen[key][0] == entry[0]         # the id stays: positions do not shift
                assert seen[key][2] == after[0] % 7
                draws = uniforms(5, 0, 0, [entry[0]], 0, DRAWS)[0]      # of the sample that should stand there
                assert seen[key][1] == decode(png(after[0]), RandomCrop(), 8, 3, draws).tobytes()
                assert seen[key][5] == 1


def test_too_many_bad_samples_stop_the_run(tmp_path):
    urls = pack(tmp_path, [30], bad=range(0, 30, 3))
    message = r"2 of \d+ samples could not be used \(format 2\), more than data\.max_bad_fraction 0\.001 allows; the last was '\d{6}'"
    with open_stream(recipe(urls), open_index(urls), rank=0, world=1, micro_batch=2) as stream, pytest.raises(DataError, match=message):
        list(stream.until(30))


def test_how_many_are_too_many():
    assert too_many_bad(1, 10, 0.0)
    assert not too_many_bad(1, 1, 1e-6)                     # one alone proves nothing
    assert not too_many_bad(0, 1000, 0.0)
    assert not too_many_bad(1000, 10**6, 0.001)
    assert too_many_bad(1200, 10**6, 0.001)
    assert not too_many_bad(10, 10, 1.0)


@pytest.mark.parametrize(("label", "message"), [
    (lambda number: None, r"s-000\.tar: sample '000000' has no 'cls' member \(it has png\); name the label field with data\.label"),
    (lambda number: b"7", r"sample '000000' has the label 7, but model\.classes is 7 \(labels 0 to 6\)"),
    (lambda number: b"-1", "has the label -1"),
    (lambda number: b"cat", "its label is no whole number: b'cat'"),
])
def test_wrong_labels_are_found_before_training(tmp_path, label, message):
    index = open_index(pack(tmp_path, [5, 5], label=label))
    with pytest.raises(DataError, match=message):
        check_labels(index, "cls", 7)


def test_the_label_check_looks_into_every_shard(tmp_path):
    index = open_index(pack(tmp_path, [20, 0, 20, 3], label=lambda number: b"9" if number == 40 else b"1"))
    assert check_labels(index, "cls", 10, 7) <= 7
    with pytest.raises(DataError, match=r"s-003\.tar: sample '000040'"):
        check_labels(index, "cls", 7, 7)


def test_a_label_outside_the_classes_ends_training_at_once(tmp_path):
    urls = pack(tmp_path, [12], label=lambda number: b"12" if number == 7 else b"1")
    with open_stream(recipe(urls), open_index(urls), rank=0, world=1, micro_batch=2) as stream, pytest.raises(
            DataError, match="sample '000007' has the label 12"):
        list(stream.until(12))


def test_an_error_in_a_thread_names_the_sample(shards, monkeypatch):
    def fail(*_, **named):
        raise ZeroDivisionError

    with open_stream(recipe(shards), open_index(shards), rank=0, world=1, micro_batch=2) as stream:
        with monkeypatch.context() as patch:
            patch.setattr("vitscale.data.batch.decode_views", fail)
            with pytest.raises(ZeroDivisionError) as caught:
                next(stream)
        assert "while reading sample" in caught.value.__notes__[0]
        assert next(stream).position == 0       # the step was not handed out, and is not lost


def test_closing_is_prompt(shards, monkeypatch):
    real = SetIndex.shard
    monkeypatch.setattr(SetIndex, "shard", lambda self, number: time.sleep(0.4) or real(self, number))
    stream = open_stream(recipe(shards, prefetch=50), open_index(shards), rank=0, world=1, micro_batch=8)
    next(stream)                            # 50 micro-batches wait behind it, and two tasks of four samples are under way
    begun = time.perf_counter()
    stream.close()
    assert time.perf_counter() - begun < 1.2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_vanished_shard_is_counted_as_unreadable(tmp_path):
    urls = pack(tmp_path, [10, 10])
    index = open_index(urls)
    Path(index.paths[1]).unlink()
    with open_stream(recipe(urls, max_bad_fraction=1.0), index, rank=0, world=1, micro_batch=4) as stream:
        batches = list(stream.until(20))
    assert stream.skipped == {"read": 10}
    assert stream.read == 20
    assert sum(float(micro.weight.sum()) for batch in batches for micro in batch.micro) == 10
