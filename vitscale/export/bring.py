"""`vitscale import`: another library's folder made one of ours, held against that library, with the model section that a recipe needs."""

from collections.abc import Iterator
from pathlib import Path

from vitscale.checkpoint.load import load
from vitscale.export.folder import write_safetensors
from vitscale.export.verify import NotVerified, check_own, check_transformers
from vitscale.recipe.text import write_yaml


def bring(source: Path, out: Path) -> Iterator[str]:
    """Write `out`; yields lines to show.  Raises CheckpointError for what cannot be read or gives other answers than its own library."""
    loaded = load(source)
    write_safetensors(loaded, out)
    yield f"{out}: {loaded.section.family}, read from {loaded.source}"
    try:
        yield f"held against transformers: the largest difference of any answer is {check_transformers(loaded, source):.1e}"
    except NotVerified as missing:
        yield f"not held against transformers: {missing}"
    except (OSError, ValueError, KeyError):
        yield f"not held against its own library, which is not transformers; read back alike to {check_own(loaded, out):.1e}"
    kept = loaded.section.model_dump(mode="json", exclude_defaults=True) | {"family": loaded.section.family}
    yield "for a recipe:\n" + write_yaml({"model": kept, "init": str(out)}).rstrip()
