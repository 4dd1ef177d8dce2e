"""A CSV or Parquet manifest: a path and a label in each row, and which class number each label is."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitscale.errors import DataError

_MOST = 1 << 31             # class numbers are below; nobody has as many
_AROUND = " \t'\"`[](){}"
_WHOLE = re.compile(r"\+?[0-9]+(\.0*)?")        # 7, and 7.0, which is what pandas writes of a column that lacked a value once


def read_manifest(path: Path, path_column: str, label_column: str) -> list[tuple[int, str, str]]:
    """[(line, path as written, label as written; "" without a label column)].  Raises DataError naming the line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path, [path_column, label_column])
    if not rows:
        raise DataError(f"{path}: no rows in it")
    for column, option in ((path_column, "--path-column"), (label_column, "--label-column")):
        if column and column not in rows[0][1]:
            raise DataError(f"{path}: has no column {column!r} (it has {', '.join(map(str, rows[0][1]))}); name it with {option}"
                            + (", or '' for no labels" if column == label_column else ""))
    found = []
    for line, row in rows:
        if None in row:
            raise DataError(f"{path}: line {line} has more fields than the header ({len(row) - 1}); put quotes around a field with a comma")
        if any(column and _is_missing(row[column]) for column in (path_column, label_column)):
            raise DataError(f"{path}: line {line} has no {path_column} or no {label_column}")
        found.append((line, str(row[path_column]), str(row[label_column]).strip() if label_column else ""))
    return found


def number_labels(labels: Sequence[tuple[int, str]], classes: Sequence[str], where: str) -> tuple[list[int], tuple[str, ...]]:
    """Labels (line, text) -> (the class number of each, names in the order of their numbers; () where numbers have no names).

    With `classes` a label is one of these names, or, where none is, a number that counts them from 0.  Without, labels are all whole
    numbers, and stay what they are, or all names, numbered in sorted order.  Raises DataError for anything between: a number
    among names would be sorted as text, and every class would become another.
    """
    known = {name: number for number, name in enumerate(classes)}
    if classes and any(text in known for _, text in labels):
        for line, text in labels:
            if text not in known:
                there = {other for _, other in labels}
                raise DataError(f"{where}: {len(there - set(known))} of its {len(there)} classes are not in the class map, the first is "
                                f"{text!r}, line {line}")
        return [known[text] for _, text in labels], tuple(classes)
    odd = next(((line, text) for line, text in labels if not _WHOLE.fullmatch(text) or float(text) >= _MOST), None)
    if odd is None:
        numbers = [int(text.partition(".")[0]) for _, text in labels]
        for (line, text), number in zip(labels, numbers, strict=True):
            if classes and number >= len(classes):
                raise DataError(f"{where}: line {line} has the label {text}, but the class map has {len(classes)} names, for 0 to "
                                f"{len(classes) - 1}")
        return numbers, tuple(classes)
    if classes:
        raise DataError(f"{where}: none of its {len({text for _, text in labels})} classes is in the class map, the first is {odd[1]!r}, "
                        f"line {odd[0]}")
    if digits := [(line, text) for line, text in labels if _is_number(text)]:
        if len(digits) == len(labels):
            raise DataError(f"{where}: line {odd[0]} has the label {odd[1]!r}; a class is a whole number from 0, or a name; leave such "
                            "rows out, or name another column with --label-column")
        name = next((line, text) for line, text in labels if not _is_number(text))
        raise DataError(f"{where}: line {digits[0][0]} has the label {digits[0][1]!r}, a number, and line {name[0]} has {name[1]!r}, a "
                        "name; labels are all whole numbers or all names; if these are names, list all of them in a file, one a line, "
                        "and give it with --classes")
    names = sorted({text for _, text in labels})
    known = {name: place for place, name in enumerate(names)}
    return [known[text] for _, text in labels], tuple(names)


def _is_number(text: str) -> bool:
    """Whether a program or a person would read it as a number, also as none at all: -1, 2.5, 1e3, nan, 0x1f, 2,0 or '2' or [2] or 2 %."""
    plain = text.strip(_AROUND).rstrip("%").strip(_AROUND).replace(",", "." if text.count(",") == 1 else "")
    if "_" in plain or not plain:
        return False
    for read in (float, _of_base):
        try:
            read(plain)
        except ValueError:
            continue
        return True
    return plain.lower() in ("none", "null", "na", "n/a", "<na>")


def _of_base(text: str) -> int:
    return int(text, 0)     # 0x, 0o, 0b


def _is_missing(value: Any) -> bool:
    return value is None or not str(value).strip() or (isinstance(value, float) and math.isnan(value))


def _csv_rows(path: Path) -> list[tuple[int, dict[Any, Any]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _refuse_twice(path, reader.fieldnames or ())
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None


def _parquet_rows(path: Path, columns: list[str]) -> list[tuple[int, dict[Any, Any]]]:
    """A row's line is its number, counted from 1."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow; install it with `pip install 'vitscale[parquet]'`") from None
    try:
        names = parquet.read_schema(path).names
        _refuse_twice(path, names)
        wanted = [column for column in columns if column]
        if any(column not in names for column in wanted):
            return [(1, dict.fromkeys(names))]          # for the message that names the missing column
        rows = parquet.read_table(path, columns=wanted).to_pylist()
        return [(line, {column: _text(value, path, line, column) for column, value in row.items()}) for line, row in enumerate(rows, 1)]
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _text(value: Any, path: Path, line: int, column: str) -> Any:
    """Parquet keeps texts as bytes where nobody said that they are texts.  Raises DataError for what is several values."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise DataError(f"{path}: line {line} has {column} {value[:40]!r}, which is no UTF-8 text") from None
    if isinstance(value, (list, tuple, dict)):
        raise DataError(f"{path}: line {line} has {column} {str(value)[:40]}, several values; it wants one in each row")
    return value


def _refuse_twice(path: Path, columns: Sequence[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{path}: has {columns.count(column)} columns named {column!r}; give each a name of its own")
