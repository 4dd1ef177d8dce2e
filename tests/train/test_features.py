"""What a run does besides training: averages, evaluations, early stopping, retention, metrics over HTTP, ranks of other launchers."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from running import SMALL, TIMEOUT_S, Run, command, start, train

from vitscale.observe.targets import target_file
from vitscale.parallel.rank_info import node_name

pytestmark = pytest.mark.slow       # whole runs of real processes


def test_averages_evaluations_and_the_best_checkpoint(place: Path) -> None:
    output = train(place, *SMALL, "name=e", "duration=3 epochs", "ema.decay=0.9", "evaluate.every=0.5 epochs", "checkpoint.every=10 steps",
                   "checkpoint.keep=2", "optim.lr=1e-2", "parallel.engine=fsdp", "parallel.processes=2")
    run = Run(place / "runs" / "e")
    evaluations = [row for row in run.rows() if "eval_top1" in row]
    assert [row["images"] for row in evaluations][-1] == 3 * 1438
    assert len(evaluations) == 6
    assert all(0 <= row[name] <= 1 for row in evaluations for name in ("eval_top1", "eval_top5", "eval_ema_top1"))
    assert evaluations[-1]["eval_top1"] > 0.2
    assert evaluations[-1]["eval_ema_loss"] != evaluations[-1]["eval_loss"]
    best = max(evaluations, key=lambda row: row["eval_top1"])
    assert run.outcome["best"]["value"] == best["eval_top1"]
    newest = f"step-{run.outcome['step']:08d}"
    assert newest in run.checkpoints
    assert f"step-{run.outcome['best']['step']:08d}" in run.checkpoints
    assert len(run.checkpoints) <= 3
    assert (run.folder / "checkpoints" / newest / "ema.safetensors").is_file()
    assert f"top-1 {best['eval_top1']:.2%}" in output


def test_averages_go_on_after_a_resume(place: Path) -> None:
    settings = [*SMALL, "ema.decay=0.9", "evaluate.every=null", "optim.lr=1e-3", "optim.schedule=constant"]
    train(place, *settings, "name=whole", "duration=24 steps")
    train(place, *settings, "name=halves", "duration=12 steps", "parallel.engine=fsdp", "parallel.processes=2")
    train(place, *settings, "name=halves", "duration=24 steps", "--accept-changes")
    whole, halves = Run(place / "runs" / "whole"), Run(place / "runs" / "halves")
    assert halves.outcome["eval_ema_loss"] == pytest.approx(whole.outcome["eval_ema_loss"], abs=1e-4)
    assert halves.outcome["eval_loss"] == pytest.approx(whole.outcome["eval_loss"], abs=1e-4)


def test_early_stopping(place: Path) -> None:
    train(place, *SMALL, "name=stop", "duration=100 epochs", "optim.lr=0", "optim.warmup=0 steps", "evaluate.every=5 steps",
          "evaluate.early_stopping.patience=3")
    outcome = Run(place / "runs" / "stop").outcome
    assert outcome["state"] == "done"
    assert "patience" in outcome["reason"]
    assert outcome["step"] == 20        # the first evaluation sets the mark, three more do not beat it


def test_a_loss_that_stays_not_finite_ends_the_run(place: Path) -> None:
    output = train(place, *SMALL, "name=nan", "optim.warmup=0 steps", "optim.lr=1e30", "optim.clip_norm=null", "duration=100 steps", code=3)
    run = Run(place / "runs" / "nan")
    assert run.outcome["state"] == "failed"
    assert "not finite in 5 steps in a row" in run.outcome["reason"]
    assert "the update was skipped on all ranks" in output
    assert [row["applied"] for row in run.rows() if "applied" in row][-5:] == [False] * 5
    assert [row["to_step"] for row in run.rows() if "event" in row] == [0] * run.outcome["rollbacks"] == [0, 0, 0]


def test_metrics_over_http_while_it_runs(place: Path) -> None:
    process = start(place, *SMALL, "name=m", "duration=2000 steps", "observe.exporter=true", "checkpoint.every=5 steps")
    run = Run(place / "runs" / "m")
    try:
        run.wait_for_step(12, process)
        (target,) = json.loads(target_file(run.folder, node_name()).read_text())
        assert target["labels"] == {"run": "m", "node": node_name()}
        address = target["targets"][0]
        assert address.startswith("127.0.0.1:")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        process.terminate()
        process.wait(30)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert float(values["vitscale_steps_total"]) >= 12
    assert float(values["vitscale_images_total"]) == 32 * float(values["vitscale_steps_total"])
    assert float(values["vitscale_checkpoint_seconds_count"]) >= 1
    assert time.time() - float(values["vitscale_checkpoint_last_success_timestamp_seconds"]) < 60
    assert 0 < float(values["vitscale_mfu_ratio"]) < 1
    assert not target_file(run.folder, node_name()).exists()      # withdrawn at the end


@pytest.mark.parametrize("launcher", [
    ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    # its --cpu would start one process only, whatever --num_processes says
    ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
     "--main_process_port=0"],
], ids=["torchrun", "accelerate launch"])
def test_ranks_of_another_launcher_are_joined(place: Path, unbroken: Run, launcher: list[str]) -> None:
    engine = "ddp" if "torch" in launcher[0] else "accelerate"
    command = [sys.executable, "-m", *launcher, "-m", "vitscale", "train", "quickstart", *SMALL, "name=j", "duration=60 steps",
               f"parallel.engine={engine}"]
    done = subprocess.run(command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(place / "runs" / "j")
    assert run.samples == unbroken.samples
    assert list(run.losses.values()) == pytest.approx(list(unbroken.losses.values()), abs=1e-4)
    assert json.loads((run.folder / "checkpoints" / run.checkpoints[-1] / "run.json").read_text())["world_size"] == 2


@pytest.mark.all        # the compiler takes most of a minute
def test_compile_block_by_block(place: Path) -> None:
    """The same losses as without; on a GPU this is where the speed is, here it is only shown to work with recomputation and sharding."""
    settings = [*SMALL, "duration=3 steps", "optim.warmup=0 steps", "model.depth=1", "parallel.engine=fsdp", "data.val=null"]
    train(place, *settings, "name=plain")
    train(place, *settings, "name=compiled", "parallel.compile=true", "parallel.recompute=selective")
    plain, compiled = Run(place / "runs" / "plain"), Run(place / "runs" / "compiled")
    assert list(compiled.losses.values()) == pytest.approx(list(plain.losses.values()), abs=1e-4)


def test_a_stop_waits_until_rank_0_has_published(place: Path) -> None:
    """Whoever starts ranks ends them all once the first is gone: the others must not go before the checkpoint is there."""
    slow = place / "slow"
    slow.mkdir()
    # as a file system would be slow: the publishing alone takes two seconds, the launcher's patience is half a second
    (slow / "sitecustomize.py").write_text("""
import time
import vitscale.files as files
import vitscale.parallel.launch as launch
launch.GRACE_S = 0.5
fsync_folder = files.fsync_folder
def late(folder):
    if folder.name == "checkpoints":
        time.sleep(2)
    fsync_folder(folder)
files.fsync_folder = late
""")
    process = start(place, *SMALL, "name=slow", "duration=2000 steps", "parallel.processes=2", "checkpoint.every=null",
                    environment={"PYTHONPATH": os.pathsep.join([str(slow), os.environ.get("PYTHONPATH", "")])})
    run = Run(place / "runs" / "slow")
    run.wait_for_step(3, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert run.checkpoints == [f"step-{run.outcome['step']:08d}"]
    assert "SIGTERM" in run.outcome["reason"]


def test_zero_with_one_process(place: Path) -> None:
    train(place, *SMALL, "name=alone", "duration=3 steps", "optim.warmup=0 steps", "parallel.engine=zero", "parallel.zero_stage=3")
    assert len(Run(place / "runs" / "alone").losses) == 3


def test_dropout_repeats_after_a_resume(place: Path) -> None:
    settings = [*SMALL, "model.dropout=0.2", "evaluate.every=null", "optim.schedule=constant"]
    train(place, *settings, "name=whole", "duration=16 steps")
    train(place, *settings, "name=halves", "duration=11 steps")
    train(place, *settings, "name=halves", "duration=16 steps", "--accept-changes")
    assert Run(place / "runs" / "halves").losses == Run(place / "runs" / "whole").losses


def test_bad_validation_images_are_counted_and_cost_no_training(place: Path) -> None:
    import tarfile

    import webdataset as wds

    with wds.ShardWriter(str(place / "val-%06d.tar"), verbose=0) as writer, tarfile.open(place / "data/digits/val-000000.tar") as source:
        for number, name in enumerate(sorted({member.name.partition(".")[0] for member in source})[:20]):
            image = source.extractfile(f"{name}.png").read()
            writer.write({"__key__": name, "png": b"garbage" if number % 2 else image, "cls": source.extractfile(f"{name}.cls").read()})
    output = train(place, *SMALL, "name=v", "duration=8 steps", "optim.warmup=0 steps", "data.val=val-000000.tar", "parallel.processes=2")
    run = Run(place / "runs" / "v")
    assert "10 of 20 samples could not be used" in output
    assert run.outcome["eval_images"] == 10
    rows = run.rows("quarantine.jsonl")
    assert len(rows) == 10
    assert {row["split"] for row in rows} == {"val"}
    assert run.checkpoints == ["step-00000008"]


def test_what_ends_a_run_for_bad_samples_is_written_down(place: Path) -> None:
    import tarfile

    import webdataset as wds

    with wds.ShardWriter(str(place / "bad-%06d.tar"), verbose=0) as writer, tarfile.open(place / "data/digits/train-000000.tar") as source:
        for number, name in enumerate(sorted({member.name.partition(".")[0] for member in source})[:64]):
            image = source.extractfile(f"{name}.png").read()
            writer.write({"__key__": name, "png": b"garbage" if number == 40 else image, "cls": source.extractfile(f"{name}.cls").read()})
    output = train(place, *SMALL, "name=b", "duration=8 steps", "optim.warmup=0 steps", "data.train=bad-000000.tar", "data.num_samples=64",
                   "data.prepare=null", "data.max_bad_fraction=0", code=2)
    run = Run(place / "runs" / "b")
    assert "more than data.max_bad_fraction 0 allows" in output
    assert [row["reason"] for row in run.rows("quarantine.jsonl")] == ["format"]
    assert run.outcome["state"] == "wrong input"


def test_skips_at_the_end_of_a_run_end_it(place: Path) -> None:
    from vitscale.resilience.skips import remember

    (place / "runs" / "tail").mkdir(parents=True)
    remember(place / "runs" / "tail", 192, 256, "a test wants it")
    train(place, *SMALL, "name=tail", "duration=8 steps", "optim.warmup=0 steps")
    run = Run(place / "runs" / "tail")
    assert list(run.losses) == [1, 2, 3, 4, 5, 6]
    assert run.outcome["state"] == "done"


def test_several_labels_a_sample(place: Path) -> None:
    """Each digit also carries the class 'even' or 'odd' beside its own: both are learnt."""
    import tarfile

    import webdataset as wds

    for split in ("train", "val"):
        with (wds.ShardWriter(str(place / f"multi-{split}-%06d.tar"), verbose=0) as writer,
              tarfile.open(place / f"data/digits/{split}-000000.tar") as source):
            for name in sorted({member.name.partition(".")[0] for member in source}):
                digit = int(source.extractfile(f"{name}.cls").read())
                writer.write({"__key__": name, "png": source.extractfile(f"{name}.png").read(), "cls": f"{digit} {10 + digit % 2}"})
    train(place, *SMALL, "name=multi", "duration=40 steps", "model.classes=12", "objective.loss=binary_cross_entropy", "optim.lr=3e-3",
          "data.multi_label=true", "data.train=multi-train-000000.tar", "data.val=multi-val-000000.tar", "data.num_samples=null",
          "data.prepare=null")
    run = Run(place / "runs" / "multi")
    assert run.losses[1] == pytest.approx(0.6931, abs=0.01)         # ln 2: every class as likely as not
    assert run.losses[40] < 0.5
    assert run.outcome["eval_top1"] > 0.4       # hits@1: even or odd alone is right for half
    told = subprocess.run(command("eval", "multi"), cwd=place, capture_output=True, text=True, check=True).stdout
    found = json.loads((run.folder / "eval.json").read_text())["results"]["several_labels"]
    assert found["hits1"]["value"] == pytest.approx(run.outcome["eval_top1"], abs=1e-9)
    assert found["hits5"]["value"] == pytest.approx(run.outcome["eval_top5"], abs=1e-9)
    assert 1 / 6 < found["map"] < 1        # chance: ten classes of a tenth, two of a half
    assert f"mAP          {found['map']:.2%} over 12 classes; F1 {found['f1']:.2%}" in told
    # Other sets are judged by their own rules: shards whose samples have several right answers, and corrupted ones with one each.
    corrupted = place / "corrupted" / "fog" / "3"
    corrupted.mkdir(parents=True)
    (corrupted / "val.tar").symlink_to(place / "data/digits/val-000000.tar")
    subprocess.run(command("eval", "multi", "--real", "both=multi-val-000000.tar", "--corrupted", "corrupted"), cwd=place, check=True)
    others = json.loads((run.folder / "eval.json").read_text())["results"]
    assert others["sets"]["both"]["top1"]["value"] == pytest.approx(found["hits1"]["value"], abs=1e-9)
    assert 0 < others["corrupted"]["by_corruption"]["fog"] <= 1
    wrong = subprocess.run(command("eval", "multi", "--what", "accuracy,knn"), cwd=place, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "several labels each, and --what knn wants one: ask for accuracy" in wrong.stderr
