"""Weights alone, from whatever holds them; an error names the file and the parameter."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitscale.checkpoint.store import EMA_WEIGHTS, MANIFEST, WEIGHTS, CheckpointWriter, RunFacts
from vitscale.checkpoint.weights import find_weights, read_weights
from vitscale.errors import CheckpointError
from vitscale.recipe import Checkpoint

SHAPES = {"a": (2, 3), "b.c": (4,)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the checkpoints 1 and 2, whose weights are their number."""
    writer = CheckpointWriter(tmp_path / "run" / "checkpoints", rank=0, lease=None, attempt=1, settings=Checkpoint())
    for step in (1, 2):
        tensors = {f"model.{name}": torch.full(shape, float(step)) for name, shape in SHAPES.items()}
        writer.save(tensors | {"ema.a": torch.full((2, 3), 9.0)}, RunFacts(step, {}, {}, "ddp", 1))
    writer.close()
    return tmp_path / "run"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_run_stands_for_its_newest_checkpoint(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000002"
    assert find_weights(run) == newest / WEIGHTS
    weights = read_weights(run, SHAPES)
    assert list(weights) == list(SHAPES)
    assert all(torch.equal(weights[name], torch.full(shape, 2.0)) for name, shape in SHAPES.items())


def test_a_checkpoint_and_a_file(run: Path) -> None:
    oldest = run / "checkpoints" / "step-00000001"
    for source in (oldest, oldest / WEIGHTS):
        assert find_weights(source) == oldest / WEIGHTS
        assert read_weights(source, SHAPES)["a"].tolist() == [[1.0] * 3] * 2
    assert read_weights(oldest / EMA_WEIGHTS, {"a": (2, 3)})["a"][0, 0] == 9


def test_a_damaged_checkpoint_of_a_run_is_passed_over(run: Path) -> None:
    flip(run / "checkpoints" / "step-00000002" / WEIGHTS)
    assert find_weights(run) == run / "checkpoints" / "step-00000001" / WEIGHTS
    (run / "checkpoints" / "step-00000001" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=rf"{run}: holds no weights; "):
        find_weights(run)
    assert len(list((run / "checkpoints").iterdir())) == 2     # a reader moves nothing


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000002"
    flip(checkpoint / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"{checkpoint}: is damaged: {WEIGHTS} "):
        read_weights(checkpoint, SHAPES)


def test_a_checkpoint_without_its_state_still_gives_weights(run: Path) -> None:
    """Who keeps only the weights of a long run may throw the optimizer away."""
    checkpoint = run / "checkpoints" / "step-00000002"
    for path in (checkpoint / "state").iterdir():
        path.unlink()
    assert read_weights(checkpoint, SHAPES)["a"][0, 0] == 2


def test_a_folder_with_a_file_of_that_name_and_no_manifest(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3)}, tmp_path / WEIGHTS)
    assert read_weights(tmp_path, {"a": (2, 3)})["a"].sum() == 6


def test_half_precision_comes_out_as_fp32(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        save_file({"a": torch.full((3,), 1.5, dtype=dtype)}, tmp_path / "w.safetensors")
        value = read_weights(tmp_path / "w.safetensors", {"a": (3,)})["a"]
        assert value.dtype == torch.float32
        assert value.tolist() == [1.5] * 3


@pytest.mark.parametrize(("tensors", "complaint"), [
    ({"a": (2, 3)}, "has no 'b.c'"),
    ({"a": (2, 3), "b.c": (5,)}, r"'b.c' is \(5,\), this model's is \(4,\)"),
    ({"a": (3, 2), "b.c": (4,)}, r"'a' is \(3, 2\), this model's is \(2, 3\)"),
    ({"a": (2, 3), "b.c": (4,), "z": (1,), "d": (1,)}, "has 'd', which this model lacks"),
    ({}, "has no 'a'"),
])
def test_weights_of_another_model_are_named(tensors: dict[str, tuple[int, ...]], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=complaint) as error:
        read_weights(path, SHAPES)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64, json.dumps({"a": 1}).encode()], ids=repr)
def test_a_file_of_another_kind_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path}: cannot be read as safetensors"):
        read_weights(path, SHAPES)


def test_nothing_there(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "absent", tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{source}: holds no weights"):
            read_weights(source, SHAPES)
