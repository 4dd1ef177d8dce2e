"""Packages of other people's that offer backbones, installed as far as Python's metadata tells."""

import importlib
import re
import sys
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
