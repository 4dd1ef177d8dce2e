"""The index: webdataset's own reader as oracle, damage, staleness, concurrency, where it lies."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import braceexpand
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitscale.data import ShardReader, expand, open_index
from vitscale.data import index as index_module
from vitscale.data.descriptors import Held
from vitscale.errors import DataError

LONG = "folder-with-a-long-name/" * 9 + "x" * 60
NAMES = [
    "a.jpg", "a.CLS", "__index__.json", "__meta__/b.jpg", "dir/b.left.jpg", "dir/b.cls", "dir.v2/c.jpg", "dir.v2/c.cls", "noextension",
    ".hidden.jpg", "d/.hidden", LONG + ".jpg", LONG + ".cls", "ünïcode.jpg", "ünïcode.cls", "a.jpg", "a.cls", "./e.jpg", "./e.cls",
]


def write_tar(path, names, format=tarfile.GNU_FORMAT, size=700, **headers):
    """A tar of the members `names`, each with bytes of its own."""
    with tarfile.open(path, "w", format=format, pax_headers=headers or None) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            data = f"{number} {name} ".encode() * (size // 40 * (number % 3) + 1)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def oracle(path):
    """[(key, {extension: bytes})] by webdataset."""
    samples = webdataset.tariterators.tarfile_samples([{"url": path}])
    return [(one["__key__"], {ext: data for ext, data in one.items() if ext not in ("__key__", "__url__")}) for one in samples]


def ours(path):
    index = open_index(path)
    reader = ShardReader(index)
    return [(index.key_of(0, number), reader.read(0, number)) for number in range(index.num_samples)]


def samples(count, exts=("cls", "jpg")):
    return [f"{number:04d}.{ext}" for number in range(count) for ext in exts]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_webdataset(tmp_path, format):
    names = [name.replace(LONG, LONG[72:]) if format == tarfile.USTAR_FORMAT else name for name in NAMES]
    path = write_tar(tmp_path / "a.tar", [*names[:5], "folder/", *names[5:]], format)
    assert ours(path) == oracle(path)
    assert open_index(path).damaged == (1 if "a.jpg" in names[2:] else 0)       # the key that comes twice is noted


def test_pax_records_of_every_member_and_of_size(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(5), tarfile.PAX_FORMAT, comment="x" * 600)
    assert ours(path) == oracle(path)
    with tarfile.open(tmp_path / "big.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0000.jpg")
        info.size, info.pax_headers = 5, {"size": "5"}
        tar.addfile(info, io.BytesIO(b"hello"))
    corrupt(tmp_path / "big.tar", resize(1024, 0))          # the size of a member past 8 GiB stands in its record alone
    assert ours(str(tmp_path / "big.tar")) == [("0000", {"jpg": b"hello"})]


def test_sizes_in_base_256(tmp_path):
    path = Path(write_tar(tmp_path / "a.tar", samples(3)))
    corrupt(path, resize(0, base256=True))
    assert ours(str(path)) == oracle(str(path))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab./_1", min_size=1, max_size=8).filter(lambda name: name.strip("./")), min_size=1, max_size=12, unique=True))
def test_any_names_group_as_in_webdataset(tmp_path, names):
    path = write_tar(tmp_path / "a.tar", ["k.jpg", *names])
    os.utime(path, ns=(len(str(names)), hash(tuple(names)) % 2**40))
    try:
        expected = oracle(path)
    except ValueError:              # a member comes twice: webdataset gives up
        return
    assert ours(path) == expected


def test_shards_of_webdatasets_writer(tmp_path):
    with webdataset.ShardWriter(f"{tmp_path}/s-%06d.tar", maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"k{number}", "jpg": bytes([number]) * 1000, "cls": number})
    index = open_index(f"{tmp_path}/s-{{000000..000002}}.tar")
    assert index.counts.tolist() == [4, 4, 2]
    reader = ShardReader(index, held=Held(most=1))
    assert [reader.read(shard, number, ["cls"]) for shard in range(3) for number in range(index.counts[shard])] == [
        {"cls": str(number).encode()} for number in range(10)]


# Damage

def corrupt(path, change):
    raw = bytearray(Path(path).read_bytes())
    raw = change(raw) or raw
    Path(path).write_bytes(raw)


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def flip(position):
    def change(raw):
        raw[position] ^= 1
    return change


def resize(header, size=None, base256=False):
    """Write another size into the header at `header`, or the same as a binary number, and mend the checksum."""
    def change(raw):
        block = raw[header:header + 512]
        number = int(block[124:135], 8) if size is None else size
        block[124:136] = b"\x80" + number.to_bytes(11, "big") if base256 else b"%011o\0" % number
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        raw[header:header + 512] = block
    return change


def zero(start, count=512):
    def change(raw):
        raw[start:start + count] = bytes(count)
    return change


@pytest.mark.parametrize(("change", "gone", "lost", "reason"), [
    (lambda m: flip(m["0003.jpg"].offset + 3), ["0003"], 1, "checksum"),
    (lambda m: flip(m["0003.cls"].offset + 130), ["0003"], 1, "checksum"),
    (lambda m: flip(m["0000.cls"].offset), ["0000"], 1, "checksum"),
    (lambda m: zero(m["0004.jpg"].offset), ["0004"], 1, "zeros where a header"),
    (lambda m: zero(m["0009.jpg"].offset), ["0009"], 1, "zeros where a header"),
    (lambda m: zero(m["0002.jpg"].offset, m["0005.jpg"].offset_data - m["0002.jpg"].offset), ["0002", "0003", "0004", "0005"], None,
     "zeros where a header"),
    (lambda m: lambda raw: raw[:m["0009.jpg"].offset_data + 7], ["0009"], 1, "truncated inside '0009.jpg'"),
    (lambda m: lambda raw: raw[:m["0009.cls"].offset_data + 1], ["0009"], 1, "truncated inside '0009.cls'"),
    (lambda m: lambda raw: raw[:m["0009.cls"].offset + 100], ["0009"], None, "truncated inside a header"),
    (lambda m: lambda raw: raw[:m["0009.jpg"].offset], ["0009"], 1, "no end-of-archive marker"),
    (lambda m: lambda raw: raw[:m["0009.cls"].offset], ["0009"], None, "no end-of-archive marker"),
])
def test_damage_costs_only_the_samples_it_hits(tmp_path, change, gone, lost, reason):
    path = write_tar(tmp_path / "a.tar", samples(10), size=2000)
    intact = [(key, data) for key, data in oracle(path) if key not in gone]
    corrupt(path, change(members(path)))
    index = open_index(path)
    assert ours(path) == intact
    assert [reason in damage.reason for _, damage in index.damage()].count(True) == 1
    assert index.damaged == 1
    if lost is not None:                # what left no readable name cannot be counted
        assert index.lost == lost


def test_a_sample_with_a_cut_member_is_dropped_even_if_others_lack_that_member(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*samples(3), "0003.cls", "0003.jpg", "0003.json"])
    corrupt(path, lambda raw: raw[:members(path)["0003.json"].offset_data + 1])
    index = open_index(path)
    assert (index.num_samples, index.lost) == (3, 1)


def test_a_cut_after_a_whole_sample_loses_none(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(4))
    whole = oracle(path)
    end = members(path)["0003.jpg"]
    corrupt(path, lambda raw: raw[:end.offset_data + -(-end.size // 512) * 512])
    assert ours(path) == whole
    assert open_index(path).lost == 0


@pytest.mark.parametrize(("content", "message"), [
    (b"", "an empty file"),
    (b"\x1f\x8b\x08" + b"x" * 2000, "compressed .gzip.; decompress"),
    (b"not a tar at all " * 400, "no tar, or no whole sample"),
    (None, "no such shard"),
])
def test_what_is_no_shard_is_named(tmp_path, content, message):
    path = tmp_path / "cats-000003.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"cats-000003.tar.*{message}"):
        open_index(str(path))


def test_shards_without_images_or_samples_are_named(tmp_path):
    with pytest.raises(DataError, match=r"text\.tar: no images in it; its members are cls, txt"):
        open_index(write_tar(tmp_path / "text.tar", samples(3, ("cls", "txt"))))
    empty = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match=r"empty\.tar: no samples in it"):
        open_index(empty)
    index = open_index([empty, write_tar(tmp_path / "full.tar", samples(3))])       # among others an empty one is fine
    assert index.counts.tolist() == [0, 3]


def test_missing_shards_are_counted(tmp_path):
    write_tar(tmp_path / "a-1.tar", samples(1))
    with pytest.raises(DataError, match=r"2 of 3 shards do not exist, the first is .*a-0\.tar"):
        open_index(f"{tmp_path}/a-{{0..2}}.tar")


@pytest.mark.parametrize(("url", "message"), [
    ("pipe:cat x.tar", "pipe: URLs run a shell"), ("hdfs://u:secret@bucket/x.tar", r"hdfs://\*{3}@bucket/x.tar: shards are read"),
    ("x-{000..", "not balanced"), ("nothing-*.tar", "no file matches"), (["a.tar", "./a.tar"], "listed twice"),
])
def test_urls_that_cannot_be_used(tmp_path, monkeypatch, url, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        expand(url)


def test_braces_globs_and_paths(tmp_path, monkeypatch):
    tmp_path /= "odd [name] {0..1}"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("b-1.tar", "b-0.tar", "c.tar"):
        write_tar(tmp_path / name, samples(1))
    found = [str(tmp_path / name) for name in ("b-0.tar", "b-1.tar", "c.tar")]
    assert expand(["b-*.tar", "c.tar"]) == found
    assert expand(["b-{0..1}.tar", "./x/../c.tar"]) == found
    assert expand("file:///d/a.tar") == ["/d/a.tar"]
    with pytest.raises(DataError, match="is a folder"):
        open_index(".")


@pytest.mark.parametrize("pattern", [
    "/d/t-{000..012}.tar", "/d/t-{8..12}.tar", "/d/t-{08..12}.tar", "/d/t-{8..012}.tar", "/d/t-{3..1}.tar", "/d/{a,b}/t-{0..2}.tar",
    "/d/t-{5..5}", "/d/{00..01}/t", "/d/t-{0..1}-{0..1}.tar",
])
def test_spans_expand_as_in_braceexpand(pattern):
    assert expand(pattern) == list(braceexpand.braceexpand(pattern))


# Keeping it

def test_built_once_then_loaded_and_rebuilt_when_a_shard_changes(tmp_path, monkeypatch):
    paths = [write_tar(tmp_path / f"{name}.tar", samples(3)) for name in "abc"]
    built = []
    real = index_module._build_sidecar
    monkeypatch.setattr(index_module, "_build_sidecar", lambda place, path, *rest: built.append(path) or real(place, path, *rest))
    progress = []
    first = open_index(paths, on_progress=lambda done, total: progress.append((done, total)))
    assert sorted(built) == paths
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert open_index(paths).hash == first.hash
    assert len(built) == 3
    assert open_index(paths[1:]).num_samples == 6       # another set: its sidecars are there already
    assert len(built) == 3
    write_tar(paths[1], samples(5))
    again = open_index(paths)
    assert built[3:] == [paths[1]]
    assert again.counts.tolist() == [3, 5, 3]
    assert again.hash != first.hash
    Path(tmp_path / ".vitscale-index" / "a.tar.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="index is gone"):
        open_index(paths).shard(0)


def test_a_shard_that_changes_under_a_reader_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(3))
    index = open_index(path)
    corrupt(path, lambda raw: raw + bytes(512))
    with pytest.raises(DataError, match=r"a\.tar: has \d+ bytes, but had \d+ when it was indexed"):
        ShardReader(index).read(0, 0)


def test_the_hash_is_of_content_not_of_paths(tmp_path):
    hashes = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        hashes.append(open_index(write_tar(tmp_path / folder / "a.tar", samples(3))).hash)
    other = open_index(write_tar(tmp_path / "b.tar", samples(4))).hash
    assert hashes[0] == hashes[1] != other


def test_where_the_index_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    path = write_tar(data / "a.tar", samples(2))
    open_index(path, str(tmp_path / "index"))
    assert not (data / ".vitscale-index").exists()
    assert len(list((tmp_path / "index").glob("a.tar-*.safetensors"))) == 1
    monkeypatch.setattr(os, "access", lambda place, mode: data not in Path(place).parents)      # as on a read-only disk
    assert open_index(path).num_samples == 2
    cache = tmp_path / "cache" / "vitscale" / "index"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert {file.suffix for file in cache.iterdir()} >= {".safetensors", ".json"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match=r"give a writable folder with data\.index_dir"):
        open_index(path, str(tmp_path / "other"))


def test_two_processes_index_the_same_folder(tmp_path):
    for number in range(12):
        write_tar(tmp_path / f"a-{number:02d}.tar", samples(40))
    code = f"from vitscale.data import open_index; i = open_index({str(tmp_path)!r} + '/a-*.tar'); print(i.num_samples, i.hash)"
    racers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [racer.communicate(timeout=60)[0] for racer in racers]
    assert answers[0] == answers[1] == f"480 {open_index(f'{tmp_path}/a-*.tar').hash}\n"
    assert not [file for file in (tmp_path / ".vitscale-index").iterdir() if file.name.startswith(".a")]


def test_a_checked_set_is_believed_without_looking_at_the_shards(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(2))
    open_index(path)
    os.remove(path)
    assert open_index(path, check=False).num_samples == 2


def test_the_sidecar_is_plain_safetensors(tmp_path):
    from safetensors import safe_open

    path = write_tar(tmp_path / "a.tar", samples(2))
    open_index(path)
    with safe_open(tmp_path / ".vitscale-index" / "a.tar.safetensors", "numpy") as file:
        assert set(file.keys()) == {"offset", "size", "ext", "first"}
        assert json.loads(file.metadata()["vitscale"])["samples"] == 2
        assert file.get_tensor("first").tolist() == [0, 2, 4]


def test_indexing_loads_no_torch(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(2))
    code = f"import sys; from vitscale.data import open_index, check_labels; open_index({path!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
