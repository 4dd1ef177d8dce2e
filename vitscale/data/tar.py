"""Walk the headers of a plain tar, damaged or not.  Reads no member's data and never turns a member's name into a path."""

import posixpath
from collections.abc import Iterator

import numpy as np

from vitscale.data.members import Damage, Link, Member, ReadAt, Walk

BLOCK = 512
_WINDOW = 1 << 18           # bytes read at once while members are small
_SCAN = 1 << 22             # bytes read at once while looking for the next header
_LONGEST_NAME = 1 << 20     # bytes of an extended header that are believed
_NO_DATA = b"123456"        # links, devices, directories, FIFOs: nothing follows the header, whatever its size field says
_REGULAR = b"0\x007"


class _BadHeader(Exception):
    pass


def walk(read_at: ReadAt, total: int, state: Walk, start: int = 0) -> Iterator[Member | Link | Damage]:
    """Yield regular members and links in file order, and each Damage at its place among them; fill `state` on the way.

    Understands ustar, GNU long names and pax records of path, linkpath and size (POSIX.1-2017, pax, "Interchange Format"), and base-256
    sizes.  A sparse member's data lie condensed in the tar: it is Damage, not a member.
    After a header that cannot be right, goes on at the next block that is a header with a magic and a correct checksum.
    total: bytes of the file.  start: where the data of a member end, 0 for the first.
    """
    window = _Window(read_at, total)
    shared: dict[str, str] = {}         # pax records for every member to come ('g')
    own: dict[str, str] = {}            # records for the next member alone ('x', 'L')
    at = start = _padded(start)         # where we are; where the next member's first header lies
    while at < total:
        block = window.read(at, BLOCK)
        try:
            if len(block) < BLOCK:
                raise _BadHeader("truncated inside a header")
            if not block.strip(b"\0"):
                if not _more_than_zeros(read_at, at + BLOCK, total):
                    return
                raise _BadHeader("zeros where a header was expected")
            kind, size, name = _parse(block)
            state.sha.update(block)
            data = at + BLOCK
            if kind in b"xgLK":
                text = _extension(window, data, size)
                state.sha.update(text)
                (shared if kind == b"g" else own).update(_records(text) if kind in b"xg" else {_EXTENDS[kind]: _text(text)})
                at = data + _padded(size)
                continue
            records = shared | own
            own = {}
            name = records.get("path", name)
            size = _decimal(records["size"]) if "size" in records and kind not in _NO_DATA else size
            regular = kind in _REGULAR and not (kind == b"\0" and name.endswith("/"))
            if kind == b"S" or any(record.startswith("GNU.sparse.") for record in records):
                data += _sparse_map(window, block, data) if kind == b"S" else 0
                regular = False
                yield state.note(Damage(start, data, f"sparse member {name!r}; repack it as a plain file", name))
            if kind in _NO_DATA or data + size <= total:
                if regular:
                    yield Member(name, start, data, size)
                elif kind in b"12":
                    yield Link(name, start, _target(name, records.get("linkpath", _text(block[157:257])), kind == b"1"))
                at = start = data + (0 if kind in _NO_DATA else _padded(size))
                continue
            damage = Damage(start, total, f"truncated inside {name!r}: {data + size - total} bytes are missing", name)
        except _BadHeader as error:
            found = _next_header(read_at, at + BLOCK, total)
            damage = Damage(start, total if found is None else found, str(error))
        yield state.note(damage)
        own = {}
        at = start = damage.end
    if not (state.damage and state.damage[-1].end >= total):
        yield state.note(Damage(total, total, "no end-of-archive marker: the last sample may lack members"))


_EXTENDS = {b"L": "path", b"K": "linkpath"}     # of GNU's headers: the record that each stands for


def _extension(window: "_Window", data: int, size: int) -> bytes:
    """What an extended header holds.  Raises _BadHeader."""
    if size > _LONGEST_NAME:
        raise _BadHeader("an extended header of impossible size")
    text = window.read(data, size)
    if len(text) < size:
        raise _BadHeader("truncated inside an extended header")
    return text


class _Window:
    """read_at, reading ahead while members are small and header by header while they are large."""

    def __init__(self, read_at: ReadAt, total: int) -> None:
        self.read_at, self.total = read_at, total
        self.start, self.bytes = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        here = offset - self.start
        if not 0 <= here <= len(self.bytes) - size:
            near = 0 <= here - len(self.bytes) < _WINDOW // 8 or (0 <= here <= len(self.bytes))
            self.start, self.bytes = offset, self.read_at(offset, max(size, _WINDOW if near else BLOCK))
            here = 0
        return self.bytes[here:here + size]


def _parse(block: bytes) -> tuple[bytes, int, str]:
    """A header block -> (type flag, size in bytes, name).  Raises _BadHeader."""
    stored = _octal(block[148:156])
    unsigned = sum(block) - sum(block[148:156]) + 256           # the checksum's own field counts as eight spaces
    if stored != unsigned:
        high = sum(byte >= 128 for byte in block[:148] + block[156:])
        if stored != unsigned - 256 * high:                     # some old tars summed signed bytes
            raise _BadHeader("a header whose checksum is wrong")
    size = _number(block[124:136])
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500]) + "/" + name
    return block[156:157], size, name


def _sparse_map(window: "_Window", block: bytes, at: int) -> int:
    """Bytes of the further blocks that list where the data of an old GNU sparse member belong (GNU tar manual, "Old GNU Format")."""
    more, size = block[482], 0
    while more:
        following = window.read(at + size, BLOCK)
        size += BLOCK
        more = following[504] if len(following) == BLOCK else 0
    return size


def _target(name: str, written: str, hard: bool) -> str:
    """A hard link names a member; a symbolic link is relative to its own folder."""
    return posixpath.normpath(written if hard else posixpath.join(posixpath.dirname(name), written))


def _octal(digits: bytes) -> int:
    text = digits.replace(b"\0", b" ").strip()
    if not text:
        return 0
    try:
        return int(text.split()[0], 8)
    except ValueError:
        raise _BadHeader("a header whose number field holds no number") from None


def _number(digits: bytes) -> int:
    if digits[0] == 0o200:                                      # base 256, GNU tar's way past 8 GiB
        return int.from_bytes(digits[1:], "big")
    size = _octal(digits)
    if digits[0] == 0o377 or size < 0:
        raise _BadHeader("a header with a negative size")
    return size


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise _BadHeader("a pax size that is no number")
    return int(text)


def _records(text: bytes) -> dict[str, str]:
    """pax records `LENGTH KEY=VALUE\\n`."""
    records: dict[str, str] = {}
    while text.strip(b"\0"):
        length, space, _ = text.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(text):
            raise _BadHeader("a pax record that cannot be read")
        key, equals, value = text[len(length) + 1:int(length) - 1].partition(b"=")
        if not equals:
            raise _BadHeader("a pax record that cannot be read")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        text = text[int(length):]
    return records


def _text(field_bytes: bytes) -> str:
    return field_bytes.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _more_than_zeros(read_at: ReadAt, offset: int, total: int) -> bool:
    """Whether anything but the zeros that end an archive follows."""
    while offset < total:
        chunk = read_at(offset, min(_SCAN, total - offset))
        if not chunk or chunk.strip(b"\0"):
            return bool(chunk)
        offset += len(chunk)
    return False


def _next_header(read_at: ReadAt, offset: int, total: int) -> int | None:
    """The first block at or after `offset` (a multiple of 512) that is a header for certain; None if none is left."""
    while offset + BLOCK <= total:
        chunk = read_at(offset, min(_SCAN, total - offset))
        blocks = np.frombuffer(chunk, np.uint8, len(chunk) // BLOCK * BLOCK).reshape(-1, BLOCK)
        if not len(blocks):
            return None
        for row in np.flatnonzero((blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)):
            try:
                _parse(blocks[row].tobytes())
                return offset + int(row) * BLOCK
            except _BadHeader:
                continue
        offset += len(blocks) * BLOCK
    return None
