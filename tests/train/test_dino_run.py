"""A run of DINO that is killed goes on elsewhere as if nothing had happened: samples, losses, teacher and centre."""

from pathlib import Path

import pytest
import torch
from running import Run, start, train
from safetensors.torch import load_file

from vitscale.checkpoint.store import STATE, read_whole

RECIPE = """
name: dino
model: {width: 32, depth: 2, heads: 2, mlp: 64, image: 8, patch: 2, channels: 1, classes: 0, drop_path: 0.1,
        position: rotary, rope_rescale: 2.0, rope_shift: 0.1}
data:
  train: "data/digits/train-*.tar"
  val: "data/digits/val-*.tar"
  label: null
  lanes: 16
  log_samples: true
  views:
    - {name: first, augment: {scale: [0.4, 1], color_jitter: 0.4, color_jitter_prob: 0.8, blur: 1.0, blur_radius: [0.1, 0.6]}}
    - {name: second, augment: {scale: [0.4, 1], blur: 0.1, solarize: 0.2}}
    - {name: local, count: 2, image: 4, augment: {scale: [0.05, 0.4], blur: 0.5}}
objective:
  {name: dino, prototypes: 32, hidden: 24, bottleneck: 16, momentum: {start: 0.9, end: 1.0}, rest_prototypes: 4 steps,
   teacher_temp: {start: 0.04, end: 0.07, over: 20 steps, shape: linear}}
optim: {lr: 1e-3, eps: 1e-4, warmup: 10 steps, weight_decay: 0.04, weight_decay_end: 0.4, clip_norm: 3.0}
global_batch: 32
duration: 30 steps
checkpoint: {every: 6 steps, keep: 1}
observe: {exporter: false}
parallel: {device: cpu}
"""
pytestmark = pytest.mark.slow       # whole runs of real processes


def test_kill_9_and_another_engine_on_other_ranks_goes_on(place: Path) -> None:
    (place / "dino.yaml").write_text(RECIPE)
    train(place, "name=whole", recipe="dino.yaml")
    process = start(place, "name=k", "micro_batch=6", recipe="dino.yaml")
    whole, run = Run(place / "runs" / "whole"), Run(place / "runs" / "k")
    run.wait_for_step(14, process)
    process.kill()
    process.wait(60)
    output = train(place, "name=k", "parallel.engine=fsdp", "parallel.processes=2", recipe="dino.yaml")
    assert "resuming from step-" in output
    assert run.samples == whole.samples
    assert run.losses == pytest.approx(whole.losses, rel=1e-5)
    (ours,), (theirs,) = (list((one.folder / "checkpoints").iterdir()) for one in (run, whole))
    for prefix in ("model.", "ema.", "objective."):
        found, wanted = (read_whole(folder / STATE, prefix) for folder in (ours, theirs))
        assert found.keys() == wanted.keys()
        assert found
        far = {name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in wanted.items()}
        assert not {name: gap for name, gap in far.items() if gap > 1e-5}
    assert load_file(ours / "ema.safetensors").keys() == load_file(ours / "model.safetensors").keys()
    assert not torch.equal(load_file(ours / "ema.safetensors")["norm.weight"], load_file(ours / "model.safetensors")["norm.weight"])
