"""What a start reads does not grow with what a run has written: sums come from logs/totals.json, cuts from the ends of files."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.observe.jsonl import JsonLines, cut_after, rows_from
from vitscale.observe.totals import METRICS, QUARANTINE, Totals


def metrics(first: int, last: int) -> list[dict]:
    """As a run writes them: every step, an evaluation every hundredth, an update left out every seventieth."""
    rows = []
    for step in range(first, last + 1):
        rows.append({"step": step, "images": 32 * step, "loss": 1 / step, "applied": step % 70 != 0, "pad": "x" * 300})
        if step % 100 == 0:
            rows.append({"step": step, "images": 32 * step, "eval_loss": 1 / step, "eval_top1": step / 1e6})
    return rows


def bad(first: int, last: int) -> list[dict]:
    return [{"step": step, "reason": ("decode", "read")[step % 2], "key": "k" * 100} for step in range(first, last + 1)]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def made(folder: Path, rows: int) -> None:
    """A run folder of so many steps, with the sums that its last attempt has written; then some more rows, up to a kill."""
    write(folder / METRICS, metrics(1, rows))
    write(folder / QUARANTINE, bad(1, rows))
    write(folder / "logs" / "samples.jsonl", [{"step": step, "ids": list(range(32))} for step in range(1, rows + 101)])
    Totals(folder).write((folder / METRICS).stat().st_size, (folder / QUARANTINE).stat().st_size)
    write(folder / METRICS, metrics(rows + 1, rows + 100))
    write(folder / QUARANTINE, bad(rows + 1, rows + 100))


def bytes_read() -> int:
    return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")).split()[1])


def start(folder: Path, rows: int) -> tuple[int, Totals]:
    """What opening costs, as the recorder does it at a start or a rollback 50 steps back."""
    before = bytes_read()
    totals = Totals(folder)
    for row in cut_after(folder / QUARANTINE, rows + 50):
        totals.skip(row, times=-1)
    cut_after(folder / "logs" / "samples.jsonl", rows + 50)
    for name in (METRICS, QUARANTINE, "logs/samples.jsonl"):
        JsonLines(folder / name).close()
    return bytes_read() - before, totals


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="the kernel does not count what a process reads")
def test_a_start_reads_no_more_after_ten_times_the_rows(tmp_path: Path) -> None:
    costs = {}
    for rows in (2000, 20_000):
        made(tmp_path / str(rows), rows)
        costs[rows], totals = start(tmp_path / str(rows), rows)
        assert totals.images == 32 * (rows + 100)
        assert totals.nonfinite == (rows + 100) // 70
        assert totals.evaluation["eval_top1"] == (rows + 100) / 1e6
        assert totals.skipped == Counter(row["reason"] for row in bad(1, rows + 50))
        last = list(rows_from(tmp_path / str(rows) / "logs" / "samples.jsonl", 0))[-1]
        assert last["step"] == rows + 50
    assert costs[20_000] < costs[2000] + 4096 < 600_000     # of 8 MB


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.tuples(st.just("row"), st.integers(1, 400)), st.tuples(st.just("bad"), st.integers(1, 5)),
                          st.tuples(st.just("save"), st.none()), st.tuples(st.just("start"), st.none()),
                          st.tuples(st.just("back"), st.integers(1, 30)), st.tuples(st.just("edit"), st.none())), max_size=40))
def test_sums_are_those_of_all_rows_whatever_happens(tmp_path_factory: pytest.TempPathFactory, acts: list) -> None:
    """Rows, kills at any moment, cuts, edits by hand: what a new attempt counts is what reading everything would give."""
    folder = tmp_path_factory.mktemp("run")
    step = 0
    totals = Totals(folder)

    def end_of(name: str) -> int:
        return (folder / name).stat().st_size if (folder / name).exists() else 0

    for act, value in acts:
        if act == "row":
            step += 1
            row = {"step": step, "images": 10 * step, "applied": value % 3 != 0} | ({"eval_loss": value} if value % 5 == 0 else {})
            write(folder / METRICS, [row])
            totals.metric(row)
        elif act == "bad":
            rows = [{"step": step, "reason": f"r{number % 2}"} for number in range(value)]
            write(folder / QUARANTINE, rows)
            for row in rows:
                totals.skip(row)
        elif act == "save":
            totals.write(end_of(METRICS), end_of(QUARANTINE))
        elif act == "back" and (folder / QUARANTINE).exists():
            step = max(step - value, 0)
            for row in cut_after(folder / QUARANTINE, step):
                totals.skip(row, times=-1)
        elif act == "edit" and (folder / METRICS).exists():
            lines = (folder / METRICS).read_text().splitlines(keepends=True)
            (folder / METRICS).write_text("".join(lines[1:]))
            totals = Totals(folder)
        elif act == "start":
            totals = Totals(folder)
    whole = Totals(folder)
    (folder / "logs" / "totals.json").unlink(missing_ok=True)
    anew = Totals(folder)
    for one in (totals, whole):
        assert (one.images, one.nonfinite, one.evaluation, one.skipped) == (anew.images, anew.nonfinite, anew.evaluation, anew.skipped)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"images": "x"}', '{"images":1,"nonfinite":2,"evaluation":{},"skipped":[]}',
                                  "[" * 100_000])
def test_damaged_sums_are_made_anew(tmp_path: Path, text: str) -> None:
    write(tmp_path / METRICS, metrics(1, 150))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "totals.json").write_text(text)
    totals = Totals(tmp_path)
    assert (totals.images, totals.nonfinite, totals.evaluation["eval_loss"]) == (4800, 2, 0.01)


def test_a_damaged_line_costs_itself_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / METRICS, metrics(1, 5))
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 6, "ima\nnot json\n{"step": 7, "images": 224}\n{"torn')
    assert Totals(tmp_path).images == 224
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["2 damaged lines passed over; delete what is damaged"]


@pytest.mark.parametrize("tail", ["", '{"step": 9, "to', "\n", "garbage\n", '{"step": 12}\ngarb'])
@pytest.mark.parametrize("width", [10, 1 << 16, 1 << 18])
def test_a_cut_leaves_what_reading_everything_would(tmp_path: Path, tail: str, width: int) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"step": step, "pad": "x" * width} for step in range(1, 9)]
    for last in (0, 1, 4, 8, 20):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        cut_after(path, last)
        kept = [row["step"] for row in rows_from(path, 0)]
        assert kept == [step for step in (*range(1, 9), *([12] if "12" in tail else [])) if step <= last]
        JsonLines(path).close()
        assert path.read_bytes().endswith(b"\n") or not kept
    with pytest.raises(FileNotFoundError):
        cut_after(tmp_path / "none", 1)


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "/dev/null"])
def test_a_device_in_its_place_gives_no_rows(tmp_path: Path, device: str) -> None:
    for name in (METRICS, QUARANTINE):
        (tmp_path / name).symlink_to(device)
    totals = Totals(tmp_path)
    assert (totals.images, totals.skipped) == (0, Counter())
    assert cut_after(tmp_path / QUARANTINE, 3) == []
    with JsonLines(tmp_path / METRICS) as lines:
        lines.write({"step": 1})
