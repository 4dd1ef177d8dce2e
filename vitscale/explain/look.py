"""One forward pass of some images, kept with its graph: what every explanation is read from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.errors import UserError
from vitscale.models import Backbone, ConvNeXt, DistilledVisionTransformer, VisionTransformer
from vitscale.models.heads import AttentionPool


class Unexplained(UserError, ValueError):
    """A model lacks what was asked of it: a layer, a head, a class, attention.  The message says what there is."""


def attending(model: Backbone, what: str = "attention maps") -> VisionTransformer:
    """The model, if all of its tokens can look at each other.  Raises Unexplained for one without such attention."""
    if isinstance(model, VisionTransformer):
        return model
    kind = type(model).__name__
    why = "its attention stays inside windows" if kind == "SwinTransformer" else "it has no attention"
    raise Unexplained(f"{kind} gives no {what}: {why}; grad-cam, similarity and pca work for it")


def check_layer(model: Backbone, layer: int, what: str = "attention maps") -> int:
    """The number of a block, from 0; from the last one back if negative.  Raises Unexplained, which says how many there are."""
    depth = len(attending(model, what).blocks)
    if not -depth <= layer < depth:
        raise Unexplained(f"there is no layer {layer}; this model's layers are 0 to {depth - 1}")
    return layer % depth


def num_heads(model: VisionTransformer) -> int:
    return int(model.width // model.head_width)


def check_head(model: Backbone, head: int) -> int:
    """The number of a head.  Raises Unexplained, which says how many there are."""
    heads = num_heads(attending(model))
    if not 0 <= head < heads:
        raise Unexplained(f"there is no head {head}; this model's heads are 0 to {heads - 1}")
    return head


@dataclass(frozen=True)
class View:
    """What figures and the page have to know of a model."""

    tokens: tuple[str, ...] = ()        # what stands before the patches
    layers: int = 0                     # that have attention maps
    heads: int = 0
    reader: str = "the classifier"      # what it reads the last tokens by


def view_of(model: Backbone) -> View:
    if not isinstance(model, VisionTransformer):
        return View()
    classes = 0 if model.cls_token is None else model.class_tokens
    distilled = isinstance(model, DistilledVisionTransformer)
    tokens = [f"class token {number}" for number in range(classes)] if classes > 1 else ["class token"] * classes
    tokens += ["distillation token"] * distilled
    tokens += [f"register {number}" for number in range(model.before - len(tokens))]
    reader = {"mean": "the mean of all patches", "token_mean": "the class token and the mean of all patches",
              "attention": "the probe of attention pooling"}.get(
        model.pool, "the class token" if classes == 1 else "the mean of the class tokens")
    return View(tuple(tokens), len(model.blocks), num_heads(model), "the mean of class and distillation token" if distilled else reader)


class Look:
    """What a model computed for images (B, C, height, width), normalised: logits, attention maps, features, and gradients by class.

    The model is to be in evaluation; its parameters' own gradients are left alone.
    """

    def __init__(self, model: Backbone, images: Tensor) -> None:
        self.model, self.images = model, images.detach().clone().requires_grad_()
        self.attends = isinstance(model, VisionTransformer)
        self._maps = [f"blocks.{layer}.attention" for layer in range(len(model.blocks))] if isinstance(model, VisionTransformer) else []
        self._last, self._cam = _places(model)
        with torch.enable_grad():
            self.found = model.forward_features(self.images, None, {*self._maps, self._last, self._cam, *model.head_inputs})
            self.logits = model.forward_head(self.found)        # (B, classes)
        shape = self.found[self._last].shape
        if not self.attends and (len(shape) != 4 or any(images.shape[-1] % side for side in shape[1:3])):
            raise Unexplained(f"{type(model).__name__} cannot be explained: its {self._last} is {tuple(shape)}, and is to be (B, height, "
                              f"width, D), with a side that divides the {images.shape[-1]} pixels of an image")

    @property
    def grid(self) -> tuple[int, int]:
        """Places down and across: of a ViT its patches, of Swin and ConvNeXt what the last stage has left of them."""
        if isinstance(self.model, VisionTransformer):
            return self.model.patch_embed.grid(self.images)
        height, width = self.found[self._last].shape[1:3]
        return height, width

    @property
    def before(self) -> int:
        """Tokens that stand before the patches."""
        return self.model.before if isinstance(self.model, VisionTransformer) else 0

    @cached_property
    def maps(self) -> Tensor:
        """(L, B, H, N, N): row i of a map is how much token i looks at each token.  Raises Unexplained for a model without."""
        attending(self.model)
        return torch.stack([self.found[name] for name in self._maps]).detach()

    @cached_property
    def features(self) -> Tensor:
        """(B, down, across, D): of each place, after the last norm (of ConvNeXt: after the last stage)."""
        return self._placed(self.found[self._last]).detach()

    @cached_property
    def reading(self) -> Tensor:
        """(B, N), rows sum to 1: how much of what the classifier sees is taken from each of the last tokens.

        All of it from the class token; from DeiT's two tokens in halves; from all patches alike where the pooling is the mean; as the
        probe looks, averaged over its heads, where it is attention.
        """
        model, count = attending(self.model), self.maps.shape[-1]
        reading = torch.zeros(len(self.images), count)
        if isinstance(model.attn_pool, AttentionPool):
            weights = _probe_weights(model.attn_pool, self.found[self._last][:, model.pooled_from:]).detach()
            return F.pad(weights, (model.pooled_from, 0))
        if model.pool == "mean":
            reading[:, model.pooled_from:] = 1
        elif model.pool == "token_mean":        # half of what is read, each
            reading[:, 0], reading[:, model.pooled_from:] = 1, 1 / (count - model.pooled_from)
        else:
            reading[:, :model.class_tokens + isinstance(model, DistilledVisionTransformer)] = 1
        return (reading / reading.sum(dim=1, keepdim=True)).to(self.maps)

    @property
    def predicted(self) -> Tensor:
        """(B,) int64: the class with the largest logit of each image."""
        return self.logits.detach().argmax(dim=1)

    def check_classes(self, classes: Tensor | Sequence[int] | int | None) -> Tensor:
        """One class for all images, one each, or None for the predicted ones -> (B,) int64.  Raises Unexplained."""
        count = self.logits.shape[1]
        wanted = self.predicted if classes is None else torch.as_tensor(classes).expand(len(self.images))
        if ((wanted < 0) | (wanted >= count)).any():
            raise Unexplained(f"there is no class {int(wanted.max() if wanted.max() >= count else wanted.min())}; "
                              f"this model's classes are 0 to {count - 1}")
        return wanted.to(self.logits.device)

    def map_gradients(self, classes: Tensor | Sequence[int] | int | None = None) -> Tensor:
        """(L, B, H, N, N): by how much a class's logit would change with each number of the maps."""
        attending(self.model)
        gradients = torch.autograd.grad(self._scores(classes, self.logits), [self.found[name] for name in self._maps], retain_graph=True)
        return torch.stack(gradients)

    def cam(self, classes: Tensor | Sequence[int] | int | None = None) -> tuple[Tensor, Tensor]:
        """(B, down, across, D) twice: the features that Grad-CAM reads, and by how much a class's logit would change with them."""
        features = self.found[self._cam]
        logits = _answer_held(self.model, features) if isinstance(self.model, ConvNeXt) else self.logits
        gradient, = torch.autograd.grad(self._scores(classes, logits), features, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise Unexplained(f"{type(self.model).__name__} gives no grad-cam: its logits are not computed from its {self._cam}")
        return self._placed(features).detach(), self._placed(gradient)

    def _scores(self, classes: Tensor | Sequence[int] | int | None, logits: Tensor) -> Tensor:
        return logits.gather(1, self.check_classes(classes)[:, None]).sum()        # images do not reach each other's logits

    def _placed(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.before:].unflatten(1, self.grid) if self.attends else tokens


def _places(model: Backbone) -> tuple[str, str]:
    """Names of the last features of every place, and of those that Grad-CAM reads.

    A ViT's are those before its last block: after it only what the class token sees still has a gradient.
    """
    names = model.feature_names()
    if isinstance(model, VisionTransformer):
        depth = len(model.blocks)
        return "norm", f"blocks.{depth - 2}" if depth > 1 else "embedded"
    last = "norm" if "norm" in names else names[-2]      # the one before `pooled`
    return last, last


def _answer_held(model: ConvNeXt, features: Tensor) -> Tensor:
    """ConvNeXt's logits from its last stage (B, down, across, D), the spread that its last norm divides by being held as it is.

    That norm comes after the pooling.  Once a class is told with certainty the pooled features point where they should, more of them
    changes nothing, and the gradient vanishes.  To hold the spread keeps it (Ali et al. 2022, XAI for Transformers, section 3).
    """
    pooled, norm = features.mean(dim=(1, 2)), model.head.norm
    centred = pooled - pooled.mean(dim=-1, keepdim=True)
    spread = (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt().detach()
    return model.forward_head({"pooled": centred / spread * norm.weight + norm.bias})


def _probe_weights(pool: AttentionPool, tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N): whom attention pooling's probe looks at, averaged over heads."""
    query = pool.q(pool.latent).unflatten(-1, (pool.heads, -1)).transpose(1, 2)                         # (1, H, 1, K)
    key = F.linear(tokens, *(both.chunk(2)[0] for both in (pool.kv.weight, pool.kv.bias))).unflatten(-1, (pool.heads, -1)).transpose(1, 2)
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0].mean(dim=1)
