"""Activation checkpointing (Chen et al. 2016): blocks recomputed in the backward pass, wholly or all but the dear operations."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
# Matmuls and attention hold nearly all FLOPs of a block; their outputs are kept, the cheap pointwise rest is recomputed
# (selective recomputation, Korthikanti et al. 2022, section 5).
_KEPT = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.linear.default,
    _aten._scaled_dot_product_flash_attention.default, _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default, _aten._scaled_dot_product_cudnn_attention.default,
}


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_(units: Sequence[nn.Module], policy: Literal["none", "blocks", "selective"], every: int = 1) -> None:
    """Make each unit forget its activations: all of every `every`-th unit (`blocks`), or all but `_KEPT` (`selective`)."""
    if policy == "none":
        return
    extra: dict[str, Any] = {}
    if policy == "selective":
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for number, unit in enumerate(units):
        if number % every == 0:
            unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False, **extra)
