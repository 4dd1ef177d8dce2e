"""Exported folders, transformers', timm's and our own, read as models of ours: config.json, safetensors, how images are prepared."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vitscale.checkpoint.exported import as_exported
from vitscale.checkpoint.facts import read_object, short
from vitscale.checkpoint.tensors import read_tensors
from vitscale.data.transform import Transform
from vitscale.errors import CheckpointError, RecipeError, UserError, said
from vitscale.models import parameter_shapes
from vitscale.models.foreign_decoder import pixel_decoder
from vitscale.models.timm_section import arguments_of, section_of_timm
from vitscale.models.timm_tensors import from_timm
from vitscale.models.transformers_names import from_transformers, kind_of_file, simplest
from vitscale.models.transformers_section import section_of
from vitscale.recipe import Model
from vitscale.recipe.load import check_section
from vitscale.recipe.preprocessing import colour, image_processor, prepared_by_timm, prepared_by_transformers
from vitscale.recipe.schema import FAMILIES, External

log = logging.getLogger(__name__)
CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
MAX_DEPTH, MAX_SIZE = 4096, 2**20


@dataclass(frozen=True)
class Folder:
    """What a folder holds, in our terms."""

    section: Model                      # with classes 0 where no classifier of ours can take theirs
    weights: dict[str, Tensor]          # by our names
    transform: Transform
    class_names: tuple[str, ...]        # () where the folder names none
    source: Path
    notes: tuple[str, ...] = ()         # what was left behind or taken for granted
    decoder: dict[str, Tensor] = field(default_factory=dict)       # MAE's, by our names, for who goes on with its pretraining


def is_foreign_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def library_of(folder: Path) -> str:
    """transformers, timm or vitscale: who has written a folder's config.json."""
    config = read_object(folder / CONFIG)
    return "vitscale" if "vitscale" in config else "timm" if "architecture" in config and "model_type" not in config else "transformers"


def read_folder(folder: Path) -> Folder:
    """No code of the folder's is run and no pickle read.  Raises CheckpointError, whatever is wrong in it."""
    try:
        return _read_folder(folder)
    except UserError as error:
        raise error if str(folder) in str(error) else CheckpointError(f"{folder / CONFIG}: {error}") from None
    except Exception as error:      # a value of another kind than its key has can come to light anywhere
        raise CheckpointError(f"{folder / CONFIG}: cannot be understood ({said(error)})") from None


def _read_folder(folder: Path) -> Folder:
    config = read_object(folder / CONFIG)
    library = library_of(folder)
    if library == "vitscale":
        return _own(folder, config)
    is_timm, notes, pixels = library == "timm", list[str](), dict[str, Tensor]()
    section = section_of_timm(config, str(folder / CONFIG)) if is_timm else section_of(config, str(folder / CONFIG))
    _refuse_absurd(section, folder)
    theirs, source = _tensors(folder)
    shapes = parameter_shapes(section)
    if is_timm:
        prepared = prepared_by_timm(config, section.image)
        weights, idle = from_timm(arguments_of(config), section, theirs, shapes)
        names = (config.get("label_names") or ()) if section.classes else ()
    else:
        decoder, missed = pixel_decoder(config, section, theirs)
        notes += missed
        weights, idle = from_transformers(kind_of_file(config), section, theirs, shapes | decoder)
        section, weights = simplest(section, weights)
        pixels = {name: weights.pop(name) for name in decoder if name in weights}
        heads = [name for name in shapes if name.startswith("head") and "norm" not in name]
        if any(name not in weights for name in heads):
            notes.append("its classifier is not one of ours: the backbone alone is read")
            section = section.model_copy(update={"classes": 0})
            weights = {name: value for name, value in weights.items() if name not in heads}
        prepared = prepared_by_transformers(image_processor(folder, read_object), str(config["model_type"]), section.image)
        labels = config.get("id2label") or {}
        names = [labels[str(number)] for number in range(section.classes)] if labels else ()
    if (found := as_exported(config, weights, theirs, lambda section: _refuse_absurd(section, folder))) is not None:
        section, weights = found
    if idle:
        more = f" and {len(idle) - 6} more" if len(idle) > 6 else ""
        notes.append(f"left behind, since no answer depends on it: {', '.join(idle[:6])}{more}")
    for note in notes:
        log.info("%s: %s", folder, note)
    for note in prepared.notes:
        log.warning("%s: %s", folder, note)
    notes += prepared.notes
    transform = Transform(prepared.image, section.channels, prepared.crop, prepared.mean, prepared.std, resize=prepared.resize,
                          resampling=prepared.resampling, half_even=prepared.half_even)
    return Folder(section, _in_fp32(weights, source), transform, tuple(map(str, names)), source, tuple(notes), _in_fp32(pixels, source))


def _own(folder: Path, config: Mapping[str, Any]) -> Folder:
    """What `vitscale export --format safetensors` has written."""
    try:
        section = check_section(FAMILIES.get(config["model"]["family"], External), config["model"], str(folder / CONFIG))
        given = config["transform"]
        resize = given.get("resize")
        transform = Transform(**{**given, "mean": colour(given["mean"], 0.5), "std": colour(given["std"], 0.5),
                                 "resize": tuple(resize) if isinstance(resize, list) else resize})
        names = tuple(map(str, config["class_names"]))
    except (KeyError, TypeError, RecipeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: was written by another version of vitscale ({error})") from None
    _refuse_absurd(section, folder)
    weights, source = _tensors(folder)
    return Folder(section, _in_fp32(weights, source), transform, names, source)


def _refuse_absurd(section: Model, folder: Path) -> None:
    """Raises UserError for sizes that no model has: to build one, if only to compare its shapes, would take for ever."""
    for name, value in section.model_dump().items():
        most = MAX_DEPTH if name.startswith("depth") else MAX_SIZE
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, int) and one > most:
                raise CheckpointError(f"{folder / CONFIG}: a model of {name} {short(one)} cannot be meant; at most {most} is read")
    parameter_shapes(section)       # raises what does not go together


def _tensors(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """All of them, and the file that they or their index are in: one file goes before an index, as it does for transformers and timm."""
    files, source = [WEIGHTS], folder / WEIGHTS
    if not source.is_file() and (folder / INDEX).is_file():
        source = folder / INDEX
        named = read_object(source).get("weight_map")
        files = sorted(set(named.values())) if isinstance(named, dict) else []
        if not files or any(not isinstance(name, str) or Path(name).name != name for name in files):
            raise CheckpointError(f"{source}: its weight_map does not name files of this folder")
    elif not source.is_file():
        pickled = next((path.name for path in folder.glob("*.bin")), None)
        hint = f"; {pickled} is a pickle, which could run code: save it anew with safe_serialization=True" if pickled else ""
        raise CheckpointError(f"{folder}: has no {WEIGHTS}{hint}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        more = read_tensors(folder / name)
        if twice := sorted(tensors.keys() & more.keys()):
            raise CheckpointError(f"{source}: {twice[0]} stands in two of its files; only one can be meant")
        tensors |= more
    return tensors, source


def _in_fp32(weights: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    for name, value in weights.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {name} is of {str(value.dtype).removeprefix('torch.')}, not of floating-point numbers; "
                                  "quantized weights are not followed, save the folder anew in fp32 or bf16")
    return {name: value.float() for name, value in weights.items()}

