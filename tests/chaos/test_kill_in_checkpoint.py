"""kill -9 inside a checkpoint, at each of the steps that make it, and inside an evaluation."""

from pathlib import Path

import pytest
from faults import Fault, faults, happened
from running import SMALL, TIMEOUT_S, Run, same_as, same_so_far, start, train

from vitscale.checkpoint.store import damage_in

pytestmark = pytest.mark.slow       # one run that is started six times


def test_a_checkpoint_that_is_never_finished(place: Path, unbroken: Run) -> None:
    """Each attempt publishes one checkpoint and dies in, or just before or after, the next one."""
    store = "vitscale.checkpoint.store"
    deaths = {      # fault -> the newest checkpoint that it leaves, and whether it leaves a draft
        Fault("kill", before="torch.distributed.checkpoint.filesystem:_write_item", rank=1, nth=220): (8, True),   # of 16: 147 each
        Fault("kill", before="vitscale.train.evaluate:evaluate", rank=1): (16, False),           # at 20
        Fault("kill", before=f"{store}:fsync_tree", rank=0, nth=2): (20, True),                  # of 24, whole but for its name
        Fault("kill", before=f"{store}:fsync_folder", rank=0, nth=2): (32, False),               # it has its name, not yet for good
        Fault("kill", before=f"{store}:CheckpointWriter._retain", rank=0, nth=2): (48, False),             # nothing old is deleted yet
    }
    arguments = [*SMALL, "name=c", "duration=60 steps", "evaluate.every=20 steps"]
    two = [*arguments, "parallel.engine=fsdp", "parallel.processes=2"]
    run = Run(place / "runs" / "c")
    environment = faults(place, *deaths)
    for number, (fault, (newest, draft)) in enumerate(deaths.items()):
        process = start(place, *two, environment=environment)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 75, output
        assert f"kill-{number}-rank-{fault.rank}" in happened(place), output
        assert f"rank {fault.rank} was ended by SIGKILL" in output
        assert run.checkpoints[-1] == f"step-{newest:08d}", (fault, run.checkpoints)
        assert (list((run.folder / "checkpoints").glob(".step-*")) != []) == draft, fault
        same_so_far(unbroken, run)
    assert len(happened(place)) == len(deaths)
    train(place, *arguments)
    same_as(unbroken, run)
    assert run.checkpoints[-1] == "step-00000060"
    left = sorted((run.folder / "checkpoints").iterdir())
    assert all(path.name.startswith("step-") for path in left)       # drafts of the dead are gone
    assert [damage_in(path) for path in left] == [None] * len(left)
    assert [row["step"] for row in run.rows() if "eval_loss" in row] == [20, 40, 60]
