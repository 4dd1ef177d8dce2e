"""HTML documents: one file that needs neither server nor network, or a page that a server feeds.  Only here is text escaped."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import msgspec

SHEETS = ("pages/static/uplot.css", "pages/static/look.css")
SCRIPTS = ("pages/static/uplot.js", "pages/static/elements.js", "pages/static/charts.js", "pages/static/ticks.js")


@cache
def asset(name: str) -> str:
    """A style or a script that comes along with the package, by its path in it: pages/static/look.css."""
    return files("vitscale").joinpath(name).read_text(encoding="utf-8")


def one_file(title: str, held: Any, *, sheets: Sequence[str] = (), scripts: Sequence[str] = (), body: str = "") -> str:
    """A document with its styles, scripts and numbers inside: it can load nothing, and run no script but its own.

    `title` is text.  `held` is anything that JSON can say; scripts find it as V.held, and put what it says of files, runs and images into
    the page as text.  `sheets` and `scripts`: assets besides those that all pages share.  `body`: HTML of ours, nothing filled in.
    """
    sheet, script = ("\n".join(map(asset, names)) for names in ((*SHEETS, *sheets), (*SCRIPTS, *scripts)))
    policy = (f"default-src 'none'; script-src '{_sha(script)}'; style-src '{_sha(sheet)}'; img-src data:; base-uri 'none'; "
              "form-action 'none'")
    # in a script element only </script and <!-- could end it or confuse it; without < there is neither
    data = as_json(held).decode().replace("<", "\\u003c")
    return _document(title, f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{sheet}</style>',
                     f'{body}<script type="application/json" id="held">{data}</script><script>{script}</script>')


def linked(title: str, sheets: Sequence[str], scripts: Sequence[str]) -> str:
    """A document that asks its server for each asset, as static/NAME, and then for all that it shows."""
    styles, parts = ([PurePosixPath(name).name for name in names] for names in ((*SHEETS, *sheets), (*SCRIPTS, *scripts)))
    return _document(title, "".join([*(f'<link rel="stylesheet" href="static/{name}">' for name in styles),
                                     *(f'<script src="static/{name}" defer></script>' for name in parts)]))


def as_json(value: Any) -> bytes:
    """JSON as browsers read it: what is not finite is null, and half a character, as names of files may have it, a question mark."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace")
        return msgspec.json.encode(json.loads(text))


def _document(title: str, head: str, body: str = "") -> str:
    """`head` and `body` must be HTML already."""
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{html.escape(title)}</title><link rel="icon" href="data:,">{head}</head><body><div id="page"></div>'
            f'<noscript>This page is drawn by JavaScript, which is switched off here.</noscript>{body}</body></html>')


def _sha(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
