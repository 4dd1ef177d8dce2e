"""What must agree on a resume is compared by what it means."""

import copy
from typing import Any

import pytest

from vitscale.errors import CheckpointError
from vitscale.recipe import load_recipe
from vitscale.recipe.bound import changes, refuse_changes, settings_of


def plain(*overrides: str) -> dict[str, Any]:
    return load_recipe("quickstart", overrides).model_dump(mode="json")


def test_where_the_shards_lie_and_how_they_are_read_is_free() -> None:
    moved = plain("data.train=elsewhere/train-*.tar", "data.workers=7", "data.num_samples=null", "name=other", "runs_dir=/somewhere")
    assert {change.kind for change in changes(settings_of(plain(), "h"), settings_of(moved, "h"))} == {"free"}
    assert [str(change) for change in changes(settings_of(plain(), "h"), settings_of(plain(), "i"))] == ["index_hash: h -> i"]


def test_a_recipe_of_an_older_version_gains_the_defaults_of_new_keys() -> None:
    old = copy.deepcopy(plain())
    del old["data"]["augment"]["crop"], old["resilience"], old["model"]["layer_scale"], old["format"]
    assert settings_of(old, "h") == settings_of(plain(), "h")


def test_a_key_that_has_gone_is_shown_alone() -> None:
    """What else was left to its default is compared with the default."""
    old = plain()
    old["model"]["rope"] = True
    del old["data"]["augment"]["crop"], old["optim"]["eps"]
    found = changes(settings_of(old, "h"), settings_of(plain(), "h"))
    assert [change.kind for change in found] == ["training"]
    with pytest.raises(CheckpointError, match=r"model\.rope: True -> no key of this version"):
        refuse_changes(found, "step-3", "", accept=False)
    refuse_changes(found, "step-3", "", accept=True)


def test_credentials_stay_out_of_the_run_folder(tmp_path: Any) -> None:
    """recipe.yaml and run.json are written from these values."""
    from vitscale.recipe.redact import redacted

    url = "https://anna:hunter2@host/a-{000..001}.tar?X-Amz-Signature=abc123&part=7"
    shown = str(redacted(plain(f"data.train='{url}'", "data.num_samples=null")))
    assert "hunter2" not in shown
    assert "abc123" not in shown
    assert "part=***" in shown
