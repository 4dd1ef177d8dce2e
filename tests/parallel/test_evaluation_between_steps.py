"""An evaluation between two steps changes nothing that a checkpoint would hold."""

from functools import partial

import pytest
import torch
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from vitscale.models import build_model, initial_value
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Engine, Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import Optim, Parallel, Vit

MODEL = Vit(width=16, depth=2, heads=2, mlp=24, patch=4, image=8, classes=6)


def step(engine: Engine, rank: int) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    with engine.micro_step(last=True):
        engine.backward(torch.nn.functional.cross_entropy(engine.forward(images, None), torch.tensor([0, 1, 2, 3])))
    engine.step()


def state_of(engine: Engine) -> dict[str, tuple[bool, list[float]]]:
    """Name -> whether it is sharded, and its full value."""
    found = {}
    for name, tensor in engine.tensors().items():
        sharded = isinstance(tensor, DTensor)
        found[name] = (sharded, (tensor.full_tensor() if sharded else tensor).flatten().tolist())
    return found


ENGINES = [Parallel(engine="ddp", device="cpu"), Parallel(engine="fsdp", device="cpu"), Parallel(engine="zero", zero_stage=2, device="cpu"),
           Parallel(engine="zero", zero_stage=3, device="cpu"), Parallel(engine="accelerate", device="cpu"),
           Parallel(engine="fsdp", gather="once", device="cpu"), Parallel(engine="fsdp", replicate=2, gather="once", device="cpu")]


def before_and_after(place: RankInfo) -> list[tuple[dict, dict]]:
    """For each engine the state after a step, and after an evaluation that follows."""
    found = []
    with joined(ENGINES[0], place) as world:
        for parallel in ENGINES:
            engine = open_engine(parallel, world, Work(4, 1, 1.0))
            with torch.device("meta"):
                skeleton = build_model(MODEL)
            model = engine.materialise(lambda: build_model(MODEL), partial(initial_value, skeleton, seed=1))
            engine.adopt(model, build_optimizer(model, Optim(lr=1e-2)))
            engine.model.train()
            step(engine, world.rank)
            before = state_of(engine)
            engine.model.eval()
            with torch.no_grad():
                engine.forward(torch.zeros(4, 3, 8, 8), None)
            found.append((before, state_of(engine)))
    return found


@pytest.mark.slow       # ranks of their own
def test_an_evaluation_changes_nothing_that_a_checkpoint_holds() -> None:
    for parallel, (before, after) in zip(ENGINES, run_ranks(2, before_and_after)[0], strict=True):
        assert any(name.startswith("optim.head.weight.") for name in before), parallel
        assert after.keys() == before.keys(), parallel
        assert after == before, parallel
