"""`vitscale status` and `vitscale logs` on run folders as they are, half-written, damaged and hostile."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from vitscale.checkpoint.lease import Lease
from vitscale.cluster.logs import logs_of, show
from vitscale.cluster.slurm import Queued
from vitscale.cluster.status import as_json, jobs_of, on_one_screen, others, runs_in, status_of, table
from vitscale.errors import ClusterError
from vitscale.resilience.outcome import write_outcome
from vitscale.runfolder import BEGUN, JOB, TAIL_BYTES, find_run, last_row, write_object

RECIPE = "global_batch: 32\nduration: {duration}\ndata: {{num_samples: {samples}}}\n"


def a_run(folder: Path, *, step: int = 50, duration: str = "100 steps", samples: str = "1000", **row: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(duration=duration, samples=samples))
    values = {"step": step, "images": step * 32, "time": time.time(), "loss": 2.5, "images_per_second": 16.0} | row
    (folder / "metrics.jsonl").write_text(json.dumps(values) + "\n")
    return folder


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """A run whose rank 0 is this process."""
    folder = a_run(tmp_path / "held")
    lease = Lease.take(folder)
    yield folder
    lease.release()


def describe(lease: Path, heard_of: float, **told: Any) -> None:
    """Change what a lease says of its holder, and when it was last heard of."""
    lease.write_text(json.dumps(json.loads(lease.read_text()) | told))
    os.utime(lease, (heard_of, heard_of))


def queued(job: str, state: str = "PENDING", reason: str = "Priority", name: str = "x") -> Queued:
    return Queued(job, state, "1:00", "2", reason, name)


def test_a_run_that_goes_on(held: Path):
    (held / "checkpoints" / "step-00000040").mkdir(parents=True)
    (held / "checkpoints" / "step-00000045.tmp").mkdir()
    os.utime(held / "checkpoints" / "step-00000040", (time.time() - 90,) * 2)
    found = status_of(held, [])
    assert (found.run, found.state, found.step, found.loss, found.restarts) == ("held", "running", 50, 2.5, 0)
    assert found.done_ratio == pytest.approx(0.5)
    assert found.eta_s == pytest.approx(50 * 32 / 16.0)
    assert found.checkpoint_age_s == pytest.approx(90, abs=5)
    assert found.step_age_s == pytest.approx(0, abs=5)


@pytest.mark.parametrize(("duration", "done", "left_images"), [
    ("100 steps", 0.5, 50 * 32), ("3200 images", 0.5, 1600), ("4 epochs", 0.4, 2400), ("10 steps", 1.0, 0),
])
def test_how_far_it_is(held: Path, duration: str, done: float, left_images: int):
    a_run(held, duration=duration)
    found = status_of(held, [])
    assert (found.done_ratio, found.eta_s) == (pytest.approx(done), pytest.approx(left_images / 16.0))


def test_what_the_recipe_does_not_say_is_not_known(held: Path):
    a_run(held, duration="4 epochs", samples="null")
    assert (status_of(held, []).done_ratio, status_of(held, []).eta_s) == (None, None)


def test_states_in_the_order_of_a_runs_life(tmp_path: Path):
    folder = tmp_path / "life"
    folder.mkdir()
    write_object(folder / JOB, {"jobs": ["7", "8"], "time": 0.0, "outcome_before": None})

    def state(*queue: Queued) -> tuple[str, str]:
        found = status_of(folder, queue)
        return found.state, found.detail

    assert state() == ("submitted", "but not in the queue")
    assert state(queued("8", reason="Dependency"), queued("7"), queued("99", "RUNNING")) == ("queued", "Priority")
    assert status_of(folder, [queued("8"), queued("7")]).job == "7"
    assert state(queued("7", "RUNNING"), queued("8")) == ("starting", "for 1:00")
    a_run(folder)
    (folder / "checkpoints" / "step-00000048").mkdir(parents=True)
    lease = Lease.take(folder)
    assert state(queued("7", "RUNNING")) == ("running", "")
    write_outcome(folder, 75, "asked to stop by SIGUSR2", step=48, attempt=1)
    assert state(queued("7", "RUNNING")) == ("stopped early", "asked to stop by SIGUSR2")       # it has said so, and is about to leave
    lease.release()
    assert state(queued("7", "COMPLETING")) == ("stopped early", "asked to stop by SIGUSR2")
    assert state(queued("8")) == ("queued", "Priority")
    assert state(Queued("7", "RUNNING", "0:00", "2", "None", "x")) == ("starting", "for 0:00")      # restarted since
    again = Lease.take(folder)
    again._stop.set()       # its process dies: no more heartbeats, no word
    again._thread.join()
    old = time.time() - 100
    describe(folder / "lease" / "2", old, pid=2 ** 22 + 1)
    assert state() == ("lost", "attempt 2 ended without a word after step 50, last heard of 1m ago; "
                               "lost: 2 steps since the checkpoint of step 48")
    assert (status_of(folder, []).restarts, status_of(folder, []).lost_steps, status_of(folder, []).cause) == (1, 2, "killed")
    write_outcome(folder, 75, "rank 0 was ended by SIGKILL")        # its launcher lived on
    assert state() == ("stopped early", "rank 0 was ended by SIGKILL; lost: 2 steps since the checkpoint of step 48")
    again.release()
    write_outcome(folder, 0, "trained for 100 steps")
    assert state() == ("done", "trained for 100 steps")


def test_jobs_of_a_run_are_numbers_and_nothing_else(tmp_path: Path):
    write_object(tmp_path / JOB, {"jobs": ["7", "8_3", "--me", "7; rm", 9, None, "7", "1" * 99]})
    write_object(tmp_path / BEGUN, {"job": "8_3"})
    assert jobs_of(tmp_path) == ["7", "8_3"]


def test_which_folders_are_runs(tmp_path: Path):
    a_run(tmp_path / "b")
    a_run(tmp_path / "a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.name for path in runs_in(tmp_path)] == ["a", "b"]
    assert runs_in(tmp_path / "a") == [tmp_path / "a"]
    with pytest.raises(ClusterError, match="nowhere: no such folder"):
        runs_in(tmp_path / "nowhere")


DAMAGED = [b"", b"\0" * 5000, b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"[" * 200_000, b'{"step": ', b"x\n" * 100_000, b"[" * 2_000,
           b'{"loss": null, "step": "5", "images": {}, "time": true, "images_per_second": []}',
           b'{"loss": NaN, "step": 1e999, "images": 1' + b"0" * 400 + b', "time": -1, "images_per_second": 0}',
           b'{"state": 5, "reason": ["x"], "jobs": {"a": 1}, "job": 7, "exit_code": {}}']


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_run_has_a_status_all_the_same(tmp_path: Path, content: bytes):
    folder = tmp_path / "run"
    (folder / "lease").mkdir(parents=True)
    for name in ("recipe.yaml", "metrics.jsonl", "outcome.json", JOB, BEGUN, "lease/1", "lease/٣", "checkpoints"):
        (folder / name).write_bytes(content)
    found = status_of(folder, [queued("7")])
    assert found.step in (None, 1)
    json.dumps(as_json([found]), allow_nan=False)
    assert len(table([found], 100)) == 2


def test_names_and_words_steer_no_terminal(tmp_path: Path):
    folder = a_run(tmp_path / "run\x1b[2J\nx")
    write_outcome(folder, 3, "the end \x1b]0;owned\x07 \u202e" + "long " * 100)
    lines = table([status_of(folder, [])], 120) + others([folder], [queued("5", name="\x1b[31m|\nx")], 120)
    assert all(line.isprintable() and len(line) <= 120 for line in lines)
    assert "\N{REPLACEMENT CHARACTER}[2J" in lines[1]


def test_the_table(held: Path, tmp_path: Path):
    done = a_run(tmp_path / "done", step=100)
    write_outcome(done, 0, "trained for 100 steps")
    assert table([status_of(done, None), status_of(held, None)], 200) == [
        "run   state    step  done  img/s  ETA  loss  restarts  checkpoint  job",
        "done  done      100  100%     16    -   2.5         0           -  -    trained for 100 steps",
        "held  running    50   50%     16   1m   2.5         0           -  -",
    ]


def test_one_screen_holds_what_needs_a_look(held: Path, tmp_path: Path):
    now = time.time()
    for number in range(20):
        write_outcome(a_run(tmp_path / f"done-{number:02d}", time=now - 100 * number), 0, "trained")
    write_outcome(a_run(tmp_path / "broken", time=now - 99999), 3, "no further")
    found = [status_of(folder, None) for folder in runs_in(tmp_path)]
    shown, rest = on_one_screen(found, 5)
    assert [one.run for one in shown] == ["broken", "done-00", "done-01", "done-02", "held"]
    assert rest == "and 17 done; `vitscale status --all` lists them too"
    assert on_one_screen(found, 22) == (found, "")


def test_what_an_attempt_wrote_down_counts_before_the_recipe(held: Path):
    (held / "environment.json").write_text('{"total_images": 6400}')        # 50 steps of 32 images were made
    assert status_of(held, None).done_ratio == 0.25
    (held / "environment.json").write_text('{"total_images": "many"}')
    assert status_of(held, None).done_ratio == 0.5


def test_other_jobs_in_the_queue(held: Path):
    write_object(held / JOB, {"jobs": ["7", "8"]})
    assert others([held], [queued("7"), queued("8")], 80) == []
    assert others([held], [queued("9", name="vit")], 80) == ["", "1 other job in the queue:", "9  vit  pending  1:00  Priority"]
    assert others([held], None, 80) == ["", "what is in SLURM's queue is not known: "]


def test_a_file_of_gigabytes_is_read_at_its_end(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with open(path, "wb") as file:
        file.truncate(5 << 30)          # sparse
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"step": 7, "loss": 1.0}\n{"step": 8, "eval_loss": 2.0}\n{"step": 9, "lo')
    begin = time.perf_counter()
    assert last_row(path, "loss") == {"step": 7, "loss": 1.0}
    assert time.perf_counter() - begin < 2
    path.write_bytes(b'{"loss": 1.0}\n' + b" " * TAIL_BYTES + b"\n")
    assert last_row(path, "loss") == {}


def test_a_run_is_named_by_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert find_run("x") == Path("runs/x")
    assert find_run("runs/x") == Path("runs/x")
    with pytest.raises(ClusterError, match=r"y: no such run folder, here or in runs/"):
        find_run("y")


def said(folder: Path, rank: int = 0, lines: int = 3) -> list[str]:
    found: list[str] = []
    show(logs_of(folder, rank), lines, False, found.append)
    return found


def test_the_last_lines_of_a_rank(tmp_path: Path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "rank-0.log").write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)) + b"\x1b[2J\tun\xff finished")
    assert said(tmp_path) == ["line 99998", "line 99999", "\N{REPLACEMENT CHARACTER}[2J    un\N{REPLACEMENT CHARACTER} finished"]
    assert said(tmp_path, lines=0) == []
    assert len(said(tmp_path, lines=10**6)) == 100_001
    (logs / "rank-3.log").write_text("one\n")
    (logs / "rank-3.out").write_text("Traceback\nKilled\n")
    assert said(tmp_path, 3) == ["== rank-3.log", "one", "== rank-3.out", "Traceback", "Killed"]
    with pytest.raises(ClusterError, match="no log of rank 7; ranks 0 to 3 have some"):
        said(tmp_path, 7)
    with pytest.raises(ClusterError, match="no rank has begun"):
        said(logs)


@pytest.mark.timeout(120)       # one that misses something waits for ever
def test_following_shows_whole_lines_as_they_come(tmp_path: Path):
    logs = tmp_path / "logs"
    logs.mkdir()
    path = logs / "rank-0.log"
    path.write_text("old\n")
    additions = iter(["new\nha", "lf\n", None])
    seen: list[str] = []

    class Enough(Exception):
        pass

    def write(line: str) -> None:
        """Whatever is shown makes the run say something more, until it begins its file anew."""
        seen.append(line)
        more = next(additions, "")
        if more == "":
            raise Enough
        if more is None:
            path.write_text("anew\n")
        else:
            with open(path, "a") as file:
                file.write(more)

    with pytest.raises(Enough):
        show([path], 5, True, write)
    assert seen == ["old", "new", "half", "anew"]
