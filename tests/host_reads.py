"""Counts how often a host waits for its device: on a CPU nothing has to be waited for, but what would have to be can be seen."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# whose answer, or the answer's size, is known once the numbers are
_WAITING = {_ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.masked_select, _ATEN.equal, _ATEN.is_nonzero, _ATEN._unique2, _ATEN.unique_dim,
            _ATEN.unique_consecutive, _ATEN.bincount, _ATEN.repeat_interleave, _ATEN.histc}
_METHODS = ("tolist", "cpu")        # which a CPU answers without any operation; numpy() is refused by a device


class HostReads(TorchDispatchMode):
    """Use as a context manager; `places` are the operations that would have waited.  `on_host`: tensors that are no device's wherever a
    step is computed, as those of a batch that has been read."""

    def __init__(self, on_host: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._on_host = {one.untyped_storage().data_ptr() for one in on_host}
        self.places: list[str] = []
        self._thread = threading.get_ident()        # others, which read data, have no device
        self._real = {name: getattr(Tensor, name) for name in _METHODS}

    def __enter__(self) -> "HostReads":
        for name, real in self._real.items():
            setattr(Tensor, name, self._noting(name, real))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, real in self._real.items():
            setattr(Tensor, name, real)

    def _noting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *given: Any, **named: Any) -> Any:
            self._note(name, tensor)
            return real(tensor, *given, **named)

        return method

    def _note(self, name: str, tensor: Tensor) -> None:
        if threading.get_ident() == self._thread and tensor.untyped_storage().data_ptr() not in self._on_host:
            self.places.append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket in (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_) and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        counted = func is _ATEN.repeat_interleave.Tensor or func.overloadpacket is not _ATEN.repeat_interleave
        if masks or (func.overloadpacket in _WAITING and counted):
            self._note(str(func), args[0])
        return func(*args, **(kwargs or {}))
