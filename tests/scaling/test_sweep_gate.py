"""The gate of `transfer: mup`: a coordinate check over the widths that must pass before anything is trained."""

import json
from pathlib import Path

import pytest
from test_sweep_run import SWEEP, finished, start

from vitscale.scaling.expand import expand
from vitscale.scaling.sweep import load_sweep

WIDE = (
    SWEEP.replace("mode: isoflop", "mode: grid\ntransfer: mup\naxes: {samples: [64]}")
    .replace("budgets: [2.5e7, 5.0e7, 1.0e8]\nhold_out: 1\n", "")
    .replace("widths: [4, 8, 16]", "widths: [8, 32]")
)


@pytest.mark.slow  # two runs, and a process that imports torch
def test_a_sweep_goes_through_the_gate(place: Path) -> None:
    (place / "tiny.yaml").write_text(WIDE)
    output = finished(start(place, "--out", "mup", "--jobs", "2"), code=2)
    assert "wants 6 points or more" in output  # trained, but two points carry no law
    told = json.loads((place / "mup" / "coordinate_check.json").read_text())
    assert told["passed"]
    assert told["widths"] == [8, 32]
    assert f"coordinate check: {told['verdict']}" in output
    assert {path.parent.name for path in (place / "mup" / "runs").glob("*/outcome.json")} == {"w8-l1-d64", "w32-l2-d64"}


@pytest.mark.slow  # a process that imports torch
def test_the_gate_refuses_what_does_not_carry_over(place: Path) -> None:
    # a rate so high that what models of different width do has nothing in common
    (place / "tiny.yaml").write_text(WIDE.replace("global_batch: 32", "optim.lr: 0.1, global_batch: 32"))
    output = finished(start(place, "--out", "high"), code=2)
    assert "the coordinate check did not pass, nothing was started" in output
    assert "outside +-0.25" in output
    assert not json.loads((place / "high" / "coordinate_check.json").read_text())["passed"]
    assert not (place / "high" / "runs").exists()


@pytest.mark.slow  # imports torch, trains six small models for some steps
def test_the_check_passes_under_mup_and_fails_without(tmp_path: Path) -> None:
    from vitscale.train.coordinates import coordinate_check

    found = {}
    for transfer in ("mup", "none"):
        file = tmp_path / f"{transfer}.yaml"
        file.write_text(WIDE.replace("transfer: mup", f"transfer: {transfer}").replace("[8, 32]", "[16, 64, 256]"))
        sweep, source = load_sweep(str(file))
        found[transfer] = coordinate_check([run.recipe for run in expand(sweep, source, tmp_path).runs], seeds=1)
    assert found["mup"]["passed"], found["mup"]["verdict"]
    assert not found["none"]["passed"], found["none"]["verdict"]
    assert min(found["none"]["slopes"].values()) > 0.5
