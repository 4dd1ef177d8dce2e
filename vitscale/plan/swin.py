"""A Swin Transformer taken apart.  Parameters are those of the built model, FLOPs those that torch counts, exactly."""

from vitscale.plan.anatomy import KEPT_OF_MLP, Anatomy, Unit
from vitscale.recipe.schema import Swin
from vitscale.shapes.swin import HIDDEN, MLP_RATIO, SwinStageShape, stages_of


def anatomy(model: Swin) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    stages = stages_of(model)
    last = stages[-1]
    return Anatomy(
        params=_params(model, stages), flops=_flops(model, stages), moved=_moved(model, stages),
        units=tuple(_unit(model, stage) for stage in stages for _ in range(stage.depth)), normed=last.grid**2 * last.width,
        formulas=(("attention_product", "4 N M^2 D in windows of M x M tokens"), ("attention_linear", "8 N D^2"), ("mlp", "16 N D^2")),
        growth="attention inside windows grows with N, not with N^2: it does not overtake the MLP as images grow",
        outputs=model.classes, one_row=stages[0].grid**2 * stages[0].width if model.position == "learned" else 0,
    )


def _attention_params(model: Swin, stage: SwinStageShape) -> int:
    width = stage.width
    linear = 3 * width * width + width * width + width              # queries, keys, values, projection with its bias
    if model.version == 1:
        return linear + 3 * width + (2 * stage.window - 1) ** 2 * stage.heads
    # version 2: no bias of the keys; a temperature for each head; the network of offsets
    return linear + 2 * width + stage.heads + (2 * HIDDEN + HIDDEN) + HIDDEN * stage.heads


def _mlp_params(width: int) -> int:
    hidden = MLP_RATIO * width
    return (width * hidden + hidden) + (hidden * width + width)


def _params(model: Swin, stages: tuple[SwinStageShape, ...]) -> dict[str, int]:
    first, last = stages[0].width, stages[-1].width
    merged = [(4 * stage.width * 2 * stage.width) + 2 * (4 if model.version == 1 else 2) * stage.width for stage in stages[:-1]]
    return {
        "patch_embed": model.channels * model.patch**2 * first + first + 2 * first,
        "position": stages[0].grid**2 * first if model.position == "learned" else 0,
        "attention": sum(stage.depth * _attention_params(model, stage) for stage in stages),
        "mlp": sum(stage.depth * _mlp_params(stage.width) for stage in stages),
        "norms": sum(stage.depth * 4 * stage.width for stage in stages) + 2 * last,
        "merging": sum(merged),
        "head": last * model.classes + model.classes,
    }


def _flops(model: Swin, stages: tuple[SwinStageShape, ...]) -> dict[str, int]:
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


def _moved(model: Swin, stages: tuple[SwinStageShape, ...]) -> dict[str, int]:
    """As of a ViT's block (vitscale/plan/vit.py); shifting and cutting into windows read and write the stream twice more."""
    first, hidden = stages[0], MLP_RATIO
    numbers = [stage.depth * stage.grid**2 * stage.width for stage in stages]
    return {
        "patch_embed": model.channels * model.image**2 + first.grid**2 * first.width,
        "attention_linear": sum(6 * n for n in numbers), "attention_product": sum(4 * n for n in numbers),
        "mlp": sum((2 + 2 * hidden) * n for n in numbers),
        "merging": sum((stage.grid**2) * (stage.width + stage.width // 2) for stage in stages[:-1]),
        "elementwise": sum((4 + 6 + 4 + 2 * hidden) * n for n in numbers)
        + (6 if model.position == "none" else 9) * first.grid**2 * first.width,
        "head": stages[-1].width + model.classes,
    }


def _unit(model: Swin, stage: SwinStageShape) -> Unit:
    """As a block of a ViT (vitscale/plan/vit.py); version 2 keeps besides the normed queries and keys, and what it norms is not what
    the next layer gets, so as many numbers of D."""
    tokens, width = stage.grid**2, stage.width
    hidden = MLP_RATIO * width
    return Unit(
        params=_attention_params(model, stage) + _mlp_params(width) + 4 * width,
        stream=tokens * width,
        kept=tokens * ((8 if model.version == 1 else 10) * width + KEPT_OF_MLP.get(model.hidden_act, 2) * hidden),
        normed=tokens * 2 * width,
        kept_fp32=tokens * stage.heads,
        outputs=tokens * (7 * width + hidden),
        spare=tokens * 2 * width if model.version == 1 else 0,
        attention=tokens * 4 * width,
        attention_outputs=tokens * 4 * width,
        mask_bytes=0,
        in_flight=tokens * (hidden + width),
    )
