"""A run that was started ten thousand times starts as one that was started ten times: what is read does not grow with what has been."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

from vitscale.checkpoint.lease import Lease
from vitscale.cluster import tries as tries_module
from vitscale.cluster.ended import Ended
from vitscale.cluster.tries import RestartLoop, Tries
from vitscale.resilience.restarts import EARLIER, FILE, Attempt, attempts_of, begin_attempt, restarts_by_cause
from vitscale.runfolder import highest_lease

STARTS = 10_000


def start(folder: Path) -> None:
    """What each start does with the notes of those before it."""
    tries = Tries(folder, 3, {})
    one = tries.begin()
    lease = Lease.take(folder)
    begin_attempt(folder, lease.number, started=time.time(), step=7, images=7, ranks=1, seconds={})
    lease.release()
    tries.end(one, Ended("killed", "as it ended", 75))


def read_s() -> int:
    """Bytes that this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not say what was read")
def test_a_start_reads_no_more_after_ten_thousand(tmp_path: Path) -> None:
    """Those of an older version, which forgot nothing."""
    (tmp_path / "lease").mkdir()
    (tmp_path / "tries").mkdir()
    rows = []
    for number in range(1, STARTS + 1):
        (tmp_path / "lease" / str(number)).write_text("{}")
        (tmp_path / "lease" / f"{number}.released").touch()
        (tmp_path / "tries" / f"{number:06d}.step-{number}.hand.x{number}").write_text("{}")
        (tmp_path / "tries" / f"{number:06d}.end").write_text('{"cause": "preemption", "reason": "x", "exit_code": 75}')
        row = asdict(Attempt(number, number, number, number, number, 8, "preemption" if number > 1 else None, "lost" * 20, 75))
        del row["restarts"]
        rows.append(json.dumps(row))
    (tmp_path / FILE).write_text("\n".join(rows) + "\n")
    (tmp_path / "checkpoints" / f"step-{STARTS + 1:08d}").mkdir(parents=True)
    start(tmp_path)
    kept = [len(list((tmp_path / name).iterdir())) for name in ("lease", "tries")]
    assert max(kept) < 300, kept
    before = read_s()
    start(tmp_path)
    assert read_s() - before < 400_000
    assert highest_lease(tmp_path) == STARTS + 2
    attempts = attempts_of(tmp_path)
    assert (attempts[0].attempt, attempts[-1].attempt) == (1, STARTS + 2)
    assert len(attempts) < 500
    assert len((tmp_path / EARLIER).read_text().splitlines()) + len(attempts) == STARTS + 2
    assert restarts_by_cause(attempts) == {"preemption": STARTS - 1, "killed": 2}


@pytest.mark.parametrize("seed", range(4))
def test_what_is_forgotten_decides_nothing(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders with the same story, one of which forgets soon."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    verdicts = []
    for kept in (0, 10**6):
        monkeypatch.setattr(tries_module, "_KEPT", kept)
        random, folder, furthest, told = Random(seed), tmp_path / str(kept), 0, []
        for number in range(160):
            restart, cause = number % 80, random.choice(["killed", "preemption", "hang"])
            env = {"SLURM_JOB_ID": str(number // 80), **({"SLURM_RESTART_COUNT": str(restart)} if restart else {})}
            tries = Tries(folder, 3, env)
            try:
                one = tries.begin(batch=True)
            except RestartLoop as error:
                told.append((number, str(error).replace(str(folder), "")))
                continue
            if random.random() < 0.7:
                furthest += 5
                (folder / "checkpoints" / f"step-{furthest:08d}").mkdir(parents=True)
            elif random.random() < 0.1:
                for path in (folder / "checkpoints").glob("step-*"):
                    path.rmdir()
            tries.end(one, Ended(cause, "as it ended", 75))
        verdicts.append(told)
    assert verdicts[0] == verdicts[1]
    assert len(list((tmp_path / "0" / "tries").iterdir())) < 100
