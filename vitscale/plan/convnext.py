"""A ConvNeXt taken apart.  Parameters are those of the built model, FLOPs those that torch counts, exactly."""

from itertools import pairwise

from vitscale.plan.anatomy import KEPT_OF_MLP, Anatomy, Unit
from vitscale.recipe.schema import ConvNext
from vitscale.shapes.convnext import MLP_RATIO, STEM, ConvNextStageShape, has_grn, stages_of, stem_width


def anatomy(model: ConvNext) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    stages = stages_of(model)
    pairs = list(pairwise(stages))
    first, last = stages[0], stages[-1]
    hidden = model.head_hidden or last.width
    params = {
        "stem": _stem(model, first)[0] + 2 * first.width,
        "downsampling": sum(2 * a.width + 4 * a.width * b.width + b.width for a, b in pairs),
        "convolution": sum(stage.depth * (model.kernel**2 * stage.width + stage.width) for stage in stages),
        "mlp": sum(stage.depth * _mlp_params(stage.width) for stage in stages),
        "norms": sum(stage.depth * 2 * stage.width for stage in stages) + 2 * last.width,
        "layer_scale": sum(stage.depth * stage.width for stage in stages) if model.version == 1 else 0,
        "response_norm": sum(stage.depth * 2 * MLP_RATIO * stage.width for stage in stages) if has_grn(model) else 0,
        "head": hidden * model.classes + model.classes + (last.width * hidden + hidden if model.head_hidden else 0),
    }
    flops = {
        "stem": _stem(model, first)[1],
        "downsampling": sum(2 * b.grid**2 * 4 * a.width * b.width for a, b in pairs),
        "convolution": sum(stage.depth * 2 * stage.grid**2 * model.kernel**2 * stage.width for stage in stages),
        "mlp": sum(stage.depth * 2 * stage.grid**2 * 2 * MLP_RATIO * stage.width**2 for stage in stages),
        "head": 2 * hidden * model.classes + (2 * last.width * hidden if model.head_hidden else 0),
    }
    numbers = [stage.depth * stage.grid**2 * stage.width for stage in stages]
    scaled = (2 if model.version == 1 else 0) + (3 * MLP_RATIO if has_grn(model) else 0)     # LayerScale; response norm
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
                   normed=last.width, outputs=model.classes, formulas=(("convolution", "98 N D"), ("mlp", "16 N D^2")),
                   growth="there is no attention: everything grows with the number of places N",
                   stem=0 if model.stem == "patch" else stem_width(model, first.width) * (2 * first.grid) ** 2)


def _stem(model: ConvNext, first: ConvNextStageShape) -> tuple[int, int]:
    """Parameters and FLOPs of its convolutions."""
    between, grid = stem_width(model, first.width), first.grid
    if model.stem == "patch":
        kernels = [(model.channels * STEM**2, first.width, grid)]
    else:
        kernels = [(model.channels * 9, between, 2 * grid), (between * 9, first.width, grid)]
    return (sum((numbers + 1) * outgoing for numbers, outgoing, _ in kernels),
            sum(2 * side**2 * numbers * outgoing for numbers, outgoing, side in kernels))


def _mlp_params(width: int) -> int:
    hidden = MLP_RATIO * width
    return (width * hidden + hidden) + (hidden * width + width)


def _unit(model: ConvNext, stage: ConvNextStageShape) -> Unit:
    """Numbers per place: input of the convolution D, of the norm D, of the MLP D, of GELU 4 D, of the second layer 4 D; version 1 keeps
    LayerScale's input D, version 2 the input of the response norm 4 D."""
    places, width, hidden = stage.grid**2, stage.width, MLP_RATIO * stage.width
    scaled, responds = model.version == 1, has_grn(model)
    one = (model.kernel**2 + 1) * width + _mlp_params(width) + 2 * width + (width if scaled else 0) + (2 * hidden if responds else 0)
    return Unit(
        params=one,
        stream=places * width,
        kept=places * (3 * width + KEPT_OF_MLP.get(model.hidden_act, 2) * hidden + (width if scaled else 0) + (hidden if responds else 0)),
        normed=places * width,
        kept_fp32=0,
        outputs=places * (2 * width + hidden),              # input; fc2; fc1; a convolution is recomputed
        spare=0 if scaled else places * width,
        attention=0,
        attention_outputs=0,
        mask_bytes=0,
        in_flight=places * ((2 if responds else 1) * hidden + width),
    )
