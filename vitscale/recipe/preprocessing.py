"""How images are prepared for a model of another library's.

What its folder says is followed exactly, or refused by name; what it leaves out is what the library takes it for, which is said.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.errors import RecipeError

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"     # of a model of images and text: the processors of both, whose images' part goes before PREPROCESSOR
Colour = tuple[float, float, float]
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}      # PIL's numbers
_HALF, _CLIP = ([0.5] * 3, [0.5] * 3), ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_CHANNELS = ("image_mean", "image_std")


@dataclass(frozen=True)
class Preprocessing:
    """An image is resized, its middle cut out, and each channel made (value - mean) / std of values from 0 to 1."""

    image: int                          # pixels on a side of what the model is given
    crop: float = 0.875                 # share of the shorter side that is kept, which is resized to floor(image / crop); or
    resize: int | tuple[int, int] | None = None     # the shorter side in pixels; or the (height, width) that all is squeezed to
    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)
    resampling: str = "bicubic"
    half_even: bool = False             # an odd margin is halved to the even number, as torchvision does; else down, as transformers does
    notes: tuple[str, ...] = ()         # what was taken for granted


def _processor(size: Any, resample: int = 3, colours: tuple[list[float], list[float]] = _HALF, **more: Any) -> dict[str, Any]:
    return {"do_resize": True, "size": size, "resample": resample, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": colours[0], "image_std": colours[1], "do_center_crop": False, "crop_size": None, "default_to_square": True} | more


def _squeeze(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


# what transformers' classes do by themselves; a test compares
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _processor(_squeeze(224), 2), "Siglip": _processor(_squeeze(224), default_to_square=False),
    "DINOv3ViT": _processor(_squeeze(224), 2, _IMAGENET),
    "DeiT": _processor(_squeeze(256), do_center_crop=True, crop_size=_squeeze(224)),
    "Beit": _processor(_squeeze(224), crop_size=_squeeze(224)),
    "Bit": _processor({"shortest_edge": 224}, colours=_CLIP, do_center_crop=True, crop_size=_squeeze(224), default_to_square=False),
    "CLIP": _processor({"shortest_edge": 224}, colours=_CLIP, do_center_crop=True, crop_size=_squeeze(224), default_to_square=False),
    "ConvNext": _processor({"shortest_edge": 384}, crop_pct=0.875, default_to_square=False),
    "Siglip2": _processor(_squeeze(224), 2),
}
_BY_TYPE = {"deit": "DeiT", "dinov2": "Bit", "dinov3": "DINOv3ViT", "beit": "Beit", "data2vec": "Beit", "siglip2": "Siglip2",
            "siglip": "Siglip", "clip": "CLIP", "convnext": "ConvNext"}
_NO_MATTER = {"image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "do_convert_rgb", "data_format",
              "input_data_format", "device", "disable_grouping", "return_tensors", "do_reduce_labels", "reduce_labels",
              "size_divisor", "pad_size", "image_seq_length", "_valid_processor_keys", "patch_size", "max_num_patches", "crop_pct"}


def image_processor(folder: Path, read: Callable[[Path], dict[str, Any]]) -> Mapping[str, Any] | None:
    """What transformers has written of how images are prepared, by who reads a JSON object; None: nothing.  Raises RecipeError."""
    both = read(folder / PROCESSOR).get("image_processor") if (folder / PROCESSOR).is_file() else None
    if both is None:
        return read(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else None
    if not isinstance(both, Mapping):
        raise RecipeError(f"{PROCESSOR}: image_processor is no mapping")
    return both


def prepared_by_transformers(given: Mapping[str, Any] | None, model_type: str, image: int) -> Preprocessing:
    """preprocessor_config.json, None where there is none, beside a model of `image` pixels.  Raises RecipeError naming what cannot be
    followed."""
    kind = next((name for start, name in _BY_TYPE.items() if model_type.startswith(start)), "ViT")
    named = str((given or {}).get("image_processor_type") or (given or {}).get("feature_extractor_type") or kind)
    kind = named.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in PROCESSORS:
        raise RecipeError(f"image_processor_type  {named} is none that is known here; known are "
                          f"{', '.join(one + 'ImageProcessor' for one in PROCESSORS)}")
    usual = _of_size(PROCESSORS[kind], image)
    values = usual | {key: value for key, value in (given or {}).items() if value is not None}
    if kind == "ConvNext" and given and "do_center_crop" not in given:
        values["do_center_crop"] = False
    _refuse_others(values, usual)
    prepared = _boxed(kind, values, image)
    absent = [key for key in ("size", "resample", *_CHANNELS) if key not in (given or {})]
    notes = [] if kind != "Siglip2" else ["Siglip2ImageProcessor keeps the shape of images; here they are squeezed to the model's own size"]
    if given is None:
        notes.append(f"says nothing of how images are prepared (no preprocessor_config.json): taken is {kind}ImageProcessor's default, "
                     f"{_words(prepared)}")
    elif absent:
        notes.append(f"preprocessor_config.json does not say {', '.join(absent)}: taken is {kind}ImageProcessor's default, "
                     f"{_words(prepared)}")
    if prepared.image != image:
        notes.append(f"images are prepared in {prepared.image} pixels, as its preprocessor_config.json says, not the model's {image}")
    return Preprocessing(**{**vars(prepared), "notes": tuple(notes)})


def _of_size(usual: dict[str, Any], image: int) -> dict[str, Any]:
    """A class's defaults where nothing is said, scaled to the model's own size."""
    whole = usual["crop_size"] or usual["size"]
    side = whole.get("height") or whole["shortest_edge"]
    scaled = {key: value * image // side for key, value in usual["size"].items()}
    return usual | {"size": scaled, "crop_size": _squeeze(image) if usual["crop_size"] else None}


def _refuse_others(values: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    wrong = {key: f"{value!r} is not known here, so neither is what it does" for key, value in values.items()
             if key not in usual and key not in _NO_MATTER and value not in (False, None)}
    if not values["do_resize"]:
        wrong["do_resize"] = "false is not followed here: images are made of one size"
    if values["resample"] not in RESAMPLING:
        wrong["resample"] = f"{values['resample']!r} is none of PIL's numbers, {', '.join(map(str, RESAMPLING))}"
    if wrong:
        raise RecipeError("\n".join(["preprocessor_config.json asks for what is not done here:",
                                     *(f"  {key}  {why}" for key, why in sorted(wrong.items()))]))


def _boxed(kind: str, values: Mapping[str, Any], image: int) -> Preprocessing:
    """The size that is resized to, what is cut out of it, and the colours."""
    size = _sides("size", values["size"], values["default_to_square"], {"shortest_edge"}, {"height", "width"})
    short = size.get("shortest_edge")
    resize: int | tuple[int, int] = int(short) if short else (int(size["height"]), int(size["width"]))
    if kind == "ConvNext" and isinstance(resize, int):     # a share of the image below 384 pixels, all of it from there on
        box, resize = _squeeze(resize), int(resize / values["crop_pct"]) if resize < 384 else (resize, resize)
        cut = isinstance(resize, int)
    else:
        cut = bool(values["do_center_crop"])
        box = _sides("crop_size", values["crop_size"], True, {"height", "width"}) if cut else {}
    height, width = (box["height"], box["width"]) if cut else resize if isinstance(resize, tuple) else (0, 1)
    least = min(resize) if isinstance(resize, tuple) else resize
    if height != width or height > least:
        raise RecipeError(f"preprocessor_config.json asks for what is not done here:\n  size  {size} cut to {box if cut else 'nothing'} "
                          "gives images that are not square, or have borders")
    factor = float(values["rescale_factor"]) if values["do_rescale"] else 1.0
    one = 1.0 if math.isclose(factor, 1 / 255, rel_tol=1e-6) else 255 * factor       # what the largest value becomes
    given = [colour(values[key], 0.5) for key in _CHANNELS] if values["do_normalize"] else [(0.0,) * 3, (1.0,) * 3]
    if not one or not all(given[1]):
        raise RecipeError("preprocessor_config.json asks for what is not done here:\n  image_std  and rescale_factor must not be 0")
    mean, std = (colour([value / one for value in values], 0.5) for values in given)
    crop = min(height / least, 1.0)
    plain = isinstance(resize, int) and max(math.floor(height / crop), height) == resize
    return Preprocessing(height, crop, None if plain else resize, mean, std, RESAMPLING[values["resample"]])


def _sides(key: str, value: Any, square: bool, *wanted: set[str]) -> dict[str, int]:
    """A size as a mapping with some of the `wanted` keys: one number is both sides, or but for `square` the shorter one; two are height and
    width."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = _squeeze(int(value)) if square else {"shortest_edge": int(value)}
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping) or value.keys() not in wanted:
        raise RecipeError(f"preprocessor_config.json asks for what is not done here:\n  {key}  {value} is not followed: give "
                          f"{', or '.join(' and '.join(sorted(keys)) for keys in wanted)}")
    return {name: int(pixels) for name, pixels in value.items()}


def prepared_by_timm(config: Mapping[str, Any], image: int) -> Preprocessing:
    """timm's config.json.  Raises RecipeError naming what cannot be followed."""
    given = {**(config.get("pretrained_cfg") or {}), **config}
    crop, mode = float(given.get("crop_pct") or 0.875), given.get("crop_mode") or "center"
    resampling = str(given.get("interpolation") or "bicubic")
    if mode not in ("center", "squash") or resampling not in RESAMPLING.values():
        key, value = ("crop_mode", mode) if mode not in ("center", "squash") else ("interpolation", resampling)
        raise RecipeError(f"pretrained_cfg asks for what is not done here:\n  {key}  {value!r} is not followed")
    side = math.floor(image / crop)
    if crop > 1:
        raise RecipeError(f"pretrained_cfg asks for what is not done here:\n  crop_pct  {crop:g} gives images borders")
    prepared = Preprocessing(image, crop, (side, side) if mode == "squash" else None, colour(given.get("mean"), _IMAGENET[0]),
                             colour(given.get("std"), _IMAGENET[1]), resampling, half_even=True)
    absent = [key for key in ("crop_pct", "interpolation", "mean", "std") if not given.get(key)]
    notes = (f"pretrained_cfg does not say {', '.join(absent)}: taken is timm's default, {_words(prepared)}",) if absent else ()
    return Preprocessing(**{**vars(prepared), "notes": notes})


def _words(prepared: Preprocessing) -> str:
    what = prepared.resize if prepared.resize is not None else max(math.floor(prepared.image / prepared.crop), prepared.image)
    how = f"all of it squeezed to {what[0]} x {what[1]}" if isinstance(what, tuple) else f"the shorter side resized to {what}"
    colours = ", ".join(f"{name} {' '.join(f'{value:g}' for value in values)}" for name, values in (("mean", prepared.mean),
                                                                                                    ("std", prepared.std)))
    return f"{how} by {prepared.resampling}, its middle {prepared.image} taken, {colours}"


def colour(given: Any, default: Any) -> Colour:
    """One number for each of red, green and blue; one alone is that of all."""
    given = default if given is None or given == [] else given
    values = [float(value) for value in given] if isinstance(given, (list, tuple)) else [float(given)]
    if not all(map(math.isfinite, values)):
        raise RecipeError(f"how images are prepared: {values} are no colours")
    red, green, blue = (values * 3)[:3] if len(values) == 1 else values
    return red, green, blue
