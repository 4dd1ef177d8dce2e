"""The page in a real browser: the right numbers, of what is over and of what is under way, and what a person does with it."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from faults import Fault, faults
from pages import Keep, Look, copied, fetch, monitoring, shown, steps, tile, write_rows
from playwright.sync_api import expect
from running import SMALL, Run, start

from vitscale.runfolder import page_id
from vitscale.scaling.analyse import FitRequest, analyse
from vitscale.scaling.command import write_analysis
from vitscale.scaling.points import make_points


def test_a_finished_run(look: Look, keep: Keep, unbroken: Run) -> None:
    last = steps(unbroken.folder)[-1]
    with monitoring(unbroken.folder.parent) as url:
        page = look(url)
        row = page.locator("table.runs tbody tr")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("unbroken")
        expect(row).to_contain_text("done")
        expect(row).to_contain_text("step 60")
        expect(row).to_contain_text(shown(last["loss"]))
        row.get_by_role("link", name="unbroken").click()
        expect(page.locator("h1")).to_have_text("unbroken")
        assert tile(page, "Loss") == shown(last["loss"])
        assert tile(page, "Images/s") == shown(last["images_per_second"])
        assert tile(page, "Progress") == "100 %"
        assert tile(page, "Top-1") == f"{100 * unbroken.outcome['eval_top1']:.1f} %"
        throughput = page.locator(".plot[aria-label^='Throughput in images/s']")
        most = max(row["images_per_second"] for row in steps(unbroken.folder))
        assert f"most {shown(most)}" in str(throughput.get_attribute("aria-label"))
        assert page.locator("figure:visible canvas").count() >= 5
        books = unbroken.outcome
        went = page.get_by_role("heading", name=re.compile("Where the wall time went"))
        expect(went).to_contain_text(f"goodput {100 * books['goodput_ratio']:.1f} %")
        published = [row["step"] for row in unbroken.rows() if row.get("event") == "checkpoint"]
        assert published == [*range(8, 57, 8), 60]
        expect(page.locator("#main")).to_contain_text(f"▲ {len(published)} checkpoints")
        keep(page, "run-finished")


def test_a_run_without_evaluations(look: Look, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path, "blind")
    write_rows(folder, steps(folder))
    judged = {"top1": {"value": 0.9694, "interval": [0.946, 0.9828], "count": 359}, "classes": [{"class": 1, "value": 0.5}, None]}
    results = {"accuracy": judged, "few-shot": 7, "knn": {"top1": "high"}, "sets": {"<b>v2</b>": {"top1": {"value": 0.75, "interval": 3}}}}
    (folder / "eval.json").write_text(json.dumps({"step": 60, "class_names": ["a", "<i>b</i>"], "results": results}))
    with monitoring(folder) as url:         # one run's own folder will do
        page = look(url)
        page.get_by_role("link", name="blind").click()
        expect(page.locator("table.evaluated tbody tr")).to_have_text([     # of `vitscale eval`, what is of its form, as text
            "Top-196.9 %94.6 % to 98.3 %359worst: <i>b</i> 50.0 %", "Set <b>v2</b>, top-175.0 %"])
        expect(page.locator(".plot[aria-label^='Loss. training: last']")).to_be_visible()
        assert page.locator(".tile", has_text="Top-1").count() == 0
        expect(page.locator(".charts figure", has_text="Accuracy")).to_be_hidden()


@pytest.mark.slow       # a real run of two ranks is watched from its first steps to its end
def test_a_live_run_moves_by_itself(look: Look, keep: Keep, place: Path) -> None:
    process = start(place, *SMALL, "name=live", "parallel.processes=2", "duration=100 steps", "evaluate.every=30 steps",
                    environment=faults(place, Fault("sleep", step=5, until=100, seconds=0.1, always=True)))
    try:
        run = Run(place / "runs" / "live")
        run.wait_for_step(5, process)
        with monitoring(place / "runs") as url:
            page = look(url)
            row = page.locator("table.runs tbody tr")
            expect(row).to_contain_text("running")
            expect(row.get_by_role("link", name="live")).to_have_attribute("href", f"#/run/{page_id('live')}")
            row.get_by_role("link", name="live").click()
            expect(page.locator(".badge")).to_have_text("running")
            first = page.locator(".tile.wide .more").inner_text()
            expect(page.locator(".tile.wide .more")).not_to_have_text(first)
            assert tile(page, "Time left")
            expect(page.get_by_role("img", name=re.compile("^Each rank's own time of a step: 2 ranks"))).to_be_visible()
            keep(page, "run-live")
            expect(page.locator(".badge")).to_have_text("done", timeout=180_000)
            expect(page.locator(".tile.wide .more")).to_contain_text("step 100")
            assert tile(page, "Loss") == shown(steps(run.folder)[-1]["loss"])
            assert tile(page, "Top-1") == f"{100 * run.outcome['eval_top1']:.1f} %"
            expect(page.locator("[role=status].hidden")).to_contain_text("live is now done")
        said = process.communicate()[0]     # the run said at its start where it can be seen
        assert f"watch it: `vitscale monitor runs`, then http://127.0.0.1:8420/#/run/{page_id('live')}" in said
    finally:
        process.kill()


def test_runs_side_by_side(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    for name, rate in (("slow", "0.003"), ("fast", "0.01")):
        folder = copied(unbroken.folder, tmp_path, name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("lr: 0.003", f"lr: {rate}"))
    with monitoring(tmp_path) as url:
        page = look(url)
        page.get_by_label("Compare slow").check()
        page.get_by_label("Compare fast").check()
        page.get_by_role("button", name="Compare 2 runs").click()
        expect(page.locator("h1")).to_have_text("Side by side")
        expect(page.get_by_role("img", name=re.compile("^Training loss. slow: .*; fast: "))).to_be_visible()
        differing = page.locator("table.differs tbody tr")
        expect(differing).to_have_count(1)
        expect(differing).to_contain_text("optim.lr")
        expect(differing).to_contain_text("0.01")
        page.get_by_role("button", name="Hours since the start").click()
        expect(page.get_by_role("img", name=re.compile("^Training loss"))).to_be_visible()
        keep(page, "compare")


def test_a_sweep_shows_its_runs_as_points(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    for name, size in (("small", 100_000), ("large", 400_000)):
        folder = copied(unbroken.folder, tmp_path / "isoflop", name)
        environment = json.loads((folder / "environment.json").read_text())
        (folder / "environment.json").write_text(json.dumps(environment | {"parameters": size}))
    foreign = {"<b>chinchilla</b>": {"parameters": {"<i>": {"value": 0.34, "low": "x", "profile": 7}, "b": 1}, "warnings": {}}, "other": []}
    fit = {"fits": foreign, "chosen": [], "data": {"metric": "eval_loss"}, "backtest": 3}
    (tmp_path / "isoflop" / "fit.json").write_text(json.dumps(fit))
    for name in ("verdict.json", "plan.json"):
        (tmp_path / "isoflop" / name).write_text(json.dumps({"runs": [5], "budget_flop": 1, "n": [1, 2], "recommended": 0}))
    with monitoring(tmp_path) as url:
        page = look(url)
        page.get_by_role("link", name="isoflop (2)").click()
        expect(page.get_by_role("img", name=re.compile("^Loss over size, at equal compute"))).to_be_visible()
        expect(page.locator("tbody tr", has_text="400,000")).to_have_count(1)
        expect(page.get_by_role("heading", name="<b>chinchilla</b>")).to_be_visible()
        expect(page.locator("table.fit tbody tr")).to_have_text(["<i>0.34"])


def test_a_fitted_law_runs_through_its_points(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    sweep, rows = tmp_path / "sweeps" / "law", []
    for budget in (1e12, 4e12):
        for size in (1e5, 2e5, 4e5, 8e5):
            images = budget / (6 * size)
            loss = 0.5 + 40 / size**0.4 + 30 / images**0.3
            folder = copied(unbroken.folder, sweep / "runs", f"n{size:.0f}-c{budget:.0f}")
            environment = json.loads((folder / "environment.json").read_text())
            environment |= {"parameters": size, "flops_per_image": 6 * size, "total_images": images}
            (folder / "environment.json").write_text(json.dumps(environment))
            write_rows(folder, [steps(folder)[-1] | {"images": images}, {"step": 60, "time": time.time(), "eval_loss": loss}])
            rows.append({"where": folder.name, "run": folder.name, "n": size, "d": images, "c": budget, "metric": loss})
    (sweep / "sweep.json").write_text("{}")
    found = analyse(make_points(rows, roles=("n", "d", "c"), metric="eval_loss"), FitRequest(forms=("chinchilla3",), draws=20))
    with monitoring(tmp_path / "sweeps") as url:
        page = look(url)
        page.get_by_role("link", name="law (8)").click()
        expect(page.locator("#main")).to_contain_text("No law has been fitted yet")
        write_analysis(found, sweep)        # as `vitscale fit` does
        expect(page.get_by_role("img", name=re.compile("by chinchilla3 at 1e12 FLOP: .*by chinchilla3 at 4e12 FLOP: "))).to_be_visible()
        alpha = found.told["fits"]["chinchilla3"]["parameters"]["alpha"]
        expect(page.locator("table.fit tr", has_text="alpha")).to_contain_text(f"{shown(alpha['low'])} to {shown(alpha['high'])}")
        lines = json.loads(fetch(url, f"/api/sweep/{page.url.rpartition('/')[2]}")[1])["curves"]["lines"]
        assert [line["level"] for line in lines] == pytest.approx([1e12, 4e12])
        for line in lines:
            n = np.array(line["x"])
            wanted = found.fits["chinchilla3"].predict({"n": n, "d": line["level"] / (6 * n)})
            assert line["y"] == pytest.approx(wanted, rel=1e-4)
        keep(page, "sweep")


def test_zoom_axis_and_scale(look: Look, unbroken: Run) -> None:
    with monitoring(unbroken.folder.parent) as url:
        page = look(url)
        page.get_by_role("link", name="unbroken").click()
        page.get_by_role("button", name="Steps").click()
        plot = page.locator("figure", has_text="Learning rate").locator(".u-over")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40, steps=4)
        page.mouse.up()
        expect(page.get_by_role("button", name="Show all")).to_be_visible()
        page.wait_for_timeout(300)
        zoomed = [url for url in asked if "start=" in url]
        assert zoomed
        assert 10 < float(re.findall("start=([0-9.]+)", zoomed[0])[0]) < 20
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Show all")).to_be_hidden()
        page.locator("figure", has_text="Gradient norm").get_by_role("button", name="log").click()


def test_by_keyboard_and_for_screen_readers(look: Look, unbroken: Run) -> None:
    with monitoring(unbroken.folder.parent) as url:
        page = look(url)
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.type") == "search"
        page.keyboard.type("nothing like it")
        expect(page.locator("tbody")).to_contain_text("No run fits")
        page.keyboard.press("Control+a")
        page.keyboard.type("unbr")
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "unbroken":
                break
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("unbroken")
        for plot in page.locator(".plot:visible").all():
            assert plot.get_attribute("role") == "img"
            assert re.search("last|slowest", str(plot.get_attribute("aria-label")))
        unnamed = page.evaluate("[...document.querySelectorAll('button, a, input')].filter(one => !(one.textContent.trim() || "
                                "one.getAttribute('aria-label') || one.labels?.length)).length")
        assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(look: Look, keep: Keep, unbroken: Run, scheme: str) -> None:
    with monitoring(unbroken.folder.parent) as url:
        page = look(url, width=380, scheme=scheme)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) == 0
        keep(page, f"phone-overview-{scheme}")
        page.get_by_role("link", name="unbroken").click()
        expect(page.locator("h1")).to_have_text("unbroken")
        page.wait_for_selector("figure canvas")
        assert page.evaluate(wide) == 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
        keep(page, f"phone-run-{scheme}")
