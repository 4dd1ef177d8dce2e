"""Weights alone, as `init`, teachers and exports take them: from a run folder, a checkpoint or a .safetensors file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitscale.checkpoint.foreign import is_foreign_folder, read_folder
from vitscale.checkpoint.store import EMA_WEIGHTS, FACTS, MANIFEST, WEIGHTS, checkpoints_in, damage_in, fault_in, read_facts
from vitscale.checkpoint.tensors import first_not_finite, read_tensors
from vitscale.errors import CheckpointError, RecipeError
from vitscale.models.adapt import adapted, unlike
from vitscale.models.lora import has_adapters, merged
from vitscale.models.names import CLASSIFIERS, HEAD, PRETRAINING
from vitscale.recipe.objectives import OBJECTIVES
from vitscale.recipe.schema import Model
from vitscale.recipe.upgrade import Understood, listed, understood

log = logging.getLogger(__name__)


def find_weights(source: Path) -> Path:
    """The .safetensors file that a run folder (its newest whole checkpoint), a checkpoint folder or a file stands for."""
    if source.is_file():
        return source
    if (source / WEIGHTS).is_file():
        # safetensors would load a flipped bit without a word
        if (source / MANIFEST).exists() and (reason := damage_in(source, only=WEIGHTS)) is not None:
            raise CheckpointError(f"{source}: is damaged: {reason}")
        return source / WEIGHTS
    for checkpoint in reversed(checkpoints_in(source / "checkpoints")):
        if fault_in(checkpoint) is None:
            return checkpoint / WEIGHTS
    raise CheckpointError(f"{source}: holds no weights; wanted is a run folder with a whole checkpoint, a checkpoint folder, "
                          "or a .safetensors file")


def read_weights(source: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """name -> fp32 value for exactly the parameters in `shapes`.  Raises CheckpointError naming the first that does not fit."""
    path = find_weights(source)
    return fitting(path, _load(path), shapes)


def read_start(source: Path, model: nn.Module, objective: str, now: Model | None = None) -> dict[str, Tensor]:
    """What `init` gives a new model, of any folder that load() takes: adapted to it, and by name in fp32; the log says what was done.

    Of a head that is another one, of what pretraining has besides the backbone and the folder knows nothing of, and of what comes anew,
    nothing is returned.  `now`: the section of the new model.  Raises CheckpointError for another backbone, also if its weights alone
    would not tell.
    """
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    section: Model | None
    if is_foreign_folder(source):
        folder = read_folder(source)
        path, weights, section = folder.source, folder.weights, folder.section
        if "decoder_embed.weight" in shapes:      # its pretraining goes on
            weights = weights | folder.decoder
    else:
        path = find_weights(source)
        if teaches(path) and not OBJECTIVES[objective].averages and (path.parent / EMA_WEIGHTS).is_file():
            path = path.parent / EMA_WEIGHTS
        weights, section = _load(path), section_before(path)
        if own := _own_parts(path, weights, shapes, objective):
            weights = {name: value for name, value in weights.items() if name not in own}
            log.info("init=%s: %d of its tensors belong to %s alone and are left behind (%s)", source, len(own),
                     _objective_of(path) or "its pretraining", ", ".join(sorted({name.partition(".")[0] for name in own})))
    if section is not None and now is not None:
        _same_function(path, section, now)
    weights, notes = adapted(weights, model, section)
    for note in notes:
        log.info("init=%s: %s", source, note)
    anew = (*HEAD, "head", *(part for part in PRETRAINING if not any(name.startswith(part) for name in weights)))
    wanted = {name: shape for name, shape in shapes.items() if name in weights or not name.startswith(anew)}
    if fresh := [name for name in shapes if name not in wanted]:
        log.info("init=%s: these begin at initial values: %s", source, ", ".join(fresh))
    found = fitting(path, weights, wanted)
    refuse_not_finite(path, found)
    return found


def _same_function(path: Path, before: Model, now: Model) -> None:
    """Raises CheckpointError for sections whose weights have the same shapes and mean something else; says what else is another."""
    refused, said = unlike(before, now)
    if refused:
        had = ", ".join(f"{key} {was} (not {new})" for key, (was, new) in refused.items())
        raise CheckpointError(f"{path}: was trained with {had}: its weights would be another function; set "
                              f"{' '.join(f'{key}={was}' for key, (was, _) in refused.items())}")
    if said:
        log.info("init=%s: these are others than it was trained with: %s", path,
                 ", ".join(f"{key} {new} (it had {was})" for key, (was, new) in said.items()))


def refuse_not_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming the first of the weights that holds a NaN or an infinity: nothing can be learned from there."""
    if (wrong := first_not_finite(weights)) is not None:
        raise CheckpointError(f"{path}: '{wrong[0]}' holds {wrong[1]} numbers that are not finite; name weights of a run that went well, "
                              "or an earlier checkpoint of this one")


def section_before(path: Path) -> Model | None:
    """The model section that the weights in a checkpoint's folder were trained with; None if they lie elsewhere."""
    if not (path.parent / FACTS).is_file():
        return None
    try:
        return read_saved(read_facts(path.parent).recipe, path.parent / FACTS).recipe.model
    except CheckpointError:
        return None


def read_saved(recipe: Mapping[str, Any], where: Path) -> Understood:
    """The recipe in a checkpoint; what is not known here is named in the log.  Raises CheckpointError for what is none."""
    try:
        read = understood(recipe, str(where))
    except RecipeError as error:
        raise CheckpointError(str(error)) from None
    if read.unknown:
        log.warning("%s: this version of vitscale does not know, and passes over: %s", where, listed(read.unknown))
    return read


def read_backbone(source: Path, shapes: Mapping[str, tuple[int, ...]], objective: str) -> dict[str, Tensor]:
    """As read_weights, but what was trained for another objective without labels leaves its own parts behind: the decoder of hidden pixels,
    the classifier of a change.  Then the head may lack in what is returned, and is to begin at initial values; the log says so.

    A checkpoint says what its objective was; of a bare file the decoder tells it.
    """
    path = find_weights(source)
    weights = _load(path)
    own = _own_parts(path, weights, shapes, objective)
    if not own:
        return fitting(path, weights, shapes)
    if "norm.weight" not in shapes and "fc_norm.weight" in shapes:      # the last norm comes after the pooling now: another one
        own += [name for name in weights if name.startswith("norm.")]
    kept = {name: value for name, value in weights.items() if name not in own}
    fresh = [name for name in shapes if name.startswith(HEAD) and name not in kept]
    log.info("init=%s: %d of its tensors belong to %s alone and are left behind (%s); these begin at initial values: %s", source, len(own),
             _objective_of(path) or "its pretraining", ", ".join(sorted({name.partition(".")[0] for name in own})),
             ", ".join(fresh) or "none")
    return fitting(path, kept, {name: shape for name, shape in shapes.items() if name not in fresh})


def _own_parts(path: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], objective: str) -> list[str]:
    """Names of the weights that belong to a pretraining without labels alone, if it was that and `shapes` is something else."""
    before = _objective_of(path)
    lacking = tuple(start for start in PRETRAINING if not any(name.startswith(start) for name in shapes))
    own = [name for name in weights if name.startswith(lacking)]
    if before is not None and before != objective and not OBJECTIVES[before].wants_labels and len(lacking) == len(PRETRAINING):
        own += [name for name in weights if name in CLASSIFIERS]
    return own


def teaches(path: Path) -> bool:
    """Whether the average beside these weights of a checkpoint is a teacher, and what the run was for."""
    name = _objective_of(path)
    return name is not None and OBJECTIVES[name].averages


def _objective_of(path: Path) -> str | None:
    """What the weights in a checkpoint's folder were trained for; None if they lie elsewhere, or are of a kind unknown here."""
    if not (path.parent / FACTS).is_file():
        return None
    name = read_facts(path.parent).recipe.get("objective", {}).get("name")
    return name if isinstance(name, str) and name in OBJECTIVES else None


def _load(path: Path) -> dict[str, Tensor]:
    """What a file holds; of a run with adapters, added up."""
    weights = read_tensors(path)
    if not has_adapters(weights):
        return weights
    try:
        lora = read_saved(read_facts(path.parent).recipe, path.parent / FACTS).recipe.lora if (path.parent / FACTS).is_file() else None
    except CheckpointError:
        lora = None
    if lora is None:
        raise CheckpointError(f"{path}: holds adapters, but {FACTS} beside it does not say by how much they count")
    return merged(weights, lora)


def fitting(path: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights in fp32, if they are exactly those of `shapes`.  Raises CheckpointError naming the first that does not fit."""
    for name, shape in shapes.items():
        if name not in weights:
            raise CheckpointError(f"{path}: has no '{name}'; these are the weights of another model")
        if tuple(weights[name].shape) != tuple(shape):
            raise CheckpointError(f"{path}: '{name}' is {tuple(weights[name].shape)}, this model's is {tuple(shape)}")
    surplus = sorted(weights.keys() - shapes.keys())
    if surplus:
        raise CheckpointError(f"{path}: has '{surplus[0]}', which this model lacks")
    return {name: weights[name].float() for name in shapes}
