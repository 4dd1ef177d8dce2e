"""A second format of shards, that of docs/extending.md: the samples of a tar of the same members, and damage told wherever it lies."""

import io
import random
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import corrupt
import pytest
from offering import blocks_in

from vitscale.data import ShardReader, open_index
from vitscale.data.formats import FORMATS, ShardFormat
from vitscale.data.members import Walk
from vitscale.data.verify import verify
from vitscale.errors import DataError
from vitscale.evaluate.images import open_images
from vitscale.observe.dashboard.pictures import picture

Entries = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def zips(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("zipped")
    [code] = [block.code for block in blocks_in("Add a shard format") if block.kind == "new"]
    exec(code, module.__dict__)
    monkeypatch.setitem(FORMATS, "zip", ShardFormat(".zip", (0, b"PK\3\4"), module.walk))


def write(path: Path, entries: Entries, compressed: tuple[str, ...] = ()) -> str:
    """A tar or a zip, as its name says."""
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as file:
            for name, data in entries:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries:
                archive.writestr(name, data, zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED)
    return str(path)


def members(count: int = 8) -> Entries:
    return [(f"{at:03d}.{ext}", data) for at in range(count) for ext, data in (("jpg", corrupt.jpeg(at)), ("cls", b"%d" % (at % 3)))]


def samples(url: str, group_members: str = "adjacent") -> list[tuple[str, dict[str, bytes]]]:
    index = open_index(url, group_members=group_members)        # type: ignore[arg-type]
    reader = ShardReader(index)
    return [(index.key_of(0, number), reader.read(0, number)) for number in range(index.num_samples)]


@pytest.mark.parametrize("seed", range(6))
def test_a_zip_holds_the_samples_of_a_tar_of_the_same_members(tmp_path: Path, seed: int) -> None:
    draw, entries = random.Random(seed), members()
    entries += [("folder.v2/ünï.jpg", corrupt.jpeg(1)), ("folder.v2/ünï.cls", b"2"), ("__meta__", b"no sample"), ("x" * 90 + ".jpg", b"")]
    if seed % 2:
        draw.shuffle(entries)           # members of one key stand apart
    tar, zipped = (write(tmp_path / f"a{suffix}", entries) for suffix in (".tar", ".zip"))
    for how in ("adjacent", "anywhere"):
        assert samples(zipped, how) == samples(tar, how)
    found = [verify(url, group_members="anywhere", classes=3) for url in (tar, zipped)]
    assert [[(fault.reason, fault.key, fault.detail) for fault in one.faults] for one in found][1:] == \
        [[(fault.reason, fault.key, fault.detail) for fault in found[0].faults]]
    assert open_index(tar).hash != open_index(zipped).hash


def test_a_format_is_recognised_by_its_bytes_then_by_its_name(tmp_path: Path) -> None:
    expected = samples(write(tmp_path / "a.tar", members()))
    for written, named in ((".zip", "b.tar"), (".tar", "c.zip"), (".zip", "d.tar.zip"), (".zip", "e")):
        (tmp_path / named).write_bytes(Path(write(tmp_path / f"whole{written}", members())).read_bytes())
        assert samples(str(tmp_path / named)) == expected
        assert not verify(str(tmp_path / named), classes=3).faults
    assert len(open_images([str(tmp_path / "whole.zip")])) == 8
    (tmp_path / "only").mkdir()
    write(tmp_path / "only" / "a.zip", members())
    assert len(open_images([str(tmp_path / "only")])) == 8


def test_the_page_of_a_run_shows_an_image_of_a_zip(tmp_path: Path) -> None:
    url = write(tmp_path / "a.zip", members())
    (tmp_path / "recipe.yaml").write_text(f"data: {{train: {url}}}\n")
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "quarantine.jsonl").write_text(f'{{"shard": "{url}", "key": "003", "reason": "decode"}}\n')
    assert isinstance(picture(tmp_path, 0), bytes)


def test_an_index_from_before_there_were_formats_is_that_of_a_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path / "a.tar", members())
    expected, sidecar = samples(url), tmp_path / ".vitscale-index" / "a.tar.safetensors"
    whole = sidecar.read_bytes()
    named = b'\\"format\\": \\"tar\\", '
    older = whole.replace(named, b" " * len(named))
    sidecar.write_bytes(older)
    assert older != whole
    assert samples(url) == expected
    zipped = write(tmp_path / "b.zip", members())
    assert samples(zipped) == expected
    monkeypatch.delitem(FORMATS, "zip")             # of a format that is not here any more
    with pytest.raises(DataError, match="its index is gone or no longer fits"):
        open_index(zipped).shard(0)


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[:int(len(data) * share)]


def flipped(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        draw, changed = random.Random(seed), bytearray(data)
        for _ in range(30):
            changed[draw.randrange(len(data) - 3000, len(data))] ^= 1 << draw.randrange(8)       # where zip's list of members stands
        return bytes(changed)
    return change


@pytest.mark.parametrize("change", [cut(0.0), cut(0.3), cut(0.9), *map(flipped, range(12)), lambda _: b"PK\3\4" * 9])
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_damage_is_told_and_never_raises(tmp_path: Path, suffix: str, change: Callable[[bytes], bytes]) -> None:
    path = Path(write(tmp_path / f"a{suffix}", members(40)))
    path.write_bytes(change(path.read_bytes()))
    found = verify(str(path), classes=3)
    assert found.faults
    assert found.samples + found.by_reason["lost"] <= 40
    if found.samples:
        assert open_index(str(path)).num_samples == found.samples
    else:
        with pytest.raises(DataError, match=str(path)):
            open_index(str(path))


def test_a_compressed_member_costs_its_sample_alone(tmp_path: Path) -> None:
    url = write(tmp_path / "a.zip", members(), compressed=("003.jpg",))
    assert [key for key, _ in samples(url)] == [f"{at:03d}" for at in range(8) if at != 3]
    faults = verify(url, classes=3).faults
    assert {(fault.reason, fault.key) for fault in faults} == {("lost", "003"), ("zip", None)}
    assert "'003.jpg' is compressed; pack with zip -0" in faults[0].detail
    with pytest.raises(DataError, match="no zip, or no whole sample is left in it"):
        open_index(write(tmp_path / "all.zip", members(2), compressed=("000.jpg", "001.jpg", "000.cls", "001.cls")))


def test_a_disk_that_fails_is_no_damage(tmp_path: Path) -> None:
    def away(offset: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    for form in FORMATS.values():
        with pytest.raises(OSError, match="Input/output error"):
            list(form.walk(away, 10_000, Walk(), 0))
