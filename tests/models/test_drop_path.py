"""Stochastic depth: rates, masks, and that the model only applies what it is given."""

import itertools

import pytest
import torch
from backbones import kept_of_groups
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models.drop_path import DropPath, add_branch
from vitscale.models.init import initialise
from vitscale.models.vit import VisionTransformer
from vitscale.objectives import Seen, build_task
from vitscale.plan import flops_by_component, training_flops_per_image
from vitscale.recipe import Vit
from vitscale.recipe.objectives import Inpainting, Mae, MaeDecoder
from vitscale.shapes.drop_path import drop_rates, kept_of_group


def model(drop_path: float = 0.4, depth: int = 3) -> VisionTransformer:
    built = VisionTransformer(Vit(width=16, depth=depth, heads=2, mlp=24, patch=4, image=8, classes=0, pool="mean", drop_path=drop_path))
    initialise(built, 3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(5)       # branches that matter
    return built


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_rates_rise_linearly_and_are_shared_by_a_blocks_branches():
    assert drop_rates(5, 0.4) == pytest.approx((0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4))
    assert drop_rates(1, 0.4) == (0.0, 0.0)
    assert drop_rates(3, 0.4, "constant") == (0.4,) * 6
    assert model(0.5).drop_rates == (0.0, 0.0, 0.25, 0.25, 0.5, 0.5)


def test_a_dropped_branch_is_skipped_and_a_kept_one_scaled():
    stream, branch = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    out = add_branch(stream, branch, torch.tensor([0.0, 1.0]), rate=0.2)
    assert torch.equal(out[0], stream[0])
    torch.testing.assert_close(out[1], stream[1] + branch[1] / 0.8)
    assert torch.equal(add_branch(stream, branch, None, rate=0.2), stream + branch)


def test_the_expectation_over_masks_is_the_branch():
    stream, branch, rate = torch.randn(1, 3, 4), torch.randn(1, 3, 4), 0.3
    kept, dropped = (add_branch(stream, branch, torch.tensor([value]), rate) for value in (1.0, 0.0))
    torch.testing.assert_close((1 - rate) * kept + rate * dropped, stream + branch)


def test_the_scale_is_not_rounded_to_bf16():
    """1 / (1 - 0.1) = 1.1111 would be 1.1094 in bf16, 0.16 % off for every element alike."""
    branch = torch.randn(1, 1000, 8).bfloat16()
    out = add_branch(torch.zeros_like(branch), branch, torch.ones(1), rate=0.1)
    assert out.dtype == torch.bfloat16
    assert out.float().norm() / branch.float().norm() == pytest.approx(1 / 0.9, rel=3e-4)


def test_dropping_equals_skipping_in_the_whole_model():
    net, images = model(), pictures(1)
    for dropped in ({2}, {3}, {0, 5}, set(range(6))):
        keep = torch.tensor([[0.0 if row in dropped else 1.0] for row in range(6)])
        tokens = net.embed(net.patch_embed(images), (2, 2))
        for index, block in enumerate(net.blocks):
            scale = 1 / (1 - net.drop_rates[2 * index])
            if 2 * index not in dropped:
                tokens = tokens + scale * block.attn(block.norm1(tokens))
            if 2 * index + 1 not in dropped:
                tokens = tokens + scale * block.mlp(block.norm2(tokens))
        torch.testing.assert_close(net(images, keep), net.norm(tokens).mean(1), rtol=1e-4, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch_nor_on_chance():
    net, images = model(), pictures(6)
    keep = (torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    together = net(images, keep)
    assert torch.equal(together, net(images, keep))
    for sample in range(6):
        alone = net(images[sample:sample + 1], keep[:, sample:sample + 1])
        torch.testing.assert_close(together[sample:sample + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, net(images), atol=1e-2)


def test_a_dropped_branch_gets_no_gradient():
    net = model()
    keep = torch.ones(6, 2)
    keep[4] = 0.0       # attention of the last block
    net(pictures(2), keep).square().sum().backward()
    assert net.blocks[2].attn.qkv.weight.grad.abs().max() == 0
    assert net.blocks[2].mlp.fc1.weight.grad.abs().max() > 0


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"keep wants the shape \(6, 2\), got \(3, 2\)"):
        model()(pictures(2), torch.ones(3, 2))


def test_the_module_for_ported_code_does_what_the_blocks_do():
    stream, branch, keep = torch.randn(4, 5, 6), torch.randn(4, 5, 6), torch.tensor([1.0, 0.0, 0.0, 1.0])
    drop = DropPath(0.25)
    torch.testing.assert_close(stream + drop(branch, keep), add_branch(stream, branch, keep, 0.25))
    assert (drop(branch, keep)[1] == 0).all()
    with pytest.raises(ValueError, match=r"in training at rate 0\.25 give keep"):
        drop(branch)
    assert DropPath()(branch) is branch
    assert drop.eval()(branch) is branch


GROUPS = {"width": 16, "depth": 3, "heads": 2, "mlp": 24, "patch": 4, "image": 8, "classes": 5, "drop_path": 0.5, "layer_scale": 0.5}


def drawn(count: int, rates: tuple[float, ...], group: int) -> torch.Tensor:
    uniforms = torch.rand(len(rates), count, generator=torch.Generator().manual_seed(2))
    return kept_of_groups(uniforms, torch.tensor(rates), group)


def test_of_a_group_a_share_stays():
    assert [kept_of_group(rate, 8) for rate in (0.0, 0.05, 0.1, 0.5, 0.9, 0.99)] == [8, 8, 7, 4, 1, 1]
    assert [kept_of_group(0.3, group) for group in (1, 2, 3, 4, 10)] == [1, 1, 2, 3, 7]


@pytest.mark.parametrize("attention", ["full", "local"])
def test_what_is_not_computed_is_what_would_be_masked(attention):
    """At a rate that a group gives exactly, outputs and gradients are those of masks."""
    options = GROUPS | {"drop_path_schedule": "constant", "attention": attention, "window": 1, "position": "rotary"}
    masked, grouped = (VisionTransformer(Vit(**options, drop_path_group=group)) for group in (None, 4))
    initialise(masked, 3)
    with torch.no_grad():
        masked.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    grouped.load_state_dict(masked.state_dict())
    keep = drawn(8, masked.drop_rates, 4)
    outputs = [net(pictures(8), keep) for net in (masked, grouped)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for (name, one), other in zip(masked.named_parameters(), grouped.parameters(), strict=True):
        assert one.grad.abs().max() > 0, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_left_out_branches_cost_nothing():
    """As many FLOPs as the planner says, forward and backward, which is what MFU is counted with."""
    model = Vit(**GROUPS | {"depth": 5, "drop_path": 0.6}, drop_path_group=5)      # 5, 4, 4, 3 and 2 of 5 stay
    counts = {}
    for section in (model, model.model_copy(update={"drop_path_group": None})):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net = VisionTransformer(section)
            net(torch.empty(10, 3, 8, 8), torch.ones(10, 10)).sum().backward()
        counts[section.drop_path_group] = counter.get_total_flops()
        images_grad = 10 * flops_by_component(section)["patch_embed"]                # nobody wants that of the images
        assert counter.get_total_flops() == 10 * training_flops_per_image(section) - images_grad
    assert counts[5] < 0.75 * counts[None]


def test_the_expectation_over_groups_is_the_branch():
    stream, branch = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    every = [torch.tensor(kept) for kept in itertools.combinations(range(4), 3)]
    mean = torch.stack([add_branch(stream, branch[kept], kept, rate=0.3) for kept in every]).mean(dim=0)
    torch.testing.assert_close(mean, stream + branch)


def test_groups_that_are_none_are_refused():
    net = VisionTransformer(Vit(**GROUPS, drop_path_group=4))
    with pytest.raises(ValueError, match="6 images are no whole groups of drop_path_group 4"):
        net(pictures(6), torch.ones(6, 6))
    with pytest.raises(RuntimeError, match=r"of each 4 images its rows want \[4, 4, 3, 3, 2, 2\] ones"):
        net(pictures(4), torch.ones(6, 4))
    with pytest.raises(ValueError, match="no attention map of images for which a branch is not computed"):
        net.forward_features(pictures(4), drawn(4, net.drop_rates, 4), ["blocks.0.attention"])
    assert net.forward_features(pictures(3), None, ["blocks.0.attention"])["blocks.0.attention"].shape == (3, 2, 5, 5)


@pytest.mark.parametrize("objective", [Mae(name="mae", decoder=MaeDecoder(width=8, depth=2, heads=2)),
                                       Inpainting(name="inpainting", mask_patch=4)], ids=lambda one: one.name)
def test_objectives_with_a_forward_pass_of_their_own_leave_out_the_same(objective):
    options = GROUPS | {"drop_path_schedule": "constant", "position": "sincos", "pool": "mean"}
    found = []
    for group in (None, 2):
        task = build_task(Vit(**options, drop_path_group=group), objective)
        net = task.build()
        initialise(net, 3)
        draws = torch.rand(4, task.num_draws, generator=torch.Generator().manual_seed(1))
        seen = Seen(pictures(4), torch.zeros(4, dtype=torch.int64), draws)
        images, *more = task.inputs(seen)
        found.append(net(images, drawn(4, net.drop_rates, 2), *more))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], net(images, None, *more), atol=1e-3)
