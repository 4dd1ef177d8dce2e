"""What the ranks of one node tell their exporter: numbers in memory that they share, written at each step, read at a scrape.

A rank writes into cells of its own and waits for nobody: no lock, no message, no system call.  Each cell is one aligned 8-byte number, so
that a reader sees it before or after a change, never between.
"""

import contextlib
import math
import mmap
import os
import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vitscale.metrics import BY_NAME, METRICS
from vitscale.metrics.system import PHASES

BOUNDS = BY_NAME["step_phase_seconds"].buckets
SINGLE = tuple(metric.name for metric in METRICS if metric.scope == "rank" and metric.labels == ("rank",))
_CELL = {name: number for number, name in enumerate(SINGLE)}
_SUMS = len(SINGLE)                         # of each phase's seconds; behind them each phase's counts by bucket, the last one open
_COUNTS = _SUMS + len(PHASES)
_WIDTH = len(BOUNDS) + 1
_CELLS = _COUNTS + len(PHASES) * _WIDTH     # of one rank
_PLACE = {name: number for number, name in enumerate(PHASES)}


class Connected(Protocol):
    """What of parallel.world.World is needed here."""

    @property
    def rank(self) -> int: ...
    def broadcast(self, value: object) -> object: ...
    def barrier(self) -> None: ...


class Board:
    """The cells of `ranks`, numbers in the whole run, of one node."""

    def __init__(self, ranks: Sequence[int], memory: mmap.mmap | None = None) -> None:
        """`memory`: shared by the processes of these ranks; None: this process alone has it."""
        self.ranks = tuple(ranks)
        self._memory = memory or mmap.mmap(-1, self.size_of(ranks))
        self._cells = memoryview(self._memory).cast("d")

    @staticmethod
    def size_of(ranks: Sequence[int]) -> int:
        """Bytes."""
        return 8 * _CELLS * len(ranks)

    def writer(self, rank: int) -> "CellWriter":
        """For the process of that rank."""
        start = self.ranks.index(rank) * _CELLS
        return CellWriter(self._cells[start:start + _CELLS])

    def of_rank(self, rank: int) -> dict[str, float]:
        """{name: value} of the metrics with the one label `rank`, those that were ever set."""
        start = self.ranks.index(rank) * _CELLS
        cells = self._cells[start:start + _SUMS].tolist()
        return {name: value for name, value in zip(SINGLE, cells, strict=True) if value == value}

    def phase_seconds(self, rank: int) -> dict[str, float]:
        """{phase: seconds of all steps}."""
        start = self.ranks.index(rank) * _CELLS + _SUMS
        return dict(zip(PHASES, self._cells[start:start + len(PHASES)].tolist(), strict=True))

    def histogram(self, phase: str) -> tuple[list[int], float]:
        """Over all ranks of the node: how many steps took so long, by bucket, the last one open; and the sum of their seconds."""
        counts, total = [0] * _WIDTH, 0.0
        for number in range(len(self.ranks)):
            start = number * _CELLS + _COUNTS + _PLACE[phase] * _WIDTH
            counts = [sum_ + int(more) for sum_, more in zip(counts, self._cells[start:start + _WIDTH].tolist(), strict=True)]
            total += self._cells[number * _CELLS + _SUMS + _PLACE[phase]]
        return counts, total


class CellWriter:
    """One rank's own cells."""

    def __init__(self, cells: "memoryview[float]") -> None:
        self._cells = cells
        for number in range(_SUMS):
            cells[number] = math.nan        # not set

    def step(self, seconds: Mapping[str, float]) -> None:
        """Add a step's seconds by phase; a phase of no time did not happen in it."""
        cells = self._cells
        for phase, value in seconds.items():
            if value > 0:
                place = _PLACE[phase]
                cells[_SUMS + place] += value
                cells[_COUNTS + place * _WIDTH + bisect_left(BOUNDS, value)] += 1

    def set(self, name: str, value: float) -> None:
        """A metric with the one label `rank`; one that is never set is not shown."""
        self._cells[_CELL[name]] = value


def open_board(world: Connected, here: Sequence[int]) -> tuple[Board, str | None]:
    """The board of this rank's node, whose ranks are `here`; and why it could not be shared, if so.  Collective.

    The file behind it has no name any more when this returns: whatever becomes of the processes, nothing is left behind.
    """
    name = f"vitscale-board-{world.broadcast(os.urandom(8).hex())}-{here[0]}"
    path = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()) / name
    memory, problem = None, None
    if len(here) > 1 and world.rank == here[0]:
        memory, problem = _mapped(path, os.O_CREAT | os.O_EXCL, Board.size_of(here))
    world.barrier()
    if len(here) > 1 and world.rank != here[0]:
        memory, problem = _mapped(path, 0, Board.size_of(here))
    world.barrier()
    if world.rank == here[0]:
        with contextlib.suppress(OSError):
            path.unlink()
    return Board(here, memory), problem


def _mapped(path: Path, flags: int, size: int) -> tuple[mmap.mmap | None, str | None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            if flags:
                os.posix_fallocate(descriptor, 0, size)     # a full memory disk says so here, not by a signal at the first write
            return mmap.mmap(descriptor, size), None
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        return None, f"{path}: {error}"

