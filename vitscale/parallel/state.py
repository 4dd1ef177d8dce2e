"""Training state by name, as every checkpoint holds it: read from and written into parameters that may be DTensors."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vitscale.errors import CheckpointError
from vitscale.models.exact import rests

ValueOf = Callable[[str, torch.Size], Tensor]   # parameter name, global shape -> its full fp32 value on the host
Fill = Callable[[dict[str, Tensor]], None]      # writes a checkpoint's values into the tensors, by name, in place


def fill_parameters_(model: nn.Module, value_of: ValueOf) -> None:
    """Give every parameter its full value; a sharded one takes its part.  No communication: each rank computes the value itself."""
    for name, parameter in model.named_parameters():
        _put(parameter, value_of(name, parameter.shape))


def fill_first_(targets: Mapping[str, Tensor], value_of: ValueOf) -> None:
    """Let a state's tensors, zero until now, be that of a model with its initial values and an optimizer that has seen no gradient."""
    for name, target in targets.items():
        if name.startswith("model."):
            _put(target, value_of(name.removeprefix("model."), target.shape))


@torch.no_grad()
def _put(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.to_local().device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


@torch.no_grad()
def fill_rests_(model: nn.Module, master_of: Callable[[nn.Parameter], Tensor]) -> None:
    """Tell a model what its bf16 weights lack of those that it computes with in fp32 (models/exact.py); `master_of`: the whole of one."""
    for name, rest in rests(model):
        master = master_of(model.get_parameter(name)).to(rest.device).view(rest.shape)
        rest.copy_(master - master.bfloat16().float())


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`model.NAME` and `optim.NAME.KEY`, sharing memory with the parameters and the optimizer."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"optim.{name}.{key}"] = value
    return state


def all_finite(model: nn.Module) -> bool:
    """Whether the parameters are finite, as far as they lie on this rank: whole, or its part of a sharded one."""
    parts = [parameter.to_local() if isinstance(parameter, DTensor) else getattr(parameter, "ds_tensor", parameter)
             for parameter in model.parameters()]
    with torch.no_grad():       # x - x is 0, or NaN where x is not finite: one number to wait for, whatever the number of tensors
        sums = [(part - part).sum().float() for part in parts if part.numel()]
        return not sums or bool(torch.stack(sums).isfinite().all())


def load_named_state(model: nn.Module, optimizer: torch.optim.Optimizer, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
    """The reverse of `named_state`; optimizer state that does not exist yet is allocated like its parameter."""
    parameters = dict(model.named_parameters())
    check_names(parameters, shapes)
    targets: dict[str, Tensor] = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, key in optimizer_keys(shapes):
        parameter = parameters[name]
        full = f"optim.{name}.{key}"
        if shapes[full] == parameter.shape:
            value = torch.zeros_like(parameter.detach())
        else:       # a counter, such as AdamW's step
            value = torch.zeros(shapes[full], dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter][key] = targets[full] = value
    fill(targets)


def optimizer_keys(shapes: Mapping[str, torch.Size]) -> list[tuple[str, str]]:
    """(parameter name, state key) of every optimizer tensor in a checkpoint."""
    pairs = (name.removeprefix("optim.").rpartition(".") for name in shapes if name.startswith("optim."))
    return [(name, key) for name, _, key in pairs]


def check_names(parameters: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raises CheckpointError naming the first parameter that a checkpoint lacks, has too many of, or has in another shape; or a state of
    the optimizer that none can have."""
    saved = {name.removeprefix("model."): shape for name, shape in shapes.items() if name.startswith("model.")}
    for name, key in optimizer_keys(shapes):
        shape = shapes[f"optim.{name}.{key}"]
        if name not in parameters or tuple(shape) not in ((), tuple(parameters[name].shape)):
            raise CheckpointError(f"the checkpoint has an optimizer state 'optim.{name}.{key}' of shape {tuple(shape)}, which no parameter "
                                  "of this model can have")
    for name, parameter in parameters.items():
        if name not in saved:
            raise CheckpointError(f"the checkpoint has no parameter '{name}'; it belongs to another model")
        if tuple(saved[name]) != tuple(parameter.shape):
            raise CheckpointError(f"parameter '{name}' is {tuple(saved[name])} in the checkpoint, {tuple(parameter.shape)} in this model")
    surplus = sorted(saved.keys() - parameters.keys())
    if surplus:
        raise CheckpointError(f"the checkpoint has a parameter '{surplus[0]}' that this model lacks; it belongs to another model")
