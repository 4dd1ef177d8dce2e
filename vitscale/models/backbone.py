"""What every model offers to the rest of the program, and all that parallelism may rely on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import nn


class Backbone(nn.Module):
    """forward(images (B, C, S, S), keep (R, B) or None) -> logits (B, classes)."""

    drop_rates: tuple[float, ...]       # probability of dropping each residual branch (R); the rows of `keep`
    # First values that are one number, by the end of the parameter's name; the rest is initial_value's.
    constants: Mapping[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.constants = {}

    @abstractmethod
    def units(self) -> Sequence[nn.Module]:
        """Blocks to recompute, compile and shard, in order."""

    @abstractmethod
    def no_decay(self) -> set[str]:
        """Names of parameters exempt from weight decay.  Call it before anything shards the parameters."""

    @abstractmethod
    def reset_buffers(self) -> None:
        """Fill the buffers again, after the model left the meta device."""
