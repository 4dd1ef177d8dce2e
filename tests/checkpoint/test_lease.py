"""One attempt at a time holds a run folder: real processes hold, die, race and come back as orphans."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from vitscale.checkpoint import lease as lease_module
from vitscale.checkpoint.lease import STALE_S, Lease, LeaseLost, _self_description, _slurm_has_ended, refuse_if_held
from vitscale.checkpoint.store import CheckpointWriter, RunFacts, checkpoints_in
from vitscale.errors import CheckpointError
from vitscale.recipe import Checkpoint, Duration

HOLDER = "import sys, time; from pathlib import Path; from vitscale.checkpoint.lease import Lease\n"
HOLD = HOLDER + "lease = Lease.take(Path(sys.argv[1])); print(lease.number, flush=True); time.sleep(60)"
RELEASE = HOLDER + "lease = Lease.take(Path(sys.argv[1])); print(lease.number); lease.release()"
# two of these start at one agreed moment; the winner holds on until both have tried
RACE = HOLDER + """
from vitscale.errors import CheckpointError
while time.time() < float(sys.argv[2]):
    pass
try:
    print(Lease.take(Path(sys.argv[1])).number, flush=True)
except CheckpointError:
    print("refused", flush=True)
sys.stdin.read()
"""


def start(program: str, *args: object, **kwargs: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", program, *map(str, args)], stdout=subprocess.PIPE, text=True, **kwargs)


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path as attempt 1."""
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


def held_by(run_folder: Path, age_s: float = 0.0, number: int = 1, **changes: object) -> Path:
    """A lease of ours with other facts in it, last heard of `age_s` ago."""
    path = run_folder / "lease" / str(number)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(_self_description() | changes))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_second_attempt_refuses_while_the_first_lives(tmp_path, holder):
    for attempt in (Lease.take, refuse_if_held):
        with pytest.raises(CheckpointError) as refusal:
            attempt(tmp_path)
        message = str(refusal.value)
        assert str(tmp_path) in message
        assert f"process {holder.pid}" in message
        assert socket.gethostname() in message
        assert "name=" in message       # what to do about it
        assert refusal.value.exit_code == 2
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["1"]


def test_a_killed_holder_is_followed_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    begin = time.monotonic()
    refuse_if_held(tmp_path)
    lease = Lease.take(tmp_path)
    assert time.monotonic() - begin < 1
    assert lease.number == 2
    lease.release()


def test_a_killed_holder_that_nobody_has_waited_for_is_followed_too(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)        # dead, and still a zombie
    lease = Lease.take(tmp_path)
    assert lease.number == 2
    lease.release()


def test_a_process_that_got_the_number_of_the_dead_holder_does_not_count(tmp_path):
    held_by(tmp_path, start="1")        # our own pid lives, but it started at another time
    lease = Lease.take(tmp_path)
    assert lease.number == 2
    lease.release()


def test_numbers_rise_over_releases(tmp_path):
    for number in (1, 2, 3):
        refuse_if_held(tmp_path)
        lease = Lease.take(tmp_path)
        assert lease.number == number
        lease.check()
        lease.release()
    assert subprocess.run([sys.executable, "-c", RELEASE, str(tmp_path)], capture_output=True, text=True).stdout == "4\n"
    assert Lease.take(tmp_path).number == 5


def test_ten_comes_after_nine(tmp_path):
    held_by(tmp_path, number=9, start="1")
    held_by(tmp_path, number=10, start="1")
    assert Lease.take(tmp_path).number == 11


@pytest.mark.slow       # each round waits for a moment agreed upon
def test_two_that_race_never_both_win(tmp_path):
    for round_ in range(5):
        folder = tmp_path / str(round_)
        at = time.time() + 0.6
        racers = [start(RACE, folder, at, stdin=subprocess.PIPE) for _ in range(3)]
        answers = sorted(racer.stdout.readline().strip() for racer in racers)
        for racer in racers:
            racer.kill()
            racer.wait()
        assert answers == ["1", "refused", "refused"]
        lease = Lease.take(folder)      # the winner has ended by now
        assert lease.number == 2
        lease.release()
        assert [path.name for path in folder.glob("lease/.*")] == []


ELSEWHERE = {"host": "another", "pid": 2**22 + 1}        # there is no such process here


@pytest.fixture
def quick(monkeypatch):
    """Seconds become tens of milliseconds, but for the skews."""
    for name, seconds in {"STALE_S": 1.5, "WATCH_S": 0.5}.items():
        monkeypatch.setattr(lease_module, name, seconds)


@contextlib.contextmanager
def beating(path: Path, skew_s: float, every_s: float = 0.1):
    """The heart of a holder whose clock is `skew_s` ahead of ours."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every_s):
            os.utime(path, (time.time() + skew_s,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"boot": "another"}], ids=["host", "boot"])
@pytest.mark.parametrize("skew_s", [0.0, 3600.0, -3600.0, 86400.0, -1.0])
def test_a_holder_elsewhere_lives_while_its_heart_beats_whatever_the_clocks_say(tmp_path, quick, elsewhere, skew_s):
    path = held_by(tmp_path, -skew_s, pid=os.getpid(), **elsewhere)
    for attempt in (refuse_if_held, Lease.take):
        with beating(path, skew_s), pytest.raises(CheckpointError) as refusal:
            attempt(tmp_path)
        assert refusal.value.exit_code == 2
        assert re.search(r"last heard of (\d+ s ago|just now \(its clock is \d+ s ahead of this one's\))", str(refusal.value))
        assert ("ahead" in str(refusal.value)) == (skew_s > 0)
        assert not list((tmp_path / "lease").glob("*.silent"))


@pytest.mark.parametrize("skew_s", [0.0, 3600.0, -3600.0, -86400.0])
def test_a_holder_elsewhere_whose_heart_has_stopped_is_followed(tmp_path, quick, skew_s, caplog):
    """Whatever its stamp says, after a wait that is said; only once, though the launcher looks and then its rank."""
    held_by(tmp_path, -skew_s, **ELSEWHERE)
    begin = time.monotonic()
    refuse_if_held(tmp_path)
    assert time.monotonic() - begin > 0.4
    assert "for a sign of life" in caplog.text
    assert "process 4194305 on another" in caplog.text
    caplog.clear()
    lease = Lease.take(tmp_path)
    assert lease.number == 2
    assert caplog.text == ""        # it has not waited again
    lease.release()


def test_a_stop_of_the_one_who_watches_does_not_count(tmp_path):
    """It is stopped for far longer than a holder may be silent, in which no beat was missed."""
    path = held_by(tmp_path, **ELSEWHERE)
    watcher = start(HOLDER.replace("import sys", "import sys, vitscale.checkpoint.lease as module\nmodule.STALE_S = module.WATCH_S = 3.0\n"
                                   "print('watching', flush=True)\nimport sys") + """
from vitscale.errors import CheckpointError
try:
    print(Lease.take(Path(sys.argv[1])).number, flush=True)
except CheckpointError:
    print("refused", flush=True)
""", tmp_path)
    assert watcher.stdout.readline() == "watching\n"
    time.sleep(0.5)
    watcher.send_signal(signal.SIGSTOP)
    time.sleep(4)
    watcher.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    os.utime(path, (time.time() + 5,) * 2)      # it was stopped too, and beats again
    assert watcher.communicate(timeout=30)[0] == "refused\n"


def test_a_holder_here_that_lives_is_not_taken_for_stale(tmp_path):
    held_by(tmp_path, 10 * STALE_S)     # stopped in a debugger, say
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} "):
        Lease.take(tmp_path)


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)
    lease = Lease.take(tmp_path)
    path = tmp_path / "lease" / "1"
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    lease.release()
    os.utime(path, (0, 0))
    time.sleep(0.1)
    assert path.stat().st_mtime == 0


def test_a_failing_filesystem_does_not_stop_the_heart(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)
    lease = Lease.take(tmp_path)
    folder, away = tmp_path / "lease", tmp_path / "away"
    folder.rename(away)
    folder.write_text("")       # a file for a folder: an error (ENOTDIR) that passes
    time.sleep(0.1)
    folder.unlink()
    os.utime(away / "1", (0, 0))
    away.rename(folder)
    deadline = time.monotonic() + 2
    while (folder / "1").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (folder / "1").stat().st_mtime > 0
    lease.release()


TORN = [b"", b'{"host": "x", "pi', b"\x00\xff\xfe", b"null", b"[1]", b"{}", b'{"pid": "x", "start": "1"}']


@pytest.mark.parametrize("content", TORN, ids=repr)
def test_a_torn_lease_holds_nothing(tmp_path, content):
    held_by(tmp_path).write_bytes(content)
    refuse_if_held(tmp_path)
    assert Lease.take(tmp_path).number == 2


def test_nothing_holds_a_folder_that_is_not_there(tmp_path):
    refuse_if_held(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_slurm_is_asked_only_about_jobs(monkeypatch):
    assert not _slurm_has_ended({"job": None, "pid": 1})
    assert not _slurm_has_ended({})


def test_without_slurm_a_job_is_believed_to_run_while_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))       # no squeue to be asked
    assert not _slurm_has_ended({"job": "17", "restart": "0"})
    path = held_by(tmp_path, host="another", node="n7", job="17")
    with beating(path, 0.0), pytest.raises(CheckpointError, match=r"on n7, .*SLURM job 17"):
        Lease.take(tmp_path)


def test_a_restart_of_a_job_follows_its_earlier_attempt_at_once(tmp_path, monkeypatch):
    """Although the old one's process lives (slurmd was killed) and slurmctld cannot be asked; never the other way round."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    held_by(tmp_path, job="17", restart="1")
    for ours in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", ours)
        with pytest.raises(CheckpointError, match="SLURM job 17"):
            Lease.take(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert Lease.take(tmp_path).number == 2


def test_a_node_keeps_its_slurm_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    lease = Lease.take(tmp_path)
    with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on n3, .*SLURM job 4711"):
        refuse_if_held(tmp_path)
    lease.release()


def facts(step: int) -> RunFacts:
    return RunFacts(step, {}, {}, "ddp", 1)


def test_an_orphan_neither_publishes_nor_deletes(tmp_path, quick):
    folder = tmp_path / "checkpoints"
    old = Lease.take(tmp_path)
    settings = Checkpoint(every=Duration(1, "steps"), keep=1)
    orphan = CheckpointWriter(folder, rank=0, lease=old, attempt=1, settings=settings)
    orphan.save({"model.w": torch.ones(3)}, facts(1))
    orphan.wait()
    held_by(tmp_path, 2.0, host="another")      # as another node sees it once this one is cut off
    new = Lease.take(tmp_path)
    with pytest.raises(LeaseLost, match="attempt 1 no longer holds this run folder, attempt 2 does"):
        old.check()
    new.check()
    successor = CheckpointWriter(folder, rank=0, lease=new, attempt=2, settings=settings)
    draft = folder / ".step-00000009.2"
    draft.mkdir()       # of the attempt that holds the folder now

    orphan.save({"model.w": torch.zeros(3)}, facts(2))
    with pytest.raises(CheckpointError, match="no longer holds"):
        orphan.wait()
    # even when it loses the folder while it writes
    shutil.copytree(folder / "step-00000001", folder / ".step-00000002.1")
    with pytest.raises(LeaseLost):
        orphan._publish(folder / ".step-00000002.1", facts(2), replace=False)
    assert [path.name for path in checkpoints_in(folder)] == ["step-00000001"]
    assert draft.exists()

    successor.save({"model.w": torch.zeros(3)}, facts(3))
    successor.close()
    assert [path.name for path in checkpoints_in(folder)] == ["step-00000003"]
    shutil.copytree(folder / "step-00000003", folder / "step-00000004")
    with pytest.raises(LeaseLost):
        orphan._retain(facts(4))
    assert len(checkpoints_in(folder)) == 2
    orphan.close()
    old.release()       # of no consequence
    with pytest.raises(CheckpointError, match="going on"):
        refuse_if_held(tmp_path)
    new.release()
