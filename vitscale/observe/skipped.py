"""Samples that could not be used, told as they come: the first by name, then how many, now and then; quarantine.jsonl has all."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitscale.counts import plural
from vitscale.runfolder import printable

log = logging.getLogger(__name__)
NAMED = 5           # of an attempt, each once, however often it comes
EVERY_S = 60.0      # between two words about the others


class Skipped:
    """Of rank 0.  `rows` are those of quarantine.jsonl: step (from 0), split, shard, key, reason, detail."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._named: set[tuple[object, ...]] = set()
        self._more: Counter[str] = Counter()        # not told yet, by reason
        self._last: Mapping[str, Any] = {}
        self._told_at: float | None = None
        self._total = 0

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._total += 1
            name = (row.get("split"), row.get("shard"), row.get("key"))
            if len(self._named) < NAMED and name not in self._named:
                self._named.add(name)
                log.warning("%s could not be used: %s", _name(row), _why(row))
            else:
                self._more[str(row.get("reason", "?"))] += 1
                self._last = row
        now = self._clock()
        if self._told_at is None:
            self._told_at = now             # the first word about the others comes that much later
        if now - self._told_at >= EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Tell how many came since the last word, if any did."""
        if not self._more:
            return
        self._told_at = self._clock()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self._more.most_common())
        log.warning("%s a sample could not be used (%s), %d in this attempt; the last: %s: %s; quarantine.jsonl names all",
                    plural(self._more.total(), "more time"), reasons, self._total, _name(self._last), _why(self._last))
        self._more.clear()


def _name(row: Mapping[str, Any]) -> str:
    step = row.get("step")
    when = f"step {step + 1}" if isinstance(step, int) else "a step"
    where = "evaluation after " if row.get("split") == "val" else ""
    return printable(f"{where}{when}: sample {row.get('key', '?')} of {row.get('shard', '?')}")


def _why(row: Mapping[str, Any]) -> str:
    return printable(f"{row.get('reason', '?')}: {str(row.get('detail', ''))[:300]}".removesuffix(": "))
