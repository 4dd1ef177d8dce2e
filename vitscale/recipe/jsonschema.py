"""The recipe as a JSON Schema, from which editors complete keys, show their comments and mark mistakes."""

import ast
import inspect
import io
import tokenize
from types import ModuleType
from typing import Any

from vitscale.recipe import objectives, schema
from vitscale.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MODULES = (objectives, schema)


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file; a key's description is the comment that stands beside it in schema.py or objectives.py.

    It knows keys, types, choices and bounds of single keys.  Combinations that contradict each other are recipe/check.py's.
    """
    described = Recipe.model_json_schema()
    comments = {key: comment for module in _MODULES for key, comment in _comments(module).items()}
    sections = {name: value for module in _MODULES for name, value in vars(module).items()}
    for title, section in {**described["$defs"], "Recipe": described}.items():
        for key, value in section.get("properties", {}).items():
            written_in = (base.__name__ for base in sections[title].__mro__)
            if comment := next((comments[base, key] for base in written_in if (base, key) in comments), None):
                value["description"] = comment
    return {"$schema": DIALECT, **described, "title": "A vitscale recipe"}


def _comments(module: ModuleType) -> dict[tuple[str, str], str]:
    """(section, key) -> the comment at the end of the key's line."""
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {
        (section.name, field.target.id): by_line[field.end_lineno]
        for section in ast.parse(source).body if isinstance(section, ast.ClassDef)
        for field in section.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if field.end_lineno in by_line
    }
