"""A short storm of faults over one run on a real SLURM; tests/chaos/storm.py makes longer ones."""

from datetime import date
from pathlib import Path

import pytest
from storm import missing, storm_over


@pytest.mark.slow
@pytest.mark.all            # minutes: each round that ends an attempt waits for SLURM to start the next
@pytest.mark.timeout(1800)
def test_a_storm_of_three_rounds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    seed = date.today().toordinal()         # another storm each day; it is printed
    wrong = storm_over(seed, rounds=3, steps=40, folder=tmp_path)
    assert wrong == [], f"seed {seed}\n{capfd.readouterr().out}"
