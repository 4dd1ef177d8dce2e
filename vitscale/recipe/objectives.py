"""The objective section of a recipe: which objectives there are, and the keys of each."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, Union

from pydantic import BeforeValidator, Field, Tag

from vitscale.recipe.duration import Duration
from vitscale.recipe.fields import Count, Fraction, Interval, NotNegative, Positive, Rate, Section, whole
from vitscale.recipe.schedules import NumberSchedule, ScheduleOrNumber, constant

Several = Annotated[int, Field(ge=2), BeforeValidator(whole)]


class Objective(Section):
    """What every objective has.  `name` says which of OBJECTIVES the section is."""

    name: str

    wants_labels: ClassVar[bool] = True     # else they are not even read
    wants_views: ClassVar[bool] = False     # it compares views of an image: data.views
    averages: ClassVar[bool] = False        # its teacher is the average of what is trained

    @property
    def own_classes(self) -> int | None:
        """How many classes it tells apart by itself; None: those of the labels, or none."""
        return None

    @property
    def own_group(self) -> int:
        """Consecutive samples that its loss looks at together; data.group is a multiple of it."""
        return 1

    @property
    def frozen(self) -> str | None:
        """Folder of a network that it asks and that stays as it is."""
        return None


class Classification(Objective):
    name: Literal["classification"] = "classification"
    # an evaluation's loss is the cross-entropy of the labels as they are, whatever is trained with; with data.multi_label the binary one
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    label_smoothing: Rate = 0.0             # in training only


class Distillation(Classification):
    """A frozen teacher's answers beside, or instead of, the labels (Touvron et al. 2021, DeiT, section 3)."""

    name: Literal["distillation"]  # type: ignore[assignment]
    teacher: str                            # a run folder, or a folder of transformers' with config.json and model.safetensors
    kind: Literal["hard", "soft"] = "hard"  # the teacher's choice as a label, or its distribution
    alpha: Fraction = 0.5                   # the teacher's share of the loss; DeiT: 0.5 hard, 0.1 soft
    temperature: Positive = 3.0             # of soft: logits are divided by it

    @property
    def frozen(self) -> str | None:
        return self.teacher


class MaeDecoder(Section):
    """A small Transformer that is thrown away after pretraining; its MLP is 4 times as wide as its tokens."""

    width: Count = 512
    depth: Count = 8                        # number of blocks
    heads: Count = 16                       # divides the width


class Mae(Objective):
    """Masked autoencoding (He et al. 2022).  Defaults are the paper's (section 4, table 1)."""

    name: Literal["mae"]
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75     # share of the patches that the encoder never sees
    norm_pix: bool = False                  # each patch's pixels are to be told as deviations from its own mean (tables 1d and 3: better)
    decoder: MaeDecoder = MaeDecoder()

    wants_labels: ClassVar[bool] = False


class Inpainting(Objective):
    """Masked patches are told from the others (Pathak et al. 2016) by masked tokens and one layer (Xie et al. 2022, SimMIM)."""

    name: Literal["inpainting"]
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6      # share of the squares that are masked
    mask_patch: Count = 32                  # pixels on a side of what is masked as one: a multiple of model.patch; divides the image

    wants_labels: ClassVar[bool] = False


class Rotation(Objective):
    """By which quarter turn an image was rotated (Gidaris et al. 2018): four classes."""

    name: Literal["rotation"]

    wants_labels: ClassVar[bool] = False

    @property
    def own_classes(self) -> int:
        return 4


class Jigsaw(Objective):
    """In which of some permutations the tiles of an image were laid (Noroozi & Favaro 2016)."""

    name: Literal["jigsaw"]
    grid: Several = 2      # tiles on a side; divides the image into whole patches
    permutations: Annotated[int, Field(ge=2, le=1000), BeforeValidator(whole)] = 24    # that are told apart; of 2 x 2 tiles there are 24

    wants_labels: ClassVar[bool] = False

    @property
    def own_classes(self) -> int:
        return self.permutations


class Dino(Objective):
    """Self-distillation with no labels (Caron et al. 2021).  Defaults are those of the paper's code."""

    name: Literal["dino"]
    prototypes: Several = 65536     # K, what views of an image are to agree on
    hidden: Count = 2048                    # width of the head's hidden layers
    bottleneck: Count = 256                 # width of what is compared with the prototypes
    layers: Count = 3                       # of the head before the prototypes
    global_views: Count = 2                 # of the views, in the order of data.views, the first so many are the teacher's too
    momentum: ScheduleOrNumber = NumberSchedule(start=0.996, end=1.0)     # of the teacher, which is the student's average
    student_temp: Positive = 0.1
    teacher_temp: ScheduleOrNumber = constant(0.04)   # of long runs {start: 0.04, end: 0.07, over: 30 epochs, shape: linear}
    centring: Literal["average", "sinkhorn"] = "average"    # a moving average of the teacher's logits, or each batch spread evenly
    centre_momentum: Rate = 0.9             # of average
    sinkhorn_iterations: Count = 3          # of sinkhorn
    rest_prototypes: Duration = Duration(0, "images")   # that prototypes stay as they are at first; the paper's: 1 epochs

    wants_labels: ClassVar[bool] = False
    wants_views: ClassVar[bool] = True
    averages: ClassVar[bool] = True


class Ibot(Dino):
    """Self-distillation of views and of hidden patches (Zhou et al. 2022).  Defaults are those of the paper's code."""

    name: Literal["ibot"]  # type: ignore[assignment]
    prototypes: Several = 8192
    patch_prototypes: Several | None = None  # of a head of the patches' own; null: one for both
    patch_weight: NotNegative = 1.0         # of the patches' loss beside the views'
    mask_probability: Fraction = 0.5        # that patches of a teacher's view are hidden from the student
    mask_share: Interval = (0.1, 0.5)       # of its patches, drawn evenly
    koleo: NotNegative = 0.0                # weight of KoLeo, of each of the teacher's views (Sablayrolles et al. 2019; DINOv2: 0.1)
    koleo_group: Several = 16   # images of which each keeps away from the nearest one
    gram: NotNegative = 0.0                 # weight of Gram anchoring of the teacher's views (Siméoni et al. 2025, DINOv3: 2)
    gram_teacher: str | None = None         # of gram: folder of an earlier run, or an export; its patches' likeness is to stay
    gram_image: Count | None = None         # pixels on a side of the same cuts as it sees them; null: model.image

    @property
    def own_group(self) -> int:
        return self.koleo_group if self.koleo else 1

    @property
    def frozen(self) -> str | None:
        return self.gram_teacher


class Dinov2(Ibot):
    """The same with KoLeo and batches spread evenly (Oquab et al. 2024).  Defaults are those of the paper's ViT-L/14."""

    name: Literal["dinov2"]  # type: ignore[assignment]
    prototypes: Several = 131072
    patch_prototypes: Several | None = 131072
    bottleneck: Count = 384
    momentum: ScheduleOrNumber = NumberSchedule(start=0.994, end=1.0)
    centring: Literal["average", "sinkhorn"] = "sinkhorn"
    koleo: NotNegative = 0.1


class Lejepa(Objective):
    """Views that agree, and embeddings that are an isotropic Gaussian (Balestriero & LeCun 2025): no teacher, one weight."""

    name: Literal["lejepa"]
    sigreg: Annotated[float, Field(gt=0, lt=1)] = 0.05      # share of the Gaussian's part of the loss, the rest is the views' (lambda)
    directions: Count = 1024                # in which the embeddings of a step are looked at, drawn anew in each
    embedding: Count = 64                   # width of what is compared
    hidden: Count = 2048                    # width of the projector's hidden layers, each with a LayerNorm (the paper: BatchNorm)
    layers: Count = 3                       # of the projector
    global_views: Count = 2                 # of the views, in the order of data.views; all are to agree with the mean of the first so many

    wants_labels: ClassVar[bool] = False
    wants_views: ClassVar[bool] = True


OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification, "distillation": Distillation, "mae": Mae, "inpainting": Inpainting, "rotation": Rotation,
    "jigsaw": Jigsaw, "dino": Dino, "ibot": Ibot, "dinov2": Dinov2, "lejepa": Lejepa,
}
if TYPE_CHECKING:
    OneObjective: TypeAlias = Objective
else:
    OneObjective = Union[tuple(Annotated[section, Tag(name)] for name, section in OBJECTIVES.items())]      # noqa: UP007
