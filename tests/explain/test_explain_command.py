"""`vitscale explain` on a run: figures and page; bad input; families without attention; notebooks' two functions."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from backbones import BACKBONES
from running import Run
from sklearn.datasets import load_digits

import vitscale
from vitscale.checkpoint.load import Loaded
from vitscale.data.transform import Transform
from vitscale.evaluate.images import open_images
from vitscale.explain import Unexplained, visualize_attention_weights, visualize_patches
from vitscale.explain.command import Wish, explain
from vitscale.models import build_model, initialise

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real digits as PNG files, one of them cut short, and one whose name wants to be markup."""
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("a.png", "b.png", "<img src=x onerror=alert(1)>.png")):
        cv2.imwrite(str(folder / name), (load_digits().images[1500 + number] * 255 / 16).round().astype(np.uint8))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


def made(name: str, classes: int = 5) -> Loaded:
    """An untrained tiny model, as if loaded."""
    section = BACKBONES[name][0].model_copy(update={"classes": classes})
    model = build_model(section)
    initialise(model, 0)
    for value in model.parameters():        # heads begin at zero, and then no class has a gradient
        value.data += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    names = tuple(f"kind {number}" for number in range(classes))
    return Loaded(model.eval().requires_grad_(False), Transform(section.image), names, section, None, Path("nowhere"))


def test_a_run_is_explained(unbroken: Run, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = vitscale.load(unbroken.folder)
    bad = explain(loaded, "unbroken", open_images([str(digits_folder)]), Wish(), tmp_path / "out")
    assert [Path(name).name for name, _ in bad] == ["cut.png"]
    assert "truncated" in bad[0][1]
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"a.png", "b.png", "a-attention.png", "overview.png", "filters.png", "positions.png", "distance.png", "index.html"} <= files
    assert all(file.read_bytes()[:4] == PNG for file in (tmp_path / "out").glob("*.png"))
    assert len(files) == 3 + 3 + 5
    assert "3 images explained by patches, attention, rollout, flow, relevance" in capsys.readouterr().out


def test_layers_heads_and_methods_are_chosen(digits_folder: Path, tmp_path: Path) -> None:
    wish = Wish(methods=("attention", "flow"), layers=(-1,), heads=(1,), target="kind 2", limit=1)
    explain(made("vit"), "x", open_images([str(digits_folder / "b.png")]), wish, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"b.png", "b-attention.png", "index.html"}
    few = cv2.imread(str(tmp_path / "b-attention.png"))
    explain(made("vit"), "x", open_images([str(digits_folder / "b.png")]), Wish(methods=("attention",)), tmp_path)
    all_of_them = cv2.imread(str(tmp_path / "b-attention.png"))
    assert few.shape[0] < all_of_them.shape[0]      # two layers of two heads


@pytest.mark.parametrize(("wish", "says"), [
    (Wish(methods=("rolout",)), r"there is no method rolout \(did you mean rollout\?\); the methods are patches, attention, rollout, flow"),
    (Wish(layers=(2,)), "there is no layer 2; this model's layers are 0 to 1"),
    (Wish(heads=(7,)), "there is no head 7; this model's heads are 0 to 1"),
    (Wish(target="cat"), "there is no class cat; this model's classes are kind 0, kind 1"),
])
def test_what_is_not_there_lists_what_is(wish: Wish, says: str, digits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unexplained, match=says):
        explain(made("vit"), "x", open_images([str(digits_folder)]), wish, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "says"), [
    ("swin", "SwinTransformer gives no attention rollout: its attention stays inside windows; grad-cam, similarity and pca work"),
    ("convnext", "ConvNeXt gives no attention rollout: it has no attention; grad-cam, similarity and pca work"),
])
def test_without_attention_the_method_that_works_is_named(
    name: str, says: str, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    source = open_images([str(digits_folder / "a.png")])
    with pytest.raises(Unexplained, match=says):
        explain(made(name), "x", source, Wish(methods=("rollout",)), tmp_path)
    explain(made(name), "x", source, Wish(), tmp_path)
    told = capsys.readouterr()
    assert "explained through its gradients and features (patches, grad-cam, pca, similarity, filters" in told.err
    assert "1 image explained by patches, grad-cam" in told.out
    assert (tmp_path / "index.html").is_file()


def test_without_a_classifier_no_class_is_explained(digits_folder: Path, tmp_path: Path) -> None:
    source = open_images([str(digits_folder / "a.png")])
    loaded = dataclasses.replace(made("vit", classes=0), class_names=())
    with pytest.raises(Unexplained, match="relevance explains a class, and this model has no classifier"):
        explain(loaded, "x", source, Wish(methods=("relevance",)), tmp_path)
    assert explain(loaded, "x", source, Wish(), tmp_path) == []


def test_no_image_can_be_read(digits_folder: Path, tmp_path: Path) -> None:
    bad = explain(made("vit"), "x", open_images([str(digits_folder / "cut.png"), "absent.png"]), Wish(), tmp_path)
    assert [name for name, _ in bad] == [str(digits_folder / "cut.png"), "absent.png"]
    assert not list(tmp_path.iterdir())


def test_the_page_stops_growing(digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_images([str(digits_folder / name) for name in ("a.png", "b.png")])
    explain(made("vit"), "x", source, Wish(methods=("attention",), page_bytes=1), tmp_path)
    assert "1 of 2 images are in the figures alone" in capsys.readouterr().err
    assert (tmp_path / "b-attention.png").is_file()


def test_equal_names_and_odd_ones_get_files_of_their_own(digits_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "more"
    other.mkdir()
    for name in ("a.png", "overview.png"):
        (other / name).write_bytes((digits_folder / "b.png").read_bytes())
    explain(made("vit"), "x", open_images([str(digits_folder), str(other)]), Wish(methods=("patches",)), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "a.png", "a-2.png", "b.png", "img-src-x-onerror-alert-1.png", "overview.png", "overview-2.png", "index.html"}


def test_patches_are_the_pixels_with_gaps() -> None:
    image = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    sheet = visualize_patches(image, 8)
    scale, gap = 18, 18 * 8 // 12
    assert sheet.shape == (2 * 8 * scale + gap, 3 * 8 * scale + 2 * gap, 3)
    assert np.array_equal(sheet[8 * scale + gap::scale, 16 * scale + 2 * gap::scale][:8, :8], image[8:, 16:])
    assert (sheet[8 * scale:8 * scale + gap] == 255).all()
    with pytest.raises(Unexplained, match="do not divide"):
        visualize_patches(image, 7)


def test_attention_weights_are_brightest_where_they_are_largest(tmp_path: Path) -> None:
    loaded = made("vit")
    image = torch.zeros(3, 16, 16)
    names = ["blocks.1.attention"]
    weights = loaded.model.forward_features(image[None], None, names)[names[0]][0, 1, 1 + 6, 1:].unflatten(0, (4, 4))
    picture = visualize_attention_weights(loaded.model, image, layer=1, head=1, token=(1, 2), file=tmp_path / "x.png")
    cells = torch.from_numpy(picture.reshape(4, 112, 4, 112, 3).sum(axis=(1, 3, 4)).astype(np.int64))
    assert int(cells.argmax()) == int(weights.argmax())
    assert int(cells.argmin()) == int(weights.argmin())
    assert (tmp_path / "x.png").read_bytes()[:4] == PNG
    with pytest.raises(Unexplained, match="no patch in row 4, column 0; there are 4 rows"):
        visualize_attention_weights(loaded.model, image, token=(4, 0))
    with pytest.raises(Unexplained, match="no token 17"):
        visualize_attention_weights(loaded.model, image, token=17)
