"""The next remote shard is asked for before it is wanted; whatever becomes of that, the samples are the same."""

import logging
import threading
import time
from itertools import count

import corrupt
import numpy as np
import pytest
from badserver import BadServer

from vitscale.data import open_index, open_stream, remote
from vitscale.data.cache import ShardCache
from vitscale.data.reader import ShardReader
from vitscale.data.shards_ahead import ShardsAhead
from vitscale.recipe.load import check_recipe

pytest.importorskip("aiohttp")
TOTAL = sum(corrupt.COUNTS)
ROOM = 10**8


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(tries=3, first_s=0.01, longest_s=0.02, silence_s=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def server(tmp_path):
    corrupt.build(tmp_path / "local")
    with BadServer({path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.tar")}) as server:
        yield server
        server.shutdown()


def stream_of(server, tmp_path, index, split="train", cache_bytes=ROOM, **arguments):
    urls = f"{server.url}/s-{{000..002}}.tar"
    recipe = check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": corrupt.CLASSES},
        "data": {"train": urls, "val": urls, "lanes": 1, "workers": 1, "prefetch": 1, "max_bad_fraction": 0.9,
                 "cache_dir": str(tmp_path / "cache"), "cache_bytes": cache_bytes},
        "optim": {"lr": 1e-3}, "global_batch": 2, "duration": "1 epochs", "seed": 3,
    }, "test")
    return open_stream(recipe, index, split, rank=0, world=1, micro_batch=2, **arguments)


def index_of(server):
    index = open_index(f"{server.url}/s-{{000..002}}.tar")
    server.forget()
    return index


def wait_for(happened):
    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def asked(server):
    """Shards whose content was asked for, in that order."""
    return list(dict.fromkeys(name for name, start, end in list(server.asked) if end - start > 1))


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_next_shards_are_asked_for_while_the_first_is_used(server, tmp_path, split):
    index = index_of(server)
    with stream_of(server, tmp_path, index, split) as stream:
        order = [f"s-00{shard}.tar" for shard in (stream.order._epoch(0)[0] if split == "train" else range(3))]
        batches = iter(stream)
        first = next(batches)
        wait_for(lambda: len(list((tmp_path / "cache").glob("*.tar"))) == 3)    # of the first's six samples two were taken
        assert asked(server) == order
        server.always = dict.fromkeys(server.files, "500")              # nothing is fetched any more
        rest = [next(batches) for _ in range(TOTAL // 2 - 1)]
        assert not stream._ahead.skipped
        assert len([first, *rest]) == 9
    assert not [thread for thread in threading.enumerate() if thread.name == "shards-ahead"]


def pixels_of(stream, bad):
    seen = {}
    for batch in stream.until(2 * TOTAL):
        for micro in batch.micro:
            seen |= {(batch.step, number): (image.tobytes(), weight) for number, image, weight in zip(
                micro.ids.tolist(), micro.images.numpy(), micro.weight.tolist(), strict=True)}
    return seen, sorted((row["step"], row["id"], row["reason"]) for row in bad)


@pytest.mark.parametrize("trouble", ["fails", "raises", "little room", "no room", "begins anew"])
def test_what_becomes_of_it_changes_nothing(server, tmp_path, monkeypatch, trouble, caplog):
    monkeypatch.setattr("vitscale.data.reader._IDLE_S", 0)
    index, bad, tried = index_of(server), [], []
    with monkeypatch.context() as patch:
        patch.setattr(ShardsAhead, "reached", lambda *_: None)
        with stream_of(server, tmp_path, index, on_bad=bad.append) as stream:
            expected = pixels_of(stream, bad)
    assert expected[1] == []
    (tmp_path / "cache").rename(tmp_path / "old")
    fetch = ShardReader.fetch

    def fetched(reader, shard):
        tried.append(shard)
        if trouble == "raises":
            raise MemoryError
        if trouble == "fails":                          # for this thread the server has nothing; others ask for what they want
            server.always["gone.tar"] = "500"
            return reader.cache.fetch(f"{server.url}/gone.tar", reader._facts(shard), reader.stopping)
        return fetch(reader, shard)

    monkeypatch.setattr(ShardReader, "fetch", fetched)
    size = int(index.bytes.max())
    limit = {"little room": 2 * size + 100, "no room": size + 100}.get(trouble, ROOM)
    with caplog.at_level(logging.INFO), stream_of(server, tmp_path, index, cache_bytes=limit, on_bad=bad.append) as stream:
        if trouble == "begins anew":
            next(stream)
            stream.load_state_dict(stream.state_dict() | {"position": 0})
        found = pixels_of(stream, bad)
    assert found == expected
    assert tried
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= limit
    assert caplog.text == "" or (trouble == "no room" and "cannot take more" in caplog.text)     # to the reader, when it came first


def test_a_shard_that_cannot_be_had_is_told_when_it_is_wanted(server, tmp_path):
    index, bad = index_of(server), []
    with stream_of(server, tmp_path, index, on_bad=bad.append) as stream:
        order = stream.order._epoch(0)[0].tolist()
        server.always[f"s-00{order[1]}.tar"] = "500"
        batches = stream.until(TOTAL)
        next(batches)
        wait_for(lambda: f"s-00{order[2]}.tar" in asked(server))        # the second was given up, the third is asked for
        assert not bad
        list(batches)
    assert {row["reason"] for row in bad} == {"storage"}
    assert len(bad) == 6


def test_two_wait_at_most_and_a_jump_begins_anew(server, tmp_path):
    """Shard n is wanted from plan 10 n on."""
    server.files = {f"s-{number:03d}.tar": server.files[f"s-00{number % 3}.tar"] for number in range(12)}
    index = open_index(f"{server.url}/s-{{000..011}}.tar")
    reader = ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), ROOM))
    reader.read(0, 0)
    reader.read(3, 0)
    server.forget()

    def came(*shards):
        return asked(server) == [f"s-{shard:03d}.tar" for shard in shards]

    ahead = ShardsAhead(reader)
    ahead.follow(np.array([plan // 10]) for plan in count())
    ahead.reached(4)
    wait_for(lambda: came(1, 2))
    ahead.reached(9)
    time.sleep(0.05)
    assert came(1, 2)
    ahead.reached(10)
    wait_for(lambda: came(1, 2, 4))                     # 3 is open
    ahead.follow(np.array([7, 8]) for _ in range(3))
    ahead.reached(-1)
    wait_for(lambda: came(1, 2, 4, 7, 8))
    ahead.reached(2)
    ahead.close()
    assert came(1, 2, 4, 7, 8)


def test_what_waits_is_not_evicted_for_what_comes_after_it(server, tmp_path):
    index = index_of(server)
    reader = ShardReader(index, cache=ShardCache(str(tmp_path / "cache"), 3 * int(index.bytes.max()) + 100))
    reader.read(0, 0)
    ahead = ShardsAhead(reader)
    ahead.follow(np.array([plan // 10]) for plan in range(30))
    ahead.reached(4)
    wait_for(lambda: len(ahead._waiting) == 2)          # for the third there is no room, if some is to spare
    time.sleep(0.2)
    assert asked(server) == ["s-000.tar", "s-001.tar"]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    ahead.reached(12)
    server.always = dict.fromkeys(server.files, "500")
    assert reader.read(1, 0)["cls"] == b"6"
    ahead.close()
