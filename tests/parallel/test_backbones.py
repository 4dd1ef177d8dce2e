"""Every backbone with every engine: two steps on two ranks equal one process.  One engine for each backbone in turn; the whole grid is
left to `make test-all`."""

import pytest
from backbones import BACKBONES, Case, losses_of
from ranks import run_ranks

from vitscale.parallel.place import Place
from vitscale.parallel.world import joined
from vitscale.recipe import Parallel

pytestmark = pytest.mark.slow       # pairs of processes, each a few seconds to start

ENGINES = {
    "fsdp": {"engine": "fsdp"}, "zero3": {"engine": "zero", "zero_stage": 3}, "ddp": {"engine": "ddp"},
    "fsdp-blocks": {"engine": "fsdp", "recompute": "blocks"}, "zero2": {"engine": "zero", "zero_stage": 2},
    "fsdp-selective": {"engine": "fsdp", "recompute": "selective"}, "zero1": {"engine": "zero", "zero_stage": 1},
    "accelerate": {"engine": "accelerate"},
}


def case(backbone: str, engine: str) -> Case:
    return Case(backbone, Parallel(device="cpu", **ENGINES[engine]), steps=2)


def run_all(place: Place, cases: list[Case]) -> list[list[float]]:
    """On the same ranks: processes are dearer than steps."""
    with joined(cases[0].parallel, place) as world:
        return [losses_of(world, one) for one in cases]


def compare(pairs: list[tuple[str, str]]) -> None:
    for engine in sorted({engine for _, engine in pairs}):
        backbones = [backbone for backbone, wanted in pairs if wanted == engine]
        together = run_ranks(2, run_all, [case(backbone, engine) for backbone in backbones], timeout_s=300)
        alone = run_all(Place(), [case(backbone, "ddp") for backbone in backbones])
        for backbone, one, two, other in zip(backbones, alone, *together, strict=True):
            assert two == other, (backbone, engine)
            assert two == pytest.approx(one, abs=1e-5), (backbone, engine)
            assert one[1] != pytest.approx(one[0], abs=1e-3), backbone


def test_one_engine_for_each_backbone() -> None:
    engines = ["fsdp", "zero3", "fsdp-selective"]
    compare([(backbone, engines[number % len(engines)]) for number, backbone in enumerate(BACKBONES)])


@pytest.mark.all
@pytest.mark.parametrize("engine", ENGINES)
def test_the_whole_grid(engine: str) -> None:
    compare([(backbone, engine) for backbone in BACKBONES])
