"""A library that falls over a sample ends no command that looks through a set: the sample is named and passed over, the rest is done."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from vitscale.data import open_index
from vitscale.processes import start_of

SAMPLES, VICTIMS = 12, {3: "ctypes.string_at(0)", 8: "os.abort()"}
# Libraries with faults, in every process that finds them: over certain bytes they read where nothing is, or give up.  `later`: only in a
# process that has decoded something, which no trial shows.
FAULT = '''
import ctypes, os, sys
import simplejpeg

real, seen = simplejpeg.decode_jpeg, []

def decode_jpeg(data, *given, **named):
    data = bytes(data)
    if b"falls 3" in data and {first}:
        ctypes.string_at(0)
    if b"falls 8" in data and {second}:
        os.abort()
    seen.append(data)
    return real(data, *given, **named)

simplejpeg.decode_jpeg = decode_jpeg
'''
EACH_TIME, LATER = "True", "'vitscale.data.trial' not in sys.orig_argv"


def picture(number: int) -> bytes:
    noise = np.random.Generator(np.random.Philox(number)).integers(0, 256, (6, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((48, 48)).save(out, "JPEG", progressive=True)         # the native decoder leaves it to the library
    return out.getvalue() + (b"falls %d" % number if number in VICTIMS else b"")


@pytest.fixture
def shard(tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for number in range(SAMPLES):
            for ext, body in (("cls", b"%d" % (number % 3)), ("jpg", picture(number))):
                info = tarfile.TarInfo(f"{number:04d}.{ext}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return str(tmp_path / "s-0.tar")


def ran(tmp_path, *words: object, fault: str = "") -> subprocess.CompletedProcess[str]:
    (tmp_path / "fault").mkdir(exist_ok=True)
    (tmp_path / "fault" / "sitecustomize.py").write_text(fault or FAULT.format(first=EACH_TIME, second=EACH_TIME))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "fault"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-m", "vitscale", "data", *map(str, words)], env=environment, capture_output=True, text=True,
                          timeout=300)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.all), 4])
def test_verify_names_each_as_a_fault_and_looks_at_the_rest(shard, tmp_path, workers):
    done = ran(tmp_path, "verify", shard, "--workers", workers, "--json", tmp_path / "faults.json")
    assert done.returncode == 2, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert [(fault["key"], fault["reason"], fault["shard"]) for fault in found["faults"]] == [
        (f"{number:04d}", "crash", shard) for number in VICTIMS]
    assert ["SIGSEGV" in found["faults"][0]["detail"], "SIGABRT" in found["faults"][1]["detail"]] == [True, True]
    assert found["samples"] == SAMPLES
    assert "sample '0003' of" in done.stderr


def test_pack_leaves_them_out_with_many_threads(tmp_path):
    source = tmp_path / "source"
    for number in range(SAMPLES):
        (source / f"class-{number % 3}").mkdir(parents=True, exist_ok=True)
        (source / f"class-{number % 3}" / f"{number:04d}.jpg").write_bytes(picture(number))
    done = ran(tmp_path, "pack", source, tmp_path / "out", "--shard-samples", 2, "--workers", 4)
    assert done.returncode == 2, done.stdout + done.stderr
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert sorted((os.path.basename(row["name"]), row["reason"]) for row in bad) == [(f"{number:04d}.jpg", "crash") for number in VICTIMS]
    index = open_index(str(tmp_path / "out" / "*.tar"))
    assert index.num_samples == SAMPLES - len(VICTIMS)


def test_a_contact_sheet_and_what_no_trial_shows(shard, tmp_path):
    fault = FAULT.format(first=LATER, second=LATER)
    done = ran(tmp_path, "stats", shard, "--sheet", tmp_path / "sheet.png", fault=fault)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "sheet.png").exists()
    for number in VICTIMS:
        assert f"sample '{number:04d}' of {shard}" in done.stderr


def test_a_shard_over_which_the_indexer_falls_is_named(shard, tmp_path):
    fault = "import os, vitscale.data.index as index\nindex.group = lambda *rest: os.abort()\n"
    done = ran(tmp_path, "index", shard, fault=fault)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"died by SIGABRT with {shard} under way" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_both_processes_end_with_the_one_that_was_started(shard, tmp_path, number):
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(
        "import simplejpeg, time, os\ndef decode_jpeg(*given, **named):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + '\\n')\n    time.sleep(600)\n"
        "simplejpeg.decode_jpeg = decode_jpeg\n")
    process = subprocess.Popen([sys.executable, "-m", "vitscale", "data", "verify", shard], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(tmp_path / "fault")})
    deadline = time.monotonic() + 120
    try:
        while not (said := (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else "").endswith("\n"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    while start_of(int(said)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
