"""README.md of a run folder: a model card as the Hugging Face Hub reads it (metadata in YAML, then Markdown), from what the run left."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitscale.cluster.status import LARGEST_RECIPE_BYTES
from vitscale.cluster.used import FILE as SETTINGS
from vitscale.cluster.used import changed_in
from vitscale.errors import ClusterError, RecipeError
from vitscale.files import write_atomically
from vitscale.metrics import OF_EVALUATIONS, Metric, text
from vitscale.metrics.metric import Unit
from vitscale.metrics.system import EVALUATED_IMAGES, EVALUATION_LOSS
from vitscale.recipe.redact import redact, redacted
from vitscale.recipe.text import read_yaml, write_yaml
from vitscale.runfolder import ENVIRONMENT, METRICS, OUTCOME, RECIPE, last_row, printable, read_object

Result = tuple[str, str, float, Unit]        # what the Hub calls a number, its name for people, value
FILE = "README.md"
MARK = "<!-- Written by vitscale at the end of the run; take this line out and it is never written again. -->"
_OPTIM = ("name", "lr", "weight_decay", "schedule", "warmup", "clip_norm")


def write_card(run_folder: Path) -> Path | None:
    """Write the card; None, and nothing is written, if a person has made the one that is there their own.

    Raises ClusterError if the run has no readable recipe.yaml, or the card cannot be written.
    """
    path = run_folder / FILE
    try:
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            return None
        write_atomically(path, render_card(run_folder))
    except OSError as error:
        raise ClusterError(f"{path}: the model card cannot be written ({error.strerror or error})") from None
    return path


def render_card(run_folder: Path) -> str:
    """Raises ClusterError."""
    recipe = _recipe(run_folder)
    outcome, environment = read_object(run_folder / OUTCOME), read_object(run_folder / ENVIRONMENT)
    evaluation = last_row(run_folder / METRICS, EVALUATION_LOSS.column)
    name = str(recipe.get("name", run_folder.name))
    results = _told(evaluation)
    return "\n".join([
        "---", write_yaml(_metadata(name, recipe, results)).rstrip(), "---", MARK, "", f"# {_words(name)}", "",
        *_what(recipe, environment), "", "## Results", "", *_results(results, evaluation), "", "## Training", "",
        *_training(recipe, outcome, environment), *_changed(run_folder), "", "## Use", "", *_use(run_folder), "",
        "## Limits", "", *_limits(recipe, results), "",
        "## How to repeat it", "", "`recipe.yaml` beside this file holds every setting, defaults too:", "", "```bash",
        "vitscale train recipe.yaml name=again", "```", "",
        "`report.html` shows its curves, where its time went and what faults it met.", ""])


def _told(evaluation: dict[str, Any]) -> list[Result]:
    """What the objective tells of an evaluation, then the same of the averaged weights; the loss where it tells no more."""
    def of(metrics: Sequence[Metric]) -> list[Result]:
        columns = [(one, one.column, "") for one in metrics] + [(one, one.averaged, ", averaged weights") for one in metrics]
        return [(one.card or one.key, one.what + more, float(evaluation[column]), one.unit)
                for one, column, more in columns if isinstance(evaluation.get(column), (int, float))]

    return of([one for one in OF_EVALUATIONS if one != EVALUATION_LOSS]) or of([EVALUATION_LOSS])


def _recipe(run_folder: Path) -> dict[str, Any]:
    path = run_folder / RECIPE
    try:
        if path.stat().st_size > LARGEST_RECIPE_BYTES:
            raise RecipeError("too large to be a recipe")
        values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError, RecipeError) as error:
        raise ClusterError(f"{path}: a model card wants the run's recipe, which cannot be read ({error})") from None
    return redacted(values)


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    inner = values.get(name)
    return inner if isinstance(inner, dict) else {}


def _metadata(name: str, recipe: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    objective, model = _part(recipe, "objective"), _part(recipe, "model")
    classifies = objective.get("name", "classification") in ("classification", "distillation")
    task = "image-classification" if classifies else "image-feature-extraction"
    tags = {"vision", "vitscale", str(model.get("family", "vit")), str(objective.get("name", "classification"))}
    metadata: dict[str, Any] = {"library_name": "vitscale", "pipeline_tag": task, "tags": sorted(tags)}
    if results:
        metadata["metrics"] = list(dict.fromkeys(kind for kind, *_ in results))
        metadata["model-index"] = [{"name": name, "results": [{
            "task": {"type": task}, "dataset": {"name": "held-out shards of data.val", "type": "imagefolder"},
            "metrics": [{"type": kind, "value": round(value, 4), "name": label} for kind, label, value, _ in results]}]}]
    return metadata


def _what(recipe: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    model, objective = _part(recipe, "model"), _part(recipe, "objective")
    size = f", {environment['parameters']:,} parameters" if isinstance(environment.get("parameters"), int) else ""
    facts = [f"{key} {_words(model[key])}" for key in ("size", "patch", "image", "channels", "width", "depth", "heads", "classes")
             if isinstance(model.get(key), (int, str))]
    facts += [f"{_words(key)} {_words(value)}" for key, value in _part(model, "options").items()]
    return [f"A {_words(model.get('family', 'vit'))} model{size}, trained from the first value of its weights with the objective "
            f"`{_code(objective.get('name', 'classification'))}` by vitscale.", "", f"Model: {', '.join(facts)}." if facts else ""]


def _results(results: list[Result], evaluation: dict[str, Any]) -> list[str]:
    if not results:
        return ["Not evaluated on held-out images during training."]
    count = evaluation.get(EVALUATED_IMAGES.column)
    images = f" on {count:,.0f} held-out images" if isinstance(count, (int, float)) else ""
    return [f"At step {evaluation.get('step', '?')}{images}:", "", "| metric | value |", "|---|---|",
            *(f"| {label} | {text(value, unit)} |" for _, label, value, unit in results)]


def _training(recipe: dict[str, Any], outcome: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    data, optim = _part(recipe, "data"), _part(recipe, "optim")
    trained = data.get("train") or [part.get("shards") for part in data.get("mix") or [] if isinstance(part, dict)]
    versions = _part(environment, "versions") or _part(outcome, "versions")
    rows = {
        "data": ", ".join(f"`{_code(one)}`" for one in (trained if isinstance(trained, list) else [trained])),
        "images of an epoch": environment.get("num_samples"), "duration": recipe.get("duration"),
        "global batch": recipe.get("global_batch"),
        "optimizer": ", ".join(f"{key} {optim[key]}" for key in _OPTIM if optim.get(key) is not None),
        "seed": recipe.get("seed"), "steps": outcome.get("step"), "images seen": outcome.get("images"),
        "ended": f"{outcome.get('state', '?')}: {outcome.get('reason', '')}" if outcome else "it has not",
        "ran on": " × ".join(str(environment[key]) for key in ("world", "device") if key in environment),
        "engine, precision": ", ".join(str(environment[key]) for key in ("engine", "precision") if key in environment),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
    told = {name: value if name == "data" else _words(value) for name, value in rows.items() if value not in (None, "")}
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in told.items())]


def _changed(run_folder: Path) -> list[str]:
    found = changed_in(run_folder)
    told = [f"* {_words(str(one))}" for one in found]
    return ["", f"The table and `recipe.yaml` hold the last settings, `{SETTINGS}` those of each attempt. Changed during the run:",
            "", *told] if told else []


def _use(run_folder: Path) -> list[str]:
    try:
        newest = max(path.name for path in (run_folder / "checkpoints").iterdir() if re.fullmatch(r"step-\d+", path.name))
    except (OSError, ValueError):
        return ["There is no checkpoint yet."]
    return [f"`checkpoints/{newest}/model.safetensors` holds the weights under vitscale's own names; a recipe starts from them with", "",
            "```yaml", f"init: checkpoints/{newest}/model.safetensors", "```"]


def _limits(recipe: dict[str, Any], results: list[Result]) -> list[str]:
    told = ["It knows no images but those it was trained on; what is in them, and whose they are, the owner of the data can tell."]
    if not results:
        told.append("It was not evaluated.")
    return [*told, "Bias, robustness and use outside its data were not looked at.  No licence is stated: none follows from a run."]


def _words(value: object) -> str:
    """Text of a recipe as plain words of Markdown: nothing in it is markup, HTML or a link."""
    text = redact(printable(str(value).replace("\n", " ")))[:300]
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", text)


def _code(value: object) -> str:
    """Text for between two backticks in a table."""
    return redact(printable(str(value).replace("\n", " ")))[:300].replace("`", "'").replace("|", "\\|")
