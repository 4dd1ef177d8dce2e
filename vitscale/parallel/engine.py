"""The one protocol over every way of training a model on many ranks, and what the ways have in common."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.models import Backbone
from vitscale.parallel.kernels import turn_on_chosen_
from vitscale.parallel.recompute import recompute_
from vitscale.parallel.state import Fill, ValueOf, fill_first_, fill_parameters_, load_named_state, named_state
from vitscale.parallel.update import Read, Update, clip_and_step
from vitscale.parallel.world import World
from vitscale.recipe import Parallel

SHAPES = 64         # graphs of a kind of block at most: its stages, views, with gradients and without.  torch would leave off at 8


@dataclass(frozen=True)
class Work:
    """The fixed shape of a step: every rank runs `micro_steps` forward passes of `micro_batch` samples."""

    micro_batch: int
    micro_steps: int
    clip_norm: float | None


class Engine(ABC):
    """Order of use: materialise -> (build the optimizer) -> adopt -> restore or not -> steps.

    A step is `micro_steps` times {with micro_step(last): forward, backward}, then step().  Gradients are *averaged* over the ranks that are
    given samples of their own (World.data_size).
    """

    def __init__(self, parallel: Parallel, world: World, work: Work) -> None:
        self.parallel, self.world, self.work = parallel, world, work
        self.model: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.resting: tuple[str, ...] = ()      # how the names of parameters begin that the coming step() leaves as they are

    @property
    def is_forward_local(self) -> bool:
        """Whether a forward pass in training waits for no other rank, so that its time is this rank's own."""
        return True

    @property
    def exchange_s(self) -> float | None:
        """Seconds that a backward pass not long ago waited for the exchange of gradients; None where that cannot be told."""
        return None

    def materialise(self, build: Callable[[], Backbone], value_of: ValueOf) -> Backbone:
        """Build on the meta device, recompute, compile, shard (in that order), allocate, fill every parameter from `value_of`.

        This one does not shard: DeepSpeed and accelerate do in adopt(), DDP not at all.
        """
        model = prepared(build, self.parallel, self.world)
        model.to_empty(device=self.world.device)
        model.reset_buffers()
        fill_parameters_(model, value_of)
        return model

    def hold(self, model: nn.Module, asked: str = "forward") -> None:
        """Take in, in place, a network with its weights that is asked, by this method of its, and never trained."""
        model.to(self.world.device)

    @abstractmethod
    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        """Take the model and its optimizer over; ZeRO shards here."""

    def sync_inputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What was read of a micro-batch, alike on all ranks that are given the same samples: one of them may have failed to read one."""
        return tensors

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Around the forward and backward of one micro-batch; gradients are reduced in the last one at the latest."""
        yield

    @abstractmethod
    def forward(self, images: Tensor, keep: Tensor | None, *more: Tensor) -> Any:
        """images (b, C, S, S) fp32, keep (2L, b) or None, and whatever else the task gives the model -> its output, logits mostly."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def weights_changed(self) -> None:      # noqa: B027  those whose weights are whole and in fp32 have nothing to do
        """After the weights were changed other than by step() and restore().  Collective."""

    def step(self, read: Read = float) -> Update:
        """Clip, update unless the gradient is not finite, and clear the gradients.  What rests stays as it is.  `read` is called once."""
        if self.resting:
            for name, parameter in self.model.named_parameters():
                if name.startswith(self.resting):
                    parameter.grad = None
        return clip_and_step(self.model, self.optimizer, self.work.clip_norm, read)

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)       # its share of it: optim/groups.py

    def set_weight_decay(self, factor: float) -> None:
        """So many times that of optim.weight_decay, in every group that decays."""
        for group in self.optimizer.param_groups:
            group["weight_decay"] = group.setdefault("whole_decay", group["weight_decay"]) * factor

    def tensors(self) -> dict[str, Tensor]:
        """The whole training state by name, the same names in every engine: `model.NAME` in fp32 and `optim.NAME.KEY`.

        Sharded tensors are DTensors.  Collective: every rank calls it.
        """
        return named_state(self.model, self.optimizer)

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        """Take over a state that `tensors()` of any engine on any number of ranks gave.  `shapes` are the names it holds."""
        load_named_state(self.model, self.optimizer, shapes, fill)

    def begin_anew(self, value_of: ValueOf) -> None:
        """Forget all training: initial values, and an optimizer that has seen no gradient.  Collective."""
        self.restore({name: tensor.shape for name, tensor in self.tensors().items()}, lambda targets: fill_first_(targets, value_of))


def images_in_bf16(images: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    """What a model of bf16 weights is given: its images, which have four dimensions, in bf16, and the rest as exact as it comes."""
    return tuple(one.bfloat16() if one.ndim == 4 and one.is_floating_point() else one for one in (images, *more))


def prepared(build: Callable[[], Backbone], parallel: Parallel, world: World) -> Backbone:
    """A model on the meta device with its kernels chosen, its blocks recomputed and compiled as asked; names of parameters stay as built.
    Collective."""
    with torch.device("meta"):
        model = build()
    turn_on_chosen_(model, parallel, world)
    units = model.units()
    recompute_(units, parallel.recompute, parallel.recompute_every, parallel.compile)
    if parallel.compile:
        import torch._dynamo.config as compiler  # here: it takes a second

        # a graph for each shape: with sizes left open torch 2.13 fails on the stages of a ConvNeXt, and a run's sizes are few
        compiler.recompile_limit = max(compiler.recompile_limit, SHAPES)
        for unit in units:
            # the forward alone: hooks that an engine adds later stay outside the graph, and no name gains a prefix
            unit.forward = torch.compile(unit.forward, dynamic=False)
    return model
