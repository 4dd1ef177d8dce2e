"""The numbers of a set, and its contact sheet."""

import json

import corrupt
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data import open_index, pack_digits
from vitscale.data.sheet import contact_sheet
from vitscale.data.stats import stats
from vitscale.errors import DataError
from vitscale.recipe.load import check_recipe


def recipe(urls, image=32, **augment):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": image, "patch": 4, "classes": 7}, "data": {"train": urls, "augment": augment},
        "optim": {"lr": 1e-3}, "global_batch": 8, "duration": "1 epochs", "seed": 1,
    }, "test")


def test_counts_sizes_formats_and_copies(tmp_path):
    urls = corrupt.build(tmp_path, {"jpg": corrupt.jpeg(3), "cls": b"no"})          # number 3 again, unlabelled
    (tmp_path / "classes.txt").write_text("".join(f"class {number}\n" for number in range(8)))
    found = stats(open_index(urls), workers=2)
    assert (found.samples, found.shards, found.unlabelled) == (18, 3, 1)
    assert found.classes == {0: 3, 1: 2, 2: 3, 3: 3, 4: 2, 5: 2, 6: 2}
    assert found.formats == {"JPEG": 18}
    assert found.copies == [["000003", corrupt.KEY]]
    assert (found.extra_copies, found.disputed) == (1, 1)
    assert set(found.width.tolist()) == {96}
    assert found.bytes.tolist() == [len(corrupt.jpeg(3 if number == corrupt.VICTIM else number)) for number in range(18)]
    assert found.class_name(2) == "2 class 2"
    assert found.class_name(99) == "99"


def test_labels_that_are_names_in_json(tmp_path):
    (tmp_path / "map.txt").write_text("ant\nbee\n")
    urls = corrupt.build(tmp_path / "a", {"json": b'{"insect": ["bee"]}'})
    found = stats(open_index(urls), label="json:insect.0", class_map=str(tmp_path / "map.txt"))
    assert (found.classes, found.unlabelled, found.class_name(1)) == ({1: 1}, 17, "1 bee")


def test_images_that_cannot_be_read_are_counted(tmp_path):
    found = stats(open_index(corrupt.build(tmp_path, {"jpg": b""})))
    assert found.unreadable == {"format": 1}
    assert len(found.width) == 17
    assert found.copies == []


def test_the_command_shows_and_writes_them(tmp_path):
    urls = corrupt.build(tmp_path)
    files = {name: str(tmp_path / name) for name in ("s.json", "s.png")}
    result = CliRunner().invoke(app, ["data", "stats", urls, "--json", files["s.json"], "--sheet", files["s.png"]])
    assert result.exit_code == 0, result.output
    for text in ("18 samples in 3 shards", "JPEG 18", "7 classes; the largest has 1.5 times", "no image occurs twice", "wrote"):
        assert text in result.output
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["width"] == {"min": 96, "median": 96, "max": 96}
    assert written["classes"]["0"] == 3
    assert cv2.imread(files["s.png"]).shape[1] > 2000


def test_the_sheet_shows_crops_flips_and_labels(tmp_path):
    urls = corrupt.build(tmp_path)
    index = open_index(urls)
    plain = recipe(urls, crop="center", flip=0.0)
    still = contact_sheet(plain, index, "title", columns=6, rows=3)
    assert (still == contact_sheet(plain, index, "title", columns=6, rows=3)).all()
    flipped = contact_sheet(recipe(urls, crop="center", flip=1.0), index, "title", columns=6, rows=3)
    cell, gap, top = 160, 12, 24 + 64
    for column in range(6):
        left = 24 + column * (cell + gap)
        one, other = (sheet[top:top + cell, left:left + cell] for sheet in (still, flipped))
        assert (one[:, ::-1] == other).all()
        assert one.std() > 10
        below = still[top + cell + 2:top + cell + 26, left:left + cell]
        assert below.min() < 120                        # its label
    erased = contact_sheet(recipe(urls, crop="center", flip=0.0, erasing={"prob": 1.0, "mode": "const"}), index, "title", columns=6, rows=3)
    assert (erased != still).any()
    mixing = {"crop": "center", "flip": 0.0, "mixup": 0.8, "cutmix": 1.0}
    assert (contact_sheet(recipe(urls, **mixing), index, "title", columns=6, rows=3) == still).all()        # left out


def test_the_sheet_of_a_small_grey_set_with_a_bad_image(tmp_path):
    index = open_index(f"{pack_digits(tmp_path / 'digits')}/train-*.tar")
    grey = check_recipe({
        "name": "t", "model": {"width": 8, "depth": 1, "heads": 1, "mlp": 8, "image": 8, "patch": 4, "classes": 10, "channels": 1},
        "data": {"train": "x"}, "optim": {"lr": 1e-3}, "global_batch": 8, "duration": "1 epochs",
    }, "test")
    sheet = contact_sheet(grey, index, "digits")
    assert sheet.shape[2] == 3
    assert np.ptp(sheet) > 200
    urls = corrupt.build(tmp_path / "bad", {"jpg": b""})
    assert contact_sheet(recipe(urls), open_index(urls), "t" * 500, columns=10, rows=2).shape[0] > 200


@pytest.mark.parametrize(("file", "message"), [("sheet.txt", "should be named"), ("gone/sheet.png", "cannot be written")])
def test_a_sheet_that_cannot_be_written(tmp_path, file, message):
    urls = corrupt.build(tmp_path / "a")
    result = CliRunner().invoke(app, ["data", "stats", urls, "--sheet", str(tmp_path / file)])
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)
