"""A real Chromium looks at the real page of real run folders; screenshots stay in build/screens for people."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import Keep, Look
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
SCREENS = Path(__file__).parents[2] / "build" / "screens"
PATIENCE_MS = 60_000        # on a machine whose cores are busy elsewhere


@pytest.fixture(scope="module")       # no longer: two of playwright's loops in one thread refuse each other
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def complains(said: ConsoleMessage) -> bool:
    """A server that ends before the browser does is no fault of the page."""
    return said.type in ("error", "warning") and "ERR_CONNECTION_REFUSED" not in said.text


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Open an address and wait until its numbers stand there.  Whatever the page's script complains of fails the test."""
    opened, complaints = [], []

    def open_page(url: str, *, width: int = 1280, scheme: str = "light", offline: bool = False, complaining: bool = False) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=offline)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        if not complaining:
            page.on("console", lambda said: complaints.append(said.text) if complains(said) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("main[data-ready]")
        return page

    yield open_page
    for context in opened:
        context.close()
    assert complaints == []


@pytest.fixture
def keep() -> Keep:
    def save(page: Page, name: str) -> None:
        SCREENS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENS / f"{name}.png", full_page=True)

    return save
