"""What an objective asks of the rest of a recipe, and where it contradicts itself."""

import math

from vitscale.errors import RecipeError
from vitscale.metrics import OF_FEATURES, numbers_of
from vitscale.metrics.system import EVALUATION_LOSS
from vitscale.recipe.objectives import Dino, Ibot, Inpainting, Jigsaw, Lejepa, Mae
from vitscale.recipe.schema import Recipe, Vit
from vitscale.recipe.teacher import own_model


def num_visible(patches: int, mask_ratio: float) -> int:
    """Patches that MAE's encoder sees, rounded down as in the paper's code."""
    return int(patches * (1 - mask_ratio))


def num_masked(squares: int, mask_ratio: float) -> int:
    """Squares that inpainting masks, rounded up as in SimMIM's code."""
    return math.ceil(squares * mask_ratio)


def judges_of(recipe: Recipe) -> set[str]:
    """The columns by which a run may be judged: those of its evaluations' numbers of which it is known which way is better."""
    return {numbers_of(recipe.objective.name).judge.column, EVALUATION_LOSS.column,
            *(OF_FEATURES[name].column for name in recipe.evaluate.features)}


def objective_contradictions(recipe: Recipe) -> list[tuple[str, str]]:
    """(dotted key, sentence) for every combination that cannot work."""
    objective, data, found = recipe.objective, recipe.data, []
    if isinstance(recipe.model, Vit) and recipe.model.mup_base_width is not None:
        if objective.name in ("mae", "inpainting"):
            found.append(("model.mup_base_width", f"muP is worked out for classifiers; {objective.name} has a decoder of its own"))
        if recipe.optim.name not in ("adamw", "lion"):
            found.append(("optim.name", f"muP's learning rates are those of adamw and lion, not of {recipe.optim.name}"))
    if objective.wants_labels:
        if recipe.model.classes == 0:
            found.append(("model.classes", f"{objective.name} wants at least 1 class, got 0"))
        if data.label is None:
            found.append(("data.label", f"{objective.name} wants labels, got null"))
    else:
        found += [(f"data.augment.{key}", f"mixes labels, of which {objective.name} has none; leave it out")
                  for key in ("mixup", "cutmix") if getattr(data.augment, key) > 0]
    stopping, judges = recipe.evaluate.early_stopping, judges_of(recipe)
    found += _features(recipe)
    chosen = {"checkpoint.best": recipe.checkpoint.best, "evaluate.early_stopping.metric": stopping.metric if stopping else None}
    found += [(key, f"{objective.name} is not evaluated by {column}; take {' or '.join(sorted(judges))}, or leave it out")
              for key, column in chosen.items() if column not in {*judges, None}]
    if isinstance(objective, Mae | Inpainting):
        if type(recipe.model) is not Vit:
            return [*found, ("objective.name", f"{objective.name} wants model.family vit, whose patches can be hidden one by one, "
                             f"not {recipe.model.family}")]
        if recipe.model.patch_embed != "patch":
            found.append(("model.patch_embed", f"{objective.name} hides patches, of which {recipe.model.patch_embed} would see more than "
                          "their own tokens: it wants patch"))
        return found + (_mae(recipe.model, objective) if isinstance(objective, Mae) else _inpainting(recipe.model, objective))
    if isinstance(objective, Dino | Lejepa):
        found += _compares(recipe, objective)
    if isinstance(objective, Lejepa):
        return found + _lejepa(recipe, objective)
    if isinstance(objective, Dino):
        return found + _dino(recipe, objective) + (_ibot(recipe, objective) if isinstance(objective, Ibot) else [])
    return found + (_jigsaw(recipe, objective) if isinstance(objective, Jigsaw) else [])


def _features(recipe: Recipe) -> list[tuple[str, str]]:
    """What evaluate.features asks."""
    wanted, key, found = recipe.evaluate.features, "evaluate.features", []
    if not wanted:
        return []
    if not recipe.objective.wants_views:
        found.append((key, f"is of objectives without labels that compare views, not of {recipe.objective.name}; leave it out"))
    if recipe.data.val is None:
        found.append((key, "wants data.val"))
    if "segmentation" in wanted:
        found += [(f"data.{name}", f"wants {words} for evaluate.features: segmentation; without masks leave that out")
                  for name, words in (("mask", "the member with the mask of each validation image, such as mask.png"),
                                      ("mask_classes", "the number of classes that pixels have"))
                  if getattr(recipe.data, name) is None]
    if by_label := [name for name in wanted if name in ("knn", "linear")]:
        if recipe.data.label is None:
            found.append((key, f"{', '.join(by_label)} wants labels of the validation set: data.label"))
        if recipe.model.classes < 2:
            found.append((key, f"{', '.join(by_label)} wants to know how many classes the labels have: model.classes"))
    return found


def _compares(recipe: Recipe, objective: Dino | Lejepa) -> list[tuple[str, str]]:
    """What an objective that compares views of an image asks."""
    model, views, found, name = recipe.model, recipe.data.views, [], objective.name
    if type(model) is not Vit:
        found.append(("objective.name", f"{name} wants model.family vit, not {model.family}"))
    elif model.mup_base_width is not None:
        found.append(("model.mup_base_width", f"muP is worked out for classifiers; {name} has a head of its own"))
    count = sum(one.count for one in views)
    if count < 2 or objective.global_views > count:
        found.append(("data.views", f"{name} compares views of an image: it wants 2 at least, and {objective.global_views} "
                      f"(objective.global_views) of them global, got {count}"))
    found += [("data.views", f"the views of {one.name} would all be the centre of the image: its augment.crop wants to be random")
              for one in views if (one.augment or recipe.data.augment).crop != "random"]
    if recipe.parallel.tensor > 1:
        found.append(("parallel.tensor", f"cuts blocks, not {name}'s head; use fsdp without it"))
    return found


def _lejepa(recipe: Recipe, objective: Lejepa) -> list[tuple[str, str]]:
    found = []
    if recipe.model.dropout:
        found.append(("model.dropout", "lejepa looks at a step twice and must see the same, but dropout is drawn anew; use drop_path"))
    if recipe.parallel.engine in ("zero", "accelerate"):
        found.append(("parallel.engine", f"lejepa surveys a whole step before it learns from it, which {recipe.parallel.engine} is not "
                      "known to do exactly; use fsdp or ddp"))
    return found


def _dino(recipe: Recipe, objective: Dino) -> list[tuple[str, str]]:
    parallel, name = recipe.parallel, objective.name
    found = [(f"objective.{key}", f"wants {words}, got {value:g}") for key, value, sound, words in (
        *(("momentum", value, 0 <= value <= 1, "0 to 1") for value in (objective.momentum.start, objective.momentum.end)),
        *(("teacher_temp", value, value >= 0.012, "0.012 at least, under which fp32 cannot tell answers apart")
          for value in (objective.teacher_temp.start, objective.teacher_temp.end))) if not sound]
    if recipe.ema is not None:
        found.append(("ema", f"{name}'s teacher is the average of the weights, by objective.momentum; leave ema out"))
    if parallel.engine in ("zero", "accelerate"):
        found.append(("parallel.engine", f"{name}'s teacher is an fp32 average of the weights, of which {parallel.engine} has no fp32 "
                      "shard in every form; use fsdp or ddp"))
    if recipe.data.mix:
        found += [(f"objective.{key}", "a mixture (data.mix) has no epochs; give steps or images")
                  for key, length in (("momentum", objective.momentum.over), ("teacher_temp", objective.teacher_temp.over),
                                      ("rest_prototypes", objective.rest_prototypes))
                  if length is not None and length.unit == "epochs" and length.amount]
    return found


def _ibot(recipe: Recipe, objective: Ibot) -> list[tuple[str, str]]:
    """What masks of the teacher's views cannot be."""
    model, found, left = recipe.model, [], objective.global_views
    for one in recipe.data.views:
        if left > 0 and one.image not in (None, model.image):
            found.append(("data.views", f"the views of {one.name} are the teacher's, whose patches {objective.name} hides: they want "
                          f"model.image {model.image} pixels, got {one.image}"))
        left -= one.count
    if isinstance(model, Vit) and model.patch_embed != "patch":
        found.append(("model.patch_embed", f"{objective.name} hides patches, of which {model.patch_embed} would see more than their own "
                      "tokens: it wants patch"))
    found += _anchor(recipe, objective) if objective.gram else [
        (f"objective.{key}", "is of Gram anchoring; give objective.gram a weight above 0, or leave it out")
        for key in ("gram_teacher", "gram_image") if getattr(objective, key) is not None]
    patches, (low, high) = (model.image // getattr(model, "patch", 1)) ** 2, objective.mask_share
    if not low <= high < 1:
        found.append(("objective.mask_share", f"wants [low, high], shares of a view's patches below 1, got {[low, high]}"))
    elif int(high * patches) < 1:
        found.append(("objective.mask_share", f"{high:g} of {patches} patches is less than one; take more"))
    return found


def _anchor(recipe: Recipe, objective: Ibot) -> list[tuple[str, str]]:
    """What Gram anchoring asks of its teacher, as far as the folder is here and one of ours."""
    model, folder, key = recipe.model, objective.gram_teacher, "objective.gram_teacher"
    if folder is None:
        return [(key, "gram wants one: an earlier run's folder, or an export")]
    try:
        anchor = own_model(folder) or {}
    except RecipeError as error:
        return [(key, str(error))]
    if (family := anchor.get("family", "vit")) not in ("vit", "deit"):
        return [(key, f"{folder} is of family {family}; gram compares patches of a Vision Transformer: a run of family vit, or its export")]
    if (channels := anchor.get("channels", model.channels)) != model.channels:
        return [(key, f"{folder} wants {channels} channels, model.channels is {model.channels}")]
    size, patch = objective.gram_image or model.image, anchor.get("patch", getattr(model, "patch", 1))
    if type(patch) is not int or patch < 1:
        return [(key, f"{folder} is no readable teacher: its model.patch is {patch!r}")]
    if size % patch:
        return [("objective.gram_image", f"{size} pixels are not divisible by the {patch} of a patch of {folder}; take "
                 f"{max(size // patch, 1) * patch}")]
    return []


def _mae(model: Vit, objective: Mae) -> list[tuple[str, str]]:
    found = []
    if model.rope_type is not None:
        found.append(("model.rope_type", "mae leaves patches out, whose places the turns would not know: it wants none"))
    if model.position not in ("learned", "sincos"):
        found.append(("model.position", f"mae leaves patches out, so each must bring its place along: it wants learned or sincos, "
                      f"not {model.position}"))
    if model.attention != "full":
        found.append(("model.attention", f"mae leaves patches out, so there is no grid for attention {model.attention}: it wants full"))
    patches = (model.image // model.patch) ** 2
    visible = num_visible(patches, objective.mask_ratio)
    if not 0 < visible < patches:
        found.append(("objective.mask_ratio", f"{objective.mask_ratio:g} of {patches} patches leaves {visible} to be seen: it wants some "
                      "patches masked and some not"))
    decoder = objective.decoder
    if decoder.width % decoder.heads:
        found.append(("objective.decoder.heads", f"{decoder.heads} heads do not divide the decoder's width {decoder.width}"))
    if decoder.width % 4:
        found.append(("objective.decoder.width", f"sin-cos positions want a width divisible by 4, got {decoder.width}"))
    return found


def _inpainting(model: Vit, objective: Inpainting) -> list[tuple[str, str]]:
    side = objective.mask_patch
    if side % model.patch or model.image % side:
        return [("objective.mask_patch", f"{side} is not a multiple of model.patch {model.patch} that divides model.image {model.image}")]
    squares = (model.image // side) ** 2
    if num_masked(squares, objective.mask_ratio) == squares:
        return [("objective.mask_ratio", f"{objective.mask_ratio:g} masks all {squares} squares; take less, or a smaller mask_patch")]
    return []


def _jigsaw(recipe: Recipe, objective: Jigsaw) -> list[tuple[str, str]]:
    image, grid, patch = recipe.model.image, objective.grid, getattr(recipe.model, "patch", 1)
    found = []
    if image % grid or image // grid % patch:
        found.append(("objective.grid", f"{grid} tiles on a side must be whole patches of {patch} pixels, but model.image is {image}"))
    if objective.permutations > math.factorial(grid**2):
        found.append(("objective.permutations", f"of {grid} x {grid} tiles there are {math.factorial(grid**2)}, "
                      f"got {objective.permutations}"))
    return found
