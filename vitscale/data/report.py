"""What pack, verify and stats say on the terminal."""

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vitscale.counts import plural
from vitscale.data.pack import BAD, Packed, PackOptions
from vitscale.data.sources import Source
from vitscale.data.stats import Stats
from vitscale.data.verify import Findings
from vitscale.terminal import console, escape, size, table

_ROWS = 40              # faults shown; --json has them all
_ENDS = 5               # classes shown from either end


def show_packed(split: str, source: Source, packed: Packed, out: Path, options: PackOptions, max_left_out: float, skip_bad: bool) -> bool:
    """What was packed, which number each class has, what was left out and why; -> whether it is what the user must have wanted.

    It is not if images were bad or a class folder gave none (unless skip_bad), or more than `max_left_out` of the files are no images."""
    screen, trouble = console(), console(stderr=True)
    kept = f"; {plural(packed.kept, 'shard')} already there" if packed.kept else ""
    order = "" if source.mixed or options.shuffle is None else f"; mixed by seed {options.shuffle}"
    named = f"{split}: " if split else ""
    screen.print(f"{named}{plural(packed.samples, 'sample')} in {plural(packed.shards, 'shard')}, {size(packed.bytes)}{order}{kept}",
                 highlight=False)
    _show_numbers(source, packed, screen)
    for what, counted in (("left out", source.left_out), ("passed over", source.hidden)):
        if counted:
            screen.print(f"{what}: " + ", ".join(f"{count:,} {escape(reason)}" for reason, count in counted.most_common()), highlight=False)
    sound = True
    empty = [number for number in source.folders if not packed.classes[number]]
    if empty:
        named = ", ".join(escape(source.classes[number]) for number in empty[:_ENDS])
        trouble.print(f"{plural(len(empty), 'class folder')} gave no image: {named}{' ...' if len(empty) > _ENDS else ''}", highlight=False)
        sound &= skip_bad
    if packed.bad:
        for one in packed.bad[:10]:
            print(f"left out: {one['name']}: {one['reason']}: {one['detail']}", file=sys.stderr)
        print(f"{plural(len(packed.bad), 'bad image')} left out; {out / BAD} lists them", file=sys.stderr)
        sound &= skip_bad
    files = source.left_out.total()
    if files > max_left_out * (files + len(source.entries)):
        print(f"{files:,} of {files + len(source.entries):,} files are no images, more than --max-left-out {max_left_out:g}: if that is as "
              "it should be, raise it", file=sys.stderr)
        sound = False
    return sound


def _show_numbers(source: Source, packed: Packed, screen: Console) -> None:
    """Class numbers with their names and samples."""
    counts: Counter[int] = packed.classes
    numbers = list(range(len(source.classes))) or sorted(counts)
    if not numbers:
        return
    rows = [f"{number} {escape(source.classes[number])}".strip() if source.classes else f"{number}" for number in numbers]
    if counts:
        rows = [f"{row}: {counts[number]:,}" for row, number in zip(rows, numbers, strict=True)]
    shown = rows if len(rows) <= 4 * _ENDS else [*rows[:3 * _ENDS], "...", *rows[-_ENDS:]]
    wanted = "" if source.classes else f"; the labels are numbers, model.classes must be {numbers[-1] + 1} or more"
    screen.print(f"{plural(len(numbers), 'class')}{wanted}", highlight=False)
    for row in shown:
        screen.print(f"  {row}", highlight=False)


def show_verdict(verdict: Findings) -> None:
    """A table of faults, then one line."""
    out = console()
    if verdict.faults:
        rows = [(os.path.basename(fault.shard), "" if fault.offset is None else f"{fault.offset}", fault.key or "", fault.reason,
                 fault.detail) for fault in verdict.faults[:_ROWS]]
        out.print(table(["shard", "offset", "key", "reason", "what"], rows, words=(0, 2, 3, 4), fold=True))
        if len(verdict.faults) > _ROWS:
            out.print(f"... and {len(verdict.faults) - _ROWS} more; --json FILE has them all")
    checked = f"{plural(verdict.samples, 'sample')} in {plural(verdict.shards, 'shard')}, {size(verdict.bytes)}"
    sums = f"sha256 of {plural(verdict.hashed, 'shard')} compared" if verdict.hashed else "no SHA256SUMS beside the shards"
    labels = "" if verdict.labelled else "; unlabelled"
    found = ", ".join(f"{reason} {count}" for reason, count in verdict.by_reason.most_common())
    faults = f"{plural(len(verdict.faults), 'fault')}: {found}" if found else "no faults"
    out.print(f"{checked}; {sums}{labels}; {faults}", highlight=False)


def show_stats(stats: Stats) -> None:
    """A table of spreads, the largest and smallest classes, the copies."""
    out = console()
    out.print(f"{plural(stats.samples, 'sample')} in {plural(stats.shards, 'shard')}; images {size(int(stats.bytes.sum()))}: "
              + ", ".join(f"{kind} {count:,}" for kind, count in stats.formats.most_common()), highlight=False)
    if stats.unreadable:
        out.print("unreadable: " + ", ".join(f"{reason} {count:,}" for reason, count in stats.unreadable.most_common()), highlight=False)
    spreads = {"width": stats.width, "height": stats.height, "shorter side": np.minimum(stats.width, stats.height),
               "image bytes": stats.bytes}
    if stats.classes:
        spreads["samples of a class"] = np.array(list(stats.classes.values()))
    out.print(table(["", "min", "median", "max"], [(name, *_spread(values)) for name, values in spreads.items()]))
    _show_classes(stats, out)
    if stats.copies:
        disputed = f"; {stats.disputed:,} of them under different labels" if stats.disputed else ""
        out.print(f"{plural(len(stats.copies), 'image')} more than once ({stats.extra_copies:,} too many){disputed}", highlight=False)
        for keys in stats.copies[:_ENDS]:
            out.print(escape("  " + " = ".join(keys[:6]) + (" ..." if len(keys) > 6 else "")), highlight=False)
    else:
        out.print("no image occurs twice")


def _show_classes(stats: Stats, out: Console) -> None:
    if not stats.classes:
        out.print("no labels")
        return
    ranked = stats.classes.most_common()
    largest, smallest = ranked[0][1], ranked[-1][1]
    absent = len(stats.names) - len(stats.classes) if stats.names else 0
    balance = f"the largest has {largest / smallest:.3g} times the samples of the smallest" if largest > smallest else (
        f"each has {plural(largest, 'sample')}")
    out.print(f"{plural(len(ranked), 'class')}; {balance}" + (f"; {absent} of classes.txt have none" if absent > 0 else "")
              + (f"; {plural(stats.unlabelled, 'sample')} without a label" if stats.unlabelled else "")
              + (f"; {stats.empty:,} have an empty list of labels" if stats.empty else ""), highlight=False)
    if largest == smallest:
        return
    shown = ranked if len(ranked) <= 2 * _ENDS else [*ranked[:_ENDS], (-1, 0), *ranked[-_ENDS:]]
    rows = [("...", "", "") if number < 0 else (stats.class_name(number), f"{count:,}", "█" * max(round(40 * count / largest), 1))
            for number, count in shown]
    out.print(table(["", "", ""], rows, words=(0, 2), show_header=False))


def _spread(values: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(f"{value:,.0f}" for value in (values.min(), np.median(values), values.max())) if len(values) else ("", "", "")
