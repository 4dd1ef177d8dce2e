"""Packages of other people's that offer backbones, installed as far as Python's metadata tells."""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs" / "extending.md"


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "other", package: str = "others_module",
          target: str = "build") -> None:
    """`package`, a module of this source, offers its `target` under `name`, in this process until the test is over."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{package}.py").write_text(source)
    about = folder / f"{package}-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.5\n")
    (about / "entry_points.txt").write_text(f"[vitscale.backbones]\n{name} = {package}:{target}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, package, raising=False)
    importlib.invalidate_caches()


def files_in(text: str) -> dict[str, str]:
    """name -> content of the files that a page of the docs shows."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL))


@dataclass(frozen=True)
class Block:
    """A piece of code of docs/extending.md, and where it goes: a `new` file, or `into` one that is there, before a line that begins so."""

    kind: str
    path: str
    before: str
    code: str


def blocks_in(title: str) -> list[Block]:
    """Those of one section of the page."""
    section = DOCS.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"<!-- (new|into): (\S+)(?: before: ([^\n]+?))? -->\n```python\n(.*?)```", section, re.DOTALL)
    assert found, title
    return [Block(*one) for one in found]


def put(block: Block, folder: Path) -> None:
    """Do what the page says to a copy of the package in `folder`."""
    file = folder / block.path
    if block.kind == "new":
        assert not file.exists()
        file.write_text(block.code, encoding="utf-8")
    else:
        text, mark = file.read_text(encoding="utf-8"), "\n" + block.before.replace("\\n", "\n")
        assert text.count(mark) == 1, f"{block.path}: {mark!r}"
        file.write_text(text.replace(mark, f"\n{block.code}{mark[1:]}"), encoding="utf-8")
