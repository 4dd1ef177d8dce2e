"""A model taken apart, as far as the planner must know it: the same for every family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One block: what is recomputed, compiled and sharded as a whole.  All counts are of one image."""

    params: int
    stream: int             # numbers in the residual stream that enters it: what a recomputed block keeps
    kept: int               # numbers kept for the backward pass in the computing precision, nothing recomputed
    normed: int             # of these, inputs of norms: autocast keeps them in fp32
    kept_fp32: int          # kept besides, always in fp32: the log-sum-exps of attention
    outputs: int            # of `kept`, the block's input and the outputs of matrix products and attention: selective recomputation
    mask_bytes: int         # masks of elementwise dropout
    in_flight: int          # numbers of the gradients that live at once while it is differentiated


@dataclass(frozen=True)
class Anatomy:
    """All counts of FLOPs and numbers are of one image."""

    params: dict[str, int]      # by component; their sum is the model's
    flops: dict[str, int]       # of the forward pass by component; a multiply-add is 2
    units: tuple[Unit, ...]     # in order
    normed: int                 # numbers that the last norms get
    outputs: int                # numbers that the model gives: logits, pixels
    pooled: int = 0             # numbers that the pooling, or the layers about a decoder, keep
    stem: int = 0               # numbers that a patch embedding keeps besides the image
    mask_bytes: int = 0         # masks of elementwise dropout outside the units
