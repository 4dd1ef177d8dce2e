"""One export from its beginning to its check: what is printed is what was measured, and what fails its check is not there."""

from collections.abc import Callable, Iterator
from pathlib import Path

from vitscale.checkpoint.load import Loaded
from vitscale.export.folder import write_safetensors, write_timm, write_transformers
from vitscale.export.program import check_onnx, check_torch_export, write_onnx, write_torch_export
from vitscale.export.verify import NotVerified, check_own, check_peer
from vitscale.files import whole_folder

Check = Callable[[Loaded, Path], float]


def _transformers(loaded: Loaded, folder: Path) -> float:
    return check_peer(loaded, folder, "transformers")


def _timm(loaded: Loaded, folder: Path) -> float:
    check_own(loaded, folder)
    return check_peer(loaded, folder, "timm")


# format -> (writes a folder and returns what it is, compares what was written with ourselves, by what that compares)
_WAYS: dict[str, tuple[Callable[[Loaded, Path], str], Check, str]] = {
    "transformers": (write_transformers, _transformers, "transformers"),
    "timm": (write_timm, _timm, "timm"),
    "safetensors": (write_safetensors, check_own, "our own reading of it"),
    "onnx": (write_onnx, check_onnx, "onnxruntime"),
    "torch-export": (write_torch_export, check_torch_export, "torch.export.load"),
}


def write(loaded: Loaded, form: str, out: Path) -> Iterator[str]:
    """Write `out` and check it; yields lines to show.

    Raises RecipeError for what has no expression, CheckpointError for what differs; then `out` is as it was.
    """
    make, check, by = _WAYS[form]
    with whole_folder(out) as aside:
        what = make(loaded, aside)
        size = sum(path.stat().st_size for path in aside.iterdir())
        try:
            said = f"verified by {by}: the largest difference from ours is {check(loaded, aside):.1e} of the answers' standard deviation"
        except NotVerified as missing:
            said = f"not verified: {missing}"
    yield f"{out}: {what}, {size / 1e6:.1f} MB, from {loaded.source}" + (f" (step {loaded.step})" if loaded.step is not None else "")
    yield said
