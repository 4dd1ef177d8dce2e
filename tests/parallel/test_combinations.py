"""What a step computes does not depend on how: every engine, recomputation, precision, accumulation and whatever else a recipe combines
equals one plain process, gradients parameter by parameter.  A sample each day; `make test-all` has every pair of settings.

VITSCALE_GRID_SEED=N repeats the sample of a seed, which is printed."""

import datetime
import os
import random
import traceback
from pathlib import Path

import combinations as grid
import pytest
import torch
from combinations import PLAIN, Combination, Trained, covering, plain_of
from ranks import run_ranks
from torch import Tensor

from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import Parallel

pytestmark = pytest.mark.slow       # ranks, which are seconds to start, and dozens of tiny models

SEED = int(os.environ.get("VITSCALE_GRID_SEED", datetime.datetime.now(datetime.UTC).date().toordinal()))
SAMPLE = 8     # combinations of a day


def walk(place: RankInfo, combinations: list[Combination], teacher: str, folder: str) -> list[str]:
    """Each on the same ranks, its results into a file of its number; '' or what went wrong on this rank."""
    said = []
    with joined(Parallel(engine="fsdp", device="cpu"), place) as world:
        for number, one in enumerate(combinations):
            try:
                found = grid.train(world, one, teacher)
                if place.rank == 0:
                    torch.save(vars(found), Path(folder) / f"{number}.pt")
                # every rank has the same whole tensors, or they are not whole
                said.append(f"same {[float(value.double().sum()) for value in found.state.values()]} {found.losses}")
            except Exception:
                said.append(traceback.format_exc())
    return said


def results(ranks: int, combinations: list[Combination], teacher: str, folder: Path) -> list[Trained | str]:
    folder.mkdir()
    by_rank = run_ranks(ranks, walk, combinations, teacher, str(folder), timeout_s=3000)
    found: list[Trained | str] = []
    for number, said in enumerate(zip(*by_rank, strict=True)):
        broken = [text for text in said if not text.startswith("same")]
        if broken or len(set(said)) > 1:
            found.append(broken[0] if broken else "its ranks do not agree")
        else:
            found.append(Trained(**torch.load(folder / f"{number}.pt", weights_only=True)))
    return found


def gaps(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """By name the length of the difference over that of what is wanted, or over a hundredth of the whole, where it is less."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    whole = torch.stack([value.double().norm() for value in wanted.values()]).norm()
    return {name: float((found[name].double() - value.double()).norm() / max(value.double().norm(), 1e-2 * whole))
            for name, value in wanted.items()}


def wrong(one: Combination, found: Trained | str, plain: Trained, plain_bf16: Trained | None) -> str | None:
    """What differs from one plain process by more than rounding; None: nothing."""
    if isinstance(found, str):
        return found
    # bf16's own rounding errors, in one process, say how large they may be; each pair of other settings stands in fp32 as well
    noise = [max(gaps(*both).values()) for both in zip(plain_bf16.gradients, plain.gradients, strict=True)] if plain_bf16 else []
    gradient = max(4 * max(noise), 0.1) if noise else 5e-4      # in fp32 they begin at 1e-6 and grow tenfold every few steps
    lion = one["optimizer"] == "lion"       # whose signs flip where a gradient is nothing but rounding
    worst: list[tuple[float, str]] = []
    for step, (ours, theirs) in enumerate(zip(found.gradients, plain.gradients, strict=True)):
        worst += [(gap / gradient, f"gradient of {name} in step {step + 1}: {gap:.1e}") for name, gap in gaps(ours, theirs).items()]
    for name, gap in gaps(found.state, plain.state).items():
        worst.append((gap / (gradient if noise else 1e-3), f"{name} at the end: {gap:.1e}"))
    for name, gap in gaps(found.moved, plain.moved).items():
        if not (lion and (noise or "bias" in name)):
            worst.append((gap / (max(gradient, 0.3) if noise or lion else 1e-3), f"what {name} has changed by: {gap:.1e}"))
    for step, (ours, theirs) in enumerate(zip(found.losses, plain.losses, strict=True)):
        worst.append((abs(ours - theirs) / (0.05 if noise else 1e-5), f"loss of step {step + 1}: {ours}, not {theirs}"))
    return "; ".join(sentence for ratio, sentence in sorted(worst, reverse=True)[:3] if ratio > 1) or None


def hold(combinations: list[Combination], teacher: str, folder: Path) -> None:
    """Train by each, and by its plain one, and compare."""
    plains: list[Combination] = []
    for one in combinations:
        for plain in [plain_of(one)] + ([plain_of(one) | {"precision": "bf16"}] if one["precision"] == "bf16" else []):
            plains.append(plain) if plain not in plains else None
    alone = [*plains, *(one for one in combinations if one["ranks"] == 1)]
    found = list(zip(alone, results(1, alone, teacher, folder / "one"), strict=True))
    for ranks in (2, 4):
        some = [one for one in combinations if one["ranks"] == ranks]
        found += zip(some, results(ranks, some, teacher, folder / str(ranks)), strict=True) if some else []
    plain_results = dict(enumerate(result for _, result in found[:len(plains)]))
    failures = []
    for one, result in found[len(plains):]:
        plain = plain_results[plains.index(plain_of(one))]
        noise = plain_results[plains.index(plain_of(one) | {"precision": "bf16"})] if one["precision"] == "bf16" else None
        broken = next((text for text in (plain, noise) if isinstance(text, str)), None)
        sentence = broken or wrong(one, result, plain, noise)      # type: ignore[arg-type]
        if sentence is not None:
            failures.append(f"{ {name: value for name, value in one.items() if value != PLAIN[name]} }: {sentence}")
    assert not failures, f"{len(failures)} of {len(combinations)}:\n" + "\n".join(failures)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "recipe.yaml").write_text(f"model: {{classes: {grid.CLASSES}}}")
    return str(tmp_path / "teacher")


def test_a_sample_of_the_day(teacher: str, tmp_path: Path) -> None:
    print(f"VITSCALE_GRID_SEED={SEED}")
    every, _ = covering(SEED, teacher)
    hold(random.Random(SEED).sample([one for one in every if not one["compile"]], SAMPLE), teacher, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("compiled", [False, True])
def test_every_pair_of_settings(compiled: bool, teacher: str, tmp_path: Path) -> None:
    print(f"VITSCALE_GRID_SEED={SEED}")
    every, _ = covering(SEED, teacher)
    hold([one for one in every if one["compile"] == compiled], teacher, tmp_path)
