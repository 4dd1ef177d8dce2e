"""Checkpoints are written whole or not at all, verified before they are believed, and read with suspicion."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_checkpoints import facts, flip, same_bits, state, write, writer

from vitscale.checkpoint.resume import newest_whole
from vitscale.checkpoint.retain import to_delete
from vitscale.checkpoint.room import Unwritten
from vitscale.checkpoint.store import (
    EMA_WEIGHTS,
    FACTS,
    MANIFEST,
    STATE,
    WEIGHTS,
    checkpoints_in,
    damage_in,
    read_facts,
    read_into,
    read_whole,
    shapes_in,
    step_of,
)
from vitscale.errors import CheckpointError
from vitscale.files import sha256_of, write_json

# what is written is what is read


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    assert [step_of(path) for path in checkpoints_in(folder)] == [10, 20]
    assert damage_in(checkpoint) is None
    assert newest_whole(folder) == checkpoint
    assert read_facts(checkpoint) == facts(20)
    expected = state(20)
    assert shapes_in(checkpoint / STATE) == {name: tensor.shape for name, tensor in expected.items()}
    targets = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    read_into(checkpoint / STATE, targets)
    assert all(same_bits(targets[name], expected[name]) for name in expected)
    for prefix, file in (("model.", WEIGHTS), ("ema.", EMA_WEIGHTS)):
        ours = {name.removeprefix(prefix): tensor for name, tensor in expected.items() if name.startswith(prefix)}
        for found in (read_whole(checkpoint / STATE, prefix), load_file(checkpoint / file)):
            assert found.keys() == ours.keys()
            assert all(same_bits(found[name], ours[name]) for name in ours)


def test_without_averages_there_is_no_file_of_them(tmp_path: Path) -> None:
    (checkpoint,) = write(tmp_path, 1, tensors={"model.w": torch.ones(2)})
    assert sorted(path.name for path in checkpoint.iterdir()) == [MANIFEST, WEIGHTS, FACTS, STATE]
    assert damage_in(checkpoint) is None


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path) -> None:
    tensors, expected = state(), state()
    behind = writer(tmp_path)
    gate = threading.Event()
    behind._pool.submit(gate.wait)      # the thread is busy: nothing is written before the tensors change
    behind.save(tensors, facts(1))
    assert checkpoints_in(tmp_path) == []
    for tensor in tensors.values():
        tensor.fill_(-1)
    gate.set()
    behind.close()
    (checkpoint,) = checkpoints_in(tmp_path)
    targets = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    read_into(checkpoint / STATE, targets)
    assert all(same_bits(targets[name], expected[name]) for name in expected)
    assert same_bits(load_file(checkpoint / WEIGHTS)["weight"], expected["model.weight"])


def test_in_the_foreground_it_is_there_on_return(tmp_path: Path) -> None:
    here = writer(tmp_path, background=False)
    here.save(state(), facts(1))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000001"]
    here.close()


def test_a_checkpoint_is_never_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "step-00000020").rglob("*") if path.is_file()}
    write(folder, 20, tensors=state(99))
    assert {path: path.read_bytes() for path in (folder / "step-00000020").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000020"]


def test_a_state_of_another_model_is_not_read_in(folder: Path) -> None:
    where = folder / "step-00000020" / STATE
    with pytest.raises(CheckpointError, match=r"state.*model\.absent"):
        read_into(where, {"model.absent": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"state.*model\.weight"):
        read_into(where, {"model.weight": torch.zeros(7, 6)})


# which are kept


@given(st.lists(st.integers(0, 10**6), unique=True), st.integers(1, 5), st.one_of(st.none(), st.integers(0, 10**6)))
def test_the_newest_and_the_best_are_kept(steps: list[int], keep: int, best: int | None) -> None:
    doomed = to_delete(steps, keep, best)
    kept = set(steps) - set(doomed)
    assert set(doomed) <= set(steps)
    assert len(doomed) == len(set(doomed))
    assert set(sorted(steps)[-keep:]) <= kept
    assert best not in doomed
    assert len(kept) == min(len(steps), keep) + (best in steps and best not in sorted(steps)[-keep:])
    assert doomed == sorted(doomed)
    assert to_delete(kept, keep, best) == []        # once is enough


def test_old_ones_go_and_the_best_stays(tmp_path: Path) -> None:
    two = writer(tmp_path, keep=2)
    for step in range(1, 7):
        two.save({"model.w": torch.ones(2)}, facts(step, best=2 if step >= 2 else None))
    two.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]
    assert all(damage_in(path) is None for path in checkpoints_in(tmp_path))


def test_what_killed_attempts_left_is_cleared_away(folder: Path) -> None:
    for name in (".step-00000030.1", ".deleted-step-00000005"):
        shutil.copytree(folder / "step-00000010", folder / name)
    shutil.copytree(folder / "step-00000010", folder / "damaged-step-00000008")     # kept for people to look at
    write(folder, 40)
    assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-00000008", "step-00000010", "step-00000020", "step-00000040"]


# damage


FILES = [".metadata", "__0_0.distcp"]
ALL_FILES = sorted([MANIFEST, FACTS, WEIGHTS, EMA_WEIGHTS, *(f"{STATE}/{name}" for name in FILES)])


def test_these_are_all_files(pristine: Path) -> None:
    checkpoint = pristine / "step-00000020"
    assert sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()) == ALL_FILES
    assert sorted([MANIFEST, *json.loads((checkpoint / MANIFEST).read_text())["files"]]) == ALL_FILES


DAMAGE = {
    "first byte": lambda path: flip(path, 0),
    "middle": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -2 if path.name == MANIFEST else -1),      # (the last line feed of a manifest says nothing)
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - (2 if path.name == MANIFEST else 1)),
    "emptied": lambda path: os.truncate(path, 0),
    "a byte long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ALL_FILES)
def test_damage_to_any_file_is_named(name: str, folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    for kind, damage in DAMAGE.items():
        copy = Path(shutil.copytree(checkpoint, folder / f"step-{len(list(folder.iterdir())) + 30:08d}"))
        damage(copy / name)
        reason = damage_in(copy)
        assert reason is not None, kind
        # a flip inside the manifest can only show as a contradiction to some file
        assert name in reason or (name == MANIFEST and kind == "middle"), (kind, reason)
    assert damage_in(checkpoint) is None


def test_a_flip_in_any_byte_of_a_manifest_is_seen(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    path = checkpoint / MANIFEST
    content = path.read_bytes()
    unseen = []
    for at in range(len(content) - 1):
        flip(path, at, at % 7)
        if damage_in(checkpoint) is None:
            unseen.append((at, path.read_bytes()))
        path.write_bytes(content)
    assert unseen == []


@pytest.mark.parametrize("manifest", [
    "", "null", "[]", "3", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {"run.json": {}}}',
    '{"format": 1, "files": {"run.json": null}}', '{"files": {}}',
])
def test_a_manifest_of_another_form_is_damage(manifest: str, folder: Path) -> None:
    (folder / "step-00000020" / MANIFEST).write_text(manifest)
    assert damage_in(folder / "step-00000020").startswith(f"{MANIFEST} is unreadable")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "state/../../secret", "nul\0"])
def test_a_manifest_stays_in_its_folder(name: str, folder: Path) -> None:
    (folder / "secret").write_text("x")
    checkpoint = folder / "step-00000020"
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": sha256_of(folder / "secret")}
    write_json(checkpoint / MANIFEST, manifest)
    assert ("outside the checkpoint" in damage_in(checkpoint)) == ("\0" not in name)


def test_a_link_out_of_the_folder_is_damage(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    shutil.move(checkpoint / WEIGHTS, folder / "elsewhere")
    (checkpoint / WEIGHTS).symlink_to(folder / "elsewhere")
    assert damage_in(checkpoint) == f"{MANIFEST} names a file outside the checkpoint: {WEIGHTS}"


def test_one_file_can_be_asked_about(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    flip(checkpoint / STATE / "__0_0.distcp", 100)
    assert damage_in(checkpoint, only=WEIGHTS) is None
    flip(checkpoint / WEIGHTS, 100)
    assert WEIGHTS in damage_in(checkpoint, only=WEIGHTS)
    assert "does not name other" in damage_in(checkpoint, only="other")


def test_a_damaged_one_is_put_aside_and_the_one_before_it_is_taken(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(folder / "step-00000020" / WEIGHTS, -1)
    assert newest_whole(folder) == folder / "step-00000010"
    assert "step-00000020 is damaged: model.safetensors is not what was written" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-00000020", "step-00000010"]
    write(folder, 20)       # the steps are done again, and damaged again
    flip(folder / "step-00000020" / FACTS, -1)
    assert newest_whole(folder) == folder / "step-00000010"
    assert sorted(path.name for path in folder.iterdir()) == ["damaged-step-00000020", "damaged-step-00000020-2", "step-00000010"]


def test_a_run_without_a_whole_checkpoint_does_not_start_afresh(folder: Path) -> None:
    (folder / "step-00000020" / FACTS).unlink()
    (folder / "step-00000010" / MANIFEST).unlink()
    with pytest.raises(CheckpointError) as error:
        newest_whole(folder)
    assert f"no checkpoint is whole (step-00000020: {FACTS} is missing; step-00000010: has no {MANIFEST})" in str(error.value)
    assert newest_whole(folder) is None     # they lie aside: who starts again wants a fresh start


def test_no_checkpoint_is_no_damage(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None


def test_what_was_not_published_is_not_found(folder: Path) -> None:
    (folder / ".step-00000030.1" / STATE).mkdir(parents=True)
    (folder / ".step-00000030.1" / STATE / "__0_0.distcp").write_bytes(b"half")
    (folder / "step-notes").mkdir()
    (folder / "step-00000050").write_text("a file")
    assert [step_of(path) for path in checkpoints_in(folder)] == [10, 20]
    assert newest_whole(folder) == folder / "step-00000020"


def renumber(path: Path, number: int) -> None:
    values = json.loads(path.read_text()) | {"format": number}
    path.write_text(json.dumps(values))


def test_the_work_of_another_version_is_refused_and_left_alone(folder: Path) -> None:
    newest = folder / "step-00000020"
    renumber(newest / FACTS, 2)
    with pytest.raises(CheckpointError, match=r"step-00000020: was written by another version of vitscale"):
        read_facts(newest)
    renumber(newest / MANIFEST, 2)
    assert damage_in(newest) == "has format 2, this vitscale reads 1"
    with pytest.raises(CheckpointError, match="step-00000020: has format 2, this vitscale reads 1"):
        newest_whole(folder)
    assert newest.is_dir()
    renumber(newest / FACTS, 1)     # the two disagree: damage
    assert newest_whole(folder) == folder / "step-00000010"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "step": 3, "colour": 1}'])
def test_unreadable_facts_are_named(content: str, folder: Path) -> None:
    (folder / "step-00000020" / FACTS).write_text(content)
    with pytest.raises(CheckpointError, match=FACTS):
        read_facts(folder / "step-00000020")


# a disk that takes no more


FULL = """
import resource, sys
from pathlib import Path
import torch
from vitscale.checkpoint.store import RunFacts, CheckpointWriter, checkpoints_in
from vitscale.checkpoint.table import Reader
from vitscale.errors import CheckpointError
from vitscale.recipe import Checkpoint
folder = Path(sys.argv[1])
writer = CheckpointWriter(folder, rank=0, lease=None, attempt=1, settings=Checkpoint())
facts = lambda step: RunFacts(step, {}, {}, "ddp", 1)
writer.save({"model.w": torch.ones(10)}, facts(1))
writer.wait()
for step, (limit, dtype) in enumerate([(100_000, torch.float32), (300_000, torch.bfloat16)], 2):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    writer.save({"model.w": torch.ones(100_000, dtype=dtype)}, facts(step))     # returns: it is written behind
    try:
        writer.wait()
        print("written")
    except CheckpointError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*(path.name for path in checkpoints_in(folder)))
writer.save({"model.w": torch.ones(10)}, facts(4))      # there is room again
writer.close()
print(*sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.slow       # a process of its own, for the limit on file sizes, that imports torch
def test_a_full_disk_is_an_error_and_publishes_nothing(tmp_path: Path) -> None:
    """The first limit stops the state; the second leaves room for it (bf16), but not for the fp32 weights beside it."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second, published, after = done.stdout.splitlines()
    for message in (first, second):
        assert "a checkpoint could not be written" in message
        assert os.strerror(errno.EFBIG) in message
    assert str(tmp_path) in first
    assert published == "step-00000001"
    assert after == "step-00000001 step-00000004"


def test_a_failure_in_the_background_is_borne_by_the_next_save_and_raised_by_wait(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    behind = writer(tmp_path / "checkpoints")
    behind.save(state(), facts(1))
    behind.save(state(), facts(2))
    with pytest.raises(Unwritten, match="could not be written"):
        behind.wait()
    behind.close()      # said once
