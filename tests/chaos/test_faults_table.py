"""docs/faults.md: the tests that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_faults_names_tests_that_are_there() -> None:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| fault")]
    assert len(rows) > 20
    for row in rows:
        last = row.rstrip("| ").rpartition("|")[2]
        named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", last)
        assert named or last.strip() == "the same", row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), (file, test)
