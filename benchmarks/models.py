"""Measures a training step of our models against transformers', alternated on one core: time and peak memory.  Writes a row.

    python benchmarks/models.py      then      python benchmarks/report.py
"""

import argparse
import functools
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from measure import HERE, Contender, figure, interleave, rates, ratios, write_row

MODELS = ("ViT-S/16", "Swin-T", "ConvNeXt-T")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=MODELS, help="ViT-micro for a quick look")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    figures = []
    for model in given.models:
        contenders = {who: Contender(sys.executable, "models_steps.py") for who in ("ours", "theirs")}     # afresh: peaks are of one model
        try:
            found = interleave(given.rounds, {
                who: functools.partial(one.run, "step", who=who, model=model, batch=given.batch) for who, one in contenders.items()})
        finally:
            for one in contenders.values():
                one.close()
        speed = {who: rates(rounds, "cpu_s") for who, rounds in found.items()}
        peak = {who: [rounds[-1]["peak_bytes"]] for who, rounds in found.items()}
        figures += [
            figure(f"{model}: ratio of speed", ratios(speed["ours"], speed["theirs"]), "x", at_least=0.97),
            figure(f"{model}: vitscale", speed["ours"], "images/CPU-s"),
            figure(f"{model}: transformers", speed["theirs"], "images/CPU-s"),
            figure(f"{model}: ratio of peak memory", ratios(peak["ours"], peak["theirs"]), "x", at_most=1.03),
        ]
    write_row(
        given.rows, "models-step", f"Training step at batch {given.batch}, one core, fp32: against transformers", figures,
        command=" ".join(["python benchmarks/models.py", *(arguments if arguments is not None else sys.argv[1:])]), rounds=given.rounds,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}},
    )


if __name__ == "__main__":
    main()
