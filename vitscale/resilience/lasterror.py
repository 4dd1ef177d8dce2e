"""Each rank's last error, in a file of its own in the run folder, so that the outcome tells the failure and not its echo on rank 0."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitscale.cluster.ended import LOST_PEER
from vitscale.errors import EXIT_FAILED, EXIT_REQUEUE, UserError, said
from vitscale.files import write_atomically
from vitscale.resilience.failures import Kind, classify, signature
from vitscale.resilience.outcome import read_outcome, write_outcome
from vitscale.runfolder import BEGUN, OUTCOME, highest_lease, mark, read_object

log = logging.getLogger(__name__)
ECHO_S = 1.5        # for the file of the rank that failed to be seen, which it wrote before it let go of the others
_LONGEST = 2000     # characters that are kept


@dataclass(frozen=True)
class LastError:
    """Why one rank of one attempt ended."""

    attempt: int | None         # None: before it was known
    rank: int
    size: int                   # ranks of the attempt
    node: str
    step: int                   # steps that had been passed
    type: str
    text: str
    time: float
    code: int                   # the exit code that follows
    cause: str | None           # one of metrics.system.CAUSES; None: what follows from the code
    hint: str
    is_echo: bool               # it may say no more than that another rank is gone
    is_users: bool              # a UserError, which every rank may have raised alike
    exclude: bool               # the next attempt is to leave this node out

    @property
    def reason(self) -> str:
        where = f"rank {self.rank} on {self.node}: " if self.size > 1 and (self.rank or not self.is_users) else ""
        kind = "" if self.is_users else f"{self.type}: "        # what is written for users names no class of ours, on the console neither
        return f"{where}{kind}{self.text}" + (f"; {self.hint}" if self.hint else "")

    @property
    def signature(self) -> str:
        return signature(self.type, self.text)


def note_error(folder: Path, error: Exception, *, rank: int, size: int, node: str, attempt: int | None = None, step: int = 0,
               exclude: bool = False) -> LastError:
    """Sort an error and write it down as this rank's last.  `exclude`: a node at fault is to be left out of the next attempt."""
    text = said(error) if isinstance(error, (UserError, OSError)) else str(error).strip()
    kind = _kind_of(error, text)
    code = error.exit_code if isinstance(error, UserError) else EXIT_REQUEUE
    found = LastError(attempt, rank, size, node, step, type(error).__name__, text[:_LONGEST], time.time(), code, kind.cause, kind.hint,
                      kind.is_echo, isinstance(error, UserError), exclude and kind.of_node and kind.again == "yes")
    if not isinstance(error, UserError):
        repeated = kind.again == "once" and any(_is_same(found, before) for before in _before(folder, found))
        if kind.again == "no" or repeated:
            hint = f"the same error came at step {step} before: it is no accident" if repeated else kind.hint
            found = LastError(**{**asdict(found), "code": EXIT_FAILED, "hint": hint})
        elif kind.is_echo:
            found = LastError(**{**asdict(found), "cause": None, "hint": ""})
    with contextlib.suppress(OSError):      # on a full disk the log alone has it
        write_atomically(_file(folder, rank), json.dumps(asdict(found)), durable="content")
    return found


def most_telling(folder: Path, attempt: int | None, known: LastError | None = None, wait_s: float = 0.0) -> LastError | None:
    """Of what the ranks of an attempt wrote, and `known`, the first failure that is no echo; else the first echo.  `known` itself, if the
    first says the same: all ranks have then found it together.

    If there are echoes alone, others may be on their way: they are waited for up to `wait_s`.
    """
    until = time.monotonic() + wait_s
    while True:
        found = [one for one in _errors(folder) if one.attempt == attempt]
        if known is not None:
            found.append(known)
        if any(not one.is_echo for one in found) or time.monotonic() >= until:
            first = min(found, key=lambda one: (one.is_echo, one.time), default=None)
            return known if first is not None and known is not None and first.is_users and first.text == known.text else first
        time.sleep(0.05)


def say(error: Exception, failed: LastError) -> None:
    """The last words of a rank in the log, where it is handled; `failed`: what counts as the failure of its attempt."""
    if failed.text and failed.text not in str(error):
        log.error("%s; so this rank ends too (%s)", failed.reason, str(error).strip())
    elif failed.is_echo:
        log.error("another rank is gone: %s", error)        # it says itself why, or its launcher does
    else:
        after = "; another attempt may help" if failed.code == EXIT_REQUEUE else ""
        log.error("the run failed: %s%s", failed.reason, after, exc_info=error)


def tell(folder: Path, error: LastError, **facts: Any) -> None:
    """Write the outcome that an error makes."""
    about = {key: value for key, value in asdict(error).items() if key in ("rank", "node", "step", "type", "text")}
    known: dict[str, Any] = {"cause": error.cause, "attempt": error.attempt, "step": error.step}
    known |= {LOST_PEER: True} if error.is_echo else {"error": about}
    if error.size > 1 and not error.is_echo:
        known |= {"rank": error.rank, "node": error.node}
    if error.exclude:
        known |= {"exclude": [error.node]}      # whoever starts the next attempt leaves it out
    write_outcome(folder, error.code, error.reason, **known | facts)


def tell_if_nobody_did(folder: Path, attempt: int | None, before: Mapping[str, Any]) -> bool:
    """For whoever started the ranks of `attempt` (None: none held the run folder): if rank 0 could not say why they ended, say it by what
    another rank wrote down.  `before`: marks() of the run folder when they were started, since clocks are set.  Whether the outcome tells
    a failure now."""
    outcome = read_outcome(folder)
    is_new = attempt is not None or mark(folder / OUTCOME) != before.get("outcome")
    if "error" in outcome and outcome.get("attempt") == attempt and is_new:
        return True
    known = before.get("errors") or {}
    found = [one for path, one in _files(folder) if not one.is_echo and one.attempt in (attempt, None)
             and (one.attempt is not None or mark(path) != known.get(path.name))]
    if not found:
        return False
    tell(folder, min(found, key=lambda one: one.time))
    return True


def tell_for_job(folder: Path) -> None:
    """The same for the batch script of a job, once its ranks have ended."""
    begun = read_object(folder / BEGUN)
    before = begun.get("before")
    if not isinstance(before, dict) or not isinstance(before.get("errors", {}), dict) or mark(folder / OUTCOME) != before.get("outcome"):
        return      # rank 0 has said how it ended
    lease = highest_lease(folder)
    tell_if_nobody_did(folder, int(lease) if lease not in (None, before.get("lease")) else None, before)


def _kind_of(error: Exception, text: str) -> Kind:
    if isinstance(error, UserError):
        return Kind(error.facts.get("cause", None), "yes")
    return classify(text, [kind.__name__ for kind in type(error).__mro__])


def _before(folder: Path, now: LastError) -> Sequence[LastError | dict[str, Any]]:
    """How earlier attempts ended, as far as it is known."""
    outcome = read_outcome(folder)
    told = [outcome["error"]] if outcome.get("attempt") != now.attempt and isinstance(outcome.get("error"), dict) else []
    return [*told, *(one for one in _errors(folder) if one.attempt is None or one.attempt != now.attempt)]


def _is_same(now: LastError, before: LastError | dict[str, Any]) -> bool:
    if isinstance(before, LastError):
        return (before.signature, before.step) == (now.signature, now.step)
    return (signature(str(before.get("type")), str(before.get("text"))), before.get("step")) == (now.signature, now.step)


def _file(folder: Path, rank: int) -> Path:
    return folder / "logs" / f"error-rank-{rank}.json"


def _errors(folder: Path) -> list[LastError]:
    return [one for _, one in _files(folder)]


def _files(folder: Path) -> list[tuple[Path, LastError]]:
    found = []
    for path in sorted((folder / "logs").glob("error-rank-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):      # damaged: it says nothing
            found.append((path, LastError(**json.loads(path.read_text()))))
    return found
