"""Where an index goes when the shards lie in a folder that is not to be written in."""

import os
from pathlib import Path

import pytest

from vitscale.data import open_index, pack_digits


def test_a_folder_closed_to_writing_stays_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for root, whom no mode bit would stop."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = pack_digits(tmp_path / "digits")
    before = sorted(shards.iterdir())
    shards.chmod(0o555)
    try:
        index = open_index((str(shards / "train-*.tar"),))
        assert index.num_samples == 1438
        assert sorted(shards.iterdir()) == before
    finally:
        shards.chmod(0o755)
    (home,) = (tmp_path / "cache").rglob("set-*.json")
    assert os.stat(home.parent).st_mode & 0o777 == 0o700
