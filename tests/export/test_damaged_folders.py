"""Whatever is wrong with a folder of weights, ours, timm's or transformers', ends in one error that names the file; nothing hangs."""

import json
import math
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitscale
from vitscale.checkpoint.foreign import CONFIG, INDEX, WEIGHTS
from vitscale.checkpoint.load import Loaded
from vitscale.checkpoint.weights import read_start
from vitscale.data.transform import Transform
from vitscale.errors import UserError
from vitscale.export.folder import write_safetensors, write_timm, write_transformers
from vitscale.models import build_model, initialise
from vitscale.recipe import Vit
from vitscale.recipe.preprocessing import PREPROCESSOR

SECTION = Vit(width=12, depth=1, heads=2, mlp=16, patch=4, image=8, classes=3)
WRITERS = {"ours": write_safetensors, "timm": write_timm, "transformers": write_transformers}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = build_model(SECTION)
    initialise(model, 0)
    half = (0.5, 0.5, 0.5)
    loaded = Loaded(model, Transform(8, 3, 1.0, half, half), ("a", "b", "c"), SECTION, None, Path("x"))
    root = tmp_path_factory.mktemp("folders")
    for name, write in WRITERS.items():
        write(loaded, root / name)
    return {name: root / name for name in WRITERS}


def refused(folder: Path) -> str | None:
    """What is said of a folder, if it is; that of load() and that of `init`."""
    said = []
    signal.alarm(60)
    try:
        for read in (lambda: vitscale.load(folder), lambda: read_start(folder, build_model(SECTION), "classification")):
            try:
                read()
            except UserError as error:
                said.append(str(error))
    finally:
        signal.alarm(0)
    assert all(said)
    return said[0] if said else None


DAMAGE: dict[str, Callable[[Path, random.Random], object]] = {
    "flipped": lambda path, draw: _changed(path, draw), "cut": lambda path, draw: os.truncate(path, draw.randrange(path.stat().st_size)),
    "emptied": lambda path, draw: os.truncate(path, 0), "random": lambda path, draw: path.write_bytes(draw.randbytes(500)),
    "a huge header": lambda path, draw: path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:]),
    "a folder": lambda path, draw: (path.unlink(), path.mkdir()), "a pipe": lambda path, draw: (path.unlink(), os.mkfifo(path)),
    "a loop": lambda path, draw: (path.unlink(), path.symlink_to(path)),
    "a device": lambda path, draw: (path.unlink(), path.symlink_to("/dev/zero")), "gone": lambda path, draw: path.unlink(),
}


def _changed(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(min(len(content), 400))] ^= 1 << draw.randrange(8)       # a header, where there is one
    path.write_bytes(content)


@pytest.mark.parametrize("library", list(WRITERS))
def test_any_damage_to_any_file(folders: dict[str, Path], library: str, tmp_path: Path) -> None:
    draw = random.Random(5)
    for name in sorted(path.name for path in folders[library].iterdir()):
        for kind, damage in DAMAGE.items():
            for number in range(12 if kind in ("flipped", "cut") else 1):
                copy = Path(shutil.copytree(folders[library], tmp_path / f"{name}-{kind}-{number}"))
                damage(copy / name, draw)
                said = refused(copy)
                if kind in ("emptied", "random", "a huge header") or (name == WEIGHTS and kind != "flipped"):
                    assert said is not None, (name, kind)
                assert said is None or str(copy) in said


def _save(folder: Path, tensors: dict[str, torch.Tensor], name: str = WEIGHTS) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})


def _sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for name, held in parts.items():
        _save(folder, {key: tensors[key] for key in held}, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": {key: name for name, held in parts.items() for key in held}}))


def _two_of_one(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    _sharded(folder, tensors)
    _save(folder, {key: value + 1 for key, value in tensors.items()}, "model-2.safetensors")


def _one_and_an_older_index(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    _sharded(folder, {key: value + 1 for key, value in tensors.items()})
    _save(folder, tensors)


def _half_a_head(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    _save(folder, {key: value[:2] if key.startswith(("head.", "classifier.")) else value for key, value in tensors.items()})


# what a folder can come to without being damaged -> what is said of it; None: it is read as it was
TENSORS: dict[str, tuple[Callable[[Path, dict[str, torch.Tensor]], None], str | None]] = {
    "in pieces": (_sharded, None), "in pieces that overlap": (_two_of_one, "in two of its files"),
    "one file and an older index": (_one_and_an_older_index, None),
    "a piece gone": (lambda folder, tensors: (_sharded(folder, tensors), (folder / "model-2.safetensors").unlink())[0], "model-2"),
    "another name": (lambda folder, tensors: _save(folder, {f"model.{key}": value for key, value in tensors.items()}), "model."),
    "one missing": (lambda folder, tensors: _save(folder, {key: value for key, value in tensors.items() if "norm1" not in key
                                                           and "layernorm_before" not in key}), "has no"),
    "another shape": (lambda folder, tensors: _save(folder, {
        key: value[..., :-1] if value.ndim == 2 else value for key, value in tensors.items()}), "this model's is"),
    "turned": (lambda folder, tensors: _save(folder, {
        key: value.T if value.ndim == 2 else value for key, value in tensors.items()}), "this model's is"),
    "other classes": (_half_a_head, "this model's is"),
    "int8": (lambda folder, tensors: _save(folder, {key: value.to(torch.int8) for key, value in tensors.items()}), "int8"),
    "fp64": (lambda folder, tensors: _save(folder, {key: value.double() for key, value in tensors.items()}), None),
}


@pytest.mark.parametrize("library", list(WRITERS))
def test_tensors_are_those_that_are_meant_or_refused(folders: dict[str, Path], library: str, tmp_path: Path) -> None:
    plain = vitscale.load(folders[library]).model.state_dict()
    for number, (name, (change, words)) in enumerate(TENSORS.items()):
        copy = Path(shutil.copytree(folders[library], tmp_path / str(number)))
        change(copy, load_file(copy / WEIGHTS))
        said = refused(copy)
        if words is None:
            assert said is None, (name, said)
            assert all(torch.equal(value, plain[key]) for key, value in vitscale.load(copy).model.state_dict().items()), name
        else:
            assert re.search(words, said or ""), (name, said)


@pytest.mark.parametrize(("library", "key", "value"), [
    ("transformers", "id2label", {"1": "a", "2": "b", "3": "c"}), ("transformers", "id2label", {"0": "a", "2": "c"}),
    ("transformers", "id2label", ["a", "b", "c"]), ("transformers", "num_labels", 9), ("timm", "label_names", ["a"]),
    ("timm", "label_names", {"a": 0, "b": 1, "c": 2}), ("timm", "label_names", "abc"), ("timm", "num_classes", 9)])
def test_names_are_one_for_each_class_or_refused(folders: dict[str, Path], library: str, key: str, value: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders[library], tmp_path / "copy"))
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | {key: value}))
    assert f"  {key}  " in (refused(copy) or "")


VALUES = [None, True, -1, 0, 2**70, 0.5, math.nan, math.inf, "x", [], [[]], {}, {"x": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("library", list(WRITERS))
def test_any_value_in_the_place_of_any_other(folders: dict[str, Path], library: str, tmp_path: Path) -> None:
    draw = random.Random(6)
    copy = Path(shutil.copytree(folders[library], tmp_path / "copy"))
    for name in (CONFIG, PREPROCESSOR):
        if not (copy / name).is_file():
            continue
        sound = (copy / name).read_text()
        for path in places(json.loads(sound)):
            for new in draw.sample(VALUES, 3):
                config = json.loads(sound)
                holder = config
                for key in path[:-1]:
                    holder = holder[key]
                holder[path[-1]] = new
                (copy / name).write_text(json.dumps(config))
                said = refused(copy)
                assert said is None or len(said) > len(str(copy)), (path, new)
        (copy / name).write_text("[" * 5000 + "]" * 5000)
        assert name in (refused(copy) or "")
        (copy / name).write_text(sound)
    assert refused(copy) is None
    assert torch.isfinite(next(iter(vitscale.load(copy).model.parameters()))).all()
