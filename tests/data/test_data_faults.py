"""Every fault of a shard, caused: what a run does about it, and that `verify` names it.  docs/data.md has the table."""

import itertools
import os
from collections import Counter
from pathlib import Path

import corrupt
import pytest

from vitscale.data import open_index, open_stream
from vitscale.data.verify import verify
from vitscale.errors import DataError
from vitscale.recipe.load import check_recipe

TOTAL = sum(corrupt.COUNTS)


def recipe(urls, world=1):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": corrupt.CLASSES, "channels": 3},
        "data": {"train": urls, "lanes": 2, "workers": 1, "max_bad_fraction": 0.9},
        "optim": {"lr": 1e-3}, "global_batch": 4, "duration": "1 epochs", "seed": 3,
    }, "test")


def run(urls, index=None, world=2):
    """One epoch -> ({(step, place in the batch): (id, key, label)} of usable samples, rows of the quarantine, all (step, place): id)."""
    index = index or open_index(urls)
    good, places, bad = {}, {}, []
    for rank in range(world):
        with open_stream(recipe(urls), index, rank=rank, world=world, micro_batch=2, on_bad=bad.append) as stream:
            for batch in stream.until(index.num_samples):
                for micro in batch.micro:
                    for slot, number in enumerate(micro.ids.tolist()):
                        if number < 0:
                            continue
                        at = batch.step, int(micro.index[slot])
                        places[at] = number
                        if micro.weight[slot]:
                            good[at] = number, key_of(index, number), int(micro.labels[slot])
    return good, bad, places


def key_of(index, number):
    for shard, count in enumerate(index.counts.tolist()):
        if number < count:
            return index.key_of(shard, number)
        number -= count
    raise AssertionError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(corrupt.build(tmp_path_factory.mktemp("whole") / "a"))


def test_undamaged_shards_have_no_fault(tmp_path, whole):
    good, bad, places = whole
    assert bad == []
    assert sorted(one[1:] for one in good.values()) == [(f"{number:06d}", corrupt.label(number)) for number in range(TOTAL)]
    assert sorted(places.values()) == list(range(TOTAL))
    verdict = verify(corrupt.build(tmp_path), classes=corrupt.CLASSES)
    assert (verdict.faults, verdict.samples, verdict.labelled, verdict.shards, verdict.hashed) == ([], TOTAL, TOTAL, 3, 0)


@pytest.mark.parametrize("name", corrupt.TAR)
def test_a_damaged_tar_loses_only_what_was_hit(tmp_path, name):
    damage, lost = corrupt.TAR[name]
    urls = corrupt.build(tmp_path)
    damage(tmp_path)
    good, bad, _ = run(urls)
    keys = [f"{number:06d}" for number in range(TOTAL)]
    assert sorted(one[1:] for one in good.values()) == [(key, corrupt.label(int(key))) for key in keys if key not in lost]
    assert bad == []                                    # the index knew: they never had a position
    verdict = verify(urls, workers=2)
    assert {fault.reason for fault in verdict.faults} <= {"tar", "lost"}
    assert [Path(fault.shard).name for fault in verdict.faults] == ["s-001.tar"] * len(verdict.faults)
    assert verdict.by_reason["tar"] == 1
    named = {fault.key for fault in verdict.faults if fault.reason == "lost"}
    assert named <= set(lost)
    assert named or name in ("cut_between_samples",)    # where no trace of a sample is left, none can be named
    at = next(fault.offset for fault in verdict.faults if fault.reason == "tar")
    assert 0 < at <= os.path.getsize(tmp_path / "s-001.tar")
    assert verdict.samples == TOTAL - len(lost)


@pytest.mark.parametrize("name", corrupt.SAMPLE)
def test_a_bad_sample_is_counted_and_shifts_nothing(tmp_path, name, whole, decoder):
    members, reason = corrupt.SAMPLE[name]
    urls = corrupt.build(tmp_path, members)
    good, bad, places = run(urls)
    assert [(row["reason"], row["key"], row["id"], Path(row["shard"]).name) for row in bad] == [
        (reason, corrupt.KEY, corrupt.VICTIM, "s-001.tar")]
    assert places == whole[2]                           # every id stands where it stood
    assert good == {at: one for at, one in whole[0].items() if one[0] != corrupt.VICTIM}
    faults = verify(urls, classes=corrupt.CLASSES).faults
    assert [(fault.reason, fault.key, Path(fault.shard).name) for fault in faults] == [(reason, corrupt.KEY, "s-001.tar")]
    assert faults[0].offset > 0


@pytest.mark.parametrize("name", corrupt.LABEL)
def test_a_wrong_label_stops_the_run_with_its_name(tmp_path, name):
    members, message = corrupt.LABEL[name]
    urls = corrupt.build(tmp_path, members)
    with pytest.raises(DataError, match=message):
        run(urls, world=1)
    assert [(fault.reason, fault.key) for fault in verify(urls, classes=corrupt.CLASSES).faults] == [("label", corrupt.KEY)]


def test_a_key_that_comes_twice_is_told_and_both_are_used(tmp_path):
    urls = corrupt.build(tmp_path, twice="000007")
    good, bad, _ = run(urls)
    assert bad == []
    assert Counter(one[1] for one in good.values()) == Counter([*(f"{number:06d}" for number in range(TOTAL)), "000007"])
    assert open_index(urls).damaged == 1
    faults = verify(urls).faults
    assert [(fault.reason, "'000007' comes twice" in fault.detail) for fault in faults] == [("duplicate", True)]


@pytest.mark.parametrize(("content", "message"), [(b"", "an empty file"), (b"this is no tar. " * 500, "no tar, or no whole sample")])
def test_what_is_no_tar_is_refused(tmp_path, content, message):
    urls = corrupt.build(tmp_path)
    (tmp_path / "s-001.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"s-001\.tar.*{message}"):
        open_index(urls)
    faults = verify(urls).faults
    assert {(fault.reason, Path(fault.shard).name) for fault in faults} == {("tar", "s-001.tar")}


def test_a_shard_gone_before_the_start_is_one_error(tmp_path):
    corrupt.build(tmp_path)
    os.remove(tmp_path / "s-001.tar")
    urls = f"{tmp_path}/s-{{000..002}}.tar"
    with pytest.raises(DataError, match=r"1 of 3 shards do not exist, the first is .*s-001\.tar"):
        open_index(urls)
    assert [(fault.reason, Path(fault.shard).name) for fault in verify(urls).faults] == [("missing", "s-001.tar")]
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  s-001.tar\n")            # a glob cannot know of it, the sums do
    assert [(fault.reason, Path(fault.shard).name) for fault in verify(f"{tmp_path}/s-*.tar").faults] == [("missing", "s-001.tar")]


def test_a_shard_that_vanishes_under_a_run_costs_its_samples(tmp_path, whole):
    urls = corrupt.build(tmp_path)
    index = open_index(urls)
    os.remove(tmp_path / "s-001.tar")
    good, bad, places = run(f"{tmp_path}/s-{{000..002}}.tar", index)
    assert Counter(row["reason"] for row in bad) == {"read": 6}
    assert sorted(row["id"] for row in bad) == list(range(6, 12))
    assert places == whole[2]
    assert {at: one[0] for at, one in good.items()} == {at: one[0] for at, one in whole[0].items() if not 6 <= one[0] < 12}


def test_a_shard_that_changed_its_size_under_a_run_is_one_error(tmp_path):
    urls = corrupt.build(tmp_path)
    index = open_index(urls)
    with open(tmp_path / "s-001.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"s-001\.tar: has \d+ bytes, but had \d+ when it was indexed"):
        run(urls, index, world=1)


def test_bytes_that_rot_unseen_after_indexing_shift_nothing(tmp_path, whole, decoder):
    urls = corrupt.build(tmp_path)
    index = open_index(urls)
    path = tmp_path / "s-001.tar"
    offset = next(offset for ext, offset, _ in index.shard(1).members(2) if ext == "jpg")

    def rot():
        raw = bytearray(path.read_bytes())
        raw[offset + 1024:offset + 1536] = bytes(512)
        path.write_bytes(raw)

    corrupt.unchanged_outside(path, rot)
    good, bad, places = run(urls, open_index(urls))
    assert [(row["reason"], row["key"]) for row in bad] == [("decode", corrupt.KEY)]
    assert places == whole[2]
    assert good == {at: one for at, one in whole[0].items() if one[0] != corrupt.VICTIM}


def test_verify_names_every_fault_of_a_set_with_all_of_them(tmp_path):
    """Each fault in a folder of its own, all given to one call."""
    urls, expected = [], Counter()
    for name, (damage, _) in corrupt.TAR.items():
        urls.append(corrupt.build(tmp_path / name))
        damage(tmp_path / name)
        expected["tar"] += 1
    for name, (members, reason) in itertools.chain(corrupt.SAMPLE.items(), ((name, (members, "label")) for name, (members, _) in
                                                                            corrupt.LABEL.items())):
        urls.append(corrupt.build(tmp_path / name, members))
        expected[reason] += 1
    urls.append(corrupt.build(tmp_path / "twice", twice="000007"))
    expected["duplicate"] += 1
    found = verify(urls, classes=corrupt.CLASSES, workers=2)
    assert found.by_reason - Counter(lost=found.by_reason["lost"]) == expected
    blamed = {Path(fault.shard).parent.name for fault in found.faults}
    assert blamed == {*corrupt.TAR, *corrupt.SAMPLE, *corrupt.LABEL, "twice"}
