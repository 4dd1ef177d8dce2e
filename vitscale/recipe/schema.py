"""Every section and key of a recipe: its type, its unit, its default.  Components import their section; never the reverse."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from vitscale.metrics import numbers_of
from vitscale.recipe.duration import Duration, DurationOrTime
from vitscale.recipe.fields import (
    Code,
    Colour,
    Count,
    CountOrZero,
    Depths,
    Fraction,
    Interval,
    Jitter,
    Judge,
    NotNegative,
    OneOfFeatures,
    Positive,
    Rate,
    Section,
    Stretch,
    Urls,
    Windows,
    pair,
    plain,
    whole,
)
from vitscale.recipe.objectives import OBJECTIVES, Classification, OneObjective
from vitscale.recipe.steps import Steps

JUDGE = numbers_of("classification").judge.column               # by which they are where the recipe names no objective
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]      # vitscale/models/mlp.py
Interpolation = Literal["bicubic", "bicubic_antialias", "bilinear", "bilinear_antialias", "geometric"]      # vitscale/models/position.py


class Model(Section):
    """What every family of models has.  `family` says which of FAMILIES the section is."""

    code: ClassVar[Code]
    family: str
    image: Count = 224                      # pixels on a side
    channels: Literal[1, 3] = 3
    classes: CountOrZero = 1000             # 0: no head, forward() gives pooled features
    dropout: Rate = 0.0
    drop_path: Rate = 0.0                   # stochastic depth of the last block (Huang et al. 2016)
    drop_path_schedule: Literal["linear", "constant"] = "linear"    # rises linearly from 0 in the first block, or is that of all (DeiT III)


class Vit(Model):
    """A Vision Transformer (Dosovitskiy et al. 2021).  Sizes and their sources: vitscale/shapes/vit.py."""

    code: ClassVar[Code] = Code("models.vit:build", "plan.vit:anatomy", "shapes.vit:problems")
    family: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large", "so400m", "huge", "giant", "gigantic"] | None = None
    width: Count | None = None              # D; with depth, heads and mlp it overrides, or stands in for, the size
    depth: Count | None = None              # L, number of blocks
    heads: Count | None = None              # H; divides the width
    mlp: Count | None = None                # hidden width of a block's MLP
    patch: Count = 16                       # P, pixels on a side; divides the image
    patch_embed: Literal["patch", "overlap", "hybrid", "conv_stem", "positional", "adaptive"] = "patch"   # vitscale/models/patch_embed*.py
    hybrid_width: Count = 64                # of hybrid: channels of its ResNet's stem, in groups of 32
    hybrid_depths: Depths | None = None     # of hybrid: blocks of each ResNet stage; null: two each; R50+ViT-B/16: [3, 4, 9]
    class_tokens: Count = 1                 # of pool token; several are laid side by side for the head
    registers: CountOrZero = 0              # tokens without a place or a use of their own (Darcet et al. 2024)
    pool: Literal["token", "mean", "attention", "token_mean"] = "token"   # token_mean: both beside each other (DINOv2's heads)
    pool_include_prefix: bool | None = None     # mean or attention over what is no patch as well; null: attention does, the mean does not
    pool_heads: Count | None = None         # of attention pooling; null: heads
    pool_mlp: Count | None = None           # hidden width of attention pooling's MLP; null: mlp
    final_norm: bool = True                 # a norm after the last block; CLIP's mean of patches: false
    post_norm: bool = False                 # norms come after attention and MLP, not before them (Liu et al. 2022, Swin V2)
    pre_norm: bool = False                  # a norm before the first block, and no bias of the patches (Radford et al. 2021, CLIP)
    pool_norm: bool = False                 # the last norm comes after any pooling (MAE's fine-tuning, timm's fc_norm), not before it
    head_hidden: Count | None = None        # width of a hidden layer (tanh) before the classifier (Dosovitskiy et al. 2021, section 3.1)
    head_dropout: Rate = 0.0                # before the classifier
    position: Literal["learned", "sincos", "rotary", "relative", "none"] = "learned"   # vitscale/models/position.py; relative: a bias
    position_interpolation: Interpolation = "bicubic"   # of tables, at another size than the model's; timm: bicubic_antialias
    relative_mlp: Count | None = None       # of relative: hidden width of a network that finds biases by log-spaced offsets; null: a table
    rope_type: Literal["dinov3", "axial", "mixed"] | None = None   # queries and keys are turned; null: those of position rotary, dinov3
    rope_temperature: Positive = 100.0      # of rotary positions, from which their (of mixed: first) frequencies fall; EVA-02: 10000
    rope_grid: Count | None = None          # of axial: patches on a side that any grid counts as (EVA-02); null: its own
    rope_offset: float = 0.0                # of rotary: added to each patch's number (1: Perception Encoder)
    rope_shift: Positive | None = None      # of dinov3, in training: places in -1..1 are moved by up to so much along each axis
    rope_jitter: Stretch | None = None      # then stretched by 1 / it to it, each axis by itself
    rope_rescale: Stretch | None = None     # then both alike (Siméoni et al. 2025: 2)
    attention: Literal["full", "local", "axial", "sparse", "linear"] = "full"   # who looks at whom: vitscale/models/attention*.py
    window: Count = 7                       # of local: patches on a side of a window, as in Swin; divides the grid of patches
    halo: CountOrZero = 3                   # of local: patches around its window that it sees besides (Vaswani et al. 2021, HaloNet)
    sparse_block: Count = 14                # of sparse: patches of a block, in the order of rows; 14 are a row of 224 / 16
    sparse_random: CountOrZero = 3          # of sparse: blocks that a block sees besides its neighbours (Zaheer et al. 2020, BigBird)
    class_position: bool = True             # learned positions have rows for class and distillation tokens; DeiT III: false
    qkv_bias: bool = True
    key_bias: bool = True                   # with qkv_bias: of keys too; BEiT, EVA, DINOv3: false
    qk_norm: bool = False                   # LayerNorm of queries and keys, head by head (Dehghani et al. 2023, ViT-22B)
    scale_attn_norm: bool = False           # sub-LN: a norm before attention's last layer (Wang et al. 2022, Foundation transformers)
    scale_mlp_norm: bool = False            # sub-LN: and before the MLP's (EVA-02)
    hidden_act: Activation = "gelu"         # of MLPs without a gate, attention pooling's among them
    gated: bool = False                     # SwiGLU in place of GELU, mlp wide after the gate (Shazeer 2020)
    parallel: bool = False                  # attention and MLP side by side behind one norm (Dehghani et al. 2023, ViT-22B)
    drop_path_group: Count | None = None    # stochastic depth leaves out a share of each so many images, uncomputed; null: by chance
    layer_scale: Positive | None = None     # initial value of LayerScale's gamma (Touvron et al. 2021); null: none
    norm_eps: Positive = 1e-6               # of every LayerNorm: that of the papers' JAX code and of timm; transformers' default is 1e-12
    mup_base_width: Count | None = None     # muP (Yang et al. 2022): optim.lr and initial values are those of this width; null: standard
    mup_base_head_width: Count | None = None    # of muP: where heads are as wide as this, attention is scaled as usual; null: as these are


class Deit(Vit):
    """A Vision Transformer with a distillation token and a head of its own for it (Touvron et al. 2021, DeiT)."""

    code: ClassVar[Code] = replace(Vit.code, build="models.deit:build")
    family: Literal["deit"]  # type: ignore[assignment]


class Swin(Model):
    """A Swin Transformer, version 1 or 2 (Liu et al. 2021, 2022).  Sizes and their sources: vitscale/shapes/swin.py."""

    code: ClassVar[Code] = Code("models.swin:build", "plan.swin:anatomy", "shapes.swin:problems")
    family: Literal["swin"]
    version: Literal[1, 2] = 1
    size: Literal["tiny", "small", "base", "large"] | None = None
    width: Count | None = None              # C, channels of the first stage; doubles in each stage
    depths: Depths | None = None            # blocks of each stage
    heads: Depths | None = None             # heads of each stage
    window: Count = 7                       # M, tokens on a side of a window
    windows: Depths | None = None           # a window for each stage; null: `window` is that of all
    pretrained_windows: Windows | None = None   # of version 2: each stage's windows before, which its offsets are counted in; null, 0: M
    patch: Count = 4                        # P, pixels on a side
    position: Literal["none", "learned"] = "none"   # learned: a table for the first stage's tokens besides the biases
    position_interpolation: Interpolation = "bicubic"   # of that table and of biases, at another size
    hidden_act: Activation = "gelu"
    norm_eps: Positive = 1e-5               # of every LayerNorm


class ConvNext(Model):
    """A ConvNeXt, version 1 or 2 (Liu et al. 2022; Woo et al. 2023).  Sizes and their sources: vitscale/shapes/convnext.py."""

    code: ClassVar[Code] = Code("models.convnext:build", "plan.convnext:anatomy", "shapes.convnext:problems")
    family: Literal["convnext"]
    version: Literal[1, 2] = 1
    size: Literal["atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge", "huge"] | None = None
    widths: Depths | None = None            # channels of each stage
    depths: Depths | None = None            # blocks of each stage
    stem: Literal["patch", "overlap", "overlap_tiered"] = "patch"   # 4 x 4 pixels, or two convolutions of 3 x 3 (tiered: by half the width)
    kernel: Count = 7                       # of the depthwise convolutions, an odd number
    layer_scale: Positive | None = None     # first value of version 1's gammas; null: 1e-6
    use_grn: bool | None = None             # global response normalisation in the MLPs; null: of version 2
    hidden_act: Activation = "gelu"
    head_hidden: Count | None = None        # width of a hidden layer (GELU) before the classifier
    norm_eps: Positive = 1e-6               # of every LayerNorm
    head_norm_eps: Positive | None = None   # of the one before the classifier; null: as the others; transformers' default is 1e-12


FAMILIES: dict[str, type[Model]] = {"vit": Vit, "deit": Deit, "swin": Swin, "convnext": ConvNext}


class External(Model):
    """A backbone that another installed package offers under the name `family`, which is none of FAMILIES: docs/extending.md."""

    code: ClassVar[Code] = Code("models.external:build")
    family: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", json_schema_extra={"not": {"enum": list(FAMILIES)}})]
    options: Annotated[dict[str, Any], BeforeValidator(plain)] = Field(default={})     # its own keys, which its builder knows

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


EXTERNAL = "external"       # stands for the families of other packages where the section of a family is looked up
SECTIONS: dict[str, type[Model]] = {**FAMILIES, EXTERNAL: External}
if TYPE_CHECKING:
    OneModel: TypeAlias = Model
else:
    OneModel = Union[tuple(Annotated[section, Tag(name)] for name, section in SECTIONS.items())]      # noqa: UP007


OPTIMIZERS = {"adamw": 2, "lamb": 2, "lion": 1, "sgd": 1}       # how many moments of each parameter they keep, in fp32
if TYPE_CHECKING:
    OneOptimizer = str
else:
    OneOptimizer = Literal[tuple(OPTIMIZERS)]


class RandAugment(Section):
    """RandAugment (Cubuk et al. 2020) as timm has it; the defaults are its `rand-m9-mstd0.5-inc1`.  The operations: data/policy.py."""

    num_ops: Annotated[int, Field(ge=1, le=5), BeforeValidator(whole)] = 2   # operations drawn for an image, with replacement
    magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    magnitude_std: NotNegative = 0.5        # of the normal distribution that each operation's magnitude is drawn from
    prob: Fraction = 0.5                    # that an operation, once drawn, is applied
    increasing: bool = True                 # posterize, solarize, colour, contrast, brightness, sharpness grow with the magnitude


class Erasing(Section):
    """Random erasing (Zhong et al. 2020) of one rectangle of the normalised image."""

    prob: Fraction = 0.25
    mode: Literal["pixel", "const"] = "pixel"   # what is put there: normal noise, or the mean colour
    scale: Interval = (0.02, 1 / 3)         # share of the image's area
    ratio: Interval = (0.3, 10 / 3)         # height over width


class Augment(Section):
    """What a training image goes through.  Every random parameter is drawn by key, never from a global generator."""

    crop: Literal["random", "center"] = "random"    # random resized crop (Szegedy et al. 2015), or resize and centre crop
    scale: Interval = (0.08, 1.0)                   # share of the image's area that a random crop takes
    ratio: Interval = (3 / 4, 4 / 3)                # width over height of a random crop
    flip: Fraction = 0.5                            # probability of a horizontal flip
    rand_augment: RandAugment | None = None
    three_augment: bool = False                     # one of greys, solarize, blur for every image (Touvron et al. 2022, DeiT III)
    color_jitter: Jitter = (0.0, 0.0, 0.0, 0.0)     # brightness, contrast, saturation (0.4: 0.6 to 1.4 times), hue (turns); or one number
    color_jitter_prob: Fraction = 1.0               # that an image goes through it at all (Chen et al. 2020, SimCLR: 0.8)
    grey: Fraction = 0.0                            # probability of greys in place of colours
    blur: Fraction = 0.0                            # probability of a Gaussian blur
    blur_radius: Interval = (0.1, 2.0)              # its standard deviation in pixels, drawn evenly; under 2.4
    solarize: Fraction = 0.0                        # probability that what is at least 128 is inverted
    erasing: Erasing | None = None
    mixup: NotNegative = 0.0                        # alpha of mixup (Zhang et al. 2018), inside groups; 0: off
    cutmix: NotNegative = 0.0                       # alpha of CutMix (Yun et al. 2019), inside groups; 0: off
    mix_prob: Fraction = 1.0                        # that a group is mixed, if one of the two is on
    switch_prob: Fraction = 0.5                     # that it is by CutMix, if both are
    mean: Colour = (0.485, 0.456, 0.406)            # RGB, 0..1; ImageNet's
    std: Colour = (0.229, 0.224, 0.225)


class MixSet(Section):
    """One of several sets of shards that are mixed by weight."""

    shards: Urls                            # brace URLs or globs
    weight: Positive = 1.0                  # its share of every batch is in proportion to it
    num_samples: Count | None = None        # `plan` takes it from here


class ViewSet(Section):
    """Views of every image that are cut out and changed alike, each by draws of its own (Caron et al. 2020, SwAV: multi-crop)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    count: Annotated[int, Field(ge=1, le=64), BeforeValidator(whole)] = 1
    image: Count | None = None              # pixels on a side; null: model.image
    augment: Augment | None = None          # null: data.augment; mean and std are always those of data.augment


class Data(Section):
    train: Urls | None = None               # brace URLs or globs of WebDataset shards
    mix: Annotated[tuple[MixSet, ...], BeforeValidator(pair)] = ()   # or sets, each in epochs of its own; no durations in epochs then
    val: Urls | None = None
    num_samples: Count | None = None        # training samples; `plan` takes it from here, `train` compares it
    lanes: Count | None = None              # parallel streams through the dataset; null: see recipe.check.default_lanes
    group: Count | None = None              # consecutive positions that may be mixed with each other; null: 1 unless something mixes
    index_dir: str | None = None            # null: beside the shards if writable, else a per-user cache
    cache_dir: str | None = None            # of remote shards, on a disk of the node; null: the user's folder in the temporary one
    cache_bytes: Count = 50_000_000_000     # what it may take on each node
    prepare: Literal["digits"] | None = None  # a data set vitscale can pack itself when its shards are absent
    repeats: Count = 1                      # copies of each sample in a batch, with draws of their own (Hoffer et al. 2020)
    label: str | None = "cls"               # member with the class, or json:path.to.field of its .json; null: unlabelled
    image: str | None = None                # member with the image, such as left.jpg; null: the one with the ending of an image
    group_members: Literal["adjacent", "anywhere"] = "adjacent"     # members of one key: one behind the other, or anywhere in the shard
    class_map: str | None = None            # text file with a class name on each line: labels are names; null: they are numbers
    mask: str | None = None                 # of data.val: member with a class number at each pixel, a PNG such as mask.png; 255: none
    mask_classes: Annotated[int, Field(ge=2, le=255), BeforeValidator(whole)] | None = None     # how many classes pixels have
    multi_label: bool = False               # a sample has any number of labels: a JSON list, or numbers between spaces or commas
    exif_orientation: Literal["ignore", "apply"] = "ignore"   # turn images upright; ignore: as stored, as PIL and timm decode
    augment: Augment = Augment()
    views: Annotated[tuple[ViewSet, ...], BeforeValidator(pair)] = ()   # of objectives that compare views of an image; else there is one
    workers: Count | None = None            # decoding threads of one rank; null: the rank's share of the cores
    prefetch: Count = 4                     # micro-batches decoded ahead of the device
    max_bad_fraction: Fraction = 0.001      # unreadable samples, as a share of those read, past which the run stops
    log_samples: bool = False               # write the ids of each step to logs/samples.jsonl


class Optim(Section):
    name: OneOptimizer = "adamw"
    lr: NotNegative                         # peak learning rate
    betas: Annotated[tuple[Rate, Rate], BeforeValidator(pair)] = (0.9, 0.999)     # of lion usually (0.9, 0.99); sgd's momentum: the first
    eps: Positive = 1e-8                    # of adamw and lamb
    weight_decay: NotNegative = 0.05        # decoupled but for sgd; norms, biases, positions and tokens are exempt
    weight_decay_end: Positive | None = None    # where it goes by half a cosine from there, over the whole run (DINO); null: it stays
    schedule: Literal["cosine", "linear", "rsqrt", "wsd", "constant"] = "cosine"
    warmup: Duration = Duration(0, "steps")
    cooldown: Duration | None = None        # linear fall to min_lr at the end: rsqrt, wsd
    timescale: Duration | None = None       # rsqrt: lr ~ sqrt(timescale / (timescale + t)) after the warm-up; null: the warm-up
    min_lr: NotNegative = 0.0               # where cosine, linear and a cooldown end
    clip_norm: Positive | None = None       # global gradient norm
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0    # of fine-tuning: each block before the head learns so much more slowly (BEiT)
    patch_embed_rate: Annotated[float, Field(gt=0, le=1)] = 1.0     # share of the learning rate that the patch embedding has (DINOv2: 0.2)
    freeze: Literal["backbone"] | CountOrZero = 0   # that many first blocks, of Swin and ConvNeXt stages, with what stands before them stay


class Lora(Section):
    """Fine-tune by small products of matrices beside those that stay as they are (Hu et al. 2022, LoRA), through peft."""

    rank: Count = 8
    alpha: Positive = 16.0                  # the products are scaled by alpha / rank
    targets: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(pair)] = ("attn.qkv", "attn.proj")   # ends of layers' names


# How each engine's ranks hold the state of training: each all of it, all of it between them, or in groups, the axes of recipe/axes.py.
ENGINES = {"ddp": "copies", "fsdp": "axes", "zero": "shares", "accelerate": "copies"}
if TYPE_CHECKING:
    OneEngine = str
else:
    OneEngine = Literal[tuple(ENGINES)]


class Parallel(Section):
    engine: OneEngine = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Count | None = None          # ranks that `train` starts on this node; null: one per GPU, on a CPU one
    replicate: Literal["nodes"] | Count | None = None   # fsdp: groups of ranks, each with the whole state, sharded inside it; null: one
    gather: Literal["each", "once"] = "each"    # fsdp: parameters for each forward and backward pass, or once a step and kept for all
    tensor: Count = 1                       # fsdp: ranks of a node that share each block's matrices (Shoeybi et al. 2019, Megatron-LM)
    zero_stage: Literal[1, 2, 3] = 2        # DeepSpeed: what is sharded (1 optimizer, 2 and gradients, 3 and parameters)
    zero_offload: bool = False              # DeepSpeed: optimizer state in host memory
    precision: Literal["fp32", "bf16"] = "fp32"   # bf16 compute, fp32 master weights and gradient reduction
    recompute: Literal["none", "blocks", "selective"] = "none"   # selective keeps matmul and attention outputs
    recompute_every: Count = 1              # blocks: every k-th block is recomputed
    compile: bool = False                   # torch.compile, block by block
    kernels: Literal["auto", "torch"] = "auto"      # on a GPU those of ours that compute right there: docs/performance.md


class Checkpoint(Section):
    every: DurationOrTime | None = Duration(15, "minutes")    # or '2 epochs', '5000 steps'; null: only at the end and when stopped
    keep: Count = 3                         # the newest this many; the best one is kept besides
    best: Judge | None = JUDGE              # absent: what the objective is evaluated by (vitscale/metrics); null: none is kept
    background: bool = True                 # write from a staged copy while training goes on


class EarlyStopping(Section):
    metric: Judge = JUDGE                   # absent: what the objective is evaluated by
    patience: Count = 10                    # evaluations without a gain of min_gain
    min_gain: NotNegative = 0.0


class Evaluate(Section):
    every: Duration | None = None           # null: only at the end
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875   # share of the shorter side that the centre crop keeps
    early_stopping: EarlyStopping | None = None
    features: Annotated[tuple[OneOfFeatures, ...], BeforeValidator(pair)] = ()     # told of the features too: docs/self-supervised.md


class Ema(Section):
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999   # of an fp32 average of the weights, each step


class Observe(Section):
    log_every: Count = 1                    # steps between rows of metrics.jsonl
    exporter: bool = True                   # Prometheus metrics over HTTP
    exporter_port: Annotated[CountOrZero, Field(le=65535)] = 0   # 0: a free one
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(pair)] = ()   # given every row as well
    peak_flops: Positive | None = None      # FLOP/s of one device that MFU is measured against; null: data sheet, on a CPU measured


class Spike(Section):
    """When a loss counts as a spike: so far above the median of the accepted losses before it, so often in a row."""

    window: Annotated[int, Field(ge=10), BeforeValidator(whole)] = 100     # steps of which median and spread are taken; before, no rule
    deviations: Positive = 10.0             # spread is 1.4826 x the median absolute deviation: a normal distribution's standard deviation
    in_a_row: Count = 3


class Resilience(Section):
    max_nonfinite: Count = 5                # updates skipped in a row for a non-finite loss or gradient, then the run rolls back
    spike: Spike | None = Spike()           # null: a high loss alone never rolls back
    max_rollbacks: CountOrZero = 3          # to the last good checkpoint, passing over the batches at fault; then the run stops
    max_restarts: Count = 3                 # attempts in a row that got no further, then the run stops
    hang_timeout: Positive | None = 60.0    # seconds without progress after which the attempt is ended; null: no watchdog
    startup_timeout: Positive = 1800.0      # the same until the first step has ended: compiling, indexing, reading a checkpoint
    straggler_ratio: Annotated[float, Field(gt=1)] = 1.5    # a rank this many times slower than the median is named
    preflight: bool = True                  # look at devices, exchange, disk and clocks before the first step
    exclude_bad_nodes: bool = False         # nodes that fail there, or whose devices are slow, are left out when the job is requeued


def _chosen(key: str, default: str) -> Discriminator:
    """Which of several sections a value is, told by its `key`."""
    def choose(value: Any) -> Any:
        return value.get(key, default) if isinstance(value, dict) else getattr(value, key, default)

    return Discriminator(choose)


def _family(value: Any) -> Any:
    """As _chosen, where another package may offer the family.  A section with keys that only families of ours have is one of ours that is
    misspelt, so that the message names them."""
    if isinstance(value, External):
        return EXTERNAL
    family = value.get("family", "vit") if isinstance(value, dict) else getattr(value, "family", "vit")
    if not isinstance(value, dict) or not isinstance(family, str) or family in FAMILIES:
        return family
    return EXTERNAL if "options" in value or value.keys() <= External.model_fields.keys() else family


# Keys of a recipe whose section is one of several: the key that says which, and the sections by its value.
CHOICES: dict[str, tuple[str, Mapping[str, type[Section]]]] = {"model": ("family", SECTIONS), "objective": ("name", OBJECTIVES)}

FORMAT = 1      # of recipes: grows when a key is renamed or retired, or its absence means something else: vitscale/recipe/upgrade.py


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    model: Annotated[OneModel, Discriminator(_family)]
    data: Data
    objective: Annotated[OneObjective, _chosen("name", "classification")] = Classification()
    optim: Optim
    global_batch: Count                     # samples of one optimizer step over all ranks
    micro_batch: Count | None = None        # samples of one forward pass of one rank; null: what fits in memory
    duration: Duration
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    ema: Ema | None = None
    lora: Lora | None = None                # of fine-tuning: what `init` gave stays, and adapters learn
    observe: Observe = Observe()
    resilience: Resilience = Resilience()
    seed: Annotated[CountOrZero, Field(lt=2**64)] = 0
    runs_dir: str = "runs"                  # the run folder is runs_dir/name
    profile: Steps | None = None            # steps:20-25: torch profiler traces of those steps and a summary, in the run folder's profile/
    init: str | None = None                 # whose weights a new run starts from: run folder, checkpoint, .safetensors, exported folder
    format: Count = FORMAT                  # of the keys, as a run saves it; left out in a file, old names are still understood

    @property
    def keeps_average(self) -> bool:
        """Whether an average of the weights is kept beside them."""
        return self.ema is not None or self.objective.averages

    @model_validator(mode="before")
    @classmethod
    def _judge(cls, values: Any) -> Any:
        """What is not said of the best checkpoint, and of what early stopping waits for, follows from the objective."""
        objective = values.get("objective") if isinstance(values, dict) else None
        name = objective.get("name") if isinstance(objective, dict) else getattr(objective, "name", None)
        judge = numbers_of(name).judge.column if isinstance(name, str) and name in OBJECTIVES else JUDGE
        if judge == JUDGE:
            return values
        found = values | {"checkpoint": _with_default(values.get("checkpoint", {}), "best", judge)}
        evaluate = values.get("evaluate")
        stopping = evaluate.get("early_stopping") if isinstance(evaluate, dict) else getattr(evaluate, "early_stopping", None)
        if stopping is not None:
            stopping = {"early_stopping": _with_default(stopping, "metric", judge)}
            found["evaluate"] = evaluate | stopping if isinstance(evaluate, dict) else evaluate.model_copy(update=stopping)
        return found


def _with_default(section: Any, key: str, value: Any) -> Any:
    """A section, as plain values or built, whose `key` is `value` if it was not given; what is no section stays for others to refuse."""
    if isinstance(section, Section):
        return section if key in section.model_fields_set else section.model_copy(update={key: value})
    return {key: value} | section if isinstance(section, dict) else section
