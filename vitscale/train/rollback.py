"""The decision to go back, made durable before anything is done about it; or the decision that the run has gone back often enough."""

from vitscale.checkpoint.lease import Lease
from vitscale.counts import plural
from vitscale.errors import UserError
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.resilience.guard import RollBack
from vitscale.resilience.skips import remember, rollbacks
from vitscale.train.prepare import Prepared
from vitscale.train.restore import NothingGood, Start, newest_good


def decide(recipe: Recipe, prepared: Prepared, world: World, lease: Lease | None, verdict: RollBack) -> Start | str:
    """Where to resume from, or, in words, why the run ends instead.  Collective; no checkpoint may be half written.

    The line in skips.jsonl is the rollback: what an attempt does after it, the next attempt does too if this one is killed meanwhile.
    Killed before it, the run resumes from a checkpoint and meets the same losses again.
    """
    answer: Start | str | UserError | None = None
    if lease is not None:
        try:
            answer = _decide(recipe, prepared, lease, verdict)
        except UserError as error:
            answer = error
    answer = world.broadcast(answer)
    if isinstance(answer, UserError):
        raise answer            # on every rank: none waits for one that is gone
    assert answer is not None
    return answer


def _decide(recipe: Recipe, prepared: Prepared, lease: Lease, verdict: RollBack) -> Start | str:
    most, made = recipe.resilience.max_rollbacks, rollbacks(prepared.folder)
    if len(made) >= most:
        before = "; ".join(row["reason"] for row in made)
        return verdict.reason + (f"; {plural(len(made), 'rollback')} before it (resilience.max_rollbacks={most}): {before}" if made else "")
    lease.check()
    start, end = verdict.skip
    remember(prepared.folder, start, end, verdict.reason, cause=verdict.cause, before_step=verdict.before_step)
    try:
        return newest_good(prepared.folder, lease)
    except NothingGood as error:
        return str(error)
