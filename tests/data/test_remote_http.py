"""Shards behind a web server that misbehaves: what comes of each fault, exactly."""

import json
import os
import tarfile
from collections import Counter
from io import BytesIO

import corrupt
import numpy as np
import pytest
from badserver import BadServer

from vitscale.data import ShardReader, expand, open_index, open_stream, remote
from vitscale.data.verify import verify
from vitscale.errors import EXIT_REQUEUE, DataError
from vitscale.recipe.beside import HEADERS
from vitscale.recipe.load import check_recipe

pytest.importorskip("aiohttp")
SECRET = "s3cr3tvalue"
TOTAL = sum(corrupt.COUNTS)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(tries=4, first_s=0.01, longest_s=0.02, silence_s=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    corrupt.build(folder)
    open_index(f"{folder}/s-*.tar")
    return folder


@pytest.fixture
def server(folder):
    with BadServer({path.name: path.read_bytes() for path in folder.glob("*.tar")}) as server:
        yield server
        server.shutdown()


def urls(server):
    return f"{server.url}/s-{{000..002}}.tar"


def recipe(shards, cache, cache_bytes=10**8):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": corrupt.CLASSES, "channels": 3},
        "data": {"train": shards, "lanes": 2, "workers": 2, "max_bad_fraction": 0.9, "cache_dir": str(cache), "cache_bytes": cache_bytes},
        "optim": {"lr": 1e-3}, "global_batch": 4, "duration": "1 epochs", "seed": 3,
    }, "test")


def run(shards, cache, index=None, cache_bytes=10**8):
    """One epoch of two ranks -> (ids, pixels of those of weight 1 by id, quarantine)."""
    index = index or open_index(shards)
    ids, pixels, bad = [], {}, []
    for rank in range(2):
        with open_stream(recipe(shards, cache, cache_bytes), index, rank=rank, world=2, micro_batch=2, on_bad=bad.append) as stream:
            for batch in stream.until(index.num_samples):
                for micro in batch.micro:
                    ids.append((rank, batch.step, micro.ids.tolist(), micro.labels.tolist()))
                    pixels |= {number: image for number, image, weight in zip(
                        micro.ids.tolist(), micro.images.numpy(), micro.weight.tolist(), strict=True) if weight}
    return ids, pixels, bad


@pytest.mark.parametrize("cache_bytes", [10**8, 1], ids=["cached", "ranged"])
def test_a_stream_from_a_server_is_the_stream_from_a_disk(server, folder, tmp_path, cache_bytes):
    here, away = run(f"{folder}/s-*.tar", tmp_path / "cache"), run(urls(server), tmp_path / "cache", cache_bytes=cache_bytes)
    assert open_index(urls(server)).hash == open_index(f"{folder}/s-*.tar").hash
    assert here[0] == away[0]
    assert here[1].keys() == away[1].keys() == set(range(TOTAL))
    assert all((here[1][number] == away[1][number]).all() for number in here[1])
    assert away[2] == []
    assert (tmp_path / "cache" / "room.lock").exists() or cache_bytes == 1
    assert len(list((tmp_path / "cache").glob("*.tar"))) == (3 if cache_bytes > 1 else 0)


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "half", "short", "slow"])
def test_what_passes_is_waited_for(server, folder, fault):
    server.faults["s-001.tar"] = ["", fault, fault, ""]         # facts, then the walk
    if fault == "slow":
        server.faults["s-001.tar"] = ["", fault, ""]
    index = open_index(urls(server))
    assert index.hash == open_index(f"{folder}/s-*.tar").hash
    assert server.count("s-001.tar") == (2 if fault == "slow" else 3)
    assert server.count("s-000.tar") == 1


@pytest.mark.parametrize("fault", ["500", "reset", "half"])
def test_what_does_not_pass_is_one_error(server, fault):
    server.always["s-001.tar"] = fault
    with pytest.raises(DataError, match=r"s-001\.tar\?token=\*\*\*: cannot be read, tried 4 times; the last try ended with"):
        open_index(urls(server) + f"?token={SECRET}")
    tries = len([one for one in server.asked if one[0] == "s-001.tar"])
    assert tries == 4 or (fault == "reset" and tries <= 8)      # aiohttp asks once more by itself when an old connection is cut


def test_a_server_that_is_not_there_is_one_error(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(remote.Unreachable, match=r"cannot be read, tried 4 times; .*; see to the store") as away:
        open_index(urls(server))
    assert away.value.exit_code == EXIT_REQUEUE
    assert away.value.facts["cause"] == "network"


@pytest.mark.parametrize("how", ["500", "reset", "half"])
def test_a_server_that_goes_away_under_a_run_has_it_begun_again(server, tmp_path, how):
    """What is behind it is not bad: a later attempt may find it well."""
    section = recipe(urls(server), tmp_path / "cache")
    strict = section.model_copy(update={"data": section.data.model_copy(update={"max_bad_fraction": 0.0})})
    index = open_index(urls(server))
    server.always |= dict.fromkeys(server.files, how)
    said = pytest.raises(DataError, match=r"\(storage \d+\).* cannot be read, tried 4 times; .*; see to the storage, then run")
    with open_stream(strict, index, rank=0, world=1, micro_batch=4, on_bad=lambda row: None) as stream, said as lost:
        list(stream.until(index.num_samples))
    assert lost.value.exit_code == EXIT_REQUEUE


@pytest.mark.parametrize(("fault", "message"), [
    ("403", r"s-001\.tar: access is refused \(HTTP 403\)"), ("401", "access is refused"), ("400", "HTTP 400 where 206"),
    ("no ranges", "the server ignores ranges"),
])
def test_what_no_patience_mends_is_not_asked_twice(server, fault, message):
    server.always["s-001.tar"] = fault
    with pytest.raises(DataError, match=message):
        open_index(urls(server))
    assert len([one for one in server.asked if one[0] == "s-001.tar"]) == 1


def test_a_shard_that_is_not_there_is_named(server):
    with pytest.raises(DataError, match=r"1 of 4 shards do not exist, the first is http://127.*/s-003\.tar"):
        open_index(f"{server.url}/s-{{000..003}}.tar")
    server.files["s-001.tar"] = b""
    with pytest.raises(DataError, match=r"s-001\.tar: an empty file"):
        open_index(urls(server))


def test_an_index_is_built_again_only_for_what_changed(server):
    index = open_index(urls(server))
    server.forget()
    assert open_index(urls(server)).hash == index.hash
    assert Counter(server.asked) == Counter((f"s-00{number}.tar", 0, 1) for number in range(3))
    server.files["s-001.tar"] = server.files["s-000.tar"]
    server.forget()
    assert open_index(urls(server)).header_sha256[1] == index.header_sha256[0]
    assert [server.count(f"s-00{number}.tar") for number in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("cache_bytes", [10**8, 1], ids=["cached", "ranged"])
@pytest.mark.parametrize("how", ["gone", "500", "half"])
def test_a_shard_lost_under_a_run_costs_its_samples(server, folder, tmp_path, how, cache_bytes):
    index = open_index(urls(server))
    if how == "gone":
        del server.files["s-001.tar"]
    else:
        server.always["s-001.tar"] = how
    here = run(f"{folder}/s-*.tar", tmp_path / "cache")
    ids, pixels, bad = run(urls(server), tmp_path / "cache", index, cache_bytes)
    assert Counter(row["reason"] for row in bad) == {"read" if how == "gone" else "storage": 6}
    assert sorted(row["id"] for row in bad) == list(range(6, 12))
    assert [one[:3] for one in ids] == [one[:3] for one in here[0]]                     # nothing shifts
    assert pixels.keys() == set(range(TOTAL)) - set(range(6, 12))


@pytest.mark.parametrize("cache_bytes", [10**8, 1], ids=["cached", "ranged"])
@pytest.mark.parametrize(("change", "message"), [("size", r"has \d+ bytes, but had \d+ when"), ("tag", "is another version than the one")])
def test_a_shard_that_changed_under_a_run_is_one_error(server, tmp_path, change, message, cache_bytes):
    index = open_index(urls(server))
    if change == "size":
        server.files["s-001.tar"] += bytes(512)
    else:
        server.tags["s-001.tar"] = '"new"'
    with pytest.raises(DataError, match=rf"s-001\.tar: {message}"):
        run(urls(server), tmp_path / "cache", index, cache_bytes)


def test_a_change_between_two_reads_is_seen(server):
    reader = ShardReader(open_index(urls(server)))
    reader.read(1, 0)
    server.tags["s-001.tar"] = '"new"'
    with pytest.raises(DataError, match="another version"):
        reader.read(1, 1)


def test_no_secret_is_written_anywhere(server, tmp_path, caplog):
    """The server wants it with every request; nobody else gets it."""
    server.secret = SECRET
    shards = f"{server.url.replace('//', '//someone:hunter2@')}/s-{{000..002}}.tar?X-Amz-Signature={SECRET}&part=1"
    index = open_index(shards)
    assert index.paths[0] == f"{server.url.replace('//', '//***@')}/s-000.tar?X-Amz-Signature=***&part=***"
    reader = ShardReader(index)
    assert int(reader.read(0, 3)["cls"]) == 3
    server.always["s-001.tar"] = "500"
    caplog.set_level("DEBUG", "vitscale")
    _, _, bad = run(shards, tmp_path / "cache", index)
    assert len(bad) == 6
    assert bad[0]["shard"].endswith("?X-Amz-Signature=***&part=***")
    server.secret = "another"
    with pytest.raises(DataError, match="access is refused") as refused:
        open_index(shards)
    found = [json.dumps(bad), str(refused.value), caplog.text]
    found += [f"{path} {path.read_bytes()!r}" for path in tmp_path.rglob("*") if path.is_file()]
    assert any("X-Amz-Signature=***" in text for text in found[3:])
    assert not any(word in text for text in found for word in (SECRET, "hunter2"))


def test_a_walk_reads_ahead_over_small_members_and_skips_large_ones(server):
    def tar(count, size):
        file = BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(count):
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = size
                archive.addfile(info, BytesIO(bytes(size)))
        return file.getvalue()

    server.files = {"small.tar": tar(3000, 1000), "large.tar": tar(6, 3_000_000)}
    assert open_index(f"{server.url}/small.tar").num_samples == 3000
    assert server.count("small.tar") <= len(server.files["small.tar"]) / 2**20 + 2
    server.forget()
    assert open_index(f"{server.url}/large.tar").num_samples == 6
    assert server.count("large.tar") <= 10
    assert server.sent < len(server.files["large.tar"]) / 4


def test_reading_in_file_order_reads_ahead(server):
    index = open_index(urls(server))
    reader = ShardReader(index)
    server.forget()
    for number in range(6):
        assert reader.read(1, number) == {"cls": b"%d" % corrupt.label(6 + number), "jpg": corrupt.jpeg(6 + number)}
    assert server.asked[-1][2] == len(server.files["s-001.tar"])                # what is left of the file, at once
    assert len(server.asked) == 1 + 7 + 1                                       # facts, seven members, the rest
    assert reader.read(1, 0)["jpg"] == corrupt.jpeg(6)                          # back at the start


def test_urls_are_expanded(server):
    assert expand("https://a.b/x-{08..10}.tar?k={0..1}")[:3] == [
        "https://a.b/x-08.tar?k=0", "https://a.b/x-08.tar?k=1", "https://a.b/x-09.tar?k=0"]
    assert expand("http://[::1]:80/a.tar") == ["http://[::1]:80/a.tar"]
    with pytest.raises(DataError, match="a web server cannot be listed"):
        expand("https://a.b/x-*.tar")
    with pytest.raises(DataError, match=r"https://a.b/x.tar\?sig=\*\*\*: listed twice"):
        expand([f"https://a.b/x.tar?sig={SECRET}"] * 2)
    with pytest.raises(DataError, match="credentials in a URL of s3 are not read"):
        expand("s3://key:secret@bucket/x.tar")


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    import fsspec

    def absent(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    monkeypatch.setattr(remote, "_open", {})
    with pytest.raises(DataError, match=r"Install s3fs.*pip install 'vitscale\[s3\]'"):
        open_index("s3://bucket/x.tar")


def test_closing_a_stream_waits_for_no_server(server, tmp_path, monkeypatch):
    index = open_index(urls(server))
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(tries=5, first_s=60, longest_s=60, silence_s=1))
    server.always = dict.fromkeys(server.files, "500")
    stream = open_stream(recipe(urls(server), tmp_path), index, rank=0, world=1, micro_batch=4)
    stream._ahead._top_up()
    started = os.times().elapsed
    stream.close()
    assert os.times().elapsed - started < 5


def test_verify_reads_every_byte_of_a_remote_shard(server, tmp_path):
    corrupt.build(tmp_path, {"jpg": b"garbage" * 100})
    server.files["s-001.tar"] = (tmp_path / "s-001.tar").read_bytes()
    verdict = verify(urls(server), classes=corrupt.CLASSES)
    assert [(fault.reason, fault.key, fault.shard) for fault in verdict.faults] == [("format", corrupt.KEY, f"{server.url}/s-001.tar")]
    assert (verdict.samples, verdict.bytes) == (TOTAL, sum(map(len, server.files.values())))
    del server.files["s-001.tar"]
    assert [(fault.reason, fault.shard) for fault in verify(urls(server)).faults] == [("missing", f"{server.url}/s-001.tar")]


def test_pixels_do_not_depend_on_the_number_of_ranks(server, tmp_path):
    index = open_index(urls(server))
    with open_stream(recipe(urls(server), tmp_path), index, rank=0, world=1, micro_batch=4) as stream:
        alone = {number: image for batch in stream.until(TOTAL) for micro in batch.micro
                 for number, image in zip(micro.ids.tolist(), micro.images.numpy().copy(), strict=True) if number >= 0}
    _, pixels, _ = run(urls(server), tmp_path, index)
    assert alone.keys() == pixels.keys()
    assert all(np.array_equal(alone[number], pixels[number]) for number in alone)


def test_a_server_that_does_not_tell_the_length_beside_a_range_is_asked_for_it(server, folder):
    server.always = dict.fromkeys(server.files, "untold")
    assert open_index(urls(server)).hash == open_index(f"{folder}/s-*.tar").hash


@pytest.mark.parametrize(("fault", "message"), [
    ("gzip", r"sends it compressed \(gzip\)"), ("untold at all", "does not tell how long it is"),
])
def test_what_asking_again_cannot_mend_is_not_asked_again(server, fault, message):
    server.always["s-001.tar"] = fault
    with pytest.raises(DataError, match=rf"s-001\.tar: the server {message}"):
        open_index(urls(server))
    assert len([one for one in server.asked if one[0] == "s-001.tar"]) == 1


def test_headers_for_a_gated_set_come_from_the_environment_alone(server, folder, monkeypatch):
    server.bearer = f"Bearer {SECRET}"
    with pytest.raises(DataError, match="access is refused"):
        open_index(urls(server))
    monkeypatch.setattr(remote, "_open", {})
    monkeypatch.setenv(HEADERS, json.dumps({"Authorization": server.bearer}))
    assert open_index(urls(server)).hash == open_index(f"{folder}/s-*.tar").hash
    for wrong in (SECRET, f'["{SECRET}"]', json.dumps({"Authorization": 3, "x": SECRET}),
                  json.dumps({"Authorization": f"Bearer {SECRET}\r\nx: y"})):
        monkeypatch.setattr(remote, "_open", {})
        monkeypatch.setenv(HEADERS, wrong)
        with pytest.raises(DataError, match="wants a JSON object of texts") as error:
            open_index(urls(server))
        assert SECRET not in str(error.value)
    monkeypatch.setattr(remote, "_open", {})


@pytest.mark.parametrize("scheme", ["s3a", "hf", "az", "abfs", "abfss"])
def test_the_usual_schemes_go_through_fsspec(scheme, monkeypatch, folder):
    """Their libraries want a network: here a file system of fsspec's own answers for them."""
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.registry import _registry

    class Store(MemoryFileSystem):
        protocol = scheme
        store, pseudo_dirs = dict[str, object](), [""]      # of its own: fsspec's is shared by all of a process

        def __init__(self, **options):
            super().__init__()

    monkeypatch.setitem(_registry, "s3" if scheme == "s3a" else scheme, Store)
    monkeypatch.setattr(remote, "_open", {})
    for path in folder.glob("*.tar"):
        Store().pipe_file(f"{scheme}://set/{path.name}", path.read_bytes())
    assert open_index(f"{scheme}://set/s-{{000..002}}.tar").hash == open_index(f"{folder}/s-*.tar").hash
    monkeypatch.setattr(remote, "_open", {})


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert expand("~/s-{000..001}.tar") == [f"{folder}/s-000.tar", f"{folder}/s-001.tar"]
