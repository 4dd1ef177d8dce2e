"""LAMB (You et al. 2020, Large batch optimization for deep learning, algorithm 2), also over sharded parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from vitscale.optim.local import local


class Lamb(torch.optim.Optimizer):
    """Adam's step for each tensor, decay included, scaled to the length of the tensor itself.

    Tensors without decay (norms, biases) take Adam's step as it is, as in DeiT III (Touvron et al. 2022) and timm.  The lengths are those
    of whole tensors wherever their parts lie; one exchange a step sees to it.  The gradient is not clipped here: optim.clip_norm does that.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    # the state's names and shapes are torch's AdamW's, so that it is saved, sharded and restored alike
                    self.state[parameter] = {"step": torch.zeros((), device=parameter.device), "exp_avg": torch.zeros_like(parameter),
                                             "exp_avg_sq": torch.zeros_like(parameter)}
            self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        states, (beta1, beta2), decay = [self.state[parameter] for parameter in parameters], group["betas"], group["weight_decay"]
        weights, gradients = [local(p) for p in parameters], [local(p.grad) for p in parameters]
        means, squares = [local(state["exp_avg"]) for state in states], [local(state["exp_avg_sq"]) for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        step = states[0]["step"].double()       # it stays on its device: the host does not wait for it
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        below = torch._foreach_div(squares, (1 - beta2**step).float())
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, group["eps"])
        updates = torch._foreach_div(means, below)
        torch._foreach_div_(updates, (1 - beta1**step).float())
        if decay:
            torch._foreach_add_(updates, weights, alpha=decay)
            lengths, changes = _lengths(parameters, [weights, updates])
            ratios = torch.where((lengths > 0) & (changes > 0), lengths / changes, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def _lengths(parameters: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Euclidean norms (rows, parameters) of the whole tensors whose local parts are given, sharded as `parameters` are."""
    squares = torch.stack([part.float().square().sum() for row in rows for part in row]).unflatten(0, (len(rows), -1))
    first = parameters[0]
    if isinstance(first, DTensor):
        shards = [Replicate() if placement.is_replicate() else Partial() for placement in first.placements]
        squares = DTensor.from_local(squares, first.device_mesh, shards, run_check=False).full_tensor()
    return squares.sqrt()
