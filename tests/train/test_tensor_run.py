"""A run whose ranks share matrices, started as a user starts it: each sample counts once, and one process resumes from it."""

import tarfile
from pathlib import Path

import pytest
from running import SMALL, Run, same_as, train

pytestmark = pytest.mark.slow       # real processes, four of them
SETTINGS = [*SMALL, "optim.schedule=constant", "checkpoint.every=null", "evaluate.every=10 steps", "data.prepare=null", "ema.decay=0.9",
            "data.max_bad_fraction=0.5"]


@pytest.fixture
def damaged(place: Path, digits: Path) -> Path:
    """A folder where each tenth image of a shard is none."""
    (place / "data" / "digits").unlink()
    (place / "data" / "digits").mkdir()
    for shard in digits.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        if shard.name.endswith("000000.tar"):
            with tarfile.open(shard) as tar:
                images = [member for member in tar if member.name.endswith((".png", ".jpg"))]
            for image in images[::10]:
                data[image.offset_data:image.offset_data + 8] = bytes(8)
        (place / "data" / "digits" / shard.name).write_bytes(data)
    return place


def test_a_run_that_shares_matrices_is_the_run_of_one_process(damaged: Path) -> None:
    train(damaged, *SETTINGS, "name=one", "duration=14 steps")
    shared = ["parallel.engine=fsdp", "parallel.tensor=2", "parallel.processes=4"]
    output = train(damaged, *SETTINGS, *shared, "name=two", "duration=11 steps")
    assert "2 ranks x 1 micro-step x 16 images for a global batch of 32; each stands for 2 that share its work" in output
    train(damaged, *SETTINGS, "name=two", "duration=14 steps", "--accept-changes")
    one, two = Run(damaged / "runs" / "one"), Run(damaged / "runs" / "two")
    same_as(one, two, last=14)
    tenth = [next(row for row in run.rows() if row["step"] == 10 and "eval_loss" in row) for run in (one, two)]
    assert tenth[1]["eval_loss"] == pytest.approx(tenth[0]["eval_loss"], abs=1e-5)
    assert tenth[1]["eval_ema_loss"] == pytest.approx(tenth[0]["eval_ema_loss"], abs=1e-5)
    assert tenth[1]["eval_images"] == tenth[0]["eval_images"] < 359
    split = [{name: sorted((row["step"], row["id"]) for row in run.rows("quarantine.jsonl") if row["split"] == name)
              for name in ("train", "val")} for run in (one, two)]
    assert split[0]["train"] == split[1]["train"] != []
    assert [row for row in split[0]["val"] if row[0] < 10] == [row for row in split[1]["val"] if row[0] < 10] != []
