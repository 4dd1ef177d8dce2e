"""Measures the CPU's ratios anew and holds them against the stored rows: a loss of more than a tenth, found twice, fails.  Times are not
compared.

    python benchmarks/check.py                      or: make bench-check
    python benchmarks/check.py --fresh FOLDER       compares rows that are there already
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import HERE

ALLOWED = 0.10      # of a ratio
RUNS = (["data.py", "--only", "crop", "read", "end", "--rounds", "7", "--samples", "960"], ["models.py", "--rounds", "15"])


def losses(stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> tuple[list[str], int]:
    """-> (what got worse by more than ALLOWED, how many figures were compared).  Rows by name.  Compared are ratios (unit x), of rows that
    were made on the same shards, if on any."""
    worse, compared = [], 0
    for name in sorted({*stored} & {*fresh}):
        if stored[name].get("shards", {}).get("sha256") != fresh[name].get("shards", {}).get("sha256"):
            continue
        before = {one["name"]: one for one in stored[name]["figures"] if one["unit"] == "x"}
        for one in fresh[name]["figures"]:
            if (old := before.get(one["name"])) is None or one["unit"] != "x":
                continue
            compared += 1
            less_is_better = old.get("goal", "").startswith("<=")
            if (one["value"] > old["value"] * (1 + ALLOWED)) if less_is_better else (one["value"] < old["value"] * (1 - ALLOWED)):
                worse.append(f"{name}: {one['name']}: {old['value']:.3g} -> {one['value']:.3g}")
    return worse, compared


def measured(shards: str | None) -> dict[str, Any]:
    """The rows of RUNS, made now."""
    with tempfile.TemporaryDirectory() as name:
        for program, *options in RUNS:
            if program == "data.py":
                if shards is None:
                    print("data: not compared, since no --shards were given", file=sys.stderr)
                    continue
                options = [*options, "--shards", shards]
            subprocess.run([sys.executable, str(HERE / program), *options, "--rows", name], check=True)
        return read(Path(name))


def _what(line: str) -> str:
    """Which figure of which row a line of losses() is about: what stands before its numbers."""
    return line.rpartition(": ")[0]


def read(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    parser.add_argument("--fresh", type=Path, help="rows that were just made; default: they are made now")
    parser.add_argument("--shards", help="those that the stored rows of data were made with; without them these rows are not compared")
    given = parser.parse_args(arguments)
    stored = read(given.rows)
    if given.fresh is not None:
        worse, compared = losses(stored, read(given.fresh))
    else:
        worse, compared = losses(stored, measured(given.shards))
        if worse:
            print("\n".join(["measured once more, since these fell:", *worse]), file=sys.stderr)
            again = {_what(line) for line in losses(stored, measured(given.shards))[0]}
            worse = [line for line in worse if _what(line) in again]
    if not compared:
        raise SystemExit("no ratio could be compared")
    if worse:
        raise SystemExit("\n".join([f"{len(worse)} of {compared} ratios fell by more than {ALLOWED:.0%}:", *worse]))
    print(f"{compared} ratios are within {ALLOWED:.0%} of the stored rows, or better")


if __name__ == "__main__":
    main()
