"""Which ranks hold up a run that does not get on, from what every rank sees.  Pure: knows neither threads nor files."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sighting:
    """What one rank's watchdog sees of its own main thread."""

    rank: int
    node: str
    pid: int
    attempt: int
    written: int            # how often it was written: it grows as long as its writer lives
    step: int               # the step under way, from 1
    changes: int            # changes of phase since that step began: all ranks pass through the same ones
    phase: str              # "" between phases
    idle_s: float           # since the last sign that it gets on
    limit_s: float          # that it may be idle where it stands
    waiting: bool           # inside an exchange with other ranks
    frame: str              # the innermost Python frame


@dataclass(frozen=True)
class Culprit:
    """Who is at fault, and the line that says so."""

    ranks: tuple[int, ...]
    reason: str


def judge(sightings: Mapping[int, Sighting], nodes: Sequence[str]) -> Culprit | None:
    """Who holds the others up; None: nobody for longer than is allowed where they stand.

    `sightings` of the ranks that answer, the judge's own among them; `nodes` of all ranks.

    A rank that does not answer is dead, stopped, or blocked in a call that holds Python's lock.  If all answer, it is the ranks that have
    passed through the fewest changes of phase; of these, those that are not inside an exchange, if there are any.
    """
    silent = tuple(rank for rank in range(len(nodes)) if rank not in sightings)
    if silent:
        one = next(iter(sightings.values()))
        does = "does" if len(silent) == 1 else "do"
        return Culprit(silent, f"{_named(silent, nodes)} {does} not answer: stopped, or blocked in a call that holds Python's lock; "
                               f"{_rest(len(sightings))} waited {max(s.idle_s for s in sightings.values()):.0f} s {_place(one)}; {_ENDING}")
    least = min((sighting.step, sighting.changes) for sighting in sightings.values())
    behind = [sighting for sighting in sightings.values() if (sighting.step, sighting.changes) == least]
    if not all(sighting.waiting for sighting in behind):
        behind = [sighting for sighting in behind if not sighting.waiting]
    if any(sighting.idle_s < sighting.limit_s for sighting in behind):
        return None
    behind.sort(key=lambda sighting: sighting.rank)
    ranks = tuple(sighting.rank for sighting in behind)
    first, idle_s = behind[0], max(sighting.idle_s for sighting in behind)
    if len(ranks) == len(nodes) > 1:
        return Culprit(ranks, f"all {len(ranks)} ranks have been {_place(first)} for {idle_s:.0f} s and none stands out; {_ENDING}")
    have, others = "has" if len(ranks) == 1 else "have", len(nodes) - len(ranks)
    wait = f"; the other {others} ranks wait for {'it' if len(ranks) == 1 else 'them'}" if others > 1 else "; the other rank waits for it"
    return Culprit(ranks, f"{_named(ranks, nodes)} {have} been {_place(first)} for {idle_s:.0f} s{wait if others else ''}; {_ENDING}")


def blocked(rank: int, node: str, idle_s: float, place: str) -> str:
    """The line for a rank in which not even its watchdog could look any more."""
    return (f"{_named([rank], [node] * (rank + 1))} has not let any Python run for {idle_s:.0f} s, last seen {place}: a call holds "
            f"Python's lock, or waits for a dead disk; {_ENDING}")


def place_of(phase: str, step: int) -> str:
    return f"{f'in {phase}' if phase else 'between the phases'} of step {step}"


_ENDING = "ending this attempt so that it can be started again"


def _place(sighting: Sighting) -> str:
    return place_of(sighting.phase, sighting.step)


def _rest(count: int) -> str:
    return "the other rank has" if count == 1 else f"the other {count} ranks have"


def _named(ranks: Collection[int], nodes: Sequence[str], most: int = 8) -> str:
    """`rank 3 on n2`; `ranks 3, 4 on n2`; of many, the first."""
    shown = sorted(ranks)[:most]
    where = sorted({nodes[rank] for rank in shown})
    more = f" and {len(ranks) - most} more" if len(ranks) > most else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, shown))}{more} on {', '.join(where)}"
