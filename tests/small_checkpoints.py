"""Checkpoints of a few numbers, written as a run writes its own."""

from collections.abc import Mapping
from pathlib import Path

import torch

from vitscale.checkpoint.store import CheckpointWriter, RunFacts, checkpoints_in
from vitscale.recipe import Checkpoint

AWKWARD = torch.tensor([0.1, -0.0, 1e-45, 3.4e38, float("inf"), 1 / 3])      # a denormal, a negative zero


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=generator)
    return {"model.weight": weight, "model.bias": AWKWARD.clone(), "ema.weight": weight / 3, "ema.bias": AWKWARD * 0.5,
            "optim.weight.exp_avg": torch.randn(7, 5, generator=generator), "optim.weight.step": torch.tensor(17.0)}


def facts(step: int, best: int | None = None) -> RunFacts:
    data = {"index_hash": "ab", "seed": 3, "position": 100 * step, "skips": [[8, 16]]}
    best_so_far = {"step": best, "metric": "eval_top1", "value": 0.5} if best else None
    recipe = {"name": "x", "model": {"width": 5}}
    return RunFacts(step, data, recipe, "fsdp", 4, best_so_far, {"value": 0.5, "evaluations": 2}, {"torch": "2"})


def writer(folder: Path, **settings: object) -> CheckpointWriter:
    return CheckpointWriter(folder, rank=0, lease=None, attempt=1, settings=Checkpoint(**settings))


def write(folder: Path, *steps: int, tensors: Mapping[str, torch.Tensor] | None = None) -> list[Path]:
    with_all = writer(folder, keep=99)
    for step in steps:
        with_all.save(tensors or state(step), facts(step))
    with_all.close()
    return checkpoints_in(folder)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
