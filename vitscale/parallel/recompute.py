"""Activation checkpointing (Chen et al. 2016): blocks recomputed in the backward pass, wholly or all but the dear operations."""

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
# Matmuls and attention hold nearly all FLOPs of a block; their outputs are kept, the cheap pointwise rest is recomputed
# (selective recomputation, Korthikanti et al. 2022, section 5).
_KEPT = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.linear.default,
    _aten._scaled_dot_product_flash_attention.default, _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default, _aten._scaled_dot_product_cudnn_attention.default,
}
_Outputs = dict[Any, deque[list[Any]]]      # of each operation's calls in their order: the output's leaves, tensors mostly


class _Keep(TorchDispatchMode):
    """The forward pass: outputs of `_KEPT` operations are kept as they were made.

    torch's own mode for this keeps the very memory, and what is added to it in place afterwards is added a second time when the block
    is recomputed.  It looks at version counters, but those of matmul's outputs are not their aliases': DeepSpeed's linear layer of
    stage 3 adds its bias so, and so does torch's where its input is not contiguous.  Here what is about to be overwritten is copied.
    """

    def __init__(self, kept: _Outputs) -> None:
        super().__init__()
        self._kept = kept
        self._held: dict[StorageWeakRef, list[tuple[list[Any], int]]] = defaultdict(list)      # where each kept tensor stands, by memory

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._held:
            for tensor in _written(func, args, kwargs):
                for leaves, place in self._held.pop(_memory(tensor), ()):
                    leaves[place] = leaves[place].clone()
        out = func(*args, **kwargs)
        if func in _KEPT:
            # detached: autograd is yet to attach itself to the output, and would be found there by the recomputation
            leaves = tree_leaves(tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, out))
            self._kept[func].append(leaves)
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    self._held[_memory(leaf)].append((leaves, place))
        return out

    def __exit__(self, *raised: Any) -> None:
        self._held.clear()
        super().__exit__(*raised)


class _Give(TorchDispatchMode):
    """The recomputation: `_KEPT` operations are not computed again."""

    def __init__(self, kept: _Outputs) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func not in _KEPT:
            return func(*args, **(kwargs or {}))
        leaves = self._kept[func].popleft()
        return leaves[0] if len(leaves) == 1 else tuple(leaves)


def _memory(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef((tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage())


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation is about to change in place."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))


def _contexts() -> tuple[_Keep, _Give]:
    kept: _Outputs = defaultdict(deque)
    return _Keep(kept), _Give(kept)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_(units: Sequence[nn.Module], policy: Literal["none", "blocks", "selective"], every: int = 1, compiled: bool = False) -> None:
    """Make each unit forget its activations: all of every `every`-th unit (`blocks`), or all but `_KEPT` (`selective`).

    `compiled`: torch.compile comes next.  It reads torch's own marks of what is kept, and changes nothing in place.
    """
    if policy == "none":
        return
    extra: dict[str, Any] = {}
    if policy == "selective":
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy) if compiled else _contexts
    for number, unit in enumerate(units):
        if number % every == 0:
            unit.forward = functools.partial(_recomputed, unit, unit.forward, extra)


def _recomputed(unit: nn.Module, forward: Callable[..., Any], extra: dict[str, Any], *given: Any) -> Any:
    """The unit's forward, whose activations are forgotten if there were any: frozen units at the beginning keep none.

    torch's compiler refuses to forget where there is no gradient (its attention counts as an operation that draws random numbers).
    """
    if not torch.is_grad_enabled() or not any(
            tensor.requires_grad for tensor in (*unit.parameters(), *given) if isinstance(tensor, Tensor)):
        return forward(*given)
    return checkpoint(forward, *given, use_reentrant=False, **extra)
