"""Every engine on two real ranks equals one process: uneven shares, masked tails and accumulation included."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from vitscale.models import build_model, initial_value
from vitscale.objectives import Seen, build_task
from vitscale.optim.build import build_optimizer
from vitscale.parallel import engines
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.fsdp import SHARED
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Classification, Optim, Parallel, Vit, axes, schema
from vitscale.recipe.fields import code_at

MODEL = Vit(width=16, depth=3, heads=2, mlp=24, patch=4, image=8, classes=7)       # 2 ranks divide 16 and 24, not 7 and the 5 tokens
OPTIM = Optim(lr=3e-3, weight_decay=0.1)
LONG, SHORT = 10, 6         # steps
POISONED = 7


def test_what_a_recipe_may_name_is_there() -> None:
    """Tables of one thing that lie in two rooms, one of which knows no torch."""
    assert set(engines.ENGINES) == set(schema.ENGINES)
    assert set(SHARED) == set(axes.SAME_SAMPLES) == set(axes.REFUSALS)
    assert set(axes.Axes().sizes) - {"shard"} <= set(Parallel.model_fields)
    for section in schema.SECTIONS.values():
        for place in filter(None, (section.code.build, section.code.anatomy, section.code.problems)):
            assert callable(code_at(place))


@dataclass(frozen=True)
class Case:
    engine: str
    stage: int = 2
    recompute: str = "none"
    precision: str = "fp32"
    micro_batch: int = 3
    global_batch: int = 10      # 2 ranks: 5 each, in micro-batches of 3: two micro-steps, the second one short by one
    clip_norm: float | None = 0.5
    poisoned: bool = False              # in step POISONED one rank's loss is not a number
    sizes: tuple[int, ...] = ()         # of the global batches, when they differ (a masked tail)
    optim: Optim = OPTIM
    steps: int = LONG

    @property
    def parallel(self) -> Parallel:
        return Parallel(engine=self.engine, zero_stage=self.stage, recompute=self.recompute, precision=self.precision, device="cpu")


def batch_of(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(7, (size,), generator=generator)


def share_of(size: int, world: World) -> slice:
    """Rank 0 takes two thirds: shares need not be equal."""
    if world.size == 1:
        return slice(0, size)
    cut = -(-size * 2 // 3)
    return slice(0, cut) if world.rank == 0 else slice(cut, size)


def train_all(place: RankInfo, cases: list[Case]) -> list[dict]:
    """Each case in turn on the same ranks: processes are dearer than steps."""
    with joined(cases[0].parallel, place) as world:
        return [train(world, case) for case in cases]


def train(world: World, case: Case) -> dict:
    """The steps of a case; returns what this rank saw."""
    largest = -(-case.global_batch * 2 // 3) if world.size == 2 else case.global_batch
    work = Work(case.micro_batch, -(-largest // case.micro_batch), case.clip_norm)
    engine = open_engine(case.parallel, world, work)
    with torch.device("meta"):
        skeleton = build_model(MODEL)
    model = engine.materialise(lambda: build_model(MODEL), lambda name, shape: head_too(skeleton, name, shape))
    engine.adopt(model, build_optimizer(model, case.optim))
    task = build_task(MODEL, Classification())
    losses, norms, applied = [], [], []
    for step in range(case.steps):
        size = case.sizes[step] if case.sizes else case.global_batch
        images, labels = (part[share_of(size, world)] for part in batch_of(step, size))
        total = torch.zeros(())
        for number in range(work.micro_steps):
            part = slice(number * work.micro_batch, (number + 1) * work.micro_batch)
            x, y = images[part], labels[part]
            weight = torch.ones(work.micro_batch)
            weight[len(y):] = 0
            x = torch.cat([x, torch.zeros(work.micro_batch - len(y), 3, 8, 8)])
            y = torch.cat([y, torch.zeros(work.micro_batch - len(y), dtype=torch.int64)])
            with engine.micro_step(last=number == work.micro_steps - 1):
                loss = (task.losses(engine.forward(x, None), Seen(x, y)) * weight).sum()
                if case.poisoned and step == POISONED and world.rank == world.size - 1 and number == 0:
                    loss = loss * float("nan")
                engine.backward(loss * (world.size / size))
            total += loss.detach()
        engine.set_lr(case.optim.lr * (1 - step / LONG))
        update = engine.step()
        losses.append(float(world.sum_(total)) / size)
        norms.append(update.grad_norm)
        applied.append(update.applied)
    state = {name: whole(tensor) for name, tensor in engine.tensors().items()}
    return {"losses": losses, "norms": norms, "applied": applied, "state": state, "sharded": sharding_of(engine)}


def head_too(skeleton: torch.nn.Module, name: str, shape: torch.Size) -> torch.Tensor:
    """The first value, but a classifier that is not zero, so that the first step already tests every gradient."""
    return initial_value(skeleton, "blocks.0.mlp.fc1.weight" if name == "head.weight" else name, shape, seed=1)


def whole(tensor: torch.Tensor) -> list[float]:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.flatten().tolist()


def sharding_of(engine: object) -> dict[str, float]:
    """Elements that this rank holds, over all elements, of parameters, optimizer state (and, for ZeRO, gradients' partition)."""
    parameters = dict(engine.model.named_parameters())
    if engine.parallel.engine == "zero":
        inner = engine._engine.optimizer
        total = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in parameters.values())
        held = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in parameters.values())
        moments = sum(next(m for key, m in s.items() if key != "step").numel() for s in inner.optimizer.state.values())
        return {"parameters": held / total, "optimizer": moments / total, "stage": engine._engine.zero_optimization_stage(),
                "partitions_gradients": engine._engine.zero_optimization_partition_gradients()}
    total = sum(p.numel() for p in parameters.values())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters.values())
    moments = [next(m for key, m in s.items() if key != "step") for s in engine.optimizer.state.values()]
    held_moments = sum(m.to_local().numel() if isinstance(m, DTensor) else m.numel() for m in moments)
    return {"parameters": held / total, "optimizer": held_moments / total}


def largest_gap(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """Without the bias of the keys: softmax does not change when all keys move, so its gradient is rounding noise, which Adam blows up."""
    assert a.keys() == b.keys()
    return max(abs(x - y) for name in a if "qkv.bias" not in name for x, y in zip(a[name], b[name], strict=True))


# batches of other sizes, down to fewer samples than ranks, with the same number of micro-steps everywhere
SIZES = (10, 10, 4, 10, 1, 10, 10, 3, 10, 2)
ENGINES = [Case(*one, poisoned=True, sizes=SIZES) for one in (
    ("ddp",), ("fsdp",), ("fsdp", 2, "blocks"), ("fsdp", 2, "selective"), ("zero", 1), ("zero", 2), ("zero", 3), ("accelerate",))]
BF16 = tuple(replace(case, precision="bf16", steps=SHORT) for case in ENGINES if case.engine != "accelerate" and case.recompute == "none")
OPTIMS = {name: Optim(name=name, lr=lr, betas=(0.9, 0.99), weight_decay=0.1) for name, lr in (("lamb", 0.02), ("lion", 1e-3), ("sgd", 0.1))}
OTHERS = tuple(
    replace(case, optim=optim, steps=SHORT) for name, optim in OPTIMS.items()
    for case in (Case("ddp"), Case("fsdp"), Case("zero", 2), Case("zero", 3))
    if (name, case.engine) != ("lamb", "zero"))
APPLIED = [step != POISONED for step in range(LONG)]


def name_of(case: Case) -> str:
    return f"{case.engine}{case.stage if case.engine == 'zero' else ''}-{case.recompute}"


@pytest.fixture(scope="module")
def one() -> dict[Case, dict]:
    """One process with the same arithmetic."""
    cases = [ENGINES[0], *(Case("ddp", optim=optim, steps=SHORT) for optim in OPTIMS.values())]
    return dict(zip(cases, train_all(RankInfo(), cases), strict=True))


@pytest.fixture(scope="module")
def two() -> dict[Case, list[dict]]:
    """Every case on two ranks."""
    cases = [*ENGINES, *BF16, *OTHERS]
    found: dict[Case, list[dict]] = {}
    for engine in ("ddp", "fsdp", "zero", "accelerate"):
        mine = [case for case in cases if case.engine == engine]
        ranks = run_ranks(2, train_all, mine, timeout_s=300)
        found |= {case: [results[number] for results in ranks] for number, case in enumerate(mine)}
    return found


pytestmark = pytest.mark.slow       # all cases together: four pairs of processes, each a few seconds to start


@pytest.mark.parametrize("case", ENGINES, ids=name_of)
def test_two_ranks_equal_one(case: Case, one: dict[Case, dict], two: dict[Case, list[dict]]) -> None:
    """With masked tails, and a gradient that is not finite, which is skipped on all ranks."""
    first, second = two[case]
    alone = one[ENGINES[0]]
    assert first["losses"] == pytest.approx(second["losses"], abs=0, nan_ok=True)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5, nan_ok=True)
    assert [math.isfinite(loss) for loss in first["losses"]] == first["applied"] == second["applied"] == alone["applied"] == APPLIED
    finite = [(found, wanted) for found, wanted, at in zip(first["norms"], alone["norms"], APPLIED, strict=True) if at]     # ZeRO says inf
    assert [found for found, _ in finite] == pytest.approx([wanted for _, wanted in finite], rel=1e-4)
    assert largest_gap(first["state"], alone["state"]) < 1e-4
    assert alone["losses"][-1] != pytest.approx(alone["losses"][0], abs=1e-3)      # it did learn, so the agreement means something
    if case.engine == "fsdp":
        assert all(0.45 < rank["sharded"][part] < 0.6 for rank in (first, second) for part in ("parameters", "optimizer"))
    if case.engine == "zero":
        assert first["sharded"]["stage"] == case.stage
        assert bool(first["sharded"]["partitions_gradients"]) == (case.stage >= 2)
        assert 0.45 < first["sharded"]["optimizer"] < 0.6
        assert (first["sharded"]["parameters"] < 0.6) == (case.stage == 3)
    if case.engine == "ddp":
        assert first["sharded"]["parameters"] == 1


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.optim.name}-{name_of(case)}")
def test_other_optimizers(case: Case, one: dict[Case, dict], two: dict[Case, list[dict]]) -> None:
    """LAMB's lengths are those of whole tensors.  Lion's signs flip where a gradient is nothing but rounding, so its weights may differ."""
    alone, (found, _) = one[Case("ddp", optim=case.optim, steps=SHORT)], two[case]
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4 if case.optim.name == "lion" else 1e-5)
    assert alone["losses"][-1] != pytest.approx(alone["losses"][0], abs=1e-3)
    if case.optim.name != "lion":
        assert largest_gap(found["state"], alone["state"]) < 1e-4


@pytest.mark.parametrize("case", BF16, ids=name_of)
def test_bf16_stays_close_to_fp32(case: Case, one: dict[Case, dict], two: dict[Case, list[dict]]) -> None:
    found, _ = two[case]
    exact = one[ENGINES[0]]["losses"][:SHORT]
    assert found["losses"] == pytest.approx(exact, abs=2e-2)
    assert found["losses"] != exact
