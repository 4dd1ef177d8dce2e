"""Shards in an object store that speaks S3: moto's server on loopback."""

import json

import corrupt
import pytest

from vitscale.data import ShardReader, expand, open_index, remote
from vitscale.data.bad import BadSample
from vitscale.data.cache import ShardCache
from vitscale.errors import DataError

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def store():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(store, monkeypatch, tmp_path):
    """A client of the store with the shards in bucket/train."""
    for name, value in {
        "AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "user"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(tries=2, first_s=0.01, longest_s=0.02, silence_s=5))
    monkeypatch.setattr(remote, "_open", {})
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    corrupt.build(tmp_path / "local")
    for path in (tmp_path / "local").glob("*.tar"):
        client.upload_file(str(path), "bucket", f"train/{path.name}")
    return client


def samples(reader):
    return [reader.read(shard, number) for shard, count in enumerate(reader.index.counts.tolist()) for number in range(count)]


def test_an_object_store_gives_what_a_disk_gives(s3, tmp_path):
    here = open_index(f"{tmp_path}/local/s-*.tar")
    for url in ("s3://bucket/train/s-{000..002}.tar", "s3://bucket/train/s-*.tar"):
        away = open_index(url)
        assert away.paths == tuple(f"s3://bucket/train/s-00{number}.tar" for number in range(3))
        assert away.hash == here.hash
    expected = samples(ShardReader(here))
    assert samples(ShardReader(away)) == expected
    assert samples(ShardReader(away, cache=ShardCache(str(tmp_path / "cache"), 10**8))) == expected
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    assert away.key_of(1, 2) == corrupt.KEY


def test_what_is_not_there_is_named(s3):
    with pytest.raises(DataError, match=r"1 of 4 shards do not exist, the first is s3://bucket/train/s-003\.tar"):
        open_index("s3://bucket/train/s-{000..003}.tar")
    with pytest.raises(DataError, match=r"s3://bucket/nothing-\*\.tar: no object matches"):
        expand("s3://bucket/nothing-*.tar")
    with pytest.raises(DataError, match="is a folder"):
        open_index("s3://bucket/train")


def test_a_folder_of_many_is_listed(s3, tmp_path, monkeypatch):
    content = (tmp_path / "local" / "s-000.tar").read_bytes()
    for number in range(20):
        s3.put_object(Bucket="bucket", Key=f"many/{number:02d}.tar", Body=content)
    one = remote.facts("s3://bucket/many/07.tar")
    monkeypatch.setattr(remote, "facts", None)                  # nobody asks for a single one
    assert remote.facts_of([f"s3://bucket/many/{number:02d}.tar" for number in range(21)]) == [one] * 20 + [None]
    assert remote.facts_of([f"s3://bucket/absent/{number:02d}.tar" for number in range(20)]) == [None] * 20


def test_a_change_is_indexed_anew_and_stops_a_run(s3, tmp_path):
    index = open_index("s3://bucket/train/s-{000..002}.tar")
    content = bytearray((tmp_path / "local" / "s-001.tar").read_bytes())
    content[700] ^= 1                                           # inside a label: the same size, the same headers
    s3.put_object(Bucket="bucket", Key="train/s-001.tar", Body=bytes(content))
    for cache in (None, ShardCache(str(tmp_path / "cache"), 10**8)):
        with pytest.raises(DataError, match=r"s3://bucket/train/s-001\.tar: is another version than the one that was indexed"):
            ShardReader(index, cache=cache).read(1, 0)
    again = open_index("s3://bucket/train/s-{000..002}.tar")
    assert (again.hash, again.mtime_ns[1] != index.mtime_ns[1]) == (index.hash, True)
    s3.delete_object(Bucket="bucket", Key="train/s-001.tar")
    with pytest.raises(BadSample, match="No such file"):
        ShardReader(again).read(1, 0)


def test_a_set_file_names_the_objects(s3, tmp_path):
    open_index("s3://bucket/train/s-{000..002}.tar", str(tmp_path / "index"))
    (place,) = (tmp_path / "index").glob("set-*.json")
    assert json.loads(place.read_text())["urls"][0] == "s3://bucket/train/s-000.tar"
