"""A frozen network that an objective asks, taken apart: it is held and computed with, and learns nothing."""

from dataclasses import replace

from vitscale.plan import vit
from vitscale.plan.anatomy import Anatomy
from vitscale.recipe.fields import code_at
from vitscale.recipe.load import check_section
from vitscale.recipe.objectives import Ibot, Objective
from vitscale.recipe.schema import FAMILIES, External, Model, Vit
from vitscale.recipe.teacher import RECIPE_FILE, read_about
from vitscale.recipe.upgrade import understood
from vitscale.shapes.vit import grid, num_tokens, shape_of


def with_frozen(found: Anatomy, model: Model, objective: Objective) -> Anatomy:
    """What is trained, and beside it the network that objective.frozen names.  Of a folder that is not there yet, or another library's, an
    anchor is taken to be as the student is, and of a teacher of classes nothing is known."""
    if objective.frozen is None:
        return found
    section = teacher_section(objective.frozen)
    if isinstance(objective, Ibot):
        assert isinstance(model, Vit)       # recipe/check_objective.py says so
        return _with_anchor(found, model, objective, section if isinstance(section, Vit) else model)
    if section is None or section.code.anatomy is None:
        return found
    return _beside(found, code_at(section.code.anatomy)(section), section, 1)


def teacher_section(folder: str) -> Model | None:
    """The model section of a run, or of an export of ours; None of another library's folder, and if none is there.  Raises RecipeError."""
    about = read_about(folder)
    if about is None:
        return None
    file, values = about
    section = values.get("model")
    if not isinstance(section, dict):
        return None
    if file.name == RECIPE_FILE:
        return understood(values, str(file)).recipe.model
    return check_section(FAMILIES.get(section["family"], External), dict(section), str(file)) if "family" in section else None


def _with_anchor(found: Anatomy, model: Vit, objective: Ibot, section: Vit) -> Anatomy:
    """The anchor looks at the teacher's views at a size of its own, without pooling or head, and patches are held against each other."""
    whole = section.model_copy(update={"classes": 0})
    section = whole.model_copy(update={"image": objective.gram_image or model.image})
    count, patches, parts = objective.global_views, grid(model) ** 2, vit.anatomy(section)
    parts = replace(parts, params=vit.anatomy(whole).params,        # a table of positions is interpolated
                    flops={name: flops for name, flops in parts.flops.items() if name not in ("pool", "head")})
    pairs, width = 2 * count * patches**2, shape_of(model).width
    found = _beside(found, parts, section, count)
    return replace(
        found, flops=found.flops | {"gram": pairs * width}, moved=found.moved | {"gram": 4 * count * patches * (patches + width)},
        surveyed=found.surveyed | {"gram": pairs * shape_of(section).width},
        # what is kept: the student's patches, and at length 1, and how much more alike than the anchor's they are; as much again in passing
        outputs=found.outputs + count * patches * (2 * patches + width))


def _beside(found: Anatomy, parts: Anatomy, section: Model, count: int) -> Anatomy:
    """`count` images of each sample go through `parts` without a gradient."""
    passing = 0
    if isinstance(section, Vit):        # a block's MLP: what it is added to, what goes in, before and after its activation
        passing = count * num_tokens(section) * 2 * (shape_of(section).width + shape_of(section).mlp)
    return replace(found, surveyed=found.surveyed | {"frozen": count * sum(parts.flops.values())}, frozen=sum(parts.params.values()),
                   frozen_unit=max((unit.params for unit in parts.units), default=0),
                   frozen_outer=sum(parts.params.values()) - sum(unit.params for unit in parts.units), frozen_passing=passing)
