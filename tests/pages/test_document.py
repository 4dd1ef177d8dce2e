"""Documents hold whatever files may say, as text; nothing in it ends an element, and what is no JSON is said in JSON."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.observe.report import render_report
from vitscale.pages.document import SCRIPTS, SHEETS, as_json, linked, one_file
from vitscale.pages.sheet import DrawnLine, chart


class Elements(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words[self.tags[-1]] = self.words.get(self.tags[-1], "") + data


PLAIN = Elements(one_file("x", {})).tags
ANY = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.text(st.characters()) | st.sampled_from(
    ["</script><script>alert(1)</script>", "<!--", "\udcff", "]]>", "\u2028", "<img src=x onerror=alert(1)>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)


@given(title=st.text(st.characters(codec="utf-8")).filter(lambda text: "\r" not in text and "\0" not in text), held=ANY)
def test_whatever_is_held_comes_back_and_is_no_markup(title: str, held: object) -> None:
    found = Elements(one_file(title, held))
    assert found.tags == PLAIN
    assert found.words.get("title", "") == title
    data = re.search(r'<script type="application/json" id="held">(.*?)</script>', one_file(title, held), re.DOTALL)
    assert data is not None
    assert json.loads(data[1]) == json.loads(json.dumps(held, ensure_ascii=False).encode("utf-8", "replace"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("beside", ["plain", "half a character \ud800"])
def test_what_is_not_finite_is_null(value: float, beside: str) -> None:
    assert json.loads(as_json({"a": [value], "b": beside}), parse_constant=pytest.fail)["a"] == [None]


def test_a_run_whose_end_names_half_a_character_has_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    said = {"state": "failed", "exit_code": 3, "reason": "b\udcffd.jpg: no such file", "time": float("inf")}
    (folder / "outcome.json").write_text(json.dumps(said))
    report = render_report(folder)
    report.encode()
    assert "b?d.jpg" in report or "b\N{REPLACEMENT CHARACTER}d.jpg" in report


def test_a_live_page_links_what_a_file_holds() -> None:
    text = linked("<b>", ("observe/dashboard/static/page.css",), ("observe/dashboard/static/page.js",))
    named = re.findall(r'static/([^"]+)', text)
    assert named == [name.split("/")[-1] for name in (*SHEETS, "page.css", *SCRIPTS, "page.js")]
    assert "<title>&lt;b&gt;</title>" in text


def test_points_at_one_place_keep_columns_of_their_own() -> None:
    points, curve = DrawnLine("a", [2, 1, 2], [5, 6, 7], 0, names=["p", "q", "r"]), DrawnLine("b", [2, 3], [8, 9], None, 0.5, True)
    made = chart("t", "u", [points, curve], xlabel="x", log=True)
    columns = list(zip(made["x"], made["names"], made["series"]["0"]["mean"], made["series"]["1"]["mean"], strict=True))
    assert columns == [(1, "q", 6, None), (2, "p", 5, None), (2, "r", 7, None), (2, None, None, 8), (3, None, None, 9)]
