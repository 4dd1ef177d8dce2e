"""Who is at fault when a run does not get on: by numbers, and by real processes with real watchdogs."""

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ranks  # noqa: F401  (its forkserver has torch loaded)

from vitscale.recipe.schema import Resilience
from vitscale.resilience.hang import Sighting, judge
from vitscale.resilience.outcome import read_outcome
from vitscale.resilience.watchdog import Watchdog

NODES = ("n1", "n1", "n2", "n2")


def sighting(rank: int, step: int = 512, changes: int = 5, phase: str = "compute", idle_s: float = 61.0, limit_s: float = 60.0,
             waiting: bool = True) -> Sighting:
    return Sighting(rank, NODES[rank], 100 + rank, 1, 3, step, changes, phase, idle_s, limit_s, waiting, "all_reduce (c10d.py:1)")


def judged(*seen: Sighting) -> tuple[tuple[int, ...], str] | None:
    verdict = judge({one.rank: one for one in seen}, NODES)
    return (verdict.ranks, verdict.reason) if verdict else None


ENDING = "; ending this attempt so that it can be started again"


def test_the_rank_with_the_fewest_changes_of_phase() -> None:
    assert judged(sighting(0), sighting(1), sighting(2), sighting(3, changes=1, phase="data_wait", waiting=False)) == (
        (3,), "rank 3 on n2 has been in data_wait of step 512 for 61 s; the other 3 ranks wait for it" + ENDING)


def test_an_earlier_step_comes_before_fewer_changes() -> None:
    verdict = judged(sighting(0, step=512, changes=9, phase=""), *(sighting(rank, step=513, changes=3) for rank in (1, 2, 3)))
    assert verdict == ((0,), "rank 0 on n1 has been between the phases of step 512 for 61 s; the other 3 ranks wait for it" + ENDING)


def test_at_the_same_place_who_waits_is_not_at_fault() -> None:
    verdict = judged(sighting(0), sighting(1, waiting=False), sighting(2, waiting=False), sighting(3))
    assert verdict == ((1, 2), "ranks 1, 2 on n1, n2 have been in compute of step 512 for 61 s; the other 2 ranks wait for them" + ENDING)


def test_all_at_the_same_place() -> None:
    for waiting in (True, False):
        verdict = judged(*(sighting(rank, waiting=waiting) for rank in range(4)))
        assert verdict == ((0, 1, 2, 3), "all 4 ranks have been in compute of step 512 for 61 s and none stands out" + ENDING)


def test_who_does_not_answer_is_at_fault_whatever_the_others_do() -> None:
    verdict = judged(sighting(0, phase="checkpoint", limit_s=1800), sighting(1, changes=2), sighting(3))
    assert verdict == ((2,), "rank 2 on n2 does not answer: stopped, or blocked in a call that holds Python's lock; the other 3 ranks have "
                             "waited 61 s in checkpoint of step 512" + ENDING)


def test_nobody_is_at_fault_who_may_take_as_long_or_gets_on() -> None:
    waiting = [sighting(0), sighting(1), sighting(2)]
    late = sighting(3, changes=1, phase="evaluate", waiting=False)
    assert judged(*waiting, late) is not None
    assert judged(*waiting, replace(late, limit_s=1800.0)) is None
    assert judged(*waiting, replace(late, idle_s=2.0)) is None


def test_many_are_not_all_listed() -> None:
    verdict = judge({0: sighting(0)}, ["n1"] + ["n2"] * 99)
    assert verdict is not None
    assert verdict.reason.startswith("ranks 1, 2, 3, 4, 5, 6, 7, 8 and 91 more on n2 do not answer: ")
    assert verdict.ranks == tuple(range(1, 100))


def test_one_rank() -> None:
    verdict = judge({0: sighting(0)}, ["n1"])
    assert verdict is not None
    assert verdict.reason == "rank 0 on n1 has been in compute of step 512 for 61 s" + ENDING


def test_a_word_of_progress_costs_little(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, rank=0, nodes=["n"], attempt=1, settings=Resilience())
    best_s = min(timeit.repeat(lambda: dog.changed("compute"), number=2000, repeat=20)) / 2000
    assert best_s < 5e-6        # measured 0.4e-6; a machine under load is slower


# Real watchdogs in processes of their own, all cases at once: most of the time they wait.

HANG_S = 3.0        # of a machine on which twenty of these begin at once
LONG_S = 2 * HANG_S     # what must not be taken for a hang takes so long


def _gets_on(dog: Watchdog) -> None:
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        for phase in ("data_wait", "compute"):
            dog.changed(phase)
            time.sleep(HANG_S / 10)


def _waits(dog: Watchdog) -> None:
    """For other ranks, far on in the step."""
    for _ in range(1000):
        dog.changed("compute")
    time.sleep(LONG_S)


def _hangs(dog: Watchdog) -> None:
    dog.changed("h2d")
    time.sleep(60)


def _is_blocked(dog: Watchdog) -> None:
    dog.changed("compute")
    time.sleep(0.5)
    ctypes.PyDLL(None).sleep(60)        # PyDLL keeps Python's lock


def _is_blocked_at_once(dog: Watchdog) -> None:
    """Before the watchdog's thread has looked again: what it last saw may take long."""
    dog.changed("checkpoint")
    time.sleep(0.5)
    dog.changed("compute")
    ctypes.PyDLL(None).sleep(30)


def _is_blocked_in_the_second_step(dog: Watchdog) -> None:
    ctypes.PyDLL(None).sleep(30)


def _reads_slowly_then_not_at_all(dog: Watchdog) -> None:
    signs = [0]
    dog.reading(lambda: signs[0], slack_s=0.5)
    dog.changed("data_wait")
    for _ in range(6):
        time.sleep(HANG_S / 3)
        signs[0] += 1
    (dog.run_folder / "stopped").touch()
    time.sleep(60)


def _writes_a_checkpoint(dog: Watchdog) -> None:
    dog.changed("checkpoint")
    time.sleep(LONG_S)


def _evaluates(dog: Watchdog) -> None:
    dog.changed("evaluate")
    for number in dog.over(range(3)):
        time.sleep(0.1 if number else LONG_S)       # the first one compiles
    dog.changed("")


@dataclass(frozen=True)
class Case:
    acts: tuple[Callable[[Watchdog], None], ...]    # of each rank
    absent: int = 0             # ranks more, which do not exist
    first_step: bool = False
    files: dict[str, str] = field(default_factory=dict)     # that are there before


def _left(attempt: int, written: int) -> str:
    """What a rank 1 wrote that is far on."""
    return json.dumps(asdict(Sighting(1, "n1", 1, attempt, written, 500, 0, "compute", 0.0, 2.0, True, "?")))


def _orphan(path: Path, until: threading.Event) -> None:
    """A rank 1 of attempt 1 that its SLURM has forgotten: it still writes what it sees."""
    written = 0
    while not until.wait(0.1):
        written += 1
        path.with_name(".orphan").write_text(_left(1, written))
        os.replace(path.with_name(".orphan"), path)


CASES = {
    "all get on": Case((_gets_on, _gets_on)),
    "one waits for another that gets on": Case((_waits, _gets_on)),
    "checkpoint": Case((_writes_a_checkpoint, _writes_a_checkpoint)),
    "evaluation": Case((_evaluates,)),
    "first step": Case((_waits,), absent=1, first_step=True),
    "hang": Case((_waits, _hangs, _waits)),
    "blocked": Case((_is_blocked,)),
    "blocked right after a checkpoint": Case((_is_blocked_at_once,)),
    "blocked right after the first step": Case((_is_blocked_in_the_second_step,)),
    "reading": Case((_reads_slowly_then_not_at_all,)),
    "gone, known of an earlier attempt": Case((_waits,), absent=1, files={"logs/stuck/rank-1.json": _left(1, 0), "outcome.json": json.dumps(
        {"cause": "hang", "attempt": 1, "reason": "of attempt 1", "time": 0.0})}),
    "gone after it had answered": Case((_waits,), absent=1, files={"logs/stuck/rank-1.json": _left(2, 7)}),
    "the run folder is lost": Case((_hangs,), files={"lease/3": ""}),
}


def _rank(case: Case, folder: Path, rank: int) -> None:
    (folder / f"ready-{rank}").touch()
    while len(list(folder.glob("ready-*"))) < len(case.acts):
        time.sleep(0.02)
    settings = Resilience(hang_timeout=HANG_S, startup_timeout=60.0)
    nodes = [f"n{rank}" for rank in range(len(case.acts) + case.absent)]
    with Watchdog(folder, rank=rank, nodes=nodes, attempt=2, settings=settings) as dog:
        dog.begin(11)
        if not case.first_step:
            dog.step_ended(12)
        case.acts[rank](dog)


@dataclass(frozen=True)
class Ended:
    folder: Path
    codes: list[int | None]

    @property
    def outcome(self) -> dict[str, Any]:
        return json.loads((self.folder / "outcome.json").read_text())

    @property
    def reason(self) -> str:
        return str(self.outcome["reason"])


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    context, started = multiprocessing.get_context("forkserver"), {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("run")
        for path, text in ({"lease/2": ""} | case.files).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        started[name] = folder, [context.Process(target=_rank, args=(case, folder, rank)) for rank in range(len(case.acts))]
        for process in started[name][1]:
            process.start()
    over = threading.Event()
    path = started["gone, known of an earlier attempt"][0] / "logs" / "stuck" / "rank-1.json"
    threading.Thread(target=_orphan, args=(path, over), daemon=True).start()
    for _, processes in started.values():
        for process in processes:
            process.join(90)
            process.kill()
    over.set()
    return {name: Ended(folder, [process.exitcode for process in processes]) for name, (folder, processes) in started.items()}


@pytest.mark.slow       # the first of these waits for all cases: ten seconds
class TestRealWatchdogs:
    def test_ranks_that_get_on(self, ended: dict[str, Ended]) -> None:
        run = ended["all get on"]
        assert run.codes == [0, 0]
        assert not (run.folder / "outcome.json").exists()
        assert [path.name for path in (run.folder / "logs" / "stuck").iterdir()] == ["call.json"]
        assert not list((run.folder / "logs").glob("stacks-*"))

    def test_a_rank_that_waits_long_for_one_that_gets_on_slowly(self, ended: dict[str, Ended]) -> None:
        run = ended["one waits for another that gets on"]
        assert run.codes == [0, 0]
        assert json.loads((run.folder / "logs" / "stuck" / "call.json").read_text())["rank"] == 0       # it did suspect something

    @pytest.mark.parametrize("what", ["checkpoint", "evaluation", "first step"])
    def test_what_may_take_longer(self, what: str, ended: dict[str, Ended]) -> None:
        assert set(ended[what].codes) == {0}

    def test_the_right_one_is_named_by_all(self, ended: dict[str, Ended]) -> None:
        run = ended["hang"]
        assert run.codes == [75, 75, 75]
        assert (run.outcome["cause"], run.outcome["attempt"], run.outcome["step"]) == ("hang", 2, 12)
        assert run.outcome["stuck"] == [{"rank": 1, "node": "n1"}]
        assert run.reason.startswith("rank 1 on n1 has been in h2d of step 13 for 3 s; the other 2 ranks wait for it")
        assert " in _hangs" in (run.folder / "logs" / "stacks-rank-1.txt").read_text()

    @pytest.mark.parametrize("what", ["blocked", "blocked right after a checkpoint", "blocked right after the first step"])
    def test_one_that_is_blocked_and_alone(self, what: str, ended: dict[str, Ended]) -> None:
        """No Python of it can say so; its watcher does."""
        assert ended[what].codes == [75]
        assert ended[what].outcome["cause"] == "hang"
        assert " in _is_blocked" in (ended[what].folder / "logs" / "stacks-rank-0.txt").read_text()

    def test_reading_that_stands_still(self, ended: dict[str, Ended]) -> None:
        run = ended["reading"]
        assert run.codes == [75]
        assert (run.folder / "stopped").exists()        # not before
        assert "in data_wait of step 13" in run.reason

    @pytest.mark.parametrize("what", ["gone, known of an earlier attempt", "gone after it had answered"])
    def test_a_rank_that_is_gone_although_a_sighting_of_it_lies_there(self, what: str, ended: dict[str, Ended]) -> None:
        assert ended[what].codes == [75]
        assert ended[what].reason.startswith("rank 1 on n1 does not answer")

    def test_an_attempt_that_has_lost_the_run_folder_writes_nothing(self, ended: dict[str, Ended]) -> None:
        run = ended["the run folder is lost"]
        assert run.codes == [75]
        assert not (run.folder / "outcome.json").exists()


def test_it_can_be_left_off(tmp_path: Path) -> None:
    with Watchdog(tmp_path, rank=0, nodes=["n"], attempt=1, settings=Resilience(hang_timeout=None)) as dog:
        dog.changed("compute")
    assert list(tmp_path.iterdir()) == []


BLOCKED = """
import ctypes, json, os, signal, subprocess, sys, time
from pathlib import Path
from vitscale.resilience.backstop import Backstop, Of
folder, how = Path(sys.argv[1]), sys.argv[2]
with open(folder / "stacks", "w") as stacks:
    backstop = Backstop(stacks, Of(str(folder), 0, "n7", 2))
    for _ in range(6):
        backstop.set(1.0, 2.0, "in compute of step 13", 12)
        time.sleep(0.3)
    if how == "closed":
        backstop.close()
    if how == "watcher killed":
        (watcher,) = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        os.kill(int(watcher), signal.SIGKILL)
        os.waitid(os.P_PID, int(watcher), os.WEXITED | os.WNOWAIT)
        backstop.set(1.0, 2.0)
    def hold_the_lock():
        ctypes.PyDLL(None).sleep(12 if how != "closed" else 3)
    hold_the_lock()
"""


@pytest.mark.parametrize(("how", "code"), [("set", 75), ("closed", 0), ("watcher killed", 75)])
def test_a_process_in_which_no_python_runs_any_more(how: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "2").touch()
    done = subprocess.run([sys.executable, "-c", BLOCKED, str(tmp_path), how], timeout=60, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code
    assert ("in hold_the_lock" in (tmp_path / "stacks").read_text()) == (code == 75)
    if how == "set":
        outcome = read_outcome(tmp_path)
        assert (outcome["cause"], outcome["exit_code"], outcome["attempt"], outcome["step"]) == ("hang", 75, 2, 12)
        assert outcome["stuck"] == [{"rank": 0, "node": "n7"}]
        assert outcome["reason"].startswith("rank 0 on n7 has not let any Python run for 2 s, last seen in compute of step 13: ")
        said = outcome["reason"].partition("; lost")[0]
        assert said in done.stderr
        assert said in (tmp_path / "stacks").read_text()


@dataclass(frozen=True)
class Suspended:
    """A process with a watchdog or a backstop that is stopped and continued, alone or with its watcher."""

    act: Callable[[Watchdog], None]
    whole_group: bool
    times: int = 1
    code: int = 0


def _gets_on_after_all(dog: Watchdog) -> None:
    """One phase that is far from too long, with a suspension in it that is."""
    dog.changed("compute")
    (dog.run_folder / "in it").touch()
    for _ in range(int(HANG_S * 2)):
        time.sleep(0.25)
    dog.changed("")


def _is_blocked_and_gets_on(dog: Watchdog) -> None:
    """The same inside a call that lets no Python run: only the backstop looks."""
    dog.changed("compute")
    (dog.run_folder / "in it").touch()
    ctypes.PyDLL(None).usleep(int(HANG_S * 0.5e6))
    dog.changed("")


def _hangs_afterwards(dog: Watchdog) -> None:
    dog.changed("compute")
    (dog.run_folder / "in it").touch()
    time.sleep(60)


def _is_blocked_afterwards(dog: Watchdog) -> None:
    dog.changed("compute")
    (dog.run_folder / "in it").touch()
    libc = ctypes.PyDLL(None)
    while True:             # a stop interrupts a sleep
        libc.usleep(10_000_000)


SUSPENDED = {f"{act.__name__.strip('_')}, {'all' if group else 'alone'}": Suspended(act, group, code=code)
             for act, code in ((_gets_on_after_all, 0), (_is_blocked_and_gets_on, 0), (_hangs_afterwards, 75), (_is_blocked_afterwards, 75))
             for group in (True, False)}


def _in_a_group(case: Suspended, folder: Path) -> None:
    os.setpgid(0, 0)
    _rank(Case((case.act,)), folder, 0)


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All at once: stopped for three times the time after which they would be ended, then continued."""
    context, started = multiprocessing.get_context("forkserver"), {}
    for name, case in SUSPENDED.items():
        folder = tmp_path_factory.mktemp("run")
        (folder / "lease").mkdir()
        (folder / "lease" / "2").touch()
        process = context.Process(target=_in_a_group, args=(case, folder))
        process.start()
        started[name] = folder, process
    send = {name: os.killpg if case.whole_group else os.kill for name, case in SUSPENDED.items()}
    until, running = time.monotonic() + 90, set(started)
    while running:              # each as soon as it is there: while others start it may come to its end
        for name in sorted(running):
            folder, process = started[name]
            if (folder / "in it").exists():
                send[name](process.pid, signal.SIGSTOP)
                running.remove(name)
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(4 * HANG_S + 5)      # the backstop's own time is 5 s longer
    for name, (_, process) in started.items():
        assert process.is_alive()
        send[name](process.pid, signal.SIGCONT)
    for _, process in started.values():
        process.join(90)
        process.kill()
    return {name: Ended(folder, [process.exitcode]) for name, (folder, process) in started.items()}


@pytest.mark.slow       # the first of these waits for all cases: twenty seconds, hardly any of them at work
@pytest.mark.parametrize("name", SUSPENDED)
def test_stopped_and_continued(name: str, continued: dict[str, Ended]) -> None:
    run = continued[name]
    assert run.codes == [SUSPENDED[name].code]
    assert (run.folder / "outcome.json").exists() == (run.codes != [0])
    if run.codes != [0]:
        assert run.outcome["cause"] == "hang"
        assert run.reason.startswith("rank 0 on n0 ")
        assert float(run.reason.partition(" for ")[2].split()[0]) < 3 * HANG_S + 5     # not the time in which it was stopped
