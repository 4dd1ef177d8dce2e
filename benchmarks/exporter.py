"""Measures what telling Prometheus costs a training step, and a scrape.  Writes a row.

    python benchmarks/exporter.py      then      python benchmarks/report.py

The calls that train/record.py makes for each step of rank 0, which tells the most, on the real objects, with a scraper at work that asks
far more often than Prometheus does.  The clock is the training thread's own processor time: what the scraper's thread takes meanwhile
is told as a scrape's.  The loop around the calls, timed without them, is taken off.
"""

import argparse
import statistics
import sys
import threading
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

from measure import HERE, figure, write_row

from vitscale.metrics import metrics_of
from vitscale.metrics.system import BUCKETS, PHASES
from vitscale.observe.board import Board
from vitscale.observe.exporter import Exporter

SCRAPE_EVERY_S = 1.0        # Prometheus: 15
RANKS = 8                   # of a node


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the exporter; its row goes to --rows.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    board = Board(tuple(range(RANKS)))
    for rank in range(1, RANKS):
        board.writer(rank).step(dict.fromkeys(PHASES, 0.01))
    exporter, stop = Exporter(board=board), threading.Event()
    scrapes: list[float] = []
    scraper = threading.Thread(target=_scrape, args=(f"http://{exporter.address}/metrics", stop, scrapes), daemon=True)
    scraper.start()
    try:
        rounds = [_round(board, exporter, given.steps) for _ in range(given.rounds)]
        while not scrapes:
            time.sleep(0.01)
    finally:
        stop.set()
        scraper.join()
        exporter.close()
    figures = [
        figure("a step of rank 0, processor time", [step_us for step_us, _ in rounds], "us", at_most=50),
        figure("of which: a rank's own numbers on the board, all that other ranks have", [own_us for _, own_us in rounds], "us"),
        figure(f"a scrape of a node of {RANKS} ranks, as the scraper waits", [1000 * statistics.median(scrapes)], "ms"),
    ]
    write_row(given.rows, "exporter-step", "What telling Prometheus costs a step", figures, rounds=given.rounds,
              command=f"python benchmarks/exporter.py --rounds {given.rounds} --steps {given.steps}",
              versions={"python": sys.version.split()[0], "prometheus-client": version("prometheus-client")})


def _round(board: Board, exporter: Exporter, steps: int) -> tuple[float, float]:
    """Microseconds of a step: in all, and of what goes to the board."""
    rank = board.writer(0)
    phases = dict.fromkeys(PHASES, 0.0) | {"data_wait": 0.002, "h2d": 0.001, "compute": 0.2, "optimizer": 0.01, "communication": 0.003}
    seconds = dict.fromkeys(BUCKETS, 0.0)

    def own(step: int) -> None:
        rank.step(phases)
        rank.set("rank_own_seconds", 0.2)
        rank.set("rank_samples_total", 32 * step)
        rank.set("rank_read_bytes_total", 100_000 * step)
        rank.set("rank_ready_batches", 4)

    def run(step: int) -> None:
        seconds["train"] = 0.2 * step
        row = {"step": step, "images": 256 * step, "time": time.time(), "loss": 2.0 / step, "lr": 1e-3, "grad_norm": 0.5, "mfu": 0.4,
               "skew": 1.01, "images_per_second": 1000.0}
        exporter.update(metrics_of(row) | {"eta_seconds": 1e5, "images_per_second_per_device": 125.0, "nonfinite_steps_total": 0,
                                           "run_seconds_total": seconds, "goodput_ratio": 0.9})

    def timed(*calls: object) -> float:
        started = time.thread_time()
        for step in range(1, steps + 1):
            for call in calls:
                call(step)      # type: ignore[operator]
        return (time.thread_time() - started) / steps * 1e6

    empty_us = timed(lambda step: None)
    own_us = timed(own) - empty_us
    return own_us + timed(run) - empty_us, own_us


def _scrape(url: str, stop: threading.Event, took_s: list[float]) -> None:
    while not stop.wait(SCRAPE_EVERY_S if took_s else 0.05):
        started = time.perf_counter()
        with urllib.request.urlopen(url, timeout=30) as answer:
            answer.read()
        took_s.append(time.perf_counter() - started)


if __name__ == "__main__":
    main()
