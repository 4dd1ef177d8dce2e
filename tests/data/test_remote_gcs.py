"""Shards behind gs://: gcsfs against an emulator of Google Cloud Storage on loopback."""

import os

import corrupt
import pytest

from vitscale.data import ShardReader, expand, open_index, remote
from vitscale.data.cache import ShardCache
from vitscale.errors import DataError

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")     # asks for kinds of buckets by gRPC, which the emulator has not
emulator = pytest.importorskip("gcp_storage_emulator.server")
pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def store():
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    yield f"http://127.0.0.1:{server._api._httpd.server_address[1]}"       # it has no public word for the port it was given
    server.stop()


@pytest.fixture
def gs(store, monkeypatch, tmp_path):
    """The shards in bucket/train; gcsfs finds the emulator by the variable that Google's own clients know."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(tries=2, first_s=0.01, longest_s=0.02, silence_s=5))
    monkeypatch.setattr(remote, "_open", {})
    import fsspec

    corrupt.build(tmp_path / "local")
    client = fsspec.filesystem("gs", token="anon", endpoint_url=store, skip_instance_cache=True)
    for path in (tmp_path / "local").glob("*.tar"):
        client.pipe_file(f"bucket/train/{path.name}", path.read_bytes())
    return client


def samples(reader):
    return [reader.read(shard, number) for shard, count in enumerate(reader.index.counts.tolist()) for number in range(count)]


def test_google_cloud_storage_gives_what_a_disk_gives(gs, tmp_path):
    here = open_index(f"{tmp_path}/local/s-*.tar")
    for url in ("gs://bucket/train/s-{000..002}.tar", "gs://bucket/train/s-*.tar"):
        away = open_index(url)
        assert away.paths == tuple(f"gs://bucket/train/s-00{number}.tar" for number in range(3))
        assert away.hash == here.hash
    expected = samples(ShardReader(here))
    assert samples(ShardReader(away)) == expected
    assert samples(ShardReader(away, cache=ShardCache(str(tmp_path / "cache"), 10**8))) == expected


def test_what_is_not_there_is_named(gs):
    with pytest.raises(DataError, match=r"1 of 4 shards do not exist, the first is gs://bucket/train/s-003\.tar"):
        open_index("gs://bucket/train/s-{000..003}.tar")
    with pytest.raises(DataError, match=r"gs://bucket/nothing-\*\.tar: no object matches"):
        expand("gs://bucket/nothing-*.tar")


def test_a_change_stops_a_run(gs, tmp_path):
    index = open_index("gs://bucket/train/s-{000..002}.tar")
    content = bytearray((tmp_path / "local" / "s-001.tar").read_bytes())
    content[700] ^= 1                                           # inside a label: the same size, the same headers
    gs.pipe_file("bucket/train/s-001.tar", bytes(content))
    with pytest.raises(DataError, match=r"gs://bucket/train/s-001\.tar: is another version than the one that was indexed"):
        ShardReader(index).read(1, 0)
