"""What a run asks of its file systems on the path of a start and of a step, under faults.

A process of its own, with the library of the faults loaded before all others:

    LD_PRELOAD=storage_faults.so python storage_ops.py FOLDER '[["write a file", "*", 5, 100], ...]'

Prints for each case, as JSON, what came of it: the value that the operation gave, or the error.
"""

import ctypes
import dataclasses
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitscale import files
from vitscale.checkpoint.lease import Lease, refuse_if_held
from vitscale.checkpoint.resume import newest_whole
from vitscale.checkpoint.store import STATE, CheckpointWriter, RunFacts, damage_in, read_facts, read_whole
from vitscale.data import reader as reader_module
from vitscale.data.bad import BadSample
from vitscale.data.index import open_index
from vitscale.data.reader import ShardReader
from vitscale.errors import UserError
from vitscale.recipe import Checkpoint, load_recipe
from vitscale.resilience.outcome import read_outcome, write_outcome
from vitscale.resilience.skips import remember, remembered

Act = Callable[[], Any]


def _lease(folder: Path) -> Act:
    def take() -> Any:
        refuse_if_held(folder)
        lease = Lease.take(folder)
        lease.check()
        return lease.number, lease.release()

    return take


def _checked_lease(folder: Path) -> Act:
    lease = Lease.take(folder)
    lease._stop.set()
    return lease.check


def _file(folder: Path) -> Act:
    def write() -> str:
        files.write_atomically(folder / "file", "content")
        return files.read_bytes(folder / "file").decode()

    return write


def _tree(folder: Path) -> Act:
    (folder / "a").mkdir()
    (folder / "a" / "file").write_text("content")
    return lambda: (files.fsync_tree(folder), files.sha256_of(folder / "a" / "file"), files.names_in(folder))


def _outcome(folder: Path) -> Act:
    def write_and_read() -> Any:
        write_outcome(folder, 75, "why", attempt=3)
        return read_outcome(folder)["reason"]

    return write_and_read


def _skips(folder: Path) -> Act:
    remember(folder, 0, 8, "a")
    return lambda: (remember(folder, 8, 16, "b"), remembered(folder))


def _recipe(folder: Path) -> Act:
    path = folder / "recipe.yaml"
    shutil.copy(Path(__file__).parents[1] / "recipes" / "quickstart.yaml", path)
    return lambda: load_recipe(path).name


def _shards(folder: Path) -> str:
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for key in range(3):
                for ext in ("jpg", "cls"):
                    member = tarfile.TarInfo(f"{key}.{ext}")
                    member.size = 1400
                    tar.addfile(member, io.BytesIO(bytes([shard, key]) * 700))
    return str(folder / "s-{0..1}.tar")


def _index(folder: Path) -> Act:
    url = _shards(folder)
    return lambda: (open_index(url).hash, open_index(url, check=False).num_samples)


def _samples(folder: Path) -> Act:
    index = open_index(_shards(folder))
    reader = ShardReader(index)

    def read() -> Any:
        try:
            return [sorted((ext, data[:2].hex()) for ext, data in reader.read(shard, sample).items())
                    for shard in range(2) for sample in range(3)]
        except BadSample as error:
            return error.reason

    return read


def _open_samples(folder: Path) -> Act:
    """Of shards that are open: the handle is stale, say."""
    read = _samples(folder)
    read()
    return read


def _writer(folder: Path) -> CheckpointWriter:
    return CheckpointWriter(folder, rank=0, lease=None, attempt=1, settings=Checkpoint())


def _facts(step: int) -> RunFacts:
    return RunFacts(step, {"position": step}, {}, "ddp", 1)


TENSORS = {"model.w": torch.arange(6.0), "optim.m": torch.ones(3)}


def _saved(folder: Path) -> Act:
    writer = _writer(folder)

    def save() -> Any:
        writer.save(TENSORS, _facts(4))
        writer.wait()
        return damage_in(folder / "step-00000004")

    return save


def _found(folder: Path) -> Act:
    writer = _writer(folder)
    for step in (4, 8):
        writer.save(TENSORS, _facts(step))
        writer.wait()

    def find() -> Any:
        newest = newest_whole(folder)
        assert newest is not None
        return newest.name, dataclasses.asdict(read_facts(newest))["step"], read_whole(newest / STATE, "model.")["w"].tolist()

    return find


OPERATIONS: dict[str, Callable[[Path], Act]] = {
    "take the run folder": _lease, "check the lease": _checked_lease, "write a file": _file, "sync a tree": _tree,
    "tell the outcome": _outcome, "remember skips": _skips, "read the recipe": _recipe, "index shards": _index, "read samples": _samples,
    "read open shards": _open_samples, "save a checkpoint": _saved, "find a checkpoint": _found,
}


def main(folder: Path, cases: list[tuple[str, str, int, int]]) -> None:
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for number, (name, calls, error, milliseconds) in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        act = OPERATIONS[name](place)
        lasting = milliseconds < 0
        files.PATIENCE_S = reader_module.READ_PATIENCE_S = 0.2 if lasting else 30.0
        files._in_vain_s = float("-inf")
        if calls:
            library.storage_fault(os.fsencode(place), calls.encode(), error, milliseconds, b"")
        try:
            came: dict[str, Any] = {"value": act()}
        except UserError as error_:
            came = {"exit_code": error_.exit_code, "said": str(error_)}
        except Exception as error_:
            came = {"error": repr(error_)}
        library.storage_fault(b"", b"", 0, 0, b"")
        print(json.dumps(came), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
