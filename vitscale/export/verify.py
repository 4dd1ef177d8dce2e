"""Every export held against ourselves: the same pictures through both, and by how much the answers differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.checkpoint.load import Loaded, load
from vitscale.errors import CheckpointError

TOLERANCE = 1e-4        # of the largest difference, as a share of the largest answer; rounding in fp32 stays a tenfold below


class NotVerified(Exception):
    """The library that reads an export is not installed here."""


def pictures(loaded: Loaded, count: int = 2) -> Tensor:
    """Normalised noise (count, C, S, S), always the same."""
    transform = loaded.transform
    return torch.randn(count, transform.channels, transform.image, transform.image, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def error_of(loaded: Loaded, theirs: Callable[[Tensor], Tensor], what: str, count: int = 2) -> float:
    """The largest difference of any answer.  Raises CheckpointError if it is more than rounding can be."""
    images = pictures(loaded, count)
    expected, found = loaded.model(images), theirs(images)
    if found.shape != expected.shape:
        raise CheckpointError(f"{what}: gives {tuple(found.shape)} for {tuple(images.shape)} images, ours {tuple(expected.shape)}")
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= TOLERANCE * max(largest, 1.0):
        raise CheckpointError(f"{what}: answers differ from ours by {error:.1e}; do not use it")
    return error


def check_transformers(loaded: Loaded, folder: Path) -> float:
    """Through transformers itself.  Raises NotVerified where it is not installed."""
    try:
        from transformers import AutoModel, AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise NotVerified("pip install 'vitscale[hf]' to have it checked") from None
    logging.disable_progress_bar()
    kind: Any = AutoModelForImageClassification if loaded.section.classes else AutoModel
    model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False).eval()

    def answer(images: Tensor) -> Tensor:
        output = model(images)
        if loaded.section.classes:
            return output.logits
        return _pooled(loaded, output)

    return error_of(loaded, answer, str(folder))


def _pooled(loaded: Loaded, output: Any) -> Tensor:
    """Our pooled features, of what a class without a classifier gives."""
    if loaded.section.family in ("swin", "convnext"):
        return output.pooler_output
    tokens: Tensor = output.last_hidden_state
    if getattr(loaded.section, "pool", "token") == "token":
        return tokens[:, 0]
    return output.pooler_output if getattr(loaded.section, "pool_norm", False) else tokens.mean(dim=1)


def check_own(loaded: Loaded, folder: Path) -> float:
    """Read back by ourselves: of timm's folders, since timm is not needed here, and of our own."""
    again = load(folder)
    return error_of(loaded, again.model, str(folder))
