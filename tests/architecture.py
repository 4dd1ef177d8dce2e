"""Writes the tree of docs/architecture.md from the modules' first lines: `make docs`.  A test holds that it was run."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->\n"


def first_line(path: Path) -> str:
    """The first sentence, or line, of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) {2,}|(?<=\w\.) (?=[A-Z])|\. \|", text)[0].rstrip(".")


def tree(package: Path) -> str:
    """Every module with its first line, by room, the rooms in the order of tests/test_layout.py's floors."""
    from test_layout import FLOORS

    rooms: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        rooms.setdefault(path.relative_to(package).with_suffix("").parts[0], []).append(path)
    lines = []
    for room in ("__init__", "__main__", *FLOORS):
        for path in rooms.pop(room):
            name = path.relative_to(package).as_posix()
            if path.name == "__init__.py" and path.parent.name == room:
                lines += ["", f"**{room}/** {first_line(path)}", ""]
            elif name == path.name and any(line.startswith("**") for line in lines):      # a file between two rooms
                lines += ["", f"**{name}** {first_line(path)}"]
            else:
                lines.append(f"* `{name}` {first_line(path)}")
    assert not rooms, f"rooms that are on no floor: {', '.join(rooms)}"
    return "\n".join(lines).strip() + "\n"


def page(text: str) -> str:
    """The page with the tree as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tree(ROOT / "vitscale") + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
