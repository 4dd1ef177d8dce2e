"""What can be known of a teacher without opening its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitscale.errors import RecipeError
from vitscale.recipe.text import read_yaml

RECIPE_FILE = "recipe.yaml"         # of a run folder
CONFIG_FILE = "config.json"         # of a folder of transformers', timm's, or an export of ours


def read_about(folder: str) -> tuple[Path, dict[str, Any]] | None:
    """The file in which a teacher says what it is, and its values; None if the folder is not there.  Raises RecipeError for no teacher."""
    path = Path(folder)
    if not path.exists():
        return None
    file = next((path / name for name in (RECIPE_FILE, CONFIG_FILE) if (path / name).is_file()), None)
    if file is None:
        raise RecipeError(f"{folder} holds neither {RECIPE_FILE} (a run's folder) nor {CONFIG_FILE} (an export's, or transformers')")
    try:
        text = file.read_text(encoding="utf-8")
        values = read_yaml(text, str(file)) if file.name == RECIPE_FILE else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, error) from None
    if not isinstance(values, dict):
        raise _unreadable(folder, TypeError(f"{file.name} holds no mapping"))
    return file, values


def own_model(folder: str) -> Mapping[str, Any] | None:
    """The model section of a run or an export of ours, as plain values; None of another library's folder, and if none is there.  Raises
    RecipeError."""
    about = read_about(folder)
    section = about[1].get("model") if about is not None else None
    return section if isinstance(section, dict) else None


def teacher_classes(folder: str) -> int | None:
    """How many classes a teacher tells apart; None if the folder is not there.  Raises RecipeError for one that is no teacher."""
    about = read_about(folder)
    if about is None:
        return None
    file, values = about
    try:
        if file.name == RECIPE_FILE:
            return int(values["model"]["classes"])
        if "model_type" not in values and "id2label" not in values:       # timm's, or ours
            return int(values["num_classes"] if "num_classes" in values else values["model"]["classes"])
        return len(values["id2label"]) if "id2label" in values else int(values.get("num_labels", 2))     # transformers' own default
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: str, error: Exception) -> RecipeError:
    return RecipeError(f"{folder} is no readable teacher ({type(error).__name__}: {error})")
