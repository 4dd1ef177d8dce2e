"""What people's folders and manifests hold: classes keep their numbers, every file is packed or counted, nothing hangs."""

import io
import os
import socket
import tarfile

import corrupt
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data.image import decode_whole
from vitscale.data.manifest import number_labels
from vitscale.errors import DataError


def run(*arguments, code=0):
    """What `vitscale data pack` prints; a DataError is what the program ends with 2 for."""
    result = CliRunner().invoke(app, ["data", "pack", *map(str, arguments)])
    if isinstance(result.exception, DataError):
        assert code == result.exception.exit_code, result.exception
        return str(result.exception)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def packed(out):
    """{key: {extension: bytes}}"""
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(out.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.setdefault(f"{shard.parent.name}:{key}", {})[extension] = tar.extractfile(member).read()
    return found


# Labels of a manifest: numbers stay what they are, names are sorted, and what is neither is refused.

NUMBERS = [["0", "1", "2"], ["2", "10", "0"], ["2.0", "10.0", "0.0"], ["2", "10.", "0"], ["007", "7", "+3"], ["5"],
           ["2.00", "10", "3"]]
NAMES = [["cat", "dog", "ant"], ["2 cats", "10 dogs", "a"], ["v1.0", "v10", "v2"], ["1_0", "1_1", "2_0"], ["-", "--", "x"],
         ["2024-01-02", "a", "b"]]
BROKEN = [["0", "-1", "2"], ["2.0", "10.0", "2.5"], ["1e3", "2", "3"], ["nan", "1.0", "2.0"], ["NaN", "1", "2"], ["None", "1", "2"],
          ["<NA>", "1", "2"],
          ["2", "cat", "10"], ["cat", "3", "dog"],
          ["inf", "1", "2"], ["0", "1", "b.jpg"], ["-1", "-2", "-3"], ["NA", "cat", "dog"],
          ["1,5", "1", "2"], ["2,0", "10,0", "1,0"], ["'2'", "'10'", "'1'"], ['"2"', '"10"', '"1"'], ["2%", "10%", "1 %"],
          ["0x2", "0x10", "0x1"], ["[2]", "[10]", "[1]"], ["1,000", "2,000", "10,000"], ["99999999999999999999", "1", "2"],
          ["2", "(10)", "1"]]


@pytest.mark.parametrize("labels", NUMBERS, ids=",".join)
def test_numbers_stay_numbers(labels):
    numbers, names = number_labels(list(enumerate(labels, 2)), (), "list.csv")
    assert (numbers, names) == ([int(float(label)) for label in labels], ())


@pytest.mark.parametrize("labels", NAMES, ids=",".join)
def test_names_are_numbered_in_sorted_order(labels):
    numbers, names = number_labels(list(enumerate(labels, 2)), (), "list.csv")
    assert [names[number] for number in numbers] == labels
    assert list(names) == sorted(names)


@pytest.mark.parametrize("labels", BROKEN, ids=",".join)
def test_a_number_among_names_or_one_that_is_no_class_is_refused_with_its_line(labels):
    with pytest.raises(DataError, match=r"list\.csv: line [2-4] has the label") as error:
        number_labels(list(enumerate(labels, 2)), (), "list.csv")
    assert any(repr(label) in str(error.value) for label in labels)


def test_a_class_map_names_numbers_or_is_looked_up():
    assert number_labels([(2, "b"), (3, "a")], ("b", "a"), "x") == ([0, 1], ("b", "a"))
    assert number_labels([(2, "1"), (3, "0")], ("b", "a"), "x") == ([1, 0], ("b", "a"))
    assert number_labels([(2, "10"), (3, "2")], ("10", "2"), "x") == ([0, 1], ("10", "2"))       # names that are digits come first
    for labels in (["2", "0"], ["c", "d"], ["b", "c"], ["-1", "0"]):
        with pytest.raises(DataError, match="class map"):
            number_labels(list(enumerate(labels, 2)), ("b", "a"), "x")


def manifest(folder, *rows, header="path,label"):
    for number in range(len(rows)):
        (folder / f"{number}.jpg").write_bytes(corrupt.jpeg(number))
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "list.csv"


def test_what_pandas_writes_after_a_missing_value_keeps_its_numbers_and_they_are_printed(tmp_path):
    output = run(manifest(tmp_path, "0.jpg,2.0", "1.jpg,10.0", "2.jpg,2.0"), tmp_path / "out")
    assert {key[-1]: int(members["cls"]) for key, members in packed(tmp_path / "out").items()} == {"0": 2, "1": 10, "2": 2}
    assert "model.classes must be 11 or more" in output
    assert "2: 2 10: 1" in output


@pytest.mark.parametrize(("header", "rows", "message"), [
    ("path,label,path", ["0.jpg,1,0.jpg"], "2 columns named 'path'"),
    ("path,label,label", ["0.jpg,1,2"], "2 columns named 'label'"),
    ("path,label", ["0.jpg,cat", '1.jpg," "'], "line 3 has no path or no label"),
])
def test_columns_named_alike_and_blank_labels_are_refused(tmp_path, header, rows, message):
    assert message in run(manifest(tmp_path, *rows, header=header), tmp_path / "out", code=2)
    assert not packed(tmp_path / "out")


@pytest.mark.parametrize(("labels", "found"), [
    ([b"2", b"10"], [2, 10]), (["2", "10"], [2, 10]), ([2.0, 10.0], [2, 10]), ([b"cat", b"ant"], [1, 0]), ([[2], [10]], "several values"),
    ([{"a": 2}, {"a": 10}], "several values"), ([b"\xff", b"cat"], "no UTF-8 text"),
])
def test_labels_of_parquet_are_what_they_say(tmp_path, labels, found):
    from pyarrow import parquet, table

    for number in (0, 1):
        (tmp_path / f"{number}.jpg").write_bytes(corrupt.jpeg(number))
    parquet.write_table(table({"path": [b"0.jpg", b"1.jpg"], "label": labels}), tmp_path / "list.parquet")
    output = run(tmp_path / "list.parquet", tmp_path / "out", code=2 if isinstance(found, str) else 0)
    if isinstance(found, str):
        assert found in output
    else:
        assert [int(members["cls"]) for _, members in sorted(packed(tmp_path / "out").items())] == found


def test_an_unquoted_comma_is_named_with_its_line(tmp_path):
    output = run(manifest(tmp_path, "0.jpg,2", "1.jpg,3", "2, and more.jpg,4"), tmp_path / "out", code=2)
    assert "line 4 has more fields than the header (2)" in output
    assert not packed(tmp_path / "out")


# Folders.

def picture(path, size=(24, 20), mode="RGB", form=None, **options):
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, form, **options)
    return path


def test_splits_are_packed_each_with_the_same_numbers(tmp_path):
    for split, names in (("Train", "abc"), ("validation", "ac")):
        for name in names:
            picture(tmp_path / "in" / split / name / "x.png")
    output = run(tmp_path / "in", tmp_path / "out")
    assert {key: int(members["cls"]) for key, members in packed(tmp_path / "out").items()} == {
        "train:a/x": 0, "train:b/x": 1, "train:c/x": 2, "val:a/x": 0, "val:c/x": 2}
    assert (tmp_path / "out/val/classes.txt").read_text() == (tmp_path / "out/train/classes.txt").read_text() == "a\nb\nc\n"
    assert "train: 3 samples" in output
    assert "val: 2 samples" in output
    assert "0 a: 1 1 b: 0 2 c: 1" in output


def test_splits_without_classes_in_them_are_refused_unless_they_are_named_as_classes(tmp_path):
    for name in ("test", "train"):
        picture(tmp_path / "in" / name / "x.png")
    assert "look like splits" in run(tmp_path / "in", tmp_path / "out", code=2)
    (tmp_path / "names").write_text("train\ntest\n")
    run(tmp_path / "in", tmp_path / "out", "--classes", tmp_path / "names")
    assert {key: int(members["cls"]) for key, members in packed(tmp_path / "out").items()} == {"out:test/x": 1, "out:train/x": 0}
    picture(tmp_path / "two" / "val" / "a" / "x.png")
    picture(tmp_path / "two" / "valid" / "a" / "x.png")
    assert "both look like the split 'val'" in run(tmp_path / "two", tmp_path / "out2", code=2)
    picture(tmp_path / "three" / "val" / "a" / "x.png")
    picture(tmp_path / "three" / "train" / "a" / "x.png")
    picture(tmp_path / "three" / "more" / "a" / "x.png")
    assert "train/ and val/ look like splits of a set, and more/ does not" in run(tmp_path / "three", tmp_path / "out3", code=2)


FORMS = [
    ("x.tif", "TIFF", "RGB"), ("x.tiff", "TIFF", "L"), ("x.tif", "TIFF", "CMYK"), ("x.tif", "TIFF", "P"), ("x.tif", "TIFF", "1"),
    ("x.tif", "TIFF", "RGBA"), ("x.jpg", "TIFF", "RGB"), ("x.gif", "GIF", "P"), ("x.gif", "GIF", "L"), ("x.png", "GIF", "P"),
    ("x.jfif", "JPEG", "RGB"), ("x.jpe", "JPEG", "L"), ("x", "JPEG", "RGB"), ("x.jpg", "PNG", "RGBA"), ("x.dat", "WEBP", "RGB"),
    ("x.bmp", "BMP", "RGB"), ("x.dib", "BMP", "RGB"),
]


@pytest.mark.parametrize(("name", "form", "mode"), FORMS, ids=lambda value: str(value))
def test_what_a_library_here_can_read_is_packed_under_whatever_ending(tmp_path, name, form, mode):
    options = {"lossless": True} if form == "WEBP" else {}
    path = picture(tmp_path / "in" / "a" / name, mode=mode, form=form, **options)
    run(tmp_path / "in", tmp_path / "out")
    ((_, members),) = packed(tmp_path / "out").items()
    (image,) = [data for extension, data in members.items() if extension != "cls"]
    assert next(extension for extension in members if extension != "cls") in ("jpg", "png", "webp", "bmp")
    with Image.open(path) as original:
        original = Image.fromarray(np.asarray(original.convert("RGB" if mode != "L" else "L")))
    error = np.abs(decode_whole(image).astype(int) - np.asarray(original.convert("RGB")).astype(int))
    assert error.max() <= (3 if form == "JPEG" else 0)      # another JPEG decoder may round otherwise


def test_the_first_picture_of_an_animation_and_sixteen_bits(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "in/a").mkdir(parents=True)
    frames[0].save(tmp_path / "in/a/anim.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in/a/pages.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((4, 4), 200 * 257, np.uint16)).save(tmp_path / "in/a/deep.tif")
    run(tmp_path / "in", tmp_path / "out")
    pixels = {key.rpartition("/")[2]: decode_whole(members["png"])[0, 0].tolist() for key, members in packed(tmp_path / "out").items()}
    assert pixels == {"anim": [255, 0, 0], "pages": [255, 0, 0], "deep": [200, 200, 200]}


def test_what_cannot_be_read_is_named_and_the_exit_code_is_2(tmp_path):
    picture(tmp_path / "in/a/good.png")
    heads = {"x.heic": b"\0\0\0\x18ftypheic" + bytes(40), "x.jxl": b"\xff\x0a" + bytes(40),
             "x.psd": b"8BPS" + bytes(40), "x.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)}
    for name, data in heads.items():
        (tmp_path / "in/a" / name).write_bytes(data)
    broken = io.BytesIO()
    Image.new("RGB", (64, 64)).save(broken, "TIFF")
    (tmp_path / "in/a/cut.tif").write_bytes(broken.getvalue()[:200])
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "in/a/float.tif")
    output = run(tmp_path / "in", tmp_path / "out", code=2)
    for text in ("x.heic: format: is HEIC", "x.jxl: format: is JPEG XL", "x.psd: format: is Photoshop", "x.jp2: format: is JPEG 2000",
                 "cut.tif: decode: a TIFF that cannot be decoded", "float.tif: format: a TIFF with pixels of kind F",
                 "1 sample in 1 shard"):
        assert text in output


def test_an_empty_class_ends_with_2_unless_bad_ones_may_be_skipped(tmp_path):
    picture(tmp_path / "in/a/x.png")
    (tmp_path / "in/b").mkdir()
    assert "1 class folder gave no image: b" in run(tmp_path / "in", tmp_path / "out", code=2)
    assert "1 b: 0" in run(tmp_path / "in", tmp_path / "out2", "--skip-bad")


def test_every_file_is_packed_or_counted_and_nothing_hangs(tmp_path):
    root = tmp_path / "in"
    for number in range(12):
        picture(root / "a" / f"{number}.png")
    other = picture(tmp_path / "elsewhere" / "deep" / "linked.png").parent.parent
    (root / "a" / "by link").symlink_to(other)
    (root / "b").symlink_to(other)                              # a class folder that is a link
    (root / "a" / "back").symlink_to(root / "a")
    (root / "a" / "top").symlink_to(root)
    picture(root / "a" / ".ipynb_checkpoints" / "copy.png")
    picture(root / "__MACOSX" / "a" / "copy.png")
    (root / "a" / "._3.png").write_bytes(b"\0\x05\x16\7" + bytes(100))
    (root / "a" / "notes.txt").write_text("no picture")
    picture(root / "beside.png")
    os.mkfifo(root / "a" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root / "a")                                    # a socket's path may be 107 bytes long
        listener.bind("socket.png")
        os.chdir(here)
        output = run(root, tmp_path / "out", "--max-left-out", "0.5")
    assert sorted(packed(tmp_path / "out")) == sorted(
        [f"out:a/{number}" for number in range(12)] + ["out:a/by_link/deep/linked", "out:b/deep/linked"])
    left_out = output[output.index("left out:"):]
    for text in ("2 no regular file", "1 .txt: no picture", "1 beside the class folders", "2 a link to a folder above itself",
                 "1 in .ipynb_checkpoints/", "1 in __MACOSX/", "1 ._*: what macOS writes beside a file"):
        assert text in left_out
    assert "6 of 20 files are no images" in run(root, tmp_path / "out2", code=2)


def test_a_pipe_named_by_a_manifest_is_a_bad_sample(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe.jpg: read: is no regular file" in run(manifest(tmp_path, "0.jpg,0", "pipe.jpg,1"), tmp_path / "out", code=2)
