"""The Swin Transformer, version 1 (Liu et al. 2021) and version 2 (Liu et al. 2022), from images to logits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.kernels.parts import Fusing, takes
from vitscale.models.backbone import Backbone, Wanted
from vitscale.models.drop_path import add_branch
from vitscale.models.exact import exact, keep_exact_, reset_exact_
from vitscale.models.fused import Branch, normed, two_branches
from vitscale.models.mlp import MLP
from vitscale.models.position import resample
from vitscale.recipe.schema import Swin
from vitscale.shapes.drop_path import drop_rates
from vitscale.shapes.swin import HIDDEN, MLP_RATIO, SwinStageShape, stages_of

Grid = tuple[int, int]
MAX_SCALE = math.log(100)       # of version 2's learned temperature: as in CLIP, cosines are multiplied by 100 at most


def window_index(window: int, device: torch.device | str | None = None) -> Tensor:
    """Which row of a table of (2 M - 1)^2 offsets each pair of a window's tokens has: (M^2, M^2) int64."""
    place = torch.stack(torch.meshgrid(torch.arange(window, device=device), torch.arange(window, device=device), indexing="ij")).flatten(1)
    down, across = (place[:, :, None] - place[:, None, :] + window - 1).unbind(0)
    return down * (2 * window - 1) + across


def log_offsets(window: int, pretrained: int = 0, device: torch.device | str | None = None) -> Tensor:
    """Version 2's offsets ((2 M - 1)^2, 2): scaled to -8..8, then log-spaced to -1..1 (section 3.3, equation 4).

    Where the biases were learned of other windows, `pretrained`, offsets are counted in these and may be larger.
    """
    line = torch.arange(-(window - 1), window, dtype=torch.float32, device=device) / max((pretrained or window) - 1, 1) * 8
    offsets = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    return offsets.sign() * torch.log2(offsets.abs() + 1) / math.log2(8)


def shift_mask(grid: Grid, window: int, shift: int, device: torch.device | str | None = None) -> Tensor:
    """0 where two tokens of a shifted window were neighbours before the shift, else -100: (windows, M^2, M^2) (section 3.2, figure 4)."""
    def region(length: int) -> Tensor:
        places = torch.arange(length, device=device)
        return (places >= length - window).long() + (places >= length - shift).long()

    regions = region(grid[0])[:, None] * 3 + region(grid[1])[None, :]
    by_window = windows(regions[None, ..., None], window)[0, ..., 0]                            # (windows, M^2)
    return torch.where(by_window[:, :, None] == by_window[:, None, :], 0.0, -100.0)


def windows(tokens: Tensor, window: int) -> Tensor:
    """(B, height, width, D) -> (B, windows, M^2, D)."""
    batch, height, width, channels = tokens.shape
    cut = tokens.view(batch, height // window, window, width // window, window, channels)
    return cut.transpose(2, 3).reshape(batch, -1, window * window, channels)


def unwindow(tokens: Tensor, window: int, grid: Grid) -> Tensor:
    """The reverse of windows()."""
    cut = tokens.view(tokens.shape[0], grid[0] // window, grid[1] // window, window, window, -1)
    return cut.transpose(2, 3).reshape(tokens.shape[0], *grid, -1)


class BiasedOutside(nn.Linear):
    """A layer whose bias (3 D) is handed in: what wraps it, as adapters do, is not passed by."""

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(tokens, self.weight, bias)


class WindowAttention(nn.Module):
    """Attention among the M x M tokens of a window, with a bias for each head and offset.

    Version 1: a table of biases is learned.  Version 2: cosines with a learned temperature take the place of products, and a small
    network makes the biases from log-spaced offsets.
    """

    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(self, width: int, heads: int, window: int, version: int, pretrained: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.version, self.pretrained = heads, window, version, pretrained
        self.qkv = nn.Linear(width, 3 * width) if version == 1 else BiasedOutside(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        if version == 1:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        else:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
            keep_exact_(self, "logit_scale")
            self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, heads, bias=False))
            self.register_buffer("relative_coords_table", log_offsets(window, pretrained), persistent=False)
        self.register_buffer("relative_position_index", window_index(window), persistent=False)

    def reset_buffers(self) -> None:
        self.relative_position_index.copy_(window_index(self.window, "cpu"))
        if self.version == 2:
            reset_exact_(self, "logit_scale")
            self.relative_coords_table.copy_(log_offsets(self.window, self.pretrained, "cpu"))

    def bias(self) -> Tensor:
        """(H, M^2, M^2): what is added to the logits of each pair."""
        if self.version == 1:
            return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        offsets = self.relative_coords_table.to(self.q_bias.dtype)      # the type that is computed with, whatever the engine made it
        return 16 * torch.sigmoid(self.cpb_mlp(offsets)[self.relative_position_index].permute(2, 0, 1))

    def forward(self, tokens: Tensor, mask: Tensor | None, return_map: bool = False) -> tuple[Tensor, Tensor | None]:
        """tokens (B, windows, M^2, D), mask (windows, M^2, M^2) or None -> the same shape, and the map (B, windows, H, M^2, M^2) if it is
        asked for: only then is it ever stored."""
        count = tokens.shape[1]
        given = () if self.version == 1 else (torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias]),)
        qkv = self.qkv(tokens, *given)
        # windows stand beside the heads, so that one bias serves the whole batch: (B, windows H, M^2, K) each
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        scale = None
        if self.version == 2:
            wide = torch.promote_types(query.dtype, torch.float32)      # lengths and the temperature's exponential, whatever is computed in
            temperature = exact(self, "logit_scale").clamp(max=MAX_SCALE).exp().repeat(count, 1, 1)
            query = (F.normalize(query.to(wide), dim=-1) * temperature).to(value.dtype)
            key, scale = F.normalize(key.to(wide), dim=-1).to(value.dtype), 1.0
        added = self.bias() if mask is None else self.bias() + mask[:, None].to(tokens.dtype)         # (windows or 1, H, M^2, M^2)
        added = added.expand(count, -1, -1, -1).flatten(0, 1).to(query.dtype)
        if return_map:
            logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale) + added
            weights = logits.softmax(dim=-1)
            return self._out(weights @ value, count), weights.unflatten(1, (count, self.heads))
        return self._out(F.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale), count), None

    def _out(self, mixed: Tensor, count: int) -> Tensor:
        """(B, windows H, M^2, K) -> (B, windows, M^2, D)."""
        return self.proj(mixed.unflatten(1, (count, self.heads)).transpose(2, 3).flatten(3))


class SwinBlock(Fusing):
    """Window attention and MLP, each a residual branch: normed before (version 1) or after (version 2, section 3.2) what it does."""

    def __init__(self, stage: SwinStageShape, shift: int, model: Swin, rate: float) -> None:
        super().__init__()
        self.window, self.shift, self.version, self.rate = stage.window, shift, model.version, rate
        self.norm1 = nn.LayerNorm(stage.width, eps=model.norm_eps)
        self.attn = WindowAttention(stage.width, stage.heads, stage.window, model.version, stage.pretrained)
        self.norm2 = nn.LayerNorm(stage.width, eps=model.norm_eps)
        self.mlp = MLP(stage.width, MLP_RATIO * stage.width, act=model.hidden_act)

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, return_map: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """tokens (B, height, width, D), mask as shift_mask's, keep (2, B) -> tokens, and with `return_map` (B, windows, H, M^2, M^2)."""
        def attend(entering: Tensor) -> Branch:
            return self._attend(entering, mask, False)[0], None

        before = self.version == 1
        if "norm" in self.parts and before and not return_map and takes(tokens):
            return two_branches(tokens, keep, self.rate, (self.norm1, self.norm2), (None, None), attend, self.mlp.branch)
        for_attention, for_mlp = (None, None) if keep is None else keep.unbind(0)
        attended, weights = self._attend(normed(self.norm1, tokens, self.parts) if before else tokens, mask, return_map)
        tokens = add_branch(tokens, attended if before else normed(self.norm1, attended, self.parts), for_attention, self.rate)
        branch = self.mlp(normed(self.norm2, tokens, self.parts)) if before else normed(self.norm2, self.mlp(tokens), self.parts)
        tokens = add_branch(tokens, branch, for_mlp, self.rate)
        return tokens if weights is None else (tokens, weights)

    def _attend(self, tokens: Tensor, mask: Tensor | None, return_map: bool) -> tuple[Tensor, Tensor | None]:
        height, width = tokens.shape[1:3]
        down, across = -height % self.window, -width % self.window          # images of another size may leave part of a window empty
        tokens = F.pad(tokens, (0, 0, 0, across, 0, down)) if down or across else tokens
        grid = height + down, width + across
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), dims=(1, 2))
        attended, weights = self.attn(windows(tokens, self.window), mask, return_map)
        tokens = unwindow(attended, self.window, grid)
        if self.shift:
            tokens = tokens.roll((self.shift, self.shift), dims=(1, 2))
        return tokens[:, :height, :width], weights


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width (Liu et al. 2021, section 3.1); version 2 norms after it."""

    def __init__(self, width: int, version: int, eps: float) -> None:
        super().__init__()
        self.version = version
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width if version == 1 else 2 * width, eps=eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, height, width, D) -> (B, height / 2, width / 2, 2 D), an odd side padded."""
        height, width = tokens.shape[1:3]
        if height % 2 or width % 2:
            tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
        four = torch.cat([tokens[:, down::2, across::2] for across in (0, 1) for down in (0, 1)], dim=-1)
        return self.reduction(self.norm(four)) if self.version == 1 else self.norm(self.reduction(four))


class SwinStage(nn.Module):
    """Merging, but in the first stage, then blocks whose windows are shifted every second time."""

    def __init__(self, stage: SwinStageShape, model: Swin, rates: Sequence[float], merge: bool) -> None:
        super().__init__()
        self.window, self.shift = stage.window, stage.shift
        self.downsample = PatchMerging(stage.width // 2, model.version, model.norm_eps) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(stage, stage.shift if number % 2 else 0, model, rate) for number, rate in enumerate(rates))

    def mask(self, grid: Grid, device: torch.device) -> Tensor | None:
        """Of the shifted blocks, for tokens of `grid`."""
        padded = grid[0] + -grid[0] % self.window, grid[1] + -grid[1] % self.window
        return shift_mask(padded, self.window, self.shift, device) if self.shift else None


class SwinPatchEmbed(nn.Module):
    """Each P x P patch through one linear layer, then a norm (Liu et al. 2021, section 3.1)."""

    def __init__(self, channels: int, patch: int, width: int, eps: float) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width), padded to whole patches -> tokens (B, height / P, width / P, D)."""
        down, across = -images.shape[-2] % self.patch, -images.shape[-1] % self.patch
        images = F.pad(images, (0, across, 0, down)) if down or across else images
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class SwinHead(nn.Module):
    """The mean over all tokens, then the classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, pooled: Tensor) -> Tensor:
        return self.fc(pooled)


class SwinTransformer(Backbone):
    """Images to logits, or to pooled features where `classes` is 0.  Parameter names are timm's."""

    def __init__(self, model: Swin) -> None:
        """Raises RecipeError when the section contradicts itself."""
        super().__init__()
        stages = stages_of(model)
        self.constants = {".logit_scale": math.log(10)}
        self.drop_rates = drop_rates(sum(stage.depth for stage in stages), model.drop_path, model.drop_path_schedule)
        self.patch_embed = SwinPatchEmbed(model.channels, model.patch, stages[0].width, model.norm_eps)
        self.grid, self.interpolation = (stages[0].grid, stages[0].grid), model.position_interpolation
        self.pos_embed = nn.Parameter(torch.zeros(1, stages[0].grid**2, stages[0].width)) if model.position == "learned" else None
        layers, first = [], 0
        for number, stage in enumerate(stages):
            rates = self.drop_rates[2 * first:2 * (first + stage.depth):2]
            layers.append(SwinStage(stage, model, rates, merge=number > 0))
            first += stage.depth
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(stages[-1].width, eps=model.norm_eps)
        self.head = SwinHead(stages[-1].width, model.classes)

    @property
    def _stages(self) -> Sequence[SwinStage]:
        return cast(Sequence[SwinStage], self.layers)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """images (B, C, height, width) of any size, normalised -> logits (B, classes), or pooled features (B, D) where classes is 0.

        `keep` (2 L, B), 1.0 or 0.0: row 2 l the attention of block l, row 2 l + 1 its MLP; None keeps all.
        """
        return self.forward_head(self.forward_features(images, keep, self.head_inputs))

    def _placed(self, tokens: Tensor) -> Tensor:
        """(B, height, width, D) -> the same, with positions where there is a table of them."""
        if self.pos_embed is None:
            return tokens
        table = resample(self.pos_embed, self.grid, (tokens.shape[1], tokens.shape[2]), self.interpolation)
        return tokens + table.unflatten(1, tokens.shape[1:3]).to(tokens.dtype)

    def forward_head(self, found: Mapping[str, Tensor]) -> Tensor:
        return self.head(found["pooled"])

    def forward_features(self, images: Tensor, keep: Tensor | None = None, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The intermediates asked for by name; None: `norm` and `pooled`.

        `patch_embed` and `layers.0.blocks.0`, ... (B, height, width, D); `layers.0.blocks.0.attention`, ... its map
        (B, windows, H, M^2, M^2); `layers.0`, ... after a stage; `norm` (B, height, width, D); `pooled` (B, D).  Raises ValueError for
        another name.
        """
        self.check_keep(keep, images)
        wanted = Wanted(("norm", "pooled") if names is None else names, self.feature_names())
        note = wanted.note
        tokens, row = note("patch_embed", self._placed(self.patch_embed(images))), 0
        for number, layer in enumerate(self._stages):
            tokens = layer.downsample(tokens)
            mask = layer.mask(tuple(tokens.shape[1:3]), tokens.device)
            for place, block in enumerate(layer.blocks):
                name, masks = f"layers.{number}.blocks.{place}", None if keep is None else keep[row:row + 2]
                block_mask, row = mask if block.shift else None, row + 2
                if f"{name}.attention" in wanted.names:
                    tokens, wanted.found[f"{name}.attention"] = block(tokens, block_mask, masks, return_map=True)
                else:
                    tokens = block(tokens, block_mask, masks)
                note(name, tokens)
            note(f"layers.{number}", tokens)
        tokens = note("norm", self.norm(tokens))
        note("pooled", tokens.mean(dim=(1, 2)))
        return wanted.found

    def feature_names(self) -> list[str]:
        """The names that forward_features knows, in the order of computation."""
        names = ["patch_embed"]
        for number, layer in enumerate(self._stages):
            for place in range(len(layer.blocks)):
                names += [f"layers.{number}.blocks.{place}.attention", f"layers.{number}.blocks.{place}"]
            names.append(f"layers.{number}")
        return [*names, "norm", "pooled"]

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order: what is recomputed, compiled and sharded one by one."""
        return [block for layer in self._stages for block in layer.blocks]

    def no_decay(self) -> set[str]:
        """Norms, biases, tables of relative positions and what makes them, temperatures."""
        return super().no_decay() | {name for name, _ in self.named_parameters() if "cpb_mlp" in name}

    def reset_buffers(self) -> None:
        """Fill the buffers, in place, with what they hold by definition; to_empty leaves them undefined."""
        for block in self.units():
            cast(WindowAttention, block.attn).reset_buffers()


def build(model: Swin) -> SwinTransformer:
    """The model section -> the model, on torch's current default device.  Raises RecipeError."""
    return SwinTransformer(model)
