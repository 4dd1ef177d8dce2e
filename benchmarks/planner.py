"""Holds the planner's memory against torch's tracker on fake tensors, and writes the table of docs/planner.md.

    python benchmarks/planner.py                    ViT-B, L, H x recomputation x sharding: half an hour on an idle core
    python benchmarks/planner.py --sizes base       a part of it; rows of the others stay as they were
    python benchmarks/planner.py --sizes            nothing tracked anew, only planned
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from measure import HERE, write_row

from vitscale.plan import estimate
from vitscale.recipe import Recipe, load_recipe
from vitscale.train.exact import track

BEGIN, END = "<!-- memory -->\n", "<!-- /memory -->"
SIZES = {"base": 16, "large": 16, "huge": 14}       # and their patches
SHARDING = {"fsdp over 64": ("fsdp", 64), "fsdp over 8": ("fsdp", 8), "ddp": ("ddp", 8)}
RECOMPUTE = ("none", "blocks", "selective")
MICRO_BATCH = 32
DOCS = HERE.parent / "docs" / "planner.md"
KEPT = HERE / "rows" / "planner-memory.json"


def recipe_of(size: str, engine: str, recompute: str) -> Recipe:
    return load_recipe("vit_huge", [f"model.size={size}", f"model.patch={SIZES[size]}", f"parallel.engine={engine}",
                                    f"parallel.recompute={recompute}", "model.classes=1000"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--sharding", nargs="*", default=list(SHARDING), choices=list(SHARDING))
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))["cases"] if KEPT.exists() else {}
    for sharding in given.sharding:
        for size in given.sizes:
            for recompute in RECOMPUTE:
                engine, world = SHARDING[sharding]
                tracked = track(recipe_of(size, engine, recompute), world, MICRO_BATCH)
                found[f"{size}, {sharding}, {recompute}"] = tracked
                print(f"{size}, {sharding}, {recompute}: {tracked:,} bytes", flush=True)
                save(found)
    save(found)


def save(tracked: dict[str, int]) -> None:
    """The planner's side is worked out anew each time."""
    lines = ["| model | sharding | recomputation | tracked | planned | difference |", "|---|---|---|---|---|---|"]
    errors = []
    for size in SIZES:
        for sharding, (engine, world) in SHARDING.items():
            for recompute in RECOMPUTE:
                name = f"{size}, {sharding}, {recompute}"
                if name not in tracked:
                    lines.append(f"| {size} | {sharding} | {recompute} | not measured | | |")
                    continue
                planned = estimate(recipe_of(size, engine, recompute), world, MICRO_BATCH, on_gpu=False).total
                errors.append(planned / tracked[name] - 1)
                lines.append(f"| {size} | {sharding} | {recompute} | {tracked[name] / 2**20:,.0f} MiB | {planned / 2**20:,.0f} MiB "
                             f"| {errors[-1]:+.1%} |")
    _between(DOCS, "\n".join(lines) + "\n")
    worst = 100 * max(abs(error) for error in errors)
    title = f"Planned memory of a GPU against torch's tracker on fake tensors, {len(errors)} cases"
    figures = [{"name": "largest difference", "value": worst, "low": worst, "high": worst, "unit": "%", "goal": "<= 5 %",
                "met": worst <= 5}]
    write_row(KEPT.parent, KEPT.stem, title, figures, command="python benchmarks/planner.py", rounds=1, cases=tracked,
              versions={"python": platform.python_version(), "torch": torch.__version__})


def _between(path: Path, text: str) -> None:
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + BEGIN + text + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
