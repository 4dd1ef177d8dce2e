"""A bit is flipped in each file of a checkpoint that two ranks wrote; a file is crafted to harm."""

import json
import os
import pickle
import random
import signal
from pathlib import Path

import pytest
from running import SMALL, Run, same_as, start, train

from vitscale.checkpoint.store import MANIFEST
from vitscale.files import sha256_of, write_json

pytestmark = pytest.mark.slow       # one run that is started three times


class Trap:
    """Unpickles by making a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_every_damaged_file_is_named_and_kept_and_the_last_whole_checkpoint_used(place: Path, unbroken: Run) -> None:
    """A different file of each of the newest checkpoints; all but the oldest are damaged then, and the run resumes from that one."""
    arguments = [*SMALL, "name=d", "duration=60 steps", "parallel.engine=fsdp", "parallel.processes=2", "ema.decay=0.9",
                 "checkpoint.every=5 steps", "checkpoint.keep=99"]
    run = Run(place / "runs" / "d")
    process = start(place, *arguments)
    run.wait_for_step(46, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    folder = run.folder / "checkpoints"
    oldest = folder / run.checkpoints[0]
    files = sorted(str(path.relative_to(oldest)) for path in oldest.rglob("*") if path.is_file())
    assert files == ["ema.safetensors", "manifest.json", "model.safetensors", "run.json", "state/.metadata", "state/__0_0.distcp",
                     "state/__1_0.distcp"]

    # a table of contents that runs code, under a manifest that agrees with it
    newest, victim = folder / run.checkpoints[-1], place / "victim"
    table = newest / "state" / ".metadata"
    table.write_bytes(pickle.dumps(Trap(victim)))
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest["files"]["state/.metadata"] = {"bytes": table.stat().st_size, "sha256": sha256_of(table)}
    write_json(newest / MANIFEST, manifest)

    draw = random.Random(0)
    damaged = dict(zip(reversed(run.checkpoints[:-1]), files, strict=False))
    whole = run.checkpoints[-len(files) - 2]
    for checkpoint, name in damaged.items():
        content = bytearray((folder / checkpoint / name).read_bytes())
        at = draw.randrange(len(content) - 1)       # the last line feed of a manifest says nothing
        content[at] ^= 1 << draw.randrange(7)
        (folder / checkpoint / name).write_bytes(content)
    output = train(place, *arguments)
    assert f"checkpoint {newest.name} is damaged: state/.metadata is no table of contents of a vitscale checkpoint (" in output
    assert "refuses to load" in output
    assert not victim.exists()
    pickle.loads((folder / f"damaged-{newest.name}" / "state" / ".metadata").read_bytes())
    assert victim.exists()      # the trap was a real one
    for checkpoint, name in damaged.items():
        said = output.partition(f"checkpoint {checkpoint} is damaged: ")[2].partition("; kept as")[0]
        assert name in said or name == MANIFEST, output        # a flip there shows as a contradiction to some other file
        assert said
        assert f"damaged-{checkpoint}" in run.checkpoints
    assert f"resuming from {whole}" in output
    same_as(unbroken, run)
