"""Writes README's table of what was measured, from the rows, between its two marks.

    python benchmarks/readme.py
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import HERE
from report import KNOWN

BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"
# row -> (words, figure); one line each, in this order
SHOWN = (
    ("data-crop", "decode and crop against PIL, first epoch", "ratio to PIL in the first epoch, each image decoded to its end"),
    ("data-crop", "the same from the second epoch on", "ratio to PIL from the second epoch on"),
    ("data-crop", "mean error against PIL, of 255", "mean error against PIL"),
    ("data-end-pil", "shards to batches against webdataset + PIL", "ratio, images/s"),
    ("data-end-opencv", "shards to batches against webdataset + OpenCV", "ratio, images/s"),
    ("data-read", "find and read a sample against webdataset's reader", "ratio to webdataset"),
    ("data-resume", "resume in the middle of 2e9 samples in 200,000 shards", "time from the set file to the batch"),
    ("models-step", "a training step against transformers: ViT-S/16", "ViT-S/16: ratio of speed"),
    ("models-step", "Swin-T", "Swin-T: ratio of speed"),
    ("models-step", "ConvNeXt-T", "ConvNeXt-T: ratio of speed"),
    ("step-overhead", "overhead of the training loop in a step of ViT-S/16", "share of a step"),
    ("unattended-restart", "kill -9 of one of two ranks, to the next step", "in all"),
    ("unattended-stall", "training stands still for a checkpoint of ViT-S", "behind its back"),
    ("gpu-step", "ViT-L/16 on one GPU against the best peer", "L/16: ratio to the best peer"),
    ("gpu-step", "ViT-L/16 on one GPU, MFU", "L/16: MFU of the data sheet's"),
    ("gpu-step", "ViT-H/14 on one GPU against the best peer", "H/14: ratio to the best peer"),
    ("gpu-step", "ViT-H/14 on one GPU, MFU", "H/14: MFU of the data sheet's"),
)


def table(rows: Mapping[str, Any]) -> str:
    """Rows by name; what is shown and has no figure is "not measured".  A figure is found by how its name begins."""
    lines = ["| what | median | least to most | goal | on |", "|---|---|---|---|---|"]
    for row, words, wanted in SHOWN:
        assert row in KNOWN, row
        found = next((one for one in rows.get(row, {}).get("figures", ()) if one["name"].startswith(wanted)), None)
        if found is None:
            lines.append(f"| {words} | not measured | | | |")
            continue
        goal = f"{found['goal']} {'' if found['met'] else '**missed**'}".strip() if "goal" in found else ""
        span = f"{found['low']:.3g} to {found['high']:.3g}" if found["low"] != found["high"] else ""
        lines.append(f"| {words} | {found['value']:.3g} {found['unit']} | {span} | {goal} | {_where(rows[row])} |".replace("  |", " |"))
    return "\n".join(lines) + "\n"


def _where(row: Mapping[str, Any]) -> str:
    load = row["load_at_end"]
    return f"{row.get('device', row['hardware'])}, {row['date']}" + (f", under load ({load:g})" if load > 3 else "")


def written(text: str, rows: Mapping[str, Any]) -> str:
    """`text` with the table between its marks.  Raises SystemExit if they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md: wants the lines {BEGIN.strip()} and {END} where the table belongs")
    return before + BEGIN + table(rows) + END + after


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    given = parser.parse_args(arguments)
    rows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in given.rows.glob("*.json")}
    given.readme.write_text(written(given.readme.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
