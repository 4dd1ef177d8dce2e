"""Steps of a block by kernels where these are on (vitscale/kernels), else by torch's own modules."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.kernels.gelu import gelu
from vitscale.kernels.parts import takes
from vitscale.kernels.residual import add, add_norm, norm

Parts = frozenset[str]
Branch = tuple[Tensor, Tensor | None]      # and the bias that was added last, if its gradient is still to be found


def apart(layer: nn.Module, tokens: Tensor, parts: Parts) -> Branch:
    """What the linear layer makes of tokens; and its bias, if its gradient is left out here, for the kernel that comes next to find."""
    if "bias" not in parts or type(layer) is not nn.Linear or layer.bias is None or not layer.bias.requires_grad:
        return layer(tokens), None
    return F.linear(tokens, layer.weight, layer.bias.detach()), layer.bias


def activated(layer: nn.Module, act: nn.Module, tokens: Tensor, parts: Parts) -> Tensor:
    """act(layer(tokens)), of a linear layer."""
    if "gelu" not in parts or not (isinstance(act, nn.GELU) and act.approximate == "none") or not takes(tokens):
        return act(layer(tokens))
    return gelu(*apart(layer, tokens, parts))


def normed(layer: nn.Module, tokens: Tensor, parts: Parts) -> Tensor:
    """layer(tokens), of a norm."""
    if "norm" not in parts or type(layer) is not nn.LayerNorm or not takes(tokens):
        return layer(tokens)
    return norm(tokens, layer.weight, layer.bias, layer.eps)


def ended(tokens: Tensor, branch: Branch, scale: Tensor | None, keep: Tensor | None, rate: float) -> Tensor:
    """tokens + branch by the kernel: `scale` (D,) LayerScale's, `keep` (B,) and `rate` as add_branch has them."""
    return add(tokens, branch[0], scale, share_of(keep, rate), branch[1])


def two_branches(tokens: Tensor, keep: Tensor | None, rate: float, norms: Sequence[nn.Module], scales: Sequence[Tensor | None],
                 attend: Callable[[Tensor], Branch], mlp: Callable[[Tensor], Branch]) -> Tensor:
    """A block whose norms stand before its branches: the end of the first branch and the second norm are one kernel.

    tokens (B, ..., D), keep (2, B) or None; the second norm is no LayerNorm where both branches stand behind the first.
    """
    for_attention, for_mlp = (None, None) if keep is None else keep.unbind(0)
    tokens, entering = add_norm(tokens, None, None, None, *_values(norms[0]))
    branch, bias = attend(entering)
    if isinstance(norms[1], nn.LayerNorm):
        tokens, entering = add_norm(tokens, branch, scales[0], share_of(for_attention, rate), *_values(norms[1]), bias)
    else:
        tokens = ended(tokens, (branch, bias), scales[0], for_attention, rate)
    return ended(tokens, mlp(entering), scales[1], for_mlp, rate)


def share_of(keep: Tensor | None, rate: float) -> Tensor | None:
    """keep (B,) of 1.0 or 0.0 -> what branches are multiplied by.  A tensor, lest torch.compile builds each block's rate into a graph."""
    return None if keep is None else keep.float() * (1.0 / (1.0 - rate))


def _values(layer: nn.Module) -> tuple[Tensor, Tensor, float]:
    assert isinstance(layer, nn.LayerNorm)
    return layer.weight, layer.bias, layer.eps
