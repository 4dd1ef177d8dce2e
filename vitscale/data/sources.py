"""What can be packed: a folder per class, a CSV or Parquet manifest, or shards.  One list of entries; nothing is read yet but names."""

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.data.bad import BadSample
from vitscale.data.index import IMAGES, SetIndex, open_index
from vitscale.data.reader import ShardReader
from vitscale.errors import DataError

CLASSES = "classes.txt"                         # beside shards: names of classes, one a line, in the order of their numbers
_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]")        # what may not stand in a key: a dot would begin the extension


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample to be packed."""

    name: str               # for messages: its path, or shard:key
    key: str                # unique among all entries
    size: int               # bytes before packing
    version: str            # changes when its content may have changed
    read: Callable[[], dict[str, bytes]]        # {extension: bytes}; raises BadSample("read")


@dataclass(frozen=True)
class Source:
    entries: list[Entry]
    classes: tuple[str, ...]    # names in the order of their numbers; () where labels came as numbers, or there are none
    mixed: bool                 # entries come in no order that would harm training
    ignored: int = 0            # files in an image folder that are no images


def open_source(source: str, *, path_column: str = "path", label_column: str = "label", classes: Sequence[str] = ()) -> Source:
    """A folder of class folders, FILE.csv or FILE.parquet, or a brace URL or glob of shards -> what is in it.

    classes: names in the order of their numbers; () numbers the names found in sorted order.  label_column: "" for no labels.
    Raises DataError naming what is missing.
    """
    if len(set(classes)) < len(classes):
        raise DataError(f"the class map names {next(name for name in classes if list(classes).count(name) > 1)!r} twice")
    path = Path(source)
    if path.is_dir():
        return _folder(path, classes)
    if path.suffix.lower() in (".csv", ".parquet"):
        if not path.is_file():
            raise DataError(f"{source}: no such file")
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path, [path_column, label_column])
        return _manifest(path, rows, path_column, label_column, classes)
    return _shards(source)


def _folder(root: Path, classes: Sequence[str]) -> Source:
    """ROOT/CLASS/**/IMAGE, as torchvision's ImageFolder: classes are the folders sorted by name; a class map may name fewer of them."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        shards = any(root.glob("*.tar"))
        raise DataError(f"{root}: no class folders in it; " + (f"give its shards, such as '{root}/*.tar'" if shards else
                        "wanted is a folder per class, such as cats/ and dogs/, or a manifest or shards"))
    number = _number(classes or names, names, str(root))
    found, ignored = [], 0
    for name in names:
        for folder, below, files in os.walk(root / name):
            below.sort()
            for file in sorted(files):
                if _extension(file) in IMAGES:
                    found.append((Path(folder, file), number[name]))
                else:
                    ignored += 1
    if not found:
        raise DataError(f"{root}: no images in its {len(names)} class folders; known are {', '.join(IMAGES)}")
    entries = _files([path for path, _ in found], [str(path.relative_to(root)) for path, _ in found], [label for _, label in found])
    return Source(entries, tuple(classes or names), mixed=False, ignored=ignored)


def _manifest(path: Path, rows: list[dict[str, Any]], path_column: str, label_column: str, classes: Sequence[str]) -> Source:
    """Paths are relative to the manifest's folder.  Labels that are all whole numbers are class numbers, if no class map is given."""
    if not rows:
        raise DataError(f"{path}: no rows in it")
    for column, option in ((path_column, "--path-column"), (label_column, "--label-column")):
        if column and column not in rows[0]:
            raise DataError(f"{path}: has no column {column!r} (it has {', '.join(map(str, rows[0]))}); name it with {option}"
                            + (", or '' for no labels" if column == label_column else ""))
    for line, row in enumerate(rows, 2):
        if any(column and row[column] in (None, "") for column in (path_column, label_column)):
            raise DataError(f"{path}: line {line} has no {path_column} or no {label_column}")
    names = [str(row[path_column]) for row in rows]
    labels: list[int | None] = [None] * len(rows)
    if label_column:
        raw = [str(row[label_column]).strip() for row in rows]
        if classes or not all(text.isascii() and text.isdigit() for text in raw):
            number = _number(classes or sorted(set(raw)), sorted(set(raw)), str(path))
            labels, classes = [number[text] for text in raw], classes or sorted(set(raw))
        else:
            labels = [int(text) for text in raw]
    return Source(_files([path.parent / name for name in names], names, labels), tuple(classes), mixed=False)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None


def _parquet_rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow; install it with `pip install 'vitscale[parquet]'`") from None
    try:
        names = parquet.read_schema(path).names
        wanted = [column for column in columns if column in names]
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=wanted).to_pylist() if len(wanted) == sum(map(bool, columns)) else [
            dict.fromkeys(names)]           # for the message that names the missing column
        return rows
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _shards(url: str) -> Source:
    """Samples of shards with all their members, damage left behind; labels and names are not looked at."""
    index = open_index(url)
    reader = ShardReader(index)
    keys = _Keys()
    entries = []
    for shard, count in enumerate(index.counts.tolist()):
        for number in range(count):
            members = index.shard(shard).members(number)
            key = index.key_of(shard, number)
            size, version = sum(size for _, _, size in members), f"{index.header_sha256[shard]} {index.mtime_ns[shard]} {number}"
            entries.append(Entry(
                f"{index.paths[shard]}:{key}", keys.unique(key), size, version,
                lambda shard=shard, number=number: reader.read(shard, number),      # type: ignore[misc]
            ))
    return Source(entries, class_names(index), mixed=True)


def class_names(index: SetIndex) -> tuple[str, ...]:
    """The lines of classes.txt beside the first shard, if it is there."""
    try:
        return tuple((Path(index.paths[0]).parent / CLASSES).read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    except OSError:
        return ()


def _files(paths: list[Path], names: list[str], labels: list[int | None] | list[int]) -> list[Entry]:
    keys = _Keys()
    entries = []
    for path, name, label in zip(paths, names, labels, strict=True):
        try:
            info = os.stat(path)
            size, version = info.st_size, f"{info.st_size} {info.st_mtime_ns}"
        except OSError:
            size, version = 0, "missing"            # told when it is packed
        stem = _UNSAFE.sub("_", os.path.splitext(name)[0]).lstrip("/")
        entries.append(Entry(name, keys.unique(stem), size, f"{version} {label}", lambda path=path, label=label: _read(path, label)))  # type: ignore[misc]
    return entries


def _read(path: Path, label: int | None) -> dict[str, bytes]:
    try:
        members = {_extension(path.name) or "bin": path.read_bytes()}
    except OSError as error:
        raise BadSample("read", error.strerror or str(error)) from None
    return members if label is None else members | {"cls": str(label).encode()}


class _Keys:
    """Makes keys unique, and none that webdataset takes for metadata."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def unique(self, key: str) -> str:
        key = key.lstrip("_") if key.startswith("__") else key
        key = key if key and not key.endswith("/") else f"{key}x"
        candidate, copies = key, 1
        while candidate in self.seen:
            copies += 1
            candidate = f"{key}-{copies}"
        self.seen.add(candidate)
        return candidate


def _extension(file: str) -> str:
    return os.path.splitext(file)[1][1:].lower()


def _number(classes: Sequence[str], found: Sequence[str], where: str) -> dict[str, int]:
    number = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in found if name not in number]
    if unknown:
        raise DataError(f"{where}: {len(unknown)} of its {len(found)} classes are not in the class map, the first is {unknown[0]!r}")
    return number
