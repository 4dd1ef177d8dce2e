"""Which samples are being decoded this moment, where the death of the process leaves it to be read: so a sample that ends one attempt of a
run is left out of the next.

A library that falls over an image takes the process with it, again at the same step after every restart.  Before each decode its sample is
written into mapped memory of a file (`logs/decoding-rank-N.bin`), which takes a microsecond and no call of the system; a process that dies
by a signal of its own making (SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE) leaves its stacks in `logs/crash-rank-N.txt`, by faulthandler.
"""

import contextlib
import faulthandler
import json
import logging
import mmap
import os
import struct
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from vitscale.counts import plural
from vitscale.data.bad import BadSample
from vitscale.data.decoded_before import sum_of
from vitscale.data.index import SetIndex
from vitscale.data.reader import ShardReader
from vitscale.data.under_way import SLOTS, Slots, kills, left_in
from vitscale.errors import DataError
from vitscale.files import write_atomically
from vitscale.recipe import Recipe

log = logging.getLogger(__name__)
FILE = "crashers.jsonl"
_SLOT = struct.Struct("<8q22d")             # busy, split, shard, number, offset, size, sound, draws that follow; the draws of its crop
_DRAWS = 22
_MOST_TRIALS = 32                           # of one attempt: a thousand ranks that a lost peer ended have no image to blame
SPLITS = ("train", "val")


class Watching(Protocol):
    """Who is told what is being decoded, by many threads."""

    def refuse(self, data: bytes, found: int) -> None:
        """Before decoding(), by the same thread.  Raises BadSample for an image that is not to be decoded.  found: sum_of() its bytes."""

    def decoding(self, split: int, shard: int, number: int, offset: int, size: int, sound: bool,
                 draws: Sequence[float]) -> AbstractContextManager[None]:
        """Around the decode of one sample."""


@dataclass
class Crumbs:
    """Of one process.  Without a file where none can be made: training goes on all the same."""

    slots: Slots
    crashers: frozenset[tuple[int, int]]    # (bytes, sum of all bytes) of images that are not to be decoded
    paths: tuple[Path, ...] = ()
    crash: int = -1                         # faulthandler's file descriptor
    told_before: bool = False               # whether faulthandler was at work, on stderr

    @classmethod
    def open(cls, run_folder: Path, rank: int, crashers: Sequence[dict[str, Any]]) -> Self:
        known = frozenset((row["bytes"], row["sum"]) for row in crashers)
        paths = tuple(run_folder / "logs" / name for name in (f"decoding-rank-{rank}.bin", f"crash-rank-{rank}.txt"))
        try:
            with open(paths[0], "wb+") as file:
                file.write(bytes(SLOTS * _SLOT.size))      # written, so that no page of it lacks its place on the disk
                file.flush()
                memory = mmap.mmap(file.fileno(), SLOTS * _SLOT.size)
            crash = os.open(paths[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            log.warning("%s: %s; should a decoder fall, it will not be known over which sample", paths[0], error.strerror)
            return cls(Slots(mmap.mmap(-1, SLOTS * _SLOT.size), _SLOT), known)
        before = faulthandler.is_enabled()
        faulthandler.enable(crash)
        return cls(Slots(memory, _SLOT), known, paths, crash, before)

    def decoding(self, split: int, shard: int, number: int, offset: int, size: int, sound: bool,
                 draws: Sequence[float]) -> AbstractContextManager[None]:
        return self.slots.holding(split, shard, number, offset, size, sound, len(draws), *(draws or _NO_DRAWS))

    def refuse(self, data: bytes, found: int) -> None:
        """Raises BadSample for an image that is one of the crashers.  found: sum_of() its bytes."""
        if self.crashers and (len(data), found) in self.crashers:
            raise BadSample("crash", f"crashed the decoder in an earlier attempt ({FILE} names it)")

    def close(self) -> None:
        """In good order: nothing is left to be read."""
        if self.paths:
            faulthandler.disable()
            if self.told_before and sys.__stderr__ is not None:
                faulthandler.enable(sys.__stderr__)
            os.close(self.crash)
            for path in self.paths:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


_NO_DRAWS = (0.0,) * _DRAWS


@dataclass(frozen=True)
class Setting:
    """What decode() was given besides an image's bytes and draws, in both splits."""

    image: int
    channels: int
    exif: bool
    scale: tuple[float, float]      # of the random crop
    ratio: tuple[float, float]
    crop: float                     # of the centre crop

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        model, data = recipe.model, recipe.data
        return cls(model.image, model.channels, data.exif_orientation == "apply", data.augment.scale, data.augment.ratio,
                   recipe.evaluate.crop)


def known_crashers(run_folder: Path) -> list[dict[str, Any]]:
    """The samples that have crashed a decoder in attempts of this run.  Raises DataError for a list that cannot be read."""
    path = run_folder / FILE
    try:
        return [row for row in map(json.loads, path.read_text().splitlines()) if (row["bytes"], row["sum"])] if path.exists() else []
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: is unreadable; mend it by hand: it names samples that this run must not decode") from None


def find_crashers(run_folder: Path, indexes: Sequence[SetIndex | None], setting: Setting, attempt: int) -> list[dict[str, Any]]:
    """What known_crashers() says, after looking at what the attempt before this one has left.  For the holder of the run folder alone.

    A sample is one if its decode was under way in a process that died by a signal of its own making, and a process that decodes it just so
    dies too; or if it was the only one under way and the thread that fell was decoding.  Written durably before it is acted on.
    """
    rows, trials = known_crashers(run_folder), _MOST_TRIALS
    left = {crash: crash.read_bytes() for crash in sorted((run_folder / "logs").glob("crash-rank-*.txt"))}
    for crash, words in sorted(left.items(), key=lambda item: not _in_decode(item[1])):
        rank = crash.stem.rpartition("-")[2]
        if words and trials > 0:
            said = words.splitlines()[0].decode(errors="replace")
            suspects = _under_way(run_folder / "logs" / f"decoding-rank-{rank}.bin", indexes)
            log.warning("rank %s of the attempt before this one died (%s) while it decoded %s", rank, said, plural(len(suspects), "image"))
            guilty = [one for one in suspects[:trials] if kills(one[0], {**one[2], **vars(setting)})]
            trials -= len(suspects)
            if not guilty and len(suspects) == 1 and _in_decode(words):
                guilty = suspects
            for _, row, _ in guilty:
                log.error("sample '%s' of %s crashed the decoder; from now on it is passed over", row["key"], row["shard"])
                rows.append({**row, "attempt": attempt - 1, "rank": int(rank), "reason": "crashed the decoder", "said": said})
            if suspects and not guilty:
                log.warning("none of them crashes a decoder by itself: %s", ", ".join(row["key"] for _, row, _ in suspects[:8]))
    if len(rows) > len(known_crashers(run_folder)):
        write_atomically(run_folder / FILE, "".join(json.dumps(row) + "\n" for row in rows))
    for crash in left:              # last: a kill before this has them looked at again
        crash.unlink(missing_ok=True)
    for memory in (run_folder / "logs").glob("decoding-rank-*.bin"):
        memory.unlink(missing_ok=True)
    return rows


def _in_decode(words: bytes) -> bool:
    """Whether the thread that fell was in decode(), by faulthandler's words: others fall too, such as those of NCCL."""
    _, _, fallen = words.partition(b"Current thread")
    return b"vitscale/data/decode.py" in fallen.partition(b"\n\n")[0]


_Suspect = tuple[bytes, dict[str, Any], dict[str, Any]]     # the image, its row, what decode() was given


def _under_way(path: Path, indexes: Sequence[SetIndex | None]) -> list[_Suspect]:
    """The images that a dead process was decoding, as far as they can be read."""
    found: list[_Suspect] = []
    memory = path.read_bytes() if path.is_file() else b""
    for split, shard, number, offset, size, sound, count, *draws in left_in(memory, _SLOT):
        index = indexes[split] if 0 <= split < len(indexes) else None
        if index is None or not 0 <= shard < len(index.paths) or not 0 <= number < index.counts[shard]:
            continue
        reader = ShardReader(index)
        try:
            data = reader.pread(shard, offset, size)
            row = {"split": SPLITS[split], "shard": index.paths[shard], "key": index.key_of(shard, number), "bytes": size,
                   "sum": sum_of(data)}
            found.append((data, row, {"draws": draws[:count], "sound": bool(sound), "random": count > 0}))
        except (BadSample, DataError) as error:
            log.warning("sample %d of %s, which was being decoded then, cannot be read: %s", number, index.paths[shard], error)
        finally:
            reader.close()
    return found
