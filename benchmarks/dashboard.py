"""Measures the dashboard: from a person's click to drawn numbers, for a run with a million recorded rows.  Writes a row.

    python benchmarks/dashboard.py      then      python benchmarks/report.py

A real Chromium opens the page of `vitscale monitor`.  The peer is what a notebook does before it draws anything: every row by the
standard library's json, six curves as lists.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from measure import HERE, figure, ratios, write_row
from playwright.sync_api import Page, sync_playwright

CURVES = ("loss", "lr", "grad_norm", "images_per_second", "mfu", "seconds_compute")
PEER = """
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
curves = {name: [row[name] for row in rows] for name in ("time", *sys.argv[2:])}
"""


def write_run(folder: Path, rows: int) -> None:
    """A run of eight ranks as the program records it: numbers of its own in every row."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).random((10_000, 16)).round(6).tolist()     # the same again after so many rows
    texts = [json.dumps({
        "loss": 2 + one[0], "lr": 1e-3 * one[0], "grad_norm": 1 + one[1], "applied": True, "images_per_second": 8000 + 200 * one[2],
        "mfu": 0.45 + 0.01 * one[3], "seconds_data_wait": 0.01 * one[4], "seconds_h2d": 0.004 * one[5],
        "seconds_compute": 0.4 + 0.02 * one[6], "seconds_optimizer": 0.02 * one[7], "seconds_checkpoint": 0.0, "seconds_evaluate": 0.0,
        "skew": 1 + 0.02 * one[8], "slowest_rank": 3, "own_median_s": 0.3, "own_max_s": 0.3 + 0.02 * one[9],
        "own_s": [round(0.3 + 0.01 * value, 4) for value in one[8:]], "attempt": 1}, separators=(",", ":"))[1:] for one in noise]
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for at in range(1, rows + 1):
            text = texts[at % len(texts)]
            file.write(f'{{"step":{at},"images":{4096 * at},"epoch":{at // 5000},"time":{1.7e9 + 0.5 * at},{text}\n')


def drawn(page: Page, run: str) -> float:
    """Seconds until the run's charts stand there."""
    started = time.perf_counter()
    page.get_by_role("link", name=run).click()
    page.wait_for_selector(".plot[aria-label^='Loss'] canvas")
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recorded", type=int, default=1_000_000, help="rows of the run's metrics.jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    first, later, whole, every, peer = [], [], [], [], []
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        runs = Path(place)
        write_run(runs / "million", given.recorded)
        write_run(runs / "small", 10_000)
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(given.rounds):
            command = [sys.executable, "-m", "vitscale", "monitor", place, "--port", "0"]
            server = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
            assert server.stdout is not None
            try:
                found = re.search(r"http://\S+", server.stdout.readline())
                assert found
                page = browser.new_page()
                page.set_default_timeout(300_000)
                started = time.perf_counter()
                page.goto(found[0])
                page.wait_for_selector("main[data-ready]")
                every.append(time.perf_counter() - started)
                started = time.perf_counter()
                first.append(drawn(page, "million"))
                page.wait_for_selector(".notice", state="detached")
                whole.append(time.perf_counter() - started)
                page.get_by_role("link", name="all runs").click()
                later.append(drawn(page, "million"))
                page.close()
            finally:
                server.terminate()
                server.wait()
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", PEER, str(runs / "million" / "metrics.jsonl"), *CURVES], check=True)
            peer.append(time.perf_counter() - started)
        browser.close()
    figures = [
        figure("first view drawn", first, "s", at_most=3), figure("a later view drawn", later, "s", at_most=1),
        figure("every row read", whole, "s"), figure("overview drawn", every, "s"),
        figure("json's time for six curves over that of the first view", ratios(peer, first), "x"),
    ]
    write_row(
        given.rows, "dashboard", f"The page of a run with {given.recorded:,} recorded rows, in Chromium", figures,
        command=" ".join(["python benchmarks/dashboard.py", *(arguments if arguments is not None else sys.argv[1:])]), rounds=given.rounds,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("starlette", "msgspec", "playwright")}},
    )


if __name__ == "__main__":
    main()
