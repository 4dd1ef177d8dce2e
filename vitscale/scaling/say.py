"""What a person reads after a fit: numbers, intervals and tables as the terminal and the page have them, and the terminal's text."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitscale.counts import plural
from vitscale.terminal import table

Rows = tuple[list[str], list[list[str]]]        # heads of the columns, and rows


def number(value: float | None) -> str:
    """Four significant digits, as people write them."""
    if value is None:
        return "open"
    size = abs(value)
    return f"{value:.4g}" if 1e-3 <= size < 1e5 or value == 0 else f"{value:.3e}"


def interval(low: float | None, high: float | None) -> str:
    return f"{number(low)} to {number(high)}"


def span(three: Sequence[float | None]) -> str:
    """A value and its interval."""
    return f"{number(three[0])} ({interval(*three[1:])})"


def choice_by_backtest(told: Mapping[str, Any]) -> Rows:
    """Of fit.json: how well each form does on points that it was fitted to, on later ones, and on those held out if there are any."""
    scores, held = (told.get(name, {}).get("rms_log_error", {}) for name in ("backtest", "hold_out"))
    rows = [[name, str(len(one["parameters"])), f"{one['in_sample_rms_log_error']:.2%}",
             f"{scores[name]:.2%}" if name in scores else "not evaluated", *([f"{held[name]:.2%}"] if held else []),
             "chosen" if name == told["chosen"] else ""] for name, one in told["fits"].items()]
    if "average" in held:
        rows.append(["average by backtest", "", "", "", f"{held['average']:.2%}", ""])
    return ["form", "parameters", "in sample", "backtest", *(["hold-out"] if held else []), ""], rows


def parameters_of(parameters: Mapping[str, Any]) -> Rows:
    """Values with their errors and intervals."""
    rows = [[key, number(one["value"]), "", "given", ""] if one.get("fixed") else
            [key, number(one["value"]), number(one["standard_error"]), interval(one["low"], one["high"]), interval(*one["profile"])]
            for key, one in parameters.items()]
    return ["parameter", "value", "standard error", "95 % bootstrap", "95 % profile"], rows


def show_fit(told: Mapping[str, Any]) -> RenderableType:
    """fit.json for people."""
    data = told["data"]
    lines = [f"{data['source']}: {plural(data['points'], 'point')} of {plural(data['runs'], 'run')}; {data['metric']}, {data['direction']}",
             *(f"  left out: {one['where']}: {one['reason']}" for one in data["excluded"][:8])]
    if len(data["excluded"]) > 8:
        lines.append(f"  and {len(data['excluded']) - 8} more, listed in fit.json")
    for name, one in told["approaches"].items():
        lines += _approach(name, one)
    parts: list[RenderableType] = [Text(line) for line in lines]
    held = told.get("hold_out", {}).get("rms_log_error", {})
    if len(told["fits"]) > 1:
        parts += [Text(), table(*choice_by_backtest(told))]
    elif held:
        error, count = next(iter(held.values())), told["hold_out"]["points"]
        parts += [Text(), Text(f"hold-out: root mean square log error {error:.2%} on {plural(count, 'point')}")]
    parts += [Text(f"  {name}: {why}") for name, why in told["not_fitted"].items()]
    for name, one in told["fits"].items():
        if any("low" in parameter for parameter in one["parameters"].values()):
            starts = one["starts"]
            parts += [Text(), Text(f"{name}:  {one['formula']}"),
                      Text(f"  {one['source']}; Huber's delta {number(one['huber_delta'])}, residuals {number(one['residual_scale'])}; "
                           f"{starts['agree']} of {starts['finished']} starts agree"),
                      table(*parameters_of(one["parameters"])), *(Text(f"  ! {warning}") for warning in one["warnings"])]
    return Group(*parts)


def _approach(name: str, one: Mapping[str, Any]) -> list[str]:
    def told(of: Mapping[str, Any]) -> str:
        return span((of["value"], of["low"], of["high"])) if of["low"] is not None else number(of["value"])

    return ["", f"{name}: optima of {len(one['optima'])} budgets", f"  N* = k C^a: a {told(one['n']['a'])}, k {told(one['n']['k'])}",
            f"  D* = k C^b: b {told(one['d']['b'])}, k {told(one['d']['k'])}",
            *(f"  left out: {out['where']}: {out['reason']}" for out in one["excluded"])]
