"""What every model offers to the rest of the program, and all that parallelism may rely on."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import nn


class Backbone(nn.Module):
    """forward(images (B, C, S, S), keep (2L, B) or None) -> logits (B, classes)."""

    drop_rates: tuple[float, ...]       # probability of dropping each residual branch (2L); the rows of `keep`

    @abstractmethod
    def units(self) -> Sequence[nn.Module]:
        """Blocks to recompute, compile and shard, in order."""

    @abstractmethod
    def no_decay(self) -> set[str]:
        """Names of parameters exempt from weight decay.  Call it before anything shards the parameters."""

    @abstractmethod
    def reset_buffers(self) -> None:
        """Fill the buffers again, after the model left the meta device."""
