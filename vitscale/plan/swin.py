"""A Swin Transformer taken apart.  Parameters are those of the built model, FLOPs those that torch counts, exactly."""

from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.recipe.schema import Swin

HIDDEN = 512        # of version 2's network from log-spaced offsets to biases (Liu et al. 2022, section 3.3)
MLP_RATIO = 4


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution."""

    width: int
    depth: int
    heads: int
    grid: int       # tokens on a side
    window: int     # tokens on a side of a window: never more than the grid
    shift: int      # of every second block's windows; 0 where one window is the whole grid


SIZES = {       # width C, depths, heads: Liu et al. 2021, section 3.3; the same of version 2 (Liu et al. 2022, section 4.1)
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def _resolve(model: Swin) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    named = SIZES[model.size] if model.size else (None, None, None)
    width, depths, heads = model.width or named[0], model.depths or named[1], model.heads or named[2]
    return None if width is None or depths is None or heads is None else (width, depths, heads)


def problems(model: Swin) -> list[tuple[str, str]]:
    """(dotted key, sentence) for everything that keeps the section from being built."""
    numbers = _resolve(model)
    if numbers is None:
        return [("model.size", f"give a size ({', '.join(SIZES)}), or all of model.width, model.depths, model.heads")]
    width, depths, heads = numbers
    found = []
    if len(depths) != len(heads):
        found.append(("model.heads", f"has {len(heads)} stages, model.depths {len(depths)}"))
    for stage, number in enumerate(heads):
        if width * 2**stage % number:
            found.append(("model.heads", f"{number} heads do not divide the width {width * 2**stage} of stage {stage}"))
    step = model.patch * 2 ** (len(depths) - 1)
    if model.image % step:
        low = model.image // step * step
        found.append(("model.image", f"{model.image} is not divisible by {step}, which patches and {len(depths)} stages ask for; the "
                      f"nearest sizes are {f'{low} or ' if low else ''}{low + step}"))
        return found
    for stage in range(len(depths)):
        grid = model.image // (model.patch * 2**stage)
        if grid > model.window and grid % model.window:
            found.append(("model.window", f"{model.window} does not divide the {grid} tokens on a side of stage {stage}; "
                          f"try {', '.join(str(m) for m in range(4, 33) if _fits(model, m, len(depths))) or 'another image'}"))
            break
    if model.dropout:
        found.append(("model.dropout", "is not used by Swin; its regularisation is model.drop_path"))
    return found


def _fits(model: Swin, window: int, stages: int) -> bool:
    grids = [model.image // (model.patch * 2**stage) for stage in range(stages)]
    return all(grid <= window or grid % window == 0 for grid in grids)


def stages_of(model: Swin) -> tuple[Stage, ...]:
    """The stages from high resolution to low.  Raises RecipeError when the section contradicts itself."""
    found = problems(model)
    if found:
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))
    numbers = _resolve(model)
    assert numbers is not None      # problems() says so
    width, depths, heads = numbers
    stages = []
    for number, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        grid = model.image // (model.patch * 2**number)
        window = min(model.window, grid)
        stages.append(Stage(width * 2**number, depth, count, grid, window, window // 2 if window < grid else 0))
    return tuple(stages)


def anatomy(model: Swin) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    stages = stages_of(model)
    last = stages[-1]
    return Anatomy(
        params=_params(model, stages), flops=_flops(model, stages), moved=_moved(model, stages),
        units=tuple(_unit(model, stage) for stage in stages for _ in range(stage.depth)), normed=last.grid**2 * last.width,
        outputs=model.classes,
    )


def _attention_params(model: Swin, stage: Stage) -> int:
    width = stage.width
    linear = 3 * width * width + width * width + width              # queries, keys, values, projection with its bias
    if model.version == 1:
        return linear + 3 * width + (2 * stage.window - 1) ** 2 * stage.heads
    # version 2: no bias of the keys; a temperature for each head; the network of offsets
    return linear + 2 * width + stage.heads + (2 * HIDDEN + HIDDEN) + HIDDEN * stage.heads


def _mlp_params(width: int) -> int:
    hidden = MLP_RATIO * width
    return (width * hidden + hidden) + (hidden * width + width)


def _params(model: Swin, stages: tuple[Stage, ...]) -> dict[str, int]:
    first, last = stages[0].width, stages[-1].width
    merged = [(4 * stage.width * 2 * stage.width) + 2 * (4 if model.version == 1 else 2) * stage.width for stage in stages[:-1]]
    return {
        "patch_embed": model.channels * model.patch**2 * first + first + 2 * first,
        "attention": sum(stage.depth * _attention_params(model, stage) for stage in stages),
        "mlp": sum(stage.depth * _mlp_params(stage.width) for stage in stages),
        "norms": sum(stage.depth * 4 * stage.width for stage in stages) + 2 * last,
        "merging": sum(merged),
        "head": last * model.classes + model.classes,
    }


def _flops(model: Swin, stages: tuple[Stage, ...]) -> dict[str, int]:
    """A token attends to the M x M tokens of its window: N M^2 D, not N^2 D (Liu et al. 2021, equation 2)."""
    tokens = [stage.grid**2 for stage in stages]
    linear = sum(n * stage.depth * 4 * 2 * stage.width**2 for n, stage in zip(tokens, stages, strict=True))
    product = sum(n * stage.depth * 2 * 2 * stage.window**2 * stage.width for n, stage in zip(tokens, stages, strict=True))
    mlp = sum(n * stage.depth * 2 * 2 * MLP_RATIO * stage.width**2 for n, stage in zip(tokens, stages, strict=True))
    merging = sum((n // 4) * 2 * 4 * stage.width * 2 * stage.width for n, stage in zip(tokens, stages[:-1], strict=False))
    return {
        "patch_embed": 2 * tokens[0] * model.channels * model.patch**2 * stages[0].width,
        "attention_linear": linear, "attention_product": product, "mlp": mlp, "merging": merging,
        # version 2's biases are made once for a batch, however large; here it is taken for one image
        "bias_network": sum(stage.depth * (2 * stage.window - 1) ** 2 * 2 * HIDDEN * (2 + stage.heads) for stage in stages)
        if model.version == 2 else 0,
        "head": 2 * stages[-1].width * model.classes,
    }


def _moved(model: Swin, stages: tuple[Stage, ...]) -> dict[str, int]:
    """As of a ViT's block (vitscale/plan/vit.py); shifting and cutting into windows read and write the stream twice more."""
    first, hidden = stages[0], MLP_RATIO
    numbers = [stage.depth * stage.grid**2 * stage.width for stage in stages]
    return {
        "patch_embed": model.channels * model.image**2 + first.grid**2 * first.width,
        "attention_linear": sum(6 * n for n in numbers), "attention_product": sum(4 * n for n in numbers),
        "mlp": sum((2 + 2 * hidden) * n for n in numbers),
        "merging": sum((stage.grid**2) * (stage.width + stage.width // 2) for stage in stages[:-1]),
        "elementwise": sum((4 + 6 + 4 + 2 * hidden) * n for n in numbers) + 6 * first.grid**2 * first.width,
        "head": stages[-1].width + model.classes,
    }


def _unit(model: Swin, stage: Stage) -> Unit:
    """As a block of a ViT (vitscale/plan/vit.py); version 2 keeps besides the normed queries and keys, and what it norms is not what
    the next layer gets, so as many numbers of D."""
    tokens, width = stage.grid**2, stage.width
    hidden = MLP_RATIO * width
    return Unit(
        params=_attention_params(model, stage) + _mlp_params(width) + 4 * width,
        stream=tokens * width,
        kept=tokens * ((8 if model.version == 1 else 10) * width + 2 * hidden),
        normed=tokens * 2 * width,
        kept_fp32=tokens * stage.heads,
        outputs=tokens * (7 * width + hidden),
        spare=tokens * 2 * width if model.version == 1 else 0,
        attention=tokens * 4 * width,
        attention_outputs=tokens * 4 * width,
        mask_bytes=0,
        in_flight=tokens * (hidden + width),
    )
