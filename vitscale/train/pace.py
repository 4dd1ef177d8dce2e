"""How even the ranks' pace is: a probe of each device, columns for metrics.jsonl, and a word about slow ranks."""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from vitscale.resilience.stragglers import Notice, Stragglers

log = logging.getLogger(__name__)
PROBE_EVERY = 25        # steps; the same on every rank, since its result travels in the step's exchange
_WHOLE = 64             # ranks up to which every row tells each one's time; of more, every _SELDOM-th row does
_SELDOM = 32


class Probe:
    """One matrix product of a fixed size, timed.  It tells a slow device even where the ranks wait for each other at every block."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        side, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
        self._matrix = torch.full((side, side), 1 / side, dtype=dtype, device=device)

    def seconds(self) -> float:
        """The best of four: what disturbs one of them is not the device."""
        found = []
        for _ in range(4):
            self._wait()
            started = time.perf_counter()
            torch.mm(self._matrix, self._matrix)
            self._wait()
            found.append(time.perf_counter() - started)
        return min(found)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class RankPace:
    """Rank 0's view of all ranks' own times."""

    def __init__(self, nodes: Sequence[str], ratio: float) -> None:
        self._nodes = nodes
        self._steps, self._probes = Stragglers(ratio), Stragglers(ratio, window=4)
        self._sum, self._count, self._rows = np.zeros(len(nodes)), 0, 0

    def step(self, own_s: Sequence[float], probe_s: Sequence[float], step_s: float) -> None:
        """Take a step in: each rank's seconds before its first exchange, those of the probe (or none), and those of the step."""
        now_s = time.monotonic()
        self._sum += own_s
        self._count += 1
        for notice in self._steps.look(own_s, step_s, now_s):
            self._say(notice, f"takes {notice.own_s:.3g} s of each step before it waits for others", "all ranks wait for it")
        if probe_s:
            for notice in self._probes.look(probe_s, max(probe_s), now_s):
                self._say(notice, f"needs {1000 * notice.own_s:.3g} ms for a small matrix product", "its device is throttled or shared")

    def row(self) -> dict[str, object]:
        """Columns since the row before; `own_s` holds each rank's mean."""
        mean_s, self._sum, self._count = self._sum / max(self._count, 1), np.zeros(len(self._nodes)), 0
        columns: dict[str, object] = {"skew": self._steps.skew, "slowest_rank": self._steps.slowest,
                                      "own_median_s": float(np.median(mean_s)), "own_max_s": float(mean_s.max())}
        if len(self._nodes) <= _WHOLE or self._rows % _SELDOM == 0:
            columns["own_s"] = [round(seconds, 4) for seconds in mean_s.tolist()]
        self._rows += 1
        return columns

    def _say(self, notice: Notice, what: str, so: str) -> None:
        who = f"rank {notice.rank} on {self._nodes[notice.rank]}"
        if notice.kind == "recovered":
            log.info("%s is no longer slow: it %s, %.3g times the median of the others", who, what, notice.ratio)
        else:
            log.warning("%s is %s: it %s, %.3g times the median of the others; %s", who, notice.kind, what, notice.ratio, so)
