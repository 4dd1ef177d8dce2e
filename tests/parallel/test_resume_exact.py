"""A run that resumes from a checkpoint on as many ranks, with the same engine, is the run that never stopped, bit for bit: an update is a
sum over ranks, and its order is that of before."""

from pathlib import Path

import combinations as grid
import pytest
import torch
from combinations import Combination, Trained
from ranks import run_ranks

from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.store import STATE, CheckpointWriter, RunFacts, checkpoints_in, read_into, shapes_in
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Checkpoint, Parallel

pytestmark = pytest.mark.slow       # two and three ranks

SOME = {"backbone": "vit-modern", "drop_path": "sample", "clip_norm": 0.3}
RUNS: dict[str, Combination] = {
    "ddp": {"engine": "ddp", "ema": True, "micro_steps": 2},
    "ddp-bf16-dropout": {"engine": "ddp", "precision": "bf16", "optimizer": "lion", "dropout": 0.1},
    "fsdp": {"engine": "fsdp", "ema": True, "recompute": "selective"},
    "fsdp-bf16": {"engine": "fsdp", "precision": "bf16", "micro_steps": 2, "gather": "once"},
    "zero1": {"engine": "zero1", "precision": "bf16"},
    "zero2": {"engine": "zero2", "micro_steps": 2},
    "zero3": {"engine": "zero3", "recompute": "selective"},
    "zero3-bf16": {"engine": "zero3", "precision": "bf16", "optimizer": "sgd"},
    "accelerate": {"engine": "accelerate", "optimizer": "lamb"},
}


def save(world: World, engine: Engine, ema: WeightAverage | None, step: int, folder: Path) -> None:
    lease = Lease.take(folder) if world.is_first else None
    world.barrier()
    writer = CheckpointWriter(folder / "checkpoints", rank=world.rank, lease=lease, attempt=1, settings=Checkpoint())
    tensors = engine.tensors() | ({f"ema.{name}": value for name, value in ema.tensors().items()} if ema else {})
    writer.save(tensors, RunFacts(step, {}, {}, engine.parallel.engine, world.size))
    writer.close()
    if lease is not None:
        lease.release()
    world.barrier()


def load(engine: Engine, ema: WeightAverage | None, folder: Path) -> None:
    (checkpoint,) = checkpoints_in(folder / "checkpoints")
    state = checkpoint / STATE
    engine.restore(shapes_in(state), lambda targets: read_into(state, targets))
    if ema is not None:
        read_into(state, {f"ema.{name}": value for name, value in ema.tensors().items()})


def walk(place: RankInfo, folder: str, steps: int, stops: tuple[int, ...]) -> dict[str, list[str]]:
    """What differs, by run.  `stops`: a checkpoint after so many steps, from which another attempt goes on."""
    found: dict[str, list[str]] = {}
    teacher = str(Path(folder) / "teacher")
    with joined(Parallel(engine="fsdp", device="cpu"), place) as world:
        for name, changes in RUNS.items():
            one = grid.PLAIN | SOME | {"ranks": world.size} | changes
            places = {stop: Path(folder) / f"{name}-{world.size}-{stop}" for stop in stops}
            if world.is_first:
                for path in places.values():
                    path.mkdir()
            world.barrier()
            whole = grid.train(world, one, teacher, steps=range(steps), after_step=lambda engine, ema, step, places=places: (
                save(world, engine, ema, step, places[step]) if step in places else None))
            found[name] = []
            for stop in stops:
                resumed = grid.train(world, one, teacher, steps=range(stop, steps),
                                     before=lambda engine, ema, stop=stop, places=places: load(engine, ema, places[stop]))
                found[name] += [f"from {stop}: {text}" for text in differences(whole, resumed, stop)]
    return found


def differences(whole: Trained, resumed: Trained, stop: int) -> list[str]:
    found = [f"loss of step {stop + number + 1}: {theirs!r}, was {ours!r}"
             for number, (ours, theirs) in enumerate(zip(whole.losses[stop:], resumed.losses, strict=True)) if ours != theirs]
    for number, (ours, theirs) in enumerate(zip(whole.gradients[stop:], resumed.gradients, strict=True)):
        found += [f"gradient of {name} in step {stop + number + 1}" for name in ours if not torch.equal(ours[name], theirs[name])]
    assert whole.state.keys() == resumed.state.keys()
    return found + [f"{name} at the end" for name, value in whole.state.items() if not torch.equal(value, resumed.state[name])]


def hold(ranks: int, steps: int, stops: tuple[int, ...], folder: Path) -> None:
    (folder / "teacher").mkdir()
    for found in run_ranks(ranks, walk, str(folder), steps, stops, timeout_s=1800):
        wrong = {name: texts[:3] for name, texts in found.items() if texts}
        assert not wrong, "\n".join(f"{name}: {texts}" for name, texts in wrong.items())


def test_on_the_same_world_nothing_differs(tmp_path: Path) -> None:
    hold(2, 5, (2,), tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_nor_over_sixty_steps(ranks: int, tmp_path: Path) -> None:
    hold(ranks, 60, (1, 4), tmp_path)
