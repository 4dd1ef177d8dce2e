"""What fails its check, or on the way to it, is not there: imports and exports leave a place as they found it."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from test_export_folders import VIT, shaken

from vitscale.errors import CheckpointError, UserError
from vitscale.export import verify
from vitscale.export import write as writing
from vitscale.export.bring import bring
from vitscale.export.folder import write_timm, write_transformers
from vitscale.export.verify import check_peer, difference
from vitscale.files import whole_folder
from vitscale.recipe.schema import Vit


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("there", [None, {}, {"old.txt": "x", "config.json": "old"}], ids=["absent", "empty", "with files"])
@pytest.mark.parametrize("failure", [None, OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["well", "full", "interrupted"])
def test_a_folder_is_whole_or_as_it_was(there: dict[str, str] | None, failure: BaseException | None, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    if there is not None:
        out.mkdir(parents=True)
        for name, text in there.items():
            (out / name).write_text(text)
    before = state(tmp_path)
    try:
        with whole_folder(out) as aside:
            (aside / "config.json").write_text("new")
            (aside / "part").mkdir()
            (aside / "part" / "b").write_text("b")
            assert {name: text for name, text in state(tmp_path).items() if ".part" not in name}.items() >= before.items()
            if failure:
                raise failure
    except (UserError, KeyboardInterrupt):
        assert failure is not None
    if failure:
        assert state(tmp_path) == before
    else:
        assert state(out) == {name: text.encode() for name, text in (there or {}).items()} | {
            "config.json": b"new", "part": b"/", "part/b": b"b"}


@pytest.mark.parametrize(("form", "reason"), [("import", "a file"), ("import", "below a file"), ("import", "full"),
                                              *((form, "full") for form in writing._WAYS)])
def test_a_place_that_cannot_be_written_is_named(form: str, reason: str, tmp_path: Path) -> None:
    loaded, out = shaken(Vit(**VIT)), tmp_path / "out"
    write_transformers(loaded, tmp_path / "theirs")
    (tmp_path / "file").write_text("x")
    before, limits = state(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    out = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out"}.get(reason, out)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192 if reason == "full" else limits[0], limits[1]))
        with pytest.raises(UserError, match="out" if reason == "full" else "file.*directory"):
            list(bring(tmp_path / "theirs", out) if form == "import" else writing.write(loaded, form, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state(tmp_path) == before


def test_an_import_or_export_that_differs_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is changed between its writing and its check, as another library's might be read otherwise."""
    loaded = shaken(Vit(**VIT))
    write_transformers(loaded, tmp_path / "theirs")
    before = state(tmp_path)
    monkeypatch.setattr(verify, "_held", lambda *_: 6e-5)
    with pytest.raises(CheckpointError, match=r"differ from ours by 6\.0e-05 of their standard deviation"):
        list(bring(tmp_path / "theirs", tmp_path / "ours"))
    with pytest.raises(CheckpointError, match="differ from ours"):
        list(writing.write(loaded, "transformers", tmp_path / "ours"))
    assert state(tmp_path) == before
    monkeypatch.undo()
    monkeypatch.setattr(verify.torch.nn.functional, "layer_norm", lambda *_: 1 / 0)
    for form in writing._WAYS:
        with pytest.raises((UserError, ZeroDivisionError, RuntimeError)):
            list(writing.write(loaded, form, tmp_path / "ours"))
    assert state(tmp_path) == before


def test_a_surplus_tensor_and_a_surplus_key_are_refused_by_name(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    for write in (write_transformers, write_timm):
        folder = tmp_path / write.__name__
        write(shaken(Vit(**VIT)), folder)
        sound = (folder / "config.json").read_text()
        where = {"write_transformers": (), "write_timm": ("model_args",)}[write.__name__]
        config = json.loads(sound)
        inner = config
        for key in where:
            inner = inner[key]
        inner["use_frills"] = True
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"use_frills  is not known here"):
            list(bring(folder, tmp_path / "out"))
        (folder / "config.json").write_text(sound)
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "frills.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"no part of the described model takes: frills.weight"):
            list(bring(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert sorted(os.listdir(tmp_path)) == ["write_timm", "write_transformers"]


def test_a_classifier_that_begins_at_zero_hides_nothing(tmp_path: Path) -> None:
    """All logits are zero then, whatever stands before them: what the classifier is given is compared too."""
    loaded = shaken(Vit(**VIT))
    loaded.model.head.weight.zero_()
    write_transformers(loaded, tmp_path)
    assert check_peer(loaded, tmp_path, "transformers") <= 1e-5
    loaded.model.blocks[0].attn.proj.weight.mul_(1.01)
    with pytest.raises(CheckpointError, match="differ from ours"):
        check_peer(loaded, tmp_path, "transformers")


def test_differences_are_shares_of_the_spread() -> None:
    ours = torch.tensor([[0.0, 2.0], [0.0, 2.0]]) * 100 + 7
    assert difference(ours, ours + 1e-3, "x") == pytest.approx(1e-3 / float(ours.std()), rel=1e-2)
    assert difference(torch.ones(2, 2), torch.ones(2, 2) + 0.5, "x") == 0.5
    assert not difference(ours, ours * float("nan"), "x") <= 1
    with pytest.raises(CheckpointError, match="gives"):
        difference(ours, ours[:1], "x")
