"""What Prometheus is told of a run to which things happen: a rank is killed, and no checkpoint can be written."""

import json
import time
import urllib.request
from pathlib import Path

import pytest
from faults import Fault, faults
from running import SMALL, TIMEOUT_S, start

from vitscale.observe.targets import target_file
from vitscale.parallel.rank_info import node_name


def scraped(target: Path) -> dict[str, float]:
    """{series: value} of the exporter that is announced there; {} while there is none that answers."""
    try:
        (told,) = json.loads(target.read_text())
        with urllib.request.urlopen(f"http://{told['targets'][0]}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


@pytest.mark.slow       # two attempts of two processes
def test_a_restart_and_checkpoints_that_fail_are_counted_with_their_cause(place: Path) -> None:
    process = start(place, *SMALL, "name=h", "duration=4000 steps", "parallel.processes=2", "--keep-going", "observe.exporter=true",
                    environment=faults(place, Fault("kill", step=12, rank=1),
                                       Fault("raise", before="vitscale.checkpoint.store:CheckpointWriter._publish", always=True)))
    deadline, found = time.monotonic() + TIMEOUT_S, dict[str, float]()
    try:
        while not found.get("vitscale_checkpoint_failures_total") or not found['vitscale_restarts_total{cause="killed"}']:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
            found = scraped(target_file(place / "runs" / "h", node_name()))
    finally:
        process.terminate()
        process.wait(60)
    assert found['vitscale_restarts_total{cause="killed"}'] == 1
    assert found['vitscale_restarts_total{cause="hang"}'] == 0
    assert "vitscale_checkpoint_last_success_timestamp_seconds" not in found        # none was published: not a 0
    assert found['vitscale_rank_samples_total{rank="1"}'] > 0
    assert not target_file(place / "runs" / "h", node_name()).exists()
