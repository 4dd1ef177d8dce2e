"""Shards of small JPEGs, and every way to damage them.  The n-th sample has key and label by its number alone."""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

COUNTS = (6, 6, 6)          # samples of the three shards
CLASSES = 7
VICTIM = 8                  # the sample that is hit, the third of the second shard
KEY = f"{VICTIM:06d}"


def jpeg(number: int, size: int = 96) -> bytes:
    """A picture that no other number gives, of 4 to 6 kB."""
    noise = np.random.Generator(np.random.Philox(number)).integers(0, 256, (size // 4, size // 4, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def label(number: int) -> int:
    return number % CLASSES


def build(folder: Path, replaced: dict[str, bytes | None] | None = None, twice: str | None = None) -> str:
    """Write the shards; -> their glob.  replaced: members of the victim, None to leave one out.  twice: a key to be given again, later."""
    folder.mkdir(exist_ok=True)
    number = 0
    for shard, count in enumerate(COUNTS):
        with tarfile.open(folder / f"s-{shard:03d}.tar", "w") as tar:
            for _ in range(count):
                members: dict[str, bytes | None] = {"cls": b"%d" % label(number), "jpg": jpeg(number)}
                if number == VICTIM:
                    members |= replaced or {}
                for ext, data in members.items():
                    if data is not None:
                        _add(tar, f"{number:06d}.{ext}", data)
                number += 1
            if twice and shard == 1:
                _add(tar, f"{twice}.cls", b"0")
                _add(tar, f"{twice}.jpg", jpeg(1000))
    return f"{folder}/s-*.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _hit(change: Callable[[bytearray, dict[str, tarfile.TarInfo]], bytes | bytearray | None]) -> Callable[[Path], None]:
    """A change of the bytes of the second shard, given its members."""
    def apply(folder: Path) -> None:
        path = folder / "s-001.tar"
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
        raw = bytearray(path.read_bytes())
        path.write_bytes(change(raw, members) or raw)
    return apply


def _zero(raw: bytearray, start: int, count: int = 512) -> None:
    raw[start:start + count] = bytes(count)


def _flip(raw: bytearray, at: int) -> None:
    raw[at] ^= 1


# Damage to a tar that a walk over its headers finds: name -> (damage, keys that are lost).
TAR = {
    "cut_inside_a_header": (_hit(lambda raw, m: raw[:m["000010.jpg"].offset + 100]), ["000010", "000011"]),
    "cut_inside_data": (_hit(lambda raw, m: raw[:m["000010.jpg"].offset_data + 700]), ["000010", "000011"]),
    "cut_between_members": (_hit(lambda raw, m: raw[:m["000010.jpg"].offset]), ["000010", "000011"]),
    "cut_between_samples": (_hit(lambda raw, m: raw[:m["000010.cls"].offset]), ["000010", "000011"]),
    "flipped_header_byte": (_hit(lambda raw, m: _flip(raw, m[f"{KEY}.jpg"].offset + 4)), [KEY]),
    "zeroed_header": (_hit(lambda raw, m: _zero(raw, m[f"{KEY}.jpg"].offset)), [KEY]),
    "zeroed_stretch": (_hit(lambda raw, m: _zero(raw, m[f"{KEY}.jpg"].offset, 8192)), [KEY, "000009"]),
}


def zeroed_jpeg(count: int) -> bytes:
    """The victim's image with `count` bytes of its coded data zeroed."""
    data = jpeg(VICTIM)
    return data[:1500] + bytes(count) + data[1500 + count:]


def bomb() -> bytes:
    """A PNG of 3.6 gigapixels in a few hundred bytes."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# Damage to one sample: name -> (its members, the reason it is counted under).
SAMPLE = {
    "garbage": ({"jpg": b"garbage" * 100}, "format"),
    "no_bytes": ({"jpg": b""}, "format"),
    "truncated_jpeg": ({"jpg": jpeg(VICTIM)[:3000]}, "truncated"),
    "jpeg_with_a_zeroed_block": ({"jpg": zeroed_jpeg(512)}, "decode"),
    "jpeg_with_64_zeroed_bytes": ({"jpg": zeroed_jpeg(64)}, "decode"),
    "bomb": ({"jpg": None, "png": bomb()}, "bomb"),
    "no_image": ({"jpg": None, "txt": b"text"}, "image"),
    "label_that_is_no_number": ({"cls": b"cat"}, "label"),
}

# Labels that show the recipe or the set to be wrong as a whole: name -> (members of the victim, the error of a run).
LABEL = {
    "missing_label": ({"cls": None}, f"sample '{KEY}' has no 'cls' member"),
    "label_out_of_range": ({"cls": b"7"}, f"sample '{KEY}' has the label 7"),
}


def unchanged_outside(path: Path, change: Callable[[], None]) -> None:
    """Change a shard so that neither its size nor its mtime tells."""
    info = os.stat(path)
    change()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.stat().st_size == info.st_size
