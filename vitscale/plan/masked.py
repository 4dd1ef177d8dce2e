"""What masked image modelling trains, taken apart: MAE's encoder of visible patches and its decoder; an encoder and one layer."""

from dataclasses import replace

from vitscale.plan import vit
from vitscale.plan.anatomy import Anatomy
from vitscale.plan.sizes import grid, num_placed, shape_of
from vitscale.recipe.check_objective import num_visible
from vitscale.recipe.schema import Inpainting, Mae, Vit


def encoder_section(model: Vit) -> Vit:
    """The model without what comes after its last norm; a class token stays where the pooling is `token`."""
    pool = "token" if model.pool == "token" else "mean"
    return model.model_copy(update={"classes": 0, "pool": pool, "pool_norm": False, "head_hidden": None, "head_dropout": 0.0})


def decoder_section(model: Vit, objective: Mae) -> Vit:
    """The decoder as if it were a model of its own: plain blocks, fixed positions."""
    width, depth, heads = objective.decoder.width, objective.decoder.depth, objective.decoder.heads
    return Vit(width=width, depth=depth, heads=heads, mlp=4 * width, patch=model.patch, image=model.image, channels=model.channels,
               classes=0, pool="mean", position="sincos")


def num_pixels(model: Vit) -> int:
    """Numbers in a patch."""
    return model.patch**2 * model.channels


def mae_anatomy(model: Vit, objective: Mae) -> Anatomy:
    """Raises RecipeError when a section contradicts itself."""
    encoder, decoder = encoder_section(model), decoder_section(model, objective)
    wide, narrow = shape_of(encoder), shape_of(decoder)
    patches, before = grid(model) ** 2, num_placed(encoder) + encoder.registers
    seen = num_visible(patches, objective.mask_ratio) + before
    parts, decoded = vit.anatomy(encoder), vit.anatomy(decoder)
    blocks = sum(decoded.params[name] for name in ("attention", "mlp", "norms"))        # the last norm among them
    about = (wide.width + 1) * narrow.width + narrow.width + (narrow.width + 1) * num_pixels(model)     # embedding, mask token, pixels
    inner = vit.block_moved(encoder, wide, seen)
    inner["elementwise"] += 6 * seen * wide.width
    flops = seen * 2 * wide.width * narrow.width + patches * 2 * narrow.width * num_pixels(model)
    return Anatomy(
        params=parts.params | {"decoder": blocks + about},
        flops=parts.flops | vit.block_flops(encoder, wide, seen)
        | {"decoder": flops + sum(vit.block_flops(decoder, narrow, patches + before).values())},
        moved=parts.moved | inner | {"decoder": sum(decoded.moved.values()) - decoded.moved["patch_embed"] + patches * num_pixels(model)},
        units=(vit.unit_of(encoder, wide, seen),) * wide.depth + (vit.unit_of(decoder, narrow, patches + before),) * narrow.depth,
        normed=seen * wide.width + (patches + before) * narrow.width,
        outputs=patches * num_pixels(model),
        pooled=seen * wide.width + patches * narrow.width,
        one_row=parts.one_row + narrow.width,
        mask_bytes=parts.mask_bytes,
    )


def inpainting_anatomy(model: Vit, objective: Inpainting) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    encoder = encoder_section(model)
    parts, width, patches = vit.anatomy(encoder), shape_of(encoder).width, grid(model) ** 2
    return replace(
        parts,
        params=parts.params | {"decoder": width + (width + 1) * num_pixels(model)},     # mask token, pixels
        flops=parts.flops | {"decoder": patches * 2 * width * num_pixels(model)},
        moved=parts.moved | {"decoder": patches * (width + num_pixels(model))},
        outputs=patches * num_pixels(model), pooled=patches * width,
    )
