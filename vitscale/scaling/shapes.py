"""From a rule to the shapes of models of different size.  Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitscale.errors import RecipeError
from vitscale.scaling.sweep import Explicit, Sizes, Sweep
from vitscale.shapes.vit import SIZES, Shape

# Exponents of the compute-optimal shape over compute, from SoViT-400m: Alabdulmohsin et al. 2023, table 1 and section 4.
SOVIT = {"width": 0.22, "depth": 0.45, "mlp": 0.6}


@dataclass(frozen=True)
class SweepMember:
    """A model of a sweep."""

    name: str
    section: Mapping[str, Any]  # of the run's recipe: beside what the base has, or with `models` instead of it
    shape: Shape | None  # by `sizes`


def members(sweep: Sweep) -> list[SweepMember]:
    """In the order of the sweep recipe."""
    if sweep.models is not None:
        return [SweepMember(name, section, None) for name, section in sweep.models.items()]
    assert sweep.sizes is not None  # sweep.py refuses a sweep without both
    known = shapes(sweep.sizes)
    alike = [sum((one.width, one.depth) == (shape.width, shape.depth) for one in known) for shape in known]
    return [SweepMember(f"w{shape.width}-l{shape.depth}" + (f"-m{shape.mlp}" if count > 1 else ""), {"size": None} | asdict(shape), shape)
            for shape, count in zip(known, alike, strict=True)]


def shapes(sizes: Sizes) -> list[Shape]:
    """In the order of the rule's list.  Raises RecipeError for an unknown name."""
    if sizes.rule == "aspect":
        return [aspect(width, sizes) for width in sizes.widths or ()]
    if sizes.rule == "sovit":
        return [sovit(scale, sizes.head_width) for scale in sizes.scales or ()]
    return [_listed(size) for size in sizes.sizes or ()]


def aspect(width: int, sizes: Sizes) -> Shape:
    """Depth in proportion to the width."""
    return Shape(width, max(1, round(width / sizes.width_per_layer)), width // sizes.head_width, round(width * sizes.mlp_ratio))


def sovit(scale: float, head_width: int) -> Shape:
    """SoViT-400m's shape taken to `scale` times its compute: each dimension by its own power."""
    centre = SIZES["so400m"]
    heads = max(1, round(centre.width * scale ** SOVIT["width"] / head_width))
    return Shape(heads * head_width, max(1, round(centre.depth * scale ** SOVIT["depth"])), heads,
                 max(8, 8 * round(centre.mlp * scale ** SOVIT["mlp"] / 8)))


def family(sizes: Sizes) -> list[Shape]:
    """All shapes of the rule, also those that a sweep does not list: among them is the one that a law recommends.  Of a list its own."""
    widths = [sizes.head_width * heads for heads in range(1, 400)]
    if sizes.rule == "aspect":
        return [aspect(width, sizes) for width in widths]
    if sizes.rule == "sovit":
        scales = [(width / SIZES["so400m"].width) ** (1 / SOVIT["width"]) for width in widths]
        return list(dict.fromkeys(sovit(scale, sizes.head_width) for scale in scales))
    return list(dict.fromkeys(shapes(sizes)))


def _listed(size: str | Explicit) -> Shape:
    if isinstance(size, Explicit):
        return Shape(size.width, size.depth, size.heads, size.mlp)
    if size not in SIZES:
        raise RecipeError(f"sizes.sizes: {size!r} is no size; they are {', '.join(SIZES)}, or give width, depth, heads, mlp")
    return SIZES[size]
