"""Renders RESULTS.md from the rows.  What is known and has no row is "not measured"."""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KNOWN = {
    "dashboard": "The page of a run with 1,000,000 recorded rows, in Chromium",
    "data-crop": "Decode, random crop, resize: against PIL, one core",
    "data-end-opencv": "Shards to batches: against webdataset + OpenCV at equal quality",
    "data-end-pil": "Shards to batches: against webdataset + PIL",
    "data-read": "Find and read samples: against webdataset's reader",
    "data-resume": "Cold resume in the middle of 2,000,000,000 samples in 200,000 shards",
    "data-views": "Decode, 2 x 224 + 8 x 96 crops, augmentation: against DINOv2's transforms by torchvision and PIL, one core",
    "distillation": "A student with a teacher, against alone",
    "drop-path": "Stochastic depth: branches left out against masked",
    "exporter-step": "What telling Prometheus costs a step",
    "gpu-step": "Training step on one GPU: against timm, transformers, torchvision",
    "models-step": "Training step: against transformers",
    "planner-memory": "Planned memory of a GPU against torch's tracker on fake tensors",
    "scaling-coverage": "How often 95 % intervals of a law hold the truth",
    "self-supervised": "Features learned without labels on CIFAR-10, by k-NN: against raw pixels, an untrained network, MAE",
    "self-supervised-step": "A step without labels beside its forward and backward passes",
    "step-overhead": "What a step spends around the model",
    "unattended-goodput": "Ten faults in one run: where the time goes",
    "unattended-hang": "A rank that hangs, until it is named",
    "unattended-restart": "kill -9 of a rank, to the next optimizer step",
    "unattended-signal": "Steps lost on a signal",
    "unattended-stall": "Training stands still for a checkpoint",
}
# Figures that a row has a goal for, by how their names begin; where it lacks them, what is told instead.
WANTED = {
    "gpu-step": (("H/14: ratio to the best peer", ">= 1.15", "not measured"),
                 ("H/14: MFU of the data sheet's 989 TFLOP/s", ">= 0.6", "not measured beside peers; alone: LOG.md"),
                 ("B/16: MFU of the data sheet's 989 TFLOP/s", ">= 0.5", "not measured beside peers; alone: LOG.md"),
                 ("H/14: FP8 against bf16", ">= 1.2", "not measured beside peers; alone: LOG.md"),
                 ("more than one GPU", "", "not measured")),
}
HEAD = """# Results

Made by `python benchmarks/report.py` from `benchmarks/rows/`; do not edit.  A value is the median of the rounds, behind it their least and
most; rounds of the contenders are interleaved, and a ratio is taken round by round.  What was tried besides stands in [LOG.md](LOG.md).

| what | figure | value | least to most | goal | |
|---|---|---|---|---|---|
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    given = parser.parse_args(arguments)
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(given.rows.glob("*.json"))]
    given.out.write_text(render(rows), encoding="utf-8")


def render(rows: list[dict[str, Any]]) -> str:
    measured = {row["name"]: row for row in rows}
    lines, details = [], []
    for name in sorted({*KNOWN, *measured}):
        row = measured.get(name)
        if row is None:
            lines.append(f"| {KNOWN[name]} | | not measured | | | |")
            continue
        for number, one in enumerate(row["figures"]):
            met = {True: "met", False: "**missed**", None: ""}[one.get("met")]
            span = f"{_number(one['low'])} to {_number(one['high'])}" if one["low"] != one["high"] else ""
            lines.append(f"| {row['title'] if not number else ''} | {one['name']} | {_number(one['value'])} {one['unit']} | {span} "
                         f"| {one.get('goal', '')} | {met} |")
        lines += [f"| | {name} | {told} | | {goal} | |" for name, goal, told in WANTED.get(row["name"], ())
                  if not any(one["name"].startswith(name) for one in row["figures"])]
        details.append(_detail(row))
    return HEAD + "\n".join(lines) + "\n\n## How\n\n" + "\n".join(details)


def _detail(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    shards = row.get("shards")
    on = (f"; {shards['samples']} samples of {shards['mean_bytes']:,} bytes in {shards['count']} shards, index {shards['sha256'][:16]}"
          if shards else "")
    notes = "".join(f"; {note}" for note in row.get("notes", ()))
    return (f"* **{row['name']}**: `{row['command']}`{on}; {row['rounds']} rounds on {row['hardware']} "
            f"(load at the end {row['load_at_end']}); {versions}; {row['date']}, commit {row['commit']}{notes}\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
