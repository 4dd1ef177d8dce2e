"""ConvNeXt, version 1 (Liu et al. 2022) and version 2 (Woo et al. 2023), from images to logits."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vitscale.kernels.parts import Fusing, takes
from vitscale.models.backbone import Backbone, Wanted
from vitscale.models.drop_path import add_branch
from vitscale.models.fused import activated, ended, normed
from vitscale.models.mlp import ACTIVATIONS, TwoLayers
from vitscale.recipe.schema import ConvNext
from vitscale.shapes.convnext import MLP_RATIO, STEM, ConvNextStageShape, has_grn, layer_scale_of, stages_of, stem_width
from vitscale.shapes.drop_path import drop_rates

RESPONSE_EPS = 1e-6


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, section 3.1): channels compete by their norm over the whole image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, height, width, D) -> the same."""
        norms = features.norm(dim=(1, 2), keepdim=True, dtype=torch.promote_types(features.dtype, torch.float32))
        share = (norms / (norms.mean(dim=-1, keepdim=True) + RESPONSE_EPS)).to(features.dtype)
        return features + torch.addcmul(self.bias, self.weight, features * share)


class ConvMLP(TwoLayers):
    """Linear, activation, response norm in version 2, linear, place by place."""

    def __init__(self, width: int, act: str, grn: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.act = ACTIVATIONS[act]()
        self.grn = ResponseNorm(MLP_RATIO * width) if grn else nn.Identity()
        self.fc2 = nn.Linear(MLP_RATIO * width, width)
        self.drop = nn.Dropout(0.0)

    def hidden(self, features: Tensor) -> Tensor:
        return self.grn(activated(self.fc1, self.act, features, self.parts))


class ConvNextBlock(Fusing):
    """Depthwise convolution, norm, MLP: one residual branch (Liu et al. 2022, figure 4).

    Features are channels-last throughout, which convolutions on every device take as well and norms and linear layers want.
    """

    def __init__(self, width: int, model: ConvNext, rate: float) -> None:
        super().__init__()
        self.rate, layer_scale = rate, layer_scale_of(model)
        self.conv_dw = nn.Conv2d(width, width, model.kernel, padding=model.kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=model.norm_eps)
        self.mlp = ConvMLP(width, model.hidden_act, has_grn(model))
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, features: Tensor, keep: Tensor | None = None) -> Tensor:
        """features (B, height, width, D), keep (B,) -> the same."""
        branch = self.conv_dw(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        branch = normed(self.norm, branch, self.parts)
        if "norm" in self.parts and takes(features):
            return ended(features, self.mlp.branch(branch), self.gamma, keep, self.rate)
        branch = self.mlp(branch)
        if self.gamma is not None:
            branch = branch * self.gamma.to(branch.dtype)        # under autocast an fp32 gamma would widen the whole stream
        return add_branch(features, branch, keep, self.rate)


class Downsample(nn.Sequential):
    """Norm, then 2 x 2 places to one; and the stem, P x P pixels to one place, then norm (Liu et al. 2022, section 2.2 and 2.6)."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, height, width, D) -> (B, height / 2, width / 2, D')."""
        for module in self:
            is_conv = isinstance(module, nn.Conv2d)
            features = module(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if is_conv else module(features)
        return features


class ConvNextStage(nn.Module):
    """Downsampling, but in the first stage, then blocks."""

    def __init__(self, before: int | None, stage: ConvNextStageShape, model: ConvNext, rates: Sequence[float]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if before is None else Downsample(
            nn.LayerNorm(before, eps=model.norm_eps), nn.Conv2d(before, stage.width, kernel_size=2, stride=2))
        self.blocks = nn.ModuleList(ConvNextBlock(stage.width, model, rate) for rate in rates)


class ConvNextHead(nn.Module):
    """Of the mean over all places: a norm, the hidden layer if there is one, the classifier."""

    def __init__(self, width: int, model: ConvNext) -> None:
        super().__init__()
        hidden = model.head_hidden
        self.norm = nn.LayerNorm(width, eps=model.head_norm_eps or model.norm_eps)
        self.pre_logits = nn.Sequential(OrderedDict(fc=nn.Linear(width, hidden), act=nn.GELU())) if hidden else nn.Identity()
        self.fc = nn.Linear(hidden or width, model.classes) if model.classes else nn.Identity()


def build_stem(model: ConvNext, width: int) -> "Downsample":
    """Pixels to the first stage's places, 4 x 4 to one."""
    norm = nn.LayerNorm(width, eps=model.norm_eps)
    if model.stem == "patch":
        return Downsample(nn.Conv2d(model.channels, width, STEM, STEM), norm)
    first = stem_width(model, width)
    return Downsample(nn.Conv2d(model.channels, first, 3, 2, padding=1), nn.Conv2d(first, width, 3, 2, padding=1), norm)


class ConvNeXt(Backbone):
    """Images to logits, or to pooled features where `classes` is 0.  Parameter names are timm's."""

    def __init__(self, model: ConvNext) -> None:
        """Raises RecipeError when the section contradicts itself."""
        super().__init__()
        stages = stages_of(model)
        scale = layer_scale_of(model)
        self.constants = {"grn.weight": 0.0} | ({} if scale is None else {".gamma": scale})
        self.drop_rates = drop_rates(sum(stage.depth for stage in stages), model.drop_path, model.drop_path_schedule)[::2]
        self.stem = build_stem(model, stages[0].width)
        built, first, before = [], 0, None
        for stage in stages:
            built.append(ConvNextStage(before, stage, model, self.drop_rates[first:first + stage.depth]))
            first, before = first + stage.depth, stage.width
        self.stages = nn.ModuleList(built)
        self.head = ConvNextHead(stages[-1].width, model)

    @property
    def _stages(self) -> Sequence[ConvNextStage]:
        return cast(Sequence[ConvNextStage], self.stages)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """images (B, C, height, width) of any size, normalised -> logits (B, classes), or pooled features (B, D) where classes is 0.

        `keep` (L, B), 1.0 or 0.0: row l the block l; None keeps all.
        """
        return self.forward_head(self.forward_features(images, keep, self.head_inputs))

    def forward_head(self, found: Mapping[str, Tensor]) -> Tensor:
        return self.head.fc(self.head.pre_logits(found["pooled"]))

    def forward_features(self, images: Tensor, keep: Tensor | None = None, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The intermediates asked for by name; None: the last stage and `pooled`.

        `stem` and `stages.0.blocks.0`, ... (B, height, width, D); `stages.0`, ... after a stage; `pooled` (B, D), normed.  Raises
        ValueError for another name.
        """
        self.check_keep(keep, images)
        wanted = Wanted((f"stages.{len(self.stages) - 1}", "pooled") if names is None else names, self.feature_names())
        note = wanted.note
        features, row = note("stem", self.stem(images.permute(0, 2, 3, 1))), 0
        for number, stage in enumerate(self._stages):
            features = stage.downsample(features)
            for place, block in enumerate(stage.blocks):
                features = note(f"stages.{number}.blocks.{place}", block(features, None if keep is None else keep[row]))
                row += 1
            note(f"stages.{number}", features)
        note("pooled", self.head.norm(features.mean(dim=(1, 2))))
        return wanted.found

    def feature_names(self) -> list[str]:
        """The names that forward_features knows, in the order of computation."""
        names = ["stem"]
        for number, stage in enumerate(self._stages):
            names += [*(f"stages.{number}.blocks.{place}" for place in range(len(stage.blocks))), f"stages.{number}"]
        return [*names, "pooled"]

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order: what is recomputed, compiled and sharded one by one."""
        return [block for stage in self._stages for block in stage.blocks]


def build(model: ConvNext) -> ConvNeXt:
    """The model section -> the model, on torch's current default device.  Raises RecipeError."""
    return ConvNeXt(model)
