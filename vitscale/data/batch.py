"""One micro-batch: what is wanted in it (a plan), what came (tensors), and how samples are fetched into it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitscale.data import remote
from vitscale.data.augment import Erase, Ops
from vitscale.data.bad import BadSample
from vitscale.data.cache import ShardCache
from vitscale.data.crop import CentreCrop, RandomCrop
from vitscale.data.crumbs import SPLITS, Watching
from vitscale.data.decode import Cut, decode_views, upright_size
from vitscale.data.decoded_before import DecodedImages, sum_of
from vitscale.data.index import SetIndex
from vitscale.data.labels import LabelRule, labels_of
from vitscale.data.mask import UNLABELLED, MaskRule, cut_mask, mask_of
from vitscale.data.mix import Mix
from vitscale.data.reader import ShardReader


@dataclass(frozen=True)
class ViewBatch:
    """A set of views of b samples: v views of each, those of the first view of all samples first."""

    images: Tensor          # (v b, S, S, C) uint8, cropped and resized, neither flipped nor normalised
    flip: Tensor            # (v b,) bool: mirror it
    ops: Ops | None = None          # RandAugment, 3-Augment, colour jitter, greys, blur, solarize
    erase: Erase | None = None      # random erasing
    anchor: bool = False            # not the model's: a frozen anchor is shown them


@dataclass(frozen=True)
class MicroBatch:
    """b samples of one forward pass of one rank.  Dummies that fill it up are black, labelled 0, weighted 0."""

    views: tuple[ViewBatch, ...]     # of data.views in their order, then an anchor's; most recipes have one view of each sample
    labels: Tensor          # (b,) int64; of a sample's several labels the first, 0 if it has none
    weight: Tensor          # (b,) float32: 1, or 0 for dummies and samples that could not be read
    ids: Tensor             # (b,) int64 sample ids by the index, -1 for dummies
    index: Tensor           # (b,) int64 place in the global batch (evaluation: in the set), -1 for dummies
    keep: Tensor | None     # (2L, V b) float32, 1 where a residual branch is kept (stochastic depth), rows as in drop_rates, a column for
                            # each of the V views of all sets, in the order of their images; None: all are
    mix: Mix | None = None          # mixup, CutMix
    draws: Tensor | None = None     # (b, K) float32 uniforms in [0, 1) for the objective
    targets: Tensor | None = None   # (b, classes) float32, 1 for each of a sample's labels, if it may have several (data.multi_label)
    masks: Tensor | None = None     # (b, S, S) uint8, the class of each pixel of an evaluation's image, mask.UNLABELLED where it has none

    @property
    def images(self) -> Tensor:
        """Of the first set of views."""
        return self.views[0].images

    @property
    def flip(self) -> Tensor:
        """Of the first set of views."""
        return self.views[0].flip


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of one global batch."""

    step: int
    position: int           # images seen before it
    end: int                # images seen after it
    epoch: int
    size: int               # samples of the whole global batch by the index: the loss's denominator
    micro: list[MicroBatch]     # the same number, of the same size, on every rank in every step
    seed: int = 0           # by which, and its position, what a step draws for all of its samples is drawn


@dataclass(frozen=True)
class ViewPlan:
    """What is drawn for a set of v views of m samples, of which a micro-batch has b."""

    image: int                          # S
    crop: NDArray[np.float64] | None    # (v, m, 22) draws; None: the centre
    flip: NDArray[np.bool_]             # (v, m)
    ops: Ops | None = None              # rows as in ViewBatch
    erase: Erase | None = None
    anchor: bool = False

    def allocate(self, size: int, channels: int, pin: bool) -> ViewBatch:
        """Tensors for `size` samples, with everything filled in but the pixels of those that are no dummies."""
        count, known = self.flip.shape
        images = torch.empty((count, size, self.image, self.image, channels), dtype=torch.uint8, pin_memory=pin)
        images[:, known:] = 0
        flip = torch.zeros((count, size), dtype=torch.bool, pin_memory=pin)
        flip[:, :known] = torch.from_numpy(self.flip)

        def place(tensor: Tensor) -> Tensor:
            return tensor.pin_memory() if pin else tensor

        return ViewBatch(images.flatten(0, 1), flip.flatten(), moved(self.ops, place), moved(self.erase, place), self.anchor)


@dataclass(frozen=True)
class SamplePlan:
    """Which samples with which draws a micro-batch is to hold; m <= b of them are no dummies."""

    step: int
    position: int
    size: int                           # b
    index: NDArray[np.int64]            # (m,)
    ids: NDArray[np.int64]              # (m,)
    shard: NDArray[np.int64]            # (m,)
    number: NDArray[np.int64]           # (m,) index in the shard
    views: tuple[ViewPlan, ...]
    keep: NDArray[np.float32] | None    # (2L, V, m) for all V views, or of whole groups, dummies among them, (2L, V, b)
    mix: Mix | None = None
    draws: NDArray[np.float64] | None = None    # (m, K) for the objective

    def allocate(self, channels: int, pin: bool, targets: int = 0, masks: bool = False) -> MicroBatch:
        """Tensors with everything filled in but the pixels, labels and weights of the m samples.  targets: classes of multi-hot targets,
        0 for none."""
        def vector(values: NDArray[Any], fill: float, dtype: torch.dtype) -> Tensor:
            tensor = torch.full((self.size,), fill, dtype=dtype, pin_memory=pin)
            tensor[:len(values)] = torch.from_numpy(values)
            return tensor

        def place(tensor: Tensor) -> Tensor:
            return tensor.pin_memory() if pin else tensor

        keep = None
        if self.keep is not None:
            keep = torch.ones((*self.keep.shape[:2], self.size), pin_memory=pin)
            keep[:, :, :self.keep.shape[2]] = torch.from_numpy(self.keep)
            keep = keep.flatten(1)
        draws = None
        if self.draws is not None:
            draws = torch.zeros((self.size, self.draws.shape[1]), pin_memory=pin)
            draws[:len(self.ids)] = torch.from_numpy(self.draws)
        return MicroBatch(
            views=tuple(one.allocate(self.size, channels, pin) for one in self.views),
            labels=torch.zeros(self.size, dtype=torch.int64, pin_memory=pin),
            weight=torch.zeros(self.size, pin_memory=pin),
            ids=vector(self.ids, -1, torch.int64), index=vector(self.index, -1, torch.int64),
            keep=keep, draws=draws, mix=moved(self.mix, place),
            targets=torch.zeros((self.size, targets), pin_memory=pin) if targets else None,
            masks=torch.full((self.size, *[self.views[0].image] * 2), UNLABELLED, dtype=torch.uint8) if masks else None,
        )


_Tensors = TypeVar("_Tensors", Ops, Erase, Mix)


def moved(given: _Tensors | None, move: Callable[[Tensor], Tensor]) -> _Tensors | None:
    """The same with each of its tensors moved; None stays None."""
    if given is None:
        return None
    values = {entry.name: getattr(given, entry.name) for entry in fields(given)}
    changed: dict[str, Any] = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(given, **changed)


@dataclass
class ReadReport:
    """What happened to the slots of one task: samples read, the bytes of their images, and what is wrong with those not to be used."""

    read: int = 0
    bytes: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list)     # step, position, id, shard, key, reason, detail


class Fetcher:
    """Fills slots of micro-batches.  Called from many threads, each with slots of its own."""

    def __init__(self, index: SetIndex, *, label: LabelRule | None, classes: int, channels: int, group: int,
                 crops: Sequence[RandomCrop | CentreCrop], exif: bool = False, cache: ShardCache | None = None,
                 crumbs: Watching | None = None, split: str = "train", mask: MaskRule | None = None) -> None:
        """crops: of each set of views.  mask: of an evaluation's images, whose masks are wanted."""
        self.stopping = Event()
        self.index, self.reader = index, ShardReader(index, cache=cache, stopping=self.stopping)
        self.label, self.classes, self.channels, self.group, self.crops = label, classes, channels, group, crops
        self.exif, self.targets = exif, classes if label is not None and label.several else 0
        self.sound = DecodedImages(index.num_samples, marked=len(crops) == 1 and isinstance(crops[0], RandomCrop))
        self.crumbs, self.split, self.mask = crumbs, SPLITS.index(split), mask

    def fill(self, plan: SamplePlan, micro: MicroBatch, low: int, high: int) -> ReadReport:
        """Fill the slots [low, high), whole groups.  A sample that cannot be used is replaced by the next of its group that can; if there
        is none, its weight stays 0.  Raises DataError for labels that are missing or outside the classes, and for changed shards."""
        report = ReadReport()
        for start in range(low, high, self.group):
            slots = range(start, min(start + self.group, high))
            good = []
            for slot in slots:
                if self.stopping.is_set():
                    return report
                report.read += 1
                try:
                    report.bytes += self._put(plan, micro, slot, slot)
                    good.append(slot)
                except BadSample as error:
                    report.bad.append(self._describe(plan, slot, error))
                except Exception as error:
                    error.add_note(f"while reading sample {plan.ids[slot]}, number {plan.number[slot]} of "
                                   f"{self.index.paths[plan.shard[slot]]}")
                    raise
            for slot in sorted(set(slots) - set(good)):
                for cut in self._cuts(plan, micro, slot):
                    cut.out[:] = 0
                for other in sorted(good, key=lambda other: (other < slot, other)):     # those after it first, then from the start
                    try:
                        report.bytes += self._put(plan, micro, slot, other)
                        break
                    except BadSample:           # with this slot's own crop it may fail where it had not
                        continue
        return report

    def _put(self, plan: SamplePlan, micro: MicroBatch, slot: int, source: int) -> int:
        """The sample planned for `source`, by the draws of `slot`, into `slot`; returns the bytes of its image's file."""
        shard, number = int(plan.shard[source]), int(plan.number[source])
        labels: list[int] = []
        if self.classes and self.label is not None:
            labels = labels_of(self.index, self.reader, shard, number, self.label, self.classes)
        image = self.index.image_of(shard, number)
        if image is None:
            members = ", ".join(ext for ext, _, _ in self.index.shard(shard).members(number))
            raise BadSample("image", f"has no image{f' {self.index.image!r}' if self.index.image else ''} (its members are {members})")
        cuts = self._cuts(plan, micro, slot)
        data, sample = self.reader.pread(shard, *image[1:]), int(plan.ids[source])
        known = sum_of(data)
        sound, marks = self.sound.contains(sample, known), self.sound.marks(sample, known)
        crumb: AbstractContextManager[None] = nullcontext()
        if self.crumbs is not None:
            self.crumbs.refuse(data, known)
            crumb = self.crumbs.decoding(self.split, shard, number, *image[1:], sound, cuts[0].draws)
        mask = None if self.mask is None else mask_of(self.index, self.reader, shard, number, self.mask)
        if mask is not None and mask.shape != (size := upright_size(data, self.exif)):
            raise BadSample("label", f"its mask has {mask.shape[0]} x {mask.shape[1]} pixels, the image {size[0]} x {size[1]}")
        with crumb:
            decode_views(data, cuts, self.channels, self.exif, sound, marks)
        if not sound:
            self.sound.note(sample, known, marks)
        micro.labels.numpy()[slot] = labels[0] if labels else 0
        if micro.targets is not None:
            micro.targets.numpy()[slot, labels] = 1
        if mask is not None and micro.masks is not None:
            assert isinstance(cuts[0].crop, CentreCrop)
            micro.masks.numpy()[slot] = cut_mask(mask, cuts[0].crop, cuts[0].size)
        micro.weight.numpy()[slot] = 1
        return len(data)

    def _cuts(self, plan: SamplePlan, micro: MicroBatch, slot: int) -> list[Cut]:
        """What is to be cut out of the image of that slot, and where it goes."""
        found = []
        for crop, planned, view in zip(self.crops, plan.views, micro.views, strict=True):
            pixels = view.images.numpy()
            for number in range(len(planned.flip)):
                draws: Sequence[float] = () if planned.crop is None else planned.crop[number, slot].tolist()
                found.append(Cut(crop, planned.image, draws, pixels[number * plan.size + slot]))
        return found

    def _describe(self, plan: SamplePlan, slot: int, error: BadSample) -> dict[str, Any]:
        shard, number = int(plan.shard[slot]), int(plan.number[slot])
        # a server that gave no image gives no key
        silent = error.reason in ("read", "storage") and remote.is_remote(self.index.urls[shard])
        return {"step": plan.step, "position": plan.position + int(plan.index[slot]), "id": int(plan.ids[slot]),
                "shard": self.index.paths[shard], "key": "?" if silent else self.index.key_of(shard, number),
                "reason": error.reason, "detail": str(error)}
