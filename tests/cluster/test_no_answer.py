"""A slurmctld that does not answer is not one that knows no such job: what is asked again, and what is said of it.

Programs stand in SLURM's place here and say what those of 22.05 said while slurmctld stood still or was dead.  The whole of it, with a
real slurmctld that is stopped and killed: test_slurm_runs.py.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vitscale.cluster import slurm
from vitscale.cluster.script import HOME
from vitscale.cluster.status import status_of
from vitscale.errors import EXIT_REQUEUE, ClusterError
from vitscale.parallel.rendezvous import Absent, _slurm_master
from vitscale.runfolder import JOB, write_object

STOPPED = "slurm_load_jobs error: Socket timed out on send/recv operation"
KILLED = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
LOST = "Unexpected message received for job 7"
SILENT = [STOPPED, KILLED, LOST, "scancel: error: Kill job error on job id 4242: Socket timed out on send/recv operation",
          "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
          "slurm_load_jobs error: Zero Bytes were transmitted or received",
          "slurm_load_jobs error: Slurm backup controller in standby mode",
          "error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\": No such file\n"
          "slurm_load_jobs error: Protocol authentication error"]
REFUSED = ["sbatch: error: Batch job submission failed: Invalid partition name specified",
           "slurm_load_jobs error: Invalid job id specified",
           "sbatch: error: Batch job submission failed: Requested node configuration is not available",
           "scancel: error: Kill job error on job id 7: Access/permission denied"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to put programs in SLURM's place."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def answers(programs: Path, name: str, *said: str) -> None:
    """Calls of `name` print these one after the other, the last one for ever; "!" begins what goes with code 1 to stderr."""
    for number, text in enumerate(said):
        (programs / f"{name}.{number}").write_text(text + "\n")
    (programs / name).write_text(f"""#!/bin/bash
cd {programs}; touch {name}.calls; n=$(wc -l < {name}.calls); echo "$*" >> {name}.calls
[ -e {name}.$n ] || n={len(said) - 1}
if [ "$(head -c 1 {name}.$n)" = ! ]; then tail -c +2 {name}.$n >&2; exit 1; fi
cat {name}.$n
""")
    (programs / name).chmod(0o755)


def calls(programs: Path, name: str) -> int:
    path = programs / f"{name}.calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("words", SILENT)
def test_no_answer_is_told_as_such(programs: Path, tmp_path: Path, words: str):
    for name in ("squeue", "sbatch", "scancel"):
        answers(programs, name, f"!{words}")
    asked = (slurm.queue, lambda: slurm.cancel(["7"]), lambda: slurm.submit(tmp_path / "job.sh"))
    for ask in asked:
        with pytest.raises(ClusterError, match=r"slurmctld does not answer: [^;].*; try again") as error:
            ask()
        if ask is not asked[-1]:
            assert error.value.exit_code == EXIT_REQUEUE
    sure = "contact slurm controller" in words        # else what was sent may arrive when slurmctld goes on
    assert isinstance(error.value, slurm.NoAnswer) == sure
    assert ("nothing was submitted" if sure else "submit again only if `squeue --me` does not list it") in str(error.value)


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_is_an_answer(programs: Path, words: str):
    answers(programs, "scancel", f"!{words}")
    with pytest.raises(ClusterError, match="scancel refuses: ") as error:
        slurm.cancel(["7"])
    assert not isinstance(error.value, slurm.NoAnswer)


def test_a_program_that_hangs(programs: Path, monkeypatch: pytest.MonkeyPatch):
    (programs / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (programs / "squeue").chmod(0o755)
    monkeypatch.setattr(slurm, "TIMEOUT_S", 0.2)
    with pytest.raises(slurm.NoAnswer, match="slurmctld does not answer: squeue waited for"):
        slurm.queue()


def test_nothing_false_is_said_of_a_run(tmp_path: Path):
    write_object(tmp_path / JOB, {"jobs": ["7"], "time": 0.0, "outcome_before": None})
    assert status_of(tmp_path, []).detail == "but not in the queue"
    assert status_of(tmp_path, None).detail == "whether it is still in the queue is not known"


def test_the_meeting_point_is_asked_for_again(programs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "no-such-host-[1-2]")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    answers(programs, "scontrol", "no-such-host-1\nno-such-host-2", f"!{KILLED}", "NodeName=no-such-host-1 NodeAddr=127.0.0.9 Port=1")
    assert _slurm_master(60.0) == ("127.0.0.9", 24711)
    assert "slurmctld does not answer" in caplog.text
    (programs / "scontrol.calls").unlink()
    answers(programs, "scontrol", "no-such-host-1", f"!{KILLED}", f"!{KILLED}")
    with pytest.raises(Absent, match="slurmctld does not answer") as error:
        _slurm_master(0.0)
    assert error.value.exit_code == EXIT_REQUEUE


def test_a_node_without_slurms_programs_is_not_waited_on_for_ever(tmp_path: Path):
    for name in ("bash", "timeout", "sed", "grep", "hostname"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    script = f'home={HOME}; source "$home/launch/batch.sh"; requeue ""'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60,
                          env={"PATH": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURMD_NODENAME": "n1"})
    assert done.returncode == EXIT_REQUEUE
    assert "no program `squeue` on n1" in done.stderr


RUNNING, AGAIN = "RUNNING                       0", "RUNNING                       1"
WAITS, ENDS = "PENDING                       1", "COMPLETING                    0"


@pytest.mark.parametrize(("squeue", "scontrol", "told", "requests"), [
    ([RUNNING], [""], "job 7 is requeued", 1),
    ([f"!{STOPPED}", f"!{KILLED}", RUNNING], [""], "job 7 is requeued", 1),
    (["SIGNALING                     0"], [""], "job 7 is requeued", 1),
    ([RUNNING, WAITS], [f"!{LOST}"], "job 7 is requeued", 1),               # it came through, and only the answer was lost
    ([RUNNING, f"!{STOPPED}", ENDS], [f"!{LOST}"], "job 7 is requeued", 1),
    ([RUNNING, AGAIN], [f"!{LOST}"], "job 7 is requeued", 1),
    ([RUNNING], [f"!{LOST}", f"!{KILLED}", ""], "job 7 is requeued", 3),    # it did not
    ([RUNNING], ["!Requested operation is presently disabled for job 7"], "job 7 may not be requeued (Requested operation is", 1),
    ([RUNNING], ["!what no SLURM has said yet"], "job 7 may not be requeued (what no SLURM has said yet)", 20),
    (["!slurm_load_jobs error: Invalid job id specified"], [""], "job 7 is gone: left as it is", 0),
    ([f"!{KILLED}", "!slurm_load_jobs error: Invalid job id specified"], [""], "job 7 is gone: left as it is", 0),
    ([""], [""], "job 7 is gone: left as it is", 0),
    (["CANCELLED                     0"], [""], "job 7 is CANCELLED: left as it is", 0),
    ([WAITS], [""], "job 7 is PENDING: left as it is", 0),
    ([AGAIN], [""], "job 7 is RUNNING: left as it is", 0),
])
def test_a_batch_script_asks_until_it_is_answered(programs: Path, tmp_path: Path, squeue: list[str], scontrol: list[str], told: str,
                                                  requests: int):
    answers(programs, "squeue", *squeue)
    answers(programs, "scontrol", *scontrol)
    script = f'home={HOME}; source "$home/launch/batch.sh"; sleep() {{ :; }}; requeue ""'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60,
                          env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)})
    assert done.returncode == EXIT_REQUEUE
    assert told in done.stderr.splitlines()[-1]
    assert calls(programs, "scontrol") == requests
    assert done.stderr.count("slurmctld does not answer (") == any(one in (f"!{STOPPED}", f"!{KILLED}") for one in squeue)
