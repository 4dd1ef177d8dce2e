"""Tensor parallelism (Shoeybi et al. 2019, Megatron-LM, section 3): each block's matrices are cut over a few ranks of a node."""

import functools
from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from vitscale.models.attention import Attention, whole_bias


def cut_(blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Cut the blocks of a Vision Transformer over the ranks of a one-dimensional mesh, in place, before FSDP shards what is left.

    By module path: queries, keys and values by heads and the MLP's first layer by columns (of the transposed weight, as Megatron
    writes it: by outputs), the layers after them by inputs, so that a block waits for the others twice in each direction, for the
    sum at its branches' ends.  Everything else is the same on every rank of the mesh and is computed by each from the same numbers.
    The heads and the MLP's width must be multiples of the mesh's size.
    """
    for block in blocks:
        parallelize_module(block, mesh, {"attn.qkv": _ByHeads(), "attn.proj": RowwiseParallel(), "mlp.fc1": ColwiseParallel(),
                                         "mlp.fc2": RowwiseParallel()}, src_data_rank=None)
        attention = block.get_submodule("attn")
        assert isinstance(attention, Attention)
        attention.heads //= mesh.size()


class _ByHeads(ParallelStyle):
    """Of a fused layer of queries, keys and values, each rank computes whole heads of all three: tokens (B, N, D) -> (B, N, 3 D / T).

    The rows of such a weight are the heads of the queries, then of the keys, then of the values.  Each rank holds the T-th part of
    them in this order, as of any matrix, so that a checkpoint is the same for any T; for a forward pass the ranks exchange rows, which
    for more tokens than the model is wide is less than exchanging what they make of the tokens.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        for name, parameter in list(module.named_parameters()):
            part = distribute_tensor(parameter.detach(), device_mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part))
        module.forward = functools.partial(_project, module, device_mesh)       # type: ignore[method-assign]
        return module


def _project(layer: nn.Linear, mesh: DeviceMesh, tokens: Tensor) -> Tensor:
    tokens = DTensor.from_local(tokens, mesh, [Replicate()], run_check=False)     # its gradient is the sum over the ranks
    bias: Tensor | None = None
    if layer.bias is not None:
        parts = 3 * layer.bias.shape[0] // layer.weight.shape[0]        # two of them where keys have no bias
        bias = _whole_heads(layer.bias, mesh, parts)
        if parts == 2:
            bias = DTensor.from_local(whole_bias(bias.to_local()), mesh, [Shard(0)], run_check=False)
    out = nn.functional.linear(tokens, _whole_heads(layer.weight, mesh), bias)
    assert isinstance(out, DTensor)
    return out.to_local()


def _whole_heads(rows: Tensor, mesh: DeviceMesh, parts: int = 3) -> DTensor:
    """Rows (3 D, ...), of which each rank holds a third of 3 T runs of heads in order -> those of its own heads, of q, k and v.

    Run b belongs to rank b // 3 and is wanted by rank b mod T, for T divides the runs of each of the three.  `parts` is 2 of (2 D, ...).
    """
    assert isinstance(rows, DTensor)
    count, mine = mesh.size(), mesh.get_local_rank()
    held = rows.to_local().unflatten(0, (parts, -1))
    wanted_by = [[run % count for run in range(parts * rank, parts * rank + parts)] for rank in range(count)]
    length = held.shape[1]
    order = sorted(range(parts), key=lambda run: wanted_by[mine][run])
    swapped = all_to_all_single_autograd(
        held[order].flatten(0, 1), [length * wanted.count(mine) for wanted in wanted_by],
        [length * wanted_by[mine].count(rank) for rank in range(count)], mesh.get_group())
    return DTensor.from_local(swapped, mesh, [Shard(0)], run_check=False)
