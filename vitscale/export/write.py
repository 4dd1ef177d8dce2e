"""One export from its beginning to its check: what is printed is what was measured."""

from collections.abc import Callable, Iterator
from pathlib import Path

from vitscale.checkpoint.load import Loaded
from vitscale.export.folder import write_safetensors, write_timm, write_transformers
from vitscale.export.program import check_onnx, check_torch_export, write_onnx, write_torch_export
from vitscale.export.verify import NotVerified, check_own, check_transformers

# format -> (writes a folder and returns what it is, compares what was written with ourselves, by what that compares)
_WAYS: dict[str, tuple[Callable[[Loaded, Path], str], Callable[[Loaded, Path], float], str]] = {
    "transformers": (write_transformers, check_transformers, "transformers"),
    "timm": (write_timm, check_own, "our own reading of it"),
    "safetensors": (write_safetensors, check_own, "our own reading of it"),
    "onnx": (write_onnx, check_onnx, "onnxruntime"),
    "torch-export": (write_torch_export, check_torch_export, "torch.export.load"),
}


def write(loaded: Loaded, form: str, out: Path) -> Iterator[str]:
    """Write `out` and check it; yields lines to show.  Raises RecipeError for what has no expression, CheckpointError for what differs."""
    make, check, by = _WAYS[form]
    what = make(loaded, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    yield f"{out}: {what}, {size / 1e6:.1f} MB, from {loaded.source}" + (f" (step {loaded.step})" if loaded.step is not None else "")
    try:
        error = check(loaded, out)
    except NotVerified as missing:
        yield f"not verified: {missing}"
        return
    yield f"verified by {by}: the largest difference of any answer from ours is {error:.1e}"
