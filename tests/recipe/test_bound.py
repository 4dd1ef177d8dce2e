"""What must agree on a resume is compared by what it means."""

import copy
from typing import Any

import pytest

from vitscale.checkpoint.resume import refuse_changes
from vitscale.errors import CheckpointError
from vitscale.recipe import load_recipe
from vitscale.recipe.bound import bound_settings, differences


def plain(*overrides: str) -> dict[str, Any]:
    return load_recipe("quickstart", overrides).model_dump(mode="json")


def test_where_the_shards_lie_and_how_they_are_read_is_free() -> None:
    moved = plain("data.train=elsewhere/train-*.tar", "data.workers=7", "data.num_samples=null", "name=other", "runs_dir=/somewhere")
    assert bound_settings(plain(), "h") == bound_settings(moved, "h")
    assert differences(bound_settings(plain(), "h"), bound_settings(plain(), "i")) == [("index_hash", "h", "i")]


def test_a_recipe_of_an_older_version_gains_the_defaults_of_new_keys() -> None:
    old = copy.deepcopy(plain())
    del old["data"]["augment"]["crop"], old["resilience"], old["model"]["layer_scale"]
    assert bound_settings(old, "h") == bound_settings(plain(), "h")


def test_a_key_that_has_gone_is_shown(tmp_path: Any) -> None:
    old = plain()
    old["model"]["rope"] = True
    with pytest.raises(CheckpointError, match=r"model\.rope: True -> None"):
        refuse_changes(bound_settings(old, "h"), bound_settings(plain(), "h"), tmp_path, accept=False)


def test_credentials_stay_out_of_the_run_folder(tmp_path: Any) -> None:
    """recipe.yaml and run.json are written from these values."""
    from vitscale.recipe.redact import redacted

    url = "https://anna:hunter2@host/a-{000..001}.tar?X-Amz-Signature=abc123&part=7"
    shown = str(redacted(plain(f"data.train='{url}'", "data.num_samples=null")))
    assert "hunter2" not in shown
    assert "abc123" not in shown
    assert "part=***" in shown
