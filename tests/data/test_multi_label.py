"""Several labels for a sample: how they are written, what the stream hands out, and what verify and stats make of them."""

import numpy as np
import pytest
import torch
from test_labels import names_in, write
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.data import check_labels, mix, open_index, open_stream
from vitscale.data.bad import BadSample
from vitscale.data.labels import LabelRule, classes_in
from vitscale.data.mix import Mix
from vitscale.data.stats import stats
from vitscale.data.verify import verify
from vitscale.errors import DataError, RecipeError
from vitscale.recipe.load import check_recipe

CLASSES = 4


def recipe(urls, loss="binary_cross_entropy", **data):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": CLASSES}, "objective": {"loss": loss},
        "data": {"train": urls, "lanes": 1, "workers": 1, "multi_label": True, **data}, "optim": {"lr": 1e-3}, "global_batch": 3,
        "duration": "1 epochs",
    }, "test")


def first(urls, split="train", size=3, **data):
    """The first micro-batch, its rows by sample id: [(labels of the targets, label, weight)]."""
    with open_stream(recipe(urls, **data), open_index(urls), split, rank=0, world=1, micro_batch=size) as stream:
        micro = next(iter(stream)) if split == "val" else next(stream).micro[0]
    assert micro.targets.dtype == torch.float32
    assert micro.targets.shape == (size, CLASSES)
    assert set(micro.targets.unique().tolist()) <= {0.0, 1.0}
    rows = zip(micro.ids.tolist(), (row.nonzero().flatten().tolist() for row in micro.targets), micro.labels.tolist(),
               micro.weight.tolist(), strict=True)
    return [row[1:] for row in sorted(rows, key=lambda row: row[0])]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_list_of_numbers(tmp_path, split):
    urls = write(tmp_path, [{"json": {"a": [3, 1]}}, {"json": {"a": []}}, {"json": {"a": [2, "0", 2]}}])
    assert first(urls, split, label="json:a") == [([1, 3], 3, 1), ([], 0, 1), ([0, 2], 2, 1)]
    assert check_labels(open_index(urls), "json:a", CLASSES, multi_label=True) == 3


def test_numbers_in_a_member(tmp_path):
    urls = write(tmp_path, [{"cls": b"3 1\n"}, {"cls": b"\n"}, {"cls": b" 2,0,  1 "}])
    assert first(urls) == [([1, 3], 3, 1), ([], 0, 1), ([0, 1, 2], 2, 1)]


def test_names_in_a_list_and_on_lines(tmp_path):
    """A name may hold spaces and commas, so it stands on a line of its own."""
    urls = write(tmp_path, [
        {"cls": b"red panda\ncat, wild\n", "json": ["cat, wild"]}, {"cls": b"", "json": []}, {"cls": b"dog", "json": "dog"}])
    names = names_in(tmp_path, "dog\ncat, wild\nred panda\n")
    assert first(urls, class_map=names) == [([1, 2], 2, 1), ([], 0, 1), ([0], 0, 1)]
    urls = write(tmp_path, [{"json": {"a": ["red panda", "dog"]}}, {"json": {"a": "dog"}}, {"json": {"a": []}}])
    assert first(urls, class_map=names, label="json:a") == [([0, 2], 2, 1), ([0], 0, 1), ([], 0, 1)]


def test_one_label_makes_one_hot_targets_and_without_the_key_there_are_none(tmp_path):
    urls = write(tmp_path, [{"cls": b"%d" % number} for number in range(3)])
    assert first(urls) == [([number], number, 1) for number in range(3)]
    with open_stream(recipe(urls, multi_label=False), open_index(urls), rank=0, world=1, micro_batch=3) as stream:
        assert next(stream).micro[0].targets is None


def test_dummies_and_bad_samples_have_no_targets(tmp_path):
    urls = write(tmp_path, [{"json": {"a": [3, 1]}}, {"json": {"a": [True]}}, {"json": {"a": [2]}}])
    rows = first(urls, size=4, label="json:a", max_bad_fraction=1.0)
    assert rows == [([], 0, 0), ([1, 3], 3, 1), ([], 0, 0), ([2], 2, 1)]


def test_a_bad_sample_takes_the_labels_of_the_one_in_its_place(tmp_path):
    urls = write(tmp_path, [{"cls": b"3 1"}, {"cls": b"x"}, {"cls": b"3 1"}])
    assert first(urls, group=3, lanes=3, max_bad_fraction=1.0) == [([1, 3], 3, 1)] * 3


@pytest.mark.parametrize(("sample", "message"), [
    ({"json": {"a": [1, 4]}}, r"has the label 4, but model\.classes is 4"), ({"json": {"a": [1, -1]}}, r"has the label -1"),
    ({"json": {"a": [1, [2]]}}, r"its label is no whole number: \[2\]; wanted is a list of whole numbers"),
    ({"json": {"a": None}}, "its label is no whole number: None"), ({"json": {"a": [1.0]}}, r"its label is no whole number: 1\.0"),
    ({"json": {"b": [1]}}, r"has no 'a' in its json"), ({"cls": b"1"}, "has no 'json' member"),
])
def test_what_is_wrong_is_told(tmp_path, sample, message):
    with pytest.raises(DataError, match=message):
        check_labels(open_index(write(tmp_path, [sample])), "json:a", CLASSES, multi_label=True)


def test_names_that_are_wrong_are_told(tmp_path):
    names = names_in(tmp_path)
    urls = write(tmp_path, [{"json": {"a": ["cat", "cow"]}}])
    with pytest.raises(DataError, match=r"has the label 'cow', which is no class of data\.class_map"):
        check_labels(open_index(urls), "json:a", 3, class_map=names, multi_label=True)
    urls = write(tmp_path, [{"json": {"a": ["cat", 1]}}])
    with pytest.raises(DataError, match="its label is no name: 1; wanted is a list of names of classes"):
        check_labels(open_index(urls), "json:a", 3, class_map=names, multi_label=True)


def test_a_list_where_one_label_was_meant(tmp_path):
    urls = write(tmp_path, [{"json": {"a": [1, 2]}}])
    with pytest.raises(DataError, match=r"no whole number: \[1, 2\]; wanted is the class as a whole number, or a list of them"):
        check_labels(open_index(urls), "json:a", CLASSES)


@pytest.mark.parametrize("raw", [b"1 x", b"1;2", b"1.5", b"\xff"])
def test_a_member_that_is_no_list_of_numbers(raw):
    with pytest.raises(BadSample, match="no whole number"):
        classes_in(raw, LabelRule.of("cls", None, True))


def test_a_recipe_wants_the_loss_that_goes_with_it():
    with pytest.raises(RecipeError, match=r"data\.multi_label .*it wants objective\.loss\s+binary_cross_entropy, got cross_entropy"):
        recipe("a.tar", loss="cross_entropy")
    with pytest.raises(RecipeError, match=r"data\.multi_label +is about labels, but data\.label is null"):
        recipe("a.tar", label=None)
    assert recipe("a.tar", augment={"mixup": 0.8, "cutmix": 1.0}, group=3, lanes=3).data.multi_label


def test_mixed_targets_are_the_shares_of_both():
    images = torch.zeros(4, 3, 2, 2)
    targets = torch.tensor([[1., 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]])
    mixing = Mix(torch.tensor([1, 0, 3, 2]), torch.tensor([0.75, 0.75, 0.5, 0.5]), torch.zeros(4, 4, dtype=torch.int64), 3)
    _, soft = mix.apply(images, targets, torch.tensor([1.0, 1, 1, 0]), mixing)
    assert soft.tolist() == [[0.75, 1, 0.25], [0.25, 1, 0.75], [0, 0, 0], [1, 0, 0]]        # the last two: one of them is no sample
    one_hot = torch.eye(3)[[0, 2, 1, 1]]
    _, by_label = mix.apply(images, one_hot.argmax(1), torch.ones(4), mixing)
    _, by_target = mix.apply(images, one_hot, torch.ones(4), mixing)
    assert torch.equal(by_label, by_target)


def test_verify_looks_at_each(tmp_path):
    urls = write(tmp_path, [{"json": {"a": labels}} for labels in ([0, 1], [], [1, 4, 9], "2,x", [3])])
    faults = verify(urls, label="json:a", classes=CLASSES, multi_label=True).faults
    assert [(fault.key, fault.detail.partition(": ")[2]) for fault in faults] == [
        ("002", "is 4, outside 0 to 3"), ("002", "is 9, outside 0 to 3"), ("003", "its label is no whole number: b'x'")]
    assert verify(urls, label="json:a", multi_label=True).by_reason == {"label": 1}
    result = CliRunner().invoke(app, ["data", "verify", urls, "--label", "json:a", "--multi-label", "--classes", "10"])
    assert "1 fault: label 1" in result.output


def test_stats_count_each(tmp_path):
    urls = write(tmp_path, [{"json": {"a": labels}} for labels in ([0, 1], [1, 0], [], "x")])       # all of one image
    found = stats(open_index(urls), label="json:a", multi_label=True)
    assert (found.classes, found.unlabelled, found.empty, found.disputed) == ({0: 2, 1: 2}, 1, 1, 1)
    sheet = str(tmp_path / "s.png")
    result = CliRunner().invoke(app, ["data", "stats", urls, "--label", "json:a", "--multi-label", "--sheet", sheet])
    assert result.exit_code == 0, result.output
    assert "1 have an empty list of labels" in result.output.replace("\n", " ")
    same = write(tmp_path, [{"cls": b"0 1"}, {"cls": b"1,0"}])
    assert stats(open_index(same), multi_label=True).disputed == 0
    assert np.array_equal(sorted(stats(open_index(same), multi_label=True).classes), [0, 1])
