"""Kernels on a GPU: each against float64, at the shapes of real models, and whole models against torch's operations."""

import pytest
import torch
from backbones import BACKBONES, BATCH, CLASSES, IMAGE
from torch import Tensor, nn

from vitscale.kernels.check import ALLOWED, cases, error
from vitscale.kernels.parts import PARTS
from vitscale.models import build_model, initialise
from vitscale.parallel.engine import prepared
from vitscale.parallel.kernels import chosen
from vitscale.parallel.world import World
from vitscale.recipe import Parallel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CARD = torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [96, 192, 384, 768, 1024, 1280, 1664])
def test_each_kernel_against_float64(width: int, dtype: torch.dtype) -> None:
    for samples, tokens in ((2, 197), (64, 257)):
        for part, (shapes, kernel, formula) in cases(width, samples, tokens).items():
            assert error(kernel, formula, shapes, CARD, dtype) <= ALLOWED[dtype], (part, tokens)


def test_all_of_them_are_chosen() -> None:
    choice = chosen(Parallel(precision="bf16"), World(0, 1, 0, 1, CARD, None), (768, 1024, 1280))
    assert choice.parts == frozenset(PARTS), choice.why


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "blocks"])
@pytest.mark.parametrize("backbone", ["vit", "vit-modern", "vit-parallel", "deit", "swin", "swin-v2", "convnext", "convnext-v2"])
def test_a_model_has_the_gradients_that_it_has_by_torch(backbone: str, recompute: str, compiled: bool) -> None:
    """In fp32, and in bf16 as far from fp32 as torch's own operations are, and half as far again."""
    exact = gradients(backbone, "torch", False)
    settings = {"recompute": recompute, "compile": compiled}
    assert apart(gradients(backbone, "auto", False, **settings), exact) < 1e-4
    theirs, ours = (apart(gradients(backbone, kernels, True, **settings), exact) for kernels in ("torch", "auto"))
    assert ours < 1.5 * theirs + 1e-3


def gradients(backbone: str, kernels: str, bf16: bool, **parallel: object) -> list[Tensor]:
    """Of every parameter, after one pass with stochastic depth."""
    settings = Parallel(kernels=kernels, precision="bf16" if bf16 else "fp32", **parallel)
    model = prepared(lambda: build_model(BACKBONES[backbone][0]), settings, World(0, 1, 0, 1, CARD, None)).to_empty(device="cpu")
    model.reset_buffers()
    initialise(model, seed=1)
    for name, parameter in model.named_parameters():
        if "head" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    model.to(CARD).train()
    draw = torch.Generator().manual_seed(3)
    images, labels = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=draw), torch.randint(CLASSES, (BATCH,), generator=draw)
    keep = torch.rand(len(model.drop_rates), BATCH, generator=draw) >= torch.tensor(model.drop_rates)[:, None]
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        output = model(images.to(CARD), keep.float().to(CARD))
    for logits in output if isinstance(output, tuple) else (output,):
        nn.functional.cross_entropy(logits.float(), labels.to(CARD)).backward(retain_graph=True)
    return [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in model.parameters()]


def apart(ours: list[Tensor], exact: list[Tensor]) -> float:
    def whole(many: list[Tensor]) -> Tensor:
        return torch.cat([one.double().flatten() for one in many])

    return float((whole(ours) - whole(exact)).norm() / whole(exact).norm())
