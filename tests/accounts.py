"""All that a run tells of itself, held side by side: outcome.json, attempts.jsonl, goodput.json, `vitscale status`, the page, the report,
the model card, and what was said on the console or in the job's log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.cluster.slurm import Queued
from vitscale.cluster.status import Status, status_of, table
from vitscale.errors import EXIT_DONE, EXIT_REQUEUE
from vitscale.metrics.system import CAUSES
from vitscale.observe.dashboard.folder import Runs
from vitscale.observe.dashboard.view import read_lines, run_facts
from vitscale.observe.modelcard import render_card
from vitscale.observe.report import render_report
from vitscale.resilience.outcome import STATES
from vitscale.runfolder import highest_lease, last_row, printable, reached, read_object

HELD = '<script type="application/json" id="held">'


@dataclass(frozen=True)
class Accounts:
    outcome: dict[str, Any]             # outcome.json
    attempts: list[dict[str, Any]]      # attempts.jsonl
    books: dict[str, Any]               # goodput.json
    status: Status                      # `vitscale status`
    line: dict[str, Any]                # the run in the page's overview
    facts: dict[str, Any]               # the run's own page
    report: dict[str, Any]              # what report.html holds of them


def accounts_of(folder: Path, queue: Sequence[Queued] | None = None, report: bool = True) -> Accounts:
    runs = Runs(folder)
    jobs = None if queue is None else list(queue)
    held: dict[str, Any] = {}
    if report:
        text = render_report(folder).partition(HELD)[2].partition("</script>")[0]
        held = json.loads(text)["time"]
    return Accounts(read_object(folder / "outcome.json"), read_lines(folder / "attempts.jsonl"), read_object(folder / "goodput.json"),
                    status_of(folder, queue), runs.line(runs.places()[0][0], jobs), run_facts(folder), held)


def one_story(folder: Path, *, log: str | None = None, queue: Sequence[Queued] | None = None, state: str | None = None,
              cause: str | None = None, words: Sequence[str] = (), lost: int | None = None) -> Accounts:
    """Assert that all accounts of a run whose last attempt has ended say the same, and return them.

    `log`: what was said on the console, or in the job's log.  `state`, `cause`, `lost`: what they are to say; `words`: parts of the reason.
    """
    told = accounts_of(folder, queue)
    outcome, status, line = told.outcome, told.status, told.line
    found = json.dumps({"outcome": outcome, "status": vars(status), "attempts": told.attempts}, default=str, indent=1)
    assert line["detail"] == printable(status.detail[:500]), found
    for key in ("state", "cause", "lost_steps", "step", "restarts", "job", "eta_s"):
        assert line[key] == getattr(status, key), f"the page and status differ in {key}\n{found}"
        assert queue is not None or told.report["run"][key] == line[key], f"the report and the page differ in {key}\n{found}"
    assert status.eta_s is None or status.state == "running", found
    _attempts_agree(folder, told, found)
    goes_on = status.state in ("queued", "starting", "running")        # SLURM has begun the next attempt
    if not goes_on:
        assert outcome, found
        assert outcome["attempt"] in (None, highest_lease(folder)) if "attempt" in outcome else True, found
        assert (status.state, status.cause) == (outcome["state"], outcome["cause"]), found
        assert status.detail.startswith(outcome["reason"]), found
    if outcome:
        _outcome_holds(folder, told, found)
        assert state in (None, outcome["state"]), found
        assert cause in (None, outcome["cause"]), found
        assert lost is None or outcome.get("lost_steps", 0) == lost, found
        for word in words:
            assert word in outcome["reason"], f"{word!r} is not in the reason\n{found}"
        if log is not None:
            plain = " ".join(log.split())       # a console breaks its lines
            for part in outcome["reason"].split("; "):
                assert " ".join(part.split()) in plain, f"the log does not say {part!r}\n{found}\n{log[-4000:]}"
        shown = " ".join(table([status], 2000)[1].split())
        assert status.state in shown
        assert goes_on or " ".join(outcome["reason"].split())[:300] in shown, f"{shown}\n{found}"
    return told


def _outcome_holds(folder: Path, told: Accounts, found: str) -> None:
    """That the outcome is whole, and what the page, the report and the card have of it is the same."""
    outcome = told.outcome
    assert outcome["cause"] in CAUSES, found
    assert outcome["state"] == STATES[outcome["exit_code"]], found
    assert outcome["reason"].strip(), found
    for key in ("state", "cause", "exit_code", "step"):
        if key in outcome:
            assert told.facts["outcome"][key] == outcome[key], f"{key}\n{found}"
            assert told.report["outcome"][key] == outcome[key], f"{key}\n{found}"
    assert outcome["reason"][:400].startswith(told.facts["outcome"]["reason"][:400].replace("\N{REPLACEMENT CHARACTER}", "\n")), found
    if (folder / "recipe.yaml").exists():
        assert outcome["reason"].splitlines()[0][:40] in render_card(folder), found
    if outcome["exit_code"] != EXIT_DONE:
        safe = reached(folder, outcome.get("step"))
        assert (outcome["lost_steps"], outcome["checkpoint_step"]) == (safe.lost, safe.checkpoint), found
        assert (safe.lost > 0) == ("lost: " in outcome["reason"]), found
    recorded = last_row(folder / "metrics.jsonl", "loss").get("step")
    if isinstance(outcome.get("step"), int) and recorded is not None and outcome["exit_code"] in (EXIT_DONE, EXIT_REQUEUE):
        assert told.status.step == recorded, found


def _attempts_agree(folder: Path, told: Accounts, found: str) -> None:
    """Rows in order, each with the cause of the end before it; books of the last of them that add up to the time that has passed."""
    numbers = [row["attempt"] for row in told.attempts]
    assert numbers == sorted(set(numbers)), found
    assert all(number <= highest_lease(folder) for number in numbers), found
    for row in told.attempts[1:]:
        assert row["cause"] in CAUSES, found
        assert str(row["reason"]).strip(), found
    if told.books:
        assert not numbers or told.books["attempt"] == numbers[-1], found
        spent, wall = sum(told.books["seconds"].values()), told.books["time"] - told.books["started"]
        # the step in which it was killed is booked by the attempt after it
        unbooked = max(told.books["time"] - last_row(folder / "metrics.jsonl", "loss").get("time", told.books["time"]), 0.0)
        assert wall - unbooked - 2.0 - 0.02 * wall <= spent <= wall + 2.0 + 0.02 * wall, f"{spent} s of {wall} s are booked\n{found}"
        assert all(value >= -0.5 for value in told.books["seconds"].values()), found
