"""Counts in words, in every message: 1 shard, 2 shards."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitscale
from vitscale.counts import plural

PACKAGE = Path(vitscale.__file__).parent
# what may be one of; parameters and pixels, of which there are always many, are not asked for
NOUN = re.compile(r"\{\} (?:(?:more|bad|other|damaged|unreadable|class|held-out) )?(shards|samples|images|files|runs|points|ranks|steps|"
                  r"GPUs|cores|threads|nodes|layers|seeds|rows|lines|attempts|registers|jobs|groups|classes|processes|checkpoints|mistakes)\b(?!/)")
# sentences that compare numbers with each other, where one does not arise, and text that is a value of a recipe
APART = {"recipe/check.py", "recipe/check_model.py", "recipe/check_objective.py", "shapes/", "scaling/expand.py", "models/"}
# the count is more than one there: a branch before it sees to that, or its name does
MORE = {"plan/memory.py": "images (data.group)", "resilience/hang.py": "ranks", "resilience/guard.py": "steps in a row",
        "cluster/restart_limit.py": "attempts in a row", "scaling/report.py": "images",
        "plan/answer.py": "cores"}


@pytest.mark.parametrize(("count", "noun", "words"), [
    (0, "shard", "0 shards"), (1, "shard", "1 shard"), (2, "shard", "2 shards"), (1200, "class", "1,200 classes"), (1, "class", "1 class"),
    (3, "batch", "3 batches"), (2, "process", "2 processes"), (1, "micro-step", "1 micro-step"), (2, "more time", "2 more times"),
])
def test_one_is_no_plural(count: int, noun: str, words: str) -> None:
    assert plural(count, noun) == words


def _messages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the strings that are not raised: a count in curly brackets, whose format is that of a whole number."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Raise) for inner in ast.walk(node)}
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in raised or id(node) in documents:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value.replace("%d", "{}")
        elif isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(
                part.value if isinstance(part, ast.Constant) else "{}" if _is_whole(part) else "{number}" for part in node.values)


def _is_whole(part: ast.expr) -> bool:
    """Whether this value may be a count: no text of its own, no other format than thousands with commas."""
    assert isinstance(part, ast.FormattedValue)
    inner = ast.unparse(part.value)
    called = re.match(r"(number|span|_?size|seconds|elapsed|sum)\(", inner) is not None and not inner.startswith("sum(")
    return not called and (part.format_spec is None or ast.unparse(part.format_spec) in ("f','", "f''"))


def test_every_count_in_a_message_goes_through_one_function() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if "_shipped" in name or any(name.startswith(one) for one in APART):
            continue
        for line, text in _messages(path):
            wrong += [f"{name}:{line}: {text[max(found.start() - 20, 0):found.end()]!r}" for found in NOUN.finditer(text)
                      if not text[:found.start()].endswith(" of ") and not text[found.start() + 3:].startswith(MORE.get(name, "\0"))]
            wrong += [f"{name}:{line}: {text!r}" for _ in re.finditer(r"\b(?!http\b)[a-z]+\((s|es)\)", text)]
    assert wrong == [], "write plural(count, noun):\n" + "\n".join(wrong)
