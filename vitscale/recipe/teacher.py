"""What can be known of a teacher without opening its weights."""

import json
from pathlib import Path
from typing import Any

from vitscale.errors import RecipeError
from vitscale.recipe.text import read_yaml

RECIPE_FILE = "recipe.yaml"         # of a run folder
CONFIG_FILE = "config.json"         # of a folder of transformers', timm's, or an export of ours


def teacher_classes(folder: str) -> int | None:
    """How many classes a teacher tells apart; None if the folder is not there.  Raises RecipeError for one that is no teacher."""
    path = Path(folder)
    if not path.exists():
        return None
    try:
        if (path / RECIPE_FILE).is_file():
            values: Any = read_yaml((path / RECIPE_FILE).read_text(encoding="utf-8"), str(path / RECIPE_FILE))
            return int(values["model"]["classes"])
        if (path / CONFIG_FILE).is_file():
            config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
            if "model_type" not in config and "id2label" not in config:       # timm's, or ours
                return int(config["num_classes"] if "num_classes" in config else config["model"]["classes"])
            return len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))     # transformers' own default
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"objective.teacher: {folder} is no readable teacher ({type(error).__name__}: {error})") from None
    raise RecipeError(f"objective.teacher: {folder} holds neither {RECIPE_FILE} (a run's folder) nor {CONFIG_FILE} (transformers')")
