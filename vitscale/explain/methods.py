"""The methods there are, by name: what each shows and what it wants of a model."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from vitscale.explain.flow import attention_flow
from vitscale.explain.gradcam import grad_cam
from vitscale.explain.look import Look, Unexplained, attending
from vitscale.explain.rollout import gradient_rollout, relevance, rollout
from vitscale.models import Backbone, VisionTransformer

MapOf = Callable[[Look, Tensor], Tensor]        # a look at images and a class of each (B,) -> maps (B, down, across)


def _rollout(look: Look, classes: Tensor) -> Tensor:
    return read(look, rollout(look.maps))


def _flow(look: Look, classes: Tensor) -> Tensor:
    return attention_flow(look.maps, look.reading)[:, look.before:].unflatten(1, look.grid)


def _relevance(look: Look, classes: Tensor) -> Tensor:
    return read(look, relevance(look.maps, look.map_gradients(classes)))


def _gradient_rollout(look: Look, classes: Tensor) -> Tensor:
    return read(look, gradient_rollout(look.maps, look.map_gradients(classes)))


def _grad_cam(look: Look, classes: Tensor) -> Tensor:
    return grad_cam(*look.cam(classes))


def read(look: Look, matrix: Tensor) -> Tensor:
    """What each last token owes to each input token (B, N, N) -> what the classifier owes to each patch (B, down, across)."""
    return (look.reading[:, None] @ matrix)[:, 0, look.before:].unflatten(1, look.grid)


@dataclass(frozen=True)
class Method:
    title: str
    about: str                      # one sentence: how to read it
    attends: bool = True            # wants attention among all tokens
    by_class: bool = False          # another map for another class
    heat: MapOf | None = None       # of those that give one number for each place of an image
    whole: bool = False             # shows the model, not an image


METHODS: dict[str, Method] = {
    "patches": Method("Patches", "The image as the model is given it, cut into patches.", attends=False),
    "attention": Method("Attention", "Whom a token looks at in one layer and head."),
    "rollout": Method("Attention rollout", "What is in the answer of each patch, through all layers (Abnar & Zuidema 2020).",
                      heat=_rollout),
    "flow": Method("Attention flow", "What could at most have come from each patch, attention as pipes (Abnar & Zuidema 2020).",
                   heat=_flow),
    "relevance": Method("Relevance", "What speaks for the class: attention times its gradient, layer upon layer (Chefer et al. 2021).",
                        by_class=True, heat=_relevance),
    "gradient-rollout": Method("Gradient rollout", "Rollout of attention times its gradient for the class, every layer alike.",
                               by_class=True, heat=_gradient_rollout),
    "grad-cam": Method("Grad-CAM", "Where the last features speak for the class (Selvaraju et al. 2017): from gradients alone.",
                       attends=False, by_class=True, heat=_grad_cam),
    "pca": Method("Features", "Equal colours, equal features: their three strongest principal components.", attends=False),
    "similarity": Method("Similarity", "How alike the features of two places are, as a cosine.", attends=False),
    "filters": Method("Embedding filters", "Principal components of the first layer's filters.", attends=False, whole=True),
    "positions": Method("Positions", "How alike the position of each patch is to all others', as a cosine.", attends=False, whole=True),
    "distance": Method("Attention distance", "How far each head looks, in pixels.", whole=True),
}


def check_methods(model: Backbone, names: Sequence[str]) -> list[str]:
    """The names, or where there are none those of all methods that the model can do.

    Raises Unexplained for an unknown name, listing all, and for one that wants what the model lacks, naming what works.
    """
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise Unexplained(f"there is no method {name}{hint}; the methods are {', '.join(METHODS)}")
        if METHODS[name].attends:
            attending(model, METHODS[name].title.lower())
    attends = isinstance(model, VisionTransformer)
    return list(dict.fromkeys(names)) or [name for name, method in METHODS.items() if attends or not method.attends]
