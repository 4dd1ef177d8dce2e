"""What the kernels compute in, and how the sums that they find become gradients of parameters."""

from typing import Any

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Any:
    """Triton's type that a tensor's numbers are computed in: fp32; float64, of the interpreter, stays what it is."""
    import triton.language as tl

    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def by_polynomial(tensor: Tensor) -> bool:
    """Whether erf may be off by 2.5e-5: of 16-bit numbers, which are rounded more coarsely."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


def to_parameter(sums: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Sums of columns as the gradient of the parameter; None where there is none."""
    return None if parameter is None else sums.to(parameter.dtype)
