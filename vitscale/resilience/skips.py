"""The batches that a run passes over for good: positions [start, end), written durably so that no later kill forgets them."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from vitscale.errors import DataError

FILE = "skips.jsonl"


def remember(run_folder: Path, start: int, end: int, reason: str) -> None:
    """Append the decision to pass over positions [start, end), counted in images, and make it durable before it is acted on."""
    path = run_folder / FILE
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"start": start, "end": end, "reason": reason}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def remembered(run_folder: Path, known: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """`known` ranges (a checkpoint's) and those of the file, sorted, without doubles."""
    path = run_folder / FILE
    ranges = {(int(start), int(end)) for start, end in known}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            ranges.add((int(row["start"]), int(row["end"])))
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break       # torn by a kill before it was acted on
            raise DataError(f"{path}: line {number} is unreadable; mend it by hand: it names batches that this run passes over") from None
    return sorted(ranges)
