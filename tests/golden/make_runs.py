"""Writes the golden runs of the version that is installed: `unshare --uts python tests/golden/make_runs.py /tmp/golden`, as root.

Run once for each released version, in its own checkout; what it wrote stays as it is.  See tests/checkpoint/test_golden_runs.py."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import vitscale
from vitscale.data import pack_digits
from vitscale.recipe import RECIPES

SHARDS = {"train-0.tar": ("train-000000.tar", 30), "train-1.tar": ("train-000001.tar", 26), "val-0.tar": ("val-000000.tar", 16)}
SETTINGS = ["model.width=8", "model.depth=2", "model.heads=2", "model.mlp=16", "global_batch=8", "data.lanes=2", "data.prepare=null",
            "data.train=data/train-{0..1}.tar", "data.val=data/val-0.tar", "data.num_samples=56", "data.log_samples=true",
            "observe.exporter=false", "checkpoint.every=8 steps", "checkpoint.keep=2", "duration=60 steps", "optim.warmup=10 steps",
            "optim.lr=1e-3", "evaluate.every=10 steps"]
RUNS = {
    "classification": ["ema.decay=0.9"],
    "mae": ["objective.name=mae", "objective.decoder.width=8", "objective.decoder.depth=1", "objective.decoder.heads=2"],
    "distillation": ["objective.name=distillation", "objective.kind=soft", "objective.teacher=runs/classification"],
    "fsdp": ["parallel.engine=fsdp", "parallel.processes=2"],
    "zero": ["parallel.engine=zero", "parallel.zero_stage=2", "parallel.processes=2"],
}


def shards(folder: Path) -> None:
    pack_digits(folder / "whole")
    for name, (source, samples) in SHARDS.items():
        with tarfile.open(folder / "whole" / source) as given, tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as kept:
            for member in given.getmembers()[:2 * samples]:
                kept.addfile(member, given.extractfile(member))
    shutil.rmtree(folder / "whole")


def run(home: Path, name: str, settings: list[str], killed: bool) -> Path:
    """Train to the end, or until it has gone well beyond its second checkpoint."""
    folder = home / "runs" / name
    process = subprocess.Popen([sys.executable, "-m", "vitscale", "train", str(RECIPES / "quickstart.yaml"), f"name={name}", *SETTINGS,
                                *settings], cwd=home, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while killed and process.poll() is None:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and '"step":26,' in metrics.read_text() and len(list((folder / "checkpoints").glob("[!.]*"))) == 2:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.001)
    assert process.wait() == (-signal.SIGKILL if killed else 0), name
    return folder


def main(home: Path) -> None:
    socket.sethostname("golden")        # which the records hold
    (home / "data").mkdir(parents=True)
    shards(home / "data")
    whole = {}
    for name, settings in RUNS.items():
        folder = run(home, name, settings, killed=False)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        whole[name] = {"losses": {row["step"]: row["loss"] for row in rows if "loss" in row},
                       "samples": (folder / "logs" / "samples.jsonl").read_text()}
        if name != "classification":
            shutil.rmtree(folder)
            run(home, name, settings, killed=True)
    with tarfile.open(Path(__file__).parent / f"runs-{vitscale.__version__}.tar.xz", "w:xz", preset=9) as tar:
        for part in ("data", "runs"):
            tar.add(home / part, part)
        text = json.dumps(whole).encode()
        member = tarfile.TarInfo("whole.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
