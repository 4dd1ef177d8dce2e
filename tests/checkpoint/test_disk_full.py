"""A disk that fills up, for real (a small file system in memory), under one rank and under two: nothing half-written stays."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from disks import small_disk
from ranks import run_ranks

from vitscale.checkpoint.room import Unwritten, checkpoint_bytes, free_bytes
from vitscale.checkpoint.store import CheckpointWriter, RunFacts, checkpoints_in, damage_in, read_whole
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import Checkpoint, Parallel

MB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with small_disk(tmp_path / "small", megabytes=8) as folder:
        yield folder


def fill(folder: Path, leave: int = 0) -> Path:
    """Write a file of real blocks until `leave` bytes are free."""
    ballast = folder / "ballast"
    with open(ballast, "ab") as file:
        while (room := free_bytes(folder) - leave) > 0:
            file.write(bytes(min(room, 65536)))
            file.flush()
    return ballast


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    """About 2 MB on disk."""
    return {"model.weight": torch.full((250, 500), value), "optim.weight.exp_avg": torch.full((250, 500), value / 2),
            "optim.weight.exp_avg_sq": torch.full((250, 500), value / 4)}


def facts(step: int, best: int | None = None) -> RunFacts:
    return RunFacts(step, {"position": step}, {}, "ddp", 1, {"step": best, "metric": "eval_top1", "value": 0.5} if best else None)


class Filling(CheckpointWriter):
    """While `filling` is set, another user takes the last bytes at that moment of every checkpoint."""

    filling: str | None = None

    def _make_room(self, needed: int, facts: RunFacts) -> None:
        super()._make_room(needed, facts)
        if self.filling == "state":
            fill(self.folder, leave=MB // 2)        # begun, but not ended

    def _publish(self, draft: Path, facts: RunFacts, replace: bool) -> None:
        if self.filling == "weights":
            fill(self.folder)
        super()._publish(draft, facts, replace)


def writer(folder: Path, rank: int = 0, **settings: object) -> Filling:
    return Filling(folder, rank=rank, lease=None, attempt=1, settings=Checkpoint(**settings))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_size_is_known_before(tmp_path: Path) -> None:
    for many in (1, 60):
        tensors = {f"{kind}.blocks.{at}.attention.weight": torch.ones(many, 10) for kind in ("model", "ema", "optim") for at in range(many)}
        folder = tmp_path / str(many)
        here = writer(folder, background=False)
        here.save(tensors, facts(1))
        here.close()
        taken = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        assert taken <= checkpoint_bytes(tensors, ranks=1) <= 1.3 * taken + 200_000


def test_without_room_nothing_is_begun(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    ballast = fill(small, leave=MB)
    here = writer(small)
    here.save(state(), facts(1))
    with pytest.raises(Unwritten, match=r"small: a checkpoint could not be written: it takes 2\.\d+ MB, and only 1\.\d+ MB are free"):
        here.wait()
    assert names(small) == ["ballast"]
    ballast.unlink()
    here.save(state(), facts(2))
    here.close()
    assert names(small) == ["step-00000002"]
    assert [record.levelname for record in caplog.records if record.name.startswith("vitscale")] == ["ERROR"]


@pytest.mark.parametrize("moment", ["state", "weights"])
@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_fills_during_a_checkpoint(small: Path, moment: str, background: bool) -> None:
    failed, published = [], []
    here = writer(small, background=background)
    here.on_failed, here.on_published = lambda: failed.append(1), lambda step, seconds: published.append(seconds)
    here.save(state(), facts(1))
    here.wait()
    here.filling = moment
    here.save(state(), facts(2))
    here.settle()                                   # borne
    assert names(small) == ["ballast", "step-00000001"]
    here.filling = None
    (small / "ballast").unlink()
    here.save(state(3.0), facts(3))
    here.wait()                                     # there is nothing more to complain of
    here.close()
    assert (len(failed), len(published)) == (1, 2)
    assert [path.name for path in checkpoints_in(small)] == ["step-00000001", "step-00000003"]
    assert damage_in(small / "step-00000003") is None
    assert torch.equal(read_whole(small / "step-00000003" / "state", "model.")["weight"], state(3.0)["model.weight"])


def test_the_third_failure_in_a_row_is_raised(small: Path) -> None:
    here = writer(small)
    ballast = fill(small)
    for step in (1, 2):
        here.save(state(), facts(step))
        here.settle()
    ballast.unlink()
    here.save(state(), facts(3))                    # a success begins the count anew
    here.settle()
    fill(small)
    for step in (4, 5, 6):
        here.save(state(), facts(step))
    with pytest.raises(Unwritten, match=r"3 checkpoints in a row could not be written; the last: .*only 0 B are free"):
        here.save(state(), facts(7))
    here.close()
    assert [path.name for path in checkpoints_in(small)] == ["step-00000003"]


def test_what_the_next_one_displaces_goes_before_it_but_never_the_newest_nor_the_best(
        small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Room for three: with keep 3 a fourth fits only where the first was."""
    here = writer(small, keep=3, background=False)
    for step in (1, 2, 3):
        here.save(state(), facts(step))
    fill(small, leave=MB)
    here.save(state(), facts(4))
    assert "checkpoint 1 goes before the next is written" in caplog.text
    assert names(small) == ["ballast", "step-00000002", "step-00000003", "step-00000004"]
    here.save(state(), facts(5, best=2))
    assert names(small) == ["ballast", "step-00000002", "step-00000003", "step-00000004"]       # 2 is the best: nothing may go
    with pytest.raises(Unwritten):
        here.close()
    single = writer(small, keep=1, background=False)
    single.save(state(), facts(6))                  # room where 2 and 3 were
    assert names(small) == ["ballast", "step-00000006"]
    fill(small)
    single.save(state(), facts(7))
    assert names(small) == ["ballast", "step-00000006"]
    with pytest.raises(Unwritten):
        single.close()


def _two(place: RankInfo, folder: Path) -> list[object]:
    """Rank 1 writes its own shard to a disk that fills up; both hear of it; then there is room again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    logging.disable(logging.ERROR)
    with joined(Parallel(), place):
        mesh = init_device_mesh("cpu", (place.size,))
        def sharded(value: float) -> dict[str, torch.Tensor]:
            return {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in state(value).items()}

        here = writer(folder, place.rank)
        told: list[object] = []
        for step, moment in enumerate(("state", "weights", None), 1):
            here.filling = moment
            here.save(sharded(step), facts(step))
            try:
                here.wait()
                told.append(None)
            except Unwritten as error:
                told.append(str(error))
            if place.rank == 0:
                told.append(names(folder))
                (folder / "ballast").unlink(missing_ok=True)
            torch.distributed.barrier()
        here.close()
        return told


@pytest.mark.slow       # two processes, and two full disks
def test_two_ranks_hear_of_it_alike(small: Path) -> None:
    first, second = run_ranks(2, _two, small)
    assert first[1::2] == [["ballast"], ["ballast"], ["step-00000003"]]
    assert first[::2] == second
    assert "rank 1: " in second[0]
    assert "; 0 B are free there" in second[0]
    assert "No space left on device" in second[1]
    assert second[2] is None
    whole = read_whole(small / "step-00000003" / "state", "model.")
    assert torch.equal(whole["weight"], state(3.0)["model.weight"])


def _one_fails(place: RankInfo, folder: Path) -> str:
    """Only rank 1's part cannot be written: to it, a folder is in the way of the file."""
    logging.disable(logging.ERROR)
    with joined(Parallel(), place):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (place.size,))
        here = InTheWay(folder, rank=place.rank, lease=None, attempt=1, settings=Checkpoint())
        here.save({name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in state().items()}, facts(1))
        try:
            here.wait()
        except Unwritten as error:
            return str(error)
        finally:
            here.close()
    return "written"


class InTheWay(CheckpointWriter):
    def _make_room(self, needed: int, facts: RunFacts) -> None:
        super()._make_room(needed, facts)
        (self.folder / f".step-{facts.step:08d}.1" / "state" / "__1_0.distcp").mkdir(parents=True)


@pytest.mark.slow       # two processes
def test_a_failure_of_one_rank_is_told_by_all(tmp_path: Path) -> None:
    told = run_ranks(2, _one_fails, tmp_path)
    assert told[0] == told[1]
    assert "rank 1: " in told[0]
    assert "Is a directory" in told[0]
    assert names(tmp_path) == []
