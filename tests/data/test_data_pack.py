"""Packing: every sample once with its label, the same bytes always, a killed pack goes on, bad images are told."""

import csv
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import corrupt
import numpy as np
import pytest
import simplejpeg
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data import ShardReader, open_index, open_stream
from vitscale.data.image import decode_whole
from vitscale.data.pack import PackOptions, pack
from vitscale.data.sources import open_source
from vitscale.errors import DataError
from vitscale.recipe.load import check_recipe

CLASSES = ("cats", "dogs", "great apes")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Thirty JPEGs in three class folders, with names that are hard to pack."""
    root = tmp_path_factory.mktemp("tree")
    for number in range(30):
        folder = root / CLASSES[number % 3] / ("sub.dir" if number % 4 == 0 else "")
        folder.mkdir(parents=True, exist_ok=True)
        name = {5: "a.b", 8: "a_b", 11: ".hidden", 14: "__x__", 17: "ünï code"}.get(number, f"{number:03d}")
        (folder / f"{name}.{'JPEG' if number % 2 else 'jpg'}").write_bytes(corrupt.jpeg(number))
    (root / "cats" / "notes.txt").write_text("no image")
    (root / "readme.txt").write_text("no class")
    return root


def packed(source, out, classes=(), **options):
    chosen = PackOptions(**{"shuffle": 0, "shard_samples": 7} | options)
    return pack(open_source(str(source), classes=classes), Path(out), chosen, workers=2)


def samples(folder):
    """[(key, {extension: bytes})] in the order of the shards."""
    index = open_index(f"{folder}/*.tar", str(folder / "index"))
    reader = ShardReader(index)
    return [(index.key_of(shard, number), reader.read(shard, number)) for shard in range(len(index.paths))
            for number in range(index.counts[shard])]


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).glob("*.tar"))} | {
        name: (folder / name).read_bytes() for name in ("SHA256SUMS", "pack.json") if (folder / name).exists()}


def test_a_folder_of_classes_is_packed_indexed_and_streamed_with_its_labels(tree, tmp_path):
    done = packed(tree, tmp_path)
    assert (done.shards, done.samples, done.bad, done.kept) == (5, 30, [], 0)
    assert (tmp_path / "classes.txt").read_text().splitlines() == list(CLASSES)
    found = {members.get("jpg") or members["jpeg"]: (key, int(members["cls"])) for key, members in samples(tmp_path)}
    assert {data: label for data, (_, label) in found.items()} == {corrupt.jpeg(number): number % 3 for number in range(30)}
    assert len({key for key, _ in found.values()}) == 30
    assert found[corrupt.jpeg(5)][0] == "great apes/a_b".replace(" ", "_")
    recipe = check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 16, "patch": 4, "classes": 3}, "data": {"train": f"{tmp_path}/*.tar", "lanes": 4},
        "optim": {"lr": 1e-3}, "global_batch": 8, "duration": "1 epochs",
    }, "test")
    index = open_index(recipe.data.train)
    labels = [int(found_members["cls"]) for _, found_members in samples(tmp_path)]
    with open_stream(recipe, index, rank=0, world=1, micro_batch=8) as stream:
        seen = [pair for batch in stream.until(30) for micro in batch.micro
                for pair in zip(micro.ids.tolist(), micro.labels.tolist(), strict=True) if pair[0] >= 0]
    assert sorted(seen) == list(enumerate(labels))


def test_shards_are_mixed_unless_asked_not_to(tree, tmp_path):
    packed(tree, tmp_path / "mixed")
    packed(tree, tmp_path / "plain", shuffle=None)
    mixed, plain = ([int(members["cls"]) for _, members in samples(tmp_path / name)] for name in ("mixed", "plain"))
    assert plain == sorted(plain)
    assert len(set(mixed[:7])) == 3


def test_the_same_source_gives_the_same_bytes(tree, tmp_path):
    packed(tree, tmp_path / "a")
    pack(open_source(str(tree)), tmp_path / "b", PackOptions(shuffle=0, shard_samples=7), workers=1)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        assert {member.mtime for member in tar} == {0}
    packed(tree, tmp_path / "c", shuffle=1)
    assert shards(tmp_path / "c") != shards(tmp_path / "a")


def test_sums_are_those_of_sha256sum(tree, tmp_path):
    packed(tree, tmp_path)
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        sha, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha
    assert len(line) > 64
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)


KILLED = """
import sys, time
from vitscale import cli
from vitscale.data import pack
real = pack._members
pack._members = lambda *rest: time.sleep(0.05) or real(*rest)
sys.argv = ["vitscale", "data", "pack", *sys.argv[1:]]
cli.main()
"""


def test_a_killed_pack_goes_on_to_the_same_bytes(tree, tmp_path):
    out = tmp_path / "killed"
    options = ["--shard-samples", "4", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tree), str(out), *options])
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    FileLock(out / ".pack" / "lock").acquire(timeout=60)            # the process that packs is ended with the one that was started
    finished = {file: file.stat().st_ino for file in out.glob("*.tar")}
    assert 3 <= len(finished) < 8
    assert not (out / "SHA256SUMS").exists()
    done = packed(tree, out, shard_samples=4)
    assert len(finished) - 2 <= done.kept <= len(finished)      # a shard whose row was not yet written is written again
    assert sum(file.stat().st_ino == inode for file, inode in finished.items()) == done.kept
    packed(tree, tmp_path / "unbroken", shard_samples=4)
    assert shards(out) == shards(tmp_path / "unbroken")
    assert packed(tree, out, shard_samples=4).kept == 8         # and again: nothing is left to do


def test_a_damaged_shard_of_another_size_is_written_again(tree, tmp_path):
    packed(tree, tmp_path)
    whole = shards(tmp_path)
    (tmp_path / "shard-000002.tar").write_bytes(b"torn")
    assert packed(tree, tmp_path).kept == 4
    assert shards(tmp_path) == whole


@pytest.mark.parametrize(("change", "message"), [
    ({"shard_samples": 8}, "holds another pack .shard_samples was 7, is 8.; remove it to pack anew"),
    ({"shuffle": None, "quality": 80}, "shuffle was 0, is None; quality was 90, is 80"),
])
def test_another_plan_is_refused(tree, tmp_path, change, message):
    packed(tree, tmp_path)
    whole = shards(tmp_path)
    with pytest.raises(DataError, match=message):
        packed(tree, tmp_path, **change)
    assert shards(tmp_path) == whole


def test_a_changed_source_and_foreign_shards_are_refused(tree, tmp_path):
    copy = tmp_path / "source"
    subprocess.run(["cp", "-r", tree, copy], check=True)
    packed(copy, tmp_path / "out")
    (copy / "dogs" / "new.jpg").write_bytes(corrupt.jpeg(99))
    with pytest.raises(DataError, match="its source has changed since"):
        packed(copy, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.tar").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds x\.tar and more, which this did not pack"):
        packed(copy, tmp_path / "mine")
    (tmp_path / "out" / "pack.json").write_text("{")
    with pytest.raises(DataError, match=r"pack\.json: cannot be read"):
        packed(copy, tmp_path / "out")


def test_only_one_process_packs_into_a_folder(tree, tmp_path):
    from filelock import FileLock

    (tmp_path / ".pack").mkdir()
    with FileLock(tmp_path / ".pack" / "lock"), pytest.raises(DataError, match="another process is packing into it"):
        packed(tree, tmp_path)


@pytest.mark.parametrize(("options", "message"), [
    ({"shard_bytes": 10_000}, "give one of --shard-samples and --shard-bytes"), ({"shard_samples": 0}, "--shard-samples: wants"),
    ({"quality": 101}, "--quality: wants a whole number from 1 to 100, got 101"), ({"prefix": "a/b"}, "--prefix"),
    ({"resize": 0}, "--resize"),
    ({"shuffle": -1}, "seed: wants"),
])
def test_options_that_cannot_be(tree, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        packed(tree, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", [0, 1, 2, 5, 6, 11, 12])     # the plan; five shards and the record of each; the sums; the classes
def test_a_disk_that_is_full_is_one_error_and_goes_on_later(tree, tmp_path, monkeypatch, written):
    real, calls = os.fsync, itertools.count()

    def full(descriptor):
        if next(calls) >= written:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}: .*No space left on device.*run it again to go on"):
            packed(tree, tmp_path)
    # behind the plan a shard takes two writes; the last two of all may be halves of two shards that are written at a time
    assert written // 2 - 1 <= packed(tree, tmp_path).kept <= max(written - 1, 0) // 2
    packed(tree, tmp_path / "unbroken")
    assert {name: data for name, data in shards(tmp_path).items() if name != "pack.json"} == {
        name: data for name, data in shards(tmp_path / "unbroken").items() if name != "pack.json"}


def test_shards_by_bytes(tree, tmp_path):
    total = sum(len(corrupt.jpeg(number)) for number in range(30))
    done = packed(tree, tmp_path, shard_samples=None, shard_bytes=total // 4)
    assert 4 <= done.shards <= 5
    sizes = [file.stat().st_size for file in sorted(tmp_path.glob("*.tar"))]
    assert max(sizes[:-1]) < 1.7 * min(sizes[:-1])
    assert done.samples == 30


# Sources

def test_a_csv_manifest_with_names_or_numbers(tree, tmp_path):
    rows = [(os.path.relpath(path, tmp_path), path.relative_to(tree).parts[0]) for path in sorted(tree.rglob("*.jpg"))]

    def write(name, header, rows):
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return tmp_path / name

    done = packed(write("names.csv", ("path", "label"), rows), tmp_path / "names")
    assert done.samples == len(rows) == 15
    assert (tmp_path / "names" / "classes.txt").read_text().splitlines() == list(CLASSES)
    source = open_source(str(write("numbers.csv", ("file", "class"), [(path, 2 - CLASSES.index(name)) for path, name in rows])),
                         path_column="file", label_column="class")
    assert source.classes == ()
    assert [int(entry.read()["cls"]) for entry in source.entries] == [2 - CLASSES.index(name) for _, name in rows]
    unlabelled = open_source(str(tmp_path / "names.csv"), label_column="")
    assert set(unlabelled.entries[0].read()) == {"jpg"}
    ordered = open_source(str(tmp_path / "names.csv"), classes=("great apes", "dogs", "cats"))
    assert [int(entry.read()["cls"]) for entry in ordered.entries] == [2 - CLASSES.index(name) for _, name in rows]
    for options, message in (({"path_column": "file"}, r"has no column 'file' \(it has path, label\); name it with --path-column"),
                             ({"label_column": "x"}, "name it with --label-column, or '' for no labels"),
                             ({"classes": ("cats",)}, "2 of its 3 classes are not in the class map, the first is 'dogs'")):
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / "names.csv"), **options)
    with pytest.raises(DataError, match="line 3 has no path or no label"):
        open_source(str(write("hole.csv", ("path", "label"), [("a.jpg", 1), ("b.jpg", "")])))
    with pytest.raises(DataError, match="no rows"):
        open_source(str(write("empty.csv", ("path", "label"), [])))
    with pytest.raises(DataError, match="no such file"):
        open_source(str(tmp_path / "gone.csv"))


def test_a_parquet_manifest(tree, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = sorted(str(path) for path in tree.rglob("*.jpg"))
    parquet.write_table(pyarrow.table({"path": paths, "label": list(range(len(paths))), "more": paths}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [int(entry.read()["cls"]) for entry in source.entries] == list(range(15))
    with pytest.raises(DataError, match=r"has no column 'x' \(it has path, label, more\)"):
        open_source(str(tmp_path / "a.parquet"), path_column="x")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(str(tmp_path / "b.parquet"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow; install it with `pip install 'vitscale\[parquet\]'`"):
        open_source(str(tmp_path / "a.parquet"))


def test_shards_are_packed_anew_with_all_their_members(tmp_path):
    urls = corrupt.build(tmp_path / "old", {"json": b"{}"}, twice="000007")
    before = samples(tmp_path / "old")
    (tmp_path / "old" / "classes.txt").write_text("a\nb\n")
    source = open_source(urls)
    assert source.mixed
    pack(source, tmp_path / "new", PackOptions(shard_samples=5), workers=2)
    after = samples(tmp_path / "new")
    assert (tmp_path / "new" / "classes.txt").read_text() == "a\nb\n"
    assert [members for _, members in after] == [members for _, members in before]
    assert [key for key, _ in after] == [*(key for key, _ in before[:12]), "000007-2", *(key for key, _ in before[13:])]


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: None, "no class folders in it; wanted is a folder per class"),
    (lambda root: (root / "x.tar").write_bytes(b""), "no class folders in it; give its shards"),
    (lambda root: (root / "cats").mkdir(), "no images in its 1 class folders"),
])
def test_folders_that_hold_nothing(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path))


# Images

def test_resizing_shrinks_the_shorter_side_and_only_shrinks(tmp_path):
    (tmp_path / "in" / "x").mkdir(parents=True)
    wide = load_sample_images().images[0][:400, :600]
    small = corrupt.jpeg(2)
    Image.fromarray(wide).save(tmp_path / "in" / "x" / "wide.png")
    Image.fromarray(wide).convert("L").save(tmp_path / "in" / "x" / "grey.jpg")
    (tmp_path / "in" / "x" / "small.jpg").write_bytes(small)
    packed(tmp_path / "in", tmp_path / "out", resize=100)
    found = dict(samples(tmp_path / "out"))
    assert found["x/small"]["jpg"] == small
    assert "png" not in found["x/wide"]
    pixels = decode_whole(found["x/wide"]["jpg"])
    assert pixels.shape == (100, 150, 3)
    small = np.asarray(Image.fromarray(wide).resize((150, 100), Image.Resampling.BICUBIC))
    expected = decode_whole(simplejpeg.encode_jpeg(small, quality=90, colorsubsampling="420"))
    assert np.abs(pixels.astype(int) - expected).mean() < 1
    assert simplejpeg.decode_jpeg_header(found["x/grey"]["jpg"])[:3] == (100, 150, "Gray")
    packed(tmp_path / "in", tmp_path / "coarse", resize=100, quality=20)
    assert len(dict(samples(tmp_path / "coarse"))["x/wide"]["jpg"]) < len(found["x/wide"]["jpg"])


def test_bad_images_are_left_out_and_listed(tree, tmp_path):
    copy = tmp_path / "source"
    subprocess.run(["cp", "-r", tree, copy], check=True)
    (copy / "dogs" / "empty.jpg").write_bytes(b"")
    (copy / "dogs" / "zeroed.jpg").write_bytes(corrupt.zeroed_jpeg(512))
    (copy / "cats" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (copy / "cats" / "bomb.png").write_bytes(corrupt.bomb())
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["data", "pack", str(copy), str(out), "--shard-samples", "10"])
    assert result.exit_code == 2
    assert "30 samples in 4 shards" in result.output
    assert "mixed by seed 0" in result.output
    assert "4 bad images left out" in result.output
    listed = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert sorted((one["name"], one["reason"]) for one in listed) == [
        ("cats/bomb.png", "bomb"), ("cats/gone.jpg", "read"), ("dogs/empty.jpg", "format"), ("dogs/zeroed.jpg", "decode")]
    again = CliRunner().invoke(app, ["data", "pack", str(copy), str(out), "--shard-samples", "10", "--skip-bad"])
    assert again.exit_code == 0
    assert "4 shards already there" in again.output
    assert len(samples(out)) == 30


def test_the_output_may_not_lie_in_the_source(tree):
    result = CliRunner().invoke(app, ["data", "pack", str(tree), str(tree / "shards")])
    assert isinstance(result.exception, DataError)
    assert "lies inside the source" in str(result.exception)
