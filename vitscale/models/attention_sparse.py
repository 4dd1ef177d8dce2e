"""Each patch looks at its neighbours and at some others, chosen once and for all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.models.attention import Layout
from vitscale.models.attention_pattern import PatternAttention, group_attention, with_before

PRIME = 2**31 - 1       # products of two numbers below it fit int64


class SparseAttention(PatternAttention):
    """Blocks of b patches that follow each other row by row look at themselves, the block before, the block after (in a circle), and
    `random` others (Zaheer et al. 2020, BigBird, section 2 and appendix D; its global tokens are what stands before the patches).

    The others are drawn by a hash of layer, block and block: the same on every device and rank, others in every layer.  The last block is
    filled up with patches that nobody looks at; where there are no more than 3 + random blocks, all look at all.
    O(N (3 + random) b D + N D^2).
    """

    layer: Tensor

    def __init__(self, width: int, heads: int, block: int, random: int, layer: int, **options: Any) -> None:
        super().__init__(width, heads, **options)
        self.block, self.random, self.number = block, random, layer
        # a tensor, not a number: a number would be built into the compiled graph, one graph for each layer
        self.register_buffer("layer", torch.tensor(layer), persistent=False)

    def reset_buffers(self) -> None:
        self.layer.fill_(self.number)

    def chosen(self, num_blocks: int) -> Tensor:
        """The blocks that each block looks at: (blocks, min(3 + random, blocks)), int64, those near first."""
        block = torch.arange(num_blocks, device=self.layer.device)
        from_, to = block[:, None], block[None, :]
        mixed = (self.layer * 48_271 + from_ * 69_621 + to * 39_373 + 1) % PRIME
        for _ in range(3):
            mixed = (mixed * mixed + mixed * 16_807 + 12_345) % PRIME
        apart = (from_ - to).abs()
        apart = torch.minimum(apart, num_blocks - apart)
        order = torch.where(apart <= 1, apart - 2, mixed)           # itself first, then its neighbours, then as the hash has it
        return (order * num_blocks + to).argsort(dim=1)[:, :3 + self.random]

    def mix_patches(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        before, patches = layout.before, query.shape[2]
        filling = -patches % self.block
        chosen = self.chosen((patches + filling) // self.block)

        def cut(tokens: Tensor) -> Tensor:
            return F.pad(tokens, (0, 0, 0, filling)).unflatten(2, (-1, self.block))                 # (B, H, blocks, b, K)

        keys, values = (with_before(cut(both[:, :, before:])[:, :, chosen].flatten(3, 4), both[:, :, :before]) for both in (key, value))
        seen = None
        if filling:
            places = torch.arange(patches + filling, device=query.device).unflatten(0, (-1, self.block))
            seen = F.pad((places < patches)[chosen].flatten(1, 2), (before, 0), value=True)
        return group_attention(cut(query), keys, values, seen).flatten(2, 3)[:, :, :patches]

    def allowed(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        patches = grid[0] * grid[1]
        num_blocks = -(-patches // self.block)
        blocks = torch.zeros(num_blocks, num_blocks, dtype=torch.bool, device=device).scatter(1, self.chosen(num_blocks), True)
        block = torch.arange(patches, device=device) // self.block
        return blocks[block[:, None], block[None, :]][None]
