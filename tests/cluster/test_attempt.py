"""What follows the end of the ranks: the verdict from srun's code, rank 0's own word and whether training had begun."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from disks import small_disk

from vitscale import runfolder
from vitscale.checkpoint.lease import STALE_S, Lease
from vitscale.cluster.attempt import JobStopped, RunOver, Unwritable, begin, end
from vitscale.cluster.ended import LOST_PEER, PRESENT
from vitscale.cluster.tries import VARIABLE, RestartLoop
from vitscale.errors import RecipeError
from vitscale.resilience.outcome import FILE, write_outcome

NAME = ["name=x"]


def began(folder: Path, env: dict[str, str] | None = None) -> Path:
    """The run folder; the try's token is in `os.environ`, as in a batch script."""
    begun = begin("quickstart", [f"runs_dir={folder}", *NAME], env or {"SLURM_JOB_ID": "7"})
    os.environ[VARIABLE] = begun.token
    return begun.folder


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(VARIABLE, "none yet")


def verdict(folder: Path, code: int, asked: JobStopped | None = None) -> tuple[int, tuple[str, ...]]:
    found = end(folder, code, asked)
    return found.code, found.exclude


def hold(folder: Path) -> None:
    """As rank 0 does."""
    Lease.take(folder).release()


def test_what_is_noted(tmp_path: Path):
    folder = began(tmp_path, {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2",
                              "SLURM_JOB_NODELIST": "n[1-2]"})
    assert folder == tmp_path / "x"
    noted = json.loads((folder / runfolder.BEGUN).read_text())
    assert (noted["job"], noted["restart"], noted["nodes"]) == ("8_1", 2, "n[1-2]")


def test_a_mistake_in_the_recipe_is_found_before_any_rank_starts(tmp_path: Path):
    with pytest.raises(RecipeError, match="did you mean lr"):
        begin("quickstart", [f"runs_dir={tmp_path}", "optim.lrr=1"], {})
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "x").touch()
    with pytest.raises(RecipeError, match=r"runs_dir: the run folder .* cannot be written"):
        began(tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_that_takes_no_note(tmp_path: Path, full: bool):
    """The first start says so; a restart waits for the folder to take notes again, for as long as SLURM's count allows.

    Neither the name of a try, or, on a full disk, that name but nothing else."""
    with small_disk(tmp_path / "disk", 1) as disk:
        if full:
            (disk / "x" / "logs").mkdir(parents=True)
            with open(disk / "fill", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
        else:
            (disk / "x").mkdir()
            (disk / "x" / "tries").touch()
        with pytest.raises(RecipeError, match=r"runs_dir: the run folder .* cannot be written"):
            began(disk, {"SLURM_JOB_ID": "7"})
        for restart in ("1", "2"):
            with pytest.raises(Unwritable, match="counts how often") as caught:
                began(disk, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restart})
            assert caught.value.exit_code == 75
        with pytest.raises(RestartLoop, match="3 attempts in a row began at the very beginning"):
            began(disk, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"})


@pytest.mark.parametrize(("code", "then"), [(0, 0), (2, 2), (3, 3), (75, 75), (1, 75), (137, 75), (143, 75), (255, 75)])
def test_by_the_code_alone_once_training_had_begun(tmp_path: Path, code: int, then: int):
    """1 and 255: a traceback of a rank that was not rank 0, or srun's own."""
    folder = began(tmp_path)
    hold(folder)
    assert verdict(folder, code)[0] == then


@pytest.mark.parametrize(("code", "then"), [(0, 0), (2, 2), (3, 3), (75, 75), (1, 75), (137, 75)])
def test_an_attempt_in_which_nobody_held_the_folder(tmp_path: Path, code: int, then: int):
    (tmp_path / "x").mkdir()
    hold(tmp_path / "x")        # the one before it did
    assert verdict(began(tmp_path), code)[0] == then


@pytest.mark.parametrize(("said", "code"), list(itertools.product((0, 2, 3), (75, 137, 1))))
def test_rank_0s_last_word_counts_before_what_the_others_made_of_it(tmp_path: Path, said: int, code: int):
    """Alone with their peer's death, the other ranks end with 75, the highest of all codes but a kill's."""
    folder = began(tmp_path)
    hold(folder)
    write_outcome(folder, said, "as tested")
    assert verdict(folder, code)[0] == said


def test_the_word_of_an_earlier_attempt_does_not_count(tmp_path: Path):
    (tmp_path / "x").mkdir()
    write_outcome(tmp_path / "x", 3, "long ago", exclude=["n9"])
    folder = began(tmp_path)
    assert verdict(folder, 137) == (75, ())


def test_a_mistake_found_by_rank_0_before_it_held_the_folder(tmp_path: Path):
    folder = began(tmp_path)
    write_outcome(folder, 2, "no such shards")
    assert verdict(folder, 75)[0] == 2


@pytest.mark.parametrize(("written", "left_out"), [
    (["n2"], ("n2",)), (["gpu-node_1.cluster", "n3"], ("gpu-node_1.cluster", "n3")), (["n2,n3", "$(x)", 4, None, "", "a b", "n1"], ("n1",)),
    ("n2", ()), ({"n2": 1}, ()), (None, ()),
])
def test_nodes_to_leave_out(tmp_path: Path, written: Any, left_out: tuple[str, ...]):
    folder = began(tmp_path)
    write_outcome(folder, 75, "a GPU is gone", exclude=written)
    assert verdict(folder, 75) == (75, left_out)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"exit_code": "3"}', b'{"exit_code": [3]}', b"[" * 100_000])
def test_a_damaged_outcome_is_none(tmp_path: Path, content: bytes):
    folder = began(tmp_path)
    hold(folder)
    (folder / FILE).write_bytes(content)
    assert verdict(folder, 137) == (75, ())
    (folder / runfolder.BEGUN).write_bytes(content)
    for path in (folder / "tries").iterdir():
        path.write_bytes(content)
    assert verdict(folder, 137) == (75, ())


def chain(folder: Path, jobs: object) -> None:
    runfolder.write_object(folder / runfolder.JOB, {"jobs": jobs, "outcome_before": runfolder.mark(folder / FILE)})


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_is_left_of_a_chain_ends_at_once_when_the_run_is_over(tmp_path: Path, code: int):
    folder = began(tmp_path)
    write_outcome(folder, 3, "of long ago")
    chain(folder, ["6", "7", "8"])
    began(tmp_path, {"SLURM_JOB_ID": "7"})                       # its predecessor died without a word: the old one does not count
    write_outcome(folder, code, "the end")
    for job in ("6", "99"):                                      # the first of a chain was submitted to train on, which a done run does not
        with pytest.raises(RunOver, match="is done") if code == 0 else contextlib.nullcontext():
            began(tmp_path, {"SLURM_JOB_ID": job})
    with pytest.raises(RunOver, match="the end") as caught:
        began(tmp_path, {"SLURM_JOB_ID": "8"})
    assert caught.value.exit_code == code
    write_outcome(folder, 75, "the time limit")
    began(tmp_path, {"SLURM_JOB_ID": "8"})


@pytest.mark.parametrize("jobs", [None, 7, "678", {"7": 1}, [["7"]], [7, 7]])
def test_a_damaged_note_of_a_chain_is_none(tmp_path: Path, jobs: object):
    folder = began(tmp_path)
    chain(folder, jobs)
    write_outcome(folder, 3, "failed")
    began(tmp_path)


def test_the_commands(tmp_path: Path):
    """As launch/batch.sh calls them: each answer on a line of its own, which begins with its name."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "vitscale", "job", *arguments], capture_output=True, text=True, cwd=tmp_path,
                              timeout=60, env=environment)

    first = job("begin", "quickstart", *NAME, "--accept-changes")
    told = dict(line.split(": ", 1) for line in first.stdout.splitlines())
    assert (first.returncode, told["vitscale-folder"], told["vitscale-code"], first.stderr) == (0, "runs/x", "0", "")
    environment[VARIABLE] = told["vitscale-try"]
    write_outcome(tmp_path / "runs" / "x", 75, "two nodes are bad", exclude=["n2", "n4"])
    last = job("end", "runs/x", "137")
    assert (last.returncode, last.stdout, last.stderr) == (75, "vitscale-exclude: n2,n4\nvitscale-code: 75\n", "")
    wrong = job("begin", "quickstart", "optim.lrr=1")
    assert (wrong.returncode, wrong.stdout) == (2, "vitscale-code: 2\n")


def test_names_of_files_are_those_that_others_write():
    assert runfolder.OUTCOME == FILE
    assert runfolder.STALE_S == STALE_S


def at_work(folder: Path, *ranks: int) -> None:
    """These ranks have begun, and not ended by themselves; two on each node."""
    (folder / PRESENT).mkdir(parents=True, exist_ok=True)
    for rank in ranks:
        (folder / PRESENT / f"rank-{rank}.json").write_text(json.dumps({"rank": rank, "node": f"n{rank // 2}"}))


@pytest.mark.parametrize(("ranks", "code", "words"), [
    ((3,), 137, "rank 3 on n1 was ended by SIGKILL and said nothing"), ((0,), 139, "rank 0 on n0 was ended by SIGSEGV and said nothing"),
    ((0, 1, 3), 137, "ranks 0, 1, 3 on n0, n1 were ended by SIGKILL and said nothing"),
    (tuple(range(40)), 137, "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 32 more on n0, n1, n10, n11, n12, n13, n14, n15 ... were ended by SIGKILL"),
])
@pytest.mark.parametrize("told", ["nothing", "that a connection broke"])
def test_who_was_killed_is_named(tmp_path: Path, ranks: tuple[int, ...], code: int, words: str, told: str):
    folder = began(tmp_path)
    hold(folder)
    at_work(folder, *ranks)
    if told != "nothing":
        write_outcome(folder, 75, "RuntimeError: Connection closed by peer [127.0.0.1]:42424", attempt=1, **{LOST_PEER: True})
    found = end(folder, code)
    assert found.code == 75
    assert found.outcome is not None
    assert (found.outcome["cause"], found.outcome["exit_code"]) == ("killed", 75)
    assert str(found.outcome["reason"]).startswith(words)
    assert found.outcome.get("attempt") == (None if told == "nothing" else 1)


@pytest.mark.parametrize(("said", "cause"), [(75, "hang"), (75, "signal"), (3, "nonfinite")])
def test_who_knows_more_than_that_a_connection_broke_has_the_word(tmp_path: Path, said: int, cause: str):
    folder = began(tmp_path)
    hold(folder)
    at_work(folder, 1)
    write_outcome(folder, said, "as tested", cause=cause)
    assert end(folder, 137).outcome is None


def test_ranks_of_an_earlier_start_were_not_killed_in_this_one(tmp_path: Path):
    at_work(began(tmp_path), 1)
    folder = began(tmp_path)
    hold(folder)
    found = end(folder, 137)
    assert found.outcome is not None
    assert "rank" not in str(found.outcome["reason"])
