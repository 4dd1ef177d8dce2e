"""A training state moves between engines, stages and numbers of ranks, and training goes on as if it had never stopped."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.store import STATE, CheckpointWriter, RunFacts, checkpoints_in, damage_in, read_into, read_whole, shapes_in
from vitscale.checkpoint.weights import read_weights
from vitscale.models import build_model, initial_value
from vitscale.objectives import Seen, build_task
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Checkpoint, Classification, Optim, Parallel, Vit

# 5 tokens, 7 classes: sizes that neither 2 nor 3 ranks divide
MODEL = Vit(width=12, depth=2, heads=2, mlp=20, patch=4, image=8, classes=7, layer_scale=0.1)
OPTIM = Optim(lr=3e-3, weight_decay=0.1)
BATCH = 12
pytestmark = pytest.mark.slow       # real ranks of every engine


@dataclass(frozen=True)
class Leg:
    """Steps [first, last) by one engine, from the checkpoint `source` (None: the first weights), leaving one below `target`."""

    parallel: Parallel
    first: int
    last: int
    source: str | None = None
    target: str | None = None


def go(place: RankInfo, legs: list[Leg]) -> list[list[float]]:
    """Each leg in turn on the same ranks; their losses."""
    with joined(legs[0].parallel, place) as world:
        return [walk(world, leg) for leg in legs]


def walk(world: World, leg: Leg) -> list[float]:
    share = BATCH // world.size
    engine = open_engine(leg.parallel, world, Work(share, 1, 0.5))
    with torch.device("meta"):
        skeleton = build_model(MODEL)
    model = engine.materialise(lambda: build_model(MODEL), lambda name, shape: initial_value(skeleton, name, shape, 0))
    engine.adopt(model, build_optimizer(model, OPTIM))
    if leg.source is not None:
        state = Path(leg.source) / STATE
        engine.restore(shapes_in(state), lambda targets: read_into(state, targets))
    task, losses = build_task(MODEL, Classification()), []
    for step in range(leg.first, leg.last):
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(BATCH, 3, 8, 8, generator=generator), torch.randint(7, (BATCH,), generator=generator)
        mine = slice(share * world.rank, share * (world.rank + 1))
        with engine.micro_step(last=True):
            seen = Seen(images[mine], labels[mine])
            loss = task.losses(engine.forward(seen.images, None), seen).sum()
            engine.backward(loss * (world.size / BATCH))
        engine.step()
        losses.append(float(world.sum_(loss.detach())) / BATCH)
    if leg.target is not None:
        lease = Lease.take(Path(leg.target)) if world.is_first else None
        world.barrier()
        writer = CheckpointWriter(Path(leg.target) / "checkpoints", rank=world.rank, lease=lease, attempt=1, settings=Checkpoint())
        writer.save(engine.tensors(), RunFacts(leg.last, {}, {}, leg.parallel.engine, world.size))
        writer.close()
        if lease is not None:
            lease.release()
    return losses


def on(engine: str, stage: int = 2, precision: str = "fp32") -> Parallel:
    return Parallel(engine=engine, zero_stage=stage, precision=precision, device="cpu")


ORIGINS = [("ddp", on("ddp"), 2), ("fsdp", on("fsdp"), 2), ("zero1", on("zero", 1), 2), ("zero2", on("zero", 2), 3),
           ("zero3", on("zero", 3), 2)]
MOVES = [       # origin, engine and number of ranks that go on
    ("ddp", on("ddp"), 1), ("ddp", on("fsdp"), 3), ("ddp", on("zero", 3), 3),
    ("fsdp", on("fsdp"), 1), ("fsdp", on("fsdp"), 3), ("fsdp", on("ddp"), 2), ("fsdp", on("zero", 2), 2),
    ("zero1", on("zero", 1), 3), ("zero2", on("zero", 2), 2), ("zero2", on("zero", 3), 1),
    ("zero3", on("zero", 3), 3), ("zero3", on("fsdp"), 2), ("zero3", on("ddp"), 1),
]


@pytest.fixture(scope="module")
def unbroken() -> list[float]:
    return go(RankInfo(), [Leg(on("ddp"), 0, 10)])[0]


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory, unbroken: list[float]) -> dict[str, Path]:
    """name -> the checkpoint that five steps of that engine left."""
    root = tmp_path_factory.mktemp("origins")
    for size in (2, 3):
        legs = [Leg(parallel, 0, 5, None, str(root / name)) for name, parallel, ranks in ORIGINS if ranks == size]
        for losses in run_ranks(size, go, legs)[0]:
            assert losses == pytest.approx(unbroken[:5], abs=1e-5)
    return {name: checkpoints_in(root / name / "checkpoints")[0] for name, _, _ in ORIGINS}


@pytest.fixture(scope="module")
def continued(origins: dict[str, Path]) -> dict[tuple[str, str, int, int], list[float]]:
    """Steps 5 to 10 of every move."""
    found = {}
    for size in (1, 2, 3):
        moves = [(name, parallel) for name, parallel, ranks in MOVES if ranks == size]
        losses = run_ranks(size, go, [Leg(parallel, 5, 10, str(origins[name])) for name, parallel in moves])[0]
        found |= {(name, p.engine, p.zero_stage, size): one for (name, p), one in zip(moves, losses, strict=True)}
    return found


@pytest.mark.parametrize(("origin", "parallel", "ranks"), MOVES, ids=lambda value: name_of(value))
def test_a_state_moves(continued: dict, unbroken: list[float], origin: str, parallel: Parallel, ranks: int) -> None:
    assert continued[origin, parallel.engine, parallel.zero_stage, ranks] == pytest.approx(unbroken[5:], abs=1e-5)


def name_of(value: object) -> str:
    if isinstance(value, Parallel):
        return value.engine + (str(value.zero_stage) if value.engine == "zero" else "")
    return str(value)


@pytest.mark.parametrize("origin", [name for name, _, _ in ORIGINS])
def test_what_is_published(origins: dict[str, Path], origin: str) -> None:
    checkpoint = origins[origin]
    assert checkpoint.name == "step-00000005"
    assert damage_in(checkpoint) is None
    weights = read_whole(checkpoint / STATE, "model.")
    assert weights["blocks.1.mlp.fc1.weight"].shape == (20, 12)
    assert all(value.dtype == torch.float32 for value in weights.values())
    published = read_weights(checkpoint, {name: tuple(value.shape) for name, value in weights.items()})
    assert all(torch.equal(weights[name], published[name]) for name in weights)


def test_bf16_under_zero(tmp_path: Path) -> None:
    """ZeRO in bf16 holds fp32 masters: a move must not round them to the bf16 weights that compute, and these must follow them."""
    a, b = on("zero", 2, "bf16"), on("zero", 3, "bf16")
    before = run_ranks(2, go, [Leg(a, 0, 3, None, str(tmp_path / "a")), Leg(a, 0, 4)])[0]
    (checkpoint,) = checkpoints_in(tmp_path / "a" / "checkpoints")
    saved = read_whole(checkpoint / STATE, "model.")
    assert any((value != value.bfloat16().float()).any() for value in saved.values())
    legs = [Leg(b, 3, 3, str(checkpoint), str(tmp_path / "b")), Leg(a, 3, 4, str(checkpoint)), Leg(b, 3, 4, str(checkpoint)),
            Leg(on("zero", 1, "bf16"), 3, 4, str(checkpoint))]
    after = run_ranks(3, go, legs)[0]
    (again,) = checkpoints_in(tmp_path / "b" / "checkpoints")
    kept = read_whole(again / STATE, "model.")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    # the first loss after a move, before any update, is that of the saved weights
    for losses in after[1:]:
        assert losses == pytest.approx(before[1][3:], abs=2e-3)
