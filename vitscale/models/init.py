"""What a parameter holds before training: a function of the seed and its name, of nothing else."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vitscale.errors import RecipeError
from vitscale.models.backbone import Backbone
from vitscale.models.names import leaf

BOXES = "patch_embed.boxes.weight"
HEADS = ("head.weight", "head.fc.weight", "head_dist.weight")


def initial_value(model: Backbone, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The whole tensor of the parameter `name`, fp32 on the CPU; `shape` is its unsharded shape.

    As big_vision's vit.py (Beyer et al. 2022), whose deviations follow the width, so that small models train as well as large ones:

    * matrices of attention and MLP uniform with variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010); qkv counts as three;
    * positions, registers, the mask token and the MAP probe normal with variance 1 / D (muP: of the base's D, since what is added to
      the tokens must not shrink with the width: Yang et al. 2022, table 3); class and distillation token 0;
    * the patch projection normal with variance 1 / fan-in (LeCun et al. 1998);
    * other convolutions likewise; tables of relative positions 0: every direction alike at first; boxes of adaptive patches 0: at
      first the regular grid;
    * the classifier 0, so that the first loss is log(classes); biases 0, norms' weights 1; what `model.constants` names, that number.

    A backbone's own initial_value() goes before all of these.

    Nothing depends on the order of the parameters, the device, the engine or the sharding: a rank may make any tensor alone.
    """
    own = model.initial_value(name, shape, _generator(seed, name))
    if own is not None:
        return own.to("cpu", torch.float32)
    last = leaf(name)
    for ending, number in model.constants.items():
        if name.endswith(ending):
            return torch.full(tuple(shape), number, device="cpu")
    if last in ("bias", "q_bias", "v_bias", "cls_token", "dist_token", "relative_position_bias_table") or name in (*HEADS, BOXES):
        return torch.zeros(*shape, device="cpu")
    if last == "weight" and len(shape) == 1:
        return torch.ones(*shape, device="cpu")
    value, generator = torch.empty(*shape, dtype=torch.float32, device="cpu"), _generator(seed, name)
    if last in ("pos_embed", "latent", "reg_token", "mask_token"):
        return value.normal_(0.0, 1 / math.sqrt(model.base_width or shape[-1]), generator=generator)
    if len(shape) > 2:
        return value.normal_(0.0, 1 / math.sqrt(math.prod(shape[1:])), generator=generator)
    if len(shape) < 2:
        raise RecipeError(f"model.family: of the parameter {name}, of shape {tuple(shape)}, no initial value is known; its backbone is to "
                          "say it, in `constants` or initial_value()")
    fan_out, fan_in = shape
    if name.endswith("qkv.weight"):
        fan_out //= 3
    elif name.endswith(".kv.weight"):
        fan_out //= 2
    bound = math.sqrt(6 / (fan_in + fan_out))
    return value.uniform_(-bound, bound, generator=generator)


def initialise(model: Backbone, seed: int) -> None:
    """Fill a materialised, unsharded model in place: parameters by initial_value, buffers by its reset_buffers()."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(model, name, parameter.shape, seed))
        model.reset_buffers()


def _generator(seed: int, name: str) -> torch.Generator:
    """A CPU stream of its own for each (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
