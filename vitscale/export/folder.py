"""Folders that transformers and timm load: config.json, how images are prepared, safetensors under their names."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

import vitscale
from vitscale.checkpoint.exported import NOTE, note_of
from vitscale.checkpoint.foreign import CONFIG, WEIGHTS
from vitscale.checkpoint.load import Loaded
from vitscale.checkpoint.tensors import write_tensors
from vitscale.models.timm_config import timm_architecture, to_timm
from vitscale.models.transformers_config import config_of, kind_of
from vitscale.models.transformers_names import to_transformers
from vitscale.recipe.preprocessing import PREPROCESSOR, RESAMPLING

_SIZES = ("embed_dim", "dims", "depth", "depths", "num_heads", "patch_size", "img_size")      # of timm's arguments


def write_transformers(loaded: Loaded, out: Path) -> str:
    """A folder for AutoModelForImageClassification.from_pretrained; -> the name of the class.  Raises RecipeError where none fits."""
    kind = kind_of(loaded.section)
    config = config_of(kind, loaded.section, loaded.class_names)
    weights = to_transformers(kind, loaded.section, own_weights(loaded))
    _write(out, config | {NOTE: note_of(loaded.section)}, weights)
    _json(out / PREPROCESSOR, _preprocessor(loaded))
    return str(config["architectures"][0])


def write_timm(loaded: Loaded, out: Path) -> str:
    """A folder for timm.create_model("local-dir:FOLDER"); -> the architecture, and the sizes that it is given, which need not be those that
    its name says.  Raises RecipeError where none fits."""
    name, arguments = timm_architecture(loaded.section)
    transform = loaded.transform
    about = {
        "input_size": [transform.channels, transform.image, transform.image], "crop_pct": transform.crop,
        "interpolation": transform.resampling, "crop_mode": "squash" if isinstance(transform.resize, tuple) else "center",
        "mean": list(transform.mean), "std": list(transform.std), "num_classes": loaded.section.classes,
        "fixed_input_size": loaded.section.family != "convnext", **_ends(loaded.section.family),
    }
    config: dict[str, Any] = {"architecture": name, "num_classes": loaded.section.classes, "model_args": arguments, "pretrained_cfg": about,
                              NOTE: note_of(loaded.section)}
    if loaded.named:
        config["label_names"] = list(loaded.class_names)
    _write(out, config, to_timm(loaded.section, own_weights(loaded)))
    sizes = ", ".join(f"{key} {arguments[key]}" for key in _SIZES if key in arguments)
    return f"timm's {name} changed to {sizes}"


def _ends(family: str) -> dict[str, Any]:
    """Where timm finds what it makes anew for other classes, and fits to other channels."""
    classifier = {"deit": ["head", "head_dist"], "swin": "head.fc", "convnext": "head.fc"}.get(family, "head")
    return {"classifier": classifier, "first_conv": "stem.0" if family == "convnext" else "patch_embed.proj"}


def write_safetensors(loaded: Loaded, out: Path) -> str:
    """model.safetensors under our (timm's) names, and config.json with the model section; what every model here can be written as."""
    config = {"vitscale": vitscale.__version__, "model": loaded.section.model_dump(mode="json"), "transform": vars(loaded.transform),
              "class_names": list(loaded.class_names)}
    _write(out, config, own_weights(loaded))
    return loaded.section.family


def own_weights(loaded: Loaded) -> dict[str, Tensor]:
    """The model's parameters by name, on the host in fp32."""
    return {name: value.detach().float().cpu().contiguous() for name, value in loaded.model.named_parameters()}


def _write(out: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / WEIGHTS, weights, {"format": "pt"})
    _json(out / CONFIG, config)


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _preprocessor(loaded: Loaded) -> dict[str, Any]:
    """BiT's processor resizes the shorter side and cuts out the middle, which is what our evaluation does; DeiT's squeezes, then cuts."""
    transform, grey = loaded.transform, loaded.transform.channels == 1
    mean, std = (list(values) for values in (transform.mean, transform.std))
    if grey:
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    squeeze = transform.resize if isinstance(transform.resize, tuple) else None
    short = transform.resize or max(int(transform.image / transform.crop), transform.image)
    return {
        "image_processor_type": "DeiTImageProcessor" if squeeze else "BitImageProcessor", "do_convert_rgb": not grey, "do_resize": True,
        "size": {"height": squeeze[0], "width": squeeze[1]} if squeeze else {"shortest_edge": short}, "do_center_crop": True,
        "resample": {name: number for number, name in RESAMPLING.items()}[transform.resampling],
        "crop_size": {"height": transform.image, "width": transform.image}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": mean, "image_std": std,
    }
