"""Another value for a key of a recipe file, written into its text, so that comments and layout stay."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vitscale.errors import RecipeError
from vitscale.recipe.load import load_recipe, parse_override, read_values, set_value
from vitscale.recipe.text import compose, read_yaml, write_yaml


def edited(text: str, changes: Mapping[str, Any], source: str) -> str:
    """`text` with each dotted key at its new value.  Raises RecipeError when the text is not one that can be edited so."""
    wanted = read_yaml(text, source)
    for key, value in changes.items():
        set_value(wanted, key.split("."), value)
        text = _put(text, key.split("."), value)
    if read_yaml(text, source) != wanted:       # anchors, or a document of an odd form
        raise RecipeError(f"{source}: cannot be edited without changing more than {', '.join(changes)}; set these by hand")
    return text


def write_edited(recipe: Path, overrides: Sequence[str], changes: Mapping[str, Any], out: Path) -> None:
    """A copy of `recipe` at `out` with overrides and changes in it; never over a file.  Raises RecipeError."""
    given = {".".join(keys): value for keys, value in map(parse_override, overrides)}
    read_values(recipe, "name: ..., model: ...")
    text = edited(recipe.read_text(encoding="utf-8"), given | dict(changes), str(recipe))
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{out}: is there already, and is not written over; name another file") from None
    except OSError as error:
        raise RecipeError(f"{out}: cannot be written ({error.strerror})") from None
    load_recipe(out)


def _flow(value: Any) -> str:
    """On one line, as `{a: 1}` or `1`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    return write_yaml(value).removesuffix("\n").removesuffix("\n...").strip()


def _put(text: str, keys: list[str], value: Any) -> str:
    node = compose(text)
    assert node is not None     # read_yaml has read keys and values in it
    at = 0
    for depth, key in enumerate(keys):
        if not isinstance(node, yaml.MappingNode):
            break
        found = next((inner for name, inner in node.value if name.value == key), None)
        if found is None:
            return _insert(text, node, key, _nested(keys[depth + 1:], value), top=depth == 0)
        node, at = found, depth + 1
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:     # ends where the next key begins, comments between them included
        end = start + len(text[start:end].rstrip())
    words = _flow(_nested(keys[at:], value))
    return text[:start] + (" " if start == end else "") + words + text[end:]


def _nested(keys: list[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _insert(text: str, mapping: yaml.MappingNode, key: str, value: Any, top: bool) -> str:
    line = f"{key}: {_flow(value)}"
    if mapping.flow_style:
        end = mapping.end_mark.index - 1        # the closing brace
        inside = text[mapping.start_mark.index + 1:end].rstrip()
        return text[:end].rstrip() + (", " if inside and not inside.endswith(",") else " " if inside else "") + line + text[end:]
    if top:
        return text.rstrip("\n") + f"\n{line}\n"
    start = mapping.start_mark
    return text[:start.index] + line + "\n" + " " * start.column + text[start.index:]
