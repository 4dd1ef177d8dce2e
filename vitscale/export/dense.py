"""A feature pyramid as a backbone of transformers' (version 5 or newer): for UperNet, MaskFormer and whatever asks AutoBackbone for one."""

from dataclasses import field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput

from vitscale.models import Backbone, build_model, initialise
from vitscale.models.pyramid import SCALES, build_pyramid
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, External, Model

KIND = "vitscale_pyramid"


class PyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    """What transformers writes down of a pyramid: the model section that its backbone is built from, and how it is made of it."""

    model_type = KIND

    section: dict[str, Any] = field(default_factory=dict)       # of a recipe, without its head
    pyramid_channels: int = 256                                 # of a plain ViT's levels
    scales: list[float] | tuple[float, ...] = SCALES            # the same
    num_levels: int = 4
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"level{number}" for number in range(self.num_levels)]
        chosen = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        every = self.stage_names if chosen == (None, None) else chosen[0]
        self.set_output_features_output_indices(out_features=every, out_indices=chosen[1])
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, section: Model, channels: int = 256, scales: tuple[float, ...] = SCALES) -> "PyramidConfig":
        """That of a model: `vitscale.load(run).section`.  `channels` and `scales` as SimplePyramid has them, for plain ViTs alone."""
        levels = len(build_pyramid(_skeleton(section), channels, scales).channels)
        return cls(section=section.model_dump(mode="json"), pyramid_channels=channels, scales=list(scales), num_levels=levels)


class PyramidBackbone(BackboneMixin, PreTrainedModel):
    """forward(pixel_values (B, C, height, width)).feature_maps: one (B, channels[i], h, w) for each level, the finest first.

    It begins at initial values; take() gives it what a model has learned.
    """

    config_class = PyramidConfig
    base_model_prefix = "pyramid"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: PyramidConfig) -> None:
        """Raises RecipeError for a section that contradicts itself."""
        super().__init__(config)
        model = build_model(_section(config))
        if not next(model.parameters()).is_meta:
            initialise(model, seed=0)
        self.pyramid = build_pyramid(model, config.pyramid_channels, tuple(config.scales))
        self.strides = self.pyramid.strides         # pixels, by level
        self.num_features = list(self.pyramid.channels)
        self.post_init()

    def take(self, trained: Backbone) -> None:
        """The numbers of a trained model of the same section; its head is left behind."""
        own = self.pyramid.backbone
        own.load_state_dict({name: value for name, value in trained.state_dict().items() if name in own.state_dict()})

    def forward(self, pixel_values: Tensor, **options: Any) -> BackboneOutput:  # type: ignore[override]
        levels = self.pyramid(pixel_values)
        return BackboneOutput(feature_maps=tuple(level for name, level in zip(self.stage_names, levels, strict=True)
                                                 if name in self.out_features))

    def _init_weights(self, module: nn.Module) -> None:
        """Initial values are ours; only buffers, which no file holds, are filled again where transformers built the model on `meta`."""
        if isinstance(module, Backbone):
            module.reset_buffers()


def _section(config: PyramidConfig) -> Model:
    kind = FAMILIES.get(config.section["family"], External)
    return check_section(kind, config.section | {"classes": 0}, "the pyramid's model section")


def _skeleton(section: Model) -> Backbone:
    with torch.device("meta"):
        return build_model(section)


AutoConfig.register(KIND, PyramidConfig)
AutoBackbone.register(PyramidConfig, PyramidBackbone)
