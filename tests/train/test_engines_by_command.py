"""Every engine, started as a user starts it, trains the quickstart as one process does."""

from pathlib import Path

import pytest
from running import Run, train

pytestmark = pytest.mark.slow       # real processes, DeepSpeed among them
FIRST_20 = ["duration=20 steps", "optim.warmup=5 steps", "model.width=32", "model.heads=2", "model.mlp=64", "evaluate.every=null",
            "data.log_samples=true", "checkpoint.every=null", "observe.exporter=false"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    folder = tmp_path_factory.mktemp("one")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    train(folder, *FIRST_20, "name=one")
    return Run(folder / "runs" / "one")


@pytest.mark.parametrize("engine", [
    "ddp", "fsdp", pytest.param("zero1", marks=pytest.mark.all), pytest.param("zero2", marks=pytest.mark.all), "zero3", "accelerate"])
def test_the_first_20_losses_agree_with_one_process(place: Path, one: Run, engine: str) -> None:
    settings = [f"parallel.engine={engine.rstrip('123')}", "parallel.processes=2"]
    settings += [f"parallel.zero_stage={engine[-1]}"] if engine.startswith("zero") else []
    train(place, *FIRST_20, *settings, "name=two")
    two = Run(place / "runs" / "two")
    assert two.samples == one.samples
    assert [two.losses[step] for step in range(1, 21)] == pytest.approx([one.losses[step] for step in range(1, 21)], abs=1e-4)
    assert two.outcome["eval_top1"] == pytest.approx(one.outcome["eval_top1"], abs=0.02)
    row = two.rows()[0]
    assert {"step", "images", "time", "loss", "lr", "grad_norm", "images_per_second", "mfu"} <= row.keys()
    assert {"seconds_data_wait", "seconds_compute", "seconds_optimizer"} <= row.keys()
    assert 0 < row["mfu"] < 1


def test_huge_on_photographs_takes_the_same_path(tmp_path: Path) -> None:
    """vit_huge's own recipe, made tiny, on full-size photographs with fsdp, bf16 and selective recomputation."""
    import cv2
    import webdataset as wds
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    with wds.ShardWriter(str(tmp_path / "photos-%06d.tar"), maxcount=12, verbose=0) as writer:
        for number in range(24):
            photo = photos[number % 2][number * 5:, number * 7:]
            jpeg = cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))[1].tobytes()
            writer.write({"__key__": f"{number:06d}", "jpg": jpeg, "cls": str(number % 2).encode()})
    output = train(
        tmp_path, "data.train=photos-{000000..000001}.tar", "data.val=null", "data.num_samples=24", "data.lanes=4", "global_batch=8",
        "model.size=tiny", "model.depth=2", "model.classes=2", "optim.warmup=2 steps", "duration=6 steps", "parallel.processes=2",
        "parallel.compile=false", "name=huge", recipe="recipes/vit_huge.yaml")
    run = Run(tmp_path / "runs" / "huge")
    assert run.outcome["state"] == "done", output
    assert len(run.losses) == 6
    recipe = (run.folder / "recipe.yaml").read_text()
    assert "engine: fsdp" in recipe
    assert "recompute: selective" in recipe
    assert "precision: bf16" in recipe
