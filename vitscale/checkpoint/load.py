"""A trained model with what it takes to use it: `vitscale.load(run_or_folder)`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitscale.checkpoint.foreign import is_foreign_folder, read_folder
from vitscale.checkpoint.store import EMA_WEIGHTS, FACTS, MANIFEST, WEIGHTS, RunFacts, checkpoints_in, damage_in, read_facts, step_of
from vitscale.checkpoint.weights import find_weights, fitting, read_backbone, read_saved, read_weights
from vitscale.counts import plural
from vitscale.data.labels import read_class_map
from vitscale.data.remote import is_remote
from vitscale.data.shards import expand
from vitscale.data.sources import CLASSES
from vitscale.data.transform import Transform
from vitscale.errors import CheckpointError, DataError
from vitscale.models import Backbone, build_model, initialise, parameter_shapes
from vitscale.recipe import Model, Recipe
from vitscale.recipe.external import problems
from vitscale.recipe.schema import External
from vitscale.recipe.upgrade import listed, of_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A trained model and what belongs to it.

        loaded = vitscale.load("runs/quickstart")
        logits = loaded.model(loaded.transform("seven.png")[None])
    """

    model: Backbone                 # in evaluation mode, fp32
    transform: Transform            # an image -> what the model takes
    class_names: tuple[str, ...]    # by class number; the numbers themselves where no names are known; () without a head
    section: Model                  # the model section that it was built from
    recipe: Recipe | None           # of the run; None for another library's folder
    source: Path                    # the file that its weights were read from
    step: int | None = None         # of the run when they were written
    notes: tuple[str, ...] = ()     # what was left behind or taken for granted of another library's folder

    @property
    def named(self) -> bool:
        """Whether the classes have names of their own."""
        return self.class_names != numbered(len(self.class_names))

    def probabilities(self, images: Tensor) -> Tensor:
        """images (B, C, S, S) -> (B, classes): the softmax of the logits, or with a binary cross-entropy each class for itself."""
        logits = self.model(images).float()
        loss = getattr(self.recipe.objective, "loss", "") if self.recipe else ""
        return logits.sigmoid() if loss == "binary_cross_entropy" else logits.softmax(dim=-1)


def load(source: str | Path, *, checkpoint: str | int = "last", ema: bool = False, device: str | torch.device = "cpu",
         class_map: str | Path | None = None) -> Loaded:
    """A run folder (or the name of one in ./runs), one of its checkpoints, or a folder of transformers' or timm's -> a model to use.

    checkpoint: of a run folder `last` (the newest that is whole), `best`, or the number of a step.  ema: the averaged weights, if the
    run kept them; those of a run whose teacher they are stand for it in any case.  class_map: a file with a class name on each line, in
    place of the names that the run knows.
    Raises CheckpointError for what holds no such weights, DataError for a class map that does not match.
    """
    path = Path(source)
    if not path.exists() and (Path("runs") / source).is_dir():
        path = Path("runs") / source
    if not path.exists():
        raise CheckpointError(f"{source}: no such run, checkpoint or folder, here or in runs/")
    if is_foreign_folder(path):
        return _of_another_library(path, device, class_map)
    folder = checkpoint_of(path, checkpoint)
    facts = read_facts(folder)
    recipe = recipe_of(facts, folder)
    weights = folder / (EMA_WEIGHTS if ema or recipe.objective.averages else WEIGHTS)
    if ema and not weights.is_file():
        raise CheckpointError(f"{folder}: holds no averaged weights; the run had no `ema` section")
    if (reason := damage_in(folder, only=weights.name)) is not None:
        raise CheckpointError(f"{folder}: is damaged: {reason}")
    section = recipe.model if recipe.objective.wants_labels else recipe.model.model_copy(update={"classes": 0})
    model = build_model(section)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    if recipe.objective.wants_labels:
        values = read_weights(weights, shapes)
    else:
        initialise(model, recipe.seed)      # a pooling of its own, which pretraining did not touch
        values = read_backbone(weights, shapes, "classification")
    model.load_state_dict(values, strict=False)
    names = _names(recipe, section.classes, class_map, folder.parent.parent)
    return Loaded(model.to(device).eval().requires_grad_(False), Transform.of(recipe), names, section, recipe, weights, facts.step)


def _of_another_library(path: Path, device: str | torch.device, class_map: str | Path | None) -> Loaded:
    folder = read_folder(path)
    shapes = parameter_shapes(folder.section)
    weights = fitting(folder.source, folder.weights, shapes)
    model = build_model(folder.section)         # only now: what its configuration says may be larger than any memory
    model.load_state_dict(weights, strict=False)
    classes = folder.section.classes
    names = matching(tuple(read_class_map(Path(class_map))), classes, str(class_map)) if class_map else folder.class_names
    return Loaded(model.to(device).eval().requires_grad_(False), folder.transform, names or numbered(classes), folder.section, None,
                  folder.source, notes=folder.notes)


def checkpoint_of(path: Path, which: str | int = "last") -> Path:
    """The checkpoint folder that a run folder, a checkpoint or a file in one stands for.  Raises CheckpointError."""
    if path.is_file():
        path = path.parent
    if (path / FACTS).is_file():
        return path
    found = checkpoints_in(path / "checkpoints")
    if not found:
        if (path / MANIFEST).exists() or (path / WEIGHTS).exists():
            raise CheckpointError(f"{path}: has weights but no {FACTS}, which says what model they are of; name its run folder")
        raise CheckpointError(f"{path}: holds no checkpoint; wanted is a run folder with one, a checkpoint folder, or an exported folder "
                              "with config.json")
    if which == "last":
        return find_weights(path).parent
    if which == "best":
        best = read_facts(found[-1]).best
        if best is None:
            raise CheckpointError(f"{path}: no evaluation has named a best checkpoint; there are {_steps(found)}")
        which = int(best["step"])
    for folder in found:
        if str(which) in (folder.name, str(step_of(folder))):
            return folder
    raise CheckpointError(f"{path}: has no checkpoint of step {which}; there are {_steps(found)}")


def _steps(found: Sequence[Path]) -> str:
    return ", ".join(str(step_of(folder)) for folder in found)


def recipe_of(facts: RunFacts, folder: Path) -> Recipe:
    """The recipe that a checkpoint was written with; keys that are not known here, and do not matter for the model, are passed over with a
    word.  Raises CheckpointError."""
    read = read_saved(facts.recipe, folder / FACTS)
    if vital := of_model(read.unknown):
        raise CheckpointError(f"{folder / FACTS}: its model has settings that this version of vitscale does not know, and without which it "
                              f"would be another one: {listed(vital)}; use the one that wrote it, {facts.versions.get('vitscale', '?')}")
    model = read.recipe.model
    if isinstance(model, External) and (wrong := problems(model)):
        packages = ", ".join(f"{name} {version}" for name, version in facts.versions.items() if name not in ("vitscale", "torch", "python"))
        raise CheckpointError(f"{folder}: its backbone {model.family} is another package's ({packages or 'not known which'}); model.family "
                              f"{wrong[0][1]}")
    return read.recipe


def numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _names(recipe: Recipe, classes: int, given: str | Path | None, run: Path) -> tuple[str, ...]:
    """Given names, those that the run kept, those of data.class_map or beside the shards, or the numbers."""
    if given is not None:
        return matching(tuple(read_class_map(Path(given))), classes, str(given))
    found: tuple[str, ...] = ()
    where = recipe.data.class_map
    try:
        if (run / CLASSES).is_file():
            where = str(run / CLASSES)
            found = tuple(read_class_map(run / CLASSES))
        elif where is not None:
            found = tuple(read_class_map(Path(where)))
        elif (urls := recipe.data.val or recipe.data.train or ()) and not is_remote(urls[0]):
            where = str(Path(expand(urls[:1])[0]).parent / CLASSES)
            found = tuple(read_class_map(Path(where))) if Path(where).is_file() else ()
    except DataError:       # shards and names may well have stayed where the model was trained
        found = ()
    if found and classes and len(found) != classes:
        log.warning("%s names %s, the model has %d: numbers are shown in their place", where, plural(len(found), "class"), classes)
    return found if len(found) == classes else numbered(classes)


def matching(names: tuple[str, ...], classes: int, where: str) -> tuple[str, ...]:
    """The names, if there is one for each class.  Raises DataError."""
    if len(names) != classes:
        raise DataError(f"{where}: names {plural(len(names), 'class')}, the model tells {classes} apart; give each of its classes a line")
    return names
