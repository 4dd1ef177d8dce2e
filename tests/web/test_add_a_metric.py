"""The example of docs/extending.md, "Add a metric": one file of a copy of the package is changed, and the number is everywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Look, tile
from playwright.sync_api import expect
from running import SMALL, Run, train

import vitscale

ROOT = Path(__file__).parents[2]
FILE = "vitscale/metrics/of_objectives.py"
JUDGED = 'declare("classification", judge=NUMBERS["classification"].evaluation[-1])\n'
# What is asked of the copy once its runs are over: the exporter, Grafana's dashboards, the guide.
ASKED = """
import json, sys, urllib.request
from pathlib import Path
from vitscale.metrics import metrics_of
from vitscale.metrics.guide import written
from vitscale.observe.exporter import Exporter
from vitscale.observe.grafana import BOARDS, dashboard
exporter = Exporter()
for line in Path(sys.argv[1], "metrics.jsonl").read_text().splitlines():
    exporter.update(metrics_of(json.loads(line)))
print(json.dumps({"prometheus": urllib.request.urlopen(f"http://{exporter.address}/metrics").read().decode(),
                  "grafana": dashboard(BOARDS["run"]), "guide": written(Path(sys.argv[2]).read_text())}))
exporter.close()
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Path, list[Run], str]:
    """(a folder with the changed copy, runs of it on one rank and on two, what the first one printed)."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(Path(vitscale.__file__).parent, folder / "vitscale")
    section = (ROOT / "docs" / "extending.md").read_text().partition("## Add a metric\n")[2]
    example = section.partition("```python\n")[2].partition("```")[0]
    with open(folder / FILE, "a") as file:
        file.write(f"\n{example}\n{JUDGED}")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        said = [train(folder, *SMALL, f"name=on-{ranks}", "duration=50 steps", "evaluate.every=25 steps", "ema={decay: 0.9}",
                      f"parallel.processes={ranks}", f"micro_batch={size}", recipe=str(ROOT / "recipes" / "quickstart.yaml"))
                for ranks, size in ((1, 32), (2, 7))]
    return folder, [Run(folder / "runs" / f"on-{ranks}") for ranks in (1, 2)], said[0]


def test_it_is_a_column_that_is_the_same_on_any_number_of_ranks(grown: tuple[Path, list[Run], str]) -> None:
    _, (alone, together), _ = grown
    for column, count in (("batch_confidence", 50), ("eval_confidence", 2), ("eval_ema_confidence", 2)):
        values = [[row[column] for row in run.rows() if column in row] for run in (alone, together)]
        assert values[1] == pytest.approx(values[0], rel=1e-5)
        assert len(values[0]) == count
        assert all(0.1 < value < 1 for value in values[0])      # the likeliest of ten
        assert values[0][-1] > values[0][0]
    assert alone.outcome["eval_confidence"] == [row["eval_confidence"] for row in alone.rows() if "eval_confidence" in row][-1]


def test_the_run_is_judged_by_it(grown: tuple[Path, list[Run], str]) -> None:
    _, (alone, _), _ = grown
    assert alone.outcome["best"] == {"step": 50, "metric": "eval_confidence", "value": alone.outcome["eval_confidence"]}
    assert "best: eval_confidence" in (alone.folder / "recipe.yaml").read_text()


def test_the_console_and_the_model_card_tell_it(grown: tuple[Path, list[Run], str]) -> None:
    _, (alone, _), said = grown
    evaluation = next(row for row in reversed(alone.rows()) if "eval_confidence" in row)
    assert re.search(r"step 50 .* loss \S+  lr \S+  confidence in training \d+\.\d\d%  ", said)
    assert f"top-5 {evaluation['eval_top5']:.2%}  confidence {evaluation['eval_confidence']:.2%}  loss" in said
    assert f"| Probability of the likeliest class | {evaluation['eval_confidence']:.2%} |" in (alone.folder / "README.md").read_text()


def test_prometheus_grafana_and_the_guide_have_it(grown: tuple[Path, list[Run], str]) -> None:
    folder, (alone, _), _ = grown
    done = subprocess.run([sys.executable, "-c", ASKED, str(alone.folder), str(ROOT / "docs" / "monitoring.md")], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(folder)}, cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert f"vitscale_eval_confidence_ratio {alone.outcome['eval_confidence']}\n" in told["prometheus"]
    assert re.search(r"^vitscale_batch_confidence_ratio 0\.\d+$", told["prometheus"], re.MULTILINE)
    [panel] = [panel for panel in told["grafana"]["panels"] if panel["title"] == "Confidence"]
    assert [target["legendFormat"] for target in panel["targets"]] == ["confidence in training", "confidence"]
    assert 'max(vitscale_eval_confidence_ratio{run=~"$run"})' in [target["expr"] for target in panel["targets"]]
    assert ("| `vitscale_eval_confidence_ratio` | gauge |  | run | Probability of the likeliest class of the last evaluation, 0 to 1. |"
            in told["guide"])
    assert "| `batch_confidence` | `vitscale_batch_confidence_ratio` |" in told["guide"]


def test_the_report_shows_it(look: Look, grown: tuple[Path, list[Run], str]) -> None:
    _, (alone, _), _ = grown
    page = look((alone.folder / "report.html").as_uri(), offline=True)
    assert tile(page, "Confidence") == f"{100 * alone.outcome['eval_confidence']:.1f} %"
    figure = page.locator(".charts figure", has=page.locator(".title", has_text=re.compile("^Confidence$")))
    expect(figure).to_be_visible()
    for label in ("confidence in training", "confidence, averaged weights"):
        expect(figure).to_contain_text(label)
