"""The tables of metrics in docs/monitoring.md, made from the declaration.

    python -m vitscale.metrics.guide docs/monitoring.md         writes them anew
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vitscale.metrics import COLUMNS, METRICS, OF_EVALUATIONS


def series() -> list[str]:
    """What Prometheus is told."""
    told = [f"| `{one.full_name}` | {one.kind} | {', '.join(one.labels)} | {one.scope} | {one.help} |" for one in METRICS]
    return ["| metric | kind | labels | scope | what |", "|---|---|---|---|---|", *told]


def columns() -> list[str]:
    """Those of metrics.jsonl that are numbers of a metric."""
    told = [f"| `{column}` | {f'`{one.full_name}`' if one.name else ''} | {one.help} |" for column, one in COLUMNS.items()]
    averaged = [f"| `{one.averaged}` |  | The same as `{one.column}`, of the averaged weights (`ema`). |" for one in OF_EVALUATIONS]
    return ["| column | metric | what |", "|---|---|---|", *told, *averaged]


TABLES: Mapping[str, Callable[[], list[str]]] = {"series": series, "columns": columns}


def written(guide: str) -> str:
    """The guide with its tables anew: each stands between <!-- NAME --> and <!-- end of NAME -->."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        text = begin + "\n" + "\n".join(rows()) + "\n\n" + end
        guide, found = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, text=text: text, guide, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"the guide has {found} places for the table of {name}")
    return guide


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
