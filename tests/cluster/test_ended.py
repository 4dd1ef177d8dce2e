"""How a try ended, by what it left: its own word, or its exit code."""

from pathlib import Path

import pytest

from vitscale.cluster.ended import ended
from vitscale.resilience.outcome import FILE, write_outcome
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
