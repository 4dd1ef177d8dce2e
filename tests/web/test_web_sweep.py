"""A sweep's page lists every run that it is to have, and draws each of those that have begun, and the means over seeds."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pages import Keep, Look, monitoring
from playwright.sync_api import expect

LOSSES = {1e5: (0.50, 0.62, 0.54), 2e5: (0.41, 0.40, 0.48), 4e5: (0.35, 0.35)}      # by size, of the seeds that are done


def run_folder(folder: Path, size: float, loss: float, images: int = 1000) -> None:
    folder.mkdir(parents=True)
    row = {"step": 40, "images": images, "time": time.time(), "loss": loss + 0.1, "attempt": 1}
    told = {"step": 40, "images": images, "time": time.time(), "eval_loss": loss, "eval_top1": 1 - loss}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(told) + "\n")
    (folder / "environment.json").write_text(json.dumps({"parameters": size, "flops_per_image": 6 * size, "total_images": images}))
    (folder / "outcome.json").write_text(json.dumps({"state": "done", "images": images, "step": 40, "time": time.time()}))


def planned(name: str, size: float, seed: int) -> dict[str, Any]:
    return {"name": name, "n": size, "d": 1000, "u": 1000, "c": 6000 * size, "budget": None, "seed": seed, "lr": 1e-3, "batch": 25,
            "held_out": False}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder, runs = tmp_path / "sweeps" / "many", []
    for size, losses in LOSSES.items():
        for seed in range(3):
            runs.append(planned(f"n{size:.0f}-s{seed}", size, seed))
            if seed < len(losses):
                run_folder(folder / "runs" / f"n{size:.0f}-s{seed}", size, losses[seed])
    runs += [planned("later", 8e5, 0), planned("broken", 9e5, 0)]
    run_folder(folder / "runs" / "broken", 9e5, 3.0)
    (folder / "runs" / "broken" / "outcome.json").write_text(json.dumps({
        "state": "failed", "exit_code": 3, "reason": "the loss was <b>not</b> finite", "time": time.time()}))
    (folder / "sweep.json").write_text(json.dumps({
        "runs": runs, "pruned": [{"run": "tiny-x", "reason": "2 images are less than one batch"}, 7], "metric": "eval_loss"}))
    return folder


def test_every_run_is_listed_and_drawn_and_seeds_are_a_mean(look: Look, keep: Keep, sweep: Path) -> None:
    with monitoring(sweep.parent) as url:
        page = look(url)
        page.get_by_role("link", name="many (9)").click()
        expect(page.get_by_role("img", name=re.compile("^Loss over compute, by size"))).to_be_visible()
        rows = dict(page.locator("table.sweep-runs tbody tr").evaluate_all(
            "rows => rows.map(row => [row.cells[0].textContent, [row.cells[1].textContent, row.cells[row.cells.length - 1].textContent]])"))
        states = {name: state for name, (state, _) in rows.items()}
        assert states == {**{f"n{size:.0f}-s{seed}": "done" for size, losses in LOSSES.items() for seed in range(len(losses))},
                          "n400000-s2": "not started", "later": "not started", "broken": "failed", "tiny-x": "refused"}
        assert rows["broken"][1] == "the loss was <b>not</b> finite"
        assert rows["tiny-x"][1] == "2 images are less than one batch"
        expect(page.get_by_role("heading", name="12 runs: 8 done, 2 not started, 1 failed, 1 refused")).to_be_visible()
        expect(page.locator("main > div > p.soft")).to_contain_text("Each run is a point")
        expect(page.locator("main > div > p.soft")).to_contain_text("Lines go through the means over seeds")
        seeds = page.locator("table.seeds tbody tr")
        expect(seeds).to_have_count(3)
        expect(seeds.nth(0)).to_contain_text("0.5533 ± 0.0611, 0.5000 to 0.6200, of 3 seeds")
        expect(seeds.nth(2)).to_contain_text("0.3500 ± 0.0000, 0.3500 to 0.3500, of 2 of 3 seeds")
        drawn = page.evaluate("V.page.view.charts.map(chart => [chart.spec.of, chart.data])")
        wanted = sorted([*(loss for losses in LOSSES.values() for loss in losses), 3.0])
        for of, data in drawn:
            points = [value for name, one in data["series"].items() if name.isdigit() for value in one["mean"] if value is not None]
            assert sorted(points) == pytest.approx(wanted), of          # every run once
        sizes = dict(drawn)["compute"]
        for name, one in sizes["series"].items():
            assert not name.startswith("mean"), "one place of the axis needs no line"
            assert len([value for value in one["mean"] if value is not None]) <= 3
        at_once = dict(drawn)["parameters"]["series"]
        keep(page, "sweep-seeds")
        means = [one for name, one in at_once.items() if name.startswith("mean")]
        told = {round(mean, 6): (low, high) for one in means for mean, low, high in zip(one["mean"], one["low"], one["high"], strict=True)
                if mean is not None}
        for losses in LOSSES.values():
            if any(round(sum(losses) / len(losses), 6) == mean for mean in told):
                assert told[round(sum(losses) / len(losses), 6)] == (min(losses), max(losses))
        assert round(min(LOSSES[1e5]), 6) not in told                   # never the best of them


def test_a_page_of_a_sweep_that_has_not_begun(look: Look, tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "soon"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"runs": [planned("a", 1e5, 0), planned("b", 2e5, 0), "x", {"no": "name"}], "pruned": 5}))
    with monitoring(tmp_path / "sweeps") as url:
        page = look(url)
        page.get_by_role("link", name="soon (0)").click()
        expect(page.get_by_role("heading", name="2 runs: 2 not started")).to_be_visible()
        assert page.locator("figure:visible").count() == 0
