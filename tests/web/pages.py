"""What the page's tests share: a server of its own, run folders (copies of a real run, changed as a test wants), reading the page."""

import http.client
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page

Look = Callable[..., Page]
Keep = Callable[[Page, str], None]
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


@contextmanager
def monitoring(runs: Path, *options: str) -> Iterator[str]:
    """`vitscale monitor` of a folder on a free port; gives the address that it prints."""
    process = subprocess.Popen([sys.executable, "-m", "vitscale", "monitor", str(runs), "--port", "0", *options], text=True,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=30)


def fetch(url: str, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.headers)
    finally:
        connection.close()


def only_run(url: str) -> str:
    return str(json.loads(fetch(url, "/api/runs")[1])["runs"][0]["id"])


def tile(page: Page, label: str) -> str:
    return page.locator(".tile", has=page.locator(".label", has_text=re.compile(f"^{re.escape(label)}$"))).locator(".value").inner_text()


def shown(value: float) -> str:
    """As the page writes a number of 0.001 to 1e6, which comes with six digits: 910.4499997 is shown as 910.5, 2182.4996 as 2,183."""
    value = float(f"{value:.6g}")
    return f"{math.floor(value + 0.5):,}" if value >= 1000 else f"{float(f'{value:.4g}'):g}"
