"""Programs that need no Python of ours: ONNX and torch.export, for batches of any size."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.checkpoint.load import Loaded
from vitscale.errors import RecipeError
from vitscale.export.verify import NotVerified, error_of, pictures

ONNX, PROGRAM, ABOUT = "model.onnx", "model.pt2", "about.json"
OPSET = 18


def write_onnx(loaded: Loaded, out: Path) -> str:
    """model.onnx: `images` (B, C, S, S) normalised -> `logits`; about.json says how images are prepared.  Raises RecipeError."""
    try:
        import onnx
        import onnxscript  # noqa: F401  torch wants it for this
    except ImportError as error:
        raise RecipeError(f"ONNX needs {error.name}; install it with `pip install 'vitscale[onnx]'`") from None
    out.mkdir(parents=True, exist_ok=True)
    with _quiet():
        program = torch.onnx.export(loaded.model, (pictures(loaded),), dynamo=True, opset_version=OPSET, verbose=False,
                                    input_names=["images"], output_names=["logits"], dynamic_shapes=_shapes())
    assert program is not None
    program.save(str(out / ONNX))
    onnx.checker.check_model(str(out / ONNX))
    _about(loaded, out)
    return f"ONNX, opset {OPSET}"


def check_onnx(loaded: Loaded, out: Path) -> float:
    try:
        import onnxruntime
    except ImportError:
        raise NotVerified("pip install 'vitscale[onnx]' to have it checked") from None
    session = onnxruntime.InferenceSession(str(out / ONNX), providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        one = [session.run(None, {"images": part.numpy()})[0] for part in images.split([1, len(images) - 1])]       # any size of batch
        return torch.cat([torch.from_numpy(part) for part in one])

    return error_of(loaded, answer, str(out / ONNX), count=4)


def write_torch_export(loaded: Loaded, out: Path) -> str:
    """model.pt2 for torch.export.load, and about.json."""
    out.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()        # on a full disk torch's own writer ends the process
    with _quiet():
        torch.export.save(torch.export.export(loaded.model, (pictures(loaded),), dynamic_shapes=_shapes()), whole)
    (out / PROGRAM).write_bytes(whole.getbuffer())
    _about(loaded, out)
    return "a program of torch.export"


def check_torch_export(loaded: Loaded, out: Path) -> float:
    program: Any = torch.export.load(out / PROGRAM).module()
    return error_of(loaded, program, str(out / PROGRAM), count=4)


def _shapes() -> dict[str, Any]:
    """Any number of images."""
    return {"images": {0: torch.export.Dim("batch", min=1)}}


def _about(loaded: Loaded, out: Path) -> None:
    """How images are prepared, and what the answers stand for."""
    about = {"classes": list(loaded.class_names), "transform": vars(loaded.transform), "model": loaded.section.model_dump(mode="json")}
    (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells its every step."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in ("onnxscript", "onnx_ir", "torch.onnx"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
