"""The coordinate check (Yang et al. 2022, appendix D.1): after a few steps, does what a model computes depend on its width?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vitscale.models import build_model, initialise
from vitscale.optim.build import build_optimizer
from vitscale.recipe import Recipe, Vit
from vitscale.shapes.vit import shape_of

STEPS = 8
SEEDS = 3
BATCH = 32
LIMIT = 0.25  # of the slope of log size over log width: 0 under muP, about 1/2 to 1 for standard parametrisation


def coordinate_check(recipes: Sequence[Recipe], steps: int = STEPS, seeds: int = SEEDS) -> dict[str, Any]:
    """Train the models of different width for `steps` steps on one fixed batch at the recipes' rate; compare how far coordinates move.

    All have the depth of the first, so that the width alone differs.  What is compared is the root mean square of the change since the
    initial values, of each block's output and of the logits: under muP its slope over the width (in logarithms) is near 0.
    -> {passed, verdict, limit, widths, slopes {what: slope}, sizes {what: [size at each width]}}
    """
    first = recipes[0].model
    assert isinstance(first, Vit)
    depth = shape_of(first).depth
    by_width: dict[int, Recipe] = {}
    for recipe in recipes:
        assert isinstance(recipe.model, Vit)
        shape = shape_of(recipe.model)
        by_width.setdefault(shape.width, recipe.model_copy(update={"model": recipe.model.model_copy(update={"depth": depth})}))
    widths = sorted(by_width)
    sizes: dict[str, list[float]] = {}
    for width in widths:
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            for name, size in _moved(by_width[width], steps, seed).items():
                found.setdefault(name, []).append(size)
        for name, told in found.items():
            sizes.setdefault(name, []).append(float(np.exp(np.mean(np.log(np.maximum(told, 1e-12))))))
    slopes = {name: float(np.polyfit(np.log(widths), np.log(told), 1)[0]) for name, told in sizes.items()}
    worst = max(slopes, key=lambda name: abs(slopes[name]))
    passed = all(np.isfinite(slope) and abs(slope) <= LIMIT for slope in slopes.values())
    text = (f"{worst} moves as width^{slopes[worst]:.2f} over widths {', '.join(map(str, widths))}, the most of all; "
            f"{'within' if passed else 'outside'} +-{LIMIT:g}")
    return {"passed": passed, "verdict": text, "limit": LIMIT, "steps": steps, "seeds": seeds, "widths": widths, "slopes": slopes,
            "sizes": sizes}


def _moved(recipe: Recipe, steps: int, seed: int) -> dict[str, float]:
    """Root mean square of what the training has changed, for each block's output and the logits."""
    model_section = recipe.model
    torch.manual_seed(seed)
    model = build_model(model_section)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, model_section.channels, model_section.image, model_section.image, generator=generator)
    labels = torch.randint(model_section.classes, (BATCH,), generator=generator)
    optimizer = build_optimizer(model, recipe.optim)

    def coordinates() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            names = [f"blocks.{i}" for i in range(len(model.units()))]
            found = model.forward_features(images, None, [*names, "pooled"])
            return {**{name: found[name] for name in names}, "logits": model.classify(found["pooled"])}  # type: ignore[operator]

    before = coordinates()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return {name: float((value - before[name]).square().mean().sqrt()) for name, value in coordinates().items()}
