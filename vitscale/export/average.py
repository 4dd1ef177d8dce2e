"""Checkpoints made one by averaging their weights: a soup (Wortsman et al. 2022), or the last of a run (Izmailov et al. 2018)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitscale.checkpoint.load import Loaded, load
from vitscale.checkpoint.store import checkpoints_in
from vitscale.errors import CheckpointError
from vitscale.models import build_model

Judge = Callable[[Loaded], float]


def gather(sources: Sequence[str], last: int | None = None, ema: bool = False) -> list[Loaded]:
    """The models of all sources; `last`: of each run its last so many checkpoints.  Raises CheckpointError for what cannot be averaged."""
    paths: list[str | Path] = []
    for source in sources:
        folder = Path(source) if Path(source).is_dir() else Path("runs") / source
        found = checkpoints_in(folder / "checkpoints")[-last:] if last else []
        paths += found or [source]
    models = [load(path, ema=ema) for path in paths]
    if len(models) < 2:
        raise CheckpointError("an average wants two checkpoints at least; name several, or give --last N for those of a run")
    first = models[0]
    for other in models[1:]:
        if other.section != first.section:
            odd = [key for key, value in first.section.model_dump().items() if getattr(other.section, key, None) != value]
            raise CheckpointError(f"{other.source}: is another model than {first.source}: model.{', model.'.join(odd) or 'family'} differ")
        if other.class_names != first.class_names:
            raise CheckpointError(f"{other.source}: its classes are named or ordered otherwise than those of {first.source}")
    return models


def mean_of(models: Sequence[Loaded]) -> Loaded:
    """The model whose every weight is the mean of theirs, added up in fp64."""
    weights: dict[str, Tensor] = {}
    for name in dict(models[0].model.named_parameters()):
        total = sum(one.model.get_parameter(name).double() for one in models)
        assert isinstance(total, Tensor)
        weights[name] = (total / len(models)).float()
    model = build_model(models[0].section)
    model.load_state_dict(weights, strict=False)
    return replace(models[0], model=model.eval().requires_grad_(False), step=None)


def greedy(models: Sequence[Loaded], judge: Judge) -> Iterator[tuple[Loaded, float, bool]]:
    """The greedy soup (algorithm 1 of the paper): from the best on, each joins if the average of those kept does not get worse by it.

    Yields (model, the score of the average with it, whether it stays).
    """
    ranked = sorted(((judge(model), number, model) for number, model in enumerate(models)), key=lambda row: (-row[0], row[1]))
    kept, best = [ranked[0][2]], ranked[0][0]
    yield ranked[0][2], best, True
    for _, _, model in ranked[1:]:
        score = judge(mean_of([*kept, model]))
        stays = score >= best
        if stays:
            kept.append(model)
            best = score
        yield model, score, stays


def judge_on(shards: tuple[str, ...], device: torch.device, batch: int = 64) -> Judge:
    """Top-1 on labelled shards; () stands for each model's own data.val."""
    from vitscale.data.index import open_index
    from vitscale.data.labels import LabelRule
    from vitscale.evaluate.outputs import outputs
    from vitscale.parallel.world import World

    def top1(loaded: Loaded) -> float:
        data = loaded.recipe.data if loaded.recipe else None
        urls = shards or (data.val if data else None) or ()
        if not urls:
            raise CheckpointError(f"{loaded.source}: a greedy soup is chosen on held-out shards; name them with --data")
        rule = LabelRule.of((data.label if data else None) or "cls", data.class_map if data else None)
        loaded.model.to(device)
        found = outputs(loaded, open_index(urls), World(0, 1, 0, 1, device, None), label=rule, classes=len(loaded.class_names), batch=batch)
        assert found is not None
        assert found.logits is not None
        return float((found.logits.argmax(axis=1) == found.labels).mean())

    return top1
