"""Measures what a teacher is worth: a ViT-Ti on ten passes over scikit-learn's digits, alone and with a teacher.  Writes a row.

    python benchmarks/distillation.py      then      python benchmarks/report.py

Real runs of the real command.  The teacher is the quickstart's run; every student sees the same samples in the same order.
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

from measure import HERE, figure, ratios, write_row

TINY = ["model.width=192", "model.depth=12", "model.heads=3", "model.mlp=768", "model.patch=4", "optim.lr=1e-3", "observe.exporter=false"]
TEACHER = ["objective.name=distillation", "objective.teacher=runs/teacher"]
STUDENTS = {
    "alone": [],
    "hard labels of the teacher on a distillation token (DeiT)": ["model.family=deit", *TEACHER],
    "soft answers of the teacher": [*TEACHER, "objective.kind=soft"],
}


def train(folder: Path, name: str, *overrides: str) -> float:
    """The last evaluation's top-1, in percent."""
    command = [sys.executable, "-m", "vitscale", "train", "quickstart", f"name={name}", "checkpoint.every=null", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return 100 * float([row["eval_top1"] for row in rows if "eval_top1" in row][-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--student", nargs="*", default=TINY, help="overrides that make the student")
    parser.add_argument("--teacher-epochs", type=int, default=20)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    found: dict[str, list[float]] = {name: [] for name in STUDENTS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        teacher = train(folder, "teacher", f"duration={given.teacher_epochs} epochs", "observe.exporter=false")
        for seed in range(given.seeds):
            for number, (name, overrides) in enumerate(STUDENTS.items()):
                found[name].append(train(
                    folder, f"student-{number}-{seed}", *given.student, f"duration={given.epochs} epochs", f"seed={seed}",
                    f"evaluate.every={given.epochs} epochs", *overrides))
    figures = [figure("teacher: top-1", [teacher], "%")]
    for name, values in found.items():
        figures.append(figure(f"{name}: top-1", values, "%"))
        if name != "alone":
            errors = [[100.0 - value for value in one] for one in (values, found["alone"])]
            figures.append(figure(f"{name}: errors, against alone, seed by seed", ratios(*errors), "x", at_most=1.0))
    write_row(
        given.rows, "distillation", f"ViT-Ti, {given.epochs} passes over 1,438 digits, {given.seeds} seeds: with a teacher against alone",
        figures, command=" ".join(["python benchmarks/distillation.py", *(arguments if arguments is not None else sys.argv[1:])]),
        rounds=given.seeds, versions={"python": platform.python_version(), "torch": version("torch")},
    )


if __name__ == "__main__":
    main()
