"""A table of contents that was made to harm runs nothing, reaches out of no folder and lets in tensors alone."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from small_checkpoints import flip
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from vitscale.checkpoint.store import MANIFEST, STATE, damage_in, read_into, read_whole, shapes_in
from vitscale.checkpoint.table import Reader
from vitscale.errors import CheckpointError
from vitscale.files import sha256_of, write_json


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
