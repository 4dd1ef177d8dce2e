"""What a torch profiler's trace says at a glance: where the time went, how long the device did nothing, what exchange took.  Pure."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEP = "vitscale step "         # the mark around each step
_EXCHANGE = re.compile(r"nccl|gloo|c10d|record_param_comms|DistributedDataParallel\.Reducer", re.IGNORECASE)
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_BLOCKS = "▁▂▃▄▅▆▇█"

Span = tuple[float, float]      # begin and end, microseconds


@dataclass(frozen=True)
class Kernel:
    """All calls of one name; `seconds` without those of what it called."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Glance:
    """One rank's steps."""

    steps: int
    seconds: float              # of all of them
    on_gpu: bool                # else kernels are the CPU's operators, and what is told of the device is told of the CPU
    idle: float                 # share of the time in which nothing of torch ran
    exchange: float             # share of the time in which something was exchanged with other ranks, also beside other work
    kernels: tuple[Kernel, ...]
    memory: tuple[tuple[float, float], ...]     # (seconds since the first step's begin, bytes that torch holds)

    @property
    def peak_bytes(self) -> float | None:
        return max((held for _, held in self.memory), default=None)


def glance(trace: Mapping[str, Any], top: int = 12, points: int = 200) -> Glance:
    """Of a Chrome trace as torch.profiler writes it.  `top`: kernels that are named; `points`: of the memory's curve at most.

    Raises ValueError for one that holds no whole step.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X" and isinstance(event.get("dur"), (int, float))]
    marks = [_span(event) for event in events if str(event.get("name", "")).startswith(STEP) and event.get("cat") == "user_annotation"]
    if not marks:
        raise ValueError("the trace holds no step")
    begin, end = min(start for start, _ in marks), max(stop for _, stop in marks)
    inside = [event for event in events if begin <= event["ts"] < end]
    device = [event for event in inside if event.get("cat") in _DEVICE]
    work = device or [event for event in inside if event.get("cat") == "cpu_op"]
    exchange = [event for event in (device or inside) if _EXCHANGE.search(event["name"]) and event.get("cat") != "python_function"]
    seconds = (end - begin) / 1e6
    busy = covered(map(_span, [*work, *exchange]), begin, end) / 1e6
    kernels = _kernels(work) if not device else _summed((event["name"], event["dur"]) for event in device if event["cat"] == "kernel")
    held = [(event["ts"], event["args"]) for event in trace["traceEvents"]
            if event.get("name") == "[memory]" and begin <= event["ts"] < end]
    wanted = 1 if device else 0         # the profiler's numbers of devices' kinds
    curve = [((at - begin) / 1e6, float(args["Total Allocated"])) for at, args in held if args.get("Device Type") == wanted]
    return Glance(len(marks), seconds, bool(device), 1 - busy / seconds, covered(map(_span, exchange), begin, end) / 1e6 / seconds,
                  tuple(kernels[:top]), tuple(_thinned(sorted(curve), points)))


def covered(spans: Iterable[Span], begin: float, end: float) -> float:
    """The length of the union of `spans` inside [begin, end]."""
    total, reached = 0.0, begin
    for start, stop in sorted(spans):
        total += max(min(stop, end) - max(start, reached), 0.0)
        reached = max(reached, stop)
    return total


def page(glances: Sequence[Glance | None], nodes: Sequence[str], steps: str) -> str:
    """The summary of all ranks in Markdown, one page: ranks, rank 0's kernels and its memory.  None: that rank's trace had no step."""
    first = next((one for one in glances if one is not None), None)
    if first is None:
        return f"# Profile of {steps}\n\nNo rank's trace holds a whole step.\n"
    where = "GPU" if first.on_gpu else "CPU"
    lines = [f"# Profile of {steps}", "",
             f"Kernels are the {where}'s.  Idle: nothing of torch ran there.  Exchange: something went to or came from other ranks, also "
             "beside other work; waiting for the others is in it.  Profiling itself slows steps down.", "",
             "| rank | node | seconds a step | idle | exchange | most memory held |", "|---|---|---|---|---|---|"]
    for rank, (one, node) in enumerate(zip(glances, nodes, strict=True)):
        if one is None:
            lines.append(f"| {rank} | {_cell(node)} | no whole step | | | |")
        else:
            lines.append(f"| {rank} | {_cell(node)} | {one.seconds / one.steps:.4g} | {one.idle:.1%} | {one.exchange:.1%} "
                         f"| {_bytes(one.peak_bytes)} |")
    lines += ["", "## Where the time of one rank goes", "", f"| {where} kernel | of the time | seconds a step | calls a step |",
              "|---|---|---|---|"]
    for kernel in first.kernels:
        lines.append(f"| `{_cell(kernel.name[:100])}` | {kernel.seconds / first.seconds:.1%} | {kernel.seconds / first.steps:.4g} "
                     f"| {kernel.calls / first.steps:.4g} |")
    lines += ["", "## Memory that torch holds, over the time of these steps", ""]
    if first.memory:
        low, since = min(held for _, held in first.memory), "" if first.on_gpu else ", of what was taken since the profile began"
        lines += ["```", sparkline(first.memory, first.seconds), "```", f"from {_bytes(low)} to {_bytes(first.peak_bytes)}{since}"]
    else:
        lines.append("not told")
    lines += ["", "The traces are beside this page as `rank-N.json.gz`: https://ui.perfetto.dev opens them, in the browser alone.", ""]
    return "\n".join(lines)


def sparkline(curve: Sequence[tuple[float, float]], seconds: float, width: int = 100) -> str:
    """The highest value of each of `width` stretches of time; one without a change keeps the value before it."""
    highest: list[float | None] = [None] * width
    for at, value in curve:
        place = min(max(int(at / seconds * width), 0), width - 1)
        highest[place] = max(value, highest[place] or -math.inf)
    low, high = min(value for _, value in curve), max(value for _, value in curve)
    drawn, last = [], curve[0][1]
    for found in highest:
        last = last if found is None else found
        drawn.append(_BLOCKS[round((last - low) / (high - low) * (len(_BLOCKS) - 1)) if high > low else 0])
    return "".join(drawn)


def _span(event: Mapping[str, Any]) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def _kernels(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """Operators call operators on the same thread: to each belongs what the ones inside it did not take."""
    threads: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        threads[event.get("pid"), event.get("tid")].append(event)
    own: list[tuple[str, float]] = []
    for mine in threads.values():
        stack: list[list[Any]] = []             # [end, name, seconds not taken by inner ones]
        for event in sorted(mine, key=lambda event: (event["ts"], -event["dur"])):
            while stack and stack[-1][0] <= event["ts"]:
                _, name, left = stack.pop()
                own.append((name, left))
            if stack:
                stack[-1][2] -= event["dur"]
            stack.append([event["ts"] + event["dur"], event["name"], event["dur"]])
        own += [(name, left) for _, name, left in stack]
    return _summed(own)


def _summed(own: Iterable[tuple[str, float]]) -> list[Kernel]:
    calls: dict[str, int] = defaultdict(int)
    took: dict[str, float] = defaultdict(float)
    for name, microseconds in own:
        calls[name] += 1
        took[name] += max(microseconds, 0.0)
    return sorted((Kernel(name, calls[name], took[name] / 1e6) for name in calls), key=lambda kernel: -kernel.seconds)


def _thinned(curve: Sequence[tuple[float, float]], points: int) -> list[tuple[float, float]]:
    """At most about `points` of the curve, the highest of each stretch."""
    each = max(math.ceil(len(curve) / points), 1)
    return [max(curve[start:start + each], key=lambda point: point[1]) for start in range(0, len(curve), each)]


def _bytes(count: float | None) -> str:
    if count is None:
        return "not told"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def _cell(text: str) -> str:
    """A name may hold what Markdown reads."""
    return re.sub(r"[|`\n<>]", " ", text)
