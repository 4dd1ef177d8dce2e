"""Numbers of several real processes in one piece of memory; nothing left behind; and what happens where none can be shared."""

import os
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from vitscale.metrics import METRICS
from vitscale.observe import board as board_module
from vitscale.observe.board import Board, open_board
from vitscale.observe.exporter import Exporter
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe.schema import Parallel


def write_and_read(place: RankInfo, whose: list[list[int]]) -> dict[int, dict[str, Any]]:
    """Each rank writes; the first of each node reads all of its node's."""
    with joined(Parallel(device="cpu"), place) as world:
        here = next(ranks for ranks in whose if world.rank in ranks)
        board, problem = open_board(world, here)
        assert problem is None, problem
        own = board.writer(world.rank)
        for _ in range(world.rank + 1):
            own.step({"compute": 0.5, "data_wait": 0.0})
        own.set("rank_samples_total", 100.0 + world.rank)
        world.barrier()
        found = {rank: board.of_rank(rank) | board.phase_seconds(rank) for rank in here} if world.rank == here[0] else {}
        if found:
            found[-1] = {"counts": board.histogram("compute")[0], "seconds": board.histogram("compute")[1]}
        world.barrier()
        return found


@pytest.mark.slow       # four processes
def test_ranks_of_a_node_see_each_others_numbers_and_those_of_another_node_do_not() -> None:
    before = set(os.listdir("/dev/shm"))
    first, _, second, _ = run_ranks(4, write_and_read, [[0, 1], [2, 3]])
    assert set(first) == {0, 1, -1}
    assert set(second) == {2, 3, -1}
    assert second[3]["rank_samples_total"] == 103
    assert second[3]["compute"] == 2.0
    assert second[3]["data_wait"] == 0
    assert second[-1] == {"counts": [0] * 6 + [7] + [0] * 6, "seconds": 3.5}
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("vitscale")]


class Alone:
    """A world of two, of which this process plays one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def broadcast(self, value: object) -> object:
        return value

    def barrier(self) -> None:
        pass


def test_where_no_memory_can_be_shared_a_rank_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module.tempfile, "gettempdir", lambda: str(tmp_path / "absent"))
    monkeypatch.setattr(board_module.os, "access", lambda *_: False)
    for rank in (0, 1):
        board, problem = open_board(Alone(rank), (0, 1))
        board.writer(rank).step({"compute": 1.0})
        assert board.phase_seconds(rank)["compute"] == 1.0
        assert problem is not None
        assert "No such file" in problem


def test_one_process_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module.os, "open", lambda *_: pytest.fail("a file was opened"))
    assert open_board(Alone(0), (0,))[1] is None


def test_values_of_a_rank_are_unset_zero_or_set() -> None:
    board = Board((4,))
    own = board.writer(4)
    assert board.of_rank(4) == {}
    own.set("rank_ready_batches", 0)
    own.set("rank_own_seconds", 1e-9)
    assert board.of_rank(4) == {"rank_ready_batches": 0, "rank_own_seconds": 1e-9}
    with pytest.raises(KeyError):
        own.set("loss", 1.0)


def series_of_a_node(ranks: range, tells_run: bool) -> int:
    """The samples that a scrape of its exporter gives when every value is set."""
    board = Board(tuple(ranks))
    for rank in ranks:
        own = board.writer(rank)
        for name in board_module.SINGLE:
            own.set(name, 1.0)
    exporter = Exporter(board=board, tells_run=tells_run)
    try:
        for metric in METRICS:
            if metric.kind == "gauge" and metric.scope != "rank":
                exporter.update({metric.name: dict.fromkeys(metric.values, 1.0) if metric.labels else 1.0})
        exporter.update({"build_info": {"version": "1", "torch": "2", "python": "3"}})
        return sum(len(family.samples) for family in exporter.collect())
    finally:
        exporter.close()


def test_a_run_of_1024_ranks_has_as_many_series_as_the_guide_says() -> None:
    """On 128 nodes, of which the first tells the run.  Labels of the target multiply nothing."""
    counted = series_of_a_node(range(8), tells_run=True) + 127 * series_of_a_node(range(8, 16), tells_run=False)
    guide = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    assert f"{counted:,} series" in guide, f"docs/monitoring.md is to say {counted:,} series"
    assert counted < 50_000
