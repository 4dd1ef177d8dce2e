"""The packed digits: all there, the same bytes each time, whole or not at all."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitscale.data import ShardReader, check_labels, open_index, pack_digits
from vitscale.data.quickstart import TRAIN, VAL, digits_split
from vitscale.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pack_digits(tmp_path_factory.mktemp("digits") / "100 % digits")


def test_every_digit_is_packed_once_as_it_is(folder):
    digits = load_digits()
    seen = {}
    for pattern in (TRAIN, VAL):
        index = open_index(f"{folder}/{pattern}")
        assert check_labels(index, "cls", 10) > 0
        reader = ShardReader(index)
        for shard, count in enumerate(index.counts.tolist()):
            for number in range(count):
                sample = reader.read(shard, number)
                at = int(index.key_of(shard, number).removeprefix("digit-"))
                seen[at] = pattern
                grey = cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_UNCHANGED)
                assert (grey == np.rint(digits.images[at] * 255 / 16)).all()
                assert int(sample["cls"]) == digits.target[at]
    assert sorted(seen) == list(range(1797))
    assert open_index(f"{folder}/{TRAIN}").counts.tolist() == [180] * 7 + [178]
    assert (folder / "classes.txt").read_text().split() == [str(digit) for digit in range(10)]


def test_a_fifth_of_each_class_is_held_out():
    target = load_digits().target
    train, val = digits_split()
    assert sorted(train + val) == list(range(1797))
    for digit in range(10):
        assert abs(np.sum(target[val] == digit) - np.sum(target == digit) / 5) < 1
    assert train[:5] == [23, 32, 690, 1214, 634]
    assert len(set(target[train[:40]].tolist())) >= 8        # mixed


def test_two_packs_are_equal_and_the_second_call_does_nothing(folder, tmp_path):
    again = pack_digits(tmp_path / "digits")
    names = sorted(file.name for file in again.iterdir())
    assert len(names) == 11
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)
    before = {name: (again / name).stat().st_mtime_ns for name in names}
    pack_digits(again)
    assert {name: (again / name).stat().st_mtime_ns for name in names} == before


def test_two_processes_may_race(tmp_path):
    code = f"from vitscale.data import pack_digits; print(pack_digits({str(tmp_path / 'digits')!r}))"
    racers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [racer.communicate(timeout=100)[0].strip() for racer in racers] == [str(tmp_path / "digits")] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists but does not hold the packed digits"):
        pack_digits(tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        pack_digits(tmp_path / "mine.txt" / "digits")
