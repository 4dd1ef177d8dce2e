"""A sample that ends a process ends one attempt of a run, not each: the next knows which it was and passes it over."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from vitscale.data import crumbs, open_index, open_stream
from vitscale.data.crumbs import FILE, Crumbs, Setting, find_crashers, known_crashers
from vitscale.data.decoded_before import sum_of
from vitscale.recipe.load import check_recipe

SAMPLES, VICTIM = 24, 7
SETTING = Setting(16, 3, False, (0.08, 1.0), (0.75, 1.33), 0.875)
# A library with a fault, in every process that finds it: it reads where nothing is as soon as it sees certain bytes.
FAULT = '''
import ctypes
import simplejpeg

real = simplejpeg.decode_jpeg

def decode_jpeg(data, *given, **named):
    if b"falls over this" in bytes(data):
        ctypes.string_at(0)
    return real(data, *given, **named)

simplejpeg.decode_jpeg = decode_jpeg
'''


def picture(number):
    noise = np.random.Generator(np.random.Philox(number)).integers(0, 256, (6, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((48, 48)).save(out, "JPEG", progressive=True)         # the native decoder leaves it to the library
    return out.getvalue() + (b"falls over this" if number == VICTIM else b"")


@pytest.fixture
def shards(tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for number in range(SAMPLES):
            for ext, body in (("cls", b"%d" % (number % 3)), ("jpg", picture(number))):
                info = tarfile.TarInfo(f"{number:04d}.{ext}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return str(tmp_path / "s-0.tar")


def recipe(shards, **more):
    return {"name": "fallen", "model": {"size": "tiny", "image": 16, "patch": 8, "classes": 3, "depth": 1},
            "data": {"train": shards, "lanes": 1, "workers": 2, "max_bad_fraction": 0.9}, "optim": {"lr": 1e-3}, "global_batch": 4,
            "duration": "1 epochs", "seed": 3, **more}


def test_the_attempt_after_a_crash_passes_the_sample_over(shards, tmp_path):
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAULT)
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(shards, runs_dir=str(tmp_path / "runs"))))
    command = [sys.executable, "-m", "vitscale", "train", str(tmp_path / "r.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "fault"), "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert first.returncode == -signal.SIGSEGV, first.stderr[-2000:]
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stdout[-1500:] + second.stderr[-2000:]
    folder = tmp_path / "runs" / "fallen"
    (row,) = known_crashers(folder)
    assert (row["key"], row["split"], row["reason"]) == (f"{VICTIM:04d}", "train", "crashed the decoder")
    assert "Segmentation fault" in row["said"]
    quarantined = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["key"], row["reason"]) for row in quarantined] == [(f"{VICTIM:04d}", "crash")]
    assert not list((folder / "logs").glob("crash-*")) + list((folder / "logs").glob("decoding-*"))


def test_every_number_of_ranks_replaces_it_alike(shards, tmp_path):
    (tmp_path / "logs").mkdir()
    rows = [{"bytes": len(picture(VICTIM)), "sum": sum_of(picture(VICTIM))}]
    index, seen = open_index(shards), []
    for world in (1, 2):
        found, bad = {}, []
        for rank in range(world):
            written = Crumbs.open(tmp_path, rank, rows)
            with open_stream(check_recipe(recipe(shards), "test"), index, rank=rank, world=world, micro_batch=2 // world,
                             on_bad=bad.append, crumbs=written) as stream:
                for batch in stream.until(SAMPLES):
                    for micro in batch.micro:
                        for slot, place in enumerate(micro.index.tolist()):
                            if place >= 0:
                                found[batch.position, place] = micro.images[slot].numpy().tobytes(), float(micro.weight[slot])
            written.close()
        assert [(row["key"], row["reason"]) for row in bad] == [(f"{VICTIM:04d}", "crash")]
        seen.append(found)
    assert seen[0] == seen[1]
    assert not list((tmp_path / "logs").iterdir())


def left_behind(folder, index, numbers, said):
    """What a process leaves that dies while these samples are being decoded."""
    written, under_way = Crumbs.open(folder, 0, []), []
    for number in numbers:
        _, offset, size = index.image_of(0, number)
        under_way.append(written.decoding(0, 0, number, offset, size, False, [0.5] * 22))
        under_way[-1].__enter__()
    kept = written.slots.memory[:]
    written.close()
    written.paths[0].write_bytes(kept)
    written.paths[1].write_bytes(said)


IN_DECODE = (b'Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n'
             b'  File "/x/vitscale/data/decode.py", line 1 in decode\n\n')
ELSEWHERE = b'Fatal Python error: Aborted\n\nCurrent thread 0x1 [pt_nccl] (most recent call first):\n  <no Python frame>\n\n'


@pytest.mark.parametrize(("numbers", "said", "guilty"), [
    ([3], IN_DECODE, ["0003"]),             # alone, and the thread that fell was decoding
    ([3], ELSEWHERE, []),                   # another thread fell: NCCL's, say
    ([3, 4], IN_DECODE, []),                # two, and neither ends a process by itself
    ([3, 4], b"", []),                      # killed, or out of memory: no fault of its own
])
def test_a_sample_is_passed_over_only_on_plain_evidence(numbers, said, guilty, shards, tmp_path):
    (tmp_path / "logs").mkdir()
    index = open_index(shards)
    left_behind(tmp_path, index, numbers, said)
    assert [row["key"] for row in find_crashers(tmp_path, [index, None], SETTING, 2)] == guilty
    assert (tmp_path / FILE).exists() == bool(guilty)
    assert [row["key"] for row in find_crashers(tmp_path, [index, None], SETTING, 3)] == guilty     # remembered, and looked at once
    assert not list((tmp_path / "logs").iterdir())


def test_what_ends_a_thousand_ranks_is_not_looked_for_in_all_their_images(shards, tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    index, tried = open_index(shards), []
    monkeypatch.setattr(crumbs, "kills", lambda data, asked: tried.append(data))       # counted; what it does is tested above
    left_behind(tmp_path, index, range(20), ELSEWHERE)
    for rank in range(1, 10):
        for name in ("decoding-rank-{}.bin", "crash-rank-{}.txt"):
            (tmp_path / "logs" / name.format(rank)).write_bytes((tmp_path / "logs" / name.format(0)).read_bytes())
    assert find_crashers(tmp_path, [index, None], SETTING, 2) == []
    assert 20 <= len(tried) <= 32
    assert not list((tmp_path / "logs").iterdir())
