"""What every model offers to the rest of the program, and all that parallelism may rely on."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vitscale.models.names import is_exempt


class Wanted:
    """Of the intermediates of a forward pass, those that were asked for by name; the others are not kept."""

    def __init__(self, names: Iterable[str], known: Sequence[str]) -> None:
        """Raises ValueError for a name that is not known."""
        self.names = frozenset(names)
        self.found: dict[str, Tensor] = {}
        if unknown := self.names - frozenset(known):
            raise ValueError(f"no such intermediates: {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    def note(self, name: str, value: Tensor) -> Tensor:
        """The value, kept if it is wanted."""
        if name in self.names:
            self.found[name] = value
        return value


class Backbone(nn.Module):
    """forward(images (B, C, S, S), keep (R, B) or None) -> logits (B, classes), or pooled features where there are no classes.

    The classifier is called `head`, by which fine-tuning knows it.
    """

    drop_rates: tuple[float, ...]       # probability of dropping each residual branch (R); the rows of `keep`
    # Initial values that are one number, by the end of the parameter's name; the rest is initial_value's.
    constants: Mapping[str, float]
    head_inputs: tuple[str, ...] = ("pooled",)     # the intermediates that forward_head() reads

    # muP: the base's width over this model's, by which the learning rate of matrices is scaled; 1: as usual.
    width_scale: float
    base_width: int | None          # muP: the width whose initial values positions and tokens have; None: as usual

    def __init__(self) -> None:
        super().__init__()
        self.drop_rates, self.constants = (), {}
        self.width_scale, self.base_width = 1.0, None

    def check_keep(self, keep: Tensor | None, images: Tensor) -> None:
        """Raises ValueError when `keep` does not say for each residual branch and image whether it stays."""
        wanted = (len(self.drop_rates), images.shape[0])
        if keep is not None and keep.shape != wanted:
            raise ValueError(f"keep wants the shape {wanted}, got {tuple(keep.shape)}")

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(images, keep, self.head_inputs))

    @abstractmethod
    def forward_features(self, images: Tensor, keep: Tensor | None = None, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The intermediates asked for by name; the others are not kept.  Raises ValueError for a name that feature_names() lacks."""

    @abstractmethod
    def feature_names(self) -> list[str]:
        """The names that forward_features knows, in the order of computation."""

    @abstractmethod
    def forward_head(self, found: Mapping[str, Tensor]) -> Tensor:
        """Intermediates, those of `head_inputs` among them -> what evaluation takes as forward's output."""

    @abstractmethod
    def units(self) -> Sequence[nn.Module]:
        """Blocks to recompute, compile and shard, in order."""

    def no_decay(self) -> set[str]:
        """Names of parameters exempt from weight decay: all with one dimension (norms, biases), and tables and tokens by their names.
        Call it before anything shards the parameters."""
        return {name for name, parameter in self.named_parameters() if is_exempt(name, parameter.shape)}

    def reset_buffers(self) -> None:
        """Fill the buffers, in place, with what they hold by definition: leaving the meta device leaves them undefined."""

    def initial_value(self, name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """The whole tensor of a parameter before training, fp32, drawn from `generator` alone; None: models/init.py knows."""
        return None
