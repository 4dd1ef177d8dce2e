"""report.html of real runs, opened from the disk without a network; and pictures of samples that could not be used."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds
from pages import Keep, Look, fetch, monitoring, only_run, shown, steps, tile
from playwright.sync_api import expect
from running import SMALL, Run, train

from vitscale.scaling.analyse import FitRequest, analyse
from vitscale.scaling.page import write_page
from vitscale.scaling.points import Columns, read_csv


def test_the_report_of_a_run_is_its_page(look: Look, keep: Keep, unbroken: Run) -> None:
    report = unbroken.folder / "report.html"        # written by the run itself, at its end
    text = report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)[^"'#]""", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert len(text) < 2_000_000
    page = look(report.as_uri(), offline=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    expect(page.locator(".badge")).to_have_text("done")
    assert tile(page, "Loss") == shown(steps(unbroken.folder)[-1]["loss"])
    assert tile(page, "Top-1") == f"{100 * unbroken.outcome['eval_top1']:.1f} %"
    page.get_by_role("button", name="Steps").click()
    with monitoring(unbroken.folder.parent) as url:
        live = look(f"{url}#/run/{only_run(url)}")
        live.get_by_role("button", name="Steps").click()
        live.wait_for_selector("figure canvas")
        names = "[...document.querySelectorAll('.plot')].filter(one => one.offsetParent).map(one => one.getAttribute('aria-label'))"
        expect(live.locator(".plot[aria-label^='Learning rate']")).to_be_visible()
        assert page.evaluate(names) == live.evaluate(names) != []
    expect(page.locator("pre")).to_contain_text("global_batch: 32")
    assert asked == []
    keep(page, "report")


def test_the_page_of_a_fit_is_of_the_same_make(look: Look, keep: Keep, tmp_path: Path) -> None:
    """Light and dark, phones, text that wants to be markup, nothing loaded: as the report of a run, since both are built in one place."""
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e8, 6), np.geomspace(1e7, 1e9, 6)))
    rows = [f"<img src=x onerror=alert(1)> {at},{one},{two},{0.5 + 400 * one ** -0.4 + 900 * two ** -0.4}"
            for at, (one, two) in enumerate(zip(n, d, strict=True))]
    (tmp_path / "fit.csv").write_text("\n".join(["run,n,d,loss", *rows, "torn,1,1,nan"]) + "\n")
    points = read_csv(tmp_path / "fit.csv", Columns({"n": "n", "d": "d"}, "loss", run="run", flops_per=6.0))
    write_page(analyse(points, FitRequest(forms=("chinchilla3",), intervals=False)), tmp_path / "fit.html", title="</title><b>fit")
    assert (tmp_path / "fit.html").stat().st_size < 400_000
    page = look((tmp_path / "fit.html").as_uri(), offline=True, width=390)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    assert page.title() == "</title><b>fit · vitscale"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    drawn = page.evaluate("V.sheet.charts.map(chart => chart.data.names.map((name, at) => name && chart.lines.some(line => "
                          "V.is(chart.data.series[line.name].mean[at])) ? name.split(',')[0] : null).filter(Boolean))")
    assert [sorted(names) for names in drawn] == [sorted(row.split(",")[0] for row in rows)] * 2       # each run a point, in both charts
    assert page.locator("td, th", has_text="the metric is not finite").count() == 1
    papers = {}
    for theme in ("light", "dark"):
        papers[theme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        keep(page, f"fit-{theme}")
        page.click("#theme")
    assert papers["light"] != papers["dark"]
    assert page.locator("img").count() == 0
    assert asked == []


def test_a_report_on_demand(tmp_path: Path, unbroken: Run) -> None:
    out = tmp_path / "out.html"
    command = [sys.executable, "-m", "vitscale", "report"]
    done = subprocess.run([*command, str(unbroken.folder), "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 100_000
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no run" in done.stderr


@pytest.mark.slow       # a real run of its own over damaged images
def test_pictures_of_samples_that_could_not_be_used(look: Look, keep: Keep, place: Path) -> None:
    with wds.ShardWriter(str(place / "bad-%06d.tar"), verbose=0) as writer, tarfile.open(place / "data/digits/train-000000.tar") as source:
        images = [source.extractfile(one).read() for one in source.getmembers() if one.name.endswith(".png")][:64]     # type: ignore[union-attr]
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
        jpeg = cv2.imencode(".jpg", cv2.resize(noise, (600, 400)))[1].tobytes()
        for number, image in enumerate(images):
            broken = {5: jpeg[: len(jpeg) // 2], 9: b"no image", 12: images[12][:-20]}.get(number, image)
            writer.write({"__key__": f"{number:06d}", "png": broken, "cls": str(number % 10)})
    train(place, *SMALL, "name=b", "duration=4 steps", "optim.warmup=0 steps", "data.train=bad-000000.tar", "data.num_samples=64",
          "data.prepare=null", "data.max_bad_fraction=0.5")
    run = Run(place / "runs" / "b")
    rows = run.rows("quarantine.jsonl")
    assert {row["key"] for row in rows} == {"000005", "000009", "000012"}
    torn = next(number for number, row in enumerate(rows) if row["key"] == "000005")
    other = next(number for number, row in enumerate(rows) if row["key"] == "000009")
    with monitoring(place / "runs") as url:
        path = f"/api/run/{only_run(url)}/picture"
        status, picture, headers = fetch(url, f"{path}/{torn}")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert max(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape) <= 192
        assert picture[:200] != jpeg[:200]      # encoded anew
        status, why, _ = fetch(url, f"{path}/{other}")
        assert status == 404
        assert b"is no JPEG" in why
        page = look(f"{url}#/run/{only_run(url)}", complaining=True)
        expect(page.locator(".sample")).to_have_count(len(rows))
        drawn = page.locator(".sample", has_text="000005").first.locator("img")
        drawn.scroll_into_view_if_needed()
        expect(drawn).to_have_js_property("naturalWidth", 192)      # of 600 pixels
        expect(page.locator(".sample", has_text="000009").first).to_contain_text("is no JPEG")
        keep(page, "run-bad-samples")
        # a row may name any file: only the run's own shards are opened
        secret = place / "secret.tar"
        secret.write_bytes((place / "bad-000000.tar").read_bytes())
        with open(run.folder / "quarantine.jsonl", "a") as file:
            for shard in (str(secret), "/etc/passwd", "https://example.invalid/x.tar", "../bad-000000.tar"):
                file.write(json.dumps(rows[torn] | {"shard": shard}) + "\n")
        for number in range(len(rows), len(rows) + 4):
            assert fetch(url, f"{path}/{number}")[0] == 404
    report = look((run.folder / "report.html").as_uri(), offline=True)
    expect(report.locator(".sample img").first).to_be_visible()
    assert str(report.locator(".sample img").first.get_attribute("src")).startswith("data:image/jpeg;base64,")
