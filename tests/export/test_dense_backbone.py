"""Pyramids: strides and channels as stated; transformers' UperNet and MaskFormer take them; a real segmentation is learned."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from backbones import BACKBONES
from planted import DIGIT, SIZE, Planted, planted
from torch import Tensor

from vitscale.models import Backbone, build_model, initialise
from vitscale.models.pyramid import SimplePyramid, build_pyramid
from vitscale.recipe.schema import ConvNext, Model, Swin, Vit

transformers = pytest.importorskip("transformers", minversion="5")

from vitscale.export.dense import PyramidBackbone, PyramidConfig  # noqa: E402

VIT = Vit(width=32, depth=2, heads=2, mlp=64, patch=16, image=64, registers=1)
SWIN = Swin(family="swin", width=8, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=2, image=64)
CONVNEXT = ConvNext(family="convnext", widths=(8, 16, 32, 64), depths=(1, 1, 1, 1), image=64)


def ready(section: Model) -> Backbone:
    model = build_model(section)
    initialise(model, 0)
    return model.eval()


@pytest.mark.parametrize(("section", "channels"), [(VIT, (24,) * 4), (SWIN, (8, 16, 32, 64)), (CONVNEXT, (8, 16, 32, 64))],
                         ids=["vit", "swin", "convnext"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_strides_and_channels_are_as_stated(section: Model, channels: tuple[int, ...], size: tuple[int, int]) -> None:
    pyramid = build_pyramid(ready(section), channels=24)
    assert pyramid.strides == (4, 8, 16, 32)
    assert pyramid.channels == channels
    levels = pyramid(torch.randn(2, 3, *size))
    assert [tuple(level.shape) for level in levels] == [
        (2, its, int(size[0] // stride), int(size[1] // stride)) for its, stride in zip(channels, pyramid.strides, strict=True)]


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_a_pyramid(name: str) -> None:
    """Each level changes when the image does; the same seed gives the same pyramid."""
    pyramid = build_pyramid(ready(BACKBONES[name][0]), channels=8)
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = pyramid(images), pyramid(images.flip(3))
    assert all((one - other).abs().max() > 1e-6 for one, other in zip(first, second, strict=True))
    again = build_pyramid(ready(BACKBONES[name][0]), channels=8)(images)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_patch_of_the_image_reaches_its_own_place_of_every_level() -> None:
    """Without blocks that mix places, what changes at the right stays at the right."""
    model = ready(Vit(width=32, depth=1, heads=2, mlp=64, patch=16, image=128, pool="mean"))
    model.blocks = torch.nn.ModuleList()        # type: ignore[assignment]
    pyramid = build_pyramid(model, channels=8)
    images = torch.zeros(1, 3, 128, 128)
    changed = images.clone()
    changed[:, :, 48:64, 96:112] = 1
    for level, other, stride in zip(pyramid(images), pyramid(changed), pyramid.strides, strict=True):
        moved = ((level - other).abs().sum(dim=1)[0] > 1e-6).nonzero() * stride
        assert len(moved) > 0
        reach = 2 * stride                      # of the 3 x 3 convolution, and of a pooled pair
        assert moved[:, 0].min() >= 48 - reach
        assert moved[:, 0].max() < 64 + reach
        assert moved[:, 1].min() >= 96 - reach
        assert moved[:, 1].max() < 112 + reach


def test_a_grid_that_two_does_not_divide_loses_nothing() -> None:
    levels = build_pyramid(ready(VIT), 8)(torch.zeros(1, 3, 80, 48))
    assert [tuple(level.shape[2:]) for level in levels] == [(20, 12), (10, 6), (5, 3), (3, 2)]


def test_scales_are_checked() -> None:
    for wrong in ((1.0, 2.0), (3.0,), ()):
        with pytest.raises(ValueError, match="scales are some of"):
            SimplePyramid(ready(VIT), 8, wrong)


def upernet(section: Model, labels: int, channels: int = 16, **options: object) -> "transformers.UperNetForSemanticSegmentation":
    config = transformers.UperNetConfig(backbone_config=PyramidConfig.of(section, channels, **options), hidden_size=32, pool_scales=[1, 2],
                                        use_auxiliary_head=False, num_labels=labels)
    torch.manual_seed(0)
    return transformers.UperNetForSemanticSegmentation(config)


SWIN_V2, SINCOS = SWIN.model_copy(update={"version": 2}), VIT.model_copy(update={"position": "sincos"})


@pytest.mark.parametrize("section", [VIT, SWIN, SWIN_V2, CONVNEXT, SINCOS],
                         ids=["vit", "swin", "swin-v2", "convnext", "vit-sincos"])
def test_upernet_takes_it_and_a_folder_gives_it_back(section: Model, tmp_path: Path) -> None:
    trained = ready(section)
    for value in trained.parameters():
        value.data += 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    model = upernet(section, labels=5).eval()
    model.backbone.take(trained)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs, ours = model.backbone(images).feature_maps, model.backbone.pyramid(images)
    assert all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True))
    name = "norm" if isinstance(section, Vit) else trained.feature_names()[-2]
    assert torch.equal(model.backbone.pyramid.backbone.forward_features(images, None, [name])[name],
                       trained.forward_features(images, None, [name])[name])
    logits = model(images).logits
    assert logits.shape == (2, 5, 64, 64)
    model.save_pretrained(tmp_path)
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(images).logits, logits, atol=1e-5, rtol=0)


def test_maskformer_takes_it() -> None:
    config = transformers.MaskFormerConfig(
        backbone_config=PyramidConfig.of(SWIN), fpn_feature_size=32, mask_feature_size=16, num_labels=3,
        decoder_config=transformers.DetrConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                                               decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5))
    model = transformers.MaskFormerForInstanceSegmentation(config).eval()
    assert isinstance(model.model.pixel_level_module.encoder, PyramidBackbone)
    found = model(torch.randn(1, 3, 64, 64))
    assert found.class_queries_logits.shape == (1, 5, 4)
    assert found.masks_queries_logits.shape[-2:] == (16, 16)       # stride 4


def test_some_levels_alone() -> None:
    config = PyramidConfig.of(CONVNEXT)
    config.out_features = ["level1", "level3"]
    backbone = PyramidBackbone(config)
    assert backbone.channels == [16, 64]
    assert [level.shape[-1] for level in backbone(torch.zeros(1, 3, 64, 64)).feature_maps] == [8, 2]


def miou(found: Tensor, masks: Tensor, classes: int) -> float:
    """found, masks (B, h, w) int64 -> mean over classes of intersection over union, over all pixels."""
    shares = [((found == one) & (masks == one)).sum() / ((found == one) | (masks == one)).sum() for one in range(classes)]
    return float(torch.stack(shares).mean())


@pytest.mark.slow       # trains a classifier and fine-tunes it for segmentation: 8 s of a core
def test_a_segmentation_is_learned() -> None:
    """Real digits on real photos: which pixels are in the square that a digit stands in.  All `photo`: mIoU 0.375."""
    section = Vit(width=48, depth=3, heads=4, mlp=96, patch=4, image=SIZE, classes=3)
    known, new = (planted(count, seed, training, digits=(0, 1, 4)) for count, seed, training in ((2000, 0, True), (200, 1, False)))
    places = torch.arange(SIZE)

    def truth(of: Planted) -> Tensor:
        down, across = ((places >= of.boxes[:, axis, None]) & (places < of.boxes[:, axis, None] + DIGIT) for axis in (0, 1))
        return (down[:, :, None] & across[:, None, :]).long()

    def trained(model: torch.nn.Module, steps: int, loss_of: Callable[[Tensor], Tensor]) -> None:
        optimizer, generator = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05), torch.Generator().manual_seed(0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(torch.randint(len(known.labels), (32,), generator=generator)).backward()
            optimizer.step()
            schedule.step()

    classifier = build_model(section)
    initialise(classifier, 0)
    trained(classifier, 60, lambda rows: F.cross_entropy(classifier(known.images[rows]), known.labels[rows]))
    model, masks = upernet(section, labels=2, scales=(1.0, 0.5)), truth(known)
    model.backbone.take(classifier)
    trained(model.train(), 80, lambda rows: model(known.images[rows], labels=masks[rows]).loss)
    with torch.no_grad():
        reached = miou(model.eval()(new.images).logits.argmax(dim=1), truth(new), 2)
    assert miou(torch.zeros_like(truth(new)), truth(new), 2) == pytest.approx(0.375)
    assert reached > 0.75
