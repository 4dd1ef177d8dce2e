"""From a file and `a.b=c` overrides to a checked Recipe; every mistake at once, by its dotted key."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vitscale.counts import plural
from vitscale.errors import RecipeError, StorageError
from vitscale.files import patiently, read_bytes
from vitscale.recipe.check import contradictions
from vitscale.recipe.known import Note, settle
from vitscale.recipe.schema import CHOICES, EXTERNAL, FORMAT, Recipe
from vitscale.recipe.text import read_yaml
from vitscale.recipe.upgrade import renamed_to, upgrade

_CHECKOUT = Path(__file__).resolve().parent.parent.parent / "recipes"
_INSTALLED = Path(__file__).resolve().parent.parent / "_shipped" / "recipes"
_Kind = TypeVar("_Kind", bound=BaseModel)
RECIPES = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT      # a wheel carries them inside the package


def recipe_files(folder: Path | None = None) -> list[Path]:
    """Every run recipe below `folder` (default: those that vitscale ships), sorted; sweeps, which are not runs, stand in sweeps/."""
    root = folder or RECIPES
    return sorted(path for path in root.rglob("*.yaml") if "sweeps" not in path.relative_to(root).parts)


def find_recipe(name: str | Path) -> Path:
    """A path as given, or the name of a shipped recipe (`quickstart`, `recipes/quickstart.yaml`).  Raises RecipeError."""
    path = Path(name)
    if patiently(path, path.is_file):
        return path
    stem = path.name.removesuffix(".yaml")
    shipped = {file.stem: file for file in recipe_files()}
    if stem in shipped and path.parent in (Path(), Path("recipes")):
        return shipped[stem]
    close = difflib.get_close_matches(stem, shipped, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise RecipeError(f"{name}: no such file, and no shipped recipe of that name{hint}; `vitscale recipes list` shows them")


def parse_override(text: str) -> tuple[list[str], Any]:
    """`optim.lr=3e-4` -> (["optim", "lr"], 0.0003).  The value is read as YAML, `null` included."""
    dotted, equals, value = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"override '{text}': wants key=value with a dotted key, such as optim.lr=3e-4")
    return keys, read_yaml(value, f"override '{dotted}'")


def load_recipe(file: str | Path, overrides: Sequence[str] = (), tell: Callable[[Note], None] | None = None,
                strict: bool = False) -> Recipe:
    """Read, override, check.  Raises RecipeError listing every mistake with file, dotted key, what was given and what is allowed.

    tell: called with what was taken over from data and weights, and what they say otherwise.  strict: as known.settle() has it.
    """
    path = find_recipe(file)
    values, renamed = upgrade(read_values(path, "name: ..., model: ..."), str(path))
    mistakes: list[tuple[str, str]] = []
    for override in overrides:
        try:
            keys, value = parse_override(override)
            if (new := renamed_to(old := ".".join(keys))) is not None:
                keys = new.split(".")
                renamed.append(f"{old} is now {new}")
            set_value(values, keys, value)
        except RecipeError as error:
            mistakes.append(("", str(error)))
    if tell is not None:
        for text in dict.fromkeys(renamed):
            tell(Note(f"{path}: {text}", differs=True))
    return check_recipe(values, str(path), mistakes, tell, strict)


def read_values(path: Path, example: str) -> dict[str, Any]:
    """The keys and values at the top of a YAML file.  `example` shows what is wanted.  Raises RecipeError."""
    try:
        text = read_bytes(path).decode()
    except StorageError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: wants keys and values at the top ({example}), got {_given(values)}")
    return values


def check_recipe(values: dict[str, Any], source: str, mistakes: Iterable[tuple[str, str]] = (),
                 tell: Callable[[Note], None] | None = None, strict: bool = False) -> Recipe:
    """Plain values, also in the keys of an older version -> Recipe, with what data and weights know where it is silent.

    `mistakes` are (dotted key, sentence) already known.  tell, strict: as load_recipe() has them.  Raises RecipeError naming `source`.
    """
    values, renamed = upgrade(values, source)
    notes = [*(Note(f"{source}: {text}", differs=True) for text in renamed), *settle(values, strict, compare=tell is not None)]
    recipe = check_section(Recipe, values, source, mistakes, contradictions)
    if tell is not None:
        for note in notes:
            tell(note)
    return recipe


def check_section(kind: type[_Kind], values: dict[str, Any], source: str, mistakes: Iterable[tuple[str, str]] = (),
                  contradictions: Callable[[_Kind], list[tuple[str, str]]] = lambda section: []) -> _Kind:
    """Plain values -> a section of any kind; otherwise as check_recipe."""
    found = list(mistakes)
    section = None
    try:
        section = kind.model_validate(values)
    except ValidationError as error:
        found += _merged(_sentence(item, kind) for item in error.errors())
    if section is not None:
        found += contradictions(section)
    if not found:
        assert section is not None
        return section
    width = max(len(key) for key, _ in found)
    lines = [f"  {key:<{width}}  {sentence}" if key else f"  {sentence}" for key, sentence in found]
    count = plural(len(found), "mistake")
    raise RecipeError("\n".join([f"{source}: {count}", *lines]))


def _merged(sentences: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """One mistake where a value is none of several kinds: wants a, got x; wants b, got x -> wants a or b, got x."""
    found: dict[str, str] = {}
    for key, sentence in sentences:
        wanted, got, given = sentence.partition(", got ")
        if found.get(key, "").endswith(got + given) and wanted.startswith("wants "):
            sentence = f"{found[key].removesuffix(got + given)} or {wanted.removeprefix('wants ')}{got}{given}"
        found[key] = sentence
    return list(found.items())


def set_value(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set values[k0][k1]... = value, making sections on the way."""
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"override '{'.'.join(keys)}': {'.'.join(keys[: depth + 1])} is {_given(inner)}, not a section")
        values[key] = dict(inner)       # anchors may share one mapping between sections
        values = values[key]
    values[keys[-1]] = value


def _given(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a section"
    return repr(value) if isinstance(value, str) else str(value)


def _section_at(loc: tuple[Any, ...], section: type[BaseModel] | None) -> type[BaseModel] | None:
    """What below `section` holds the key at `loc`, which names a chosen section's tag after its key: ("model", "vit", "width")."""
    if loc[0] in CHOICES and len(loc) > 2:
        section, loc = CHOICES[loc[0]][1].get(loc[1]), loc[2:]
    for key in loc[:-1]:
        if isinstance(key, int):            # a place in a list of sections
            continue
        field = section.model_fields.get(str(key)) if section else None
        if field is None:
            return None
        options = (field.annotation, *getattr(field.annotation, "__args__", ()))
        section = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
    return section


def _without_kind(loc: tuple[Any, ...], root: type[BaseModel]) -> tuple[Any, ...]:
    """pydantic names the kind that a value was held against, behind the key of one that may be of several: nodes, or a number."""
    if len(loc) > 1 and isinstance(loc[-1], str):
        above = _section_at(loc[:-1], root)
        field = above.model_fields.get(str(loc[-2])) if above else None
        if field is not None and _section_at(loc, root) is None:
            return loc[:-1]
    return loc


def _sentence(item: Any, root: type[BaseModel]) -> tuple[str, str]:
    """One pydantic error -> (dotted key, sentence for the user)."""
    loc, kind, context, given = _without_kind(item["loc"], root), item["type"], item.get("ctx", {}), item["input"]
    section = _section_at(loc, root) if loc else None
    if loc and loc[0] in CHOICES:
        chosen_by, sections = CHOICES[loc[0]]
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            others = ", or of another package, whose keys stand in model.options" if EXTERNAL in sections else ""
            names = ", ".join(name for name in sections if name != EXTERNAL)
            return f"{loc[0]}.{chosen_by}", f"wants one of {names}{others}, got {_given(given.get(chosen_by))}"
        loc = (loc[0], *loc[2:])
    dotted = ".".join(str(part) for part in loc)
    if kind in ("extra_forbidden", "invalid_key"):          # the latter: a key that is not text, such as 1
        keys = list(section.model_fields) if section else []
        close = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
        parent = ".".join(str(part) for part in loc[:-1]) or f"a {root.__name__.lower()}"
        hint = f" (did you mean {close[0]}?)" if close else ""
        if (new := renamed_to(dotted)) is not None:
            return dotted, f"is called {new} since format {FORMAT} of recipes, which the file states"
        return dotted, f"is no key of {parent}; the keys are {', '.join(keys)}{hint}"
    if kind == "missing" and isinstance(loc[-1], int):
        return ".".join(str(part) for part in loc[:-1]), f"wants a longer list, got {_given(given)}"
    if kind == "missing":
        return dotted, "is required and not given"
    wants = {
        "float_type": "a number", "int_type": "a whole number", "int_from_float": "a whole number", "string_type": "text",
        "bool_type": "true or false", "model_type": "a section of keys", "model_attributes_type": "a section of keys",
        "tuple_type": "a list", "finite_number": "a finite number",
    }.get(kind)
    if kind in ("too_long", "too_short"):
        wants = "a list of another length"
    if kind == "literal_error":
        expected = str(context["expected"]).replace(" or ", ", ").replace("'", "")
        wants = f"one of {expected}" if ", " in expected else expected
    bounds = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    if kind in bounds:
        limit = next(iter(context.values()))
        wants = f"a number {bounds[kind]} {limit:g}"
    if kind == "string_pattern_mismatch":
        wants = f"text that matches {context['pattern']}"
    if wants:
        return dotted, f"wants {wants}, got {_given(given)}"
    return dotted, f"{item['msg']}, got {_given(given)}"
