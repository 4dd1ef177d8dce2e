"""What can be packed: a folder per class, a CSV or Parquet manifest, or shards.  One list of entries; nothing is read yet but names."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.data.bad import BadSample
from vitscale.data.folder import class_folders, look_through, splits_of
from vitscale.data.formats import shards_in
from vitscale.data.index import IMAGES, SetIndex, open_index
from vitscale.data.manifest import number_labels, read_manifest
from vitscale.data.members import GroupMembers
from vitscale.data.reader import ShardReader
from vitscale.errors import DataError

CLASSES = "classes.txt"                         # beside shards: names of classes, one a line, in the order of their numbers
_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]")        # what may not stand in a key: a dot would begin the extension


@dataclass(frozen=True, slots=True)
class SourceSample:
    """One sample to be packed."""

    name: str               # for messages: its path, or shard:key
    key: str                # unique among all entries
    size: int               # bytes before packing
    version: str            # changes when its content may have changed
    read: Callable[[], dict[str, bytes]]        # {extension: bytes}; raises BadSample("read")
    label: int | None = None                    # its class number, where that is known before it is read


@dataclass(frozen=True)
class Source:
    entries: list[SourceSample]
    classes: tuple[str, ...]    # names in the order of their numbers; () where labels came as numbers, or there are none
    mixed: bool                 # entries come in no order that would harm training
    image: str | None = None    # the member that is the image; None: the one with the ending of an image
    left_out: Counter[str] = field(default_factory=Counter)     # files of a folder that are no entries, by the reason
    hidden: Counter[str] = field(default_factory=Counter)       # the same of what systems and programs leave behind
    folders: tuple[int, ...] = ()       # the classes that have a folder


def open_sources(
    source: str, *, path_column: str = "path", label_column: str = "label", classes: Sequence[str] = (),
    group_members: GroupMembers = "adjacent", image: str | None = None,
) -> dict[str, Source]:
    """What is in a folder of class folders, in FILE.csv or FILE.parquet, or in a brace URL or glob of shards, as {"": it}; of a folder
    whose folders are splits (train/, val/, test/) each by its name, with the same number for a class in all of them.

    classes: names in the order of their numbers; () numbers the names found in sorted order.  label_column: "" for no labels.
    group_members, image: of shards, as in `data` of a recipe.
    Raises DataError naming what is missing.
    """
    _refuse_twice(classes)
    path = Path(source)
    splits = splits_of(path, tuple(classes)) if path.is_dir() else {}
    if not splits:
        return {"": open_source(source, path_column=path_column, label_column=label_column, classes=classes, group_members=group_members,
                                image=image)}
    names = tuple(classes) or tuple(sorted({name for folder in splits.values() for name in class_folders(folder)}))
    return {split: _folder(folder, names) for split, folder in splits.items()}


def open_source(
    source: str, *, path_column: str = "path", label_column: str = "label", classes: Sequence[str] = (),
    group_members: GroupMembers = "adjacent", image: str | None = None,
) -> Source:
    """open_sources() of what is no folder of splits."""
    _refuse_twice(classes)
    path = Path(source)
    if path.is_dir():
        return _folder(path, classes)
    if path.suffix.lower() in (".csv", ".parquet"):
        return _manifest(path, path_column, label_column, classes)
    return _shards(source, group_members, image)


def _refuse_twice(classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise DataError(f"the class map names {next(name for name in classes if list(classes).count(name) > 1)!r} twice")


def _folder(root: Path, classes: Sequence[str]) -> Source:
    """ROOT/CLASS/**/IMAGE, as torchvision's ImageFolder: classes are the folders sorted by name; a class map may name more of them."""
    names = class_folders(root)
    if not names:
        shards = shards_in(root)
        raise DataError(f"{root}: no class folders in it; " + (f"give its shards, such as '{root}/*{Path(shards[0]).suffix}'" if shards else
                        "wanted is a folder per class, such as cats/ and dogs/, or a manifest or shards"))
    number = _number(classes or names, names, str(root))
    found = look_through(root, names)
    if not found.pictures:
        raise DataError(f"{root}: no images in its {len(names)} class folders; known are {', '.join(IMAGES)}, and what is turned into PNG: "
                        "TIFF, GIF and AVIF")
    paths = [path for path, _ in found.pictures]
    entries = _files(paths, [str(path.relative_to(root)) for path in paths], [number[name] for _, name in found.pictures])
    return Source(entries, tuple(classes or names), mixed=False, left_out=found.left_out, hidden=found.hidden,
                  folders=tuple(number[name] for name in names))


def _manifest(path: Path, path_column: str, label_column: str, classes: Sequence[str]) -> Source:
    """Paths are relative to the manifest's folder."""
    rows = read_manifest(path, path_column, label_column)
    labels: list[int] | list[None] = [None] * len(rows)
    if label_column:
        labels, classes = number_labels([(line, label) for line, _, label in rows], classes, str(path))
    names = [name for _, name, _ in rows]
    return Source(_files([path.parent / name for name in names], names, labels), tuple(classes), mixed=False)


def _shards(url: str, group_members: GroupMembers, image: str | None) -> Source:
    """Samples of shards with all their members, damage left behind; labels and names are not looked at.

    Raises DataError where members of one key stand apart, since samples without their labels would come of it."""
    index = open_index(url, group_members=group_members, image=image)
    if group_members == "adjacent":
        for shard in range(len(index.paths)):
            if apart := index.apart(shard):
                raise DataError(f"{index.paths[shard]}: {apart}")
    reader = ShardReader(index)
    keys = _Keys()
    entries = []
    for shard, count in enumerate(index.counts.tolist()):
        for number in range(count):
            members = index.shard(shard).members(number)
            key = index.key_of(shard, number)
            size, version = sum(size for _, _, size in members), f"{index.header_sha256[shard]} {index.mtime_ns[shard]} {number}"
            entries.append(SourceSample(
                f"{index.paths[shard]}:{key}", keys.unique(key), size, version,
                lambda shard=shard, number=number: reader.read(shard, number),      # type: ignore[misc]
            ))
    return Source(entries, class_names(index), mixed=True, image=image)


def class_names(index: SetIndex) -> tuple[str, ...]:
    """The lines of classes.txt beside the first shard, if it is there."""
    try:
        return tuple((Path(index.paths[0]).parent / CLASSES).read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    except OSError:
        return ()


def _files(paths: list[Path], names: list[str], labels: list[int] | list[None]) -> list[SourceSample]:
    keys = _Keys()
    entries = []
    for path, name, label in zip(paths, names, labels, strict=True):
        try:
            info = os.stat(path)
            size, version = info.st_size, f"{info.st_size} {info.st_mtime_ns}"
        except OSError:
            size, version = 0, "missing"            # told when it is packed
        stem = _UNSAFE.sub("_", os.path.splitext(name)[0]).lstrip("/")
        read = lambda path=path, label=label: _read(path, label)      # noqa: E731  binds the two of this turn
        entries.append(SourceSample(name, keys.unique(stem), size, f"{version} {label}", read, label))
    return entries


def _read(path: Path, label: int | None) -> dict[str, bytes]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:     # a pipe would be waited for
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadSample("read", "is no regular file")
            members = {_extension(path.name) or "bin": file.read()}
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
