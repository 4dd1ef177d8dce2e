"""The page of what is half-written, damaged, foreign, hostile, huge in number or newer than itself: it says so, and shows the rest."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import Keep, Look, copied, fetch, held, monitoring, only_run, rows_of, steps, write_rows
from playwright.sync_api import expect
from running import Run

from vitscale.observe.dashboard.table import Table
from vitscale.observe.dashboard.view import run_view


def test_a_half_written_line_waits_until_it_is_whole(look: Look, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path, "torn")
    rows = rows_of(folder)
    held(folder)
    line = json.dumps(next(row for row in reversed(rows) if "loss" in row) | {"step": 61, "loss": 9.25}).encode() + b"\n"
    with monitoring(tmp_path) as url, open(folder / "metrics.jsonl", "ab", buffering=0) as file:
        file.write(line[:40])
        page = look(f"{url}#/run/{only_run(url)}")
        expect(page.locator(".tile.wide .more")).to_contain_text("step 60")
        expect(page.locator(".notice")).to_have_count(0)
        file.write(line[40:])
        expect(page.locator(".tile.wide .more")).to_contain_text("step 61")
        expect(page.locator(".tile", has_text="Loss").first).to_contain_text("9.25")


def test_losses_that_are_not_finite(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path, "nan")
    rows = [row | {"loss": None, "grad_norm": None, "applied": False} if row.get("step") in (20, 21, 22) and "loss" in row else row
            for row in rows_of(folder)]
    write_rows(folder, rows)
    with open(folder / "metrics.jsonl", "a") as file:       # as others may write it
        file.write(f'{{"step": 61, "images": 1950, "time": {time.time()}, "loss": NaN, "lr": Infinity, "applied": false, "attempt": 1}}\n')
    with monitoring(tmp_path) as url:
        page = look(f"{url}#/run/{only_run(url)}")
        expect(page.locator(".tile", has_text="Loss").first).to_contain_text("4 not finite")
        loss = page.locator(".plot[aria-label^='Loss']").get_attribute("aria-label")
        assert "NaN" not in str(loss)
        keep(page, "run-nan")


def test_two_hundred_runs(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    for number in range(200):
        folder = copied(unbroken.folder, tmp_path, f"run-{number:03d}")
        write_rows(folder, [row | {"loss": 5 - number / 100} if "loss" in row else row for row in rows_of(folder)])
    with monitoring(tmp_path) as url:
        page = look(url)
        expect(page.locator("table.runs tbody tr")).to_have_count(200)
        page.get_by_role("button", name="Loss", exact=True).click()
        page.get_by_role("button", name="Loss", exact=True).click()
        expect(page.locator("tbody tr").first).to_contain_text("run-199")
        page.get_by_label("Filter runs by name").fill("run-15")
        expect(page.locator("tbody tr")).to_have_count(10)
        keep(page, "overview-200")
        began = time.monotonic()
        fetch(url, "/api/runs")
        assert time.monotonic() - began < 5      # nothing has changed: about 0.1 s on a free core


@pytest.mark.slow       # 150,000 rows are written and read
def test_a_long_record_is_there_at_once_and_loses_no_peak(look: Look, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path, "long")
    rows = steps(folder)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, 150_001):
            row = rows[step % len(rows)] | {"step": step, "images": 32 * step, "time": 1.7e9 + step, "attempt": 1}
            file.write(json.dumps(row | {"grad_norm": 777.5} if step == 77_777 else row) + "\n")
    table = Table(folder / "metrics.jsonl")
    assert not table.refresh(0.05)
    first = run_view(folder, table)
    assert 0 < first["read_ratio"] < 1
    assert len(first["x"]) > 300            # few rows stand for what is not read yet
    assert first["x"][-1] > 1.7e9 + 149_000
    with monitoring(tmp_path) as url:
        run = f"/api/run/{only_run(url)}"
        page = look(f"{url}#{run.removeprefix('/api')}")
        expect(page.locator(".notice")).to_have_count(0)
        norm = page.locator(".plot[aria-label^='Gradient norm']")
        expect(norm).to_have_attribute("aria-label", re.compile("most 777.5"))
        _, text, headers = fetch(url, run)
        assert json.loads(text)["recorded"] == 150_000
        assert len(text) < 1_000_000
        assert fetch(url, run, **{"If-None-Match": headers["etag"]})[0] == 304      # nothing new: nothing is sent


HOSTILE = "<img src=x onerror=alert(1)>'\"&{{7*7}}"


def test_names_and_texts_are_never_markup(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path / "runs", HOSTILE)
    script = "</script><script>alert(2)</script><!-- <script>"
    outcome = json.loads((folder / "outcome.json").read_text())
    outcome |= {"state": script, "reason": f"{script}\u202e\x1b[31m", "best": {script: script}}
    (folder / "outcome.json").write_text(json.dumps(outcome))
    (folder / "recipe.yaml").write_text(f"name: x # {script}\n" + (folder / "recipe.yaml").read_text())
    sample = {"step": 1, "reason": script, "shard": script, "key": script, "detail": script}
    (folder / "quarantine.jsonl").write_text(json.dumps(sample) + "\n")
    (folder / "attempts.jsonl").write_text((folder / "attempts.jsonl").read_text() * 2 + json.dumps(
        {"attempt": 2, "started": 1.0, "time": time.time(), "step": 1, "cause": script, "reason": script, "host": script}) + "\n")
    with monitoring(tmp_path / "runs") as url:
        # a picture that is not there is an error to a browser's console
        page = look(url, complaining=True)
        page.get_by_role("link", name=HOSTILE).click()
        expect(page.locator("h1")).to_have_text(HOSTILE)
        expect(page.locator(".badge").first).to_have_text(script)
        expect(page.locator(".sample")).to_contain_text(script)
        assert page.locator("main img[src=x], main script").count() == 0
        keep(page, "run-hostile")
        status, _, headers = fetch(url, f"/report/{only_run(url)}")
        assert status == 200
        assert not set("<>\"\n") & set(headers["content-disposition"])
    done = subprocess.run([sys.executable, "-m", "vitscale", "report", str(folder), "--out", str(tmp_path / "r.html")], capture_output=True)
    assert done.returncode == 0, done.stderr
    page = look((tmp_path / "r.html").as_uri(), offline=True)
    expect(page.locator("h1")).to_have_text(HOSTILE)
    expect(page.locator(".badge").first).to_have_text(script)


def test_damaged_and_foreign_folders_beside_a_sound_run(look: Look, keep: Keep, tmp_path: Path, unbroken: Run) -> None:
    copied(unbroken.folder, tmp_path, "sound")
    broken = copied(unbroken.folder, tmp_path, "broken")
    lines = (broken / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    garbage = [b"\x00\xff\xfe garbage\n", b"[1, 2]\n", b'{"loss": {"a": 1}, "step": "x"}\n']
    (broken / "metrics.jsonl").write_bytes(b"".join([*lines[:30], *garbage, *lines[30:]]))
    for name in ("outcome.json", "goodput.json", "environment.json", "attempts.jsonl", "quarantine.jsonl"):
        (broken / name).write_bytes(b"\x80[" * 50)
    (broken / "recipe.yaml").write_text("{" * 2000)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    (tmp_path / "folder-as-file").mkdir()
    (tmp_path / "folder-as-file" / "metrics.jsonl").mkdir()
    with monitoring(tmp_path) as url:
        page = look(url)
        expect(page.locator("tbody tr", has_text="sound")).to_contain_text("done")
        expect(page.locator("tbody tr", has_text="broken")).to_contain_text("step 60")
        expect(page.locator("details", has_text="no run that could be read")).to_contain_text("1 other folder holds no run")
        page.get_by_role("link", name="broken").click()
        expect(page.locator(".notice")).to_contain_text("lines that could not be read")
        expect(page.locator(".plot[aria-label^='Throughput']")).to_be_visible()
        page.goto(url)
        page.get_by_role("link", name="folder-as-file").click()
        expect(page.locator(".notice", has_text="metrics.jsonl cannot be read: Is a directory")).to_be_visible()


def test_a_run_of_a_newer_version(look: Look, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path, "tomorrow")
    outcome = json.loads((folder / "outcome.json").read_text())
    outcome |= {"state": "paused", "versions": {"vitscale": "7.1.0"}, "new": {"a": [1, {"b": 2}]}}
    (folder / "outcome.json").write_text(json.dumps(outcome))
    write_rows(folder, [row | {"seconds_teleport": 0.1, "event" if "eval_loss" in row else "novel": {"x": [1]}} for row in rows_of(folder)])
    (folder / "recipe.yaml").write_text("warp: {factor: 9}\n" + (folder / "recipe.yaml").read_text())
    books = json.loads((folder / "goodput.json").read_text())
    books["seconds"]["teleport"] = 5.0
    books["time"] = time.time() + 10
    (folder / "goodput.json").write_text(json.dumps(books))
    with monitoring(tmp_path) as url:
        page = look(f"{url}#/run/{only_run(url)}")
        expect(page.locator(".notice")).to_contain_text("written by vitscale 7.1.0")
        expect(page.locator(".badge")).to_have_text("paused")
        expect(page.locator(".legend", has_text="teleport")).to_contain_text("teleport5.0 s")
        expect(page.locator(".tile", has_text="Loss").first).to_contain_text(f"{steps(folder)[-1]['loss']:.4g}"[:5])


def test_a_run_that_goes_away_while_it_is_looked_at(look: Look, tmp_path: Path, unbroken: Run) -> None:
    folder = copied(unbroken.folder, tmp_path, "gone")
    with monitoring(tmp_path) as url:
        page = look(f"{url}#/run/{only_run(url)}", complaining=True)
        shutil.rmtree(folder)
        expect(page.get_by_role("alert")).to_contain_text("there is no such run any more")
        expect(page.locator("h1")).to_have_text("gone")     # what was known stays


def test_the_server_ends_and_the_page_says_so(look: Look, unbroken: Run) -> None:
    with monitoring(unbroken.folder.parent) as url:
        page = look(url, complaining=True)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_taken_port_and_no_folder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, "-m", "vitscale", "monitor", str(tmp_path), "--port", port], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"vitscale: 127.0.0.1:{port} cannot be had (Address already in use); choose another --port" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-m", "vitscale", "monitor", str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_who_may_ask(look: Look, unbroken: Run) -> None:
    with monitoring(unbroken.folder.parent) as url:
        assert fetch(url, "/api/runs", Host="evil.example")[0] == 421
        assert fetch(url, "/api/runs", Host="localhost:1")[0] == 200
        assert "default-src 'none'" in fetch(url, "/")[2]["content-security-policy"]
        for path in ("/static/..%2f..%2fserver.py", "/static/server.py", "/api/run/..%2f..%2f", f"/api/run/{'0' * 16}", "/api/sweep/x"):
            assert fetch(url, path)[0] == 404, path
        assert fetch(url, f"/api/run/{only_run(url)}?points=x")[0] == 400
    with monitoring(unbroken.folder.parent, "--token", "open sesame") as url:
        assert fetch(url, "/")[0] == fetch(url, "/api/runs?token=wrong")[0] == 403
        page = look(url)                    # the address that was printed carries it, and it does not stay there
        expect(page.locator("tbody tr")).to_have_count(1)
        assert "token" not in page.url


@pytest.mark.parametrize(("host", "asks"),
                         [("127.0.0.1", False), ("localhost", False), ("::1", False), ("10.0.0.5", True), ("0.0.0.0", True)])
def test_off_loopback_a_token_is_made(host: str, asks: bool) -> None:
    from vitscale.observe.dashboard.server import token_for

    made = token_for(host, None)
    assert (made is not None) == asks
    assert made is None or (len(made) >= 20 and made != token_for(host, None))
    assert token_for(host, "mine") == "mine"
