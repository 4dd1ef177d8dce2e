"""The benchmark of runs that nobody watches goes in its smallest form, and what it counts rather than times is as promised."""

import json
import subprocess
from pathlib import Path

import preloaded
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow       # four starts of real runs
def test_the_smallest_form_writes_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(subprocess, "Popen", preloaded.Popen.__base__)      # starts are what is measured
    import report
    import unattended

    rows = tmp_path / "rows"
    unattended.main(["--only", "restart", "stall", "--rounds", "1", "--every", "20", "--stall-model", "tiny", "--stall-steps", "3",
                     "--rows", str(rows)])
    found = {path.stem: json.loads(path.read_text()) for path in rows.glob("*.json")}
    assert set(found) == {"unattended-restart", "unattended-stall"}
    for name, row in found.items():
        assert name in report.KNOWN
        assert row["command"].startswith("python benchmarks/unattended.py --only restart stall --rounds 1 --every 20")
        assert str(tmp_path) not in json.dumps(row)
    values = {name: {one["name"]: one["value"] for one in row["figures"]} for name, row in found.items()}
    restart, stall = values["unattended-restart"], values["unattended-stall"]
    assert 0 < restart["imports, in two processes at once"] < restart["in all"]
    assert 0 <= restart["steps lost, of checkpoints every 20 steps"] <= 40
    assert stall["in the foreground"] > 0
    assert stall["torch.distributed.checkpoint.save of the same tensors"] > 0
    out = tmp_path / "RESULTS.md"
    report.main(["--rows", str(rows), "--out", str(out)])
    assert "behind its back" in out.read_text()
    assert f"| {report.KNOWN['unattended-hang']} | | not measured |" in out.read_text()
