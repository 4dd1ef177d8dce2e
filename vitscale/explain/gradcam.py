"""Where a class is seen, from gradients alone: works for every family."""

from torch import Tensor


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).  features and a logit's gradients (B, down, across, D) -> (B, down, across).

    Each channel counts as its gradient's mean over all places; what speaks against the class is cut off.
    """
    return (features * gradients.mean(dim=(1, 2), keepdim=True)).sum(dim=-1).clamp(min=0)
