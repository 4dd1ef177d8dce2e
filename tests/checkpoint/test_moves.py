"""A training state moves between engines, stages and numbers of ranks, and training goes on as if it had never stopped."""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.store import STATE, Facts, Writer, checkpoints_in, damage_in, read_into, read_whole, shapes_in
from vitscale.models import build_model, initial_value
from vitscale.objectives import build_objective
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.place import Place
from vitscale.parallel.world import joined
from vitscale.recipe import Checkpoint, Model, Objective, Optim, Parallel

# 5 tokens, 7 classes: sizes that neither 2 nor 3 ranks divide
MODEL = Model(width=12, depth=2, heads=2, mlp=20, patch=4, image=8, classes=7, layer_scale=0.1)
OPTIM = Optim(lr=3e-3, weight_decay=0.1)
BATCH = 12
pytestmark = pytest.mark.slow       # real ranks of every engine


def go(place: Place, parallel: Parallel, first: int, last: int, source: str | None, target: str | None) -> list[float]:
    """Steps [first, last), from the checkpoint `source` (None: the first weights), leaving one in the folder `target`; their losses."""
    with joined(parallel, place) as world:
        share = BATCH // world.size
        engine = open_engine(parallel, world, Work(share, 1, 0.5))
        with torch.device("meta"):
            skeleton = build_model(MODEL)
        model = engine.materialise(lambda: build_model(MODEL), lambda name, shape: initial_value(skeleton, name, shape, 0))
        engine.adopt(model, build_optimizer(model, OPTIM))
        if source is not None:
            state = Path(source) / STATE
            engine.restore(shapes_in(state), lambda targets: read_into(state, targets))
        objective, losses = build_objective(Objective(), MODEL.classes), []
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            images, labels = torch.randn(BATCH, 3, 8, 8, generator=generator), torch.randint(7, (BATCH,), generator=generator)
            mine = slice(share * world.rank, share * (world.rank + 1))
            with engine.micro_step(last=True):
                loss = objective(engine.forward(images[mine], None), labels[mine]).sum()
                engine.backward(loss * (world.size / BATCH))
            engine.step()
            losses.append(float(world.sum_(loss.detach())) / BATCH)
        if target is not None:
            lease = Lease.take(Path(target)) if world.is_first else None
            world.barrier()
            writer = Writer(Path(target) / "checkpoints", rank=world.rank, lease=lease, attempt=1, settings=Checkpoint())
            writer.save(engine.tensors(), Facts(last, {}, {}, parallel.engine, world.size))
            writer.close()
            if lease is not None:
                lease.release()
        return losses


def on(engine: str, stage: int = 2, precision: str = "fp32") -> Parallel:
    return Parallel(engine=engine, zero_stage=stage, precision=precision, device="cpu")


@pytest.fixture(scope="module")
def unbroken() -> list[float]:
    return go(Place(), on("ddp"), 0, 10, None, None)


MOVES = [
    (on("ddp"), 2, [(on("ddp"), 1), (on("fsdp"), 3), (on("zero", 3), 3)]),
    (on("fsdp"), 2, [(on("fsdp"), 1), (on("fsdp"), 3), (on("ddp"), 2), (on("zero", 2), 2)]),
    (on("zero", 1), 2, [(on("zero", 1), 3)]),
    (on("zero", 2), 3, [(on("zero", 2), 2), (on("zero", 3), 1)]),
    (on("zero", 3), 2, [(on("zero", 3), 3), (on("fsdp"), 2), (on("ddp"), 1)]),
]


def name_of(value: object) -> str | None:
    return f"{value.engine}{value.zero_stage}" if isinstance(value, Parallel) else None


@pytest.mark.parametrize(("origin", "size", "targets"), MOVES, ids=name_of)
def test_a_state_moves(tmp_path: Path, unbroken: list[float], origin: Parallel, size: int, targets: list[tuple[Parallel, int]]) -> None:
    before = run_ranks(size, go, origin, 0, 5, None, str(tmp_path))[0]
    assert before == pytest.approx(unbroken[:5], abs=1e-5)
    (checkpoint,) = checkpoints_in(tmp_path / "checkpoints")
    assert checkpoint.name == "step-00000005"
    assert damage_in(checkpoint) is None
    for parallel, ranks in targets:
        after = run_ranks(ranks, go, parallel, 5, 10, str(checkpoint), None)[0]
        assert after == pytest.approx(unbroken[5:], abs=1e-5), (parallel.engine, parallel.zero_stage, ranks)
    weights = read_whole(checkpoint / STATE, "model.")
    assert weights["blocks.1.mlp.fc1.weight"].shape == (20, 12)
    assert weights["blocks.1.mlp.fc1.weight"].dtype == torch.float32


def test_bf16_masters_keep_their_fp32_bits(tmp_path: Path) -> None:
    """ZeRO in bf16 holds fp32 masters; a move must not round them to the bf16 weights that compute."""
    run_ranks(2, go, on("zero", 2, "bf16"), 0, 3, None, str(tmp_path / "a"))
    (checkpoint,) = checkpoints_in(tmp_path / "a" / "checkpoints")
    saved = read_whole(checkpoint / STATE, "model.")
    assert any((value != value.bfloat16().float()).any() for value in saved.values())
    run_ranks(3, go, on("zero", 3, "bf16"), 3, 3, str(checkpoint), str(tmp_path / "b"))
    (again,) = checkpoints_in(tmp_path / "b" / "checkpoints")
    kept = read_whole(again / STATE, "model.")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_a_restored_bf16_run_computes_with_the_restored_weights(tmp_path: Path) -> None:
    """The first loss after a resume, before any update, is that of the saved weights."""
    for stage in (2, 3):
        origin = on("zero", stage, "bf16")
        folder = tmp_path / str(stage)
        run_ranks(2, go, origin, 0, 5, None, str(folder))
        (checkpoint,) = checkpoints_in(folder / "checkpoints")
        after = run_ranks(2, go, origin, 5, 6, str(checkpoint), None)[0]
        expected = run_ranks(2, go, origin, 0, 6, None, None)[0][5:]
        assert after == pytest.approx(expected, abs=1e-3)


