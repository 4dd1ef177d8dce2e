"""The named sizes of a Swin Transformer, and which stages a recipe's model section means."""

from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.recipe.schema import Swin

HIDDEN = 512        # of version 2's network from log-spaced offsets to biases (Liu et al. 2022, section 3.3)
MLP_RATIO = 4


@dataclass(frozen=True)
class SwinStageShape:
    """Blocks of one resolution."""

    width: int
    depth: int
    heads: int
    grid: int       # tokens on a side
    window: int     # tokens on a side of a window: never more than the grid
    shift: int      # of every second block's windows; 0 where one window is the whole grid
    pretrained: int = 0     # version 2: windows that its biases were learned of; 0: these


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
    if model.pretrained_windows is not None and (model.version == 1 or len(model.pretrained_windows) != len(depths)):
        found.append(("model.pretrained_windows", f"has a number for each of the {len(depths)} stages of version 2"))
    for stage, number in enumerate(heads):
        if width * 2**stage % number:
            found.append(("model.heads", f"{number} heads do not divide the width {width * 2**stage} of stage {stage}"))
    step = model.patch * 2 ** (len(depths) - 1)
    if model.image % step:
        low = model.image // step * step
        found.append(("model.image", f"{model.image} is not divisible by {step}, which patches and {len(depths)} stages ask for; the "
                      f"nearest sizes are {f'{low} or ' if low else ''}{low + step}"))
        return found
    if model.windows is not None and len(model.windows) != len(depths):
        return [*found, ("model.windows", f"has {len(model.windows)} numbers, model.depths {len(depths)}")]
    for stage in range(len(depths)):
        grid, window = model.image // (model.patch * 2**stage), window_of(model, stage)
        if grid > window and grid % window:
            key = "model.windows" if model.windows else "model.window"
            found.append((key, f"{window} does not divide the {grid} tokens on a side of stage {stage}; "
                          f"try {', '.join(str(m) for m in range(4, 33) if _fits(model, m, len(depths))) or 'another image'}"))
            break
    if model.dropout:
        found.append(("model.dropout", "is not used by Swin; its regularisation is model.drop_path"))
    return found


def window_of(model: Swin, stage: int) -> int:
    """Tokens on a side of a stage's windows, where its grid is larger."""
    return model.windows[stage] if model.windows else model.window


def _fits(model: Swin, window: int, stages: int) -> bool:
    grids = [model.image // (model.patch * 2**stage) for stage in range(stages)]
    return all(grid <= window or grid % window == 0 for grid in grids)


def stages_of(model: Swin) -> tuple[SwinStageShape, ...]:
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
        window = min(window_of(model, number), grid)
        pretrained = model.pretrained_windows[number] if model.pretrained_windows else 0
        stages.append(SwinStageShape(width * 2**number, depth, count, grid, window, window // 2 if window < grid else 0, pretrained))
    return tuple(stages)
