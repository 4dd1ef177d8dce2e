"""`vitscale fit` on CSVs of others: columns, units and directions are free; what cannot be used is named, never silently fitted."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from truths import CHINCHILLA, points_of
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.errors import DataError, RecipeError, UserError
from vitscale.scaling.points import Columns, read_csv, read_number


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def fit(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["fit", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Chinchilla's law with its noise at 60 places, sizes in millions."""
    rng = np.random.default_rng(1)
    n, d = np.exp(rng.uniform(np.log(5e7), np.log(1e10), 60)), np.exp(rng.uniform(np.log(1e9), np.log(3e11), 60))
    points = points_of("chinchilla3", CHINCHILLA, {"n": n, "d": d}, noise=0.002)
    return write(tmp_path / "runs.csv", ["Model Size (M)", "Training Tokens", "loss"], list(zip(n / 1e6, d, points.y, strict=True)))


COLUMNS = ("--n", "Model Size (M)*1e6", "--d", "Training Tokens", "--loss", "loss", "--no-figures")


def test_columns_by_name_and_units_by_factor(runs: Path) -> None:
    output = fit(runs, *COLUMNS, "--form", "chinchilla3", "--draws", "60", "--flops-per", "6", "--budget", "1e22")
    told = json.loads((runs.with_name("runs-fit") / "fit.json").read_text())
    found = {name: one["value"] for name, one in told["fits"]["chinchilla3"]["parameters"].items()}
    assert found["alpha"] == pytest.approx(CHINCHILLA["alpha"], rel=0.1)
    assert found["E"] == pytest.approx(CHINCHILLA["E"], rel=0.03)
    assert "60 points" in output
    plan = json.loads((runs.with_name("runs-fit") / "plan.json").read_text())
    assert plan["n"][1] < plan["n"][0] < plan["n"][2]
    assert 6 * plan["n"][0] * plan["d"][0] == pytest.approx(1e22, rel=1e-6)


def test_figures_and_a_page_that_needs_no_network(runs: Path) -> None:
    fit(runs, *COLUMNS[:-1], "--form", "chinchilla3", "--draws", "60", "--out", runs.parent / "out")
    names = {path.name for path in (runs.parent / "out" / "figures").iterdir()}
    assert {"residuals.png", "residuals.svg", "profiles.png", "profiles.svg"} <= names
    page = (runs.parent / "out" / "report.html").read_text()
    assert "residuals of chinchilla3" in page.lower()
    assert "<script src=" not in page


def test_a_metric_that_rises_and_per_cent(tmp_path: Path) -> None:
    x = np.geomspace(1e6, 1e9, 20)
    path = write(tmp_path / "acc.csv", ["seen", "top1"], [(f"{value / 1e6:.6f}M", 100 - 100 * 0.3 * (value / 1e6) ** -0.2) for value in x])
    fit(path, "--x", "seen", "--accuracy", "top1", "--bound", "100", "--form", "m1", "--draws", "60", "--no-figures")
    told = json.loads((tmp_path / "acc-fit" / "fit.json").read_text())
    assert told["fits"]["m1"]["parameters"]["c"]["value"] == pytest.approx(0.2, rel=1e-4)
    assert told["data"]["direction"] == "higher is better; what it lacks to 100 is fitted"


def test_groups_each_by_itself_with_a_column_that_says_what_is_held_out(tmp_path: Path) -> None:
    rows = []
    for name, power in (("a", 0.2), ("b", 0.4)):
        for i, x in enumerate(np.geomspace(1e3, 1e6, 16)):
            rows.append((name, x, 0.5 * (x / 1e3) ** -power, int(i < 10)))
    path = write(tmp_path / "curves.csv", ["task", "seen", "error", "Training"], [*rows, ("c", 1e3, 0.5, 1), ("c", 1e4, 0.4, 0)])
    output = fit(path, "--x", "seen", "--loss", "error", "--by", "task", "--train", "Training", "--form", "m1,m2")
    assert "c: " in output
    assert "wants 3 points or more" in output or "wants 4 points or more" in output
    told = json.loads((tmp_path / "curves-fit" / "groups.json").read_text())
    assert told["groups"] == 3
    assert told["fitted"] == 2
    assert told["mean_hold_out_rms_log_error"]["m1"] < 1e-6


def test_what_cannot_be_used_is_listed_and_the_rest_fitted(runs: Path) -> None:
    lines = runs.read_text().splitlines()
    first = lines[1].split(",")
    lines += [f"{first[0]},{first[1]},nan", f"{first[0]},,2.5", f"-3,{first[1]},2.5", f"{first[0]},{first[1]},-1", lines[1]]
    runs.write_text("\n".join(lines) + "\n")
    output = fit(runs, *COLUMNS, "--form", "chinchilla3", "--draws", "60")
    told = json.loads((runs.with_name("runs-fit") / "fit.json").read_text())
    reasons = [one["reason"] for one in told["data"]["excluded"]]
    assert told["data"]["points"] == 60
    assert reasons == [
        "the metric is not finite",
        "samples (or tokens) seen is no number",
        "parameters of the model is not positive",
        "the metric -1 is not positive",
        "the same point as row 2",
    ]
    assert "left out: row 66: the same point as row 2" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--n", "params", "--d", "Training Tokens", "--loss", "loss"),
            r"has no column 'params'; its columns are Model Size \(M\), Training Tokens, loss",
        ),
        (("--n", "Model Size (M)", "--loss", "loss"), "give the variables' columns"),
        (("--n", "Model Size (M)", "--d", "Training Tokens"), "give the metric's column by one of --loss"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--accuracy", "loss"), "by one of --loss"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--form", "chinchila"), "no such form 'chinchila'"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--form", "m1"), "m1 wants x, and x is not given"),
        (
            ("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--form", "chinchilla2"),
            "chinchilla2|approach 2 wants n, d and FLOPs",
        ),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--fix", "gamma=1"), "has a parameter gamma"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--fix", "E"), "--fix wants NAME=NUMBER"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--where", "arch=vit"), "--where wants COLUMN=VALUE"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--accuracy", "loss"), "is not below its bound 1"),
        (
            ("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--form", "chinchilla3", "--budget", "1e22"),
            "and FLOPs: --c COLUMN",
        ),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--budget", "lots"), "--budget wants 1e21"),
        (("--n", "Model Size (M)", "--d", "Training Tokens", "--loss", "loss", "--budget", "5 GPU-hours on H1000"), "no such GPU 'H1000'"),
    ],
)
def test_a_mistake_is_one_clear_error(runs: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["fit", str(runs), *arguments, "--no-figures", "--draws", "60"], catch_exceptions=False)


def test_one_size_only(tmp_path: Path) -> None:
    path = write(tmp_path / "one.csv", ["n", "d", "loss"], [(1e8, d, 3 + 1e3 / d**0.5) for d in np.geomspace(1e6, 1e9, 12)])
    with pytest.raises(DataError, match="all 12 points have the same parameters of the model"):
        fit(path, "--n", "n", "--d", "d", "--loss", "loss", "--form", "chinchilla3")


def test_too_few_points_and_why(tmp_path: Path) -> None:
    path = write(tmp_path / "few.csv", ["n", "d", "loss"], [(1e8, 1e9, 3), (2e8, 1e9, "nan"), (2e8, 2e9, 2.5)])
    with pytest.raises(DataError, match=r"wants 6 points or more, got 2; 1 were left out: row 3: the metric is not finite"):
        fit(path, "--n", "n", "--d", "d", "--loss", "loss", "--form", "chinchilla3")


def test_mixed_metrics(tmp_path: Path) -> None:
    rows = [(x, 3 * x**-0.1, "loss") for x in (1e3, 1e4, 1e5, 1e6)] + [(x, 0.1 * x**0.1, "top1") for x in (1e3, 1e4, 1e5, 1e6)]
    path = write(tmp_path / "mixed.csv", ["seen", "value", "metric"], rows)
    with pytest.raises(DataError, match=r"several metrics \(loss, top1\) make no law together: choose by --where 'metric=loss'"):
        fit(path, "--x", "seen", "--loss", "value", "--form", "m1")
    fit(path, "--x", "seen", "--loss", "value", "--form", "m1", "--where", "metric=loss", "--no-figures", "--draws", "60")
    told = json.loads((tmp_path / "mixed-fit" / "fit.json").read_text())
    assert told["data"]["points"] == 4
    assert told["fits"]["m1"]["parameters"]["c"]["value"] == pytest.approx(0.1)


def test_no_rows_and_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        fit(write(tmp_path / "empty.csv", ["n", "d", "loss"], []), "--n", "n", "--d", "d", "--loss", "loss")
    with pytest.raises(DataError, match="cannot be read"):
        fit(tmp_path / "absent.csv", "--n", "n", "--d", "d", "--loss", "loss")
    (tmp_path / "folder").mkdir()
    with pytest.raises((DataError, RecipeError), match="is no sweep's folder"):
        fit(tmp_path / "folder")


@pytest.mark.parametrize(("text", "number"), [("7e7", 7e7), ("70M", 7e7), ("1,500", 1500.0), ("3B", 3e9), (" 12 ", 12.0)])
def test_numbers_as_people_write_them(text: str, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["", "none", "1.2.3", "M", "nan", "inf"])
def test_what_is_no_number(text: str) -> None:
    assert np.isnan(read_number(text))


def test_semicolons_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes("\ufeffx;y\n1;2\n2;1.5\n".encode())
    assert len(read_csv(path, Columns({"x": "x"}, "y"))) == 2
