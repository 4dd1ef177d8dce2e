"""The card of a real run: metadata that parses, the run's own numbers, and a person's text is left alone."""

import json
import re
from pathlib import Path

import pytest
import yaml
from running import Run

from vitscale.errors import ClusterError
from vitscale.observe.modelcard import MARK, render_card, write_card


def metadata(text: str) -> dict:
    head, front, _ = text.split("---\n", 2)
    assert head == ""
    return yaml.safe_load(front)


def test_a_real_run_left_its_card(unbroken: Run) -> None:
    text = (unbroken.folder / "README.md").read_text()
    front = metadata(text)
    assert front["library_name"] == "vitscale"
    assert front["pipeline_tag"] == "image-classification"
    [result] = front["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["accuracy"] == pytest.approx(unbroken.outcome["eval_top1"], abs=1e-4)
    assert "26,762 parameters" in text
    assert "`checkpoints/step-00000060/model.safetensors`" in text
    assert (unbroken.folder / "checkpoints/step-00000060/model.safetensors").exists()
    assert f"| {unbroken.outcome['eval_top1']:.2%} |" in text


def test_texts_of_a_recipe_are_no_markup(tmp_path: Path) -> None:
    hostile = "a|b](javascript:x) <img src=x> `c` \n---\n# d"
    data = {"train": [f"s3://me:secret@host/{hostile}"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps({
        "name": hostile, "duration": hostile, "data": data, "model": {"family": hostile, "size": hostile}}))
    text = render_card(tmp_path)
    assert "secret" not in text
    assert hostile in metadata(text)["tags"]
    body = text.split(MARK)[1]
    in_code = re.sub(r"`[^`\n]*`", "", re.sub(r"\\`", "", body))
    assert not re.search(r"(?<!\\)[<>\[\]]", in_code)
    assert "\n# d" not in body
    assert "Not evaluated" in text


def test_a_persons_card_stays(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    path = write_card(tmp_path)
    assert path is not None
    assert MARK in path.read_text()
    path.write_text("# Mine\n")
    assert write_card(tmp_path) is None
    assert path.read_text() == "# Mine\n"


def test_without_a_recipe_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="wants the run's recipe"):
        write_card(tmp_path)
