"""The recipe: YAML text to frozen, checked, typed sections.  Imports no torch."""

from vitscale.recipe.duration import Duration
from vitscale.recipe.load import RECIPES, find_recipe, load_recipe, parse_override, recipe_files
from vitscale.recipe.objectives import Classification, Objective
from vitscale.recipe.schema import Augment, Checkpoint, Data, Evaluate, Model, Observe, Optim, Parallel, Recipe, Vit

__all__ = [
    "RECIPES", "Augment", "Checkpoint", "Classification", "Data", "Duration", "Evaluate", "Model", "Objective", "Observe", "Optim",
    "Parallel", "Recipe", "Vit", "find_recipe", "load_recipe", "parse_override", "recipe_files",
]
