"""Checkpoints are written whole or not at all, verified before they are believed, and read with suspicion."""

import dataclasses
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from vitscale.checkpoint.resume import newest_whole
from vitscale.checkpoint.retain import to_delete
from vitscale.checkpoint.room import Unwritten
from vitscale.checkpoint.store import (
    EMA_WEIGHTS,
    FACTS,
    MANIFEST,
    STATE,
    WEIGHTS,
    CheckpointWriter,
    RunFacts,
    checkpoints_in,
    damage_in,
    read_facts,
    read_into,
    read_whole,
    shapes_in,
    step_of,
)
from vitscale.checkpoint.table import Reader
from vitscale.errors import CheckpointError
from vitscale.files import sha256_of, write_json
from vitscale.recipe import Checkpoint

AWKWARD = torch.tensor([0.1, -0.0, 1e-45, 3.4e38, float("inf"), 1 / 3])      # a denormal, a negative zero


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=generator)
    return {"model.weight": weight, "model.bias": AWKWARD.clone(), "ema.weight": weight / 3, "ema.bias": AWKWARD * 0.5,
            "optim.weight.exp_avg": torch.randn(7, 5, generator=generator), "optim.weight.step": torch.tensor(17.0)}


def facts(step: int, best: int | None = None) -> RunFacts:
    data = {"index_hash": "ab", "seed": 3, "position": 100 * step, "skips": [[8, 16]]}
    best_so_far = {"step": best, "metric": "eval_top1", "value": 0.5} if best else None
    recipe = {"name": "x", "model": {"width": 5}}
    return RunFacts(step, data, recipe, "fsdp", 4, best_so_far, {"value": 0.5, "evaluations": 2}, {"torch": "2"})


def writer(folder: Path, **settings: object) -> CheckpointWriter:
    return CheckpointWriter(folder, rank=0, lease=None, attempt=1, settings=Checkpoint(**settings))


def write(folder: Path, *steps: int, tensors: Mapping[str, torch.Tensor] | None = None) -> list[Path]:
    with_all = writer(folder, keep=99)
    for step in steps:
        with_all.save(tensors or state(step), facts(step))
    with_all.close()
    return checkpoints_in(folder)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints/ with steps 10 and 20; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("pristine")
    write(folder, 10, 20)
    return folder


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


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


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


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


# a table of contents that was made to harm


class Payload:
    """Pickles as a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def table(checkpoint: Path) -> object:
    with open(checkpoint / STATE / ".metadata", "rb") as file:
        return pickle.load(file)


def plant(checkpoint: Path, content: object) -> None:
    """Put another table of contents in, with a manifest that agrees."""
    path = checkpoint / STATE / ".metadata"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][f"{STATE}/.metadata"] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(checkpoint / MANIFEST, manifest)
    assert damage_in(checkpoint) is None


def refused(checkpoint: Path) -> str:
    messages = []
    for read in (lambda: shapes_in(checkpoint / STATE), lambda: read_whole(checkpoint / STATE, "model."),
                 lambda: read_into(checkpoint / STATE, {"model.weight": torch.zeros(7, 5)})):
        with pytest.raises(CheckpointError, match=r"state/\.metadata: ") as error:
            read()
        messages.append(str(error.value))
    assert len(set(messages)) == 1, messages
    return messages[0]


def test_a_pickle_that_calls_is_not_obeyed(folder: Path) -> None:
    checkpoint, victim = folder / "step-00000020", folder / "victim"
    calls = [(os.system, f"touch {victim}"), (os.mkdir, str(victim)), (eval, f"open({str(victim)!r}, 'w')"), (open, str(victim), "w"),
             (torch.save, 1, str(victim)), (subprocess.check_call, ["touch", str(victim)])]
    for call in calls:
        hidden = table(checkpoint)
        for content in (Payload(*call), dataclasses.replace(hidden, planner_data=Payload(*call))):
            plant(checkpoint, content)
            assert "refuses to load" in refused(checkpoint)
            assert not victim.exists()
            pickle.loads((checkpoint / STATE / ".metadata").read_bytes())        # the trap is a real one
            assert victim.exists()
            shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        plant(checkpoint, hidden)


def test_a_dotted_way_out_of_an_allowed_module_is_refused(folder: Path) -> None:
    victim = folder / "victim"
    # protocol 4 finds attributes of attributes
    ways = [(b"torch", b"os.mkdir"), (b"pathlib", b"os.mkdir"), (b"torch.serialization", b"os.mkdir"), (b"collections", b"abc.sys.exit")]
    for module, name in ways:
        strings = b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, name))
        argument = b"\x8c" + bytes([len(str(victim))]) + str(victim).encode()
        plant(folder / "step-00000020", b"\x80\x04" + strings + b"\x93" + argument + b"\x85R.")
        assert "refuses to load" in refused(folder / "step-00000020")
        assert not victim.exists()


def test_only_tensors_are_let_in(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    contents = table(checkpoint)
    contents.state_dict_metadata["model.code"] = BytesStorageMetadata()
    plant(checkpoint, contents)
    assert "BytesStorageMetadata" in refused(checkpoint)
    for content in ({"model.weight": 1}, [], None, contents.storage_meta):
        plant(checkpoint, content)
        assert "holds more than tensors" in refused(checkpoint)


@pytest.mark.parametrize("where", ["../__0_0.distcp", "/etc/hostname", "..", "", "sub/file", "../../../secret"])
def test_it_points_into_its_own_folder(where: str, folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    contents = table(checkpoint)
    for item in contents.storage_data.values():
        item.relative_path = where
    plant(checkpoint, contents)
    assert refused(checkpoint).endswith(f"points outside its folder ({where})")


def test_pickled_objects_in_the_shards_are_not_loaded(folder: Path) -> None:
    checkpoint, victim = folder / "step-00000020", folder / "victim"
    shard = checkpoint / STATE / "__0_0.distcp"
    with open(shard, "wb") as file:
        torch.save(Payload(os.mkdir, str(victim)), file)
    contents = table(checkpoint)
    for item in contents.storage_data.values():
        item.offset, item.length = 0, shard.stat().st_size
    plant_shard(checkpoint, shard)
    plant(checkpoint, contents)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_whole(checkpoint / STATE, "model.")
    assert not victim.exists()


def plant_shard(checkpoint: Path, shard: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][f"{STATE}/{shard.name}"] = {"bytes": shard.stat().st_size, "sha256": sha256_of(shard)}
    write_json(checkpoint / MANIFEST, manifest)


def test_any_flip_in_the_table_ends_in_an_error_that_names_it_or_in_nothing(folder: Path) -> None:
    """Without a manifest to warn: whatever comes out is a table of tensors or one clear error."""
    state_folder = folder / "step-00000020" / STATE
    path = state_folder / ".metadata"
    content = path.read_bytes()
    errors = []
    for at in range(0, len(content), 3):
        flip(path, at, at % 8)
        try:
            Reader(state_folder).read_metadata()
        except CheckpointError as error:
            errors.append(str(error))
        path.write_bytes(content)
    assert len(errors) > 100
    assert all(str(path) in error for error in errors)
