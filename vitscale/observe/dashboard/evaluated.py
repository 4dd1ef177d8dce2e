"""What `vitscale eval` wrote into a run folder, eval.json, as rows of one small table.  What is not of its form is left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitscale.recipe.redact import redact
from vitscale.runfolder import EVALUATION, inside, known, number, printable, read_object

_MOST_BYTES = 16 << 20
_MOST_ROWS = 60         # of sets of images, and of few-shot's numbers of images
_WORST = 3


def evaluation(folder: Path) -> dict[str, Any] | None:
    """{"rows": [{name, value, low, high, count, note, share}], "images", "step", "time", "weights"}; None: nothing was evaluated."""
    path = folder / EVALUATION
    try:
        found = read_object(path) if path.stat().st_size <= _MOST_BYTES else {}
    except OSError:
        return None
    rows = [row for row in _rows(inside(found, "results"), found.get("class_names")) if row["value"] is not None]
    if not rows:
        return None
    return {"rows": rows, "weights": _text(Path(str(found.get("weights", ""))).parent.name),
            **{name: known(found.get(name)) for name in ("images", "unreadable", "step", "time")}}


def _rows(results: dict[str, Any], names: Any) -> Iterator[dict[str, Any]]:
    judged = inside(results, "accuracy")
    yield _share("Top-1", judged.get("top1"), _worst(judged.get("classes"), names))
    yield _share("Top-5", judged.get("top5"))
    several = inside(results, "several_labels")
    yield _row("Mean average precision", several.get("map"), _worst(several.get("classes"), names))
    yield _row("F1 at 1/2", several.get("f1"))
    yield _share("Likeliest is a label", several.get("hits1"))
    yield _share("A label in the likeliest five", several.get("hits5"))
    calibration = inside(judged, "calibration")
    yield _row("Calibration, expected error", calibration.get("expected_error"), "in 15 bins of confidence")
    yield _row("Negative log likelihood", calibration.get("negative_log_likelihood"), share=False)
    yield _row("Brier score", calibration.get("brier"), share=False)
    near, probe = inside(results, "knn"), inside(results, "linear")
    yield _share("Nearest neighbours", near.get("top1"), f"k = {_text(near.get('k'))}")
    yield _share("Linear probe", probe.get("top1"), f"C = {_text(probe.get('strength'))}")
    for shots, one in _few(results, "few-shot"):
        spread = number(one.get("deviation"))
        yield _row(f"Few-shot, images of a class: {shots}", one.get("top1"), f"± {100 * spread:.1f} % by choice" if spread >= 0 else "")
    found = inside(results, "retrieval")
    for key in ("recall@1", "recall@5", "recall@10"):
        yield _share(f"Retrieval, {key}", found.get(key))
    yield _row("Retrieval, mean average precision", found.get("map"))
    for name, one in _few(results, "sets"):
        yield _share(f"Set {name}, top-1", one.get("top1"), {"subset": "among the set's own classes", "real": "any of several labels"}.get(
            str(one.get("kind")), ""))
        yield _share(f"Set {name}, top-5", one.get("top5"))
    damaged = inside(results, "corrupted")
    yield _row("Corrupted images, mean error", damaged.get("mean_error"))
    yield _row("Corrupted images, mCE", damaged.get("mce"), "over AlexNet's errors")


def _share(name: str, found: Any, note: str = "") -> dict[str, Any]:
    """A share with its interval."""
    found = found if isinstance(found, dict) else {}
    ends = found.get("interval")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return _row(name, found.get("value"), note) | {"low": known(low), "high": known(high), "count": known(found.get("count"))}


def _row(name: str, value: Any, note: str = "", share: bool = True) -> dict[str, Any]:
    return {"name": name, "value": known(value), "low": None, "high": None, "count": None, "note": note, "share": share}


def _worst(classes: Any, names: Any) -> str:
    rows = [row for row in classes if isinstance(row, dict)] if isinstance(classes, list) else []
    ordered = sorted((value, str(row.get("class"))) for row in rows if (value := known(row.get("value"))) is not None)
    told = [f"{_class(name, names)} {100 * value:.1f} %" for value, name in ordered[:_WORST]]
    return f"worst: {', '.join(told)}" if told else ""


def _class(at: str, names: Any) -> str:
    there = isinstance(names, list) and at.isascii() and at.isdecimal() and int(at[:9]) < len(names)
    return _text(names[int(at[:9])] if there else at)


def _few(found: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    return [(_text(name), one) for name, one in list(inside(found, key).items())[:_MOST_ROWS] if isinstance(one, dict)]


def _text(value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    return redact(printable(", ".join(str(one)[:120] for one in listed[:4] if one is not None)[:200]))
