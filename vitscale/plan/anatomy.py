"""A model taken apart, as far as the planner must know it: the same for every family."""

from dataclasses import dataclass, field

# Numbers that autograd keeps for each hidden one of an MLP, where not two, the activation's input and its output: ReLU keeps its output
# alone, QuickGELU a sigmoid besides
KEPT_OF_MLP = {"relu": 1, "quick_gelu": 3}

@dataclass(frozen=True)
class Unit:
    """One block: what is recomputed, compiled and sharded as a whole.  All counts are of one image."""

    params: int
    stream: int             # numbers in the residual stream that enters it: what a recomputed block keeps
    kept: int               # numbers kept for the backward pass in the computing precision, nothing recomputed
    normed: int             # of these, inputs of norms: autocast keeps them in fp32
    kept_fp32: int          # kept besides, always in fp32: the log-sum-exps of attention
    outputs: int            # the block's input and the outputs of matrix products and attention: what selective recomputation keeps
    spare: int              # of `outputs`, those that are not of `kept`: no operation's gradient asks for them
    attention: int          # of `kept`, what stands between the two linear layers of attention: N D, never N^2
    attention_outputs: int  # of `outputs`, the same
    mask_bytes: int         # masks of elementwise dropout
    in_flight: int          # numbers of the gradients that live at once while it is differentiated, besides what is kept
    at_once: float = 1.0    # of `kept`, the share that is of one pass: the largest, where images of several sizes pass one after the other
    of_weights: int = 0     # numbers of a weight that is brought to length 1 row by row, however many the images


@dataclass(frozen=True)
class Anatomy:
    """All counts of FLOPs and numbers are of one image."""

    params: dict[str, int]      # by component; their sum is the model's
    flops: dict[str, int]       # of the forward pass by component; a multiply-add is 2
    moved: dict[str, int]       # numbers that each component reads and writes besides weights; `elementwise` is all that multiplies nothing
    units: tuple[Unit, ...]     # in order
    normed: int                 # numbers that the last norms get
    outputs: int                # numbers that the model gives: logits, pixels
    pooled: int = 0             # numbers that the pooling, or the layers about a decoder, keep
    one_row: int = 0            # parameters in tensors whose first dimension is 1 (positions, tokens), which FSDP2 fills up to whole copies
    stem: int = 0               # numbers that a patch embedding keeps besides the image
    mask_bytes: int = 0         # masks of elementwise dropout outside the units
    formulas: tuple[tuple[str, str], ...] = ()      # component, how it grows with N and D: a multiply-add is 2
    growth: str = "how it grows as images do, no formula says"      # the same as a sentence
    surveyed: dict[str, int] = field(default_factory=dict)      # FLOPs of the passes without a gradient, a teacher's, by component
    again: dict[str, int] = field(default_factory=dict)     # FLOPs of what several micro-batches are looked at for twice, one only once
    frozen: int = 0             # parameters of a network that is asked and never trained
    frozen_unit: int = 0        # of these, its largest block's
    frozen_outer: int = 0       # and those outside its blocks
    frozen_passing: int = 0     # numbers that live at once while it is asked
    rows: int = 0               # numbers in fp32 that a step keeps of every image until it has come to its losses

    @property
    def training_flops(self) -> int:
        """The backward pass is two products per product of the forward (Kaplan et al. 2020, section 2.1).  What is computed `again` does
        not count, as recomputation does not."""
        return 3 * sum(self.flops.values()) + sum(self.surveyed.values())

    def run_flops(self, images: int | None) -> float | None:
        """Of so many images; None: nobody knows how many."""
        return None if images is None else float(self.training_flops * images)
