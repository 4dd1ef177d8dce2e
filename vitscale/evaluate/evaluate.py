"""`vitscale eval`: one trained model on shards, from first to last, by one rank or many; what is found goes into eval.json."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import vitscale
from vitscale.checkpoint.load import Loaded, load
from vitscale.counts import plural
from vitscale.data.index import open_index
from vitscale.data.labels import LabelRule
from vitscale.errors import DataError, RecipeError
from vitscale.evaluate import neighbours, probe
from vitscale.evaluate.embed import check_layers
from vitscale.evaluate.metrics import accuracy, corrupted, several_labels, share
from vitscale.evaluate.outputs import Outputs, outputs
from vitscale.evaluate.sets import Set, corruptions_in, judge, read_mapping, summary
from vitscale.parallel.world import World
from vitscale.runfolder import EVALUATION, write_object

WHAT = ("accuracy", "knn", "linear", "few-shot", "retrieval")
NEED_TRAINING = ("knn", "linear", "few-shot")
FILE = EVALUATION
MAX_CLASSES = 1_000_000      # of labels where no head says how many there are


@dataclass(frozen=True)
class Request:
    """What is asked."""

    model: str
    what: tuple[str, ...] = ("accuracy",)
    shards: tuple[str, ...] = ()            # (): the run's data.val
    train: tuple[str, ...] = ()             # for probes; (): the run's data.train
    sets: tuple[Set, ...] = ()
    corrupted: Path | None = None
    mapping: Path | None = None             # of the classes of `subset` sets to the model's
    label: str | None = None                # None: the run's data.label, or cls
    class_map: Path | None = None           # of label names in the shards; None: the run's data.class_map
    layer: str = "pooled"
    k: int = 20
    faiss: bool = False
    checkpoint: str = "last"
    ema: bool = False
    batch: int = 64
    multi_label: bool = False               # the shards' samples have any number of labels each; those of a run say so themselves
    seed: int = 0


def evaluate(request: Request, world: World) -> dict[str, Any] | None:
    """The results on rank 0, None elsewhere.  Collective.  Raises UserError on every rank alike for what is asked in vain."""
    loaded = load(request.model, checkpoint=request.checkpoint, ema=request.ema, device=world.device)
    _refuse(request, loaded)
    data = loaded.recipe.data if loaded.recipe else None
    class_map = str(request.class_map) if request.class_map else data.class_map if data else None
    rule = LabelRule.of(request.label or (data.label if data else None) or "cls", class_map, _several(request, loaded))
    classes = len(loaded.class_names) or (loaded.recipe.model.classes if loaded.recipe else 0) or MAX_CLASSES

    def on(urls: Sequence[str], label: LabelRule = rule, classes: int = classes, **options: Any) -> Outputs | None:
        index = open_index(tuple(urls), group_members=data.group_members if data else "adjacent", image=data.image if data else None)
        return outputs(loaded, index, world, label=label, classes=classes, batch=request.batch, **options)

    found: dict[str, Any] = {
        "model": request.model, "weights": str(loaded.source), "step": loaded.step, "vitscale": vitscale.__version__, "time": time.time(),
        "ranks": world.size, "image": loaded.transform.image, "crop": loaded.transform.crop, "class_names": list(loaded.class_names),
    }
    results: dict[str, Any] = {}
    if request.what:
        val = request.shards or (data.val if data else None) or ()
        probing = any(one != "accuracy" for one in request.what)
        here = on(val, logits="accuracy" in request.what, layer=request.layer if probing else None)
        there = None
        if any(one in NEED_TRAINING for one in request.what):
            there = on(request.train or (data.train if data else None) or (), logits=False, layer=request.layer)
        if here is not None:
            found |= {"data": list(val), "images": len(here.ids), "unreadable": here.bad}
            results |= _on(request, here, there, world)
    for one in request.sets:
        mapping = read_mapping(request.mapping, loaded.class_names) if request.mapping and one.kind == "subset" else None
        its = on(one.urls, replace(rule, several=one.kind == "real"), classes if mapping is None else len(mapping))
        if its is not None and its.logits is not None:
            labels = its.labels if mapping is None else mapping[its.labels]
            results.setdefault("sets", {})[one.name] = {"kind": one.kind, "unreadable": its.bad, **judge(one.kind, its.logits, labels)}
    if request.corrupted is not None:
        errors = {}
        for key, urls in corruptions_in(request.corrupted).items():
            its = on(urls, replace(rule, several=False))
            if its is not None and its.logits is not None:
                errors[key] = 1 - share(its.logits.argmax(axis=1) == its.labels)["value"]
        if errors:
            results["corrupted"] = corrupted(errors)
    return found | {"results": results} if world.is_first else None


def _refuse(request: Request, loaded: Loaded) -> None:
    """Raises UserError for what is asked in vain."""
    for one in request.what:
        if one not in WHAT:
            raise RecipeError(f"--what {one}: wants some of {', '.join(WHAT)}")
    check_layers(loaded.model, [request.layer])
    if not loaded.class_names and ("accuracy" in request.what or request.sets or request.corrupted):
        raise RecipeError(f"{request.model}: was trained without labels, or lost its head, and has no answers to evaluate; "
                          "ask for --what knn, linear, few-shot or retrieval")
    data = loaded.recipe.data if loaded.recipe else None
    if _several(request, loaded) and (probes := [one for one in request.what if one != "accuracy"]):
        raise DataError(f"{request.model}: its samples have several labels each, and --what {','.join(probes)} wants one: ask for accuracy")
    if request.what and not (request.shards or (data and data.val)):
        raise DataError(f"{request.model}: no recipe names its validation shards; give them with --data, such as --data 'data/val-*.tar'")
    if any(one in NEED_TRAINING for one in request.what) and not (request.train or (data and data.train)):
        raise DataError(f"{request.model}: {', '.join(NEED_TRAINING)} learn from training samples; give their "
                        "shards with --train, such as --train 'data/train-*.tar'")


def _several(request: Request, loaded: Loaded) -> bool:
    return request.multi_label or (loaded.recipe is not None and loaded.recipe.data.multi_label)


def _on(request: Request, here: Outputs, there: Outputs | None, world: World) -> dict[str, Any]:
    """What is asked of the validation samples, on rank 0."""
    results: dict[str, Any] = {}
    if here.logits is not None and here.labels.ndim == 2:
        results["several_labels"] = several_labels(here.logits, here.labels)
    elif here.logits is not None:
        results["accuracy"] = accuracy(here.logits, here.labels)
    val = here.features
    if val is not None and "retrieval" in request.what:
        results["retrieval"] = neighbours.retrieval(val, here.labels, faiss=request.faiss, device=world.device)
    if val is None or there is None or there.features is None:
        return results
    train, labels = there.features, there.labels
    if "knn" in request.what:
        results["knn"] = neighbours.knn(train, labels, val, here.labels, request.k, request.faiss, world.device)
    if "linear" in request.what:
        results["linear"] = probe.linear(train, labels, val, here.labels, request.seed)
    if "few-shot" in request.what:
        results["few-shot"] = probe.few_shot(train, labels, val, here.labels)
    return results


def write_results(path: Path, found: dict[str, Any]) -> None:
    """Replace eval.json, whose results of other kinds stay if they are of the same weights on the same shards."""
    try:
        before = json.loads(path.read_bytes())
        same = all(before.get(key) == found.get(key, before.get(key)) for key in ("weights", "step", "image", "crop", "data"))
        found = (before if same else {}) | found | {"results": (before["results"] if same else {}) | found["results"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    write_object(path, _finite(found))


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What is said on the terminal."""
    results, names = found["results"], found["class_names"]
    yield f"{found['model']}: {found['weights']}" + (f", {plural(found['images'], 'image')}" if "images" in found else "")
    if found.get("unreadable"):
        yield f"  {plural(found['unreadable'], 'sample')} could not be read, left out"
    if one := results.get("accuracy"):
        yield f"  top-1        {summary(one['top1'])}"
        if "top5" in one:
            yield f"  top-5        {summary(one['top5'])}"
        worst = sorted((row for row in one["classes"] if row["count"]), key=lambda row: row["value"])[:3]
        yield "  worst        " + ", ".join(f"{names[row['class']]} {row['value']:.1%}" for row in worst)
        if one["confusions"]:
            yield "  mistaken     " + ", ".join(f"{names[a]} for {names[b]} {count} x" for a, b, count in one["confusions"][:3])
        about = one["calibration"]
        yield (f"  calibration  expected error {about['expected_error']:.2%}, NLL {about['negative_log_likelihood']:.4f}, "
               f"Brier {about['brier']:.4f}")
    if one := results.get("several_labels"):
        yield f"  mAP          {one['map']:.2%} over {plural(sum(row['count'] > 0 for row in one['classes']), 'class')}; F1 {one['f1']:.2%}"
        yield f"  hits@1       {summary(one['hits1'])}"
        if "hits5" in one:
            yield f"  hits@5       {summary(one['hits5'])}"
        worst = sorted((row for row in one["classes"] if row["count"]), key=lambda row: row["value"])[:3]
        yield "  worst        " + ", ".join(f"{names[row['class']]} {row['value']:.1%}" for row in worst)
    if one := results.get("knn"):
        yield f"  {one['k']:>2}-NN        {summary(one['top1'])}"
    if one := results.get("linear"):
        yield f"  linear probe {summary(one['top1'])}; C {one['strength']:g}"
    if one := results.get("few-shot"):
        yield "  few-shot     " + ", ".join(f"{shots}: {row['top1']:.1%} ± {row['deviation']:.1%}" for shots, row in one.items())
    if one := results.get("retrieval"):
        yield "  retrieval    " + ", ".join(f"{name} {row['value']:.1%}" for name, row in one.items() if name.startswith("recall")) + (
            f", mAP {one['map']:.1%}")
    for name, one in results.get("sets", {}).items():
        yield f"  {name:<12} {summary(one['top1'])} ({one['kind']})"
    if one := results.get("corrupted"):
        yield f"  corrupted    mean error {one['mean_error']:.2%}" + (f", mCE {one['mce']:.1%} of AlexNet's" if "mce" in one else "")
