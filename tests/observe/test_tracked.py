"""A run in a tracker over kills, resumes and rollbacks: one run, each step once, and what was made again is what stands where it can."""

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, faults
from hypothesis import given, settings
from hypothesis import strategies as st
from running import SMALL, TIMEOUT_S, Run, start

from vitscale.observe.tracked import KINDS, Begins, Tracked, identity
from vitscale.observe.trackers import Trackers

RECORDERS = Path(__file__).parent.parent / "recorders"
# (resumes from, attempts then reach): a step, or a rollback to a step in the same process; None: killed there, and started anew
LIVES = [
    [(0, 5)],
    [(0, 6), None, (4, 9)],
    [(0, 6), None, (0, 3), None, (2, 8)],                    # killed before the first checkpoint, then before it came as far again
    [(0, 7), (4, 9)],                                        # a rollback in the same process
    [(0, 7), (2, 5), None, (4, 6), (4, 8), None, (8, 10)],   # rollbacks and kills; the last goes on where it ended
]


@pytest.fixture(autouse=True)
def as_in_a_run() -> None:
    """Trackers() does so before it begins any."""
    from accelerate.state import PartialState

    if PartialState._shared_state == {}:
        PartialState(cpu=True)


def live(kind: str, folder: Path, life: list[tuple[int, int] | None]) -> dict[int, float]:
    """Take a tracker through a life; -> step -> the last value made of it."""
    made: dict[int, float] = {}
    recorded, serial, at = 0, 0, 0
    while at < len(life):
        first = life[at]
        assert first is not None
        stretches = [first]
        while at + 1 < len(life) and life[at + 1] is not None:
            at += 1
            stretches.append(life[at])      # type: ignore[arg-type]
        at += 2
        serial += 1

        def attempt(stretches: list[tuple[int, int]] = stretches, number: int = serial, before: int = recorded,
                    killed: bool = at < len(life)) -> None:
            tracker: Tracked = KINDS[kind](Begins(folder, {"lr": 0.1 * number, "seed": 1}, stretches[0][0], before))
            for turn, (since, until) in enumerate(stretches):
                if turn:
                    tracker.go_back(since)
                for step in range(since + 1, until + 1):
                    value = float(step + 100 * number + 10 * turn)
                    tracker.log({"loss": value}, step)
                    made[step] = value
                for gone in [step for step in made if step > until]:
                    del made[gone]
            if not killed:
                tracker.finish()

        failure: list[BaseException] = []

        def guarded(attempt: Callable[[], None] = attempt, failure: list[BaseException] = failure) -> None:
            try:
                attempt()
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=guarded)       # as in a run; and MLflow knows one active run for each thread
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        recorded = max(recorded, *(until for _, until in stretches))
    return made


@pytest.mark.parametrize("life", LIVES, ids=str)
def test_tensorboard_shows_each_step_once_as_it_was_last_made(tmp_path: Path, life: list[tuple[int, int] | None]) -> None:
    made = live("tensorboard", tmp_path / "t", life)
    assert tensorboard(tmp_path / "t") == sorted(made.items())
    assert [path.name for path in (tmp_path / "t" / "trackers" / "t").iterdir() if path.is_dir()] == []    # no run beside the run


def tensorboard(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of all points that TensorBoard's own reader keeps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / folder.name), size_guidance={"scalars": 0})
    events.Reload()
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    return [(point.step, round(point.value, 4)) for point in events.Scalars(name)]


def test_tensorboard_cuts_what_an_older_version_wrote_without_a_session(tmp_path: Path) -> None:
    from torch.utils.tensorboard.writer import SummaryWriter

    old = SummaryWriter(str(tmp_path / "t" / "trackers" / "t"))
    for step in range(1, 8):
        old.add_scalar("loss", -1.0, step)
    old.close()
    for path in (tmp_path / "t" / "trackers" / "t").iterdir():
        os.rename(path, path.with_name(path.name.replace("tfevents.1", "tfevents.0")))      # of a second before
    tracker = KINDS["tensorboard"](Begins(tmp_path / "t", {"lr": 0.1}, 4, 7))
    tracker.log({"loss": 5.0}, 5)
    tracker.finish()
    assert tensorboard(tmp_path / "t") == [*((step, -1.0) for step in range(1, 5)), (5, 5.0)]


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The recorder in place of the library; -> the folder that is its server."""
    server = tmp_path / "server"
    server.mkdir()
    monkeypatch.setenv("WANDB_RECORDED", str(server))
    monkeypatch.syspath_prepend(str(RECORDERS))
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "wandb"}
    yield server
    sys.modules.pop("wandb", None)
    sys.modules.update(held)


def wandb_runs(server: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in server.glob("*.json")}


@pytest.mark.parametrize("rewinds", ["yes", "no", "old"])
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_wandb_has_one_run_that_is_rewound_or_says_what_it_kept(
        wandb: Path, tmp_path: Path, life: list[tuple[int, int] | None], rewinds: str, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WANDB_REWINDS", rewinds)
    made = live("wandb", tmp_path / "w", life)
    (only, told), = wandb_runs(wandb).items()
    assert only == identity(tmp_path / "w")
    assert [int(step) for step in told["history"]] == sorted(made if rewinds == "yes" else range(1, max(map(int, told["history"])) + 1))
    inits = [json.loads(line) for line in (wandb / "inits.jsonl").read_text().splitlines()]
    assert {(one["id"], one["project"], one["name"]) for one in inits} == {(only, "w", "w")}
    assert all(one["resume"] == "allow" or one["resume_from"] for one in inits)
    repeats = any(one and before and before[1] > one[0] for before, one in zip(flat_pairs(life), flat_pairs(life)[1:], strict=False))
    if rewinds == "yes":
        assert {int(step): row["loss"] for step, row in told["history"].items()} == made
    assert ("cannot cut its history" in caplog.text) == (rewinds != "yes" and repeats)
    assert any(key.startswith("repeated from step") for key in told["config"]) == (rewinds != "yes" and repeats)
    assert told["config"]["lr"] == 0.1                        # of the steps that were made with it
    if None in life:
        assert any(key.startswith("lr from step") for key in told["config"])


def flat_pairs(life: list[tuple[int, int] | None]) -> list[tuple[int, int]]:
    return [one for one in life if one is not None]


def test_another_project_and_id_may_be_asked_for(wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WANDB_PROJECT", "all"), ("WANDB_RUN_ID", "given"), ("WANDB_NAME", "short")):
        monkeypatch.setenv(name, value)
    live("wandb", tmp_path / "w", [(0, 2)])
    assert json.loads((wandb / "inits.jsonl").read_text()) == {"id": "given", "project": "all", "name": "short", "resume": "allow",
                                                               "resume_from": None}


@pytest.mark.all        # starts the library's own service for each attempt
def test_wandb_itself_offline_keeps_one_id_and_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the real library; `pip install wandb`")
    program = ("import sys\nfrom pathlib import Path\nfrom accelerate import PartialState\nPartialState(cpu=True)\n"
               "from vitscale.observe.tracked import KINDS, Begins\n"
               "step, before, until = map(int, sys.argv[2:])\n"
               "tracker = KINDS['wandb'](Begins(Path(sys.argv[1]), {'lr': 0.1}, step, before))\n"
               "for at in range(step + 1, until + 1):\n    tracker.log({'loss': float(at)}, at)\n"
               "tracker.go_back(until - 1)\ntracker.log({'loss': -1.0}, until)\ntracker.log({'loss': -1.0}, until + 1)\ntracker.finish()\n")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    for step, before, until in ((0, 0, 5), (3, 6, 8)):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "w"), str(step), str(before), str(until)], env=environment,
                              cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
    steps = [step for folder in sorted((tmp_path / "wandb").glob("offline-run-*")) for step in offline_steps(folder)]
    assert steps == list(range(1, 10))
    assert {folder.name.rpartition("-")[2] for folder in (tmp_path / "wandb").glob("offline-run-*")} == {identity(tmp_path / "w")}


def offline_steps(folder: Path) -> list[int]:
    """The steps of the history that an offline run has kept: records in LevelDB's log format behind a head of 7 bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, whole, found = next(folder.glob("*.wandb")).read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, part = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if part in (1, 4):          # whole, or the last of several
            parsed = record()
            parsed.ParseFromString(whole)
            if parsed.WhichOneof("record_type") == "history":
                found.append(parsed.history.step.num)
            whole = b""
    return found


@pytest.mark.all        # the library takes seconds to import
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_mlflow_has_one_run_with_each_step_once(tmp_path: Path, life: list[tuple[int, int] | None], monkeypatch: pytest.MonkeyPatch,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the real library; `pip install mlflow-skinny`")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    made = live("mlflow", tmp_path / "m", life)
    client = mlflow.MlflowClient()
    (only,) = client.search_runs([client.get_experiment_by_name("m").experiment_id])
    points = client.get_metric_history(only.info.run_id, "loss")
    furthest = max(until for _, until in flat_pairs(life))
    assert sorted(point.step for point in points) == list(range(1, furthest + 1))
    assert set(made) <= {point.step for point in points}
    assert only.data.tags["vitscale.id"] == identity(tmp_path / "m")
    repeats = any(before[1] > one[0] for before, one in zip(flat_pairs(life), flat_pairs(life)[1:], strict=False))
    assert any(key.startswith("repeated from step") for key in only.data.tags) == repeats
    assert ("cannot cut its history" in caplog.text) == repeats
    assert only.data.params["lr"] == "0.1"


@settings(max_examples=30, deadline=None)
@given(damage=st.sampled_from(["", "{", "[]", '{"id": 3, "name": "r"}', '{"id": "", "name": "r"}', '{"name": "r"}', "\xff"]))
def test_an_identity_is_made_once_and_anew_only_where_there_is_none(tmp_path_factory: pytest.TempPathFactory, damage: str) -> None:
    folder = tmp_path_factory.mktemp("run") / "r"
    first = identity(folder)
    assert identity(folder) == first
    (folder / "trackers" / "identity.json").write_text(damage, encoding="latin-1")
    other = identity(folder)
    assert other != first
    assert identity(folder) == other
    folder.rename(folder.with_name("copy"))
    assert identity(folder.with_name("copy")) != other      # two runs must not write into one


def test_a_place_that_takes_no_identity_costs_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "trackers").touch()
    assert identity(tmp_path / "r")
    assert "trackers begin another run" in caplog.text


def test_a_way_back_is_not_lost_behind_rows_that_wait(tmp_path: Path) -> None:
    """A tracker that is far behind still learns that the run went back."""
    from vitscale.observe import trackers

    told: list[Any] = []
    began = threading.Event()

    class Late:
        def log(self, numbers: dict[str, float], step: int) -> None:
            told.append(step)

        def go_back(self, step: int) -> None:
            told.append(("back", step))

        def finish(self) -> None:
            told.append("finished")

    with Trackers([], tmp_path, {}) as some:
        some._hands = [trackers._Hand("late", lambda: Late() if began.wait(60) else None)]      # type: ignore[arg-type, return-value]
        for step in range(trackers._MOST + 5):
            some.row({"step": step, "loss": 0.5})
        some.go_back(7)
        began.set()
    assert told == [*range(trackers._MOST), ("back", 7), "finished"]


@pytest.mark.slow       # two attempts of a real run
def test_a_run_that_is_killed_and_rolls_back_is_one_in_every_tracker_and_record(place: Path) -> None:
    """kill -9 in step 21 after an evaluation, a resume from step 16, a rollback from 34 to 24 in the same process."""
    from vitscale.observe.dashboard.table import Table
    from vitscale.observe.dashboard.view import run_view
    from vitscale.observe.totals import Totals
    from vitscale.runfolder import last_row

    server = place / "server"
    server.mkdir()
    meeting = faults(place, Fault("kill", step=21), Fault("nan", step=30, until=34))
    meeting["PYTHONPATH"] = os.pathsep.join([str(RECORDERS), meeting["PYTHONPATH"]])
    run = Run(place / "runs" / "k")
    for code in (-9, 0):
        process = start(place, *SMALL, "name=k", "duration=40 steps", "evaluate.every=10 steps", "observe.trackers=[tensorboard, wandb]",
                        environment={**meeting, "WANDB_RECORDED": str(server)})
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, output
        if code:        # killed: what the next attempt has to cut was there
            assert tensorboard(run.folder)[-1][0] > 16
    assert sum(row.get("event") == "rollback" for row in run.rows()) == 1
    stands = {step: loss for step, loss in run.losses.items() if loss is not None}      # not finite: undone
    steps = [*range(1, 30), *range(35, 41)]         # 30 to 34 are passed over
    assert sorted(stands) == steps
    undone = [row["step"] for row in run.rows() if "eval_loss" in row]
    assert undone == [10, 20, 20, 30, 35, 40]       # of which one stands for 20, none for 30
    assert [step for step, _ in tensorboard(run.folder)] == steps
    assert dict(tensorboard(run.folder)) == pytest.approx(stands, abs=2e-4)
    assert [step for step, _ in tensorboard(run.folder, "eval_loss")] == [10, 20, 35, 40]
    (told,) = wandb_runs(server).values()
    assert {int(step): row["loss"] for step, row in told["history"].items()} == pytest.approx(stands)
    assert [int(step) for step, row in told["history"].items() if "eval_loss" in row] == [10, 20, 35, 40]

    table = Table(run.folder / "metrics.jsonl")
    table.refresh()
    view = run_view(run.folder, table, axis="step")
    assert view["x"] == steps
    assert view["evaluations"]["x"] == [10, 20, 35, 40]
    assert Totals(run.folder).evaluation == {key: value for key, value in last_row(run.folder / "metrics.jsonl", "eval_loss").items()
                                             if key.startswith("eval_")}
