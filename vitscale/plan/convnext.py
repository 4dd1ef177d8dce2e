"""A ConvNeXt taken apart.  Parameters are those of the built model, FLOPs those that torch counts, exactly."""

from dataclasses import dataclass
from itertools import pairwise

from vitscale.errors import RecipeError
from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.recipe.schema import ConvNext

KERNEL = 7          # of the depthwise convolutions
STEM = 4            # pixels on a side that the stem makes one
MLP_RATIO = 4


@dataclass(frozen=True)
class Stage:
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
    return found


def stages_of(model: ConvNext) -> tuple[Stage, ...]:
    """The stages from high resolution to low.  Raises RecipeError when the section contradicts itself."""
    found = problems(model)
    if found:
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))
    named = SIZES[model.size] if model.size else ((), ())
    widths, depths = model.widths or named[0], model.depths or named[1]
    return tuple(Stage(width, depth, model.image // (STEM * 2**number))
                 for number, (width, depth) in enumerate(zip(widths, depths, strict=True)))


def layer_scale_of(model: ConvNext) -> float | None:
    """First value of LayerScale's gammas: version 1's is 1e-6 (Liu et al. 2022, appendix A); version 2 has none."""
    return None if model.version == 2 else 1e-6 if model.layer_scale is None else model.layer_scale


def anatomy(model: ConvNext) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    stages = stages_of(model)
    pairs = list(pairwise(stages))
    first, last = stages[0], stages[-1]
    params = {
        "stem": model.channels * STEM**2 * first.width + first.width + 2 * first.width,
        "downsampling": sum(2 * a.width + 4 * a.width * b.width + b.width for a, b in pairs),
        "convolution": sum(stage.depth * (KERNEL**2 * stage.width + stage.width) for stage in stages),
        "mlp": sum(stage.depth * _mlp_params(stage.width) for stage in stages),
        "norms": sum(stage.depth * 2 * stage.width for stage in stages) + 2 * last.width,
        "layer_scale": sum(stage.depth * stage.width for stage in stages) if model.version == 1 else 0,
        "response_norm": sum(stage.depth * 2 * MLP_RATIO * stage.width for stage in stages) if model.version == 2 else 0,
        "head": last.width * model.classes + model.classes,
    }
    flops = {
        "stem": 2 * first.grid**2 * model.channels * STEM**2 * first.width,
        "downsampling": sum(2 * b.grid**2 * 4 * a.width * b.width for a, b in pairs),
        "convolution": sum(stage.depth * 2 * stage.grid**2 * KERNEL**2 * stage.width for stage in stages),
        "mlp": sum(stage.depth * 2 * stage.grid**2 * 2 * MLP_RATIO * stage.width**2 for stage in stages),
        "head": 2 * last.width * model.classes,
    }
    numbers = [stage.depth * stage.grid**2 * stage.width for stage in stages]
    scaled = 2 if model.version == 1 else 3 * MLP_RATIO         # LayerScale; response norm: reads twice, writes
    moved = {
        "stem": model.channels * model.image**2 + first.grid**2 * first.width,
        "downsampling": sum(a.grid**2 * a.width + b.grid**2 * b.width for a, b in pairs),
        "convolution": sum(2 * n for n in numbers),
        "mlp": sum((2 + 2 * MLP_RATIO) * n for n in numbers),
        # norm, GELU, addition, and the turns between channels first and last
        "elementwise": sum((2 + 2 * MLP_RATIO + 3 + 4 + scaled) * n for n in numbers) + 2 * first.grid**2 * first.width,
        "head": last.width + model.classes,
    }
    return Anatomy(params=params, flops=flops, moved=moved,
                   units=tuple(_unit(model, stage) for stage in stages for _ in range(stage.depth)),
                   normed=last.width, outputs=model.classes)


def _mlp_params(width: int) -> int:
    hidden = MLP_RATIO * width
    return (width * hidden + hidden) + (hidden * width + width)


def _unit(model: ConvNext, stage: Stage) -> Unit:
    """Numbers per place: input of the convolution D, of the norm D, of the MLP D, of GELU 4 D, of the second layer 4 D; version 1 keeps
    LayerScale's input D, version 2 the input of the response norm 4 D."""
    places, width, hidden = stage.grid**2, stage.width, MLP_RATIO * stage.width
    one = (KERNEL**2 + 1) * width + _mlp_params(width) + 2 * width + (width if model.version == 1 else 2 * hidden)
    return Unit(
        params=one,
        stream=places * width,
        kept=places * (3 * width + 2 * hidden + (width if model.version == 1 else hidden)),
        normed=places * width,
        kept_fp32=0,
        outputs=places * (2 * width + hidden),              # input; fc2; fc1; a convolution is recomputed
        spare=places * width if model.version == 2 else 0,
        attention=0,
        attention_outputs=0,
        mask_bytes=0,
        in_flight=places * ((1 if model.version == 1 else 2) * hidden + width),
    )
