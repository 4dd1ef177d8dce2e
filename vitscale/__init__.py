"""vitscale: pretrain Vision Transformers from one YAML recipe.  Importing this loads no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitscale.checkpoint.load import Loaded, load

__version__ = "0.2.0"
__all__ = ["Loaded", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for."""
    if name in ("Loaded", "load"):
        return getattr(import_module("vitscale.checkpoint.load"), name)
    raise AttributeError(f"module 'vitscale' has no attribute {name!r}")
