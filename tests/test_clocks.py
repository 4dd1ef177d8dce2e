"""Wall clocks only label.  They are set, and differ from host to host: what is measured by them must say why it may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import vitscale

PACKAGE = Path(vitscale.__file__).parent
# file: function -> why it may compute with the time of day
ALLOWED = {
    "checkpoint/lease.py: _refuse_if_alive": "shown to people; a holder is judged by whether its heart beats while it is watched",
    "bench/startup.py: measure_startup": "the first row of another process, a few seconds later on the same machine",
    "observe/dashboard/folder.py: line": "makes a label of an age",
    "train/goodput.py: __init__": "makes a label of an age",
    "train/goodput.py: program_started": "a stamp of the future is left aside",
    "train/goodput.py: process_started": "makes a label of the kernel's own count",
    "processes.py: moment": "makes a label of an age",
    "processes.py: label_of": "makes a label of an age",
    "observe/dashboard/view.py": "the hour, so that a page is drawn anew",
    "resilience/outcome.py: why_stopped": "SLURM says the end of a job by the time of day alone; within a quarter of an hour",
}


def of_the_day(path: Path) -> Iterator[tuple[str, int]]:
    """(file: function, line) of each sum, difference or comparison with time.time() in it, directly or by a name given to it there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for function in functions:
        named = {target.id for node in ast.walk(function) if isinstance(node, ast.Assign) and is_now(node.value)
                 for target in node.targets if isinstance(target, ast.Name)}
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub))):
                parts = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.left, *node.comparators]
                if any(is_now(inner) or (isinstance(inner, ast.Name) and inner.id in named) for part in parts for inner in ast.walk(part)):
                    yield f"{path.relative_to(PACKAGE)}: {function.name}", node.lineno


def is_now(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.time", "time.time_ns", "datetime.now", "datetime.datetime.now")


def test_the_scan_sees() -> None:
    found = {place for path in (PACKAGE / "train" / "goodput.py", PACKAGE / "checkpoint" / "lease.py") for place, _ in of_the_day(path)}
    assert {"train/goodput.py: process_started", "checkpoint/lease.py: _refuse_if_alive"} <= found


def test_nothing_is_measured_by_the_time_of_day() -> None:
    found = [(place, line) for path in sorted(PACKAGE.rglob("*.py")) for place, line in of_the_day(path)]
    assert [one for one in found if one[0] not in ALLOWED and one[0].partition(":")[0] not in ALLOWED] == []
