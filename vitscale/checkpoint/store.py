"""One checkpoint folder: sharded state, weights, facts and a manifest; published whole or not at all, read with suspicion."""

import contextlib
import fnmatch
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from vitscale.checkpoint.facts import FACTS, FORMAT, Damaged, RunFacts, read_facts, read_object
from vitscale.checkpoint.lease import Lease, LeaseLost
from vitscale.checkpoint.retain import to_delete
from vitscale.checkpoint.room import Unwritten, checkpoint_bytes, free_bytes
from vitscale.checkpoint.table import TABLE, Reader, read_table
from vitscale.checkpoint.tensors import shapes_of, write_tensors
from vitscale.errors import CheckpointError, StorageError, said
from vitscale.files import (
    files_below,
    fsync_folder,
    fsync_tree,
    is_there,
    names_in,
    passes,
    patiently,
    rename,
    sha256_of,
    write_json,
)
from vitscale.recipe import Checkpoint as CheckpointSettings
from vitscale.terminal import size as size_text

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
STATE = "state"
REPLACED = ".replaced-"     # before the name of a checkpoint whose place another one is about to take
WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"
PREFIX, EMA_PREFIX = "model.", "ema."     # of the names of the tensors that these hold
_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)    # before torch's part is tried again: by number, not by time, so that all ranks do the same
MAX_FAILURES = 3        # checkpoints in a row that may fail to be written before the run ends


class CheckpointWriter:
    """Writes checkpoints of one attempt, one at a time, behind the training's back.

    save() copies the state to host memory and returns; a thread writes it, rank 0 publishes it.

    A disk that is full, or does not answer, does not end an unattended run at once: what was trained since the last checkpoint exists
    in memory alone, quotas are raised and disks cleared while nobody looks at the run, and a restart would only throw that work away
    and come to the same disk.  So a checkpoint that cannot be written leaves nothing behind, is an error in the log at the moment it
    happens, and is tried again when the next one is due.  The third failure in a row raises Unwritten, so that no more than that many
    intervals of work are at stake; so does wait(), which asks for the last one, at the end of a run or when it is told to stop: nothing
    is lost in silence.  Whatever else goes wrong is raised at the next save(), settle() or wait().  All of it on every rank alike.
    """

    def __init__(self, folder: Path, *, rank: int, lease: Lease | None, attempt: int, settings: CheckpointSettings,
                 on_published: Callable[[int, float], None] | None = None, on_failed: Callable[[], None] | None = None) -> None:
        """`folder` is the run's checkpoints/.  Only rank 0 has a lease.  Collective: makes a process group of its own.

        Called on rank 0, in the writing thread: `on_published` with the step and the seconds from save() to the published checkpoint,
        `on_failed` when one could not be written.
        """
        self.folder, self.rank, self.lease, self.attempt, self.settings = folder, rank, lease, attempt, settings
        self.on_published, self.on_failed = on_published, on_failed
        # the thread's collectives must not mix with the training's
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._host_mesh: DeviceMesh | None = None
        self._failures = 0                          # in a row
        self._unwritten: Unwritten | None = None    # what became of the last one
        self.last_step: int | None = None
        self.lost_step: int | None = None           # the last one that could not be written

    def save(self, tensors: Mapping[str, Tensor], facts: RunFacts, replace: bool = False) -> None:
        """Stage the state and write it.  Collective.  `tensors` are named as `Engine.tensors` names them (and `ema.NAME`).
        `replace`: also if there is one of that step, which knows less."""
        self.settle()
        started = time.monotonic()
        if self._host_mesh is None:
            meshes = [tensor.device_mesh for tensor in tensors.values() if isinstance(tensor, DTensor)]
            whole = max(meshes, key=lambda mesh: mesh.ndim, default=None)
            if whole is not None and whole.device_type != "cpu":
                self._host_mesh = init_device_mesh("cpu", tuple(whole.shape), mesh_dim_names=whole.mesh_dim_names)
        staged = {name: self._staged(tensor) for name, tensor in tensors.items()}
        self._pending = self._pool.submit(self._write, staged, facts, started, replace)
        self.last_step = facts.step
        if not self.settings.background:
            self.settle()

    def settle(self) -> None:
        """Until the last save has come to its end.  That it could not be written is borne, but for the third time in a row."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self._failures, self._unwritten = 0, None
        except Unwritten as error:
            self._failures, self._unwritten, self.lost_step = self._failures + 1, error, self.last_step
            if self._failures >= MAX_FAILURES:
                self._unwritten = None
                raise Unwritten(f"{self._failures} checkpoints in a row could not be written; the last: {error}", error.may_pass) from error

    def wait(self) -> None:
        """Until the last save is published.  Raises Unwritten if it could not be; that is said once."""
        self.settle()
        error, self._unwritten = self._unwritten, None
        if error is not None:
            raise error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What ends the training is told, not that the last checkpoint was lost too: that was said when it was."""
        with contextlib.suppress(*(() if kind is None else (Unwritten,))):
            self.close()

    def _staged(self, tensor: Tensor) -> Tensor:
        """A copy on the host that training cannot change."""
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        local = tensor.to_local().detach().to("cpu", copy=True)
        mesh = tensor.device_mesh
        if mesh.device_type != "cpu":
            assert self._host_mesh is not None
            names = mesh.mesh_dim_names or ()
            mesh = self._host_mesh if mesh.ndim == self._host_mesh.ndim else self._host_mesh[names]
        return DTensor.from_local(local, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride())

    def _write(self, staged: dict[str, Tensor], facts: RunFacts, started: float, replace: bool) -> None:
        draft = self.folder / f".step-{facts.step:08d}.{self.attempt}"
        writer = dcp.FileSystemWriter(draft / STATE, single_file_per_rank=True, sync_files=False)
        needed = checkpoint_bytes(staged, dist.get_world_size(self._group) if self._group is not None else 1)
        try:
            self._on_first(lambda: self._make_room(needed, facts))
            for wait_s in (*_WAITS_S, None):
                try:
                    dcp.save(staged, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
                    break
                except dcp.api.CheckpointException as error:        # the same on every rank, once all have ended their part
                    reasons, passing = _reasons(error), _may_pass(error)
                    if passing and wait_s is not None:
                        log.warning("%s: %s; trying again", draft, reasons)
                        time.sleep(wait_s)
                        continue
                    self._on_first(lambda: self._tell(draft, reasons, passing))     # noqa: B023  called at once
            # dcp.save returns on rank 0 when every rank has written its part
            self._on_first(lambda: self._publish(draft, facts, replace))
        except Unwritten as error:
            if self.rank == 0:
                shutil.rmtree(draft, ignore_errors=True)    # on a full disk it would stand in the way of the next
                log.error("the checkpoint of step %d is lost: %s", facts.step, error)
                if self.on_failed is not None:
                    self.on_failed()
            raise
        except LeaseLost:
            shutil.rmtree(draft, ignore_errors=True)        # it is this attempt's own, and nobody else may come to clear it away
            raise
        if self.rank == 0 and self.on_published is not None:
            self.on_published(facts.step, time.monotonic() - started)

    def _on_first(self, act: Callable[[], None]) -> None:
        """Run `act` on rank 0 while the others wait; what it raises is raised on every rank, so that none goes on without the rest.
        Raises Unwritten for what the disk or its files are to blame for.

        The wait matters at the end of a run too: whoever started the ranks ends them all once the first has gone.
        """
        problem: Exception | None = None
        if self.rank == 0:
            try:
                act()
            except (Unwritten, LeaseLost) as error:
                problem = error
            except (OSError, SafetensorError, CheckpointError) as error:
                problem = Unwritten(f"{self.folder}: a checkpoint could not be written: {error}", may_pass=passes(error))
                problem.__cause__ = error
            except Exception as error:
                problem = error
        told = [(problem if isinstance(problem, Unwritten) else CheckpointError(str(problem))) if problem else None]
        if self._group is not None:
            dist.broadcast_object_list(told, src=0, group=self._group)
        if problem is not None:
            raise problem
        if told[0] is not None:
            raise told[0]

    def _make_room(self, needed: int, facts: RunFacts) -> None:
        """Clear away, and see that `needed` bytes are free before the first is written.  Raises Unwritten.

        If they are not, checkpoints that the new one would displace go before it, not after; the newest stays whatever `keep` says.
        """
        self._clear_away()
        patiently(self.folder, lambda: self.folder.mkdir(parents=True, exist_ok=True))
        there = [step_of(path) for path in checkpoints_in(self.folder)]
        for step in self._displaced([*there, facts.step], facts):
            if free_bytes(self.folder) >= needed or step == there[-1]:
                break
            log.warning("%s: only %s are free; checkpoint %d goes before the next is written", self.folder,
                        size_text(free_bytes(self.folder)), step)
            self._delete(step)
        if free_bytes(self.folder) < needed:
            raise Unwritten(f"{self.folder}: a checkpoint could not be written: it takes {size_text(needed)}, and only "
                            f"{size_text(free_bytes(self.folder))} are free; make room there, or keep fewer (checkpoint.keep)")

    def _tell(self, draft: Path, reasons: str, may_pass: bool) -> None:
        # torch's archives hide what the system said when the disk filled up; how much is free tells
        raise Unwritten(f"{draft}: a checkpoint could not be written: {reasons}; {size_text(free_bytes(self.folder))} are free there",
                        may_pass)

    def _clear_away(self) -> None:
        """Drafts and half-deleted checkpoints that killed attempts left behind: they would fill the disk."""
        if self.lease is not None:
            self.lease.check()
        for pattern in (".step-*", ".deleted-*", f"{REPLACED}*"):
            for name in fnmatch.filter(names_in(self.folder), pattern):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _publish(self, draft: Path, facts: RunFacts, replace: bool) -> None:
        for prefix, name in ((PREFIX, WEIGHTS), (EMA_PREFIX, EMA_WEIGHTS)):
            whole = read_whole(draft / STATE, prefix)
            if whole:
                write_tensors(draft / name, whole, {"format": "pt", "step": str(facts.step)})
        content = json.dumps({"format": FORMAT, **asdict(facts)}, indent=1)
        patiently(draft / FACTS, lambda: (draft / FACTS).write_text(content))
        files = {str(path.relative_to(draft)): {"bytes": patiently(path, path.stat).st_size, "sha256": sha256_of(path)}
                 for path in files_below(draft)}
        write_json(draft / MANIFEST, {"format": FORMAT, "files": files})
        fsync_tree(draft)
        final = self.folder / f"step-{facts.step:08d}"
        if self.lease is not None:
            self.lease.check()
        if is_there(final) and replace:
            before = final.with_name(f"{REPLACED}{final.name}")     # whoever finds it without the other gives it its name back
            rename(final, before)
            rename(draft, final)
            fsync_folder(self.folder)
            shutil.rmtree(before, ignore_errors=True)
        elif is_there(final):    # an earlier attempt came this far too, with the same samples: its checkpoint stands
            shutil.rmtree(draft)
        else:
            rename(draft, final)
            fsync_folder(self.folder)
        self._retain(facts)

    def _retain(self, facts: RunFacts) -> None:
        for step in self._displaced([step_of(path) for path in checkpoints_in(self.folder)], facts):
            self._delete(step)

    def _displaced(self, steps: list[int], facts: RunFacts) -> list[int]:
        """Of the checkpoints of `steps` those that may go, oldest first."""
        return to_delete(steps, self.settings.keep, facts.best["step"] if facts.best else None)

    def _delete(self, step: int) -> None:
        if self.lease is not None:
            self.lease.check()
        path = self.folder / f"step-{step:08d}"
        doomed = rename(path, path.with_name(f".deleted-{path.name}"))       # first the name, so that no half one is found
        shutil.rmtree(doomed, ignore_errors=True)     # a reader's open file may keep it for a while; _clear_away comes again


def checkpoints_in(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    found = [folder / name for name in names_in(folder) if re.fullmatch(r"step-[0-9]+", name)]
    found = [path for path in found if patiently(path, path.is_dir)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def damage_in(checkpoint: Path, only: str | None = None) -> str | None:
    """What is wrong with a checkpoint by its manifest; None if every file (or the one named) is there, whole and unchanged."""
    if not os.path.lexists(checkpoint / MANIFEST):
        return f"has no {MANIFEST}"
    try:
        manifest = read_object(checkpoint / MANIFEST)
        number, listed = manifest.get("format"), manifest.get("files")
        if type(number) is int and number != FORMAT:
            return f"has format {number}, this vitscale reads {FORMAT}"
        if type(number) is not int or not isinstance(listed, dict) or not all(
                isinstance(facts, dict) and facts.keys() >= {"bytes", "sha256"} for facts in listed.values()):
            return f"{MANIFEST} is unreadable (it is no list of files with their bytes and sha256)"
        for name in listed if only is None else [only]:
            if name not in listed:
                return f"{MANIFEST} does not name {name}"
            if (reason := _difference(checkpoint, name, listed[name])) is not None:
                return reason
        return None
    except CheckpointError as error:
        return _within(checkpoint, error)


def fault_in(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest or, where that agrees, by what its files say; None if nothing is.

    What tensors hold is not read here: restoring tells.
    """
    try:
        return damage_in(checkpoint) or _contradiction(checkpoint, read_object(checkpoint / MANIFEST)["files"])
    except CheckpointError as error:
        return _within(checkpoint, error)


def _difference(checkpoint: Path, name: str, written: Mapping[str, Any]) -> str | None:
    """In what a file is not what the manifest says of it."""
    path = checkpoint / name
    try:
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(checkpoint)):
            return f"{MANIFEST} names a file outside the checkpoint: {name}"
        if not patiently(path, path.is_file):
            return f"{name} is no regular file" if os.path.lexists(path) else f"{name} is missing"
        if (size := patiently(path, path.stat).st_size) != written["bytes"]:
            return f"{name} has {size} bytes instead of {written['bytes']}"
        if patiently(path, lambda: sha256_of(path)) != written["sha256"]:
            return f"{name} is not what was written (sha256 differs)"
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        return f"{name} cannot be read ({said(error)})"
    return None


def _contradiction(checkpoint: Path, listed: Mapping[str, Any]) -> str | None:
    """What the files of a checkpoint say against each other, or the manifest leaves out, though each is what it says.  Raises
    CheckpointError for what one of them says against itself."""
    facts, table = read_facts(checkpoint), read_table(checkpoint / STATE)
    if checkpoint in checkpoints_in(checkpoint.parent) and step_of(checkpoint) != facts.step:
        return f"{FACTS} says that it is of step {facts.step}"
    shapes = {name: tuple(item.size) for name, item in table.state_dict_metadata.items() if isinstance(item, TensorStorageMetadata)}
    needed = {FACTS, f"{STATE}/{TABLE}", *(f"{STATE}/{place.relative_path}" for place in (table.storage_data or {}).values())}
    for prefix, name in ((PREFIX, WEIGHTS), (EMA_PREFIX, EMA_WEIGHTS)):
        parts = {full.removeprefix(prefix): shape for full, shape in shapes.items() if full.startswith(prefix)}
        if parts:
            needed.add(name)
        if name in listed and shapes_of(checkpoint / name) != parts:
            return f"{name} does not hold the tensors of {STATE}/{TABLE}"
    missing = sorted(needed - listed.keys())
    return f"{MANIFEST} does not name {missing[0]}" if missing else None


def _within(checkpoint: Path, error: CheckpointError) -> str:
    """An error's words without the path of the checkpoint, which whoever shows them names."""
    words = str(error).removeprefix(f"{checkpoint}/").removeprefix(f"{checkpoint}: ")
    name, colon, rest = words.partition(": ")
    return f"{name} {rest}" if colon and " " not in name else words


def is_foreign(checkpoint: Path) -> bool:
    """Whether manifest and facts agree on another format than ours: no damage, but the work of another version."""
    try:
        formats = [read_object(checkpoint / name).get("format") for name in (MANIFEST, FACTS)]
    except CheckpointError:
        return False
    return type(formats[0]) is int and formats[0] == formats[1] != FORMAT


def shapes_in(state: Path) -> dict[str, torch.Size]:
    """Name -> global shape of every tensor of a sharded state.  Raises Damaged."""
    table = read_table(state).state_dict_metadata
    return {name: item.size for name, item in table.items() if isinstance(item, TensorStorageMetadata)}


def read_into(state: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors and DTensors by name, whatever the number of ranks that wrote them.  Collective where ranks are connected.

    Raises CheckpointError, on every rank alike: Damaged where a file is at fault and not the names and shapes that were asked for.
    """
    _load(state, targets, no_dist=not dist.is_initialized())


def _load(state: Path, targets: dict[str, Tensor], no_dist: bool) -> None:
    reader = Reader(state)
    reader.read_metadata()      # raises what is wrong with it; from inside dcp.load that would come out mangled
    try:
        dcp.load(targets, storage_reader=reader, no_dist=no_dist)
    except dcp.api.CheckpointException as error:
        if (lasting := next((cause for cause, _ in error.failures.values() if isinstance(cause, StorageError)), None)) is not None:
            raise lasting from error
        kind = Damaged if any(isinstance(cause, Damaged) for cause, _ in error.failures.values()) else CheckpointError
        raise kind(f"{state}: cannot be read: {_reasons(error)}") from error


def _reasons(error: dcp.api.CheckpointException) -> str:
    """What went wrong on which rank; an error of the operating system rather than what torch makes of it."""
    return "; ".join(f"rank {rank}: {under if isinstance(under, OSError) else said(under)}" for rank, under in _causes(error).items())


def _may_pass(error: dcp.api.CheckpointException) -> bool:
    """Whether file systems failed on every rank that failed, in a way that may pass.  The same answer on all ranks."""
    return all(map(passes, _causes(error).values()))


def _causes(error: dcp.api.CheckpointException) -> dict[int, BaseException]:
    found: dict[int, BaseException] = {}
    for rank, (cause, _) in sorted(error.failures.items()):
        under: BaseException = cause
        while not isinstance(under, OSError) and (deeper := under.__cause__ or under.__context__):
            under = deeper
        found[rank] = under if isinstance(under, OSError) else cause
    return found


def read_whole(state: Path, prefix: str) -> dict[str, Tensor]:
    """Full values of all tensors whose names start with `prefix`, which is cut off.  Not collective."""
    whole: dict[str, Tensor] = {name: torch.empty(shape) for name, shape in shapes_in(state).items() if name.startswith(prefix)}
    if whole:
        _load(state, whole, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}
