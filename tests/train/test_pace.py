"""What ranks say of each other's pace, in rows and in the log; and that own times are own in every engine."""

import logging
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from vitscale.data import MicroBatch, open_index, open_stream, pack_digits
from vitscale.objectives import build_task
from vitscale.observe.meters import Meters
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import load_recipe
from vitscale.train import pace
from vitscale.train.pace import Probe, RankPace
from vitscale.train.step import Inputs, Moved, StepResult, train_step


def test_rows_tell_each_ranks_mean_in_a_small_world_and_seldom_in_a_large_one() -> None:
    small, large = RankPace(["n"] * 3, 1.5), RankPace(["n"] * 100, 1.5)
    small.step([0.1, 0.2, 0.3], [], 1.0)
    small.step([0.1, 0.4, 0.3], [], 1.0)
    assert small.row() == {"skew": pytest.approx(1.5), "slowest_rank": 1, "own_s": [0.1, 0.3, 0.3],
                           "own_median_s": pytest.approx(0.3), "own_max_s": pytest.approx(0.3)}
    rows = []
    for _ in range(65):
        large.step([0.1] * 99 + [0.2], [], 1.0)
        rows.append(large.row())
    assert [number for number, row in enumerate(rows) if "own_s" in row] == [0, 32, 64]
    assert {row["slowest_rank"] for row in rows} == {99}
    assert len(rows[64]["own_s"]) == 100


def test_slow_ranks_are_named_with_their_node(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, logger="vitscale")
    both = RankPace(["n1", "n1", "n2"], 1.5)
    for step in range(60):
        now[0] += 1
        late = step < 30
        both.step([0.1, 0.1, 0.3 if late else 0.1], [0.004, 0.01, 0.004] if step % 3 == 0 else [], 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "rank 2 on n2 is slow: it takes 0.3 s of each step before it waits for others, 3 times the median of the others; "
        "all ranks wait for it",
        "rank 1 on n1 is slow: it needs 10 ms for a small matrix product, 2.5 times the median of the others; "
        "its device is throttled or shared",
        "rank 2 on n2 is no longer slow: it takes 0.1 s of each step before it waits for others, 1 times the median of the others",
    ]


def test_the_probe_times_a_product() -> None:
    probe = Probe(torch.device("cpu"))
    assert 1e-6 < probe.seconds() < 1.0


LOCAL, SHARED = ("ddp", "zero-1", "zero-2"), ("fsdp", "zero-3")      # forward passes


class _Slow(Inputs):
    """What is brought for the next step, after the ranks have met, is not the own time of this one."""

    def of(self, micro: MicroBatch) -> Moved:
        time.sleep(1.0)
        return super().of(micro)

    def look_ahead(self, last: bool) -> None:
        time.sleep(1.0)


def _steps(place: RankInfo, folder: str) -> dict[str, list[StepResult]]:
    """Three steps of each engine on the same ranks.  In the third rank 1 sleeps in its forward pass, and while it moves the data.

    Not in the second: there DDP's ranks agree on their buckets anew, once, before the forward pass.
    """
    found = {}
    with joined(load_recipe("quickstart", ["parallel.device=cpu"]).parallel, place) as world:
        for name in LOCAL + SHARED:
            engine_name, _, stage = name.partition("-")
            recipe = load_recipe("quickstart", [
                f"data.train={folder}/train-*.tar", "data.prepare=null",
                f"parallel.engine={engine_name}", f"parallel.zero_stage={stage or 2}",
                "model.width=16", "model.heads=2", "model.mlp=24", "model.depth=2", "global_batch=16", "data.lanes=16"])
            task, meters, results = build_task(recipe.model, recipe.objective), Meters(), []
            engine = open_engine(recipe.parallel, world, Work(8, 1, None))
            model = engine.materialise(task.build, lambda name, shape: torch.full(shape, 0.01))
            engine.adopt(model, build_optimizer(model, recipe.optim))
            forward = engine.forward
            with open_stream(recipe, open_index(recipe.data.train), rank=world.rank, world=2, micro_batch=8) as stream:
                inputs = Inputs(world.device, recipe.data.augment)
                meters.begin()
                for step in range(3):
                    batch = next(stream)
                    if step == 2 and world.rank == 1:
                        engine.forward = lambda *inputs, forward=forward: (time.sleep(1.0), forward(*inputs))[1]
                        inputs = _Slow(world.device, recipe.data.augment)
                    results.append(train_step(engine, batch, task, inputs, 1e-3, False, 0, meters,
                                              Probe(world.device) if step == 0 else None))
                    meters.end_step(16)
            found[name] = results
    return found


@pytest.mark.slow       # two ranks that import DeepSpeed
def test_own_times_are_own_in_every_engine(tmp_path: Path) -> None:
    """Rank 0 waits for rank 1 somewhere in each of them; that is not its own time."""
    pack_digits(tmp_path)
    zero, one = run_ranks(2, _steps, str(tmp_path))
    for name in LOCAL + SHARED:
        assert [(result.own_s, result.probe_s) for result in zero[name]] == [(result.own_s, result.probe_s) for result in one[name]], name
        first, _, last = zero[name]
        assert all(0 < seconds < 1 for seconds in first.probe_s), name
        assert len(first.probe_s) == 2, name
        assert last.probe_s == (), name
        assert last.own_s[0] < 1.0 <= last.own_s[1], name
        assert (last.own_s[1] >= 2.0) == (name in LOCAL), name
