"""What a self-supervised step takes beside its forward and backward passes, by CPU time of one thread, taken in turns.  Writes a row.

    python benchmarks/self_supervised_step.py      then      python benchmarks/report.py
"""

import argparse
import dataclasses
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from measure import HERE, figure, write_row

from vitscale.bench.step import made_inputs, one_step, prepared
from vitscale.data import StepBatch
from vitscale.observe.meters import Meters
from vitscale.parallel.world import World
from vitscale.recipe import load_recipe
from vitscale.recipe.schedules import Now
from vitscale.train.coupling import Coupling
from vitscale.train.step import Inputs

ALONE = World(0, 1, 0, 1, torch.device("cpu"), None)


def passes_s(coupling: Coupling, batch: StepBatch, inputs: Inputs) -> float:
    """CPU seconds of the teacher's forward pass over its views, if there is one, and of the student's forward and backward over all."""
    engine, task, now = coupling.engine, coupling.task, Now(batch.end, batch.end, batch.end)
    told = coupling.of_step(batch, inputs, now).coupled[0]
    seen, _, keep = inputs.of(batch.micro[0])
    seen = dataclasses.replace(seen, coupled=told)
    images, *more = task.inputs(seen)
    globals_ = task.global_views(seen) if task.momentum is not None else []     # type: ignore[attr-defined]
    began = time.process_time()
    if globals_:
        engine.model.eval()
        with torch.no_grad():
            engine.forward(globals_[0], None, *globals_[1:])
    engine.model.train()
    engine.backward(task.losses(engine.forward(images, keep, *more), seen).sum() / batch.size)
    took = time.process_time() - began
    engine.optimizer.zero_grad(set_to_none=True)
    return took


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["dino_cifar10", "lejepa_cifar10"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = []
    for name in given.recipes:
        recipe = load_recipe(name, [f"global_batch={given.batch}", f"micro_batch={given.batch}"])
        coupling, batch = prepared(recipe, ALONE, given.batch, 1)
        inputs, found = made_inputs(recipe, ALONE, batch), []
        for number in range(given.rounds + 1):
            passes = passes_s(coupling, batch, inputs)
            meters = Meters()
            meters.begin()
            began = time.process_time()
            one_step(coupling, batch, inputs, recipe.optim.lr, meters)
            if number:          # the first makes the optimizer's state
                found.append((time.process_time() - began) / passes - 1)
        figures.append(figure(f"beside the passes of {name}", found, "", at_most=0.03))
    write_row(
        given.rows, "self-supervised-step", f"A step without labels beside its forward and backward passes, batch {given.batch}, CPU time",
        figures, command=" ".join(["python benchmarks/self_supervised_step.py", *(arguments if arguments is not None else sys.argv[1:])]),
        rounds=given.rounds, versions={"python": sys.version.split()[0], "torch": version("torch")})


if __name__ == "__main__":
    main()
