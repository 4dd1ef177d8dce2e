"""What a step knows before the first of its losses: an objective's survey of all its samples, the teacher it asks, the state it keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vitscale.data import StepBatch
from vitscale.data.draws import step_uniforms
from vitscale.models.position import jittered
from vitscale.models.vit import VisionTransformer
from vitscale.objectives import Coupled, Seen, Task
from vitscale.objectives.rows import Rows, divided, joined
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Engine
from vitscale.recipe.schedules import Now
from vitscale.train.step import Inputs, Surveyed, sync_inputs

PREFIX = "objective."       # of the names of an objective's state in a checkpoint


class Coupling:
    """Of one run: the objective's state, and how it surveys a step with the model and its average."""

    def __init__(self, task: Task, engine: Engine, average: WeightAverage | None) -> None:
        """average: of the weights, if one is kept: the task's teacher, or one for later."""
        self.task, self.engine, self._average = task, engine, average
        self._after: Mapping[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """As before the first step."""
        self.state: Mapping[str, Tensor] = {
            name: value.to(self.engine.world.device) for name, value in self.task.new_state().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state under its names in checkpoints; what is loaded into them in place is in effect."""
        return {f"{PREFIX}{name}": value for name, value in self.state.items()}

    @torch.no_grad()
    def of_step(self, batch: StepBatch, inputs: Inputs, now: Now) -> Surveyed:
        """For each micro-batch what its losses are told.  Collective.  What follows from it for the state waits for applied().

        The student's answer for a step's only micro-batch is kept with its graph, so that train_step() need not ask again.  Not beside a
        teacher, whose weights take the place of those that the graph knows.
        """
        self.engine.resting = self.task.resting(now)
        jitter_positions(self.engine.model, batch)
        if not self.task.surveys:
            return Surveyed([None] * len(batch.micro))
        found, weights, started, moved_s, only = [], [], time.perf_counter(), 0.0, len(batch.micro) == 1
        with self._networks(training=True) as networks:
            networks.keeps_output = only and self.task.momentum is None
            for micro in batch.micro:
                moving = time.perf_counter()
                seen, weight, networks.keep = inputs.of(micro, again=only)
                moved_s += time.perf_counter() - moving
                seen, weight = sync_inputs(self.engine, seen, weight)
                found.append(self.task.survey(networks, seen))
                weights.append(weight)
        own_s = time.perf_counter() - started - moved_s
        by_name = {name: [one[name] for one in found] for name in found[0]}
        rows = {name: joined(parts, len(weights[0])) for name, parts in by_name.items()}
        index = torch.cat([micro.index for micro in batch.micro]).to(self.engine.world.device, non_blocking=True)
        world = self.engine.world
        told, self._after = self.task.couple(
            Rows(rows, torch.cat(weights), index, batch.size, world.sum_over_samples, world.gathered), self.state, now)
        count = len(batch.micro)
        parts = {name: divided(row, by_name.get(name), count) for name, row in told.items()}
        coupled = [Coupled(now, {name: part[number] for name, part in parts.items()}, self.state) for number in range(count)]
        return Surveyed(coupled, moved_s, own_s, networks.output)

    @torch.no_grad()
    def of_evaluation(self, seen: Seen, now: Now) -> Coupled | None:
        """The same of a batch of an evaluation, which knows of no other."""
        if not self.task.surveys:
            return None
        with self._networks(training=False) as networks:
            rows = self.task.survey(networks, seen)
            return Coupled(now, {name: divided(row, [row], 1)[0] for name, row in rows.items()}, self.state)

    def applied(self, now: Now) -> None:
        """The update was made: the average and the state follow it."""
        if self._after:
            self.state, self._after = self._after, {}
        if self._average is not None:
            self._average.update(None if self.task.momentum is None else now.value(self.task.momentum))

    @contextmanager
    def _networks(self, training: bool) -> Iterator[_Networks]:
        mode = self.engine.model.training
        with _Networks(self.engine, self._average, training) as networks:
            yield networks
        self.engine.model.train(mode)


def jitter_positions(model: nn.Module, batch: StepBatch) -> None:
    """Draw where the places of rotary positions lie in this step, for each size of view and each block, if the model wants that.

    By seed, position and size, so that every rank, micro-batch and look at the step has the same.
    """
    if not isinstance(model, VisionTransformer) or not any(model.box_jitter):
        return
    sides = {view.images.shape[1] // model.patch_embed.patch for view in batch.micro[0].views if not view.anchor}
    found, device = dict[tuple[int, int], Tensor](), next(model.parameters()).device
    for side in sorted(sides):
        draws = torch.from_numpy(step_uniforms(batch.seed, batch.position, range(side << 16, (side << 16) + len(model.blocks)), 5))
        found[side, side] = jittered(draws, *model.box_jitter).to(device, non_blocking=True)
    model.boxes = found


class _Networks:
    """The student in the model's place, and for as long as it is asked the teacher."""

    def __init__(self, engine: Engine, average: WeightAverage | None, training: bool) -> None:
        """training: the student is asked as it will be trained, and not as it is evaluated; a teacher always is."""
        self._engine, self._average, self._training, self._swapped = engine, average, training, ExitStack()
        self.keep: Tensor | None = None         # of the micro-batch that is being surveyed
        self.keeps_output, self.output = False, None        # the student's, with its graph
        self._teaches = False

    def __enter__(self) -> _Networks:
        return self

    def __exit__(self, *error: Any) -> None:
        self._put(False)

    def student(self, images: Tensor, *more: Any) -> Any:
        self._put(False)
        self._engine.model.train(self._training)
        if not self.keeps_output:
            return self._engine.forward(images, self.keep, *more)
        assert self.output is None, "a survey asks the student once"
        with torch.enable_grad():
            self.output = self._engine.forward(images, self.keep, *more)
        return tree_map(Tensor.detach, self.output)

    def teacher(self, images: Tensor, *more: Any) -> Any:
        self._put(True)
        self._engine.model.eval()
        return self._engine.forward(images, None, *more)

    def _put(self, teaches: bool) -> None:
        if teaches == self._teaches:
            return
        if teaches:
            assert self._average is not None
            self._swapped.enter_context(self._average.swapped())
        else:
            self._swapped.close()
        self._teaches = teaches
        self._engine.weights_changed()
