"""Rows survive a kill in the middle of a line."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from vitscale.errors import DataError
from vitscale.observe.jsonl import JsonLines, read_rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def write(path, *rows):
    with JsonLines(path) as lines:
        for row in rows:
            lines.write(row)


def test_rows_come_back_and_later_openings_append(path):
    write(path, {"step": 1, "loss": 2.5}, {"step": 2, "note": "größer\n"})
    write(path, {"step": 3})
    assert list(read_rows(path)) == [{"step": 1, "loss": 2.5}, {"step": 2, "note": "größer\n"}, {"step": 3}]


def test_a_row_is_on_disk_before_close(path):
    lines = JsonLines(path)
    lines.write({"step": 1})
    assert list(read_rows(path)) == [{"step": 1}]
    lines.close()


def test_non_finite_numbers_are_null_and_numpy_is_understood(path):
    write(path, {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": np.float32(0.5), "f": np.int64(7), "g": True, "h": None})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": 0.5, "f": 7, "g": True, "h": None}


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_line_cut_anywhere_is_skipped_by_readers_and_mended_by_writers(path, cut):
    write(path, {"step": 1}, {"step": 2, "note": "äöü"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = [json.loads(line) for line in whole[:-cut].decode(errors="replace").splitlines() if line.endswith("}")]
    assert list(read_rows(path)) == kept
    write(path, {"step": 3})
    assert list(read_rows(path)) == [*kept, {"step": 3}]
    assert path.read_bytes().endswith(b'\n{"step":3}\n') or not kept


def test_a_torn_line_longer_than_a_block_is_cut_off(path):
    write(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"ids": "' + b"x" * 200_000)
    write(path, {"step": 2})
    assert list(read_rows(path)) == [{"step": 1}, {"step": 2}]


def test_damage_elsewhere_is_named_by_its_line(path):
    write(path, {"step": 1}, {"step": 2}, {"step": 3})
    path.write_bytes(path.read_bytes().replace(b'{"step":2}', b'{"step":2'))
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        list(read_rows(path))


def test_a_file_that_is_not_there_has_no_rows(path):
    assert list(read_rows(path)) == []


def test_a_value_json_cannot_say_is_refused_before_anything_is_written(path):
    with JsonLines(path) as lines, pytest.raises(TypeError):
        lines.write({"step": 1, "what": object()})
    assert path.read_bytes() == b""


FULL = """
import logging, resource, sys
from pathlib import Path
from vitscale.observe.jsonl import JsonLines
logging.basicConfig(format="%(message)s", level=logging.INFO)
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
with JsonLines(Path(sys.argv[1])) as lines:
    lines.write({"step": 1})
    for size in (14, 11):           # in the middle of the second row, and right after the first
        limit(size)
        for step in (2, 3):
            lines.write({"step": step, "limit": size})
        assert Path(sys.argv[1]).read_bytes().endswith(b"\\n")
        if size == 14:
            limit(resource.RLIM_INFINITY)
            lines.write({"step": 4})
"""


def test_rows_wait_for_a_full_disk(path):
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(read_rows(path)) == [{"step": 1}, {"step": 2, "limit": 14}, {"step": 3, "limit": 14}, {"step": 4}]
    said = [line.removeprefix(f"{path}: ") for line in done.stderr.splitlines()]
    assert said == ["only 3 of 22 bytes could be written; its rows wait in memory", "2 rows written that had to wait",
                    "File too large; its rows wait in memory", "File too large; 2 rows lost"]
