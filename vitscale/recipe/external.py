"""Backbones of other installed packages, by the name that a recipe gives in model.family.  Reads what is installed, and runs none of it."""

import difflib
from importlib.metadata import EntryPoint, entry_points

from vitscale.errors import RecipeError
from vitscale.recipe.schema import FAMILIES, External, Model

GROUP = "vitscale.backbones"        # of entry points: name of the family -> module:function that builds it


def offered() -> dict[str, list[EntryPoint]]:
    """Name -> who offers it; several packages may, of which none is chosen."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def entry_of(model: External) -> EntryPoint:
    """Who builds the model.  Raises RecipeError where no installed package offers it, or several do."""
    known = offered()
    found = known.get(model.family, [])
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"model.family: {model.family} is offered by {' and by '.join(map(origin, found))}; uninstall all but one")
    close = difflib.get_close_matches(model.family, [*FAMILIES, *known], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    others = f"installed packages offer {', '.join(sorted(known))}" if known else "no installed package offers another"
    raise RecipeError(f"model.family: wants one of {', '.join(FAMILIES)}, or one that an installed package offers under the entry points "
                      f"{GROUP}, got '{model.family}'{hint}; {others}: install the package that has it in this environment")


def problems(model: External) -> list[tuple[str, str]]:
    """(dotted key, sentence) where nobody here can build the model."""
    try:
        entry_of(model)
    except RecipeError as error:
        return [("model.family", str(error).removeprefix("model.family: "))]
    return []


def origin(entry: EntryPoint) -> str:
    """`convmixer-vitscale 0.1 (convmixer:build)`"""
    return f"{entry.dist.name} {entry.dist.version} ({entry.value})" if entry.dist else entry.value


def package_of(model: Model) -> dict[str, str]:
    """{package: version} that a model is built by, if not by vitscale."""
    if not isinstance(model, External):
        return {}
    return {entry.dist.name: entry.dist.version for entry in offered().get(model.family, []) if entry.dist is not None}
