"""Ranks that succeed, fail, are killed or orphaned: real processes under the real launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitscale.errors import EXIT_REQUEUE
from vitscale.parallel.launch import rank_command
from vitscale.processes import is_stopped
from vitscale.stopping import STOPPING

# the launcher in a process of its own: it sets signal handlers
LAUNCHER = """
import logging, sys
from pathlib import Path
from vitscale.parallel import launch
logging.basicConfig(format="%(message)s")
launch.GRACE_S, launch.DEAD_GRACE_S = map(float, sys.argv[4:6])
code = launch.launch([sys.executable, "-c", sys.argv[3]], int(sys.argv[2]), Path(sys.argv[1]) / "logs", 12.5).code
assert "torch" not in sys.modules
sys.exit(code)
"""
# what every rank begins with: it leaves its pid, and has nobody wait for it for ever
RANK = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(os.environ["FOLDER"])
def leave(name, text=""):
    (folder / f".{name}").write_text(str(text))
    (folder / f".{name}").rename(folder / name)
leave(f"pid-{rank}", os.getpid())
signal.alarm(60)
"""


class Launched:
    def __init__(self, folder: Path, program: str, ranks: int, grace_s: float, dead_grace_s: float) -> None:
        self.folder, self.ranks = folder, ranks
        command = [sys.executable, "-c", LAUNCHER, str(folder), str(ranks), RANK + program, str(grace_s), str(dead_grace_s)]
        # a group of its own, as a shell makes one: in the tests' own, which may be an orphaned one, Ctrl-Z stops nobody
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "FOLDER": str(folder)}, process_group=0)

    def await_(self, *names: str) -> None:
        """Until these files are there."""
        wait_until(lambda: all((self.folder / name).exists() for name in names), f"{names} of {os.listdir(self.folder)}")

    def pids(self) -> list[int]:
        self.await_(*(f"pid-{rank}" for rank in range(self.ranks)))
        return [int((self.folder / f"pid-{rank}").read_text()) for rank in range(self.ranks)]

    def end(self) -> tuple[int, str, str]:
        """-> exit code, what rank 0 printed, what the launcher logged"""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def launched(tmp_path):
    all_: list[Launched] = []

    def start(program: str, ranks: int = 2, grace_s: float = 60.0, dead_grace_s: float = 0.3) -> Launched:
        all_.append(Launched(tmp_path, program, ranks, grace_s, dead_grace_s))
        return all_[-1]

    yield start
    for one in all_:
        one.process.kill()
        one.process.wait()
    for path in tmp_path.glob("pid-*"):
        if lives(int(path.read_text())):
            os.kill(int(path.read_text()), signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, what: str = "", timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.02)


def test_all_succeed(launched, tmp_path):
    one = launched("""
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
started, store = os.environ["VITSCALE_STARTED"].split()[0], Path(os.environ["VITSCALE_STORE"])
print(*(os.environ[name] for name in names), started, store.parent.is_dir(), flush=True)
print("loud", file=sys.stderr)
""", ranks=3)
    code, out, err = one.end()
    assert code == 0
    assert out == "0 0 3 3 127.0.0.1 12.5 True\n"
    assert err == "loud\n"
    for rank in (1, 2):
        printed = (tmp_path / "logs" / f"rank-{rank}.out").read_text().splitlines()
        assert sorted(printed) == [f"{rank} {rank} 3 3 127.0.0.1 12.5 True", "loud"]
    assert not (tmp_path / "logs" / "rank-0.out").exists()


def test_an_attempt_adds_to_the_output_of_the_one_before(launched, tmp_path):
    for _ in range(2):
        assert launched("print('here')").end()[0] == 0
    assert (tmp_path / "logs" / "rank-1.out").read_text() == "here\nhere\n"


def test_ranks_share_the_cores_unless_told(launched, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launched("print(os.environ['OMP_NUM_THREADS'])").end()[1] == f"{max(1, len(os.sched_getaffinity(0)) // 2)}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launched("print(os.environ['OMP_NUM_THREADS'])").end()[1] == "7\n"


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("code", [2, 3, 1])
def test_one_fails_and_the_others_are_ended(launched, bad, code):
    one = launched(f"sys.exit({code}) if rank == {bad} else time.sleep(60)")
    pids = one.pids()
    begin = time.monotonic()
    assert one.end()[0] == (3 if code == 1 else code)       # 1 is Python's own for a traceback
    assert time.monotonic() - begin < 5
    assert not any(map(lives, pids))


def test_the_last_words_of_the_cause_are_shown(launched):
    """Rank 1 says what is wrong; rank 0, which ends first, only misses it."""
    one = launched(f"""
if rank == 0:
    sys.exit({EXIT_REQUEUE})
time.sleep(0.3)
print("vitscale: cats.tar is wrong", file=sys.stderr)
sys.exit(2)
""")
    code, _, err = one.end()
    assert code == 2
    assert "rank 1 ended with code 2; its last words:\nvitscale: cats.tar is wrong" in err


def test_one_is_killed_and_the_others_are_ended(launched):
    one = launched("time.sleep(60)", ranks=3)
    pids = one.pids()
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    code, _, err = one.end()
    assert code == EXIT_REQUEUE
    assert time.monotonic() - begin < 5
    assert "rank 1 was ended by SIGKILL" in err
    assert not any(map(lives, pids))


def test_a_killed_rank_is_the_cause_of_what_the_others_report(launched):
    """Rank 0 fails the moment rank 1 dies, and both are found dead at once: the verdict is that of the killed one."""
    one = launched("""
if rank == 1:
    time.sleep(60)
while not (folder / "go").exists():
    time.sleep(0.01)
sys.exit(3)
""")
    pids = one.pids()
    os.kill(one.process.pid, signal.SIGSTOP)        # so that the launcher cannot look in between
    os.kill(pids[1], signal.SIGKILL)
    (one.folder / "go").touch()
    wait_until(lambda: not any(map(lives, pids)))
    os.kill(one.process.pid, signal.SIGCONT)
    code, _, err = one.end()
    assert code == EXIT_REQUEUE
    assert "rank 1 was ended by SIGKILL" in err


def test_a_stop_in_good_order_gives_the_others_time(launched):
    """A rank that asks for a requeue is not yet a reason to kill those that still write the checkpoint."""
    one = launched(f"""
if rank == 0:
    sys.exit({EXIT_REQUEUE})
time.sleep(1)
leave("written")
sys.exit({EXIT_REQUEUE})
""")
    assert one.end()[0] == EXIT_REQUEUE
    assert (one.folder / "written").exists()


def test_but_not_for_ever(launched):
    one = launched(f"sys.exit({EXIT_REQUEUE}) if rank == 0 else time.sleep(60)", grace_s=0.5)
    pids = one.pids()
    assert one.end()[0] == EXIT_REQUEUE
    assert not any(map(lives, pids))


def test_signals_are_passed_on(launched):
    one = launched(f"""
from vitscale.stopping import STOPPING
def stop(number, frame):
    leave(f"got-{{rank}}-{{number}}")
    if number == signal.SIGTERM:
        sys.exit({EXIT_REQUEUE})
for number in STOPPING:
    signal.signal(number, stop)
leave(f"ready-{{rank}}")
while True:
    time.sleep(1)
""")
    one.await_("ready-0", "ready-1")
    for number in sorted(STOPPING, key=lambda number: number == signal.SIGTERM):
        one.process.send_signal(number)
        one.await_(f"got-0-{int(number)}", f"got-1-{int(number)}")
    assert one.end()[0] == EXIT_REQUEUE


STOPPABLE = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
leave(f"child-{rank}", child.pid)
while not (folder / "end").exists():
    time.sleep(0.02)
child.kill()
"""


def test_ranks_and_what_they_started_stop_and_go_on_with_the_launcher(launched):
    """Ctrl-Z and fg."""
    two = launched(STOPPABLE, ranks=2)
    two.await_("child-0", "child-1")
    everybody = [two.process.pid, *two.pids(), *(int((two.folder / f"child-{rank}").read_text()) for rank in (0, 1))]
    for _ in range(2):
        two.process.send_signal(signal.SIGTSTP)
        wait_until(lambda: all(is_stopped(pid) for pid in everybody), "all stopped", 60)
        two.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not any(is_stopped(pid) for pid in everybody), "none stopped", 60)
    (two.folder / "end").touch()
    assert two.end()[0] == 0


def test_a_launcher_that_is_killed_while_all_are_stopped_leaves_no_orphans(launched):
    two = launched("from vitscale.parallel.launch import hold_lifeline\nhold_lifeline()\nleave(f'held-{rank}')\ntime.sleep(60)", ranks=2)
    two.await_("held-0", "held-1")
    pids = two.pids()
    two.process.send_signal(signal.SIGTSTP)
    wait_until(lambda: all(is_stopped(pid) for pid in [two.process.pid, *pids]), "all stopped", 60)
    two.process.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids), "the ranks have ended", 60)


def test_a_hangup_that_nohup_ignores_is_ignored_in_the_ranks_too(launched):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        one = launched("leave(f'got-{rank}', signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)\ntime.sleep(60)")
    finally:
        signal.signal(signal.SIGHUP, before)
    one.await_("got-0", "got-1")
    one.process.send_signal(signal.SIGHUP)
    assert [(one.folder / f"got-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    assert one.process.poll() is None
    one.process.terminate()
    one.end()


def test_ranks_that_ignore_the_end_are_killed(launched):
    one = launched("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
leave(f"ready-{rank}")
if rank == 0:
    while not (folder / "ready-1").exists():
        time.sleep(0.01)
    sys.exit(2)
time.sleep(60)
""")
    pids = one.pids()
    assert one.end()[0] == 2
    assert not any(map(lives, pids))


def test_a_killed_launcher_leaves_no_orphans(launched):
    one = launched("""
from vitscale.parallel.launch import hold_lifeline
hold_lifeline()
assert "VITSCALE_LIFELINE" not in os.environ        # what a rank starts must not take it for its own
leave(f"ready-{rank}")
while True:
    pass        # busy in the main thread
""", ranks=3)
    pids = one.pids()
    one.await_("ready-0", "ready-1", "ready-2")
    time.sleep(0.2)
    assert all(map(lives, pids))        # the lifeline holds while the launcher lives
    one.process.kill()
    one.process.wait()
    wait_until(lambda: not any(map(lives, pids)), "orphans live on", timeout_s=5)


def test_a_rank_that_was_slow_to_take_the_lifeline_ends_too(launched):
    one = launched("""
leave(f"ready-{rank}")
while not (folder / "go").exists():
    time.sleep(0.01)
from vitscale.parallel.launch import hold_lifeline
hold_lifeline()
time.sleep(60)
""")
    pids = one.pids()
    one.await_("ready-0", "ready-1")
    one.process.kill()
    one.process.wait()
    (one.folder / "go").touch()
    wait_until(lambda: not any(map(lives, pids)), "orphans live on", timeout_s=5)


def test_without_a_launcher_there_is_no_lifeline():
    program = "from vitscale.parallel.launch import hold_lifeline; import threading; hold_lifeline(); print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "1\n"


def test_a_rank_is_this_program():
    done = subprocess.run([*rank_command(["recipes", "--help"])], capture_output=True, text=True)
    assert done.returncode == 0
    assert "check recipes" in done.stdout.lower()
