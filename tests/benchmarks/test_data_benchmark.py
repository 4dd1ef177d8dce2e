"""The data benchmark runs in its smallest form, its rows are whole, the report shows them.  No speed is asserted but a collapse."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def programs():
    sys.path.insert(0, str(BENCHMARKS))
    import data
    import report
    yield data, report
    sys.path.remove(str(BENCHMARKS))


def test_the_smallest_form_writes_every_row(programs, tmp_path):
    benchmark, report = programs
    rows = tmp_path / "rows"
    benchmark.main(["--rounds", "1", "--samples", "64", "--workers", "1", "--resume-shards", "500", "--rows", str(rows)])
    found = {path.stem: json.loads(path.read_text()) for path in rows.glob("*.json")}
    absent = {"data-views"} - {*found} if not (Path(sys.prefix) / "peers" / "torchvision").is_dir() else set()     # `make .venv/peers`
    assert {*found} | absent == {name for name in report.KNOWN if name.startswith("data-")}
    for row in found.values():
        assert row["figures"]
        assert row["versions"]["python"]
        assert row["commit"]
        assert row["command"].startswith("python benchmarks/data.py --rounds 1")
        assert str(tmp_path) not in json.dumps(row)
    values = {name: {one["name"]: one["value"] for one in row["figures"]} for name, row in found.items()}
    assert values["data-crop"]["ratio to PIL from the second epoch on"] > 0.5
    assert values["data-crop"]["mean error against PIL"] <= 1.5
    assert values["data-read"]["ratio to webdataset"] > 0.5
    assert values["data-resume"]["time from the set file to the batch"] < 10
    out = tmp_path / "RESULTS.md"
    report.main(["--rows", str(rows), "--out", str(out)])
    assert not any(f"| {report.KNOWN[name]} | | not measured |" in out.read_text() for name in found)
    (rows / "data-read.json").unlink()
    report.main(["--rows", str(rows), "--out", str(out)])
    assert f"| {report.KNOWN['data-read']} | | not measured |" in out.read_text()
    assert "ratio to PIL" in out.read_text()


def test_the_committed_results_are_those_of_the_committed_rows(programs):
    _, report = programs
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((BENCHMARKS / "rows").glob("*.json"))]
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == report.render(rows)
