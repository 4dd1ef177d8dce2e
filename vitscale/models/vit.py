"""The Vision Transformer (Dosovitskiy et al. 2021), from images to logits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitscale.kernels.parts import Fusing, takes
from vitscale.models.attention import Attention, Layout, MixedRotaryAttention, RelativePositionAttention
from vitscale.models.attention_axial import AxialAttention
from vitscale.models.attention_linear import LinearAttention
from vitscale.models.attention_local import LocalAttention
from vitscale.models.attention_sparse import SparseAttention
from vitscale.models.backbone import Backbone, Wanted
from vitscale.models.drop_path import add_branch, given
from vitscale.models.fused import normed, two_branches
from vitscale.models.heads import AttentionPool, Hidden
from vitscale.models.mlp import MLP, GatedMLP
from vitscale.models.patch_embed import OverlappingPatchEmbed, PatchEmbed, Patches, PositionalPatchEmbed
from vitscale.models.patch_embed_adaptive import AdaptivePatchEmbed
from vitscale.models.patch_embed_conv import ConvStemPatchEmbed, HybridPatchEmbed
from vitscale.models.position import first_frequencies, resample, rotary, sincos
from vitscale.recipe.schema import Vit
from vitscale.shapes.drop_path import drop_rates, kept_of_group
from vitscale.shapes.vit import (
    Shape,
    grid,
    has_class_token,
    hybrid_depths,
    num_features,
    num_placed,
    num_positions,
    pools_prefix,
    rotary_options,
    shape_of,
)


class LayerScale(nn.Module):
    """A learned factor per channel, small at first (Touvron et al. 2021, CaiT, section 2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma.to(branch.dtype)      # under autocast an fp32 gamma would widen the whole stream


def factor_of(layer: nn.Module) -> Tensor | None:
    """(D,) of a LayerScale; None of what stands where there is none."""
    return layer.gamma if isinstance(layer, LayerScale) else None


class Block(Fusing):
    """Norm, attention, add; norm, MLP, add (Dosovitskiy et al. 2021, equations 2 and 3); or both side by side behind one norm; or each norm
    after what it is of (Liu et al. 2022, Swin V2, section 3.2)."""

    def __init__(self, model: Vit, shape: Shape, rate: float, eps: float, layer: int = 0) -> None:
        """`rate` of stochastic depth; `layer` is the block's number, counted from 0, by which sparse attention draws."""
        super().__init__()
        width, scale = shape.width, model.layer_scale
        self.rate, self.parallel, self.post_norm = rate, model.parallel, model.post_norm
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = build_attention(model, shape, eps, layer)
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.Identity() if model.parallel else nn.LayerNorm(width, eps=eps)
        inner = eps if model.scale_mlp_norm else None
        self.mlp = GatedMLP(width, shape.mlp, model.dropout, inner) if model.gated else MLP(
            width, shape.mlp, model.dropout, model.hidden_act, inner)
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(
        self, tokens: Tensor, keep: Tensor | None = None, layout: Layout | None = None, return_map: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """tokens (B, N, D), keep (2, B) for attention and MLP, or int64 (2, n), the samples that they are computed for -> (B, N, D), and
        with `return_map` the attention map (B, H, N, N)."""
        chooses = keep is not None and keep.dtype == torch.int64
        if "norm" in self.parts and not (self.post_norm or chooses or return_map) and takes(tokens):
            return two_branches(tokens, keep, self.rate, (self.norm1, self.norm2), (factor_of(self.ls1), factor_of(self.ls2)),
                                lambda entering: self.attn.branch(entering, layout), self.mlp.branch)
        for_attention, for_mlp = (None, None) if keep is None else keep.unbind(0)
        entering = given(tokens, for_attention)
        entering = entering if self.post_norm else normed(self.norm1, entering, self.parts)
        attended = self.attn(entering, layout, return_map)
        attended, weights = attended if return_map else (attended, None)
        tokens = add_branch(tokens, self.after(attended, self.norm1, self.ls1), for_attention, self.rate)
        if not self.parallel:
            entering = given(tokens, for_mlp)
            entering = entering if self.post_norm else normed(self.norm2, entering, self.parts)
        branch = self.mlp(entering)
        tokens = add_branch(tokens, self.after(branch, self.norm2, self.ls2), for_mlp, self.rate)
        return tokens if weights is None else (tokens, weights)

    def after(self, branch: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        """What is added of a branch."""
        return normed(norm, branch, self.parts) if self.post_norm else scale(branch)


def build_attention(model: Vit, shape: Shape, eps: float, layer: int) -> Attention:
    """The attention that the section asks for."""
    width, heads = shape.width, shape.heads
    options: dict[str, Any] = {"qkv_bias": model.qkv_bias, "dropout": model.dropout, "qk_norm": model.qk_norm, "eps": eps,
                               "key_bias": model.key_bias, "scale_norm": model.scale_attn_norm,
                               "interpolation": model.position_interpolation}
    if model.mup_base_head_width is not None:       # products of K numbers that go together grow as K, not as its root (Yang et al. 2022)
        options["scale"] = math.sqrt(model.mup_base_head_width) / (width // heads)
    if model.position == "relative":
        before = num_placed(model) + model.registers
        return RelativePositionAttention(width, heads, (grid(model), grid(model)), before, model.relative_mlp, **options)
    if model.rope_type == "mixed":
        return MixedRotaryAttention(width, heads, **options)
    if model.attention == "local":
        return LocalAttention(width, heads, model.window, model.halo, **options)
    if model.attention == "axial":
        return AxialAttention(width, heads, **options)
    if model.attention == "sparse":
        return SparseAttention(width, heads, model.sparse_block, model.sparse_random, layer, **options)
    if model.attention == "linear":
        return LinearAttention(width, heads, **options)
    return Attention(width, heads, **options)


def build_patch_embed(model: Vit, shape: Shape, eps: float) -> Patches:
    """The patch embedding that the section asks for."""
    channels, patch, width = model.channels, model.patch, shape.width
    if model.patch_embed == "overlap":
        return OverlappingPatchEmbed(channels, patch, width, eps)
    if model.patch_embed == "hybrid":
        return HybridPatchEmbed(channels, patch, width, model.hybrid_width, hybrid_depths(model))
    if model.patch_embed == "conv_stem":
        return ConvStemPatchEmbed(channels, patch, width)
    if model.patch_embed == "positional":
        return PositionalPatchEmbed(channels, patch, width)
    if model.patch_embed == "adaptive":
        return AdaptivePatchEmbed(channels, patch, width)
    return PatchEmbed(channels, patch, width, bias=not model.pre_norm)


class VisionTransformer(Backbone):
    """Images to logits, or to pooled features where `classes` is 0.  Parameter names are timm's.

    The tokens are, in this order: class tokens, DeiT's distillation token (models/deit.py), registers, patches row by row.
    Built on any device, `meta` included; its numbers mean something after models.init.initialise or load_state_dict.
    It draws nothing at random but elementwise dropout: stochastic depth comes in as `keep`.
    """

    pos_embed: Tensor

    def __init__(self, model: Vit) -> None:
        """Raises RecipeError when the section contradicts itself."""
        super().__init__()
        shape, eps = shape_of(model), model.norm_eps
        self.position, self.interpolation, self.class_tokens = model.position, model.position_interpolation, model.class_tokens
        self.pool, self.pooled_from = model.pool, 0 if pools_prefix(model) else num_placed(model) + model.registers
        self.width, self.head_width = shape.width, shape.width // shape.heads
        self.grid, self.before = (grid(model), grid(model)), num_placed(model) + model.registers
        self.constants = {} if model.layer_scale is None else {".gamma": model.layer_scale}
        if model.mup_base_width is not None:
            self.base_width, self.width_scale = model.mup_base_width, model.mup_base_width / shape.width
        self.drop_rates = drop_rates(shape.depth, model.drop_path, model.drop_path_schedule)
        self.drop_group = model.drop_path_group
        self.boxes: Mapping[tuple[int, int], Tensor] = {}       # by grid (L, 2, 2), as position.jittered has them: of the step under way

        self.patch_embed = build_patch_embed(model, shape, eps)
        self.cls_token = nn.Parameter(torch.zeros(1, model.class_tokens, shape.width)) if has_class_token(model) else None
        self.reg_token = nn.Parameter(torch.zeros(1, model.registers, shape.width)) if model.registers else None
        self.before_placed = model.position == "learned" and model.class_position
        if model.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, num_positions(model), shape.width))
        elif model.position == "sincos":
            self.register_buffer("pos_embed", sincos(self.grid, shape.width), persistent=False)     # the class token has none
        self.rotary, self.rope_temperature = rotary_options(model), model.rope_temperature
        self.box_jitter = (model.rope_shift, model.rope_jitter, model.rope_rescale)
        self.pos_drop = nn.Dropout(model.dropout)
        self.norm_pre = nn.LayerNorm(shape.width, eps=eps) if model.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(model, shape, rate, eps, layer) for layer, rate in enumerate(self.drop_rates[::2]))
        features = num_features(model, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=eps) if model.final_norm and not model.pool_norm else nn.Identity()
        heads, hidden = model.pool_heads or shape.heads, model.pool_mlp or shape.mlp
        self.attn_pool = AttentionPool(shape.width, heads, hidden, eps, model.hidden_act) if model.pool == "attention" else None
        self.fc_norm = nn.LayerNorm(features, eps=eps) if model.pool_norm else nn.Identity()
        self.pre_logits = Hidden(features, model.head_hidden) if model.head_hidden else nn.Identity()
        self.head_drop = nn.Dropout(model.head_dropout)
        self.head = nn.Linear(model.head_hidden or features, model.classes) if model.classes else nn.Identity()

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """images (B, C, height, width), normalised -> logits (B, classes), or pooled features (B, D) where classes is 0.

        Any height and width that the patch divides.  `keep` (2 L, B), 1.0 or 0.0, says which residual branches stay: row 2 l the
        attention of block l, row 2 l + 1 its MLP, each dropped at the rate drop_rates gives; None (evaluation) keeps all.  With
        drop_path_group each row keeps kept_of_group(rate, group) of every so many images, and the other branches are not computed.
        """
        return self.forward_head(self.forward_features(images, keep, self.head_inputs))

    def forward_head(self, found: Mapping[str, Tensor]) -> Tensor:
        return self.classify(found["pooled"])

    def classify(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) -> logits (B, classes)."""
        return self.head(self.head_drop(self.pre_logits(pooled)))

    def forward_features(self, images: Tensor, keep: Tensor | None = None, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The intermediates asked for by name; the others are not kept.  None: `norm` and `pooled`.

        `patch_embed` (B, patches, D) projected patches; `embedded` (B, N, D) with what stands before them and positions, what block 0
        gets; `blocks.0`, ... (B, N, D) after a block; `blocks.0.attention`, ... (B, H, N, N) its map, for which attention is not fused;
        `norm` (B, N, D) after the last norm; `pooled` (B, D).  Raises ValueError for another name, and for a map of branches that
        drop_path_group leaves out.
        """
        self.check_keep(keep, images)
        wanted = Wanted(("norm", "pooled") if names is None else names, self.feature_names())
        if keep is not None and self.drop_group is not None and any(name.endswith(".attention") for name in wanted.names):
            raise ValueError("there is no attention map of images for which a branch is not computed: ask for it without keep")
        note = wanted.note
        new_grid = self.patch_embed.grid(images)
        tokens = note("patch_embed", self.patch_embed(images))
        tokens = note("embedded", self.embed(tokens, new_grid))
        layouts = self.layouts(new_grid, images.device)
        for index, (block, masks, layout) in enumerate(zip(self.blocks, self.by_block(keep), layouts, strict=True)):
            if f"blocks.{index}.attention" in wanted.names:
                tokens, wanted.found[f"blocks.{index}.attention"] = block(tokens, masks, layout, return_map=True)
            else:
                tokens = block(tokens, masks, layout)
            note(f"blocks.{index}", tokens)
        tokens = note("norm", self.norm(tokens))
        note("pooled", self.pooled(tokens))
        return wanted.found

    def encoded(self, patches: Tensor, new_grid: tuple[int, int], keep: Tensor | None) -> Tensor:
        """Patch tokens (B, patches, D) of a grid, whatever has become of them -> (B, N, D) after the last norm."""
        layouts, tokens = self.layouts(new_grid, patches.device), self.embed(patches, new_grid)
        for block, masks, layout in zip(self.blocks, self.by_block(keep), layouts, strict=True):
            tokens = block(tokens, masks, layout)
        return self.norm(tokens)

    def by_block(self, keep: Tensor | None) -> Sequence[Tensor | None]:
        """keep (2 L, B) -> what each block is told: its two rows, or with drop_path_group (2, n) int64, the samples that stay."""
        if keep is None:
            return [None] * len(self.blocks)
        if self.drop_group is None:
            return keep.unflatten(0, (-1, 2)).unbind(0)
        if keep.shape[1] % self.drop_group:
            raise ValueError(f"{keep.shape[1]} images are no whole groups of drop_path_group {self.drop_group}")
        counts = [kept_of_group(rate, self.drop_group) for rate in self.drop_rates]
        groups = keep.unflatten(1, (-1, self.drop_group))
        if keep.device.type == "cpu":       # a GPU would have to be waited for
            enough = (groups.sum(dim=2) == torch.tensor(counts)[:, None]).all()
            torch._assert_async(enough, f"keep: of each {self.drop_group} images its rows want {counts} ones")
        places = groups.argsort(dim=2, descending=True, stable=True)        # those that stay first, in their order
        places = places + torch.arange(0, keep.shape[1], self.drop_group, device=keep.device)[:, None]
        return [None if counts[row] == self.drop_group else places[row:row + 2, :, :counts[row]].flatten(1)
                for row in range(0, len(counts), 2)]

    def layout(self, new_grid: tuple[int, int], device: torch.device) -> Layout:
        """What the blocks' attentions are told about tokens of a grid."""
        angles = None if self.rotary is None else rotary(new_grid, self.head_width, device, **self.rotary)
        return Layout(new_grid, self.before, angles)

    def layouts(self, new_grid: tuple[int, int], device: torch.device) -> Sequence[Layout]:
        """The same for each block: in training, where places are jittered, another for each."""
        boxes = self.boxes.get(new_grid) if self.training else None
        if boxes is None or self.rotary is None:
            return [self.layout(new_grid, device)] * len(self.blocks)
        angles = rotary(new_grid, self.head_width, device, **self.rotary, boxes=boxes)
        return [Layout(new_grid, self.before, one) for one in angles]

    def placed_tokens(self) -> list[Tensor]:
        """What stands before registers and patches and has a place in the table of positions: (1, T, D) each."""
        return [] if self.cls_token is None else [self.cls_token]

    def embed(self, tokens: Tensor, new_grid: tuple[int, int]) -> Tensor:
        """Patch tokens (B, patches, D) of a grid -> (B, N, D) with what stands before them and positions, interpolated to a new grid."""
        before = [token.expand(tokens.shape[0], -1, -1).to(tokens.dtype) for token in self.placed_tokens()]
        count = sum(token.shape[1] for token in before)
        if self.position in ("learned", "sincos"):
            position = resample(self.pos_embed, self.grid, new_grid, self.interpolation).to(tokens.dtype)
            if self.before_placed and before:       # these have rows of their own, the first ones
                before, position = [torch.cat(before, dim=1) + position[:, :count]], position[:, count:]
            tokens = tokens + position
        if self.reg_token is not None:
            before.append(self.reg_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype))
        return self.norm_pre(self.pos_drop(torch.cat([*before, tokens], dim=1) if before else tokens))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Normed tokens (B, N, D) -> (B, D).

        The norm comes before the mean, as in Zhai et al. 2022 and big_vision (timm: global_pool="avg", fc_norm=False), unless
        `pool_norm` asks for it after it, as in MAE's fine-tuning.  The mean is over the patches, attention pooling over all tokens, unless
        `pool_include_prefix` says otherwise; `token_mean` lays the class token and the mean of the patches side by side.
        """
        if self.attn_pool is not None:
            return self.fc_norm(self.attn_pool(tokens[:, self.pooled_from:]))
        if self.pool == "token":
            return self.fc_norm(tokens[:, :self.class_tokens].flatten(1))
        mean = tokens[:, self.pooled_from:].mean(dim=1)
        return self.fc_norm(torch.cat([tokens[:, 0], mean], dim=1) if self.pool == "token_mean" else mean)

    def feature_names(self) -> list[str]:
        """The names that forward_features knows, in the order of computation."""
        blocks = [f"blocks.{index}{suffix}" for index in range(len(self.blocks)) for suffix in (".attention", "")]
        return ["patch_embed", "embedded", *blocks, "norm", "pooled"]

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order: what is recomputed, compiled and sharded one by one."""
        return list(self.blocks)

    def initial_value(self, name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        return first_frequencies(shape[0], shape[1], self.rope_temperature, generator) if name.endswith("attn.rope_freqs") else None

    def reset_buffers(self) -> None:
        """Fill the buffers, in place, with what they hold by definition; to_empty leaves them undefined."""
        if self.position == "sincos":
            self.pos_embed.copy_(sincos(self.grid, self.width, device="cpu"))
        for block in self.blocks:
            cast(Attention, block.attn).reset_buffers()


def build(model: Vit) -> VisionTransformer:
    """The model section -> the model, on torch's current default device.  Raises RecipeError."""
    return VisionTransformer(model)
