"""Writes a table of docs/models.md: every architecture, its source, its size, how far it is from an independent implementation.

    python benchmarks/zoo.py            compares with transformers, same weights, fp32
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import HERE
from torch import Tensor

sys.path.append(str(HERE.parent / "tests" / "models"))
sys.path.append(str(HERE.parent / "tests"))
import test_convnext
import test_deit
import test_mae
import test_swin
import test_vit_parity as vit
from reference import pictures

from vitscale.objectives import Seen, build_task
from vitscale.plan import count_params, forward_flops
from vitscale.plan.families import BY_LABEL
from vitscale.recipe import Vit
from vitscale.recipe.objectives import Mae, Objective
from vitscale.recipe.schema import ConvNext, Deit, Model, Swin

BEGIN, END = "<!-- zoo -->\n", "<!-- /zoo -->"
Outputs = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    name: str
    source: str
    against: str                        # transformers' class
    outputs: Callable[[], Outputs]      # ours and theirs, of a small model
    image: int                          # the side that the small model takes
    shown: str                          # what the size is of
    section: Model
    objective: Objective = BY_LABEL


def _logits(pair: tuple[torch.nn.Module, torch.nn.Module]) -> Outputs:
    ours, theirs = pair
    return ours, lambda images: theirs(images).logits


def _mae() -> Outputs:
    """Pixels of all patches, the same ones hidden."""
    ours, theirs = test_mae.pair()
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(3))
    task = build_task(Vit(**test_mae.ENCODER, position="sincos"), test_mae.MAE)

    def predicted(images: Tensor) -> Tensor:
        seen, *more = task.inputs(Seen(images, torch.zeros(len(images), dtype=torch.int64), noise))
        pixels: Tensor = ours(seen, None, *more)
        return pixels

    return predicted, lambda images: theirs(images, noise=noise).logits


ENTRIES = (
    Entry("ViT", "Dosovitskiy et al. 2021", "ViTForImageClassification", vit.token, 32, "H/14", Vit(size="huge", patch=14)),
    Entry("ViT, attention pooling", "Zhai et al. 2022; Alabdulmohsin et al. 2023", "SiglipVisionModel", vit.attention_pooling, 32,
          "So400m/14, no head", Vit(size="so400m", patch=14, pool="attention", classes=0)),
    Entry("ViT, LayerScale", "Touvron et al. 2022 (DeiT III)", "Dinov2Model", vit.layer_scale, 32, "L/16",
          Vit(size="large", layer_scale=1e-4, class_position=False)),
    Entry("ViT, registers and SwiGLU", "Darcet et al. 2024; Shazeer 2020", "Dinov2WithRegistersModel", vit.registers_and_gate, 32, "L/14",
          Vit(size="large", patch=14, registers=4, gated=True)),
    Entry("ViT, rotary positions", "Heo et al. 2024; Siméoni et al. 2025 (DINOv3)", "DINOv3ViTModel", vit.rotary, 32, "L/16",
          Vit(size="large", position="rotary", registers=4)),
    Entry("ViT, relative positions", "Bao et al. 2022 (BEiT)", "BeitForImageClassification", vit.relative, 32, "B/16",
          Vit(size="base", position="relative", pool="mean", pool_norm=True)),
    Entry("DeiT, distilled", "Touvron et al. 2021", "DeiTForImageClassificationWithTeacher", lambda: _logits(test_deit.pair()), 32, "B/16",
          Deit(family="deit", size="base")),
    Entry("Swin", "Liu et al. 2021", "SwinForImageClassification", lambda: _logits(test_swin.pair(1)), 64, "B",
          Swin(family="swin", size="base")),
    Entry("Swin V2", "Liu et al. 2022", "Swinv2ForImageClassification", lambda: _logits(test_swin.pair(2)), 64, "B, window 16, 256 pixels",
          Swin(family="swin", size="base", version=2, window=16, image=256)),
    Entry("ConvNeXt", "Liu et al. 2022", "ConvNextForImageClassification", lambda: _logits(test_convnext.pair(1)), 32, "L",
          ConvNext(family="convnext", size="large")),
    Entry("ConvNeXt V2", "Woo et al. 2023", "ConvNextV2ForImageClassification", lambda: _logits(test_convnext.pair(2)), 32, "H",
          ConvNext(family="convnext", size="huge", version=2)),
    Entry("MAE", "He et al. 2022", "ViTMAEForPreTraining", _mae, 32, "L/16, with its decoder",
          Vit(size="large", position="sincos", classes=0), Mae(name="mae")),
)


@torch.no_grad()
def error(entry: Entry) -> float:
    """The largest difference of any output, over the standard deviation of theirs."""
    ours, theirs = entry.outputs()
    images = pictures(entry.image, entry.image)
    found, expected = ours(images), theirs(images)
    return float((found - expected).abs().max() / expected.std())


def _short(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def table(found: Mapping[Entry, float]) -> str:
    lines = ["| architecture | source | parameters | GFLOP forward | of | held against | error |", "|---|---|---|---|---|---|---|"]
    for entry, apart in found.items():
        params, flops = count_params(entry.section, entry.objective), forward_flops(entry.section, entry.objective)
        lines.append(f"| {entry.name} | {entry.source} | {params:,} | {flops / 1e9:.1f} | {entry.shown} | {entry.against} "
                     f"| {_short(apart)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE.parent, help="where docs/ is")
    root = parser.parse_args(arguments).root
    found = {entry: error(entry) for entry in ENTRIES}
    page = root / "docs" / "models.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(before + BEGIN + table(found) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
