"""The explainer's page in a real Chromium: pointing, keyboard, names that want to be markup, light and dark, nothing loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from running import Run
from sklearn.datasets import load_digits

import vitscale
from vitscale.evaluate.images import open_images
from vitscale.explain import Look, rollout
from vitscale.explain.command import Wish, explain

pytestmark = pytest.mark.slow       # a browser, and a trained run
sync_api = pytest.importorskip("playwright.sync_api")
EVIL = "<img src=x onerror='window.hit=1'>.png"


@pytest.fixture(scope="module")
def site(unbroken: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The page of two real digits and the model that it explains."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "in").mkdir()
    for number, name in enumerate(("a.png", EVIL)):
        cv2.imwrite(str(folder / "in" / name), (load_digits().images[1500 + number] * 255 / 16).round().astype(np.uint8))
    loaded = vitscale.load(unbroken.folder)
    explain(loaded, "</title><script>window.hit=1</script>", open_images([str(folder / "in" / name) for name in ("a.png", EVIL)]), Wish(),
            folder / "out")
    return folder / "out" / "index.html", loaded


@pytest.fixture
def page(browser: Any, site: tuple[Path, Any]) -> Iterator[Any]:
    """The page, opened; at the end it must have said nothing on its console and asked nobody for anything."""
    opened, complaints, asked = browser.new_page(viewport={"width": 1300, "height": 900}), [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(site[0].as_uri())
    yield opened
    assert opened.evaluate("window.hit") is None
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    opened.close()


def point_at(page: Any, row: int, column: int) -> None:
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / 4, box["y"] + (row + 0.5) * box["height"] / 4)


def says(page: Any, text: str) -> None:
    """The page says so, as soon as it has drawn."""
    sync_api.expect(page.locator("#says")).to_contain_text(text)


def best_of(weights: Any) -> str:
    """As the page names the place of the largest of (patches,) numbers."""
    place = int(weights.argmax())
    return f"row {place // 4 + 1}, column {place % 4 + 1}"


def test_pointing_at_a_patch_shows_what_it_attends_to(page: Any, site: tuple[Path, Any]) -> None:
    loaded = site[1]
    look = Look(loaded.model, loaded.transform(site[0].parent.parent / "in" / "a.png")[None])
    says(page, "The class token attends to most: " + best_of(look.maps[-1, 0, :, 0, 1:].mean(dim=0)))
    page.select_option("#layer", "1")
    page.select_option("#head", "1")
    point_at(page, 2, 1)
    row = look.maps[1, 0, 1, 1 + 9, 1:]
    says(page, "The patch in row 3, column 2 attends to most: " + best_of(row))
    share = 100 * float(row.max())
    says(page, f"({share:.1f} %)")
    page.mouse.move(5, 5)
    says(page, "The class token")


def test_a_click_holds_a_patch_and_the_small_maps_choose(page: Any) -> None:
    point_at(page, 0, 3)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(5, 5)
    says(page, "row 1, column 4")
    page.keyboard.press("Escape")
    says(page, "The class token")
    box = page.locator("#heads").bounding_box()
    page.mouse.click(box["x"] + 34 + 5, box["y"] + 18 + 5)
    assert page.input_value("#layer") == "0"
    assert page.input_value("#head") == "0"


def test_by_keyboard_alone(page: Any) -> None:
    page.focus("#map")
    page.keyboard.press("ArrowRight")       # the first arrow begins in the middle
    says(page, "row 3, column 3")
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    says(page, "row 4, column 2")
    page.keyboard.press("[")
    page.keyboard.press(".")
    assert (page.input_value("#layer"), page.input_value("#head")) == ("1", "0")      # from the last of three layers
    page.keyboard.press("m")
    assert page.is_checked("input[value=rollout]")
    page.keyboard.press("n")
    assert page.locator("#name").inner_text().endswith(EVIL)
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(now => now.id || now.name || now.getAttribute('role'))(document.activeElement)"))
    assert {"theme", "radio", "map", "method", "strength"} <= reached


def test_every_method_draws_and_speaks(page: Any, site: tuple[Path, Any]) -> None:
    loaded = site[1]
    look = Look(loaded.model, loaded.transform(site[0].parent.parent / "in" / "a.png")[None])
    drawn = set()
    methods = page.eval_on_selector_all("#methods input", "all => all.map(one => one.value)")
    assert methods == ["attention", "rollout", "flow", "relevance", "gradient-rollout", "grad-cam", "pca", "similarity"]
    for method in methods:
        page.check(f"input[value={method}]", force=True)
        drawn.add(page.evaluate("document.getElementById('map').toDataURL()"))
        assert len(page.locator("#says").inner_text()) > 20
        assert page.is_visible("#class") == (method in ("relevance", "gradient-rollout", "grad-cam"))
        assert page.is_visible("#layer") == (method == "attention")
        if method == "rollout":
            assert best_of(rollout(look.maps)[0, 0, 1:]) in page.locator("#says").inner_text()
    assert len(drawn) == len(methods)
    page.check("input[value=relevance]", force=True)
    before = page.evaluate("document.getElementById('map').toDataURL()")
    page.select_option("#class", index=1)
    assert page.evaluate("document.getElementById('map').toDataURL()") != before


def test_names_are_text(page: Any) -> None:
    page.locator("#images button").nth(1).click()
    assert page.locator("#name").inner_text().endswith(EVIL)
    assert page.title() == "</title><script>window.hit=1</script>"
    assert page.locator("#images img").count() == 2


def test_light_dark_and_narrow(page: Any) -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = paper()
    page.click("#theme")
    dark = paper()
    assert light != dark
    page.click("#theme")
    assert paper() == light
    page.emulate_media(color_scheme="dark")
    page.evaluate("delete document.documentElement.dataset.theme")
    assert paper() == dark
    for width in (1300, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
