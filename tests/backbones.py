"""One tiny model of each kind, and a few steps of its training that are the same everywhere."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.models import initial_value
from vitscale.objectives import Seen, Task, build_task
from vitscale.objectives.distillation import Distilling
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.world import World
from vitscale.recipe import Classification, Optim, Parallel, Vit
from vitscale.recipe.objectives import Distillation, Inpainting, Jigsaw, Mae, MaeDecoder, Objective, Rotation
from vitscale.recipe.schema import ConvNext, Deit, Model, Swin
from vitscale.shapes.drop_path import kept_of_group

IMAGE, CLASSES, BATCH = 16, 5, 4
_VIT = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image": IMAGE, "classes": CLASSES, "drop_path": 0.3}
_SWIN = {"family": "swin", "width": 8, "depths": (2, 2), "heads": (2, 4), "window": 2, "patch": 2, "image": IMAGE, "classes": CLASSES,
         "drop_path": 0.3}
_CONVNEXT = {"family": "convnext", "widths": (8, 16), "depths": (1, 2), "image": IMAGE, "classes": CLASSES, "drop_path": 0.3,
             "layer_scale": 0.1}

BACKBONES: dict[str, tuple[Model, Objective]] = {
    "vit": (Vit(**_VIT), Classification()),
    "vit-modern": (Vit(**{**_VIT, "mlp": 20}, registers=2, position="rotary", gated=True, qk_norm=True, layer_scale=0.1, pool="mean"),
                   Classification(loss="binary_cross_entropy")),
    "vit-relative": (Vit(**_VIT, position="relative", class_tokens=2, head_hidden=12), Classification(label_smoothing=0.1)),
    "vit-relative-mlp": (Vit(**_VIT, position="relative", relative_mlp=6, class_tokens=2), Classification()),
    "vit-parallel": (Vit(**_VIT, parallel=True, pool="attention"), Classification()),
    "vit-local": (Vit(**_VIT, attention="local", window=2, halo=1, patch_embed="overlap"), Classification()),
    "vit-axial": (Vit(**_VIT, attention="axial", position="rotary", patch_embed="hybrid", hybrid_width=32, registers=1), Classification()),
    "vit-sparse": (Vit(**_VIT, attention="sparse", sparse_block=2, sparse_random=1, qk_norm=True, patch_embed="adaptive"),
                   Classification()),
    "vit-linear": (Vit(**_VIT, attention="linear", patch_embed="conv_stem", pool="mean"), Classification()),
    "vit-groups": (Vit(**{**_VIT, "drop_path": 0.6}, drop_path_group=2, layer_scale=0.1), Classification()),
    "vit-positional": (Vit(**_VIT, patch_embed="positional", position="none"), Classification()),
    "vit-mixed": (Vit(**_VIT, position="none", rope_type="mixed", post_norm=True), Classification()),
    "vit-clip": (Vit(**_VIT, pre_norm=True, hidden_act="quick_gelu", final_norm=False, pool="token_mean", registers=1),
                 Classification()),
    "vit-eva": (Vit(**_VIT, key_bias=False, rope_type="axial", rope_grid=3, rope_temperature=50.0, scale_attn_norm=True,
                    scale_mlp_norm=True, gated=True, pool="attention", pool_include_prefix=False, registers=2), Classification()),
    "deit": (Deit(family="deit", **_VIT), Distillation(name="distillation", teacher="")),
    "swin": (Swin(**_SWIN), Classification()),
    "swin-v2": (Swin(**_SWIN, version=2), Classification()),
    "swin-table": (Swin(**_SWIN, version=2, position="learned", pretrained_windows=(3, 0), hidden_act="gelu_tanh"), Classification()),
    "convnext": (ConvNext(**_CONVNEXT), Classification()),
    "convnext-v2": (ConvNext(**{**_CONVNEXT, "layer_scale": None}, version=2), Classification()),
    "convnext-grn": (ConvNext(**_CONVNEXT, use_grn=True, stem="overlap_tiered", kernel=5, head_hidden=12, hidden_act="silu"),
                     Classification()),
    "vit-mae": (Vit(**_VIT, position="sincos", registers=1), Mae(name="mae", norm_pix=True, decoder=MaeDecoder(width=8, depth=2, heads=2))),
    "vit-inpainting": (Vit(**_VIT, position="relative"), Inpainting(name="inpainting", mask_patch=8)),
    "convnext-rotation": (ConvNext(**_CONVNEXT), Rotation(name="rotation")),
    "vit-jigsaw": (Vit(**_VIT), Jigsaw(name="jigsaw")),
}


@dataclass(frozen=True)
class Case:
    backbone: str
    parallel: Parallel
    steps: int


def task_of(backbone: str) -> Task:
    task = build_task(*BACKBONES[backbone])
    if isinstance(task, Distilling):
        weights = torch.randn(3 * IMAGE * IMAGE, CLASSES, generator=torch.Generator().manual_seed(5))
        task.teacher = lambda images: images.flatten(1) @ weights
    return task


def batch_of(step: int, task: Task) -> tuple[Seen, Tensor]:
    """A whole batch and what is drawn for it (keep as uniforms (BATCH, 64)), by the step alone."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    draws = torch.rand(BATCH, task.num_draws, generator=generator) if task.num_draws else None
    return Seen(images, labels, draws), torch.rand(BATCH, 64, generator=generator)


def kept_of_groups(draws: Tensor, rates: Tensor, group: int) -> Tensor:
    """Uniforms (R, B) -> 1 where a branch is computed: of each group the kept_of_group(rate, group) least draws.  (R, B)"""
    ranks = draws.unflatten(1, (-1, group)).argsort(dim=2).argsort(dim=2)
    counts = torch.tensor([kept_of_group(rate, group) for rate in rates.tolist()])
    return (ranks < counts[:, None, None]).float().flatten(1)


def losses_of(world: World, case: Case) -> list[float]:
    """The mean loss of each step; AdamW, stochastic depth on."""
    share = BATCH // world.size
    task, optim = task_of(case.backbone), Optim(lr=5e-3, weight_decay=0.1)
    engine = open_engine(case.parallel, world, Work(share, 1, 1.0))
    with torch.device("meta"):
        skeleton = task.build()
    first = skeleton.named_parameters()
    matrix = max((name for name, value in first if value.ndim == 2 and "head" not in name), key=len)

    def value(name: str, shape: torch.Size) -> Tensor:
        """The first value, but heads that are not zero, so that the first step already tests every gradient."""
        head = name.startswith("head") and name.endswith("weight") and len(shape) == 2
        return initial_value(skeleton, matrix if head else name, shape, seed=1)

    model = engine.materialise(task.build, value)
    rates, group = torch.tensor(model.drop_rates), getattr(model, "drop_group", None)
    engine.adopt(model, build_optimizer(model, optim))
    engine.set_lr(optim.lr)
    engine.model.train()
    mine, losses = slice(share * world.rank, share * (world.rank + 1)), []
    for step in range(case.steps):
        whole, uniforms = batch_of(step, task)
        seen = Seen(whole.images[mine], whole.labels[mine], None if whole.draws is None else whole.draws[mine])
        draws = uniforms[mine, :len(rates)].T
        keep = (draws >= rates[:, None]).float() if group is None else kept_of_groups(draws, rates, group)
        images, *more = task.inputs(seen)
        with engine.micro_step(last=True):
            loss = task.losses(engine.forward(images, keep, *more), seen).sum()
            engine.backward(loss * (world.size / BATCH))
        engine.step()
        losses.append(float(world.sum_(loss.detach())) / BATCH)
    return losses
