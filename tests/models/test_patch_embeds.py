"""Patch embeddings: equal to transformers' where it has them, to their definition elsewhere; kernels for patches of another size."""

import math

import pytest
import torch
import torch.nn.functional as F
from reference import pictures, renamed, shaken
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitscale.errors import RecipeError
from vitscale.models import build_model, initialise, patch_embed
from vitscale.models.patch_embed import OverlappingPatchEmbed, PatchEmbed, PositionalPatchEmbed, product_of_patches, resample_kernel
from vitscale.models.patch_embed_adaptive import AdaptivePatchEmbed
from vitscale.models.patch_embed_conv import ConvStemPatchEmbed, HybridPatchEmbed
from vitscale.plan import anatomy_of, count_params, forward_flops
from vitscale.recipe import Vit
from vitscale.recipe.check_model import model_contradictions
from vitscale.shapes.vit import problems

transformers = pytest.importorskip("transformers")

SECTION = {"width": 24, "depth": 1, "heads": 2, "mlp": 40, "patch": 8, "image": 32, "classes": 7}
KINDS = [
    {"patch_embed": "patch"}, {"patch_embed": "overlap"}, {"patch_embed": "hybrid", "hybrid_width": 32},
    {"patch_embed": "hybrid", "hybrid_width": 32, "hybrid_depths": (1,), "patch": 4}, {"patch_embed": "conv_stem"},
    {"patch_embed": "conv_stem", "patch": 2, "channels": 1}, {"patch_embed": "positional"}, {"patch_embed": "adaptive"},
]


@pytest.mark.parametrize(("patch", "channels", "height", "width"), [(16, 3, 32, 48), (14, 3, 28, 42), (4, 1, 8, 8)])
def test_the_product_of_patches_is_the_convolution(patch, channels, height, width):
    """A GPU takes the product; a patch of 14 is padded for it."""
    images = torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, channels, patch, patch), (5,)))
    found, wanted = product_of_patches(images, weight, bias), F.conv2d(images, weight, bias, stride=patch)
    torch.testing.assert_close(found, wanted)
    along = torch.randn_like(wanted)
    for one, other in zip(*(torch.autograd.grad(of, (images, weight, bias), along) for of in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast_the_product_of_patches_is_the_convolution_too():
    images, weight, bias = torch.randn(2, 3, 28, 42), torch.randn(5, 3, 14, 14) / 24, torch.randn(5)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = product_of_patches(images, weight, bias), F.conv2d(images, weight, bias, stride=14)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.float(), F.conv2d(images, weight, bias, stride=14), atol=0.03, rtol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("patch", [14, 16])
def test_on_a_gpu_the_patch_embedding_is_what_it_is_elsewhere(patch, monkeypatch):
    embed, images = PatchEmbed(3, patch, 32), torch.randn(2, 3, 2 * patch, 3 * patch)
    taken = []
    monkeypatch.setattr(patch_embed, "product_of_patches", lambda *given: (taken.append(1), product_of_patches(*given))[1])
    wanted = embed(images)
    assert not taken
    with torch.autocast("cuda", torch.bfloat16):
        found = embed.cuda()(images.cuda())
    assert taken
    torch.testing.assert_close(found.float().cpu(), wanted, atol=0.03, rtol=0.02)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40)])
def test_overlapping_patches_equal_pvt_v2(height, width):
    config = transformers.PvtV2Config(hidden_sizes=[24, 32, 40, 48], layer_norm_eps=1e-6)
    theirs = shaken(transformers.models.pvt_v2.modeling_pvt_v2.PvtV2OverlapPatchEmbeddings(config, 0))
    ours = OverlappingPatchEmbed(3, 4, 24, eps=theirs.layer_norm.eps)
    ours.load_state_dict({renamed(name, [("layer_norm", "norm")]): value for name, value in theirs.state_dict().items()})
    expected, *_ = theirs(pictures(height, width))
    torch.testing.assert_close(ours(pictures(height, width)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("side", "depths"), [((32, 32), [2, 1]), ((48, 24), [1, 2])])
def test_the_hybrids_resnet_equals_bit(side, depths):
    """transformers' BiT as its ViT hybrid had it: 1e-4 of values up to 10, since the variance of kernels is added up in another order."""
    config = transformers.BitConfig(layer_type="bottleneck", global_padding="same", embedding_dynamic_padding=True, embedding_size=32,
                                    hidden_sizes=[128, 256], depths=depths)
    theirs = shaken(transformers.BitModel(config))
    ours = HybridPatchEmbed(3, 8, 24, 32, depths)
    table = [("embedder.convolution", "stem.conv"), ("embedder.norm", "stem.norm"), ("encoder.stages", "stages"), ("layers", "blocks")]
    ours.backbone.load_state_dict({renamed(name, table): value for name, value in theirs.state_dict().items()})
    expected = theirs(pictures(*side)).last_hidden_state
    assert expected.std() > 0.1
    assert expected.shape[2:] == (side[0] // 8, side[1] // 8)
    given = ours.backbone(pictures(*side))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-4)
    down = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    ours_grad, = torch.autograd.grad(given, ours.backbone.stages[0].blocks[0].conv2.weight, down)
    theirs_grad, = torch.autograd.grad(expected, theirs.encoder.stages[0].layers[0].conv2.weight, down)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-3)
    tokens = ours(pictures(*side))
    torch.testing.assert_close(tokens, torch.einsum("bchw,dc->bhwd", given, ours.proj.weight[:, :, 0, 0]).flatten(1, 2) + ours.proj.bias,
                               rtol=1e-5, atol=1e-4)


def test_the_hybrid_of_the_paper_has_its_published_size():
    """R50 + ViT-B/16 at 384: 98.95 million, as timm's vit_base_r50_s16_384."""
    assert round(count_params(Vit(size="base", image=384, patch_embed="hybrid", hybrid_depths=(3, 4, 9))) / 1e6, 2) == 98.95


def test_the_convolutional_stem_is_what_the_paper_says():
    """Of ViT_C-1GF, D = 192, patch 16: 24, 48, 96, 192 channels, each 3 x 3 with stride 2; then 1 x 1."""
    stem = ConvStemPatchEmbed(3, 16, 192)
    shapes = [tuple(parameter.shape) for parameter in stem.parameters() if parameter.ndim == 4]
    assert shapes == [(24, 3, 3, 3), (48, 24, 3, 3), (96, 48, 3, 3), (192, 96, 3, 3), (192, 192, 1, 1)]
    small = shaken(ConvStemPatchEmbed(3, 4, 8))
    image = pictures(8, 12)
    for layer in small.stem:
        image = F.conv2d(F.pad(image, (1, 1, 1, 1)), layer.conv.weight, stride=2)
        mean, variance = image.mean((1, 2, 3), keepdim=True), image.var((1, 2, 3), keepdim=True, correction=0)
        image = (image - mean) / (variance + 1e-5).sqrt() * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
        image = image.clamp(min=0)
    expected = torch.einsum("bchw,dc->bhwd", image, small.proj.weight[:, :, 0, 0]).flatten(1, 2) + small.proj.bias
    torch.testing.assert_close(small(pictures(8, 12)), expected, rtol=1e-5, atol=1e-5)


def test_positional_patches_add_what_their_neighbours_tell():
    embed = shaken(PositionalPatchEmbed(3, 4, 8))
    image = embed.proj(pictures(12, 16))                                                # (3, 8, 3, 4)
    expected = image.clone()
    for row in range(3):
        for column in range(4):
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    if 0 <= row + down < 3 and 0 <= column + across < 4:
                        weight = embed.pos.weight[:, 0, down + 1, across + 1]
                        expected[:, :, row, column] += weight * image[:, :, row + down, column + across]
    expected = expected.flatten(2).transpose(1, 2) + embed.pos.bias
    torch.testing.assert_close(embed(pictures(12, 16)), expected, rtol=1e-5, atol=1e-5)
    plain = torch.ones(1, 3, 12, 12)
    tokens = embed(plain)[0]
    assert not torch.allclose(tokens[0], tokens[4])         # the corner of an even image is not its middle
    same = embed.proj(plain).flatten(2)[0]
    torch.testing.assert_close(same[:, 0], same[:, 4])      # though without the convolution it is


def adaptive() -> AdaptivePatchEmbed:
    embed = AdaptivePatchEmbed(3, 4, 8)
    shaken(embed)
    with torch.no_grad():
        embed.boxes.weight.zero_()
        embed.boxes.bias.zero_()
    return embed


def test_adaptive_patches_begin_as_the_regular_grid():
    embed = adaptive()
    plain = PatchEmbed(3, 4, 8)
    plain.load_state_dict(embed.proj.state_dict(prefix="proj."))
    torch.testing.assert_close(embed(pictures(12, 20)), plain(pictures(12, 20)), rtol=0, atol=1e-5)
    boxes = embed.where(pictures(12, 20))
    assert boxes.shape == (3, 3, 5, 4)
    assert boxes[0, 1, 2].tolist() == [6.0, 10.0, 4.0, 4.0]


def test_adaptive_patches_read_their_box():
    """A ramp tells where it was read: the mean of a box is its centre, its spread its side."""
    embed = adaptive()
    with torch.no_grad():
        embed.proj.weight.zero_()
        embed.proj.weight[0, 0] = embed.proj.weight[1, 1] = 1 / 16      # mean of a channel
        embed.proj.weight[2, 0, 3, 0], embed.proj.weight[2, 0, 0, 0] = 1, -1
        embed.proj.bias.zero_()
        embed.boxes.bias.copy_(torch.tensor([0.1, -0.2, 0.5, -0.3]))
    down, across = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    tokens = embed(torch.stack([down, across, down * 0])[None]).unflatten(1, (10, 10))[0, 3:7, 3:7]
    centre = torch.arange(3, 7) * 4 + 2
    torch.testing.assert_close(tokens[..., 0], (centre + 4 * math.tanh(0.1))[:, None].expand(4, 4), rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens[..., 1], (centre + 4 * math.tanh(-0.2))[None].expand(4, 4), rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens[..., 2], torch.full((4, 4), 3 * 2 ** math.tanh(0.5)), rtol=0, atol=1e-4)
    where = embed.where(torch.zeros(1, 3, 40, 40))[0, 3, 3]
    torch.testing.assert_close(where, torch.tensor([14 + 4 * math.tanh(0.1), 14 + 4 * math.tanh(-0.2), 4 * 2 ** math.tanh(0.5),
                                                    4 * 2 ** math.tanh(-0.3)]))


def test_adaptive_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    embed = AdaptivePatchEmbed(1, 2, 2)
    with torch.no_grad():
        for parameter in embed.boxes.parameters():
            parameter.normal_(0, 0.3)
    images = torch.randn(1, 1, 6, 6)
    bias = embed.boxes.bias

    def loss(moved: Tensor) -> Tensor:
        return torch.func.functional_call(embed, {"boxes.bias": moved}, (images,)).square().sum()

    found, = torch.autograd.grad(loss(bias), bias)
    assert found.abs().min() > 1e-3
    step = 1e-3                     # boxes are fp32 by design
    for number in range(4):
        moved = torch.zeros(4)
        moved[number] = step
        assert ((loss(bias + moved) - loss(bias - moved)) / (2 * step)).item() == pytest.approx(found[number].item(), rel=0.05, abs=0.02)


@pytest.mark.parametrize(("old", "new"), [(4, 4), (4, 7), (4, 8), (3, 5)])
def test_a_resampled_kernel_sees_the_same_in_enlarged_patches(old, new):
    """FlexiViT's defining property: <x, w> = <B x, w'>, exactly where patches grow."""
    weight, patch = torch.randn(5, 3, old, old, dtype=torch.float64), torch.randn(11, 3, old, old, dtype=torch.float64)
    grown = F.interpolate(patch, size=(new, new), mode="bilinear", align_corners=False)
    before = torch.einsum("nchw,dchw->nd", patch, weight)
    torch.testing.assert_close(torch.einsum("nchw,dchw->nd", grown, resample_kernel(weight, new)), before, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), [(8, 5), (7, 3)])
def test_of_shrunk_patches_it_sees_the_least_squares(old, new):
    """No other kernel comes closer, over white noise: the error's gradient is 0."""
    weight = torch.randn(2, 3, old, old, dtype=torch.float64)
    unit = torch.eye(old**2, dtype=torch.float64).unflatten(1, (1, old, old))
    shrunk = F.interpolate(unit, size=(new, new), mode="bilinear", align_corners=False, antialias=True).flatten(1)
    kernel = resample_kernel(weight, new).requires_grad_()
    error = (kernel.flatten(2) @ shrunk.T - weight.flatten(2)).square().sum()
    assert error > 0.1
    gradient, = torch.autograd.grad(error, kernel)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_a_model_of_patch_16_sees_with_patches_of_8_to_32():
    model = build_model(Vit(width=16, depth=1, heads=2, mlp=24, patch=16, image=64, classes=3))
    initialise(model, 0)
    images = torch.randn(2, 3, 64, 64)
    plain = model.forward_features(images, names=["patch_embed", "norm"])
    for patch in (8, 32, 16):
        model.patch_embed.set_patch(patch)
        found = model.forward_features(images, names=["patch_embed", "norm"])
        assert found["norm"].shape == (2, 1 + (64 // patch) ** 2, 16)
        found["norm"].square().sum().backward()
        assert model.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    model.patch_embed.set_patch(32)
    twice = F.interpolate(images, scale_factor=2, mode="bilinear")      # patch by patch, the same but at patches' edges
    apart = model.patch_embed(twice) - plain["patch_embed"]
    assert apart.std() < 0.3 * plain["patch_embed"].std()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_counted_as_built_and_as_torch_counts(options):
    section = Vit(**{**SECTION, **options})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(section)
        model(torch.empty(2, section.channels, 32, 32))
    assert counter.get_total_flops() == 2 * forward_flops(section)
    assert sum(parameter.numel() for parameter in model.patch_embed.parameters()) == anatomy_of(section).params["patch_embed"]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_keeps_what_autograd_saves(options):
    """Within 5 % (the margins of filled-up images) and the statistics of norms; what a batch has once is left out on both sides."""
    section = Vit(**{**SECTION, "image": 128, **options})
    model = build_model(section)
    initialise(model, 0)
    images, saved = torch.randn(5, section.channels, 128, 128), {}
    tokens = 5 * (128 // section.patch) ** 2

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[0] in (5, tokens) and tensor.shape[-1] > 1:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.patch_embed(images)
    saved.pop(images.untyped_storage().data_ptr(), None)
    assert sum(saved.values()) == pytest.approx(4 * 5 * anatomy_of(section).stem, rel=0.05)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_in_a_model_of_any_size_in_any_precision(options):
    section = Vit(**{**SECTION, **options})
    model = build_model(section)
    initialise(model, 0)
    for height, width in ((32, 32), (48, 16)):
        images = torch.randn(2, section.channels, height, width)
        found = model.forward_features(images, names=["patch_embed", "norm"])
        assert found["patch_embed"].shape == (2, height * width // section.patch**2, 24)
        assert found["norm"].isfinite().all()
    with pytest.raises(ValueError, match="not divisible by the patch"):
        model(torch.randn(2, section.channels, 33, 32))
    exact = found["patch_embed"].detach()
    found["norm"].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for name, parameter in model.named_parameters()
               if not name.startswith("head."))
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.data.bfloat16(), None
    rounded = model.forward_features(images.bfloat16(), names=["patch_embed", "norm"])
    assert {value.dtype for value in rounded.values()} == {torch.bfloat16}
    assert (rounded["patch_embed"].float() - exact).std() < 0.05 * exact.std()
    rounded["norm"].float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for name, parameter in model.named_parameters() if not name.startswith("head."))


def test_samples_do_not_depend_on_their_batch():
    for options in KINDS:
        section = Vit(**{**SECTION, **options})
        model = build_model(section)
        initialise(model, 0)
        images = torch.randn(3, section.channels, 32, 32)
        assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
        torch.testing.assert_close(model.patch_embed(images)[1:2], model.patch_embed(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "key", "sentence"), [
    ({"patch_embed": "hybrid", "patch": 14, "image": 28}, "model.patch", r"a power of 2, 4 at least, got 14"),
    ({"patch_embed": "hybrid", "patch": 2}, "model.patch", r"4 at least, got 2"),
    ({"patch_embed": "conv_stem", "patch": 12, "image": 48}, "model.patch", r"a power of 2, 2 at least, got 12"),
    ({"patch_embed": "conv_stem", "patch": 32}, "model.width", r"24 is not divisible by 16"),
    ({"patch_embed": "hybrid", "hybrid_depths": (3, 4, 9)}, "model.hybrid_depths", r"patch 8 takes 2 stages, got 3 numbers"),
])
def test_what_cannot_be_built_is_said(options, key, sentence):
    section = Vit(**{**SECTION, **options})
    assert [found for found, _ in problems(section)] == [key]
    with pytest.raises(RecipeError, match=f"{key}: .*{sentence}"):
        build_model(section)


def test_what_does_not_go_together_is_said_when_the_recipe_is_checked():
    assert model_contradictions(Vit(**SECTION, hybrid_width=32)) == [
        ("model.hybrid_width", "with hybrid_depths it belongs to model.patch_embed hybrid, not to patch")]
    assert model_contradictions(Vit(**SECTION, patch_embed="hybrid", hybrid_width=48)) == [
        ("model.hybrid_width", "48 is not divisible into groups of 32")]
    for options in KINDS:
        assert model_contradictions(Vit(**{**SECTION, **options})) == []
