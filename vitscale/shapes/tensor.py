"""Whether the ranks that share a block's matrices can share these out evenly."""

from vitscale.errors import RecipeError
from vitscale.recipe.schema import Recipe, Vit
from vitscale.shapes.vit import shape_of


def check_tensor(recipe: Recipe) -> None:
    """Raises RecipeError when parallel.tensor does not divide the heads and the MLP's width, which a named size may decide."""
    count = recipe.parallel.tensor
    if count == 1 or not isinstance(recipe.model, Vit):
        return
    shape = shape_of(recipe.model)
    odd = [f"the {shape.heads} heads (model.heads)"] if shape.heads % count else []
    odd += [f"the width {shape.mlp} (model.mlp)"] if shape.mlp % count else []
    if odd:
        fitting = ", ".join(str(d) for d in range(1, shape.heads + 1) if shape.heads % d == 0 and shape.mlp % d == 0)
        raise RecipeError(f"parallel.tensor: {count} ranks cannot share {' and '.join(odd)} evenly; these can: {fitting}")
