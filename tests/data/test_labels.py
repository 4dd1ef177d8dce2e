"""Labels from JSON fields and by name; samples without any; and what is said when they are not what the recipe says."""

import io
import json
import tarfile

import cv2
import numpy as np
import pytest

from vitscale.data import check_labels, open_index, open_stream
from vitscale.data.bad import BadSample
from vitscale.data.labels import LabelRule, parse_label, read_class_map
from vitscale.errors import DataError
from vitscale.recipe.load import check_recipe

IMAGE = cv2.imencode(".png", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))[1].tobytes()


def write(folder, members):
    """One shard; members: for each sample {extension: bytes, or what is to be written as JSON}."""
    with tarfile.open(folder / "s.tar", "w") as tar:
        for number, sample in enumerate(members):
            for ext, data in {**sample, "png": IMAGE}.items():
                raw = data if isinstance(data, bytes) else json.dumps(data).encode()
                info = tarfile.TarInfo(f"{number:03d}.{ext}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    return str(folder / "s.tar")


def names_in(folder, text="cat\ndog\nred panda\n"):
    path = folder / "names.txt"
    path.write_text(text)
    return str(path)


def labels_of(urls, label, class_map=None, classes=3, count=3, bad=0.0):
    recipe = check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": classes},
        "data": {"train": urls, "label": label, "class_map": class_map, "lanes": 1, "workers": 1, "max_bad_fraction": bad},
        "optim": {"lr": 1e-3}, "global_batch": count, "duration": "1 epochs",
    }, "test")
    with open_stream(recipe, open_index(urls), rank=0, world=1, micro_batch=count) as stream:
        micro = next(stream).micro[0]
    return [label if weight else None for _, label, weight in sorted(
        zip(micro.ids.tolist(), micro.labels.tolist(), micro.weight.tolist(), strict=True))]


def test_numbers_in_a_json_field(tmp_path):
    urls = write(tmp_path, [{"json": {"a": {"ids": [7, 2]}}}, {"json": {"a": {"ids": [7, 0]}}}, {"json": {"a": {"ids": [7, "1"]}}}])
    assert labels_of(urls, "json:a.ids.1") == [2, 0, 1]
    assert check_labels(open_index(urls), "json:a.ids.1", 3) == 3


def test_names_in_a_json_field_and_in_a_member(tmp_path):
    urls = write(tmp_path, [
        {"json": {"label": "dog"}, "cls": b"red panda\n"}, {"json": {"label": "cat"}, "cls": b"cat"},
        {"json": {"label": "red panda"}, "cls": b" dog "}])
    names = names_in(tmp_path)
    assert labels_of(urls, "json:label", names) == [1, 0, 2]
    assert labels_of(urls, "cls", names) == [2, 0, 1]
    assert check_labels(open_index(urls), "cls", 3, class_map=names) == 3


@pytest.mark.parametrize(("sample", "message"), [
    ({"cls": b"1"}, r"sample '000' has no 'json' member \(it has cls, png\)"),
    ({"json": {"b": 1}}, r"has no 'a\.b' in its json \(it has keys b, not 'a'\); name the field with data\.label"),
    ({"json": {"a": 5}}, r"has no 'a\.b' in its json \(it has 5 there, not 'b'\)"),
    ({"json": {"a": {"b": 3}}}, r"has the label 3, but model\.classes is 3"),
    ({"json": {"a": {"b": True}}}, "its label is no whole number: True"),
    ({"json": {"a": {"b": 1.0}}}, r"its label is no whole number: 1\.0"),
    ({"json": {"a": {"b": "dog"}}}, "its label is no whole number: b'dog'"),
    ({"json": b"{"}, r"its json member is no JSON: b'\{'; wanted is the class as a whole number"),
])
def test_what_is_wrong_with_a_json_label_is_told(tmp_path, sample, message):
    with pytest.raises(DataError, match=message):
        check_labels(open_index(write(tmp_path, [sample])), "json:a.b", 3)


@pytest.mark.parametrize(("label", "message"), [
    (b"cow", r"has the label 'cow', which is no class of data\.class_map \(3 names\)"),
    (b"red panda", r"has the label 2, but model\.classes is 2"),
])
def test_what_is_wrong_with_a_name_is_told(tmp_path, label, message):
    urls = write(tmp_path, [{"cls": label}])
    with pytest.raises(DataError, match=message):
        check_labels(open_index(urls), "cls", 2, class_map=names_in(tmp_path))
    with pytest.raises(DataError, match=message):
        labels_of(urls, "cls", names_in(tmp_path), classes=2, count=1)


def test_a_name_must_be_text(tmp_path):
    urls = write(tmp_path, [{"json": {"label": 1}}])
    with pytest.raises(DataError, match="its label is no name: 1; wanted is the name of a class as text"):
        check_labels(open_index(urls), "json:label", 3, class_map=names_in(tmp_path))


def test_one_broken_label_is_a_bad_sample(tmp_path):
    urls = write(tmp_path, [{"json": {"a": 1}}, {"json": b"{'a': 1}"}, {"json": {"a": 2}}])
    assert labels_of(urls, "json:a", bad=1.0) == [1, None, 2]


@pytest.mark.parametrize(("text", "message"), [
    ("cat\ndog\ncat\n", "line 3: 'cat' is there already, as class 0"), ("cat\n\ndog\n", "line 2: it is empty"), ("\n\n", "holds no names"),
])
def test_a_class_map_names_each_class_once(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        LabelRule.of("cls", names_in(tmp_path, text))


def test_a_class_map_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"data\.class_map: .*none\.txt cannot be read"):
        read_class_map(tmp_path / "none.txt")


def test_samples_without_labels(tmp_path):
    """For objectives that want none; the stream then gives zeros and opens no label."""
    urls = write(tmp_path, [{}, {}])
    recipe = check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": 3}, "data": {"train": urls, "lanes": 1, "workers": 1},
        "optim": {"lr": 1e-3}, "global_batch": 2, "duration": "1 epochs",
    }, "test")
    unlabelled = recipe.model_copy(update={"data": recipe.data.model_copy(update={"label": None})})
    with open_stream(unlabelled, open_index(urls), rank=0, world=1, micro_batch=2) as stream:
        micro = next(stream).micro[0]
    assert micro.labels.tolist() == [0, 0]
    assert micro.weight.tolist() == [1, 1]


@pytest.mark.parametrize(("raw", "label"), [
    (b"3", 3), (b" 3\r\n", 3), (b"\xef\xbb\xbf12\n", 12), (b"+4", 4), (b"-1", -1), (b"007", 7), (b"1_0", None), (b"1e3", None),
    (b"2.0", None), (b"", None), (b"\xef\xbb\xbf", None), ("٣".encode(), None), (b"0x10", None), (b"1 2", None), (b"9" * 5000, None),
])
def test_what_is_a_class_number(raw, label):
    """As editors and programs write it; what Python alone takes for a number is none."""
    if label is None:
        with pytest.raises(BadSample, match="no whole number"):
            parse_label(raw)
    else:
        assert parse_label(raw) == label


def test_a_class_map_with_a_byte_order_mark(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert read_class_map(tmp_path / "names.txt") == {"cat": 0, "dog": 1}
