"""What weights say of themselves before one is read: of a run, a checkpoint, an export of ours, a folder of transformers' or timm's."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.errors import RecipeError
from vitscale.recipe.beside import CLASSES, class_lists, read_names
from vitscale.recipe.check import train_urls
from vitscale.recipe.objectives import OBJECTIVES
from vitscale.recipe.preprocessing import Preprocessing, colour, image_processor, prepared_by_timm, prepared_by_transformers
from vitscale.recipe.upgrade import understood

RUN, CONFIG = "run.json", "config.json"
_MOST_BYTES = 1 << 28
_THEIRS = {"data.augment.mean": "mean", "data.augment.std": "std", "evaluate.crop": "crop_pct"}      # timm's names
_PATCH = re.compile(r"_patch(\d+)")


@dataclass(frozen=True)
class Known:
    """By dotted keys of a recipe."""

    values: Mapping[str, Any]           # of model.image, channels, patch, classes; data.augment.mean, std; evaluate.crop
    names: tuple[str, ...] = ()         # of the classes, in the order of their numbers; () where they are numbers alone
    family: str = "vit"
    resampling: str = "bicubic"         # by which images were resized
    squeezed: bool = False              # all of an image, to a square


def known_of(source: Path) -> Known | None:
    """Of what `init` may name; None where it says nothing that can be understood, which whoever reads the weights will name."""
    try:
        if (source / CONFIG).is_file():
            return _of_folder(source, read_object(source / CONFIG))
        facts = checkpoint_of(source)
        return None if facts is None else _of_run(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, RecipeError):
        return None


def checkpoint_of(source: Path) -> Path | None:
    """run.json of a checkpoint, of the one that a file lies in, or of the newest of a run folder."""
    folder = source.parent if source.is_file() else source
    if (folder / RUN).is_file():
        return folder / RUN
    if source.is_file() or not (folder / "checkpoints").is_dir():
        return None
    steps = [path for path in (folder / "checkpoints").iterdir() if re.fullmatch(r"step-\d+", path.name, re.ASCII)]
    return next((path / RUN for path in sorted(steps, key=lambda path: int(path.name[5:]), reverse=True) if (path / RUN).is_file()), None)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.  Raises OSError, ValueError."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError("too large")
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _of_run(facts: Path) -> Known:
    recipe = understood(read_object(facts)["recipe"], str(facts)).recipe
    model, data = recipe.model, recipe.data
    labelled = OBJECTIVES[recipe.objective.name].wants_labels
    names: tuple[str, ...] = ()
    if labelled:
        names = read_names(Path(data.class_map)) if data.class_map else read_names(facts.parents[2] / CLASSES)
        names = names or next(iter(class_lists(train_urls(recipe), far=False).values()), ())
    values = _values(model.image, model.channels, getattr(model, "patch", None), model.classes if labelled else None,
                     Preprocessing(model.image, recipe.evaluate.crop, None, data.augment.mean, data.augment.std))
    return Known(values, names if len(names) == model.classes else (), model.family)


def _values(image: int, channels: int, patch: int | None, classes: int | None, prepared: Preprocessing) -> dict[str, Any]:
    found = {"model.image": image, "model.channels": channels, "model.patch": patch, "model.classes": classes or None,
             "data.augment.mean": list(prepared.mean), "data.augment.std": list(prepared.std), "evaluate.crop": prepared.crop}
    return {key: value for key, value in found.items() if value is not None}


def _of_folder(folder: Path, config: Mapping[str, Any]) -> Known:
    if "vitscale" in config:
        model, given = config["model"], config["transform"]
        prepared = Preprocessing(model["image"], float(given["crop"]), None, colour(given["mean"], 0.5), colour(given["std"], 0.5))
        names = tuple(map(str, config["class_names"]))
        return Known(_values(model["image"], model["channels"], model.get("patch"), model["classes"], prepared), _named(names),
                     model["family"])
    if "architecture" in config and "model_type" not in config:
        return _of_timm(config)
    body = config.get("vision_config", config)
    kind = str(config["model_type"])
    family = next((one for one in ("swin", "convnext", "deit") if kind.startswith(one)), "vit")
    classified = any("ForImageClassification" in name for name in config.get("architectures") or ())
    labels = config.get("id2label") or {}
    classes = (len(labels) if labels else int(config.get("num_labels", 2))) if classified else None
    image = _side(body.get("image_size", 224))
    about = image_processor(folder, read_object)
    prepared = prepared_by_transformers(about, kind, image)
    patch = None if family == "convnext" else _side(body.get("patch_size", 4 if family == "swin" else 16))
    names = tuple(str(labels.get(str(number), number)) for number in range(len(labels))) if classified else ()
    found = _values(image, body.get("num_channels", 3), patch, classes, prepared)
    return Known({key: value for key, value in found.items() if about is not None or key.startswith("model.")}, _named(names), family,
                 prepared.resampling, isinstance(prepared.resize, tuple))


def _of_timm(config: Mapping[str, Any]) -> Known:
    name, arguments = str(config["architecture"]), config.get("model_args") or {}
    about = {**(config.get("pretrained_cfg") or {}), **config}
    size = about.get("input_size") or [3, 224, 224]
    family = next((one for one in ("swin", "convnext") if name.startswith(one)), "deit" if "_distilled" in name else "vit")
    patch = _PATCH.search(name)
    image = _side(arguments.get("img_size", size[-1]))
    prepared = prepared_by_timm(config, image)
    found = _values(image, arguments.get("in_chans", size[0]),
                    arguments.get("patch_size", int(patch[1]) if patch else 4 if family == "swin" else None),
                    arguments.get("num_classes", about.get("num_classes", 1000)), prepared)
    found = {key: value for key, value in found.items() if key.startswith("model.") or about.get(_THEIRS[key])}
    names = tuple(map(str, config.get("label_names") or ()))
    return Known(found, _named(names), family, prepared.resampling, isinstance(prepared.resize, tuple))


def _side(size: Any) -> int:
    return int(size[-1] if isinstance(size, list) else size)


def _named(names: tuple[str, ...]) -> tuple[str, ...]:
    """Nothing for names that are the numbers again."""
    numbers = range(len(names))
    return () if names in (tuple(map(str, numbers)), tuple(f"LABEL_{number}" for number in numbers)) else names
