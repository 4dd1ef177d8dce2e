"""What a person sees while a run goes: a live display on a terminal, plain lines in a pipe, and log lines that do not break either."""

import contextlib
import functools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.highlighter import NullHighlighter
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vitscale.metrics import OF_EVALUATIONS, OF_STEPS, text
from vitscale.metrics.system import MFU, SPEED
from vitscale.observe.meters import data_wait_share
from vitscale.observe.streams import say_apart

log = logging.getLogger(__name__)
_story = logging.getLogger("vitscale.progress")     # steps and evaluations, for rank 0's file; the console shows them by itself
_PLAIN = "%(asctime)s %(levelname)-7s %(message)s"
_FILE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


@functools.cache
def make_console() -> Console:
    """The console of this process, standard error, so that standard output holds results alone.

    Progress and logs must share it: what another one writes, the live lines would be drawn over.
    """
    return Console(stderr=True, highlight=False)


class _RankLog(logging.FileHandler):
    """A rank's log.  What is wrong with it costs its lines and one word on the console; each later line tries anew, also to open it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:                 # it could not be opened; what is written reports its errors itself
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            say_apart(log, "%s: %s; what is not written there is lost", self.baseFilename, error.strerror or error)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def setup_logging(console: Console | None, file: Path | None = None, level: int = logging.INFO) -> None:
    """Log to `console` (rank 0; None for the others) and to `file`, a rank's own.  Only the command line calls this; a later call
    replaces an earlier one's handlers.  Libraries are heard from WARNING on, Python's warnings included."""
    handlers: list[logging.Handler] = []
    if console is not None and console.is_terminal:
        handlers.append(RichHandler(console=console, show_path=False, highlighter=NullHighlighter(), log_time_format="%X"))
        handlers[-1].setFormatter(logging.Formatter("%(message)s"))
    elif console is not None:
        handlers.append(logging.StreamHandler(console.file))        # rich would wrap lines at a pipe's imagined width
        handlers[-1].setFormatter(logging.Formatter(_PLAIN, datefmt="%X"))
    for handler in handlers:
        handler.addFilter(lambda record: record.name != _story.name)
    if file is not None:
        with contextlib.suppress(OSError):      # then the file cannot be opened, which says so
            file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_RankLog(file))
        handlers[-1].setFormatter(logging.Formatter(_FILE))
    logging.basicConfig(level=logging.WARNING, handlers=handlers or [logging.NullHandler()], force=True)
    logging.getLogger("vitscale").setLevel(level)
    logging.captureWarnings(True)
    # torch's own modules call each other's deprecated names, and tell one process that it is one process
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")      # of a one-channel patch projection
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class ProgressDisplay:
    """Rank 0's display.  Feed it the rows of metrics.jsonl; use it as a context manager.

    On a terminal a bar and two lines of numbers stay at the bottom, below a line for each evaluation.  Elsewhere a line is printed at most
    every `every_s` seconds, at the first row, and at every evaluation; rank 0's log has the same lines wherever it speaks.
    """

    def __init__(
        self,
        console: Console,
        *,
        total_images: int,
        num_samples: int | None = None,         # of one epoch; None: a mixture, no epochs are shown
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._total, self._num_samples = console, total_images, num_samples
        self._every_s, self._clock = every_s, clock
        self._printed_at: float | None = None
        self._row: dict[str, Any] = {}
        self._printed_row: dict[str, Any] | None = None
        self._eta_s: float | None = None
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "ProgressDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        if self._row and error is None and self._printed_row is not self._row:
            self._tell_step()           # the last state, whenever the last line was

    def step(self, row: Mapping[str, Any], eta_s: float | None = None) -> None:
        """Show a training row (OF_STEPS); `eta_s` is the time left."""
        self._row, self._eta_s = dict(row), eta_s
        now = self._clock()
        if self._printed_at is None or now - self._printed_at >= self._every_s:
            self._printed_at = now
            self._tell_step()

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Show an evaluation's row (`step` and OF_EVALUATIONS)."""
        parts = [f"step {row['step']}"] if "step" in row else []
        parts += [f"{one.word} {text(row[one.column], one.unit)}" for one in OF_EVALUATIONS if row.get(one.column) is not None]
        line = "evaluation  " + "  ".join(parts)
        self._print(line)           # on a terminal above what is drawn anew, and so for good
        _story.info("%s", line)

    def _tell_step(self) -> None:
        self._printed_row, line = self._row, self._line()
        if self._live is None:
            self._print(line)
        _story.info("%s", line)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _training(self) -> list[str]:
        row = self._row
        epoch = [f"epoch {row.get('images', 0) / self._num_samples:.2f}"] if self._num_samples else []
        learned = [f"{one.word} {_number(row[one.column]) if one.unit != 'ratio' else text(row[one.column], one.unit)}"
                   for one in OF_STEPS if one.word and row.get(one.column) is not None]
        return [f"step {row.get('step', 0)}", *epoch, *learned]

    def _speed(self) -> list[str]:
        row = self._row
        parts = [f"{_number(row.get(SPEED.column))} images/s"]
        if row.get(MFU.column) is not None:
            parts.append(f"MFU {text(row[MFU.column], MFU.unit, 3)}")
        return [*parts, f"data wait {data_wait_share(row):.0%}", f"ETA {_span(self._eta_s)}"]

    def _line(self) -> str:
        share = self._row.get("images", 0) / self._total
        return "  ".join([f"{share:4.0%}", *self._training(), *self._speed()])

    def _render(self) -> RenderableType:
        images = self._row.get("images", 0)
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        bar.add_row(ProgressBar(total=self._total, completed=images), f"{images / self._total:4.0%}")
        if not self._row:
            return Group(bar, Text("waiting for the first step"))
        lines = [Text("  ".join(parts), no_wrap=True, overflow="ellipsis") for parts in (self._training(), self._speed())]
        return Group(bar, *lines)


def _number(value: float | None) -> str:
    """About four digits, as people read them."""
    if value is None:
        return "-"
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2e}"


def _span(seconds: float | None) -> str:
    """A length of time: `2 d 03:04:05`, `1:02:03`, `0:07`."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
