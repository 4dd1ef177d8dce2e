"""The batches that a run passes over for good: positions [start, end), written durably so that no later kill forgets them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitscale.errors import DataError
from vitscale.files import is_there, read_bytes, write_atomically

FILE = "skips.jsonl"


def remember(run_folder: Path, start: int, end: int, reason: str, **rollback: Any) -> None:
    """Add the decision to pass over positions [start, end), counted in images, and make it durable before it is acted on.

    `rollback`, if the run also goes back for it: {"cause": nonfinite or spike, "before_step": which checkpoints are still good, ...}.
    """
    # rewritten as a whole: a line appended to a torn one would be lost with it
    rows = [*_rows(run_folder / FILE), {"start": start, "end": end, "reason": reason, **rollback}]
    write_atomically(run_folder / FILE, "".join(json.dumps(row) + "\n" for row in rows))


def rollbacks(run_folder: Path) -> list[dict[str, Any]]:
    """The decisions that the run went back for, over all attempts."""
    return [row for row in _rows(run_folder / FILE) if "before_step" in row]


def undone_by(rollbacks: Iterable[dict[str, Any]], step: int, skips: Iterable[Sequence[int]]) -> dict[str, Any] | None:
    """The rollback that undid a checkpoint of `step` whose run had passed over `skips`: it was taken at or after the update at fault,
    and not by a run that knew better.  None: it is good."""
    for row in rollbacks:
        known = any(start <= row["start"] and row["end"] <= end for start, end in skips)
        if step >= row["before_step"] and not known:
            return row
    return None


def remembered(run_folder: Path, known: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """`known` ranges (a checkpoint's) and those of the file, sorted, without doubles."""
    return sorted({(int(start), int(end)) for start, end in known} | {(row["start"], row["end"]) for row in _rows(run_folder / FILE)})


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    lines = read_bytes(path).splitlines() if is_there(path) else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "start": int(row["start"]), "end": int(row["end"])})
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break       # torn by a kill before it was acted on
            raise DataError(f"{path}: line {number} is unreadable; mend it by hand: it names batches that this run passes over") from None
    return rows
