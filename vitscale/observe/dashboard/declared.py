"""What the page is told of the metrics: its charts and their curves, and the numbers that runs are ranked by."""

from typing import Any

from vitscale.metrics import JUDGES, curves
from vitscale.metrics.metric import EVALUATED, Curve, Metric, Panel
from vitscale.metrics.system import EVALUATION_LOSS, TRAINING_LOSS


def _curve(column: str, metric: Metric, curve: Curve) -> dict[str, Any]:
    """`sparse`: of evaluations, which have places of their own on the axis."""
    return {"name": column, "label": curve.label, "colour": curve.colour, "compared": curve.compared, "unit": metric.unit,
            "sparse": column.startswith(EVALUATED)}


def _panel(panel: Panel, drawn: list[tuple[str, Metric, Curve]]) -> dict[str, Any]:
    return {"title": panel.title, "unit": panel.unit, "aside": panel.aside, "loggable": panel.loggable, "positive": panel.positive,
            "zero": panel.zero, "stacked": panel.stacked, "most": panel.most, "lines": [_curve(*one) for one in drawn]}


PANELS = [_panel(panel, drawn) for panel, drawn in curves().items()]
# By what runs are judged besides the loss: a column in the tables of runs, a tile of the run's page.
JUDGED = [{"column": one.column, "title": one.title, "unit": one.unit, "better": one.better} for one in JUDGES if one != EVALUATION_LOSS]


def place(judge: Metric) -> str:
    """Where a run of a sweep has the number: its loss is that of the last step as long as there was no evaluation."""
    return TRAINING_LOSS.column if judge == EVALUATION_LOSS else judge.column
