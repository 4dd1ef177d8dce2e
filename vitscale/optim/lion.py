"""Lion (Chen et al. 2023, Symbolic discovery of optimization algorithms, program 1), also over sharded parameters."""

from typing import Any

import torch

from vitscale.optim.local import local


class Lion(torch.optim.Optimizer):
    """The sign of a moving average of gradients, and decoupled decay.  Its learning rate is 3 to 10 times smaller than AdamW's, its
    decay as much larger (section 5)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}
            weights, gradients = [local(p) for p in parameters], [local(p.grad) for p in parameters]
            means, (beta1, beta2) = [local(self.state[p]["exp_avg"]) for p in parameters], group["betas"]
            updates = torch._foreach_lerp(means, gradients, 1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            torch._foreach_lerp_(means, gradients, 1 - beta2)
