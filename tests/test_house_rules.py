"""What keeps the house readable: short functions and files, one meaning for a name, pages written from the code as it is."""

import ast
import re
from collections import defaultdict

import pytest
from architecture import PAGE, page
from mutants import MUTANTS, ROOT, Mutant, faulty
from test_layout import PACKAGE, files

LONGEST_FUNCTION, LONGEST_FILE = 60, 450        # lines
DOCS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def test_no_function_and_no_file_is_long() -> None:
    long = []
    for path in files():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION:
                long.append(f"{path.relative_to(PACKAGE)}: {node.name}: {lines} lines")
    assert long == []


def test_no_class_has_the_name_of_another() -> None:
    """Who searches for a name, or reads it in a trace, shall find one thing."""
    places = defaultdict(list)
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(PACKAGE)) for path in files() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_the_page_of_the_architecture_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "docs/architecture.md is behind the modules' first lines: make docs"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_a_page_of_the_docs_points_to_is_there(path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (path.parent / target).exists()]
    modules = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    missing += [name for name in modules if not any((ROOT / at / name).exists() for at in ("", "vitscale", "tests"))]
    assert missing == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_fits_the_code(mutant: Mutant) -> None:
    ast.parse(faulty(ROOT, mutant))
    assert [name for name in mutant.tests if not (ROOT / "tests" / name).exists()] == []
