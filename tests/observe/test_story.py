"""What happened in a run stands in one file and, on a terminal, above the live lines: steps, evaluations, samples that were skipped."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import shutil
import struct
import subprocess
import tarfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from running import SMALL, TIMEOUT_S, Run, command

from vitscale.cluster.logs import logs_of, show
from vitscale.observe.console import ProgressDisplay, setup_logging
from vitscale.observe.skipped import EVERY_S, NAMED, Skipped


@pytest.fixture
def root_logging() -> Iterator[None]:
    """Undo what setup_logging does to the process."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def screen(data: bytes) -> list[str]:
    """What a terminal that is tall enough shows in the end: text, line feeds, the cursor upwards, and the erasing of lines."""
    lines, at, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", data.decode(errors="replace")):
        if part == "\r":
            column = 0
        elif part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part.startswith("\x1b["):
            if part.endswith("A"):
                at = max(at - int(part[2:-1] or 1), 0)
            elif part.endswith("K"):
                lines[at] = "" if part[2:-1] == "2" else lines[at][:column]
        else:
            lines[at] = lines[at][:column].ljust(column) + part + lines[at][column + len(part):]
            column += len(part)
    return [line.rstrip() for line in lines]


def row(step: int) -> dict[str, Any]:
    return {"step": step, "images": 32 * step, "loss": 2.0 / step, "lr": 1e-3, "images_per_second": 800.0, "seconds_compute": 1.0}


@pytest.mark.usefixtures("root_logging")
@pytest.mark.parametrize("terminal", [False, True])
def test_the_file_has_steps_and_evaluations_of_all_attempts_and_the_console_each_line_once(tmp_path: Path, terminal: bool) -> None:
    now, shown = [0.0], ""
    for attempt in range(2):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120, height=200)
        setup_logging(console, tmp_path / "logs" / "rank-0.log")
        logging.getLogger("vitscale.test").info("attempt %d begins", attempt)
        with ProgressDisplay(console, total_images=32 * 40, every_s=10, clock=lambda: now[0]) as progress:
            for step in range(20 * attempt + 1, 20 * attempt + 21):
                progress.step(row(step), eta_s=60.0)
                now[0] += 3
                if step % 5 == 0:
                    progress.evaluated({"step": step, "eval_top1": step / 100, "eval_loss": 1.0 / step})
        shown += "\n".join(screen(console.file.getvalue().encode())) + "\n"     # type: ignore[attr-defined]
    said: list[str] = []
    show(logs_of(tmp_path, 0), 1000, False, said.append)
    for text in (shown, "\n".join(said)):
        assert [int(step) for step in re.findall(r"evaluation  step (\d+)", text)] == list(range(5, 41, 5))
        assert re.findall(r"attempt (\d) begins", text) == ["0", "1"]
    told = [int(step) for step in re.findall(r"%  step (\d+) ", "\n".join(said))]
    assert told == [1, 5, 9, 13, 17, 20, 21, 25, 29, 33, 37, 40]
    if not terminal:
        assert [int(step) for step in re.findall(r"%  step (\d+) ", shown)] == told


def bad(key: str, reason: str = "decode", split: str = "train", step: int = 6) -> dict[str, Any]:
    return {"step": step, "split": split, "shard": "a.tar", "key": key, "reason": reason, "detail": f"{key} is \x1b[31mbroken"}


def test_the_first_skipped_samples_are_named_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    skipped = Skipped(lambda: now[0])
    for number in range(200):
        skipped.tell([bad(f"k{number}"), bad("k0"), bad("v", "read", "val")][: 1 + number % 3])
        now[0] += 1.0
    skipped.flush()
    skipped.flush()
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "step 7: sample k0 of a.tar could not be used: decode: k0 is \N{REPLACEMENT CHARACTER}[31mbroken"
    named = [line for line in said if not re.search(" more times? a sample ", line)]
    assert len(named) == NAMED == len(set(named))
    assert any(line.startswith("evaluation after step 7: sample v of a.tar could not be used: read: ") for line in named)
    counted = [line for line in said if re.search(" more times? a sample ", line)]
    assert len(counted) == 1 + int(200 // EVERY_S)
    total = sum(1 + number % 3 for number in range(200))
    assert sum(int(line.split()[0]) for line in counted) == total - NAMED
    assert f", {total} in this attempt; the last: " in counted[-1]
    assert counted[-1].endswith("; quarantine.jsonl names all")
    assert re.search(r"\(decode \d+, read \d+\)", counted[0])


@pytest.mark.parametrize("damage", [{}, {"step": None}, {"key": None, "shard": 3}, {"detail": None, "reason": None}])
def test_rows_that_lack_something_are_told_all_the_same(damage: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    skipped = Skipped()
    skipped.tell([damage] * 3)
    skipped.flush()
    assert "could not be used" in caplog.text


@pytest.mark.slow       # a whole run
def test_a_real_run_on_a_real_terminal(place: Path) -> None:
    """Every evaluation stays on the screen, above the live lines; `vitscale logs` shows the same, and the samples that were skipped."""
    broken = damage_some(place, 12)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 400, 160, 0, 0))
    process = subprocess.Popen(command("train", "quickstart", *SMALL, "name=t", "duration=45 steps", "evaluate.every=5 steps",
                                       "data.max_bad_fraction=0.5"),
                               cwd=place, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"})
    os.close(theirs)
    got: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(ours, got), daemon=True)
    reader.start()
    assert process.wait(TIMEOUT_S) == 0
    reader.join(30)
    run = Run(place / "runs" / "t")
    lines = screen(b"".join(got))
    said: list[str] = []
    show(logs_of(run.folder, 0), 1000, False, said.append)
    expected = [f"evaluation  step {row['step']}  top-1 {row['eval_top1']:.2%}  top-5 {row['eval_top5']:.2%}  loss {row['eval_loss']:.4f}"
                for row in run.rows() if "eval_loss" in row]
    assert len(expected) == 9
    assert [line for line in lines if line.startswith("evaluation")] == expected
    assert [line[line.index("evaluation"):] for line in said if "evaluation  step" in line] == expected
    assert re.search(r" 100%  step 45  epoch 1\.00  loss ", "\n".join(said))
    skipped = {row["key"] for row in run.rows("quarantine.jsonl")}
    assert skipped == broken
    for text in ("\n".join(lines), "\n".join(said)):
        text = re.sub(r"\s+", " ", text)        # a terminal's lines end somewhere
        assert len(re.findall(r"step \d+: sample \S+ of", text)) == NAMED + 1     # the last of the others as well
        assert f"{12 - NAMED} more times a sample could not be used" in text
    assert "done at step 45" in said[-3]
    assert said[-1].endswith("next: `vitscale eval runs/t` for its accuracy, `vitscale predict IMAGES -m runs/t` for its predictions")


def damage_some(place: Path, count: int) -> set[str]:
    """Give `place` digits of its own, so many of which are no pictures any more; -> their keys."""
    digits = (place / "data" / "digits").resolve()
    (place / "data" / "digits").unlink()
    shutil.copytree(digits, place / "data" / "digits")
    shard, broken = place / "data" / "digits" / "train-000003.tar", set()
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(".png")][:count]
    with open(shard, "r+b") as file:
        for member in members:
            file.seek(member.offset_data + 8)
            file.write(b"\0" * 16)
            broken.add(member.name.removesuffix(".png"))
    return broken


def read_all(ours: int, got: list[bytes]) -> None:
    with contextlib.suppress(OSError):      # the other side is closed
        while data := os.read(ours, 65536):
            got.append(data)
