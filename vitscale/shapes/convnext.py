"""The named sizes of a ConvNeXt, and which stages a recipe's model section means."""

from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.recipe.schema import ConvNext

STEM = 4            # pixels on a side that the stem makes one
MLP_RATIO = 4


@dataclass(frozen=True)
class ConvNextStageShape:
    """Blocks of one resolution."""

    width: int
    depth: int
    grid: int       # places on a side


_LARGE = (3, 3, 27, 3)
# widths, depths.  Version 1: Liu et al. 2022, section 3; version 2 has besides the small ones and huge: Woo et al. 2023, appendix A.
SIZES = {
    "atto": ((40, 80, 160, 320), (2, 2, 6, 2)),
    "femto": ((48, 96, 192, 384), (2, 2, 6, 2)),
    "pico": ((64, 128, 256, 512), (2, 2, 6, 2)),
    "nano": ((80, 160, 320, 640), (2, 2, 8, 2)),
    "tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "small": ((96, 192, 384, 768), _LARGE),
    "base": ((128, 256, 512, 1024), _LARGE),
    "large": ((192, 384, 768, 1536), _LARGE),
    "xlarge": ((256, 512, 1024, 2048), _LARGE),
    "huge": ((352, 704, 1408, 2816), _LARGE),
}


def problems(model: ConvNext) -> list[tuple[str, str]]:
    """(dotted key, sentence) for everything that keeps the section from being built."""
    named = SIZES[model.size] if model.size else (None, None)
    widths, depths = model.widths or named[0], model.depths or named[1]
    if widths is None or depths is None:
        return [("model.size", f"give a size ({', '.join(SIZES)}), or both of model.widths and model.depths")]
    found = []
    if len(widths) != len(depths):
        found.append(("model.depths", f"has {len(depths)} stages, model.widths {len(widths)}"))
    step = STEM * 2 ** (len(depths) - 1)
    if model.image % step:
        low = model.image // step * step
        found.append(("model.image", f"{model.image} is not divisible by {step}, which the stem and {len(depths)} stages ask for; the "
                      f"nearest sizes are {f'{low} or ' if low else ''}{low + step}"))
    if model.dropout:
        found.append(("model.dropout", "is not used by ConvNeXt; its regularisation is model.drop_path"))
    if model.version == 2 and model.layer_scale is not None:
        found.append(("model.layer_scale", "belongs to version 1; version 2 has global response normalisation in its place"))
    if model.kernel % 2 == 0:
        found.append(("model.kernel", f"wants an odd number, so that a place stands in the middle, got {model.kernel}"))
    return found


def stages_of(model: ConvNext) -> tuple[ConvNextStageShape, ...]:
    """The stages from high resolution to low.  Raises RecipeError when the section contradicts itself."""
    found = problems(model)
    if found:
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))
    named = SIZES[model.size] if model.size else ((), ())
    widths, depths = model.widths or named[0], model.depths or named[1]
    return tuple(ConvNextStageShape(width, depth, model.image // (STEM * 2**number))
                 for number, (width, depth) in enumerate(zip(widths, depths, strict=True)))


def has_grn(model: ConvNext) -> bool:
    return model.version == 2 if model.use_grn is None else model.use_grn


def stem_width(model: ConvNext, width: int) -> int:
    """Channels after the first of two convolutions: of overlap_tiered half of them, in multiples of 8 that are no tenth less."""
    if model.stem != "overlap_tiered":
        return width
    near = max(8, (width // 2 + 4) // 8 * 8)
    return near if near >= 0.9 * (width // 2) else near + 8


def layer_scale_of(model: ConvNext) -> float | None:
    """First value of LayerScale's gammas: version 1's is 1e-6 (Liu et al. 2022, appendix A); version 2 has none."""
    return None if model.version == 2 else 1e-6 if model.layer_scale is None else model.layer_scale
