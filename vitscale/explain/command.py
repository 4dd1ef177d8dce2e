"""`vitscale explain`: from a trained model and images to figures and a page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitscale.checkpoint.load import Loaded
from vitscale.counts import plural
from vitscale.data.bad import BadSample
from vitscale.evaluate.images import Several
from vitscale.explain.features import feature_colours
from vitscale.explain.figures import FigureFolder, attention_sheet, distance_chart, filter_sheet, image_sheet, position_sheet
from vitscale.explain.filters import embedding_filters, position_similarity
from vitscale.explain.flow import seconds_of
from vitscale.explain.look import Unexplained, View, attending, check_head, check_layer, num_heads, view_of
from vitscale.explain.methods import METHODS, check_methods
from vitscale.explain.page import entry, page, size_of, with_colours
from vitscale.explain.study import Study, study
from vitscale.models import VisionTransformer

_LONG_FLOW_S = 10.0         # an image: a flow that takes longer is left out unless it is asked for
_OVERVIEW = 8               # images in the overview


@dataclass(frozen=True)
class Wish:
    """What the command line asks for.  Empty: all that the model can do; all layers; all heads."""

    methods: Sequence[str] = ()
    layers: Sequence[int] = ()          # of the figures of attention
    heads: Sequence[int] = ()
    target: str | None = None           # the class that is explained, by name or number; None: the one that the model says
    limit: int = 24                     # images, the first ones
    page_bytes: int = 100_000_000       # once the page is as large, further images are in the figures alone


@dataclass(frozen=True)
class ExplainRequest:
    """A wish, checked against the model."""

    methods: list[str]
    layers: list[int]
    heads: list[int]
    target: int | None


def plan(loaded: Loaded, wish: Wish) -> ExplainRequest:
    """Raises Unexplained for a method, a layer, a head or a class that the model has not got, naming those that it has."""
    model, names = loaded.model, loaded.class_names
    methods = check_methods(model, wish.methods)
    if not names:
        for name in wish.methods:
            if METHODS[name].by_class:
                raise Unexplained(f"{name} explains a class, and this model has no classifier: it was trained without labels")
        methods = [name for name in methods if not METHODS[name].by_class]
    layers: list[int] = []
    heads: list[int] = []
    if isinstance(model, VisionTransformer):
        count = (loaded.section.image // model.patch_embed.patch) ** 2 + model.before
        if "flow" in methods and "flow" not in wish.methods and (needed := seconds_of(len(model.blocks), count)) > _LONG_FLOW_S:
            _say(f"flow left out: it would take about {needed:.0f} s for each image; ask for it with --method flow")
            methods.remove("flow")
        layers = [check_layer(model, layer) for layer in wish.layers] or list(range(len(model.blocks)))
        heads = [check_head(model, head) for head in wish.heads] or list(range(num_heads(model)))
    elif wish.layers or wish.heads:
        attending(model)        # raises, and says why
    elif not wish.methods:
        _say(f"{type(model).__name__} is explained through its gradients and features ({', '.join(methods)}): methods of attention want "
             "every token to look at every other")
    return ExplainRequest(methods, layers, heads, None if wish.target is None else _class(wish.target, names))


def _class(wanted: str, names: Sequence[str]) -> int:
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise Unexplained(f"there is no class {wanted}; this model's classes are {some or 'none: it was trained without labels'}")


def explain(loaded: Loaded, title: str, images: Several, wish: Wish, out: Path) -> list[tuple[str, str]]:
    """Write figures and OUT/index.html; returns the images that could not be read and why.  If none could, nothing is written.

    Raises Unexplained before anything is written.
    """
    wanted = plan(loaded, wish)
    files, names, view = FigureFolder(out), loaded.class_names, view_of(loaded.model)
    bad: list[tuple[str, str]] = []
    studies: list[Study] = []
    entries: list[dict[str, Any]] = []
    size = 0
    for number in range(min(len(images), wish.limit)):
        name = images.name(number)
        try:
            found = study(loaded, name, loaded.transform.pixels(images.read(number)), wanted.methods, wanted.target)
        except BadSample as error:
            bad.append((name, f"{error.reason}: {error}"))
            continue
        if "attention" in wanted.methods:
            files.save(attention_sheet(found, names, wanted.layers, wanted.heads, view), f"{files.stem(name)}-attention.png")
        if size < wish.page_bytes:
            entries.append(entry(found, names, wanted.methods))
            size += size_of(entries[-1])
        studies.append(replace(found, attention=None, rollout=None))        # large, and nothing below wants them
    if not studies:
        return bad
    _of_the_model(loaded, wanted, wish, studies, files)
    colours = feature_colours(torch.stack([one.features for one in studies])) if "pca" in wanted.methods else None
    patch = getattr(loaded.section, "patch", loaded.section.image // studies[0].grid[0])
    for number, one in enumerate(studies):
        its = None if colours is None else colours[number:number + 1]
        files.save(image_sheet([one], names, wanted.methods, its, patch), f"{files.stem(one.name)}.png")
    if len(studies) > 1:
        files.save(image_sheet(studies[:_OVERVIEW], names, wanted.methods, colours, patch), "overview.png")
    if colours is not None:
        entries = [with_colours(one, its) for one, its in zip(entries, colours, strict=False)]
    left = len(studies) - len(entries)
    if len(images) > wish.limit:
        _say(f"the first {wish.limit} of {plural(len(images), 'image')}; --limit takes more")
    if left:
        _say(f"{left} of {len(studies)} images are in the figures alone: the page would grow beyond {wish.page_bytes / 1e6:.0f} MB")
    files.write(page(title, _about(loaded, view, studies[0].grid), view, studies[0].grid, wanted.methods, entries), "index.html")
    print(f"{plural(len(studies), 'image')} explained by {', '.join(wanted.methods)}")
    print(f"wrote {plural(len(files.written), 'file')} into {out}; open {out / 'index.html'}")
    return bad


def _about(loaded: Loaded, view: View, grid: tuple[int, int]) -> str:
    section = loaded.section
    inside = f", {plural(view.layers, 'layer')} of {view.heads} heads" if view.layers else ""
    step = "" if loaded.step is None else f"; step {loaded.step}"
    return f"{section.family}{inside}; images of {section.image} x {section.image} pixels, {grid[0]} x {plural(grid[1], 'place')}{step}"


def _of_the_model(loaded: Loaded, wanted: ExplainRequest, wish: Wish, studies: Sequence[Study], files: FigureFolder) -> None:
    model, section = loaded.model, loaded.section
    for method, draw in (("filters", lambda: filter_sheet(*embedding_filters(model))),
                         ("positions", lambda: position_sheet(position_similarity(model)))):
        if method in wanted.methods:
            try:
                files.save(draw(), f"{method}.png")
            except Unexplained as error:
                if method in wish.methods:
                    raise
                _say(f"{method} left out: {error}")
    if "distance" in wanted.methods:
        distances = torch.stack([one.distance for one in studies if one.distance is not None])
        files.save(distance_chart(distances.mean(dim=0), section.image, len(studies)), "distance.png")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
