"""The files of the page as they come along with the package: one script for the live page and for the report."""

from functools import cache
from importlib.resources import files

ASSETS = {"uplot.js": "text/javascript", "charts.js": "text/javascript", "ticks.js": "text/javascript",
          "views.js": "text/javascript", "page.js": "text/javascript",
          "uplot.css": "text/css", "page.css": "text/css"}
SCRIPTS = tuple(name for name in ASSETS if name.endswith(".js"))     # in the order in which they are loaded
SHEETS = tuple(name for name in ASSETS if name.endswith(".css"))


@cache
def asset(name: str) -> str:
    """One of ASSETS."""
    return files("vitscale.observe.dashboard").joinpath("static", name).read_text(encoding="utf-8")


def index_page() -> str:
    """The live page; all it shows it asks for."""
    sheets = "".join(f'<link rel="stylesheet" href="static/{name}">' for name in SHEETS)
    scripts = "".join(f'<script src="static/{name}" defer></script>' for name in SCRIPTS)
    return document("vitscale", sheets + scripts)


def document(title: str, head: str, body: str = "") -> str:
    """`title` and what is in `head` and `body` must be HTML already."""
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{title}</title><link rel="icon" href="data:,">{head}</head><body><div id="page"></div>'
            f'<noscript>This page draws its charts with JavaScript; the numbers stand in metrics.jsonl.</noscript>{body}</body></html>')
