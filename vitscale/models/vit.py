"""The Vision Transformer (Dosovitskiy et al. 2021), from images to logits."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitscale.models.attention import Attention
from vitscale.models.backbone import Backbone
from vitscale.models.drop_path import add_branch, drop_rates
from vitscale.models.heads import AttentionPool
from vitscale.models.mlp import MLP
from vitscale.models.names import is_exempt
from vitscale.models.patch_embed import PatchEmbed
from vitscale.models.position import resample, sincos
from vitscale.plan.sizes import Shape, grid, num_tokens, shape_of
from vitscale.recipe.schema import Vit


class LayerScale(nn.Module):
    """A learned factor per channel, small at first (Touvron et al. 2021, CaiT, section 2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma.to(branch.dtype)      # under autocast an fp32 gamma would widen the whole stream


class Block(nn.Module):
    """Norm, attention, add; norm, MLP, add (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def __init__(self, shape: Shape, qkv_bias: bool, layer_scale: float | None, dropout: float, rate: float, eps: float) -> None:
        super().__init__()
        width = shape.width
        self.rate = rate
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, shape.heads, qkv_bias, dropout)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, shape.mlp, dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, tokens: Tensor, keep: Tensor | None = None, return_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """tokens (B, N, D), keep (2, B) for attention and MLP -> (B, N, D), and with `return_map` the attention map (B, H, N, N)."""
        for_attention, for_mlp = (None, None) if keep is None else keep.unbind(0)
        attended = self.attn(self.norm1(tokens), return_map)
        attended, weights = attended if return_map else (attended, None)
        tokens = add_branch(tokens, self.ls1(attended), for_attention, self.rate)
        tokens = add_branch(tokens, self.ls2(self.mlp(self.norm2(tokens))), for_mlp, self.rate)
        return tokens if weights is None else (tokens, weights)


class VisionTransformer(Backbone):
    """Images to logits, or to pooled features where `classes` is 0.  Parameter names are timm's.

    Built on any device, `meta` included; its numbers mean something after models.init.initialise or load_state_dict.
    It draws nothing at random but elementwise dropout: stochastic depth comes in as `keep`.
    """

    pos_embed: Tensor

    def __init__(self, model: Vit, eps: float = 1e-6) -> None:
        """Raises RecipeError when the section contradicts itself.  `eps` of every LayerNorm."""
        super().__init__()
        shape = shape_of(model)
        self.pool = model.pool
        self.position = model.position
        self.width = shape.width
        self.grid = (grid(model), grid(model))
        self.constants = {} if model.layer_scale is None else {".gamma": model.layer_scale}
        self.drop_rates = drop_rates(shape.depth, model.drop_path)

        self.patch_embed = PatchEmbed(model.channels, model.patch, shape.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width)) if model.pool == "token" else None
        if model.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens(model), shape.width))   # the class token's row first
        else:
            self.register_buffer("pos_embed", sincos(self.grid, shape.width), persistent=False)     # the class token has none
        self.pos_drop = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(
            Block(shape, model.qkv_bias, model.layer_scale, model.dropout, rate, eps) for rate in self.drop_rates[::2]
        )
        self.norm = nn.LayerNorm(shape.width, eps=eps)
        self.attn_pool = AttentionPool(shape.width, shape.heads, shape.mlp, eps) if model.pool == "attention" else None
        self.head = nn.Linear(shape.width, model.classes) if model.classes else nn.Identity()

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """images (B, C, height, width), normalised -> logits (B, classes), or pooled features (B, D) where classes is 0.

        Any height and width that the patch divides.  `keep` (2 L, B), 1.0 or 0.0, says which residual branches stay: row 2 l the
        attention of block l, row 2 l + 1 its MLP, each dropped at the rate drop_rates gives; None (evaluation) keeps all.
        """
        return self.head(self.forward_features(images, keep, ("pooled",))["pooled"])

    def forward_features(self, images: Tensor, keep: Tensor | None = None, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The intermediates asked for by name; the others are not kept.  None: `norm` and `pooled`.

        `patch_embed` (B, patches, D) projected patches; `embedded` (B, N, D) with class token and positions, what block 0 gets;
        `blocks.0`, ... (B, N, D) after a block; `blocks.0.attention`, ... (B, H, N, N) its map, for which attention is not fused;
        `norm` (B, N, D) after the last norm; `pooled` (B, D).  Raises ValueError for another name.
        """
        wanted = {"norm", "pooled"} if names is None else set(names)
        unknown = wanted - set(self.feature_names())
        if unknown:
            raise ValueError(f"no such intermediates: {', '.join(sorted(unknown))}; there are {', '.join(self.feature_names())}")
        if keep is not None and keep.shape != (len(self.drop_rates), images.shape[0]):
            raise ValueError(f"keep wants the shape {(len(self.drop_rates), images.shape[0])}, got {tuple(keep.shape)}")
        found: dict[str, Tensor] = {}

        def note(name: str, value: Tensor) -> Tensor:
            if name in wanted:
                found[name] = value
            return value

        tokens = note("patch_embed", self.patch_embed(images))
        tokens = note("embedded", self.embed(tokens, self.patch_embed.grid(images)))
        for index, block in enumerate(self.blocks):
            masks = None if keep is None else keep[2 * index:2 * index + 2]
            if f"blocks.{index}.attention" in wanted:
                tokens, found[f"blocks.{index}.attention"] = block(tokens, masks, return_map=True)
            else:
                tokens = block(tokens, masks)
            note(f"blocks.{index}", tokens)
        tokens = note("norm", self.norm(tokens))
        note("pooled", self.pooled(tokens))
        return found

    def embed(self, tokens: Tensor, new_grid: tuple[int, int]) -> Tensor:
        """Patch tokens (B, patches, D) of a grid -> (B, N, D) with class token and positions, interpolated if the grid is new."""
        position = resample(self.pos_embed, self.grid, new_grid).to(tokens.dtype)
        if self.cls_token is None:
            return self.pos_drop(tokens + position)
        token = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        if self.position == "learned":
            return self.pos_drop(torch.cat([token, tokens], dim=1) + position)
        return self.pos_drop(torch.cat([token, tokens + position], dim=1))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Normed tokens (B, N, D) -> (B, D).

        The norm comes before the mean, as in Zhai et al. 2022 and big_vision (timm: global_pool="avg", fc_norm=False), not after it
        as in MAE's fine-tuning, so that `norm` means the same for every pooling.
        """
        if self.attn_pool is not None:
            return self.attn_pool(tokens)
        return tokens[:, 0] if self.pool == "token" else tokens.mean(dim=1)

    def feature_names(self) -> list[str]:
        """The names that forward_features knows, in the order of computation."""
        blocks = [f"blocks.{index}{suffix}" for index in range(len(self.blocks)) for suffix in (".attention", "")]
        return ["patch_embed", "embedded", *blocks, "norm", "pooled"]

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order: what is recomputed, compiled and sharded one by one."""
        return list(self.blocks)

    def no_decay(self) -> set[str]:
        """Names of the parameters exempt from weight decay: norms, biases, LayerScale, class token, positions, probe."""
        return {name for name, parameter in self.named_parameters() if is_exempt(name, parameter.shape)}

    def reset_buffers(self) -> None:
        """Fill the buffers, in place, with what they hold by definition; to_empty leaves them undefined."""
        if self.position == "sincos":
            self.pos_embed.copy_(sincos(self.grid, self.width, device="cpu"))


def build(model: Vit) -> VisionTransformer:
    """The model section -> the model, on torch's current default device.  Raises RecipeError."""
    return VisionTransformer(model)
