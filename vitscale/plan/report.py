"""A plan for people: one page on the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitscale import terminal
from vitscale.counts import plural
from vitscale.plan.answer import MemoryPlan, Plan, Row

BAR = 28        # characters of the longest bar
MEMORY_PARTS = {
    "weights": "weights, with what is gathered", "gradients": "gradients", "optimizer": "optimizer", "ema": "averaged weights",
    "activations": "activations", "attention": "attention (q, k, v, out)", "communication": "communication buffers",
    "loader": "the batch's images", "context": "CUDA, cuBLAS, NCCL",
}


def show_plan(plan: Plan, console: Console) -> None:
    """The page.  What is assumed and what was measured stand apart, last."""
    hardware = plan.hardware
    console.print()
    console.print(Text(f"{plan.recipe} on {hardware.nodes} x {hardware.gpus_per_node} x {hardware.name}", style="bold"))
    console.print(_facts(plan))
    for title, body in _sections(plan):
        console.print()
        console.print(Text(title, style="bold"))
        console.print(Padding(body, (0, 0, 0, 2)))


def _sections(plan: Plan) -> Iterable[tuple[str, RenderableType]]:
    yield "memory of one GPU at the peak" if plan.memory.usable_bytes else "memory of one rank at the peak", _memory(plan.memory)
    yield "where parameters, FLOPs and time go", _components(plan)
    if plan.scaling is not None:
        yield "more GPUs: the same batch (strong), the same share of a GPU (weak)", _scaling(plan)
    if plan.proposal is not None or plan.memory.fits is False:
        yield ("what would fit" if plan.memory.fits is False else "what would be faster"), _proposal(plan)
    if plan.alternatives:
        yield "the fastest that fits of each engine", _alternatives(plan)
    if plan.unknown:
        yield "not known", _lines(plan.unknown)
    if plan.measured:
        yield "measured", _lines(plan.measured)
    if plan.assumed:
        yield "assumed, not measured", _lines(plan.assumed)


def _lines(lines: Iterable[str]) -> RenderableType:
    return Group(*(Text(f"* {line}", overflow="fold") for line in lines))


def _table(*heads: str, words: Sequence[int] = ()) -> Table:
    made = terminal.table(heads, words=words)
    made.header_style = "dim"
    return made


def _grid(columns: int, words: Sequence[int]) -> Table:
    return terminal.table([""] * columns, words=words, fold=True, show_header=False)


def _facts(plan: Plan) -> RenderableType:
    table = _grid(2, (0, 1))
    table.columns[0].style = "dim"
    time, batch, flops, growth = plan.time, plan.batch, plan.flops, plan.growth
    rows = [("model", f"{plan.parameters.total:,} parameters; {number(flops.per_image)}FLOP an image, forward and backward"
             + (f", {flops.run:.3g} in all" if flops.run else ""))]
    flops_of, whole = plan.flops.by_component, max(flops.forward_per_image, 1)
    rows.append(("grows by", "; ".join(f"{name} {formula} ({flops_of[name] / whole:.1%})" for name, formula in growth.formulas)))
    rows.append(("", growth.sentence))
    chosen = "as the recipe says" if batch.origin == "recipe" else "the most that fits in equal steps"
    if plan.memory.fits is not True and batch.origin == "planned":
        chosen = "all at once" if plan.memory.fits is None else "not even the fewest fit"
    rows.append(("batch", f"{plural(batch.global_batch, 'image')}: {batch.per_gpu:,} a GPU, {batch.micro_batch:,} at a time ({chosen})"))
    rows.append(("fits", _fits(plan)))
    if plan.memory.fits is False:       # what follows would be of a run that cannot be
        return _filled(table, rows)
    if time.images_per_second is not None:
        known = "measured" if time.basis == "measured" else "assumed"
        rows.append(("speed", f"{time.images_per_second:,.0f} images/s, {seconds(time.step_seconds)} a step, "
                     f"{time.mfu:.1%} MFU ({known})"))
        rows.append(("time", f"{seconds(time.seconds)}: {plural(time.images or 0, 'image')} in {plural(time.steps or 0, 'step')}"
                     if time.seconds is not None else "not known: the recipe counts in epochs and has no data.num_samples"))
    else:
        rows.append(("time", "not known: see below" if plan.unknown else "not known: no table says what a CPU can do"))
    if plan.bottleneck is not None:
        rows.append(("limit", f"{plan.bottleneck.name}: {plan.bottleneck.sentence}"))
    return _filled(table, rows + _money(plan))


def _filled(table: Table, rows: list[tuple[str, str]]) -> Table:
    for name, text in rows:
        table.add_row(name, Text(text, overflow="fold"))
    return table


def _fits(plan: Plan) -> str:
    memory = plan.memory
    if memory.usable_bytes is None:
        return f"{size(memory.peak_bytes)} a rank; how much {'there is' if plan.unknown else 'this CPU has'} is not known here"
    words = f"{size(memory.peak_bytes)} of {size(memory.usable_bytes)} usable"
    if plan.exact is not None:
        words += f"; tracked on fake tensors {size(plan.exact.peak_bytes)}, so that this is {plan.exact.difference:+.1%}"
    if memory.fits:
        return f"yes: {words}"
    return f"NO: {words}; what would, stands below"


def _money(plan: Plan) -> list[tuple[str, str]]:
    cost, point, demand = plan.cost, plan.checkpoint, plan.demand
    rows = []
    if cost.gpu_hours is not None:
        money = f", {cost.money:,.2f} at {cost.price_per_gpu_hour:g} each" if cost.money is not None else \
            " (--price or cluster.yaml's price_per_gpu_hour: money too)"
        energy = f", up to {cost.kwh:,.0f} kWh" if cost.kwh is not None else ""
        rows.append(("cost", f"{cost.gpu_hours:,.1f} GPU-hours{money}{energy}"))
    if demand is not None:
        data = f"; the data set is {size(demand.data_bytes)}" if demand.data_bytes else ""
        rows.append(("data", f"{demand.images_per_second_per_node:,.0f} images/s a node keep {demand.cores_needed_per_node:.1f} cores "
                     f"decoding, and {size(demand.storage_bytes_per_second)}/s from storage in all{data}"))
    kept = f"up to {point.retained} on disk at once (checkpoint.keep, the best where there is one, and the one being written)"
    if plan.hardware.peak_flops is not None:
        words = f"{size(point.bytes)} each, {kept}; best every {seconds(point.interval_s)}"
        if point.interval_steps is not None:
            words += f", {plural(point.interval_steps, 'step')}"
        words += f" (loses {point.lost_share:.2%}"
        if point.recipe_interval_s is not None:
            words += f"; the recipe's {seconds(point.recipe_interval_s)}: {point.recipe_lost_share:.2%}"
        rows.append(("checkpoint", f"{words}), a failure every {seconds(point.mtbf_s)}"))
    else:
        rows.append(("checkpoint", f"{size(point.bytes)} each, {kept}"))
    return rows


def _memory(memory: MemoryPlan) -> RenderableType:
    table = _grid(3, (0, 2))
    most = max(getattr(memory, name) for name in MEMORY_PARTS) or 1
    for name, words in MEMORY_PARTS.items():
        part = getattr(memory, name)
        if part:
            table.add_row(words, size(part), Text("█" * max(round(BAR * part / most), 1), style="cyan"))
    table.add_row(Text("together", style="bold"), Text(size(memory.peak_bytes), style="bold"), "")
    table.add_row("on the host of a node", size(memory.host_bytes_per_node), "")
    return table


def _components(plan: Plan) -> RenderableType:
    table = _table("component", "parameters", "FLOP", "share", "time", "FLOP/B", "by", words=(0, 6))
    whole, spent = max(plan.flops.forward_per_image, 1), sum(one.seconds for one in plan.operations) or 1
    timed = {one.name: one for one in plan.operations}
    flops = plan.flops.by_component
    # attention's parameters are all in its linear layers
    params = {("attention_linear" if name == "attention" and "attention_linear" in flops else name): count
              for name, count in plan.parameters.by_component.items()}
    for name in dict.fromkeys([*flops, *params, *timed]):
        one = timed.get(name)
        if not (flops.get(name) or params.get(name) or (one and one.seconds / spent >= 0.0005)):
            continue
        table.add_row(
            name, f"{params[name]:,}" if params.get(name) else "", number(flops[name]).strip() if flops.get(name) else "",
            f"{flops[name] / whole:.1%}" if flops.get(name) else "", f"{one.seconds / spent:.1%}" if one else "",
            f"{one.intensity:,.0f}" if one and one.flops else "", one.bound if one else "")
    return table


def _scaling(plan: Plan) -> RenderableType:
    assert plan.scaling is not None
    table = _table("GPUs", "images/s", "time", "eff.", "micro", "GiB", "|", "batch", "images/s", "eff.", "GiB")
    weak = {row.gpus: row for row in plan.scaling.weak}
    strong = {row.gpus: row for row in plan.scaling.strong}
    for gpus in sorted({*weak, *strong}):
        here = "bold" if gpus == plan.hardware.gpus else ""
        table.add_row(f"{gpus:,}", *_strong(strong.get(gpus)), "|", *_weak(weak.get(gpus)), style=here)
    return table


def _strong(row: Row | None) -> list[str]:
    if row is None:
        return ["-", "", "", "", ""]             # more GPUs than samples of a batch
    if not row.fits:
        return ["too big", "", "", f"{row.micro_batch:,}", _gib(row)]
    return [f"{row.images_per_second:,.0f}", _short(row.days), f"{row.efficiency:.0%}", f"{row.micro_batch:,}", _gib(row)]


def _weak(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", "", ""]
    if not row.fits:
        return [f"{row.global_batch:,}", "too big", "", _gib(row)]
    return [f"{row.global_batch:,}", f"{row.images_per_second:,.0f}", f"{row.efficiency:.0%}", _gib(row)]


def _gib(row: Row) -> str:
    return f"{row.peak_bytes / 2**30:.1f}"


def _short(days: float | None) -> str:
    """Two days or more in days, else in hours or minutes."""
    if days is None:
        return "?"
    hours = 24 * days
    return f"{days:.1f} d" if days >= 2 else f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min"


def _proposal(plan: Plan) -> RenderableType:
    best = plan.proposal
    if best is not None:
        faster = ""
        if plan.memory.fits and plan.time.images_per_second:
            faster = f", {best.images_per_second / plan.time.images_per_second:.2f} x as fast"
        return Group(
            Text(overrides(best.changes), style="green", overflow="fold"),
            Text(f"{plural(best.micro_batch, 'image')} at a time, {size(best.peak_bytes)}, {best.images_per_second:,.0f} images/s{faster}; "
                 "--write FILE puts it into a copy of the recipe"))
    if plan.least_gpus is not None:
        return Text(f"nothing on {plural(plan.hardware.gpus, 'GPU')}; {plan.least_gpus} of them would do")
    return Text("nothing: take a smaller model.size or model.image, GPUs with more memory, or parallel.precision=bf16")


def _alternatives(plan: Plan) -> RenderableType:
    table = _table("images/s", "time", "GiB", "micro", "changes", words=(4,))
    table.columns[4].no_wrap = False
    for one in plan.alternatives:
        changes = Text(overrides(one.changes) or "none: the recipe as it is", overflow="fold")
        table.add_row(f"{one.images_per_second:,.0f}", _short(one.days), f"{one.peak_bytes / 2**30:.1f}", f"{one.micro_batch:,}", changes)
    return table


def overrides(changes: dict[str, str | int | bool | None]) -> str:
    """As one types them after a recipe."""
    words = {True: "true", False: "false", None: "null"}
    return " ".join(f"{key}={words[value] if value is None or isinstance(value, bool) else value}" for key, value in changes.items())


def size(num_bytes: float) -> str:
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def number(count: float) -> str:
    """With a prefix: 334.6 G."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} "


def seconds(value: float | None) -> str:
    if value is None:
        return "not known"
    for unit, factor in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if value >= 2 * factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
