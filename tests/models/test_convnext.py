"""ConvNeXt, versions 1 and 2: transformers' logits with the same weights, published sizes, stochastic depth."""

import pytest
import torch
from reference import pictures, renamed, shaken
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitscale.errors import RecipeError
from vitscale.models import build_model, initialise
from vitscale.plan import anatomy_of, count_params, forward_flops
from vitscale.recipe.schema import ConvNext
from vitscale.shapes.families import check_model

transformers = pytest.importorskip("transformers")

TINY = {"family": "convnext", "widths": (8, 16), "depths": (2, 3), "image": 32, "classes": 5}
THEIRS = {"hidden_sizes": [8, 16], "depths": [2, 3], "num_stages": 2, "num_labels": 5, "layer_norm_eps": 1e-6}

RENAMED = [         # theirs, ours: applied in this order
    ("convnextv2.", ""), ("convnext.", ""), ("embeddings.patch_embeddings", "stem.0"), ("embeddings.layernorm", "stem.1"), ("encoder.", ""),
    ("downsampling_layer", "downsample"), (".layers.", ".blocks."), ("dwconv", "conv_dw"), ("pwconv1", "mlp.fc1"), ("pwconv2", "mlp.fc2"),
    ("grn.", "mlp.grn."), ("layer_scale_parameter", "gamma"), ("layernorm", "norm"), ("classifier", "head.fc"),
]


def ours_from(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for key, value in theirs.items():
        key = renamed(key, RENAMED)
        ours[f"head.{key}" if key.startswith("norm.") else key] = value.flatten() if ".grn." in key else value
    return ours


def pair(version: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    kind = "ConvNext" if version == 1 else "ConvNextV2"
    theirs = shaken(getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**THEIRS)))
    ours = build_model(ConvNext(**TINY, version=version)).eval()
    ours.load_state_dict(ours_from(theirs.state_dict()), strict=True)
    return ours, theirs


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40)])
def test_logits_and_gradients_equal_transformers(version, height, width):
    ours, theirs = pair(version)
    images = pictures(height, width)
    found, expected = ours(images), theirs(images).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.stem[0].weight.grad, theirs.get_parameter(
        ("convnext" if version == 1 else "convnextv2") + ".embeddings.patch_embeddings.weight").grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "version", "count"), [
    ("tiny", 1, 28_589_128), ("small", 1, 50_223_688), ("base", 1, 88_591_464), ("large", 1, 197_767_336), ("xlarge", 1, 350_196_968),
    ("atto", 2, None), ("femto", 2, None), ("pico", 2, None), ("nano", 2, None), ("tiny", 2, 28_635_496), ("base", 2, 88_717_800),
    ("large", 2, None), ("huge", 2, 660_289_640),
])
def test_parameters_and_flops_are_exact(size, version, count):
    """Published counts; without one, the built model's alone.  FLOPs are those that torch counts of one image."""
    section = ConvNext(family="convnext", size=size, version=version)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(section)
        model(torch.empty(1, 3, 224, 224))
    assert count_params(section) == sum(p.numel() for p in model.parameters()) == (count or count_params(section))
    assert forward_flops(section) == counter.get_total_flops()


def test_dropped_branches():
    section = ConvNext(**TINY, drop_path=0.5)
    model = build_model(section)
    initialise(model, 0)
    shaken(model)
    assert model.drop_rates == (0.0, 0.125, 0.25, 0.375, 0.5)
    images, keep = pictures(32, 32), torch.ones(5, 3)
    keep[:, 1] = 0
    found = model.forward_features(images, keep, names=["stem", "stages.0"])
    torch.testing.assert_close(found["stages.0"][1], found["stem"][1])                      # nothing but the stem is left of it
    assert not torch.equal(found["stages.0"][0], found["stem"][0])


@pytest.mark.parametrize("version", [1, 2])
def test_units_and_first_values(version):
    section = ConvNext(**TINY, version=version)
    model = build_model(section)
    assert [sum(p.numel() for p in unit.parameters()) for unit in model.units()] == [unit.params for unit in anatomy_of(section).units]
    initialise(model, 0)
    values = dict(model.named_parameters())
    if version == 1:
        assert values["stages.0.blocks.1.gamma"].tolist() == pytest.approx([1e-6] * 8)
    else:
        assert not values["stages.0.blocks.1.mlp.grn.weight"].any()
    assert values["stages.0.blocks.1.conv_dw.weight"].std().item() == pytest.approx(1 / 7, rel=0.1)
    assert not model(pictures(32, 32)).any()        # the classifier begins at zero


@pytest.mark.parametrize(("change", "key"), [
    ({"image": 36}, "model.image"), ({"widths": None}, "model.size"), ({"depths": (1, 2, 3), "image": 64}, "model.depths"),
    ({"dropout": 0.1}, "model.dropout"), ({"version": 2, "layer_scale": 0.1}, "model.layer_scale"),
])
def test_what_does_not_fit_is_refused(change, key):
    with pytest.raises(RecipeError, match=key):
        check_model(ConvNext(**{**TINY, **change}))
