"""How a try ended, by what it left: its own word, or its exit code."""

import atexit
from pathlib import Path

import pytest

from vitscale.cluster.ended import ended, forget_ranks, killed
from vitscale.resilience.outcome import FILE, write_outcome
from vitscale.resilience.roll import answer
from vitscale.runfolder import mark


@pytest.mark.parametrize(("code", "words"), [
    (None, "it ended without a word"), (137, "it was ended by SIGKILL and said nothing"), (-9, "it was ended by SIGKILL and said nothing"),
    (1, "it ended with code 1 and said nothing"), (255, "it ended with code 255 and said nothing"),
    (75, "it ended with code 75 and said nothing"),
])
def test_who_says_nothing_was_killed(tmp_path: Path, code: int | None, words: str) -> None:
    write_outcome(tmp_path, 3, "an earlier one's", cause="crash")
    before = mark(tmp_path / FILE)
    how = ended(tmp_path, before, code)
    assert (how.cause, how.reason, how.told) == ("killed", words, False)
    write_outcome(tmp_path, 75, "its own", cause="hang")
    how = ended(tmp_path, before, code)
    assert (how.cause, how.reason, how.exit_code, how.told) == ("hang", "its own", 75, True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"cause": 3, "reason": null}', b'{"cause": "hang"}'])
def test_a_damaged_word_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert ended(tmp_path, None, 137).cause == "killed"


@pytest.mark.parametrize(("at_work", "by_itself", "words"), [
    ((0, 1), (), "ranks 0, 1 on n0, n1 were ended by SIGKILL and said nothing"),
    ((1,), (0,), "rank 1 on n1 was ended by SIGKILL and said nothing"),
    ((1,), (), "rank 0 ended before it had begun; rank 1 on n1 was ended by SIGKILL and said nothing"),
    ((2,), (3,), "ranks 0, 1 ended before they had begun; rank 2 on n2 was ended by SIGKILL and said nothing"),
])
def test_who_was_killed_is_named_and_who_never_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_work: tuple[int, ...],
                                                    by_itself: tuple[int, ...], words: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    leaving = []
    monkeypatch.setattr(atexit, "register", lambda *call: leaving.append(call))
    size = max(*at_work, *by_itself, 1) + 1
    for rank in by_itself:
        answer(tmp_path, rank, size, f"n{rank}")
    for leave, *arguments in leaving:
        leave(*arguments)
    for rank in at_work:
        answer(tmp_path, rank, size, f"n{rank}")
    how = killed(tmp_path, None, 137)
    assert how is not None
    assert how.reason == words
    forget_ranks(tmp_path)
    assert killed(tmp_path, None, 137) is None
