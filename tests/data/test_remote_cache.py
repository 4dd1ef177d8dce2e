"""The node's cache of remote shards: fetched once by however many, bounded, checked, and done without where it cannot be."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from threading import Event

import corrupt
import pytest
from badserver import BadServer
from filelock import FileLock

from vitscale.data import ShardReader, open_index, remote
from vitscale.data.cache import ShardCache
from vitscale.errors import DataError

pytest.importorskip("aiohttp")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(tries=4, first_s=0.01, longest_s=0.02, silence_s=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def server(tmp_path):
    corrupt.build(tmp_path / "local")
    with BadServer({path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.tar")}) as server:
        yield server
        server.shutdown()


@pytest.fixture
def index(server):
    index = open_index(f"{server.url}/s-{{000..002}}.tar")
    server.forget()
    return index


def read_all(reader):
    for shard, count in enumerate(reader.index.counts.tolist()):
        for number in range(count):
            first = sum(corrupt.COUNTS[:shard]) + number
            assert reader.read(shard, number) == {"cls": b"%d" % corrupt.label(first), "jpg": corrupt.jpeg(first)}


def counts(server):
    return [server.count(f"s-00{number}.tar") for number in range(3)]


def kept(folder):
    return {json.loads(path.with_suffix(".json").read_bytes())["url"][-5] for path in folder.glob("*.tar")}


RACER = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_remote_cache import *
reader = ShardReader(open_index(sys.argv[2]), cache=ShardCache(sys.argv[3], int(sys.argv[4])))
if len(sys.argv) > 5:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
logging.basicConfig()
print("ready", flush=True)
sys.stdin.readline()
read_all(reader)
"""


def start(index, folder, *more, limit=10**8):
    pattern = index.urls[0].replace("000", "{000..002}")
    command = [sys.executable, "-c", RACER, os.path.dirname(__file__), pattern, str(folder), str(limit), *map(str, more)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_race_fetch_each_shard_once(server, index, tmp_path):
    racers = [start(index, tmp_path / "cache") for _ in range(4)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 4
    server.forget()
    ends = [(racer.stdin.write("\n"), racer.stdin.flush()) and racer for racer in racers]
    assert [(racer.communicate(timeout=60)[1], racer.returncode) for racer in ends] == [("", 0)] * 4
    assert counts(server) == [1, 1, 1]
    assert kept(tmp_path / "cache") == {"0", "1", "2"}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_file_that_may_not_grow_is_done_without(server, index, tmp_path):
    racer = start(index, tmp_path / "cache", 16384)
    racer.stdout.readline()
    server.forget()
    _, errors = racer.communicate("\n", timeout=60)
    assert racer.returncode == 0, errors
    assert errors.count("cannot take more (File too large)") == 1
    assert errors.count("\n") == 1
    assert counts(server) == [4, 4, 4]                          # three images, then the rest at once
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix in (".tar", ".part", ".json")]


def test_the_longest_unused_leaves_and_what_is_open_stays(server, index, tmp_path, caplog):
    size = int(index.bytes.max())
    cache = ShardCache(str(tmp_path / "cache"), 2 * size + 100)
    facts = [remote.ShardFacts(int(size), int(stamp)) for size, stamp in zip(index.bytes, index.mtime_ns, strict=True)]

    def open_(number):
        return cache.open(index.urls[number], facts[number])

    os.close(open_(0))
    os.close(open_(1))
    for path in (tmp_path / "cache").glob("*.json"):            # an hour ago; then shard 0 is used again
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    first = open_(0)
    second = open_(2)
    assert kept(tmp_path / "cache") == {"0", "2"}
    assert counts(server) == [1, 1, 1]
    assert caplog.text == ""
    assert open_(1) is None                                     # both others are open
    assert open_(1) is None
    assert caplog.text.count("cannot take more") == 1
    assert kept(tmp_path / "cache") == {"0", "2"}
    os.close(second)
    os.close(open_(1))
    assert kept(tmp_path / "cache") == {"0", "1"}
    for path in (tmp_path / "cache").iterdir():                 # removed by hand: what is open can still be read
        path.unlink()
    assert os.pread(first, size, 0) == server.files["s-000.tar"]
    os.close(first)


@pytest.mark.parametrize("limit", [10**8, 80_000, 1])
def test_every_sample_comes_whatever_the_limit(server, index, tmp_path, limit, caplog):
    with caplog.at_level(logging.WARNING):
        reader = ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), limit))
        read_all(reader)
        read_all(reader)
    total = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert total <= limit
    assert caplog.text.count("cannot take more") == (limit < 10**8)
    assert counts(server) == ([1, 1, 1] if limit == 10**8 else [1, 7, 7] if limit == 80_000 else [7, 7, 7])


def test_a_reader_lets_go_of_what_it_has_not_used_for_long(server, index, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vitscale.data.reader._IDLE_S", 0)
    read_all(ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), 60_000)))         # there is room for one
    assert counts(server) == [1, 1, 1]
    assert kept(tmp_path / "cache") == {"2"}
    assert caplog.text == ""


def test_who_waits_for_another_can_be_told_to_stop(index, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 10**8)
    (tmp_path / "cache").mkdir()
    stop = Event()
    stop.set()
    facts = remote.ShardFacts(int(index.bytes[0]), int(index.mtime_ns[0]))
    lock = FileLock(tmp_path / "cache" / f"{hashlib.sha256(index.urls[0].encode()).hexdigest()[:3]}.lock")
    with lock, pytest.raises(remote.Unreachable, match="not waited for"):
        cache.open(index.urls[0], facts, stop)


@pytest.mark.parametrize("damage", ["flip", "cut", "note", "version"])
def test_a_damaged_copy_is_fetched_again(server, index, tmp_path, damage, caplog):
    read_all(ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), 10**8)))
    name = hashlib.sha256(index.urls[1].encode()).hexdigest()
    path = tmp_path / "cache" / f"{name}.tar"
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    elif damage == "cut":
        path.write_bytes(content[:-512])
    else:
        path.with_suffix(".json").write_text("{" if damage == "note" else json.dumps({"bytes": len(content), "stamp": 1, "sha256": ""}))
    (tmp_path / "cache" / f"{name}.123-ab.part").write_bytes(b"left by a process that was killed")
    server.forget()
    read_all(ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), 10**8)))
    assert counts(server) == [0, 1, 0]
    assert path.read_bytes() == content
    assert caplog.text.count("is damaged; it is fetched again") == (damage == "flip")
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_download_that_breaks_leaves_nothing_behind(server, index, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 10**8)
    facts = remote.ShardFacts(int(index.bytes[0]), int(index.mtime_ns[0]))
    server.faults["s-000.tar"] = ["", *["half"] * 4]
    with pytest.raises(remote.Unreachable):
        cache.open(index.urls[0], facts)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}
    server.faults["s-000.tar"] = ["", "half", "reset"]
    os.close(cache.open(index.urls[0], facts))
    assert kept(tmp_path / "cache") == {"0"}


def test_a_disk_without_room_is_not_written_to(server, index, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    read_all(ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), 10**8)))
    assert caplog.text.count("the disk is full") == 1
    assert kept(tmp_path / "cache") == set()


def test_the_default_folder_must_be_ours_alone(index, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    facts = remote.ShardFacts(int(index.bytes[0]), int(index.mtime_ns[0]))
    os.close(ShardCache(None, 10**8).open(index.urls[0], facts))
    folder = tmp_path / f"vitscale-shards-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="must be a folder of yours alone"):
        ShardCache(None, 10**8).open(index.urls[0], facts)
    folder.unlink()
    folder.mkdir(mode=0o755)
    with pytest.raises(DataError, match="must be a folder of yours alone"):
        ShardCache(None, 10**8).open(index.urls[0], facts)
