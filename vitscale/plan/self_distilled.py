"""What self-distillation and LeJEPA train, taken apart: an encoder that views of several sizes go through, and a head."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import pairwise

from vitscale.plan import vit
from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.recipe.objectives import Dino, Ibot, Lejepa
from vitscale.recipe.schema import ViewSet, Vit
from vitscale.shapes.masked import encoder_section
from vitscale.shapes.vit import grid, num_features, shape_of


def dino_anatomy(model: Vit, objective: Dino, views: Sequence[ViewSet] = ()) -> Anatomy:
    """Of an image in all its views; the teacher's are looked at once more, without a gradient.  Of patches, as many as are hidden on
    average.  Raises RecipeError when a section contradicts itself."""
    encoder, sizes = encoder_section(model), _sizes(model, objective.global_views, views)
    teacher, own, hidden, extra = sizes[:objective.global_views], None, 0, 0
    if isinstance(objective, Ibot):
        share = objective.mask_probability * sum(objective.mask_share) / 2
        own, hidden, extra = objective.patch_prototypes, round(len(teacher) * share * grid(model) ** 2), shape_of(encoder).width
    inner = (*[objective.hidden] * (objective.layers - 1), objective.bottleneck)
    together = hidden if own is None else 0         # go through the head of the views
    rows = [(len(sizes) + together, len(teacher) + together, objective.prototypes)] + ([] if own is None else [(hidden, hidden, own)])
    width = num_features(encoder, shape_of(encoder).width)
    heads = [_head((width, *inner, prototypes), count) for count, _, prototypes in rows[:1]]
    heads += [_head((shape_of(encoder).width, *inner, prototypes), count) for count, _, prototypes in rows[1:]]
    found = _encoded(encoder, sizes, teacher, views)
    matrices = [head.params - sum(inner) for head in heads]
    heads = [replace(head, of_weights=objective.bottleneck * one[2]) for head, one in zip(heads, rows, strict=True)]
    return replace(
        found, params=found.params | {"prototype_head": sum(head.params for head in heads)} | ({"mask_token": extra} if extra else {}),
        flops=found.flops | {"prototype_head": sum(2 * count * size for (count, _, _), size in zip(rows, matrices, strict=True))},
        surveyed=found.surveyed | {"prototype_head": sum(2 * count * size for (_, count, _), size in zip(rows, matrices, strict=True))},
        moved=found.moved | {"prototype_head": sum(count * (2 * (width + sum(inner)) + 3 * prototypes) for count, _, prototypes in rows)},
        units=(*found.units, *heads), pooled=found.pooled + hidden * extra, one_row=found.one_row + extra,
        # of each view its logits over the temperature, of each of the teacher's what it is compared with, and what all are
        outputs=sum((count + taught + 1) * prototypes // 2 for count, taught, prototypes in rows),
        rows=sum(taught * prototypes for _, taught, prototypes in rows))


def lejepa_anatomy(model: Vit, objective: Lejepa, views: Sequence[ViewSet] = ()) -> Anatomy:
    """Of an image in all its views, each of which is looked at once more, without a gradient, where a step has several micro-batches.
    Raises RecipeError."""
    encoder, sizes = encoder_section(model), _sizes(model, objective.global_views, views)
    inner, width, count = [objective.hidden] * (objective.layers - 1), num_features(encoder, shape_of(encoder).width), len(sizes)
    head = _head((width, *inner, objective.embedding), count)
    matrices = head.params - sum(inner)
    head = replace(head, params=head.params + objective.embedding + 2 * sum(inner), kept=head.kept + count * sum(inner))     # biases, norms
    found, waves = _encoded(encoder, sizes, sizes, views), count * objective.directions * 17
    projected = {"projector": 2 * count * matrices}
    slices = {"sigreg": 2 * count * objective.embedding * objective.directions}
    return replace(
        found, params=found.params | {"projector": head.params}, flops=found.flops | projected | slices,
        surveyed={}, again=found.surveyed | projected, moved=found.moved | {"projector": count * 2 * (width + sum(inner)) + 4 * waves},
        units=(*found.units, head), outputs=2 * waves, rows=count * objective.embedding)


def _sizes(model: Vit, global_views: int, views: Sequence[ViewSet]) -> list[int]:
    """Pixels on a side of every view."""
    return [one.image or model.image for one in views for _ in range(one.count)] or [model.image] * global_views


def _encoded(encoder: Vit, sizes: Sequence[int], surveyed: Sequence[int], views: Sequence[ViewSet]) -> Anatomy:
    """The encoder over views of these sizes, of which some are surveyed besides."""
    alike = [[one.count for one in views if (one.image or encoder.image) == size] for size in set(sizes)]
    joined = sum(sum(counts) * size**2 for counts, size in zip(alike, set(sizes), strict=True) if len(counts) > 1)     # copied side by side
    plain, passes = vit.anatomy(encoder), {size: vit.anatomy(encoder.model_copy(update={"image": size})) for size in set(sizes)}
    return replace(
        plain, flops=_sum(passes[size].flops for size in sizes), moved=_sum(passes[size].moved for size in sizes),
        surveyed=_sum(passes[size].flops for size in surveyed),
        units=tuple(_together(passes[size].units[number] for size in sizes) for number in range(len(plain.units))),
        normed=sum(passes[size].normed for size in sizes), pooled=len(sizes) * num_features(encoder, shape_of(encoder).width),
        stem=sum(passes[size].stem for size in sizes) + encoder.channels * joined,
        mask_bytes=sum(passes[size].mask_bytes for size in sizes))


def _head(widths: Sequence[int], count: int) -> Unit:
    """A projection and what stands at its end, without biases there, over `count` rows."""
    *inner, last = widths
    return Unit(
        params=sum(first * second for first, second in pairwise(widths)) + sum(inner[1:]), stream=count * inner[0],
        # the input, before and after each GELU, before and after the norm; of the prototypes the normed ones are kept, whatever the images
        kept=count * (inner[0] + 2 * sum(inner[1:])), normed=0, kept_fp32=0, outputs=count * sum(inner), spare=0, attention=0,
        attention_outputs=0, mask_bytes=0, in_flight=count * last)


def _together(units: Iterable[Unit]) -> Unit:
    """One block that each of these goes through, those of one size together: all that is kept of them, and the parameters once."""
    passes = Counter(units)
    found = Unit(**{field.name: sum(count * getattr(one, field.name) for one, count in passes.items()) for field in fields(Unit)})
    return replace(found, params=next(iter(passes)).params, of_weights=0,
                   in_flight=max(count * one.in_flight for one, count in passes.items()),
                   at_once=max(count * one.kept for one, count in passes.items()) / found.kept)


def _sum(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in parts:
        for name, value in one.items():
            found[name] = found.get(name, 0) + value
    return found
