"""Whether the disk has room for a checkpoint, and the error that says it was not written."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor
from torch.distributed.tensor import DTensor

from vitscale.errors import EXIT_FAILED, EXIT_REQUEUE, CheckpointError

# What files hold besides numbers, measured: torch puts each tensor of each rank in an archive of its own.
PER_TENSOR = 2048
PER_CHECKPOINT = 160 * 1024     # manifest, facts, table of contents, the last block of each file


class Unwritten(CheckpointError):
    """A checkpoint was not written, because the disk is full or does not answer; raised on every rank.

    A run that ends with it ends as failed, not to be requeued: the next attempt would find the same disk, and what was trained since
    the last checkpoint would be lost again and again.  Unless it `may_pass`: a server that is away comes back.
    """

    exit_code = EXIT_FAILED
    facts = MappingProxyType({"cause": "disk"})

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.exit_code = EXIT_REQUEUE if may_pass else EXIT_FAILED


def checkpoint_bytes(tensors: Mapping[str, Tensor], ranks: int) -> int:
    """What a checkpoint of these tensors takes on disk: the state, every sharded tensor once, and weights in fp32 beside it."""
    total = PER_CHECKPOINT
    for name, tensor in tensors.items():
        total += tensor.numel() * tensor.element_size()
        total += PER_TENSOR * (ranks if isinstance(tensor, DTensor) else 1)
        if name.startswith(("model.", "ema.")):
            total += 4 * tensor.numel()
    return total


def free_bytes(folder: Path) -> int:
    """What this user may still write in the file system of `folder`.  A quota that the file system hides is not seen."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize
