"""Which members of a tar make a sample, and which is its image: kept apart, links, several images, sparse files, compressed tars."""

import gzip
import io
import random
import tarfile

import corrupt
import pytest
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data import ShardReader, open_index
from vitscale.data.index import SeveralImages, image_member
from vitscale.data.labels import check_labels
from vitscale.data.verify import verify
from vitscale.errors import DataError

KEYS = [f"{number:03d}" for number in range(6)]


def tar(path, entries, form=tarfile.GNU_FORMAT):
    """entries: (name, bytes), or (name, link's type, target)."""
    with tarfile.open(path, "w", format=form) as file:
        for name, *what in entries:
            info = tarfile.TarInfo(name)
            if len(what) == 1:
                info.size = len(what[0])
                file.addfile(info, io.BytesIO(what[0]))
            else:
                info.type, info.linkname = what
                file.addfile(info)
    return str(path)


def members():
    return [(f"{key}.jpg", corrupt.jpeg(int(key))) for key in KEYS], [(f"{key}.cls", key[-1].encode()) for key in KEYS]


def contents(url, **options):
    index = open_index(url, **options)
    reader = ShardReader(index)
    return {index.key_of(shard, number): reader.read(shard, number) for shard in range(len(index.paths))
            for number in range(int(index.counts[shard]))}, index


WHOLE = {key: {"jpg": corrupt.jpeg(int(key)), "cls": key[-1].encode()} for key in KEYS}


def orders():
    """Every way in which people have been seen to write a tar, and some at random."""
    jpg, cls = members()
    yield "images first", jpg + cls
    yield "labels first", cls + jpg
    pairs = [pair for one in zip(jpg[1:], cls[1:], strict=True) for pair in one]
    yield "one late label", [*pairs, jpg[0], ("else.jpg", jpg[1][1]), cls[0]]
    for seed in range(3):
        mixed = jpg + cls
        random.Random(seed).shuffle(mixed)
        yield f"mixed {seed}", mixed


@pytest.mark.parametrize(("name", "entries"), list(orders()), ids=lambda value: value if isinstance(value, str) else "")
def test_members_that_stand_apart_are_joined_on_request_and_named_otherwise(tmp_path, name, entries):
    url = tar(tmp_path / "apart.tar", entries)
    found, joined = contents(url, group_members="anywhere")
    found.pop("else", None)
    assert found == WHOLE
    assert not verify([url], classes=10, group_members="anywhere").by_reason.keys() - {"label"}         # of "else" alone
    index = open_index(url)
    assert index.hash != joined.hash                    # a run with the one is not continued with the other
    assert open_index(url, group_members="anywhere").hash == joined.hash
    assert "data.group_members: anywhere" in index.apart(0)
    assert joined.apart(0) is None
    assert verify([url]).by_reason["apart"] == 1
    with pytest.raises(DataError, match=r"stand apart.*data\.group_members: anywhere"):
        check_labels(index, "cls", 10)
    pack = CliRunner().invoke(app, ["data", "pack", url, str(tmp_path / "out")])
    assert "stand apart" in str(pack.exception)         # it would lose every label
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, ["data", "pack", url, str(tmp_path / "out"), "--group-members", "anywhere"]).exit_code == 0
    again, _ = contents(f"{tmp_path}/out/*.tar")
    again.pop("else", None)
    assert again == WHOLE


def test_a_tar_in_webdatasets_order_is_the_same_set_either_way_and_a_key_twice_stays_two_samples(tmp_path):
    jpg, cls = members()
    pairs = [pair for one in zip(jpg, cls, strict=True) for pair in one]
    url = tar(tmp_path / "plain.tar", pairs + pairs[:2])
    for how in ("adjacent", "anywhere"):
        index = open_index(url, group_members=how)
        assert index.num_samples == 7
        assert index.apart(0) is None
        assert verify([url], group_members=how).by_reason == {"duplicate": 1}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("deep", ["", "a/b/", "long/" * 15])
def test_links_are_followed_inside_the_shard(tmp_path, form, deep):
    image = corrupt.jpeg(1)
    entries = [
        (f"{deep}000.jpg", image), (f"{deep}000.cls", b"0"),
        (f"{deep}001.jpg", tarfile.LNKTYPE, f"{deep}000.jpg"), (f"{deep}001.cls", b"1"),              # hard: by the archive's name
        (f"{deep}002.jpg", tarfile.SYMTYPE, "000.jpg"), (f"{deep}002.cls", b"2"),                     # symbolic: from its own folder
        (f"{deep}003.jpg", tarfile.SYMTYPE, "./002.jpg"), (f"{deep}003.cls", b"3"),                   # to a link
        (f"{deep}004.jpg", tarfile.SYMTYPE, "later.jpg"), (f"{deep}004.cls", b"4"),
        (f"{deep}later.jpg", image), (f"{deep}later.cls", b"5"),
    ]
    found, index = contents(tar(tmp_path / "links.tar", entries, form))
    assert found == {f"{deep}{key}": {"jpg": image, "cls": label} for key, label in zip(
        ("000", "001", "002", "003", "004", "later"), (b"0", b"1", b"2", b"3", b"4", b"5"), strict=True)}
    assert (index.damaged, index.lost) == (0, 0)


@pytest.mark.parametrize(("kind", "target"), [
    (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.SYMTYPE, "../000.jpg"), (tarfile.LNKTYPE, "gone.jpg"), (tarfile.SYMTYPE, "001.jpg"),
    (tarfile.SYMTYPE, ""),
])
def test_a_link_that_leads_nowhere_is_named_and_costs_its_sample(tmp_path, kind, target):
    url = tar(tmp_path / "links.tar", [("000.jpg", corrupt.jpeg(0)), ("000.cls", b"0"), ("001.jpg", kind, target), ("001.cls", b"1"),
                                       ("002.jpg", corrupt.jpeg(2)), ("002.cls", b"2")])
    found, index = contents(url)
    assert set(found) == {"000", "002"}
    assert (index.damaged, index.lost) == (1, 1)
    faults = verify([url]).faults
    assert {fault.reason for fault in faults} == {"tar", "lost"}
    assert any("'001.jpg' is a link to" in fault.detail for fault in faults)


IMAGES = [
    (["jpg", "cls"], "jpg"), (["cls", "jpg", "seg.png"], "jpg"), (["seg.png", "jpg"], "jpg"), (["left.png", "cls"], "left.png"),
    (["cls"], None), (["jpg", "png"], SeveralImages), (["png", "jpg", "json"], SeveralImages), (["left.jpg", "right.jpg"], SeveralImages),
]


@pytest.mark.parametrize(("extensions", "image"), IMAGES, ids=lambda value: ",".join(value) if isinstance(value, list) else "")
def test_which_member_is_the_image_never_depends_on_their_order(extensions, image):
    for turned in (extensions, extensions[::-1]):
        if image is SeveralImages:
            with pytest.raises(SeveralImages, match=r"has 2 images \(.*\); name the one to use with data\.image"):
                image_member(turned)
        else:
            assert image_member(turned) == image
        assert image_member(turned, turned[0]) == turned[0]
        assert image_member(turned, "absent.jpg") is None


def test_of_two_images_one_is_named_everywhere(tmp_path):
    url = tar(tmp_path / "two.tar", [(f"{key}.{side}.jpg", corrupt.jpeg(int(key) + shift)) for key in KEYS
                                     for side, shift in (("left", 0), ("right", 20))])
    index = open_index(url)
    with pytest.raises(SeveralImages, match=r"two\.tar: sample '000' has 2 images \(left\.jpg, right\.jpg\)"):
        index.image_of(0, 0)
    assert verify([url]).by_reason == {"image": 6}
    assert not verify([url], image="right.jpg").faults
    chosen = open_index(url, image="right.jpg")
    assert ShardReader(chosen).pread(0, *chosen.image_of(0, 2)[1:]) == corrupt.jpeg(22)
    assert CliRunner().invoke(app, ["data", "pack", url, str(tmp_path / "bad")]).exit_code == 2
    assert CliRunner().invoke(app, ["data", "pack", url, str(tmp_path / "out"), "--image", "left.jpg"]).exit_code == 0
    assert "SeveralImages" in repr(CliRunner().invoke(app, ["data", "stats", url]).exception)
    assert CliRunner().invoke(app, ["data", "stats", url, "--image", "left.jpg"]).exit_code == 0


def sparse(form):
    """A header as GNU tar writes it for a file with holes, and its condensed data."""
    data = corrupt.jpeg(1)
    info = tarfile.TarInfo("001.jpg")
    info.size = len(data)
    if form == "old":
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[156:157], block[482] = b"S", 1                    # and one more block of the map follows
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block) + bytes(512) + data + bytes(-len(data) % 512)
    info.pax_headers = {f"GNU.sparse.{name}": value for name, value in {
        "0.0": {"size": "100000", "numblocks": "1", "offset": "0", "numbytes": "9"},
        "0.1": {"size": "100000", "numblocks": "1", "map": "0,9"},
        "1.0": {"major": "1", "minor": "0", "realsize": "100000"},
    }[form].items()}
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("form", ["old", "0.0", "0.1", "1.0"])
def test_a_sparse_member_is_named_never_read_condensed(tmp_path, form):
    for name, key in (("a", "000"), ("b", "002")):
        tar(tmp_path / name, [(f"{key}.jpg", corrupt.jpeg(0)), (f"{key}.cls", b"0")])
    whole = (tmp_path / "a").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "sparse.tar").write_bytes(whole[:end] + sparse(form) + (tmp_path / "b").read_bytes())
    found, _ = contents(str(tmp_path / "sparse.tar"))
    assert set(found) == {"000", "002"}
    assert any("sparse member '001.jpg'" in fault.detail for fault in verify([str(tmp_path / "sparse.tar")]).faults)
    tar(tmp_path / "label", [("001.cls", b"0")])
    (tmp_path / "only.tar").write_bytes(sparse(form) + (tmp_path / "label").read_bytes())
    with pytest.raises(DataError, match=r"no images in it; its members are cls.*; passed over: sparse member '001\.jpg'"):
        open_index([str(tmp_path / "only.tar")])


@pytest.mark.parametrize(("kind", "head"), [
    ("gzip", gzip.compress(b"x" * 100, mtime=0)), ("bzip2", b"BZh91AY&SY" + bytes(99)), ("xz", b"\xfd7zXZ\0" + bytes(99)),
    ("zstd", b"(\xb5/\xfd" + bytes(99)), ("lz4", b"\x04\"M\x18" + bytes(99)), ("zip", b"PK\x03\x04" + bytes(99)),
])
def test_a_compressed_tar_is_named_in_one_sentence_everywhere(tmp_path, kind, head):
    path = tmp_path / "shard.tar.gz"
    path.write_bytes(head)
    said = f"compressed ({kind}); decompress it, since samples are read at their offsets"
    for words in (["data", "index", str(path)], ["data", "stats", str(path)], ["data", "pack", str(path), str(tmp_path / "out")]):
        assert said in str(CliRunner().invoke(app, words).exception)
    (fault,) = verify([str(path)]).faults
    assert said in fault.detail
