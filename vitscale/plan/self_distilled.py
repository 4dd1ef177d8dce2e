"""What self-distillation trains, taken apart: an encoder that views of several sizes go through, and a head over prototypes."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import pairwise

from vitscale.plan import vit
from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.recipe.objectives import Dino
from vitscale.recipe.schema import ViewSet, Vit
from vitscale.shapes.masked import encoder_section
from vitscale.shapes.vit import num_features, shape_of


def dino_anatomy(model: Vit, objective: Dino, views: Sequence[ViewSet] = ()) -> Anatomy:
    """Of an image in all its views; the teacher's are looked at once more, without a gradient.  Raises RecipeError when a section
    contradicts itself."""
    encoder = encoder_section(model)
    sizes = [one.image or model.image for one in views for _ in range(one.count)] or [model.image] * objective.global_views
    teacher = min(objective.global_views, len(sizes))
    passes = {size: vit.anatomy(encoder.model_copy(update={"image": size})) for size in set(sizes)}
    plain, prototypes, count = vit.anatomy(encoder), objective.prototypes, len(sizes)
    widths = [num_features(encoder, shape_of(encoder).width), *[objective.hidden] * (objective.layers - 1), objective.bottleneck]
    matrices = sum(first * second for first, second in pairwise(widths)) + objective.bottleneck * prototypes
    alike = [[one.count for one in views if (one.image or model.image) == size] for size in passes]
    joined = sum(sum(counts) * size**2 for counts, size in zip(alike, passes, strict=True) if len(counts) > 1)      # copied side by side
    head = Unit(
        params=matrices + sum(widths[1:]), stream=count * widths[0],
        # the input, before and after each GELU, before and after the norm; of the prototypes the normed ones are kept, whatever the images
        kept=count * (widths[0] + 2 * sum(widths[1:])), normed=0, kept_fp32=0, outputs=count * sum(widths), spare=0, attention=0,
        attention_outputs=0, mask_bytes=0, in_flight=2 * count * prototypes)
    blocks = [_together(passes[size].units[number] for size in sizes) for number in range(len(plain.units))]
    moved = _sum(passes[size].moved for size in sizes) | {"prototype_head": count * (2 * sum(widths) + 3 * prototypes)}
    return replace(
        plain, params=plain.params | {"prototype_head": head.params},
        flops=_sum(passes[size].flops for size in sizes) | {"prototype_head": count * 2 * matrices}, moved=moved,
        surveyed=_sum(passes[size].flops for size in sizes[:teacher]) | {"prototype_head": teacher * 2 * matrices},
        units=(*blocks, head), normed=sum(passes[size].normed for size in sizes),
        # of each view its logits over the temperature, of each of the teacher's what it is compared with, and what all are; two in passing
        outputs=(count + teacher + 3) * prototypes // 2, rows=teacher * prototypes,
        pooled=count * widths[0], stem=sum(passes[size].stem for size in sizes) + model.channels * joined,
        mask_bytes=sum(passes[size].mask_bytes for size in sizes))


def _together(units: Iterable[Unit]) -> Unit:
    """One block that each of these goes through: all that is kept of them, and the parameters once."""
    units = list(units)
    return Unit(**{field.name: units[0].params if field.name == "params" else
                   (max if field.name == "in_flight" else sum)(getattr(one, field.name) for one in units) for field in fields(Unit)})


def _sum(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in parts:
        for name, value in one.items():
            found[name] = found.get(name, 0) + value
    return found
