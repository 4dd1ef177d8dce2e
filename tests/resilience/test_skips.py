"""What a run passes over for good is remembered through kills."""

import json
from pathlib import Path

import pytest

from vitscale.errors import DataError
from vitscale.resilience.skips import FILE, remember, remembered, rollbacks, undone_by


def test_what_is_remembered_comes_back_sorted_and_once(tmp_path: Path) -> None:
    assert remembered(tmp_path) == []
    remember(tmp_path, 640, 704, "loss was not finite")
    remember(tmp_path, 0, 64, "spike — a big one")
    remember(tmp_path, 640, 704, "again")
    assert remembered(tmp_path) == [(0, 64), (640, 704)]
    assert remembered(tmp_path, [(640, 704), (128, 192)]) == [(0, 64), (128, 192), (640, 704)]
    assert remembered(tmp_path, [[0, 64]]) == [(0, 64), (640, 704)]      # lists, as JSON gives them


def test_the_file_is_one_json_object_a_line(tmp_path: Path) -> None:
    remember(tmp_path, 640, 704, "loss was not finite")
    remember(tmp_path, 0, 64, "a line\nbreak\x85\u2028")
    rows = [json.loads(line) for line in (tmp_path / FILE).read_bytes().split(b"\n")[:-1]]
    assert rows == [{"start": 640, "end": 704, "reason": "loss was not finite"},
                    {"start": 0, "end": 64, "reason": "a line\nbreak\x85\u2028"}]
    assert remembered(tmp_path) == [(0, 64), (640, 704)]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_last_line_torn_anywhere_is_no_decision(tmp_path: Path) -> None:
    remember(tmp_path, 0, 64, "first")
    one = (tmp_path / FILE).read_bytes()
    remember(tmp_path, 64, 128, "second")
    both = (tmp_path / FILE).read_bytes()
    for length in range(len(one), len(both) + 1):
        (tmp_path / FILE).write_bytes(both[:length])
        whole = length >= len(both) - 1      # only the line feed may be missing
        assert remembered(tmp_path) == ([(0, 64), (64, 128)] if whole else [(0, 64)]), length
        remember(tmp_path, 640, 704, "third")       # what comes after it is not lost with it
        assert (640, 704) in remembered(tmp_path)
        assert ((64, 128) in remembered(tmp_path)) == whole
        remember(tmp_path, 704, 768, "fourth")
        assert remembered(tmp_path)[-2:] == [(640, 704), (704, 768)]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"\xff\xfe", b"null", b"[1, 2]", b'{"start": 1}', b'{"start": "x", "end": 2}'], ids=repr)
def test_a_last_line_that_is_no_decision(tail: bytes, tmp_path: Path) -> None:
    remember(tmp_path, 0, 64, "first")
    with open(tmp_path / FILE, "ab") as file:
        file.write(tail)
    assert remembered(tmp_path) == [(0, 64)]


def test_an_unreadable_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    remember(tmp_path, 0, 64, "first")
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"start": 64, "e\n{"start": 128, "end": 192}\n')
    before = (tmp_path / FILE).read_bytes()
    for act in (lambda: remembered(tmp_path), lambda: remember(tmp_path, 256, 320, "third")):
        with pytest.raises(DataError, match=rf"{FILE}: line 2 is unreadable"):
            act()
    assert (tmp_path / FILE).read_bytes() == before


def test_a_rollback_is_a_decision_that_says_which_checkpoints_it_undid(tmp_path: Path) -> None:
    remember(tmp_path, 0, 64, "by hand")
    remember(tmp_path, 640, 704, "a spike", cause="spike", before_step=21)
    assert rollbacks(tmp_path) == [{"start": 640, "end": 704, "reason": "a spike", "cause": "spike", "before_step": 21}]
    assert remembered(tmp_path) == [(0, 64), (640, 704)]


def test_a_checkpoint_is_undone_if_it_holds_the_update_at_fault() -> None:
    first = {"start": 640, "end": 704, "before_step": 21}
    second = {"start": 320, "end": 352, "before_step": 10}
    assert undone_by([], 99, []) is None
    assert undone_by([first], 20, []) is None
    assert undone_by([first], 21, []) == first
    assert undone_by([first], 30, [(0, 64), (704, 736)]) == first
    assert undone_by([first], 30, [(640, 672)]) == first
    assert undone_by([first], 30, [[600, 800]]) is None         # of the run that went on without those batches; lists, as JSON gives them
    assert undone_by([first, second], 30, [(640, 704)]) == second
    assert undone_by([first, second], 30, [(640, 704), (320, 352)]) is None
    assert undone_by([first, second], 9, []) is None
