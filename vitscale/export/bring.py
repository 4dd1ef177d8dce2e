"""`vitscale import`: another library's folder made one of ours, held against that library, with the model section that a recipe needs."""

from collections.abc import Iterator
from pathlib import Path

from vitscale.checkpoint.foreign import library_of
from vitscale.checkpoint.load import Loaded, load
from vitscale.export.folder import write_safetensors
from vitscale.export.verify import NotVerified, check_own, check_transformers
from vitscale.recipe.text import write_yaml


def bring(source: Path, out: Path) -> Iterator[str]:
    """Write `out`; yields lines to show.  Raises CheckpointError for what cannot be read or gives other answers than its own library."""
    loaded = load(source)
    write_safetensors(loaded, out)
    yield f"{out}: {loaded.section.family}, read from {loaded.source}"
    if library_of(source) != "transformers":
        yield f"read back alike, to {check_own(loaded, out):.1e}; {library_of(source)} itself was not asked"
        yield _for_a_recipe(loaded, out)
        return
    try:
        yield f"held against transformers: the largest difference of any answer is {check_transformers(loaded, source):.1e}"
    except NotVerified as missing:
        yield f"not held against transformers: {missing}"
    yield _for_a_recipe(loaded, out)


def _for_a_recipe(loaded: Loaded, out: Path) -> str:
    kept = loaded.section.model_dump(mode="json", exclude_defaults=True) | {"family": loaded.section.family}
    return "for a recipe:\n" + write_yaml({"model": kept, "init": str(out)}).rstrip()
