"""Where a run's time goes: phases of a step, images per second, MFU, time to the end, goodput.  Needs no torch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vitscale.metrics.system import BUCKETS, PHASES

_APART = ("checkpoint", "evaluate")     # phases that a step's speed leaves out; the time to the end counts them


class Meters:
    """One rank's clock.  All times are host seconds: on a GPU `compute` is the time until the host waited for it.

        meters = Meters()
        meters.rate(flops_per_image, peak_flops, world)
        with meters.phase("restore"): ...           # before the first step
        meters.begin()                              # startup ends here
        with meters.phase("data_wait"): ...
        with meters.phase("compute"): ...
        meters.end_step(images)                     # images of the global batch
        row |= meters.row()
    """

    def __init__(self, *, window_s: float = 20.0, clock: Callable[[], float] = time.perf_counter) -> None:
        """`window_s`: the seconds over which images per second are taken, at least one step."""
        self._flops_per_image, self._peak = 0.0, 0.0
        self._repeat_left, self._window_s, self._clock = 0, window_s, clock
        self._bucket_s = dict.fromkeys(BUCKETS, 0.0)
        self._step_s = dict.fromkeys(PHASES, 0.0)       # of the step under way
        self._row_s = dict.fromkeys(PHASES, 0.0)        # since the row before
        self._open: list[str] = []
        self._recent: deque[tuple[int, float]] = deque()    # (images, seconds) of the steps in the window
        self._recent_images, self._recent_s = 0, 0.0
        self._steps = 0
        self._train_s, self._all_s = 0.0, 0.0           # of all steps so far: without, and with, the phases apart
        self._begun = False
        self._lock = threading.Lock()       # run_seconds() and age_s are asked by other threads too
        self._made = self._mark = self._step_start = clock()
        self._on_change: Callable[[str], None] = lambda name: None

    def rate(self, flops_per_image: float, peak_flops: float, world: int) -> None:
        """Say against what MFU is taken: the FLOPs of one training image, forward and backward, by the model's definition (recomputation
        not counted), and the FLOP/s of one of `world` devices; 0 of either: unknown, and MFU is left out."""
        self._flops_per_image, self._peak = flops_per_image, peak_flops * world

    def repeat(self, images: int) -> None:
        """Say how many images from here on were trained before and lost; their time is booked as `repeated`."""
        self._repeat_left = images

    def watch(self, on_change: Callable[[str], None]) -> None:
        """Call this at every change of phase, with the name of the one that begins, "" for none."""
        self._on_change = on_change

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time inside to `name`: one of PHASES, or `restore` before the first step.  An inner phase interrupts the outer one."""
        if name not in PHASES and name != "restore":
            raise ValueError(f"{name!r} is no phase; the phases are restore, {', '.join(PHASES)}")
        with self._lock:
            self._book()
            self._open.append(name)
        self._on_change(name)
        try:
            yield
        finally:
            with self._lock:
                self._book()
                self._open.pop()
            self._on_change(self._open[-1] if self._open else "")

    def mark_progress(self) -> None:
        """The phase under way has come to its next part: nothing is booked, but who watches is told."""
        self._on_change(self._open[-1] if self._open else "")

    def so_far(self, *names: str) -> float:
        """Seconds that these phases, none of them under way, have taken in the step under way."""
        return sum(self._step_s[name] for name in names)

    def begin(self) -> None:
        """Startup is over; the next instant belongs to the first step."""
        with self._lock:
            self._book()
            self._begun = True
            self._step_start = self._mark

    def end_step(self, images: int) -> dict[str, float]:
        """End the step under way, in which `images` images (over all ranks) were trained on.  Returns the seconds of each phase in it."""
        with self._lock:
            self._book()
            phases, elapsed = self._step_s, self._mark - self._step_start
            apart = sum(phases[name] for name in _APART)
            train = max(elapsed - apart, 0.0)
            self._bucket_s["repeated" if self._repeat_left > 0 else "train"] += train - phases["data_wait"]
            self._repeat_left -= images
            for name in ("data_wait", *_APART):
                self._bucket_s[name] += phases[name]
            self._step_s = dict.fromkeys(PHASES, 0.0)
            self._step_start = self._mark
        for name in PHASES:
            self._row_s[name] += phases[name]
        self._steps += 1
        if self._steps == 2:        # the first step compiles and fills caches: its speed is told only while there is no other
            self._recent.clear()
            self._recent_images, self._recent_s = 0, 0.0
        self._recent.append((images, train))
        self._recent_images += images
        self._recent_s += train
        while len(self._recent) > 1 and self._recent_s - self._recent[0][1] >= self._window_s:
            old_images, old_s = self._recent.popleft()
            self._recent_images -= old_images
            self._recent_s -= old_s
        self._train_s += train
        self._all_s += elapsed
        return phases

    @property
    def images_per_second(self) -> float:
        """Over the window, without evaluations, checkpoints and, once there are others, the first step; 0 before that."""
        return self._recent_images / self._recent_s if self._recent_s > 0 else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOP/s over peak (Chowdhery et al. 2022, appendix B), 0..1; None where either is unknown."""
        known = self._flops_per_image > 0 and self._peak > 0
        return self._flops_per_image * self.images_per_second / self._peak if known else None

    def eta_s(self, images_left: int) -> float | None:
        """Seconds to the end at the present speed, with evaluations and checkpoints taking the share they took so far."""
        speed = self.images_per_second
        return images_left / speed * (self._all_s / self._train_s) if speed > 0 and self._train_s > 0 else None

    def row(self) -> dict[str, float | None]:
        """Columns for metrics.jsonl: `seconds_<phase>` are sums since the row before, so that a column adds up to the run."""
        seconds, self._row_s = self._row_s, dict.fromkeys(PHASES, 0.0)
        return {
            "images_per_second": self.images_per_second, "mfu": self.mfu, **{f"seconds_{name}": seconds[name] for name in PHASES},
        }

    def run_seconds(self) -> dict[str, float]:
        """Goodput: seconds so far by BUCKETS.  `train` is the good part; what no phase took inside a step is in it.

        After end_step() they add up to the age.  Between, as after a last evaluation, they hold what was spent apart from training;
        what the step under way computed is in at its end.  Any thread may ask.
        """
        with self._lock:
            now = self._bucket_s | {name: self._bucket_s[name] + self._step_s[name] for name in ("data_wait", *_APART)}
            name = self._bucket_of_the_moment()
            if name is not None:
                now[name] += self._clock() - self._mark
            return now

    @property
    def age_s(self) -> float:
        """Seconds since these meters were made."""
        return self._clock() - self._made

    def _bucket_of_the_moment(self) -> str | None:
        """The bucket that time runs into just now; None within a step, whose own time is booked at its end."""
        name = self._open[-1] if self._open else None
        if name in BUCKETS:
            return name
        return None if self._begun else "startup"

    def _book(self) -> None:
        """Give the time since the last mark to the innermost open phase.  With the lock held."""
        now = self._clock()
        elapsed, self._mark = now - self._mark, now
        name = self._open[-1] if self._open else None
        if not self._begun:
            self._bucket_s[self._bucket_of_the_moment() or "startup"] += elapsed
        elif name in self._step_s:
            self._step_s[name] += elapsed
        elif name == "restore":                 # a rollback inside a run
            self._bucket_s["restore"] += elapsed
            self._step_start += elapsed


def data_wait_share(row: dict[str, float | None]) -> float:
    """Share of a row's step time that was spent waiting for data, 0..1; of the time in phases, without evaluations and checkpoints."""
    seconds = {name: row.get(f"seconds_{name}") or 0.0 for name in PHASES if name not in _APART}
    total = sum(seconds.values())
    return seconds["data_wait"] / total if total > 0 else 0.0
