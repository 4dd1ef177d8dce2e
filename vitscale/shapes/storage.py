"""How much room the checkpoints of a recipe take on disk."""

from vitscale.recipe.schema import Recipe


def checkpoint_bytes(recipe: Recipe, parameters: int) -> int:
    """One checkpoint: weights, averages and AdamW's two moments in fp32, and weights and averages once more as safetensors.

    Names, tables and archives around the numbers are not counted: some 2 kB for each tensor (checkpoint/room.py counts them).
    """
    return 4 * (6 if recipe.keeps_average else 4) * parameters


def retained_checkpoints(recipe: Recipe) -> int:
    """How many there are at most at once: those kept, the best one, and the one that is being written."""
    best = recipe.checkpoint.best is not None and recipe.data.val is not None
    return recipe.checkpoint.keep + best + 1
