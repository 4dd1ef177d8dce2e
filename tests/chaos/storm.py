"""A storm over one run on a real SLURM: in each round one fault at a random moment, until the run is done or truly refused.

    python tests/chaos/storm.py --seed 7 --rounds 10

The run starts on a cluster of its own (tests/cluster/slurm.py) by slurm/vit_huge.sh as a user submits it.  At its end it must hold the
same samples and losses as an undisturbed one, and all its accounts must agree (tests/accounts.py).  Prints a table: round, fault, when,
what the outcome says, attempts, steps lost.  Exit code 1 if anything is not as it should be, or does not end.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("cluster", "chaos", "."))

import weather
from accounts import one_story
from disks import small_disk
from faults import Fault, faults
from jobs import TINY
from running import Run, start

from slurm import ENDED, REPOSITORY, Cluster, missing
from vitscale.runfolder import highest_lease

HANG_S = 10             # resilience.hang_timeout: a rank that stands still for longer is ended
ROUND_S = 420           # in which a round must lead to two more steps, or to the end of the job
SLOW_S = 0.3            # of each step, so that there are moments to be hit
GOES_ON = 8             # steps that an attempt makes after a fault if the fault has not ended it
QUIET_S = 900           # for the undisturbed run
NOBODY = ", nobody there"
MEGABYTES = 64          # of the disk that the run folder lies on
OVERRIDES = [*TINY, "checkpoint.every=5 steps", f"resilience.hang_timeout={HANG_S}", "optim.schedule=constant"]


@dataclass
class Storm:
    """One run, the cluster that it runs on, and what has happened to it."""

    cluster: Cluster
    place: Path                 # faults and weather of its processes
    yard: Path                  # submitted from
    disk: Path
    steps: int
    draw: random.Random
    name: str
    job: str = ""
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def run(self) -> Run:
        return Run(self.disk / self.name)

    @property
    def state(self) -> dict[str, str]:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            return self.cluster.job(self.job)
        return {"JobState": "UNKNOWN", "Restarts": "0"}       # slurmctld is away

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.run.rows() if "loss" in row), default=0)

    @property
    def log(self) -> str:
        logs = sorted(self.yard.glob("vit_huge-*.log"), key=lambda path: path.stat().st_mtime)
        return "".join(path.read_text(errors="replace") for path in logs)

    def submit(self) -> None:
        path = f"PYTHONPATH={self.place / 'faults'}:{REPOSITORY}"
        self.job = self.cluster.sbatch(
            self.yard, "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", f"--export=ALL,LAST_RANK_S=15,{path}", "slurm/vit_huge.sh",
            *OVERRIDES, f"name={self.name}", f"runs_dir={self.disk}", f"duration={self.steps} steps")

    def pids(self, rank: int | None = None) -> list[int]:
        """Of the ranks at work now."""
        ranks = (0, 1) if rank is None else (rank,)
        found = []
        for one in ranks:
            with contextlib.suppress(IndexError, AssertionError, KeyError):
                found.append(self.cluster.rank(self.job, one))
        return found

    def send(self, number: int, rank: int | None = None) -> str:
        """To a rank, or both; returns NOBODY if none was there."""
        pids = self.pids(rank)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return "" if pids else NOBODY


def kill_rank(storm: Storm) -> str:
    rank = storm.draw.randrange(2)
    return f"rank {rank}{storm.send(signal.SIGKILL, rank)}"


def kill_launcher(storm: Storm) -> str:
    """srun, which stands between the batch script and the ranks."""
    for pid in storm.cluster.processes(f"SLURM_JOB_ID={storm.job}"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "srun":
                os.kill(pid, signal.SIGKILL)
    return "srun"


def kill_step_daemon(storm: Storm) -> str:
    for pid in storm.pids(storm.draw.randrange(2)):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        with contextlib.suppress(ProcessLookupError):
            os.kill(parent, signal.SIGKILL)
    return "slurmstepd"


def signal_ranks(storm: Storm) -> str:
    number = storm.draw.choice([signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1])
    rank = storm.draw.choice([None, 0, 1])
    return f"{number.name} to {'both' if rank is None else f'rank {rank}'}{storm.send(number, rank)}"


def signal_job(storm: Storm) -> str:
    storm.cluster.command("scancel", "--batch", "--signal=USR2", storm.job, check=False)
    return "USR2 to the script"


def stop_and_continue(storm: Storm, seconds: float, rank: int | None) -> None:
    pids = storm.pids(rank)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def stop_briefly(storm: Storm) -> str:
    stop_and_continue(storm, 3, storm.draw.choice([None, 0, 1]))
    return "3 s"


def stop_all_for_long(storm: Storm) -> str:
    stop_and_continue(storm, 2.5 * HANG_S, None)
    return f"{2.5 * HANG_S:.0f} s, both ranks"


def stop_one_for_long(storm: Storm) -> str:
    stop_and_continue(storm, 2.5 * HANG_S, rank := storm.draw.randrange(2))
    return f"{2.5 * HANG_S:.0f} s, rank {rank}"


def suspend(storm: Storm) -> str:
    storm.cluster.command("scontrol", "suspend", storm.job, check=False)
    time.sleep(2.5 * HANG_S)
    storm.cluster.command("scontrol", "resume", storm.job, check=False)
    return f"{2.5 * HANG_S:.0f} s"


def fill_disk(storm: Storm) -> str:
    ballast = storm.disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    seconds = storm.draw.choice([2, 6])
    time.sleep(seconds)
    ballast.unlink()
    return f"{seconds} s"


def fail_files(storm: Storm) -> str:
    with weather.failing(storm.place):
        time.sleep(2)
    return "2 s"


def shift_clock(storm: Storm) -> str:
    off_by = storm.draw.choice([-3600, 3600, 0])
    weather.set_clock(storm.place, off_by)
    return f"{off_by:+d} s from now on"


def lose_controller(storm: Storm) -> str:
    """And, half of the time, a rank dies meanwhile."""
    killed, also = storm.draw.random() < 0.5, storm.draw.random() < 0.5
    with storm.cluster.without_controller(killed):
        if also:
            for pid in storm.cluster.processes(f"SLURM_JOB_ID={storm.job}", "SLURM_STEP_ID=0", "SLURM_PROCID=1")[-1:]:
                os.kill(pid, signal.SIGKILL)
        time.sleep(25)
    return f"{'killed' if killed else 'stopped'} for 25 s{', and rank 1 killed' if also else ''}"


def requeue(storm: Storm) -> str:
    storm.cluster.command("scontrol", "requeue", storm.job, check=False)
    return ""


def lose_node(storm: Storm) -> str:
    """Down, or drained, which lets jobs end; it comes back later."""
    state = storm.draw.choice(["down", "drain"])
    nodes = storm.cluster.command("scontrol", "show", "hostnames", storm.state.get("NodeList", "n1"), check=False).stdout.split()
    node = storm.draw.choice([name for name in nodes if name.startswith("n")] or ["n1"])
    storm.cluster.command("scontrol", "update", f"nodename={node}", f"state={state}", "reason=storm", check=False)
    time.sleep(5)
    storm.cluster.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    return f"{node} {state}"


def lose_slurmd(storm: Storm) -> str:
    node = storm.draw.choice(["n1", "n2"])
    storm.cluster.kill_node(node)
    time.sleep(storm.draw.choice([2, 12]))      # SlurmdTimeout is 6 s
    storm.cluster.start_node(node)
    return f"slurmd of {node}"


# Each with the causes that the end of an attempt may then have, if one ends.  A signal kills a rank that does not listen yet.
FAULTS: dict[str, tuple[Callable[[Storm], str], tuple[str, ...]]] = {
    "kill a rank": (kill_rank, ("killed",)), "kill srun": (kill_launcher, ("killed", "requeued")),
    "kill a step daemon": (kill_step_daemon, ("hang", "killed")), "signal": (signal_ranks, ("signal", "killed")),
    "USR2": (signal_job, ("signal",)),
    "stop briefly": (stop_briefly, ()), "stop all for long": (stop_all_for_long, ()), "stop one for long": (stop_one_for_long, ("hang",)),
    "suspend": (suspend, ()), "full disk": (fill_disk, ("disk",)), "EIO": (fail_files, ()), "clock": (shift_clock, ()),
    "no slurmctld": (lose_controller, ("killed",)), "requeue": (requeue, ("requeued",)),
    "node": (lose_node, ("node_failure",)), "slurmd": (lose_slurmd, ("node_failure", "requeued", "killed", "cancelled")),
}


def round_of(storm: Storm, number: int, fault: str) -> bool:
    """One fault at a random moment, and what follows; whether the run goes on."""
    if not await_moment(storm):
        return False
    attempts, step, state = highest_lease(storm.run.folder), storm.step, storm.state.get("JobState")
    said_before = outcome_of(storm)
    act, causes = FAULTS[fault]
    began = time.monotonic()
    detail = act(storm)
    print(f"{number}: {fault} {detail}, step {step}", flush=True)
    goes_on, then = await_effect(storm, attempts, step, ends=bool(causes) and NOBODY not in detail)
    outcome, ended = outcome_of(storm), ""
    if outcome and outcome != said_before:
        ended = f"{outcome['state']} ({outcome['cause']}): {outcome['reason']}"
        if causes and outcome["exit_code"] == 75 and outcome["cause"] not in causes:
            storm.wrong.append(f"round {number}: after {fault} the cause is {outcome['cause']}: {outcome['reason']}")
        if fault == "kill a rank" and outcome["cause"] == "killed" and f"{detail} " not in outcome["reason"]:
            storm.wrong.append(f"round {number}: {detail} was killed, and the outcome does not name it: {outcome['reason']}")
    lost = outcome.get("lost_steps", "") if ended else ""
    storm.rows.append((number, f"{fault} {detail}".strip(), f"step {step}, {state}", ended or "goes on", attempts,
                       highest_lease(storm.run.folder), lost, f"{time.monotonic() - began:.0f} s", then))
    print(" | ".join(map(str, storm.rows[-1])), flush=True)
    return goes_on


def outcome_of(storm: Storm) -> dict[str, Any]:
    try:
        return storm.run.outcome
    except (OSError, ValueError):
        return {}


def await_moment(storm: Storm) -> bool:
    """A few steps further on, or a few seconds into a start; False if the run has ended before."""
    steps, seconds, soon = storm.draw.randrange(1, 6), storm.draw.uniform(0, 10), storm.draw.random() < 0.25
    goal, deadline, running_since = storm.step + steps, time.monotonic() + ROUND_S, None
    while time.monotonic() < deadline:
        known = storm.state["JobState"]
        if known in ENDED and known not in ("NODE_FAIL", "PREEMPTED"):
            return False
        running_since = (running_since or time.monotonic()) if known == "RUNNING" else None
        if storm.step >= goal or (soon and running_since is not None and time.monotonic() - running_since > seconds):
            return True
        time.sleep(0.3)
    storm.wrong.append(f"no step for {ROUND_S} s before a round: endless\n{words(storm)}")
    return False


def await_effect(storm: Storm, attempts: int, step: int, ends: bool) -> tuple[bool, str]:
    """Until two more steps are made than ever before, by the next attempt if the fault `ends` one, or the job has ended.

    -> whether it goes on, what followed in a word
    """
    began, ended, had = time.monotonic(), 0, storm.step
    while time.monotonic() - began < ROUND_S:
        known = storm.state["JobState"]
        ended = ended + 1 if known in ENDED else 0        # for a moment also a job that will be requeued
        if ended > 10:
            return False, known
        newer = max((row["attempt"] for row in storm.run.rows() if "loss" in row), default=0) > attempts
        done = max(step, had) + (GOES_ON if ends and not newer else 2)
        if storm.step >= min(done, storm.steps) and time.monotonic() - began > 3 and (newer or known == "RUNNING"):
            return True, "steps"
        time.sleep(0.3)
    storm.wrong.append(f"no two steps within {ROUND_S} s: endless\n{words(storm)}")
    return False, "endless"


def words(storm: Storm) -> str:
    parts = [storm.log[-4000:]]
    for path in sorted((storm.run.folder / "logs").glob("rank-*")):
        parts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}")
    return "\n".join(parts)


def check_end(storm: Storm, reference: Run) -> str:
    """What became of the run, held against the undisturbed one and against itself."""
    deadline, ended = time.monotonic() + ROUND_S, 0
    while ended <= 10 and time.monotonic() < deadline:
        ended = ended + 1 if storm.state["JobState"] in ENDED else 0
        time.sleep(0.3)
    state, outcome = storm.state["JobState"], outcome_of(storm)
    if ended <= 10:
        storm.wrong.append(f"the job is {state} and does not end\n{words(storm)}")
    try:
        one_story(storm.run.folder, log=storm.log)
    except Exception as error:
        storm.wrong.append(f"the accounts differ: {error}")
    try:
        whole = storm.run.samples[:storm.run.samples.rfind("\n") + 1]
        assert reference.samples.startswith(whole), "other samples than in the undisturbed run"
        for step, loss in storm.run.losses.items():
            quiet = reference.losses[step]      # None: poisoned, in both
            same = loss == quiet or abs(loss - quiet) <= (1e-5 if step <= 30 else 5e-4) * abs(quiet)
            assert same, f"step {step}: loss {loss}, undisturbed {quiet}"
        if state == "COMPLETED":
            assert list(storm.run.losses) == list(range(1, storm.steps + 1)), "not every step was made"
            assert outcome.get("state") == "done", outcome
        else:
            assert outcome.get("exit_code") in (2, 3), f"job {state}, but the outcome says {outcome}"
    except (AssertionError, OSError, KeyError, TypeError) as error:
        storm.wrong.append(f"{type(error).__name__}: {error}")
    return f"{storm.name}: job {state} after {storm.state['Restarts']} restarts, {outcome.get('state')}: {outcome.get('reason')}"


def prepare(folder: Path, steps: int, poisoned: list[int]) -> tuple[Path, Path, Run]:
    """(place of faults, yard, the undisturbed run): whose gradients are as poisoned as the storm's."""
    from vitscale.data import open_index, pack_digits

    yard, quiet = folder / "yard", folder / "quiet"
    for name in (yard, quiet):
        name.mkdir()
    pack_digits(yard / "data" / "digits")
    for split in ("train", "val"):
        open_index((str(yard / "data" / "digits" / f"{split}-*.tar"),))
    (quiet / "data").symlink_to(yard / "data")
    for name in ("slurm", "launch", "recipes"):
        (yard / name).symlink_to(REPOSITORY / name)
    nan = [Fault("nan", step=step) for step in poisoned]
    process = start(quiet, *OVERRIDES, "name=quiet", f"duration={steps} steps", recipe="vit_huge", environment=faults(quiet, *nan))
    output, _ = process.communicate(timeout=QUIET_S)
    assert process.returncode == 0, output
    return quiet, yard, Run(quiet / "runs" / "quiet")


def storm_over(seed: int, rounds: int, steps: int, folder: Path, wanted: Sequence[str] = ()) -> list[str]:
    """All rounds, over one run after another if need be, of the `wanted` faults or all; returns what was wrong."""
    draw = random.Random(seed)
    among = sorted(wanted or FAULTS)
    order = [draw.sample(among, len(among)) for _ in range(rounds // len(among) + 1)]
    kinds = [kind for block in order for kind in block][:rounds]
    poisoned = sorted(draw.sample(range(5, steps - 5), 3))
    _, yard, reference = prepare(folder, steps, poisoned)
    print(f"seed {seed}, {rounds} rounds, {steps} steps, poisoned gradients on rank 1 in steps {poisoned}", flush=True)
    wrong: list[str] = []
    number, runs, cluster = 0, 0, Cluster()
    with cluster_of(cluster), small_disk(folder / "disk", MEGABYTES) as disk:
        while number < rounds:
            runs += 1
            place = folder / f"place-{runs}"
            place.mkdir()
            storm = Storm(cluster, place, yard, disk, steps, draw, f"storm-{seed}-{runs}")
            slow = Fault("sleep", step=1, until=steps, rank=0, seconds=SLOW_S, always=True)
            faults(place, slow, *(Fault("nan", step=step, rank=1) for step in poisoned))
            weather.install_in(place, storm.run.folder)
            storm.submit()
            while number < rounds and round_of(storm, number + 1, kinds[number]):
                number += 1
            number += 1 if storm.rows and storm.rows[-1][-1] != "steps" else 0
            print(check_end(storm, reference), flush=True)
            wrong += storm.wrong
            for path in yard.glob("vit_huge-*.log"):
                path.rename(path.with_suffix(f".{runs}"))
            cluster.clear()
            if runs > rounds:
                wrong.append("more runs than rounds: something ends every run at once")
                break
    return wrong


@contextlib.contextmanager
def cluster_of(cluster: Cluster) -> Iterator[None]:
    try:
        cluster.start()
        yield
    finally:
        cluster.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="A storm of faults over one run on a real SLURM.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--faults", nargs="+", choices=sorted(FAULTS), default=[], help="these alone; default: all")
    parser.add_argument("--keep", action="store_true", help="leave the folder with all runs and logs")
    given = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(reason)
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    try:
        wrong = storm_over(given.seed, given.rounds, given.steps, folder, given.faults)
    finally:
        if given.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"seed {given.seed}: {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
