"""What a fit leaves on disk: JSON and CSV, the same bytes for the same data."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.errors import DataError
from vitscale.files import write_atomically

DIGITS = 10  # significant ones; the last few of sixteen are rounding


def plain(value: Any) -> Any:
    """Numbers to DIGITS, arrays to lists, what is not finite to null: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(one) for one in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.{DIGITS}g}") if math.isfinite(value) else None
    return value


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A header of all keys, in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Whole or not at all.  Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text, durable="content")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises DataError when the file is no JSON object; a file that is not there is {}."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it to have it made again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: wants a JSON object; remove it to have it made again")
    return value
