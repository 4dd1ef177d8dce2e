"""Run folders for the page: copies of a real run, changed where a test wants it."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

FILES = ("recipe.yaml", "metrics.jsonl", "outcome.json", "attempts.jsonl", "goodput.json", "environment.json", "quarantine.jsonl")


def copied(run: Path, runs: Path, name: str) -> Path:
    """The files of `run` that the page reads, as run `name` of the folder `runs`."""
    folder = runs / name
    folder.mkdir(parents=True)
    for file in FILES:
        shutil.copy(run / file, folder / file)
    shutil.copytree(run / "lease", folder / "lease")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(folder) if "loss" in row]


def held(folder: Path) -> None:
    """As if an attempt were at work on it: its lease is fresh and not released."""
    number = max(int(path.name) for path in (folder / "lease").iterdir() if path.name.isdecimal())
    (folder / "lease" / f"{number}.released").unlink(missing_ok=True)
    os.utime(folder / "lease" / str(number), (time.time(), time.time()))
