"""Weights of one model made to fit another one like it: other image and patch sizes, channels, classes, another pooling."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.counts import plural
from vitscale.models.names import CLASSIFIERS, HEAD
from vitscale.models.patch_embed import resample_kernel
from vitscale.models.position import resample, resample_offsets, sincos
from vitscale.models.surgery import operated
from vitscale.models.vit import VisionTransformer
from vitscale.recipe.schema import Model, Swin, Vit
from vitscale.shapes import swin
from vitscale.shapes.vit import grid, num_positions, shape_of

TABLE = "relative_position_bias_table"


def adapted(weights: Mapping[str, Tensor], model: nn.Module, before: Model | None) -> tuple[dict[str, Tensor], list[str]]:
    """(weights for `model`, what was done to them in words).  `before`: the section that they were trained with, if it is known.

    Tables of positions are interpolated (Dosovitskiy et al. 2021, section 3.2), patch kernels resampled (Beyer et al. 2023, FlexiViT);
    classifiers of other classes are left out, and so begin anew.  What fits no way stays as it is, for the caller to refuse.
    """
    found, notes = dict(weights), []        # type: ignore[var-annotated]
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    if isinstance(model, VisionTransformer):
        _positions(found, model, shapes, before, notes)
        _pooling(found, shapes, notes)
    operated(found, model, shapes, notes)
    for name, shape in shapes.items():
        if name in found and tuple(found[name].shape) != shape:
            if name.endswith(TABLE):
                _offsets(found, name, shape, notes)
            elif name == "patch_embed.proj.weight":
                _kernel(found, name, shape, notes)
    _classifiers(found, shapes, notes)
    return found, notes


def _positions(found: dict[str, Tensor], model: VisionTransformer, shapes: Mapping[str, tuple[int, ...]], before: Model | None,
               notes: list[str]) -> None:
    if "pos_embed" not in shapes:
        _fixed(found, model, notes)
        return
    rows, new = shapes["pos_embed"][1], model.grid
    placed = rows - new[0] * new[1]
    if "pos_embed" not in found:
        if isinstance(before, Vit) and before.position == "sincos":     # they were fixed, and may learn from now on
            found["pos_embed"] = torch.cat([torch.zeros(1, placed, model.width), sincos(new, model.width)], dim=1)
            notes.append("positions begin at the sines and cosines that they were")
        return
    table = found["pos_embed"]
    if isinstance(before, Vit):
        was_placed = num_positions(before) - grid(before) ** 2
    else:
        was_placed = next((count for count in (placed, 0, 1, 2) if _is_square(table.shape[1] - count)), placed)
    side = math.isqrt(max(table.shape[1] - was_placed, 0))
    if side * side != table.shape[1] - was_placed or table.shape[2] != model.width:
        return
    first, patches = table[:, :was_placed], table[:, was_placed:]
    if (side, side) != new:
        patches = resample(patches, (side, side), new, model.interpolation)
        notes.append(f"positions interpolated from {side} x {side} to {new[0]} x {new[1]} patches")
    if was_placed == 2 and placed == 1 and "dist_token" in found:
        first = first[:, :1]
    elif was_placed == 1 and placed == 2 and "dist_token" in shapes:
        first = first.repeat(1, 2, 1)
    elif placed != was_placed and placed == 0 and "cls_token" in found:
        found["cls_token"] = found["cls_token"] + first[:, :found["cls_token"].shape[1]]        # it takes its place along
        first = first[:, :0]
    elif was_placed == 0:
        first = torch.zeros(1, placed, model.width)
    found["pos_embed"] = torch.cat([first, patches], dim=1)


def _fixed(found: dict[str, Tensor], model: VisionTransformer, notes: list[str]) -> None:
    """A table that holds the sines and cosines which the model has fixed, as other libraries write MAE's down, is none to be learned."""
    table, width = found.get("pos_embed"), model.width
    if model.position != "sincos" or table is None or table.shape[2] != width:
        return
    side = math.isqrt(table.shape[1])
    rows = table.shape[1] - side**2
    if torch.allclose(table[:, rows:].float(), sincos((side, side), width, "cpu"), atol=1e-4) and not table[:, :rows].any():
        del found["pos_embed"]
        notes.append("its positions are the sines and cosines that are fixed here")


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _pooling(found: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> None:
    """A class token that is not pooled any more is a register, if there is room for one."""
    if "cls_token" in found and "cls_token" not in shapes:
        token = found.pop("cls_token")
        if "reg_token" not in found and shapes.get("reg_token") == tuple(token.shape):
            found["reg_token"] = token
            notes.append("the class token goes on as a register")
        else:
            notes.append("the class token is left behind")
    if "norm.weight" in found and "norm.weight" not in shapes and "fc_norm.weight" not in found:
        for last in ("weight", "bias"):
            found.pop(f"norm.{last}")
        notes.append("the last norm comes after the pooling now, and begins anew")


def _offsets(found: dict[str, Tensor], name: str, shape: tuple[int, ...], notes: list[str]) -> None:
    """A bias for each offset between patches, or between tokens of a window; after them up to 3 for what is no patch."""
    table = found[name]
    old, new = (next(((side, extra) for extra in (0, 3) if (side := math.isqrt(max(rows - extra, 0))) ** 2 == rows - extra and side % 2),
                     None) for rows in (table.shape[0], shape[0]))
    if old is None or new is None or old[1] != new[1] or table.shape[1] != shape[1]:
        return
    was, now = (old[0] + 1) // 2, (new[0] + 1) // 2
    found[name] = resample_offsets(table, (was, was), (now, now))
    if (words := f"relative positions interpolated from {was} x {was} to {now} x {now}") not in notes:
        notes.append(words)


def _kernel(found: dict[str, Tensor], name: str, shape: tuple[int, ...], notes: list[str]) -> None:
    kernel = found[name]
    if kernel.ndim != 4 or kernel.shape[0] != shape[0]:
        return
    if kernel.shape[1] == 3 and shape[1] == 1:
        kernel = kernel.sum(dim=1, keepdim=True)        # a grey image is three channels alike
        notes.append("the patch kernel's three channels are added up for grey images")
    elif kernel.shape[1] == 1 and shape[1] == 3:
        kernel = kernel.repeat(1, 3, 1, 1) / 3
        notes.append("the patch kernel's one channel is shared out over three")
    if kernel.shape[-1] != shape[-1]:
        notes.append(f"the patch kernel is resampled from {kernel.shape[-1]} to {shape[-1]} pixels")
        kernel = resample_kernel(kernel, shape[-1])
    found[name] = kernel


def _classifiers(found: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> None:
    for name in [name for name in found if name in CLASSIFIERS and shapes.get(name) != tuple(found[name].shape)]:
        classes = len(found.pop(name))
        if name.endswith("weight"):
            now = f"of {shapes[name][0]} classes begins at initial values" if name in shapes else "is not there any more"
            notes.append(f"the head was of {plural(classes, 'class')}; this one {now}")
    if absent := [name for name in shapes if name.startswith((*HEAD, "head")) and name not in found]:
        notes.append(f"these begin at initial values: {', '.join(absent)}")


# What weights do not show by their shapes and would mean something else with; and what is another model's business.
_FUNCTION = ("heads", "norm_eps", "head_norm_eps", "hidden_act", "parallel", "gated", "post_norm", "rope_type", "rope_temperature",
             "rope_grid", "rope_offset", "mup_base_head_width")
_FREE = {"family", "size", "width", "widths", "depth", "depths", "heads", "mlp", "image", "patch", "channels", "classes", "registers",
         "layer_scale", "dropout", "head_dropout", "drop_path", "drop_path_schedule", "drop_path_group", "mup_base_width", "pool",
         "pool_norm", "head_hidden", "class_position"}


def unlike(before: Model, now: Model) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """By dotted key (what it was, what it is): of what cannot be changed under weights, and of what can and is not said elsewhere."""
    was, new = before.model_dump(), now.model_dump()
    (wide, was["heads"]), (width, new["heads"]) = _heads(before), _heads(now)
    if wide != width:               # which shapes tell
        was["heads"] = new["heads"]
    odd = {key: (value, new[key]) for key, value in was.items() if key in new and value != new[key]}
    return ({f"model.{key}": odd[key] for key in _FUNCTION if key in odd},
            {f"model.{key}": pair for key, pair in odd.items() if key not in _FREE and key not in _FUNCTION})


def _heads(section: Model) -> tuple[Any, Any]:
    """(width, heads) of each block or stage, also where a size names them."""
    if isinstance(section, Vit):
        return shape_of(section).width, shape_of(section).heads
    stages = swin.stages_of(section) if isinstance(section, Swin) else ()
    return [stage.width for stage in stages], [stage.heads for stage in stages]
