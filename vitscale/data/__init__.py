"""Shards on disk to micro-batches in an exact order.  What needs torch is imported only when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitscale.data.bad import BadSample
from vitscale.data.draws import uniforms
from vitscale.data.index import SetIndex, ShardIndex, open_index
from vitscale.data.labels import check_labels
from vitscale.data.order import Batch, Order
from vitscale.data.quickstart import pack_digits
from vitscale.data.reader import ShardReader
from vitscale.data.shards import expand

if TYPE_CHECKING:
    from vitscale.data import augment, mix
    from vitscale.data.batch import MicroBatch, StepBatch
    from vitscale.data.loader import EvalStream, Stream, open_stream

__all__ = [
    "BadSample", "Batch", "EvalStream", "MicroBatch", "Order", "SetIndex", "ShardIndex", "ShardReader", "StepBatch", "Stream", "augment",
    "check_labels", "expand", "mix", "open_index", "open_stream", "pack_digits", "uniforms",
]

_WITH_TORCH = {
    "MicroBatch": "batch", "StepBatch": "batch", "EvalStream": "loader", "Stream": "loader", "open_stream": "loader",
}


def __getattr__(name: str) -> Any:
    if name in ("augment", "mix"):
        return import_module(f"vitscale.data.{name}")
    if name in _WITH_TORCH:
        return getattr(import_module(f"vitscale.data.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'vitscale.data' has no attribute {name!r}")
