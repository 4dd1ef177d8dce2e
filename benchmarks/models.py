"""Measures a training step of our models against transformers', alternated on one core: time and peak memory; and what stochastic depth
saves that does not compute what it drops.  Writes two rows.

    python benchmarks/models.py      then      python benchmarks/report.py
"""

import argparse
import functools
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from measure import HERE, Contender, figure, interleave, rates, ratios, write_row
from models_steps import GROUP, RATE, WAYS

MODELS = ("ViT-S/16", "Swin-T", "ConvNeXt-T")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # on shared cores single rounds differ by a tenth: seven leave a doubt of 5 % in their median, and 3 % are in question
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=MODELS, help="ViT-micro for a quick look")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    figures = []
    for model in given.models:
        speed, peak = _alternated(given.rounds, given.batch, {"ours": ("ours", model), "theirs": ("theirs", model)})
        figures += [
            figure(f"{model}: ratio of speed", ratios(speed["ours"], speed["theirs"]), "x", at_least=0.97),
            figure(f"{model}: vitscale", speed["ours"], "images/CPU-s"),
            figure(f"{model}: transformers", speed["theirs"], "images/CPU-s"),
            figure(f"{model}: ratio of peak memory", ratios(peak["ours"], peak["theirs"]), "x", at_most=1.03),
        ]
    facts = {
        "command": " ".join(["python benchmarks/models.py", *(arguments if arguments is not None else sys.argv[1:])]),
        "rounds": given.rounds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}},
    }
    write_row(given.rows, "models-step", f"Training step at batch {given.batch}, one core, fp32: against transformers", figures, **facts)
    size, batch = next((model for model in given.models if model.startswith("ViT")), None), 2 * GROUP
    if size is None:
        return
    speed, peak = _alternated(given.rounds, batch, {way: ("ours", f"{size}, {way}") for way in WAYS})
    title = f"Stochastic depth at rate {RATE:g}, {size} at batch {batch}, one core: branches left out of groups of {GROUP} against masked"
    write_row(given.rows, "drop-path", title, [
        figure("ratio of speed", ratios(speed["left out"], speed["masked"]), "x"),
        *(figure(way, speed[way], "images/CPU-s") for way in WAYS),
        figure("ratio of peak memory", ratios(peak["left out"], peak["masked"]), "x", at_most=1),
    ], **facts)


def _alternated(rounds: int, batch: int, contenders: dict[str, tuple[str, str]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Name -> whose model and which -> images per CPU-second of each round, and peak bytes of the whole process."""
    processes = {name: Contender(sys.executable, "models_steps.py") for name in contenders}     # afresh: peaks are of one model
    try:
        found = interleave(rounds, {
            name: functools.partial(processes[name].run, "step", who=who, model=model, batch=batch)
            for name, (who, model) in contenders.items()})
    finally:
        for one in processes.values():
            one.close()
    return {name: rates(made, "cpu_s") for name, made in found.items()}, {name: [made[-1]["peak_bytes"]] for name, made in found.items()}


if __name__ == "__main__":
    main()
