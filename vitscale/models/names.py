"""What a parameter is, told by its name: the names are timm's."""

from collections.abc import Sequence

# learned vectors that stand in the place of tokens, biases of attention, temperatures, frequencies
TABLES = ("cls_token", "dist_token", "reg_token", "mask_token", "pos_embed", "latent", "relative_position_bias_table", "logit_scale",
          "rope_freqs")

CLASSIFIERS = ("head.weight", "head.bias", "head.fc.weight", "head.fc.bias", "head_dist.weight", "head_dist.bias")
HEAD = (*CLASSIFIERS, "fc_norm.", "pre_logits.", "attn_pool.")      # how names begin of what comes after the backbone
PRETRAINING = ("decoder_", "mask_token", "dino_head.", "ibot_head.", "projector.")      # and of what serves pretraining without labels


def depth_of(name: str, units: Sequence[str]) -> int:
    """How deep in a model a parameter lies: 0 before the blocks, 1 + i in the i-th of `units` (their names), len(units) + 1 behind them.

    Bao et al. 2022 (BEiT) count so.  What stands between stages counts with the block after it.
    """
    for depth, unit in enumerate(units, 1):
        if name.startswith(unit + "."):
            return depth
    if name.startswith((*HEAD, *PRETRAINING, "norm.", "head.")):
        return len(units) + 1
    stage = name.partition(".downsample.")[0] + "."
    return next((depth for depth, unit in enumerate(units, 1) if unit.startswith(stage)), 0)


def leaf(name: str) -> str:
    """`blocks.0.attn.qkv.weight` -> `weight`."""
    return name.rpartition(".")[2]


def is_exempt(name: str, shape: Sequence[int]) -> bool:
    """Is the parameter exempt from weight decay?  All with one dimension (norms, biases, gammas), and the TABLES."""
    return len(shape) <= 1 or leaf(name) in TABLES
