"""Folders for transformers: loaded by it, the same logits; read back by ourselves, the same weights; what has no expression is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import create_model

from vitscale.checkpoint.load import Loaded, load
from vitscale.data.crop import CentreCrop
from vitscale.data.transform import Transform
from vitscale.errors import CheckpointError, RecipeError
from vitscale.export.folder import write_safetensors, write_timm, write_transformers
from vitscale.export.verify import check_own, check_peer, error_of, pictures
from vitscale.models import build_model
from vitscale.models.timm_config import timm_architecture
from vitscale.models.transformers_config import kind_of
from vitscale.recipe.schema import FAMILIES, ConvNext, Deit, Model, Swin, Vit

transformers = pytest.importorskip("transformers")

VIT = {"width": 32, "depth": 2, "heads": 4, "mlp": 48, "patch": 8, "image": 32, "classes": 5}
SWIN = {"family": "swin", "width": 16, "depths": (2, 2), "heads": (2, 4), "window": 4, "image": 32, "classes": 5}
CONVNEXT = {"family": "convnext", "widths": (8, 16), "depths": (1, 2), "image": 32, "classes": 5}
EXPRESSED: dict[str, tuple[Model, str]] = {
    "token": (Vit(**VIT), "ViTForImageClassification"),
    "grey": (Vit(**VIT, channels=1, qkv_bias=False, norm_eps=1e-3), "ViTForImageClassification"),
    "sincos": (Vit(**VIT, position="sincos"), "ViTForImageClassification"),
    "none": (Vit(**VIT, position="none", pool_norm=True), "ViTForImageClassification"),
    "deit": (Deit(family="deit", **VIT), "DeiTForImageClassificationWithTeacher"),
    "layer-scale": (Vit(**{**VIT, "mlp": 64}, layer_scale=0.1, class_position=False), "Dinov2ForImageClassification"),
    "registers-gate": (Vit(**VIT, registers=3, gated=True), "Dinov2WithRegistersForImageClassification"),
    "mean": (Vit(**VIT, pool="mean", qkv_bias=False), "SiglipForImageClassification"),
    "fine-tuned-mae": (Vit(**VIT, pool="mean", pool_norm=True, registers=1, position="sincos"), "BeitForImageClassification"),
    "relative": (Vit(**VIT, pool="mean", pool_norm=True, registers=1, position="relative", layer_scale=0.1),
                 "BeitForImageClassification"),
    "swin": (Swin(**SWIN), "SwinForImageClassification"),
    "swin-v2": (Swin(**SWIN, version=2), "Swinv2ForImageClassification"),
    "convnext": (ConvNext(**CONVNEXT), "ConvNextForImageClassification"),
    "convnext-v2": (ConvNext(**CONVNEXT, version=2), "ConvNextV2ForImageClassification"),
    "token-no-head": (Vit(**{**VIT, "classes": 0}), "ViTModel"),
    "swin-no-head": (Swin(**{**SWIN, "classes": 0}), "SwinModel"),
}
NAMES = ("ant", "bee", "cat", "dog", "elk")


def shaken(section: Model, names: tuple[str, ...] = NAMES) -> Loaded:
    """A model of random weights, large enough that a swap would show."""
    model = build_model(section).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    transform = Transform(section.image, section.channels, crop=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return Loaded(model, transform, names[:section.classes], section, None, Path("nowhere"))


@pytest.mark.parametrize("name", EXPRESSED)
def test_transformers_gives_the_same_logits_and_so_do_we_read_back(name, tmp_path):
    section, architecture = EXPRESSED[name]
    loaded = shaken(section)
    assert loaded.model(pictures(loaded)).std() > 0.05
    assert write_transformers(loaded, tmp_path) == architecture
    assert check_peer(loaded, tmp_path, "transformers") <= 1e-5
    config = json.loads((tmp_path / "config.json").read_text())
    if section.classes:
        assert config["id2label"] == dict(zip("01234", NAMES, strict=True))
    back = load(tmp_path)
    assert back.class_names == loaded.class_names
    assert back.transform.mean == pytest.approx((0.5,) * 3 if section.channels == 1 else (0.4, 0.5, 0.6))
    images = pictures(loaded)
    torch.testing.assert_close(back.model(images), loaded.model(images), rtol=0, atol=1e-5)


def test_nothing_of_the_folder_is_left_over_or_made_up(tmp_path):
    """transformers fills in what a file lacks at random, with a warning alone: there must be nothing to fill in."""
    for number, (section, architecture) in enumerate(EXPRESSED.values()):
        if section.classes:
            write_transformers(shaken(section), tmp_path / str(number))
            _, report = getattr(transformers, architecture).from_pretrained(tmp_path / str(number), output_loading_info=True)
            assert not report["missing_keys"], (architecture, report)
            assert not report["unexpected_keys"], (architecture, report)
            assert not report["mismatched_keys"], (architecture, report)


@pytest.mark.parametrize(("change", "key"), [
    ({"position": "rotary"}, "model.classes"), ({"qk_norm": True}, "model.qk_norm"), ({"attention": "linear"}, "model.attention"),
    ({"pool": "attention"}, "model.classes"), ({"head_hidden": 8}, "model.head_hidden"), ({"class_tokens": 2}, "model.class_tokens"),
    ({"parallel": True}, "model.parallel"), ({"pool": "mean", "layer_scale": 0.1}, "model.layer_scale"),
    ({"gated": True, "mlp": 20}, "model.mlp"), ({"patch_embed": "overlap"}, "model.patch_embed"),
    ({"position": "relative", "qk_norm": True}, "model.qk_norm"), ({"scale_mlp_norm": True}, "model.scale_mlp_norm"),
    ({"position": "rotary", "rope_type": "axial", "classes": 0}, "model.rope_type"),
    ({"pool": "mean", "pool_norm": True}, "model.registers"),
])
def test_an_option_without_an_expression_is_named(change, key, tmp_path):
    with pytest.raises(RecipeError, match=rf"{key} .*\n.*--format timm"):
        write_transformers(shaken(Vit(**{**VIT, **change})), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("architecture", [kind_of, timm_architecture])
def test_a_key_that_no_class_is_known_to_have_is_named(family, architecture):
    """As one will be that is added to a section: what other libraries have of it has to be said before it goes out."""
    sections = {"vit": Vit(**VIT), "deit": Deit(family="deit", **VIT), "swin": Swin(**SWIN), "convnext": ConvNext(**FOUR)}
    more = create_model("More", __base__=FAMILIES[family], frills=(int, 0))
    values = sections[family].model_dump()
    architecture(more(**values))
    with pytest.raises(RecipeError, match=r"model\.frills  3 has no expression there"):
        architecture(more(**values, frills=3))


def test_windows_above_their_grid_go_where_they_can(tmp_path):
    """transformers' first Swin builds such a model and cannot run it."""
    above = SWIN | {"window": 16, "image": 64}
    with pytest.raises(RecipeError, match=r"model.window .*\n.*--format timm"):
        write_transformers(shaken(Swin(**above)), tmp_path / "out")
    write_transformers(shaken(Swin(**above, version=2)), tmp_path / "v2")
    assert check_peer(load(tmp_path / "v2"), tmp_path / "v2", "transformers") <= 1e-5
    write_timm(shaken(Swin(**above)), tmp_path / "timm")
    assert load(tmp_path / "timm").section == Swin(**above)


def test_the_processor_prepares_images_as_we_do(tmp_path, photo):
    """PIL's and our resizing differ by a rounding of single pixels."""
    loaded = shaken(Vit(**VIT))
    write_transformers(loaded, tmp_path)
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(Image.open(photo).convert("RGB"), return_tensors="pt")["pixel_values"][0]
    ours = loaded.transform(photo)
    assert ours.shape == theirs.shape == (3, 32, 32)
    assert (ours - theirs).abs().mean() < 0.01
    assert ours.std() > 0.1


def test_a_processor_of_images_and_text_says_how_images_are_prepared(tmp_path):
    """As CLIP's and SigLIP's are saved today: inside of processor_config.json, which goes before a file of the images' alone."""
    loaded = shaken(Vit(**VIT))
    write_transformers(loaded, tmp_path)
    alone = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor", "image_processor": alone | {
        "image_mean": [0.1, 0.2, 0.3]}}))
    for there in (True, False):
        assert load(tmp_path).transform.mean == pytest.approx((0.1, 0.2, 0.3))
        assert tuple(transformers.AutoImageProcessor.from_pretrained(tmp_path).image_mean) == pytest.approx((0.1, 0.2, 0.3))
        if there:
            (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert "says nothing of how images are prepared" in load(tmp_path).notes[-1]
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": [1]}))
    with pytest.raises(CheckpointError, match="image_processor is no mapping"):
        load(tmp_path)


def test_the_processor_cuts_out_the_same_pixels_of_an_image_of_any_size():
    from transformers.image_transforms import center_crop

    size = 32
    for long in range(size, size + 130):
        for height, width in ((size, long), (long, size), (size + 3, long)):
            places = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
            top, left, *_ = CentreCrop().middle(height, width, size)
            assert (center_crop(places, (size, size), input_data_format="channels_last")
                    == places[top:top + size, left:left + size]).all(), (height, width)


@pytest.fixture
def photo(tmp_path):
    from PIL import Image

    down, across = np.mgrid[:90, :140]
    pixels = np.stack([down * 2, across, (down * across) % 255], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


FOUR = {**CONVNEXT, "widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
FOR_TIMM = {name: EXPRESSED[name][0] for name in (
    "token", "sincos", "none", "deit", "layer-scale", "mean", "fine-tuned-mae", "swin", "swin-v2")} | {
    "convnext": ConvNext(**FOUR), "convnext-v2": ConvNext(**FOUR, version=2), "registers": Vit(**VIT, registers=2, layer_scale=0.1),
    "registers-mean": Vit(**VIT, registers=2, pool="mean", qk_norm=True), "attention-pooling": Vit(**VIT, pool="attention"),
    "deit-3": Deit(family="deit", **VIT, class_position=False),
    "relative-network": Vit(**VIT, pool="mean", registers=1, position="relative", relative_mlp=12, post_norm=True),
    "relative-mean": Vit(**VIT, pool="mean", position="relative", qk_norm=True, position_interpolation="geometric"),
    "mixed": Vit(**VIT, rope_type="mixed", rope_temperature=10.0, registers=2, post_norm=True, class_position=False),
}


@pytest.mark.parametrize(("section", "said"), [
    (Vit(**VIT), "timm's vit_base_patch16_224 changed to embed_dim 32, depth 2, num_heads 4, patch_size 8, img_size 32"),
    (Swin(**SWIN),
     "timm's swin_tiny_patch4_window7_224 changed to embed_dim 16, depths [2, 2], num_heads [2, 4], patch_size 4, img_size 32"),
    (ConvNext(**{**CONVNEXT, "widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}),
     "timm's convnext_tiny changed to dims [8, 8, 16, 16], depths [1, 1, 2, 1]"),
])
def test_the_name_of_an_architecture_comes_with_the_sizes_it_is_given(section, said, tmp_path):
    assert write_timm(shaken(section), tmp_path) == said


@pytest.mark.parametrize("name", FOR_TIMM)
def test_folders_for_timm_read_back_alike(name, tmp_path):
    """With timm 1.0.31 itself, by hand, the largest difference of a logit was 1e-6; it needs torchvision, which these tests do without."""
    loaded = shaken(FOR_TIMM[name])
    write_timm(loaded, tmp_path)
    assert check_own(loaded, tmp_path) <= 1e-6
    assert load(tmp_path).class_names == NAMES


@pytest.mark.parametrize("section", [Vit(**VIT, position="rotary", gated=True, registers=2, pool="attention"), Swin(**SWIN, version=2)])
def test_our_own_folders_hold_every_model(section, tmp_path):
    loaded = shaken(section)
    write_safetensors(loaded, tmp_path)
    assert check_own(loaded, tmp_path) == 0
    assert load(tmp_path).section == section
    assert load(tmp_path).transform == loaded.transform


def test_an_export_that_differs_is_not_called_good(tmp_path):
    loaded = shaken(Vit(**VIT))
    with pytest.raises(CheckpointError, match="differ from ours by"):
        error_of(loaded, lambda images: loaded.model(images) + 0.1, "it")


def test_foreign_folders_that_cannot_be_read_say_why(tmp_path):
    write_transformers(shaken(Vit(**VIT)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (({"model_type": "resnet"}, "model_type 'resnet'"), ({"hidden_act": "mish"}, "hidden_act  'mish'"),
                          ({"hidden_size": 30}, "model.heads|heads")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((CheckpointError, RecipeError), match=words):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle"):
        load(tmp_path)


@pytest.mark.parametrize(("section", "key"), [
    (Vit(**VIT, head_hidden=8), "model.head_hidden"), (Vit(**VIT, position="rotary", hidden_act="relu"), "model.hidden_act"),
    (ConvNext(**CONVNEXT), "model.depths"), (Vit(**VIT, norm_eps=1e-3), "model.norm_eps"), (Vit(**VIT, pool="token_mean"), "model.pool"),
])
def test_timm_too_is_refused_what_it_has_no_argument_for(section, key, tmp_path):
    with pytest.raises(RecipeError, match=rf"{key} .*\n.*--format safetensors"):
        write_timm(shaken(section), tmp_path)
