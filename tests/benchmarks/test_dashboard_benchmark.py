"""The benchmark of the dashboard runs in its smallest form."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow       # Chromium is started, and a server
def test_views_of_a_short_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("needs Chromium: apt-get install chromium")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dashboard

    dashboard.main(["--recorded", "20000", "--rounds", "1", "--rows", str(tmp_path)])
    found = {figure["name"]: figure["value"] for figure in json.loads((tmp_path / "dashboard.json").read_text())["figures"]}
    assert 0 < found["first view drawn"] < 60
    assert 0 < found["a later view drawn"] < 60
