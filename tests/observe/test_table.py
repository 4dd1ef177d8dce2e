"""metrics.jsonl as columns: the same numbers however the file grows, and nothing that is written there stops the reader."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.observe.dashboard.table import Table, number, sampled


def row(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "images": 32 * step, "time": 1e9 + step, "loss": 2 / step, "applied": True, "seconds_compute": 0.1, **more}


def write(path: Path, rows: list[dict[str, object]]) -> bytes:
    text = b"".join(json.dumps(one).encode() + b"\n" for one in rows)
    path.write_bytes(text)
    return text


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_read_in_any_pieces_it_is_the_same(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    rows = [row(step) for step in range(1, 12)] + [{"step": 11, "eval_loss": 0.5, "time": 1e9}, row(12, own_s=[1.0, 2.0])]
    text = write(path, rows)
    path.write_bytes(b"")
    table, sizes = Table(path), sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    for start, end in zip([0, *sizes], sizes, strict=False):
        with open(path, "ab") as file:
            file.write(text[start:end])
        table.refresh()
    assert table.columns["step"].tolist() == list(range(1, 13))
    assert table.columns["loss"].tolist() == [2 / step for step in range(1, 13)]
    assert [one["eval_loss"] for one in table.apart] == [0.5]
    assert table.row_at(table.where[11])["own_s"] == [1.0, 2.0]
    assert table.broken == 0
    assert table.read_ratio == 1


def test_what_is_no_row_is_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(row(2)).encode()
    path.write_bytes(b"\n".join([
        b"\x00\xff", b"[1]", b'"loss"', b"", good, b'{"loss": NaN, "step": 3}', b'{"loss": {"a": 1}, "step": "4"}', b"[" * 5000,
        b'{"loss": 1' + b"0" * 400 + b', "step": 5}', b'{"step": 6, "loss": ' ]))
    table = Table(path)
    assert table.refresh()
    assert table.columns["loss"][:1].tolist() == [1.0]
    assert np.isnan(table.columns["loss"][1:]).all()
    assert table.columns["step"].tolist()[:2] == [2, 3]
    assert table.broken == 4


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(step) for step in range(1, 50)])
    table = Table(path)
    table.refresh()
    write(tmp_path / "new", [row(7)])
    os.replace(tmp_path / "new", path)
    table.refresh()
    assert table.columns["step"].tolist() == [7]
    path.unlink()
    table.refresh()
    assert table.rows == 0


def test_it_stops_in_time_and_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(row(1, padding="x" * 400)).encode() + b"\n"
    path.write_bytes(line * 60_000)         # 32 MB: eight pieces
    table = Table(path)
    assert not table.refresh(budget_s=0)
    assert 0 < table.read_ratio < 0.3
    began, times = time.perf_counter(), 1
    while not table.refresh(budget_s=0):
        times += 1
    assert table.rows == 60_000
    assert times > 3
    assert time.perf_counter() - began < 60


def test_a_few_rows_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(step) for step in range(1, 5001)])
    steps = [one["step"] for one in sampled(path, 50)]
    assert 45 <= len(steps) <= 50
    assert steps == sorted(set(steps))
    assert np.diff(steps).max() < 130       # evenly spread: 100 apart
    assert sampled(tmp_path / "none", 50) == []


@pytest.mark.parametrize(("value", "known"), [(3, 3.0), (True, 1.0), (10**400, None), (float("inf"), None), ("3", None), (None, None)])
def test_what_counts_as_a_number(value: object, known: float | None) -> None:
    found = number(value)
    assert found == known if known is not None else found != found
