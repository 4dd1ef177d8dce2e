"""More shards than a process may open files: train and val in turn, with the samples of a process that may open them all."""

import errno
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitscale.data import ShardReader, open_index
from vitscale.data.descriptors import Held, OutOfDescriptors, mapped

# Streams both sets in turn; in the middle it opens files of its own, as an exchange or a checkpoint would.
STREAM = """
import json, os, resource, sys
from vitscale.data import open_index, open_stream
from vitscale.recipe import load_recipe
folder, steps, others = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
recipe = load_recipe("quickstart", [f"data.train={folder}/train-*.tar", f"data.val={folder}/val-*.tar", "data.prepare=null",
                                    "data.workers=4", "global_batch=64", "data.lanes=64", "data.num_samples=null"])
train, val = open_index(recipe.data.train), open_index(recipe.data.val)
stream = open_stream(recipe, train, rank=0, world=1, micro_batch=64)
seen, mine = [], []
for step in range(steps):
    batch = next(stream)
    seen += [[micro.ids.tolist(), int(micro.weight.sum()), int(micro.images.long().sum())] for micro in batch.micro]
    if step == steps // 2:
        mine = [open(os.devnull) for _ in range(others)]
    if step % 2:
        with open_stream(recipe, val, "val", rank=0, world=1, micro_batch=64) as evaluation:
            for micro in evaluation:
                seen.append([micro.ids.tolist(), int(micro.weight.sum()), int(micro.images.long().sum())])
stream.close()
print(json.dumps({"seen": seen, "most": max(map(int, os.listdir("/proc/self/fd"))), "bad": stream.skipped.total()}))
"""


def make_shards(folder: Path, name: str, shards: int, samples: int = 2) -> None:
    """Tiny tars, written as raw bytes: thousands in a second."""
    image = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(image, "PNG")
    blocks = []
    for ext, data in (("png", image.getvalue()), ("cls", b"3")):
        info = tarfile.TarInfo("000000." + ext)
        info.size = len(data)
        blocks.append((info, data + bytes(-len(data) % 512)))
    for shard in range(shards):
        raw = b""
        for sample in range(samples):
            for info, data in blocks:
                info.name = f"{shard:05d}{sample}.{info.name.rpartition('.')[2]}"
                raw += info.tobuf(tarfile.USTAR_FORMAT) + data
        (folder / f"{name}-{shard:05d}.tar").write_bytes(raw + bytes(1024))


def streamed(folder: Path, limit: int | None, steps: int, others: int) -> dict:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 64), limit))     # the soft one is to be raised

    done = subprocess.run([sys.executable, "-c", STREAM, str(folder), str(steps), str(others)], capture_output=True, text=True,
                          timeout=500, preexec_fn=limited, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow       # each limit is a process that imports torch
@pytest.mark.parametrize(("train", "val", "limits", "steps"), [
    (500, 200, (256,), 6), pytest.param(5000, 1000, (256, 1024, 4096), 12, marks=pytest.mark.all)])
def test_fewer_descriptors_than_shards(train: int, val: int, limits: tuple[int, ...], steps: int, tmp_path: Path) -> None:
    make_shards(tmp_path, "train", train)
    make_shards(tmp_path, "val", val)
    free = streamed(tmp_path, None, steps, 0)
    assert len(free["seen"]) == steps + steps // 2 * -(-val * 2 // 64)
    assert free["bad"] == 0
    for limit in limits:
        held = streamed(tmp_path, limit, steps, limit // 8)
        assert held["seen"] == free["seen"]
        assert held["bad"] == 0
        assert held["most"] < limit


@pytest.fixture
def few(tmp_path: Path):
    make_shards(tmp_path, "a", 40)
    return open_index(f"{tmp_path}/a-*.tar")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_sidecars_hold_no_descriptors(few) -> None:
    few.shard(0)
    before = descriptors()
    for shard in range(40):
        few.shard(shard)
    assert descriptors() == before


def test_readers_share_one_budget_and_give_it_back(few) -> None:
    before = descriptors()
    held = Held(allowed=before + 10, reserve=0)      # ten shards
    readers = [ShardReader(few, held=held) for _ in range(3)]
    for shard in range(40):
        for reader in readers:
            assert reader.read(shard, 1)["cls"] == b"3"
            assert descriptors() <= before + 14
    assert len(held) >= 4
    for reader in readers:
        reader.close()
    assert descriptors() == before
    assert len(held) == 0


def test_what_others_open_later_is_made_room_for(few) -> None:
    before = descriptors()
    held = Held(allowed=before + 30, reserve=0)
    reader = ShardReader(few, held=held)
    for shard in range(30):
        reader.read(shard, 0)
    assert len(held) >= 28
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    for shard in [*range(30, 40), *range(40), *range(40)]:
        reader.read(shard, 0)
    assert descriptors() <= before + 34     # 30 are allowed
    assert len(held) >= 8
    for other in others:
        os.close(other)


EXHAUSTED = """
import os, resource, sys, threading
from vitscale.data import ShardReader, open_index
from vitscale.data import descriptors
from vitscale.data.descriptors import HELD, OutOfDescriptors
index = open_index(sys.argv[1])
reader = ShardReader(index)
for shard in range(20):
    reader.read(shard, 0)
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass                                    # all that were left are taken by others
for shard in range(20, 40):
    assert reader.read(shard, 0)["cls"] == b"3"
    index._open.clear()                     # so that sidecars are opened anew too
assert len(HELD) > 0
reader.close()
while True:
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        break
threading.Timer(0.5, lambda: [os.close(taken.pop()) for _ in range(3)]).start()
assert reader.read(5, 1)["cls"] == b"3"     # it has waited for one
reader.close()
while True:
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        break
descriptors.PATIENCE_S = 0.3
for act in (lambda: reader.read(7, 0), lambda: index.shard(8), lambda: open_index(sys.argv[1], check=False).shard(9)):
    index._open.clear()
    try:
        act()
        print("it was opened")
    except OutOfDescriptors as error:
        print(error.exit_code, error)
"""


def test_none_is_left_at_all(few, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXHAUSTED, f"{tmp_path}/a-*.tar"], capture_output=True, text=True, timeout=120,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("75 "), line
        assert "Too many open files: this process has no file descriptor left" in line
        assert "`ulimit -n`: 128" in line


def test_another_error_is_not_waited_for() -> None:
    held, calls = Held(allowed=100), []

    def act() -> None:
        calls.append(1)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(OSError, match="Permission denied") as caught:
        held.room(act, "a.tar")
    assert not isinstance(caught.value, OutOfDescriptors)
    assert len(calls) == 1


def test_a_map_outlives_its_file_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 64)
    with open(tmp_path / "a", "rb") as file:
        whole = mapped(file)
    (tmp_path / "a").unlink()
    part = whole[256:512].view(np.uint16)
    del whole
    assert part.tobytes() == bytes(range(256))
    assert not part.flags.writeable
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as file, pytest.raises(ValueError, match="an empty file"):
        mapped(file)


AT_ONCE = """
import sys, threading
from vitscale.data import descriptors
sys.setswitchinterval(1e-6)
file = open(sys.argv[1], "rb")
def look(barrier):
    barrier.wait()
    assert descriptors.mapped(file)[255] == 255
for _ in range(300):
    descriptors._libc.cache_clear()
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=look, args=(barrier,)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_threads_that_map_their_first_files_at_once(tmp_path: Path) -> None:
    """None of them meets the C library's functions before these know that addresses have 64 bits: it would read where nothing is."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 64)
    done = subprocess.run([sys.executable, "-c", AT_ONCE, str(tmp_path / "a")], timeout=300, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
