"""Every mistake a user can make gets one clear message and exit code 2 before a rank starts."""

import os
from pathlib import Path

import pytest
from running import SMALL, train

CASES = {
    "unknown key": (["optim.learning_rate=1"], "optim.learning_rate  is no key of optim; the keys are name, lr"),
    "mistyped value": (["optim.lr=abc"], "optim.lr  wants a number, got 'abc'"),
    "image and patch": (["model.patch=3"], "model.image  8 is not divisible by model.patch 3"),
    "lanes and group": (["data.group=5"], "is not a multiple of data.group 5"),
    "more lanes than samples": (["data.lanes=2048", "data.num_samples=null", "global_batch=2048"], "data.lanes: 2048 lanes are more than"),
    "no such shards": (["data.train=nowhere/x-{000000..000001}.tar", "data.prepare=null"], "nowhere/x-000000.tar"),
    "a pipe": (["data.train='pipe:cat x.tar'"], "pipe: URLs run a shell and are refused"),
    "labels": (["model.classes=5", "data.num_samples=null"], "but model.classes is 5"),
    "no label": (["data.label=txt"], "has no 'txt' member (it has"),
    "wrong size": (["data.num_samples=77", "data.lanes=16"], "data.num_samples says 77, the shards hold 1438"),
    "too many ranks": (["global_batch=2", "data.lanes=2", "parallel.processes=3"], "3"),
    "no GPU": (["parallel.device=cuda", "parallel.processes=1"], "torch sees no GPU here"),
    "init": (["init=nowhere"], "nowhere: holds no weights"),
}


@pytest.mark.slow       # starts the program, torch included, for each case
@pytest.mark.parametrize("case", CASES)
def test_one_clear_message_and_exit_code_2(place: Path, case: str) -> None:
    import torch

    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    overrides, message = CASES[case]
    output = train(place, *SMALL, "name=bad", "duration=4 steps", "optim.warmup=0 steps", *overrides, code=2)
    assert message in output
    assert "Traceback" not in output
    assert "vitscale: " in output


def test_a_folder_that_is_not_writable(place: Path) -> None:
    (place / "runs").write_text("a file where the folder should be")
    output = train(place, *SMALL, "duration=4 steps", "optim.warmup=0 steps", code=2)
    assert "runs_dir: the run folder runs/quickstart cannot be made" in output
    if os.geteuid() != 0:
        (place / "runs").unlink()
        (place / "runs").mkdir(mode=0o500)
        assert "cannot be made" in train(place, *SMALL, "duration=4 steps", "optim.warmup=0 steps", code=2)


def test_a_checkpoint_of_another_model(place: Path) -> None:
    train(place, *SMALL, "name=small", "duration=2 steps", "optim.warmup=0 steps")
    output = train(place, *SMALL, "name=other", "duration=2 steps", "optim.warmup=0 steps", "model.width=48", "init=runs/small", code=2)
    assert "model.safetensors: 'cls_token' is (1, 1, 32), this model's is (1, 1, 48)" in output
    train(place, *SMALL, "name=same", "duration=2 steps", "optim.warmup=0 steps", "init=runs/small")
