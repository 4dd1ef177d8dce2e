"""Measures a training step on one GPU against timm, transformers and torchvision, alternated, in one command.  Writes a row.

    python benchmarks/gpu_step.py      then      python benchmarks/report.py          (both: make bench-gpu)

All take the same batch in the same precision with the same optimizer, compiled, with fused attention.  What is not installed, fails or
does not fit into the time is left out, and the row says so.  On a CPU, with `--models micro`, it shows nothing but that it runs.
"""

import argparse
import functools
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_contender import CLASSES, SIZES
from measure import HERE, Contender, figure, interleave, rates, ratios, write_row

PEERS = ("timm", "transformers", "torchvision")
BATCH = {"L/16": 128, "H/14": 64, "B/16": 256, "micro": 4}
GOALS = {"L/16": 0.6, "H/14": 0.6, "B/16": 0.5}         # MFU of the data sheet's peak, on a GPU


class Bench:
    """One model at a time: every contender a process of its own."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.notes, self.versions = given, [], {"python": platform.python_version()}
        self.deadline = time.monotonic() + given.limit
        self._notes_once: set[str] = set()

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def note(self, words: str) -> None:
        if words not in self._notes_once:
            self._notes_once.add(words)
            self.notes.append(words)
            print(words, file=sys.stderr)

    def measure(self, model: str, peaks: Mapping[str, Any]) -> list[dict[str, Any]]:
        given, contenders = self.given, {}
        batch = given.batch or BATCH[model]
        try:
            for who in ("ours", *PEERS):
                if self.late:
                    self.note(f"{model}: {who} was left out, since {given.limit:g} s were over")
                    continue
                if (contender := self._ready(who, model, batch)) is not None:
                    contenders[who] = contender
            if "ours" not in contenders:
                return []
            try:
                found = interleave(given.rounds, {
                    who: functools.partial(one.run, "steps", count=given.steps, batch=batch) for who, one in contenders.items()})
            except (RuntimeError, BrokenPipeError) as error:
                self.note(f"{model}: a contender ended while it was measured ({error})")
                return []
        finally:
            for one in contenders.values():
                one.close()
        return self._figures(model, batch, found, peaks)

    def _ready(self, who: str, model: str, batch: int) -> Contender | None:
        contender = Contender(sys.executable, "gpu_contender.py")
        try:
            told = contender.run("there", who=who)
            if told["why"]:
                self.note(f"{who} {told['why']}")
                contender.close()
                return None
            self.versions["vitscale" if who == "ours" else who] = told["version"]
            contender.run("prepare", who=who, model=model, batch=batch, device=self.given.device, precision=self.given.precision,
                          compiled=self.given.compiled)
        except (RuntimeError, BrokenPipeError):
            self.note(f"{model}: {who} failed; its words stand above")
            return None
        return contender

    def _figures(self, model: str, batch: int, found: Mapping[str, list[dict[str, Any]]], peaks: Mapping[str, Any]) -> list[dict[str, Any]]:
        speed = {who: rates(rounds, "step_s") for who, rounds in found.items()}
        flops, on_gpu = training_flops(model), self.given.device != "cpu"
        figures = []
        others = [who for who in speed if who != "ours"]
        if others:
            best = max(others, key=lambda who: sorted(speed[who])[len(speed[who]) // 2])
            figures.append(figure(f"{model}: ratio to the best peer, {best}", ratios(speed["ours"], speed[best]), "x",
                                  at_least=1.15 if on_gpu and model in ("L/16", "H/14") else None))
        if peaks["sheet"]:
            figures.append(figure(f"{model}: MFU of the data sheet's {peaks['sheet'] / 1e12:.0f} TFLOP/s",
                                  [flops * one / peaks["sheet"] for one in speed["ours"]], "", at_least=GOALS.get(model)))
        figures.append(figure(f"{model}: MFU of the {peaks['measured'] / 1e12:.3g} TFLOP/s measured here",
                              [flops * one / peaks["measured"] for one in speed["ours"]]))
        for who in speed:
            name = "vitscale" if who == "ours" else who
            figures += [figure(f"{model}: {name}, batch {batch}", speed[who], "images/s"),
                        figure(f"{model}: peak memory of {name}", [max(one["peak_bytes"] for one in found[who]) / 1e9], "GB")]
        return figures


def training_flops(model: str) -> float:
    from vitscale.plan.flops import training_flops_per_image
    from vitscale.recipe import Vit

    width, depth, heads, mlp, patch, image = SIZES[model]
    return training_flops_per_image(Vit(width=width, depth=depth, heads=heads, mlp=mlp, patch=patch, image=image, classes=CLASSES))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["L/16", "H/14"])
    parser.add_argument("--batch", type=int, help="default: 128 of L/16, 64 of H/14")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--device", default=None, help="default: cuda if torch sees a GPU; else nothing is measured, unless it is cpu")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no further contender is begun")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    if given.device is None:
        import torch

        if not torch.cuda.is_available():
            print("torch sees no GPU here: not measured, and no row is written; --device cpu --models micro shows that it runs",
                  file=sys.stderr)
            return
        given.device = "cuda"
    bench = Bench(given)
    first = Contender(sys.executable, "gpu_contender.py")
    peaks = first.run("peaks", device=given.device, precision=given.precision)
    first.close()
    import torch

    figures = []
    for number, model in enumerate(given.models):
        figures += bench.measure(model, peaks)
        left_out = given.models[number + 1:] if bench.late else []
        for one in left_out:
            bench.note(f"{one} was left out, since {given.limit:g} s were over")
        if figures:         # after each model, so that a limit set by others loses the last one only
            write_row(
                given.rows, "gpu-step" if given.device != "cpu" else "cpu-step",
                f"Training step on one {peaks['device']}, {given.precision}: against timm, transformers, torchvision", figures,
                notes=bench.notes, rounds=given.rounds, device=peaks["device"], versions=bench.versions | {"torch": torch.__version__},
                command=" ".join(["python benchmarks/gpu_step.py", *(arguments if arguments is not None else sys.argv[1:])]),
            )
        if left_out:
            break
    if not figures:
        raise SystemExit("nothing could be measured: " + "; ".join(bench.notes))


if __name__ == "__main__":
    main()
