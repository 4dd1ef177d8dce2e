"""The formats of shards: how each is recognised, and how its members are found."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitscale.data import tar
from vitscale.data.members import Damage, Link, Member, ReadAt, Walk

HEAD = 512      # bytes by which a format is recognised
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"(\xb5/\xfd", "zstd"), (b"\x04\"M\x18", "lz4"),
               (b"LZIP", "lzip"), (b"PK\x03\x04", "zip"), (b"7z\xbc\xaf\x27\x1c", "7z"))


@dataclass(frozen=True)
class ShardFormat:
    """An archive in which the data of each member are one stretch of bytes, uncompressed: samples are read there, without the archive.

    walk(read_at, total, state, start): yields what is in the first `total` bytes of a shard, notes in `state` each Damage that it yields,
    and the headers, which are to tell one content from another.  It may leave out members whose data end before `start`; it raises
    nothing of its own, whatever the bytes are.
    """

    suffix: str                 # of the names of such files
    magic: tuple[int, bytes]    # where, within HEAD bytes, stands what only they have there
    walk: Callable[[ReadAt, int, Walk, int], Iterator[Member | Link | Damage]]


FORMATS: dict[str, ShardFormat] = {
    "tar": ShardFormat(".tar", (257, b"ustar"), tar.walk),
}


def format_of(name: str, head: bytes) -> str:
    """Which of FORMATS a file is of: by its first HEAD bytes, else by its name (a path or URL), else tar, as old ones have no magic."""
    for known, form in FORMATS.items():
        if head.startswith(form.magic[1], form.magic[0]):
            return known
    return next((known for known, form in FORMATS.items() if name.partition("?")[0].endswith(form.suffix)), "tar")


def compression(head: bytes) -> str | None:
    """What a file of none of FORMATS that begins so is compressed with; None for anything else."""
    return next((name for magic, name in _COMPRESSED if head.startswith(magic)), None)


def names_shards(text: str) -> bool:
    """Whether a path, a glob or a brace URL is one of shards, by its suffix."""
    endings = [form.suffix for form in FORMATS.values()]
    return any(text.endswith((one, one + "}")) or (one in text and not os.path.exists(text)) for one in endings)


def shards_in(folder: Path) -> list[str]:
    """The files of a folder that are named as shards, sorted."""
    return sorted(str(path) for form in FORMATS.values() for path in folder.glob(f"*{form.suffix}"))


def suffixes() -> str:
    """`*.tar`, for messages."""
    return " or ".join(f"*{form.suffix}" for form in FORMATS.values())
