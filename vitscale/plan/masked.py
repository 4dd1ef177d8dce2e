"""What masked image modelling trains, taken apart: MAE's encoder of visible patches and its decoder; an encoder and one layer."""

from dataclasses import replace

from vitscale.plan import vit
from vitscale.plan.anatomy import Anatomy
from vitscale.recipe.check_objective import num_visible
from vitscale.recipe.objectives import Inpainting, Mae
from vitscale.recipe.schema import Vit
from vitscale.shapes.masked import decoder_section, encoder_section, num_pixels
from vitscale.shapes.vit import grid, num_placed, shape_of


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
        params=parts.params | {"decoder": blocks + about}, flops=parts.flops | vit.block_flops(encoder, wide, seen)
        | {"decoder": flops + sum(vit.block_flops(decoder, narrow, patches + before).values())},
        moved=parts.moved | inner | {"decoder": sum(decoded.moved.values()) - decoded.moved["patch_embed"] + patches * num_pixels(model)},
        units=(vit.unit_of(encoder, wide, seen),) * wide.depth + (vit.unit_of(decoder, narrow, patches + before),) * narrow.depth,
        normed=seen * wide.width + (patches + before) * narrow.width, outputs=patches * num_pixels(model),
        pooled=seen * wide.width + patches * narrow.width, one_row=parts.one_row + narrow.width, mask_bytes=parts.mask_bytes)


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
