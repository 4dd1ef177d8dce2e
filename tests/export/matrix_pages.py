"""What became of the cases of tests/export/interchange.py: kept beside it, and told by the tables of docs/models.md and README.md."""

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("interchange.json")
ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- matrix -->\n", "<!-- /matrix -->"
Results = dict[str, dict[str, Any]]     # library -> its version, the date, rows


def kept(version: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [{key: row[key] for key in ("name", "options", "result", "words") if key in row} for row in found]
    return {"version": version, "date": datetime.date.today().isoformat(), "rows": rows}


def write(results: Results) -> None:
    """One case a line; and the pages' tables."""
    lines = [f'{json.dumps(library)}: {{"version": "{found["version"]}", "date": "{found["date"]}", "rows": [\n'
             + ",\n".join(map(json.dumps, found["rows"])) + "\n]}" for library, found in sorted(results.items())]
    RESULTS.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    for page, text in pages(results).items():
        page.write_text(text, encoding="utf-8")


def pages(results: Results) -> dict[Path, str]:
    """What the pages that tell of these results are to be."""
    found = dict[Path, str]()
    for page, told in ((ROOT / "docs" / "models.md", table(results)), (ROOT / "README.md", summary(results))):
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        found[page] = f"{before}{BEGIN}{told}\n{END}{rest.partition(END)[2]}"
    return found


def groups(results: Results) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Library, class, and the cases of it that there are at all."""
    from vitscale.models.timm_section import architectures

    for library, found in sorted(results.items()):
        by_class: dict[str, list[dict[str, Any]]] = {}
        for row in found["rows"]:
            if row["result"] != "no model":
                by_class.setdefault(architectures().get(row["name"], ("others",))[0] if library == "timm" else row["name"], []).append(row)
        yield from ((library, name, rows) for name, rows in sorted(by_class.items()))


def table(results: Results) -> str:
    """By class of each library: how many of its cases are read with equal answers, and by which keys the others are refused."""
    lines = ["| library | class | cases | equal answers | backbone alone | refused by |", "|---|---|---|---|---|---|"]
    for library, name, rows in groups(results):
        keys = sorted({key for row in rows if row["result"] == "refused" for key in _refused(row["words"])})
        counts = Counter(row["result"] for row in rows)
        lines.append(f"| {library} | {name} | {len(rows)} | {counts['equal']} | {counts['backbone'] or ''} | {', '.join(keys)} |")
    return "\n".join(lines)


def summary(results: Results) -> str:
    """By library, which of its families are read, and what became of all the cases."""
    lines = ["| library | read | cases | equal answers | backbone alone | refused by name |", "|---|---|---|---|---|---|"]
    for library, found in sorted(results.items()):
        mine = [(name, rows) for one, name, rows in groups(results) if one == library]
        counts = Counter(row["result"] for _, rows in mine for row in rows)
        read = ", ".join(dict.fromkeys(re.sub(r"(Vision)?(Model|For[A-Z]).*", "", name) for name, rows in mine if any(
            row["result"] == "equal" for row in rows)))
        lines.append(f"| {library} {found['version']}, {found['date']} | {read} | {sum(counts.values())} | {counts['equal']} "
                     f"| {counts['backbone']} | {counts['refused']} |")
    return "\n".join(lines)


def _refused(words: str) -> list[str]:
    """The keys that a refusal names, or its tensors, or what it says."""
    keys = [line.split()[0].removeprefix("model_args.") for line in words.splitlines() if line.startswith("  ") and line.split()]
    return keys or ["its class" if "is none of timm's" in words else "its tensors" if "tensors" in words or "'" in words else "other"]
