"""Weights alone, as `init`, teachers and exports take them: from a run folder, a checkpoint or a .safetensors file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitscale.checkpoint.store import MANIFEST, WEIGHTS, checkpoints_in, damage_in
from vitscale.errors import CheckpointError


def find_weights(source: Path) -> Path:
    """The .safetensors file that a run folder (its newest whole checkpoint), a checkpoint folder or a file stands for."""
    if source.is_file():
        return source
    if (source / WEIGHTS).is_file():
        # safetensors would load a flipped bit without a word
        if (source / MANIFEST).exists() and (reason := damage_in(source, only=WEIGHTS)) is not None:
            raise CheckpointError(f"{source}: is damaged: {reason}")
        return source / WEIGHTS
    for checkpoint in reversed(checkpoints_in(source / "checkpoints")):
        if damage_in(checkpoint) is None:
            return checkpoint / WEIGHTS
    raise CheckpointError(f"{source}: holds no weights; wanted is a run folder with a whole checkpoint, a checkpoint folder, "
                          "or a .safetensors file")


def read_weights(source: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """name -> fp32 value for exactly the parameters in `shapes`.  Raises CheckpointError naming the first that does not fit."""
    path = find_weights(source)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None
    for name, shape in shapes.items():
        if name not in weights:
            raise CheckpointError(f"{path}: has no '{name}'; these are the weights of another model")
        if tuple(weights[name].shape) != tuple(shape):
            raise CheckpointError(f"{path}: '{name}' is {tuple(weights[name].shape)}, this model's is {tuple(shape)}")
    surplus = sorted(weights.keys() - shapes.keys())
    if surplus:
        raise CheckpointError(f"{path}: has '{surplus[0]}', which this model lacks")
    return {name: weights[name].float() for name in shapes}
