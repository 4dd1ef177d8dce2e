"""What a person reads on the terminal after a fit."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


def new_console() -> Console:
    """As wide as the terminal; into a file or a pipe so wide that no table is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def number(value: float | None) -> str:
    """Four significant digits, as people write them."""
    if value is None:
        return "open"
    size = abs(value)
    return f"{value:.4g}" if 1e-3 <= size < 1e5 or value == 0 else f"{value:.3e}"


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", no_wrap=True)
    return table


def show_fit(told: Mapping[str, Any]) -> RenderableType:
    """fit.json for people."""
    parts: list[RenderableType] = []
    data = told["data"]
    parts.append(Text(f"{data['source']}: {data['points']} points of {data['runs']} runs; {data['metric']}, {data['direction']}"))
    for one in data["excluded"][:8]:
        parts.append(Text(f"  left out: {one['where']}: {one['reason']}"))
    if len(data["excluded"]) > 8:
        parts.append(Text(f"  and {len(data['excluded']) - 8} more, listed in fit.json"))
    for name, one in told["approaches"].items():
        parts += _show_approach(name, one)
    scores = told.get("backtest", {}).get("rms_log_error", {})
    held = told.get("hold_out", {}).get("rms_log_error", {})
    if len(told["fits"]) > 1:
        table = _table("form", "parameters", "in sample", "backtest", *(["hold-out"] if held else []), "")
        for name, one in told["fits"].items():
            table.add_row(
                name,
                str(len(one["parameters"])),
                f"{one['in_sample_rms_log_error']:.2%}",
                f"{scores[name]:.2%}" if name in scores else "not judged",
                *([f"{held[name]:.2%}"] if held else []),
                "chosen" if name == told["chosen"] else "",
            )
        if "average" in held:
            table.add_row("average by backtest", "", "", "", f"{held['average']:.2%}", "")
        parts += [Text(), table]
    elif held:
        parts += [
            Text(),
            Text(f"hold-out: root mean square log error {next(iter(held.values())):.2%} on {told['hold_out']['points']} points"),
        ]
    for name, why in told["not_fitted"].items():
        parts.append(Text(f"  {name}: {why}"))
    for name, one in told["fits"].items():
        if not any("low" in parameter for parameter in one["parameters"].values()):
            continue
        parts += [
            Text(),
            Text(f"{name}:  {one['formula']}"),
            Text(
                f"  {one['source']}; Huber's delta {number(one['huber_delta'])}, residuals "
                f"{number(one['residual_scale'])}; {one['starts']['agree']} of {one['starts']['finished']} starts agree"
            ),
        ]
        parts.append(_parameters(one["parameters"]))
        parts += [Text(f"  ! {warning}") for warning in one["warnings"]]
    return Group(*parts)


def _parameters(parameters: Mapping[str, Any]) -> Table:
    """Values with their errors and intervals."""
    table = _table("parameter", "value", "standard error", "95 % bootstrap", "95 % profile")
    for key, parameter in parameters.items():
        if parameter.get("fixed"):
            table.add_row(key, number(parameter["value"]), "", "given", "")
            continue
        low, high = parameter["profile"]
        table.add_row(
            key,
            number(parameter["value"]),
            number(parameter["standard_error"]),
            f"{number(parameter['low'])} to {number(parameter['high'])}",
            f"{number(low)} to {number(high)}",
        )
    return table


def _show_approach(name: str, one: Mapping[str, Any]) -> list[RenderableType]:
    def span(of: Mapping[str, Any]) -> str:
        return f"{number(of['value'])} ({number(of['low'])} to {number(of['high'])})" if of["low"] is not None else number(of["value"])

    lines = [
        Text(),
        Text(f"{name}: optima of {len(one['optima'])} budgets"),
        Text(f"  N* = k C^a: a {span(one['n']['a'])}, k {span(one['n']['k'])}"),
        Text(f"  D* = k C^b: b {span(one['d']['b'])}, k {span(one['d']['k'])}"),
    ]
    return [*lines, *(Text(f"  left out: {out['where']}: {out['reason']}") for out in one["excluded"])]
