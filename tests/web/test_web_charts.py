"""Charts in a real browser: gaps where nothing ran, and marks of axes that are round, exact and unlike each other, whatever the range."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pages import Keep, Look, monitoring
from playwright.sync_api import Page, expect

from vitscale.observe.report import write_report

MIDNIGHT = 1_764_547_200.0      # 2025-12-01 00:00 UTC
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50, "EiB": 2**60, "d": 86400, "h": 3600, "min": 60,
         "s": 1, "ms": 1e-3, "%": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9}
RANGES = [(0, 1), (0.1, 0.2), (2.3, 2.3001), (2.3, 2.3 + 1e-7), (1e-9, 3e-9), (-5, 5), (-3e-4, -1e-4), (-1e12, 3e12), (0, 40e9),
          (37.2 * 2**30, 37.4 * 2**30), (1e-4, 5000), (59, 61), (0, 7200), (3500, 3700), (0, 3e6), (1, 100), (999_999, 1_000_003),
          (0.97, 0.999), (1e300, 2e300), (0, 86400 * 400), (7, 7.4)]
CLOCKS = [(0, 0.02), (0, 0.4), (0, 3), (0, 50), (0, 600), (-10, 10), (-3600, 3600), (0, 86400), (-40000, 3 * 86400), (0, 40 * 86400),
          (0, 400 * 86400), (0, 4000 * 86400), (-40 * 365 * 86400, 0)]


@pytest.fixture
def zoned(browser: Any) -> Any:
    """A page with the scripts, in a place whose clocks are not UTC's and change twice a year."""
    from vitscale.pages.document import asset

    context = browser.new_context(timezone_id="America/New_York")
    page = context.new_page()
    page.set_content("<html></html>")
    page.add_script_tag(content="".join(asset(f"pages/static/{name}.js") for name in ("elements", "charts", "ticks")))
    yield page
    context.close()


def value_of(label: str) -> float:
    """What a label says: 1 min 30 s, 37.5 GiB, 1,200, 2.5e-7, 12.5 %, 3M."""
    label = label.replace(",", "").replace("–", "-")
    sign = -1 if label.startswith("-") else 1
    parts = re.findall(r"([0-9.]+(?:e-?[0-9]+)?)\s*([A-Za-z%]*)", label.lstrip("-"))
    assert parts, label
    return sign * sum(float(number) * UNITS.get(unit, 1 if not unit else math.nan) for number, unit in parts)


@pytest.mark.parametrize("kind", ["number", "count", "percent", "bytes", "span", "short"])
def test_every_mark_is_inside_exact_and_unlike_the_others(zoned: Page, kind: str) -> None:
    for least, most in RANGES:
        for log in (False, True):
            for count in (2, 4, 6, 12):
                found = zoned.evaluate("([kind, least, most, count, log]) => V.ticks(kind, least, most, count, log)",
                                       [kind, least, most, count, log])
                labels = [label for _, label in found]
                told = (kind, least, most, log, count, found)
                assert len(set(labels)) == len(labels), told
                assert len(found) <= 2.6 * count + 2, told
                assert len(found) >= 2 or (kind == "count" and most - least < 2), told
                room = 1e-9 * max(abs(least), abs(most))
                for value, label in found:
                    assert least - room <= value <= most + room, told
                    assert value_of(label) == pytest.approx(value, rel=1e-12, abs=1e-12 * (most - least)), told
                    assert len(label) < 28, told


def test_every_time_of_day_is_exact_and_says_its_day_where_there_are_several(zoned: Page) -> None:
    for base in (MIDNIGHT, MIDNIGHT + 5 * 3600, 1_762_063_200.0):       # the last: the hour that comes twice in New York
        for since, until in CLOCKS:
            for count in (3, 6, 12):
                ends = [base + since, base + until, count]
                found = zoned.evaluate("([least, most, count]) => V.ticks('clock', least, most, count)", ends)
                labels = [label for _, label in found]
                told = (base, since, until, count, found)
                if base != 1_762_063_200.0 or until - since > 7200:
                    assert len(set(labels)) == len(labels), told
                assert len(found) >= 2, told
                for value, label in found:
                    assert base + since - 1e-3 <= value <= base + until + 1e-3, told
                    clock = zoned.evaluate("value => { const at = new Date(Math.round(1000 * value)); return [at.getFullYear(), "
                                           "at.getMonth() + 1, at.getDate(), at.getHours(), at.getMinutes(), at.getSeconds(), "
                                           "at.getMilliseconds()]; }", value)
                    year, month, day, hour, minute, second, milli = clock
                    if match := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", label):
                        assert [int(part) for part in match.groups()] == [year, month, day], told
                        assert hour == minute == second == 0, told
                        continue
                    match = re.fullmatch(r"(?:(?:(\d{4})-)?(\d\d)-(\d\d) )?(\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?", label)
                    assert match, told
                    assert [int(match[4]), int(match[5]), int(match[6] or 0)] == [hour, minute, second], told
                    assert abs(float(match[7] or 0) - milli / 1000) < 2e-3, told
                    if match[3]:
                        assert [int(match[2]), int(match[3])] == [month, day], told
                days = zoned.evaluate("values => new Set(values.map(value => new Date(1000 * value + 1e-3).toDateString())).size",
                                      [value for value, _ in found])
                assert days == 1 or all("-" in label for label in labels), told


def rows(attempt: int, first: int, start: float, count: int = 30, every_s: float = 2.0, slow: int = 0) -> list[dict[str, Any]]:
    """A step every two seconds, evaluations after 20 steps and at the end, of four ranks."""
    made: list[dict[str, Any]] = []
    for at in range(count):
        own = [0.1 + 0.001 * at + (0.4 if rank == slow else 0.0) for rank in range(4)]
        made.append({"step": first + at, "images": 32 * (first + at), "time": start + every_s * at, "loss": 2.0 - 0.001 * at, "lr": 1e-3,
                     "grad_norm": 1.0, "applied": True, "images_per_second": 100.0 + at, "mfu": 0.4, "seconds_data_wait": 0.01,
                     "seconds_compute": 0.1, "skew": 1.1, "own_s": own, "own_max_s": max(own), "own_median_s": 0.1,
                     "resident_bytes": 40e9, "loader_ready": 3, "attempt": attempt})
        if at == 19:
            made.append({"step": first + at, "images": 0, "time": start + every_s * at + 0.5, "eval_loss": 1.6, "eval_top1": 0.4,
                         "attempt": attempt})
    made.append({"step": first + count - 1, "images": 0, "time": start + every_s * count + 1, "eval_loss": 1.5, "eval_top1": 0.5,
                 "attempt": attempt})
    return made


def near(moment: float) -> Any:
    return pytest.approx(moment, rel=0, abs=0.01)


def written(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "recipe.yaml").write_text("name: x\n")
    return folder


def held(page: Page, title: str, name: str) -> Any:
    plot = page.locator("figure.card", has=page.locator("figcaption .title", has_text=re.compile(f"^{re.escape(title)}$"))).locator(".plot")
    expect(plot).to_have_attribute(f"data-{name}", re.compile(r"^\["))
    return json.loads(plot.get_attribute(f"data-{name}") or "")


def test_an_hour_in_which_nothing_ran_is_a_gap_in_every_chart_of_page_and_report(look: Look, keep: Keep, tmp_path: Path) -> None:
    start, again = MIDNIGHT + 4000, MIDNIGHT + 4000 + 3660
    folder = written(tmp_path / "runs" / "gap", rows(1, 1, start) + rows(2, 21, again, slow=2))
    write_report(folder, tmp_path / "report.html")
    with monitoring(tmp_path / "runs") as url:
        for where in ("page", "report"):
            page = look(url if where == "page" else (tmp_path / "report.html").as_uri())
            if where == "page":
                page.get_by_role("link", name="gap").click()
            last, gap = start + 58.0, [[near(start + 58), near(again)]]
            for title in ("Throughput", "MFU", "Where a step's time goes", "Learning rate", "Gradient norm", "Memory", "Batches ready",
                          "Slowest rank over the median"):
                for line in held(page, title, "gaps"):
                    assert line == gap, (where, title)
            training, evaluation = held(page, "Loss", "gaps")
            assert training == gap
            assert evaluation == [[near(start + 38.5), near(again + 38.5)]]     # that of step 30 was undone: the run resumed from step 20
            assert held(page, "Accuracy", "gaps") == [evaluation]
            painted = held(page, "Each rank's own time of a step", "painted")
            assert painted == [[near(start - 1), near(last + 1)], [near(again - 1), near(again + 59)]]
            assert len(set(held(page, "Memory", "y"))) == len(held(page, "Memory", "y")) >= 2
            assert all(re.fullmatch(r"[0-9.,]+ GiB", label) for label in held(page, "Memory", "y") if label != "0")
            if where == "page":
                keep(page, "run-gap")
            page.get_by_role("button", name="Steps").click()
            expect(page.locator("figure.card .plot").first).to_have_attribute("data-gaps", "[[]]")
            assert len(held(page, "Each rank's own time of a step", "painted")) == 1


@pytest.mark.all        # a page for each
@pytest.mark.parametrize(("name", "change"), [
    ("constant", lambda at, row: row | {"loss": 2.3, "resident_bytes": 5e9}),
    ("tiny", lambda at, row: row | {"loss": 2.3 + 1e-9 * at, "images_per_second": 1e-7 * at}),
    ("huge", lambda at, row: row | {"loss": 1e300, "grad_norm": 1e12 * at, "resident_bytes": 1e15}),
    ("negative", lambda at, row: row | {"loss": -1.0 - at, "images_per_second": -5.0, "mfu": -0.1, "seconds_compute": -1.0}),
    ("midnight", lambda at, row: row | {"time": MIDNIGHT - 20 + at}),
    ("days", lambda at, row: row | {"time": MIDNIGHT + 20000 * at}),
    ("instant", lambda at, row: row | {"time": MIDNIGHT + 0.001 * at}),
    ("one", lambda at, row: row if at == 0 else None),
    ("nothing", lambda at, row: row | {"loss": None, "lr": None, "mfu": None}),
])
def test_marks_of_every_chart_are_distinct_for_any_record(look: Look, tmp_path: Path, name: str, change: Any) -> None:
    lines = [changed for at, row in enumerate(rows(1, 1, MIDNIGHT)[:30]) if (changed := change(at, row)) is not None]
    write_report(written(tmp_path / name, lines), tmp_path / "report.html")
    page = look((tmp_path / "report.html").as_uri())
    for turn in ("Wall clock", "Steps"):
        page.get_by_role("button", name=turn).click()
        for log in (False, True):
            if log:
                for button in page.locator("figure:not([hidden]) button:visible").all():
                    button.click()
            page.wait_for_timeout(100)
            told = page.locator("figure:not([hidden]) .plot").evaluate_all("all => all.map(plot => [plot.dataset.x, plot.dataset.y])")
            assert told
            for axes in told:
                for text in axes:
                    labels = [label for label in json.loads(text) if label != ""]
                    assert len(set(labels)) == len(labels), (name, turn, log, labels)
                    assert not any("NaN" in label for label in labels), (name, turn, log, labels)
                    assert labels or name in ("nothing", "negative"), (name, turn, log, axes)
