"""The two formulas that a Vision Transformer's cost grows by, attention's O(N^2 D) and the MLP's O(N D^2), in numbers of a recipe."""

from dataclasses import dataclass

from vitscale.plan.families import trained_section
from vitscale.plan.memory import cached_anatomy
from vitscale.recipe.schema import Recipe, Vit
from vitscale.shapes.vit import grid, num_tokens, shape_of


@dataclass(frozen=True)
class Growth:
    """FLOPs of a forward pass of one image, and where one part overtakes the other.  None: the formula is not that of the model."""

    tokens: int | None              # N that the blocks of an encoder get
    width: int | None               # D
    formulas: tuple[tuple[str, str], ...]       # component, formula: a multiply-add is 2
    attention_flops: int            # of the two products of N x N x D, or what stands in their place
    mlp_flops: int
    attention_share: float          # of the whole forward pass
    mlp_share: float
    overtakes_at_tokens: int | None         # N from which the two products alone cost more than the MLP
    overtakes_at_pixels: int | None         # of an image with patches of the recipe's size, on a side
    sentence: str


def growth(recipe: Recipe) -> Growth:
    """Raises RecipeError when the model contradicts itself."""
    model = trained_section(recipe.model, recipe.objective)
    parts = cached_anatomy(recipe)
    flops, formulas, sentence = parts.flops, parts.formulas, parts.growth
    attention, mlp, whole = flops.get("attention_product", 0), flops.get("mlp", 0), max(sum(flops.values()), 1)
    tokens = width = at = pixels = None
    if isinstance(model, Vit):
        shape = shape_of(model)
        tokens, width = num_tokens(model), shape.width
        factor = 6 if model.gated else 4
        formulas = (("attention_linear", "8 L N D^2"), ("mlp", f"{factor} L N D M"))
        if model.attention == "full":
            formulas = (("attention_product", "4 L N^2 D"), *formulas)
            at = factor * shape.mlp // 4 + 1
            before = tokens - grid(model) ** 2
            pixels = model.patch * (int(max(at - before, 0) ** 0.5) + 1)
            sentence = (f"attention's products, O(N^2 D), cost more than the MLP, O(N D^2), from {at:,} tokens on (an image of {pixels:,} "
                        f"pixels); this model has {tokens:,}")
        else:
            sentence = f"{model.attention} attention grows with N, not with N^2: it does not overtake the MLP as images grow"
    return Growth(tokens, width, formulas, attention, mlp, attention / whole, mlp / whole, at, pixels, sentence)
