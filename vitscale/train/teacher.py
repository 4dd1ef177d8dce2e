"""A frozen teacher: a run of ours, or a folder of transformers' or timm's, that looks at the student's images in its own way."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.checkpoint.foreign import is_foreign_folder, library_of
from vitscale.checkpoint.load import Loaded, checkpoint_of, load
from vitscale.checkpoint.weights import refuse_not_finite
from vitscale.counts import plural
from vitscale.errors import CheckpointError, RecipeError
from vitscale.files import sha256_of
from vitscale.models.vit import VisionTransformer
from vitscale.objectives import Task
from vitscale.objectives.gram import shrunk
from vitscale.objectives.task import Frozen
from vitscale.parallel.engine import Engine
from vitscale.recipe import Recipe
from vitscale.recipe.objectives import Ibot
from vitscale.recipe.teacher import CONFIG_FILE, RECIPE_FILE

Colour = tuple[float, float, float]


class FrozenTeacher:
    """images (b, C, S, S), normalised as the student's are -> logits (b, classes), or features of patches.

    They are normalised as the teacher was trained, and resized if it was trained at another size.
    """

    def __init__(self, model: nn.Module, size: int, mean: Colour, std: Colour, recipe: Recipe, device: torch.device) -> None:
        self.model, self.size = model.eval().requires_grad_(False), size
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.parallel.precision == "bf16")
        ours, theirs = recipe.data.augment, torch.tensor([mean, std])
        # (x std + mean - mean') / std', as one factor and one shift
        self.factor = (torch.tensor(ours.std) / theirs[1])[:, None, None].to(device)
        self.shift = ((torch.tensor(ours.mean) - theirs[0]) / theirs[1])[:, None, None].to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        with self.autocast:
            output: Any = self.model(self._given(images))
        return output if isinstance(output, Tensor) else output.logits

    @torch.no_grad()
    def patches(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features after the last norm (b, h w, D) of a Vision Transformer, brought to the grid (h, w)."""
        assert isinstance(self.model, VisionTransformer)
        images = self._given(images)
        with self.autocast:
            tokens = self.model.forward_features(images, None, ("norm",))["norm"]
        return shrunk(tokens[:, self.model.before:], self.model.patch_embed.grid(images), grid)

    def _given(self, images: Tensor) -> Tensor:
        images = images * self.factor + self.shift if images.shape[1] == 3 else images
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True)
        return images


def give_teacher(task: Task, recipe: Recipe, engine: Engine) -> None:
    """Read the frozen companion of a task that has one.  Raises RecipeError or CheckpointError for one that cannot be used."""
    for one in task.companions():
        if isinstance(one, Frozen):
            teacher = _read_teacher(Path(one.source), recipe, engine.world.device)
            refuse_not_finite(Path(one.source), dict(teacher.model.named_parameters()))
            if one.grid is not None and not isinstance(teacher.model, VisionTransformer):
                raise RecipeError(f"{one.source}: no Vision Transformer of a run or an export, whose patches could be compared")
            teacher.size = one.image or teacher.size
            if isinstance(teacher.model, VisionTransformer) and teacher.size % teacher.model.patch_embed.patch:
                raise RecipeError(f"{one.source}: its patch {teacher.model.patch_embed.patch} does not divide the {teacher.size} pixels "
                                  "that it would be shown (objective.gram_image)")
            engine.hold(teacher.model, "forward" if one.grid is None else "forward_features")
            task.teacher = teacher if one.grid is None else partial(teacher.patches, grid=one.grid)


def frozen_hash(recipe: Recipe) -> str | None:
    """sha256 over the weights that the recipe's frozen companion has now, so that a run goes on with what it began with; None: it has
    none.  Raises CheckpointError."""
    if recipe.objective.frozen is None:
        return None
    folder = Path(recipe.objective.frozen)
    if not is_foreign_folder(folder):
        folder = checkpoint_of(folder)
    return hashlib.sha256("".join(sha256_of(path) for path in sorted(folder.glob("*.safetensors"))).encode()).hexdigest()


def _key(recipe: Recipe) -> str:
    return "objective.gram_teacher" if isinstance(recipe.objective, Ibot) else "objective.teacher"


def _read_teacher(folder: Path, recipe: Recipe, device: torch.device) -> FrozenTeacher:
    if (folder / RECIPE_FILE).is_file() or (is_foreign_folder(folder) and library_of(folder) != "transformers"):
        return _of_ours(load(folder), recipe, device)
    if (folder / CONFIG_FILE).is_file():
        return _of_transformers(folder, recipe, device)
    raise RecipeError(f"{_key(recipe)}: {folder} holds neither {RECIPE_FILE} (a run's folder) nor {CONFIG_FILE} (transformers')")


def _of_ours(loaded: Loaded, recipe: Recipe, device: torch.device) -> FrozenTeacher:
    """Of a run, or of a folder that is read as a model of ours."""
    transform = loaded.transform
    if transform.channels != recipe.model.channels:
        raise RecipeError(f"{_key(recipe)}: {loaded.source} wants {plural(transform.channels, 'channel')}, model.channels is "
                          f"{recipe.model.channels}")
    return FrozenTeacher(loaded.model, transform.image, transform.mean, transform.std, recipe, device)


def _of_transformers(folder: Path, recipe: Recipe, device: torch.device) -> FrozenTeacher:
    """Safetensors only, and no code from the folder."""
    try:
        from transformers import AutoModelForImageClassification
    except ImportError:
        raise RecipeError(f"{_key(recipe)}: {folder} is a folder of transformers'; pip install 'vitscale[hf]' to read it") from None
    try:
        model = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
        about = folder / "preprocessor_config.json"
        given = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{_key(recipe)}: {folder} cannot be read by transformers ({error})") from None
    ours = recipe.data.augment
    mean, std = tuple(given.get("image_mean", ours.mean)), tuple(given.get("image_std", ours.std))
    return FrozenTeacher(model, int(getattr(model.config, "image_size", recipe.model.image)), mean, std, recipe, device)
