"""The losses of a tiny run of each backbone: the same bit for bit when repeated, and as they were when they were written down.

After a change that is meant to change them:  python tests/models/test_golden.py  writes them anew; say in the commit why.
"""

import json
from pathlib import Path

import pytest
from backbones import BACKBONES, Case, losses_of

from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import Parallel

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "backbones.json"
ALONE = Parallel(device="cpu")


def run(backbone: str) -> list[float]:
    with joined(ALONE, RankInfo()) as world:
        return losses_of(world, Case(backbone, ALONE, steps=5))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_losses_are_as_they_were(backbone: str) -> None:
    found = run(backbone)
    assert found == run(backbone)
    assert found == pytest.approx(json.loads(GOLDEN.read_text())[backbone], rel=1e-4)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({backbone: run(backbone) for backbone in BACKBONES}, indent=1) + "\n")
