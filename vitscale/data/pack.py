"""Entries of a source -> shards, in parallel, each whole or absent; the same bytes for the same source; a killed pack goes on."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import simplejpeg
from filelock import FileLock, Timeout

from vitscale.data.bad import BadSample
from vitscale.data.draws import check_seed, inside_permutation
from vitscale.data.foreign import NATIVE, kind_of, to_png
from vitscale.data.header import read_header
from vitscale.data.image import decode_whole
from vitscale.data.index import SeveralImages, image_member
from vitscale.data.sources import CLASSES, Source, SourceSample
from vitscale.data.survive import looking_at
from vitscale.errors import DataError
from vitscale.files import write_atomically

VERSION = 1
PLAN, SUMS, BAD = "pack.json", "SHA256SUMS", "bad.jsonl"
_WORK = ".pack"             # folder inside the output: unfinished shards, a row for each finished one, the lock
Progress = Callable[[int, int], None]       # (samples done, samples in all)


@dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of the shards, besides the source."""

    prefix: str = "shard"
    shard_samples: int | None = 1000    # of each shard but the last; a bad one leaves a gap
    shard_bytes: int | None = None      # of source files in a shard, about
    shuffle: int | None = None          # seed; None keeps the order of the source
    resize: int | None = None           # pixels of the shorter side; smaller images are left as they are
    quality: int = 90                   # of the JPEGs that resized images become


@dataclass(frozen=True)
class Packed:
    """What came of it."""

    shards: int
    samples: int
    bytes: int
    kept: int                           # shards that were there from before
    bad: list[dict[str, str]]           # name, reason, detail of each entry that could not be packed
    classes: Counter[int]               # samples of each class number, where the source knows it before it is read


def pack(source: Source, out: Path, options: PackOptions, *, workers: int, on_progress: Progress | None = None) -> Packed:
    """Write OUT/PREFIX-000000.tar and on, SHA256SUMS, classes.txt, pack.json and, if entries were bad, bad.jsonl.

    Run again after a stop, it keeps the shards that are whole.  Raises DataError when OUT holds another pack or cannot be written, or
    another process is packing into it.
    """
    _check(options)
    parts = _cut(source.entries, options)
    plan = {"version": VERSION, "hash": _plan_hash(parts, source, options), "shards": len(parts), "samples": len(source.entries),
            "options": vars(options)}
    work = out / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{out}: another process is packing into it") from None
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
    try:
        _claim(out, plan, options.prefix)
        return _write_all(parts, source, out, options, workers, on_progress)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); finished shards are kept: run it again to go on") from error
    finally:
        lock.release()


def _check(options: PackOptions) -> None:
    if (options.shard_samples is None) == (options.shard_bytes is None):
        raise DataError("give one of --shard-samples and --shard-bytes")
    if not options.prefix or "/" in options.prefix or options.prefix.startswith("."):
        raise DataError(f"--prefix: {options.prefix!r} cannot begin a file name")
    if options.shuffle is not None:
        check_seed(options.shuffle)
    for name, value, high in (("shard-samples", options.shard_samples, None), ("shard-bytes", options.shard_bytes, None),
                              ("resize", options.resize, None), ("quality", options.quality, 100)):
        if value is not None and (value < 1 or (high and value > high)):
            raise DataError(f"--{name}: wants a whole number from 1{f' to {high}' if high else ''}, got {value}")


def _cut(entries: list[SourceSample], options: PackOptions) -> list[list[SourceSample]]:
    """The entries of each shard: in mixed order if asked for, cut by number or by bytes."""
    if options.shuffle is not None:
        entries = [entries[place] for place in inside_permutation(options.shuffle, 0, 0, len(entries)).tolist()]
    if options.shard_samples:
        return [entries[at:at + options.shard_samples] for at in range(0, len(entries), options.shard_samples)]
    assert options.shard_bytes
    starts = np.cumsum([0] + [entry.size for entry in entries[:-1]]) // options.shard_bytes
    cuts = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(entries)]
    return [entries[low:high] for low, high in pairwise(cuts)]


def _plan_hash(parts: list[list[SourceSample]], source: Source, options: PackOptions) -> str:
    sha = hashlib.sha256(json.dumps([VERSION, source.classes, vars(options)]).encode())
    for part in parts:
        for entry in part:
            sha.update(f"{entry.key}\0{entry.name}\0{entry.version}\0".encode("utf-8", "surrogateescape"))
        sha.update(b"\n")
    return sha.hexdigest()


def _claim(out: Path, plan: dict[str, Any], prefix: str) -> None:
    """Make OUT this plan's.  Raises DataError if it is another's."""
    try:
        there = json.loads((out / PLAN).read_bytes())
    except FileNotFoundError:
        if (first := next(out.glob("*.tar"), None)) is not None:
            raise DataError(f"{out}: holds {first.name} and more, which this did not pack; name an empty folder") from None
        write_atomically(out / PLAN, json.dumps(plan, indent=1), durable="content")
        return
    except ValueError:
        raise DataError(f"{out / PLAN}: cannot be read; remove the folder, or name another") from None
    if there.get("hash") != plan["hash"]:
        before = there.get("options", {})
        changed = [f"{name} was {before.get(name)}, is {value}" for name, value in plan["options"].items() if before.get(name) != value]
        raise DataError(f"{out}: holds another pack ({'; '.join(changed) or 'its source has changed since'}); "
                        "remove it to pack anew, or name another folder")


def _write_all(
    parts: list[list[SourceSample]], source: Source, out: Path, options: PackOptions, workers: int, on_progress: Progress | None,
) -> Packed:
    if options.resize:
        import torch

        torch.set_num_threads(1)            # the shards keep the cores busy
    rows: list[dict[str, Any] | None] = [_finished(out, _name(options, shard)) for shard in range(len(parts))]
    kept = sum(row is not None for row in rows)
    total, lock = len(source.entries), Lock()
    done = sum(len(part) for part, row in zip(parts, rows, strict=True) if row)

    def tick(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if on_progress:
                on_progress(done, total)

    tick(0)
    stopping = Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        tasks = {pool.submit(_write_shard, part, out, _name(options, shard), options, source.image, tick, stopping): shard
                 for shard, part in enumerate(parts) if rows[shard] is None}
        try:
            for task in as_completed(tasks):
                rows[tasks[task]] = task.result()
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    whole = [row for row in rows if row is not None]
    bad = [one for row in whole for one in row["bad"]]
    write_atomically(out / SUMS, "".join(f"{row['sha256']}  {row['name']}\n" for row in whole), durable="content")
    if source.classes:
        names = "".join(f"{name}\n" for name in source.classes)
        write_atomically(out / CLASSES, names.encode("utf-8", "surrogateescape"), durable="content")
    if bad:
        write_atomically(out / BAD, "".join(json.dumps(one) + "\n" for one in bad), durable="content")
    unpacked = {one["name"] for one in bad}
    classes = Counter(entry.label for entry in source.entries if entry.label is not None and entry.name not in unpacked)
    return Packed(len(whole), sum(row["samples"] for row in whole), sum(row["bytes"] for row in whole), kept, bad, classes)


def _name(options: PackOptions, shard: int) -> str:
    return f"{options.prefix}-{shard:06d}.tar"


def _finished(out: Path, name: str) -> dict[str, Any] | None:
    """The row of a shard that is there, whole."""
    try:
        row: dict[str, Any] = json.loads((out / _WORK / f"{name}.json").read_bytes())
        return row if os.path.getsize(out / name) == row["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: Any) -> None:
        self.file, self.sha, self.bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.sha.update(content)
        self.bytes += len(content)
        self.file.write(content)
        return len(content)


def _write_shard(
    entries: list[SourceSample], out: Path, name: str, options: PackOptions, image: str | None, tick: Callable[[int], None],
    stopping: Event,
) -> dict[str, Any]:
    """Write one shard under another name, then rename it, then write its row: whatever stops it, it is whole or done again."""
    from webdataset import TarWriter  # imports torch, so only here

    bad, samples = [], 0
    unfinished = out / _WORK / name
    with open(unfinished, "wb") as file:
        hashed = _Hashed(file)
        with TarWriter(hashed, encoder=False, mtime=0) as writer:
            for entry in entries:
                if stopping.is_set():
                    raise InterruptedError("another shard failed")
                try:
                    writer.write({"__key__": entry.key, **_members(entry, options, image)})
                    samples += 1
                except BadSample as error:
                    bad.append({"name": entry.name, "reason": error.reason, "detail": str(error)})
                tick(1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, out / name)
    row = {"name": name, "sha256": hashed.sha.hexdigest(), "bytes": hashed.bytes, "samples": samples, "bad": bad}
    write_atomically(out / _WORK / f"{name}.json", json.dumps(row), durable="content")
    return row


def _members(entry: SourceSample, options: PackOptions, image: str | None) -> dict[str, bytes]:
    """The members of a sample, its image checked and made smaller if asked for.  Raises BadSample."""
    members = entry.read()
    try:
        name = image_member(list(members), image)
    except SeveralImages as error:
        raise BadSample("image", str(error)) from None
    if name is None and image is None:
        name = next((name for name, data in members.items() if kind_of(data)), None)
    if name is None:
        raise BadSample("image", f"has no image (its members are {', '.join(members)})")
    with looking_at(entry.name, entry.key, members[name]):
        return _checked(members, name, options)


def _checked(members: dict[str, bytes], name: str, options: PackOptions) -> dict[str, bytes]:
    """_members() of those read, of which `name` is the image."""
    name = _as_shards_hold_it(members, name)
    pixels = decode_whole(members[name])
    height, width = pixels.shape[:2]
    if options.resize and min(height, width) > options.resize:
        from vitscale.data.decode import resize  # imports torch

        scale = options.resize / min(height, width)
        smaller = np.ascontiguousarray(resize(pixels, round(height * scale), round(width * scale)))
        data = members.pop(name)
        grey = data[:2] == b"\xff\xd8" and data[read_header(data).frame + 9] == 1      # components
        smaller, space = (smaller[:, :, :1].copy(), "GRAY") if grey else (smaller, "RGB")
        jpg = f"{name.rpartition('.')[0]}.jpg".lstrip(".")
        members[jpg] = simplejpeg.encode_jpeg(smaller, quality=options.quality, colorspace=space, colorsubsampling="420")
    return members


def _as_shards_hold_it(members: dict[str, bytes], name: str) -> str:
    """Make the image a format and give it an ending that shards know: a TIFF becomes a PNG, a .jfif a .jpg; -> its new name.

    Raises BadSample for a format that is not read."""
    kind = kind_of(members[name])
    if kind in NATIVE and image_member([name]):
        return name
    if kind is None:
        return name                 # decode_whole() says what is wrong with it
    data = members.pop(name)
    stem = name.rpartition(".")[0]
    renamed = f"{stem}.{NATIVE.get(kind, 'png')}".lstrip(".")
    members[renamed] = data if kind in NATIVE else to_png(data, kind)
    return renamed
