"""`vitscale import`: another library's folder made one of ours, held against that library, with the model section that a recipe needs."""

from collections.abc import Iterator
from pathlib import Path

from vitscale.checkpoint.foreign import library_of
from vitscale.checkpoint.load import Loaded, load
from vitscale.export.folder import write_safetensors
from vitscale.export.verify import NotVerified, check_own, check_peer
from vitscale.files import whole_folder
from vitscale.recipe.text import write_yaml


def bring(source: Path, out: Path) -> Iterator[str]:
    """Write `out`; yields lines to show.  Raises CheckpointError for what cannot be read or gives other answers than its own library; then
    `out` is as it was."""
    loaded, library = load(source), library_of(source)
    with whole_folder(out) as aside:
        write_safetensors(loaded, aside)
        error, by, missing = check_own(loaded, aside), "our own reading of it", ""
        if library != "vitscale":
            try:
                error, by = check_peer(loaded, source, library), library
            except NotVerified as absent:
                missing = f"; NOT held against {library}: {absent}"
    yield f"{out}: {loaded.section.family}, read from {loaded.source}"
    yield from loaded.notes
    yield f"held against {by}: the largest difference is {error:.1e} of the answers' standard deviation{missing}"
    yield _for_a_recipe(loaded, out)


def _for_a_recipe(loaded: Loaded, out: Path) -> str:
    kept = loaded.section.model_dump(mode="json", exclude_defaults=True) | {"family": loaded.section.family}
    return "for a recipe:\n" + write_yaml({"model": kept, "init": str(out)}).rstrip()
