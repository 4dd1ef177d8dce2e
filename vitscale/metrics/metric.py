"""What a metric is.  One declaration says everything of it: its series, its column, its curve, its words, which way it gets better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

PREFIX = "vitscale_"
EVALUATED, AVERAGED = "eval_", "eval_ema_"      # how columns of an evaluation begin; the same of the averaged weights (`ema`)

Unit = Literal["number", "ratio", "bytes", "seconds"]       # how a value is written: 2.35, 97.3 %, 1.2 GB, 0:07


@dataclass(frozen=True)
class Panel:
    """One picture of the page and of the report; of Grafana too, if it shows how training goes (`learning`)."""

    title: str
    unit: Unit = "number"
    aside: str = ""             # beside the title: in what its values are, or when they were taken
    loggable: bool = False      # has a button for a logarithmic axis
    positive: bool = True       # no value lies below 0
    zero: bool = False          # the axis begins at 0
    stacked: bool = False
    most: float | None = None   # the largest value that there can be
    learning: bool = False
    wide: bool = False          # in Grafana: half of the width, else a third


@dataclass(frozen=True)
class Curve:
    """How a column is drawn."""

    panel: Panel
    label: str                  # in the panel's legend
    colour: int = 0             # of the page's eight
    compared: str = ""          # title of the picture that lays this curve of several runs side by side; "": there is none


@dataclass(frozen=True)
class Metric:
    """A family of time series for Prometheus, a column of metrics.jsonl, or both."""

    name: str                   # of the series, without the prefix; "": it is only a column
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()         # of a histogram: upper bounds, in its unit
    values: tuple[str, ...] = ()            # all that the label can be, but for `rank`; of a counter each is there from the start, as 0
    scope: Literal["run", "node", "rank"] = "run"       # told once for the run, by each node, or for each rank
    column: str = ""                        # of metrics.jsonl; "": it has none
    unit: Unit = "number"
    curve: Curve | None = None
    word: str = ""                          # before its value in the lines of the console; "": it is not told there
    title: str = ""                         # of a number that an evaluation gives: head of a tile and of a column of tables,
    what: str = ""                          # and in full, as a model card says it
    better: Literal["", "higher", "lower"] = ""
    card: str = ""                          # what the Hugging Face Hub calls it, in a model card
    least: float | None = None  # below it, past a tenth of a run, features tell images no longer apart: collapse
    # A number of an objective: (task, the model's output, what it saw) -> (b,), or None where this task has no such number.
    measure: Callable[[Any, Any, Any], Any] | None = None

    @property
    def full_name(self) -> str:
        """As a query writes it."""
        return PREFIX + self.name

    @property
    def key(self) -> str:
        """Of an evaluation's number: its column without what all of them begin with."""
        return self.column.removeprefix(EVALUATED)

    @property
    def averaged(self) -> str:
        """The column that holds the same of the averaged weights."""
        return AVERAGED + self.key


def text(value: float, unit: Unit, digits: int = 4) -> str:
    """A value for people: a ratio in percent, to `digits` - 2 places, anything else to `digits` places."""
    return f"{value:.{digits - 2}%}" if unit == "ratio" else f"{value:.{digits}f}"


Measure = Callable[[Any, Any, Any], Any]


def evaluated(key: str, what: str, measure: Measure | None, *, panel: Panel, title: str, unit: Unit = "number", word: str = "",
              colour: int = 0, better: Literal["", "higher", "lower"] = "", card: str = "", compared: bool = True,
              least: float | None = None) -> Metric:
    """A number of an objective that an evaluation reports: the mean of `measure` over its images, in the column eval_KEY.

    `what`, `title` and `word` say it, from long to short: "Top-1 accuracy", "Top-1", "top-1"."""
    column, word = EVALUATED + key, word or title.lower()
    return Metric(_series(column, unit), "gauge", f"{what} of the last evaluation{_span(unit, ', mean over its images')}", column=column,
                  unit=unit, word=word, title=title, what=what, better=better, card=card, measure=measure,
                  least=least, curve=Curve(panel, word, colour, title if compared else ""))


def trained(key: str, what: str, measure: Measure, *, panel: Panel, title: str, unit: Unit = "number", word: str = "",
            colour: int = 0, least: float | None = None) -> Metric:
    """A number of an objective that each step tells: the mean of `measure` over the global batch, in the column KEY.

    It is taken without a gradient, of what the step computes anyway, and summed over ranks together with the loss.
    """
    word = word or title.lower()
    return Metric(_series(key, unit), "gauge", f"{what}, mean over the last global batch{_span(unit)}", column=key, unit=unit, word=word,
                  measure=measure, least=least, curve=Curve(panel, word, colour, title))


def _series(column: str, unit: Unit) -> str:
    return f"{column}_ratio" if unit == "ratio" else column


def _span(unit: Unit, otherwise: str = "") -> str:
    return ", 0 to 1." if unit == "ratio" else f"{otherwise}."
