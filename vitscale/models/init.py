"""What a parameter holds before training: a function of the seed and its name, of nothing else."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitscale.models.names import leaf

STD = 0.02      # of weights, class token and positions: Touvron et al. 2021 (DeiT), whose cut at +-2 lies a hundred deviations out


def initial_value(model: nn.Module, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The whole tensor of the parameter `name`, fp32 on the CPU; `shape` is its unsharded shape.

    * biases 0, norms' weights 1, LayerScale's gammas `model.layer_scale`;
    * the classifier 0, so that the first loss is log(classes) (big_vision's vit.py);
    * the patch projection normal with variance 1 / fan-in (LeCun et al. 1998), as big_vision and Dosovitskiy et al. 2021;
    * the MAP probe normal with variance 1 / D (timm);
    * all else normal with deviation STD.

    Nothing depends on the order of the parameters, the device, the engine or the sharding: a rank may make any tensor alone.
    """
    last = leaf(name)
    if last == "bias" or name == "head.weight":
        return torch.zeros(*shape, device="cpu")
    if last == "gamma":
        return torch.full(tuple(shape), float(model.layer_scale), device="cpu")  # type: ignore[arg-type]
    if last == "weight" and len(shape) == 1:
        return torch.ones(*shape, device="cpu")
    std = STD
    if name == "patch_embed.proj.weight":
        std = 1 / math.sqrt(math.prod(shape[1:]))
    elif last == "latent":
        std = 1 / math.sqrt(shape[-1])
    return torch.empty(*shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=_generator(seed, name))


def initialise(model: nn.Module, seed: int) -> None:
    """Fill a materialised, unsharded model in place: parameters by initial_value, buffers by its reset_buffers()."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(model, name, parameter.shape, seed))
        model.reset_buffers()  # type: ignore[operator]


def _generator(seed: int, name: str) -> torch.Generator:
    """A CPU stream of its own for each (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
