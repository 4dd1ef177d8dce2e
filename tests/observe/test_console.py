"""Plain lines in a pipe; a live display on a terminal that log lines do not break."""

import io
import logging
import re
import warnings

import pytest
from rich.console import Console

from vitscale.observe.console import ProgressDisplay, _number, _span, setup_logging


@pytest.fixture
def root_logging():
    """Undo what setup_logging does to the process."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)
            handler.close()
    for handler in before:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


def row(step):
    return {
        "step": step, "images": 100 * step, "loss": 2.34567, "lr": 1e-3, "images_per_second": 812.3, "mfu": 0.123,
        "seconds_data_wait": 1.0, "seconds_compute": 3.0,
    }


def piped():
    return Console(file=io.StringIO(), width=40)


def test_a_pipe_gets_a_line_each_so_many_seconds_and_at_evaluations():
    console, now = piped(), [0.0]
    with ProgressDisplay(console, total_images=2000, num_samples=500, every_s=10, clock=lambda: now[0]) as progress:
        for step in range(1, 13):
            progress.step(row(step), eta_s=3661)
            now[0] += 2
        progress.evaluated({"step": 12, "eval_top1": 0.9731, "eval_top5": 0.9993, "eval_loss": 0.1234})
    lines = console.file.getvalue().splitlines()
    assert [line.split("  epoch")[0][6:] for line in lines if "epoch" in line] == ["step 1", "step 6", "step 11", "step 12"]
    assert lines[0] == (
        "  5%  step 1  epoch 0.20  loss 2.346  lr 1.00e-03  812.3 images/s  MFU 12.3%  data wait 25%  ETA 1:01:01"
    )
    assert lines[3] == "evaluation  step 12  top-1 97.31%  top-5 99.93%  loss 0.1234"


def test_the_last_state_is_printed_once():
    console = piped()
    with ProgressDisplay(console, total_images=64, clock=lambda: 0.0) as progress:
        progress.step(row(1), eta_s=0)
    assert console.file.getvalue().count("step 1") == 1


def test_unknown_numbers_are_left_out():
    console = piped()
    with ProgressDisplay(console, total_images=100) as progress:
        progress.step({"step": 1, "images": 10, "loss": 2.0, "mfu": None, "images_per_second": 0.0})
    assert console.file.getvalue().splitlines()[0] == " 10%  step 1  loss 2  0 images/s  data wait 0%  ETA -"


@pytest.mark.usefixtures("root_logging")
def test_on_a_terminal_log_lines_stand_above_the_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    setup_logging(console)
    with ProgressDisplay(console, total_images=2000, num_samples=500) as progress:
        progress.step(row(3), eta_s=60)
        logging.getLogger("vitscale.test").info("checkpoint [bold]kept[/bold]")
        progress.evaluated({"eval_top1": 0.5})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "checkpoint [bold]kept[/bold]" in shown      # text, not markup
    after = shown.split("kept[/bold]", 1)[1]
    assert "step 3" in after                            # the display is drawn again below
    assert "top-1 50.00%" in after


@pytest.mark.usefixtures("root_logging")
def test_each_rank_writes_its_file_and_only_rank_0_speaks(tmp_path):
    console = piped()
    setup_logging(console, tmp_path / "logs" / "rank-0.log")
    logging.getLogger("vitscale.data").info("a line that is much longer than the forty columns of the console, in one piece")
    logging.getLogger("elsewhere").info("unheard")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a library's warning", stacklevel=1)
    assert "much longer than the forty columns of the console, in one piece\n" in console.file.getvalue()
    setup_logging(None, tmp_path / "logs" / "rank-1.log")
    logging.getLogger("vitscale.data").info("from rank 1")
    first, second = ((tmp_path / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1))
    assert "vitscale.data: a line that is" in first
    assert "a library's warning" in first
    assert "unheard" not in first
    assert "rank 1" not in first
    assert "rank 1" not in console.file.getvalue()
    assert second.count("\n") == 1


def test_numbers_as_people_read_them():
    assert [_number(x) for x in (None, 0, 0.5, 12.345678, 812.34, 12345.6, 3e-4, 2.5e7)] == [
        "-", "0", "0.5", "12.35", "812.3", "12346", "3.00e-04", "2.50e+07",
    ]
    assert [_span(x) for x in (None, 7.2, 61, 3661, 2 * 86400 + 5)] == ["-", "0:07", "1:01", "1:01:01", "2 d 00:00:05"]
