"""`vitscale eval`, `predict` and `embed` as a user calls them, on a run trained for real."""

import csv
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from running import Run, command

from vitscale.checkpoint.load import load
from vitscale.cli.app import app
from vitscale.data.index import open_index
from vitscale.data.labels import LabelRule
from vitscale.errors import CheckpointError, DataError
from vitscale.evaluate.evaluate import Request, evaluate, lines
from vitscale.evaluate.outputs import outputs
from vitscale.evaluate.ranks import run as run_eval
from vitscale.evaluate.sets import Set
from vitscale.export.folder import write_safetensors
from vitscale.parallel.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"), None)


def call(*arguments: str, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=180, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Twelve digits as files, with their labels in the names, and one that is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    with tarfile.open(digits / "val-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()[:24]}
    for name, data in members.items():
        if name.endswith(".png"):
            label = members[name.replace(".png", ".cls")].decode().strip()
            (folder / f"{label}-{name}").write_bytes(data)
    whole = next(iter(sorted(folder.iterdir()))).read_bytes()
    (folder / "broken.png").write_bytes(whole[:-20])
    return folder


@pytest.fixture(scope="session")
def val(digits: Path) -> tuple[str, ...]:
    return (str(digits / "val-*.tar"),)


def test_it_repeats_what_training_measured(trained: Run, val: tuple[str, ...]) -> None:
    """The same top-1 and top-5, to the image, as the run's own evaluation at its end."""
    found = evaluate(Request(str(trained.folder), shards=val), ALONE)
    own = [row for row in trained.rows() if "eval_top1" in row][-1]
    accuracy = found["results"]["accuracy"]
    assert found["images"] == own["eval_images"] == 359
    assert accuracy["top1"]["value"] == pytest.approx(own["eval_top1"], abs=1e-9)
    assert accuracy["calibration"]["negative_log_likelihood"] == pytest.approx(own["eval_loss"], rel=1e-4)
    assert accuracy["top5"]["value"] == pytest.approx(own["eval_top5"], abs=1e-9)
    assert accuracy["calibration"]["negative_log_likelihood"] == pytest.approx(own["eval_loss"], rel=1e-4)
    low, high = accuracy["top1"]["interval"]
    assert low < own["eval_top1"] < high


def test_all_probes_of_a_trained_model_beat_those_of_none(trained: Run, digits: Path, val: tuple[str, ...]) -> None:
    what = ("knn", "linear", "few-shot", "retrieval")
    request = Request(str(trained.folder), what, val, (str(digits / "train-*.tar"),))
    results = evaluate(request, ALONE)["results"]
    assert results["knn"]["top1"]["value"] > 0.8
    assert results["linear"]["top1"]["value"] > 0.85
    assert results["few-shot"]["25"]["top1"] > results["few-shot"]["1"]["top1"] > 0.3
    assert results["retrieval"]["recall@1"]["value"] > 0.8
    assert 0.2 < results["retrieval"]["map"] < 1.0


def test_other_sets_are_judged_by_their_own_rules(trained: Run, val: tuple[str, ...], digits: Path, tmp_path: Path) -> None:
    """A subset has fewer wrong answers to give; ReaL has several right ones; a mapping says what its classes are."""
    shard = tmp_path / "threes.tar"
    with tarfile.open(digits / "val-000000.tar") as tar, tarfile.open(shard, "w") as out, tarfile.open(tmp_path / "real.tar", "w") as real:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        for name, data in members.items():
            if not name.endswith(".png"):
                continue
            label = int(members[name.replace(".png", ".cls")])
            labels = [] if label == 0 else [label, 9] if label == 3 else [label]
            _add(real, name, data)
            _add(real, name.replace(".png", ".cls"), " ".join(map(str, labels)).encode())
            if label in (3, 8, 9):
                _add(out, name, data)
                _add(out, name.replace(".png", ".cls"), str({8: 0, 3: 1, 9: 2}[label]).encode())
    (tmp_path / "classes.txt").write_text("8\n3\n9\n")
    sets = (Set("same", val), Set("few", (str(shard),), "subset"), Set("real", (str(tmp_path / "real.tar"),), "real"))
    found = evaluate(Request(str(trained.folder), ("accuracy",), val, sets=sets, mapping=tmp_path / "classes.txt"), ALONE)
    accuracy, others = found["results"]["accuracy"], found["results"]["sets"]
    assert others["same"]["top1"] == accuracy["top1"]
    assert others["few"]["classes"] == 3
    assert others["few"]["top1"]["value"] > 0.6
    assert others["real"]["unlabelled"] > 5
    assert others["real"]["top1"]["count"] + others["real"]["unlabelled"] == sum(name.endswith(".png") for name in members)
    assert any("few" in line for line in lines(found))


def test_answers_that_are_no_numbers_are_an_error(trained: Run, val: tuple[str, ...]) -> None:
    loaded = load(trained.folder)
    with torch.no_grad():
        loaded.model.head.bias[3] = float("nan")
    with pytest.raises(DataError, match="the model's answers to 359 of 359 samples are not finite"):
        outputs(loaded, open_index(val), ALONE, label=LabelRule.of("cls"), classes=10)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_corrupted_images_by_corruption_and_severity(trained: Run, digits: Path, tmp_path: Path) -> None:
    for place in ("noise/1", "noise/2", "fog/1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "val.tar").symlink_to(digits / "val-000001.tar")
    found = evaluate(Request(str(trained.folder), (), corrupted=tmp_path), ALONE)["results"]["corrupted"]
    assert set(found["by_corruption"]) == {"noise", "fog"}
    assert found["by_corruption"]["noise"] == pytest.approx(found["by_severity"]["2"])
    assert 0 < found["mean_error"] < 0.5


@pytest.mark.slow       # starts ranks, which import torch
def test_two_ranks_find_the_same(trained: Run, val: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ["eval", str(trained.folder), "--data", val[0], "--what", "accuracy,retrieval"]
    call(*arguments, "--json", str(tmp_path / "two.json"), "--processes", "2")
    assert run_eval([Request(str(trained.folder), ("accuracy", "retrieval"), val)], 1, "cpu", tmp_path / "one.json") == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for key in ("top1", "classes", "confusions"):
        assert one["results"]["accuracy"][key] == two["results"]["accuracy"][key]
    assert two["results"]["retrieval"]["map"] == pytest.approx(one["results"]["retrieval"]["map"], abs=1e-6)


@pytest.mark.parametrize("name", ["predict", "explain"])
@pytest.mark.parametrize("missing", [["nosuch.png"], ["nosuch.png", "nor.png"]])
def test_where_no_image_can_be_read_nothing_is_shown_and_nothing_was_done(name: str, missing: list[str], trained: Run, tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    given = [*missing, "-m", str(trained.folder)] if name == "predict" else [str(trained.folder), *missing, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        app([name, *given])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.splitlines()[-1] == f"{'1 image' if len(missing) == 1 else '2 images'} could not be read; there was no other"
    assert list(tmp_path.rglob("*.*")) == []       # no figures


def test_a_folder_without_a_recipe_is_told_how_to_name_its_shards(trained: Run, tmp_path: Path) -> None:
    write_safetensors(load(str(trained.folder)), tmp_path)
    with pytest.raises(DataError, match=r"give them with --data, such as --data 'data/val-\*\.tar'"):
        evaluate(Request(str(tmp_path)), ALONE)
    with pytest.raises(DataError, match=r"give their shards with --train, such as --train 'data/train-\*\.tar'"):
        evaluate(Request(str(tmp_path), ("knn",), ("val.tar",)), ALONE)


@pytest.mark.slow       # processes of their own, as a user starts them
def test_images_are_told_and_what_cannot_be_read_is_listed(trained: Run, pictures: Path) -> None:
    done = call("predict", str(pictures), "-m", str(trained.folder), "--format", "csv", "--top", "2", code=2)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 24
    best = [row for row in rows if row["rank"] == "1"]
    assert sum(Path(row["image"]).name[0] == row["class"] for row in best) >= 9
    assert "unreadable: " in done.stderr
    assert "broken.png: truncated" in done.stderr
    assert "1 image could not be read; the rest was done" in done.stderr
    table = call("predict", str(pictures / "[0-9]*.png"), "-m", str(trained.folder))
    assert table.stdout.count(".png") == 12


@pytest.mark.slow       # the same
def test_features_by_layer_from_shards(trained: Run, val: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    call("embed", val[0], "-m", str(trained.folder), "--out", str(out), "--layer", "pooled", "--layer", "blocks.1", "--whole")
    with np.load(out) as found:
        assert found["names"].shape == (359,)
        assert found["pooled"].shape == (359, 32)
        assert found["blocks.1"].shape == (359, 17, 32)
    done = call("embed", val[0], "-m", str(trained.folder), "--layer", "blocks.9", code=2)
    assert "no layer 'blocks.9'; this model has patch_embed, embedded, blocks.0.attention" in done.stderr


def test_features_as_parquet_and_other_inputs(trained: Run, pictures: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    from vitscale.evaluate.embed import embed, write_features
    from vitscale.evaluate.images import batches, open_images

    loaded = load(trained.folder)
    source = open_images([str(pictures), str(pictures / "nowhere.png")])
    names, found, bad = embed(loaded.model, batches(source, loaded.transform, 5), ["pooled"])
    assert [Path(name).name for name, _ in bad] == ["broken.png", "nowhere.png"]
    write_features(tmp_path / "f.parquet", names, found)
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["name"] == names
    assert np.allclose(np.array(table["pooled"]), found["pooled"])
    one = loaded.model.forward_features(loaded.transform(names[3])[None])["pooled"]
    assert np.allclose(one.numpy(), found["pooled"][3], atol=1e-6)


def test_mistakes(trained: Run, val: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("zero\none\n")
    with pytest.raises(DataError, match=r"names 2 classes, the model tells 10 apart"):
        load(trained.folder, class_map=tmp_path / "names.txt")
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are"):
        load(trained.folder, checkpoint=7)
    with pytest.raises(CheckpointError, match="no such run"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        load(trained.folder, ema=True)
    newest = trained.folder / "checkpoints" / trained.checkpoints[-1]
    copy = tmp_path / newest.name
    copy.mkdir()
    for name in ("model.safetensors", "run.json", "manifest.json"):
        (copy / name).write_bytes((newest / name).read_bytes())
    assert load(copy).step == 270
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(CheckpointError, match="written by another version"):
        load(copy)


def test_the_best_checkpoint_by_name(trained: Run) -> None:
    best = load(trained.folder, checkpoint="best")
    assert best.step == json.loads((best.source.parent / "run.json").read_text())["best"]["step"]
