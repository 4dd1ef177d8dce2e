"""Measures what a teacher is worth: a ViT-Ti on a part of CIFAR-10, alone and with a ConvNeXt that saw more of it.  Writes a row.

    python benchmarks/distillation.py --train 'cifar10/train/*.tar' --val 'cifar10/test/*.tar'      then      python benchmarks/report.py

Shards as `vitscale data pack` makes of a folder of classes, mixed, with numbers as classes.  Real runs of the real command; every student
sees the same samples in the same order, under the same crops.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from data import describe
from measure import HERE, figure, ratios, write_row

from vitscale.data import open_index

RECIPE = """
model: {classes: 10, image: 64}                 # of 32: ConvNeXt's first patches of 4 are too coarse for that
data:
  workers: 1
  augment: {crop: random, scale: [0.5, 1.0], ratio: [0.8, 1.25], flip: 0.5, mean: [0.491, 0.482, 0.447], std: [0.247, 0.243, 0.262]}
optim: {name: adamw, betas: [0.9, 0.999], weight_decay: 0.05, schedule: cosine, warmup: 50 steps, clip_norm: 1.0}
parallel: {engine: ddp, precision: fp32}
checkpoint: {every: null}
evaluate: {crop: 1.0}
observe: {exporter: false}
"""
TEACHER = ["model.family=convnext", "model.widths=[32,64,128,256]", "model.depths=[2,2,2,2]", "model.layer_scale=1.0",
           "optim.lr=3e-3", "global_batch=100"]
STUDENT = ["model.width=192", "model.depth=12", "model.heads=3", "model.mlp=768", "model.patch=16", "optim.lr=1e-3", "global_batch=40"]
TAUGHT = ["objective.name=distillation", "objective.teacher=runs/teacher"]
STUDENTS = {
    "alone": ["model.family=vit"],
    "hard labels of the teacher on a distillation token (DeiT)": ["model.family=deit", *TAUGHT],
    "soft answers of the teacher": ["model.family=vit", *TAUGHT, "objective.kind=soft", "objective.alpha=0.9", "objective.temperature=1"],
}


def train(folder: Path, name: str, epochs: int, *overrides: str) -> float:
    """The last evaluation's top-1, in percent."""
    command = [sys.executable, "-m", "vitscale", "train", "recipe.yaml", f"name={name}", f"duration={epochs} epochs",
               f"evaluate.every={epochs} epochs", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return 100 * float([row["eval_top1"] for row in rows if "eval_top1" in row][-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="brace URL or glob of the training shards; teacher and students take the first")
    parser.add_argument("--val", required=True, help="the same of the shards that all are evaluated on")
    parser.add_argument("--teacher-shards", type=int, default=20)
    parser.add_argument("--student-shards", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of the teacher as of the students")
    parser.add_argument("--teacher", nargs="*", default=TEACHER, help="overrides that make the teacher")
    parser.add_argument("--student", nargs="*", default=STUDENT, help="overrides that make the student")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    found: dict[str, list[float]] = {name: [] for name in STUDENTS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "recipe.yaml").write_text(RECIPE)

        def indexed(urls: str, count: int | None = None) -> tuple[list[str], dict[str, int]]:
            paths = [os.path.abspath(path) for path in open_index(urls, str(folder / "index")).paths[:count]]
            return paths, describe(open_index(paths, str(folder / "index")))

        (for_teacher, at_teacher), (for_student, at_student) = (
            indexed(given.train, count) for count in (given.teacher_shards, given.student_shards))
        val, at_val = indexed(given.val)
        seen = [f"data.val={json.dumps(val)}", f"data.index_dir={folder / 'index'}"]
        teacher = train(folder, "teacher", given.epochs, f"data.train={json.dumps(for_teacher)}", *seen, *given.teacher)
        for seed in range(given.seeds):
            for number, (name, overrides) in enumerate(STUDENTS.items()):
                found[name].append(train(
                    folder, f"student-{number}-{seed}", given.epochs, f"seed={seed}", f"data.train={json.dumps(for_student)}", *seen,
                    *given.student, *overrides))
    figures = [figure(f"teacher, {at_teacher['samples']:,} images: top-1", [teacher], "%")]
    for name, values in found.items():
        figures.append(figure(f"{name}: top-1", values, "%"))
        if name != "alone":
            errors = [[100.0 - value for value in one] for one in (values, found["alone"])]
            figures.append(figure(f"{name}: errors, against alone, seed by seed", ratios(*errors), "x", at_most=1.0))
    write_row(
        given.rows, "distillation",
        f"ViT-Ti, {given.epochs} passes over {at_student['samples']:,} images of CIFAR-10, {given.seeds} seeds: "
        f"with a teacher against alone, by {at_val['samples']:,} images", figures,
        command=f"python benchmarks/distillation.py --train TRAIN --val VAL --teacher-shards {given.teacher_shards} "
                f"--student-shards {given.student_shards} --seeds {given.seeds} --epochs {given.epochs}",
        rounds=given.seeds, versions={"python": platform.python_version(), "torch": version("torch")}, shards=at_student,
    )


if __name__ == "__main__":
    main()
