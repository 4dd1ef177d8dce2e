"""What of a hidden patch reaches whom, what iBOT's and DINOv2's losses are made of, and recipes that contradict them."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.errors import RecipeError
from vitscale.models.init import initialise
from vitscale.objectives import Coupled, Seen, build_task
from vitscale.objectives.rows import Ragged, Rows
from vitscale.plan import anatomy_of
from vitscale.recipe import Vit
from vitscale.recipe.load import check_recipe
from vitscale.recipe.objectives import Dinov2, Ibot, Lejepa
from vitscale.recipe.schedules import Now
from vitscale.recipe.schema import ViewSet

MODEL = Vit(width=16, depth=1, heads=2, mlp=24, patch=2, image=8, channels=1, classes=0)
SMALL: dict[str, Any] = {"prototypes": 12, "hidden": 10, "bottleneck": 6}
SAMPLES, NOW = 4, Now(10, 100)


class Nets:
    """The model in both roles."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def student(self, images: torch.Tensor, *more: Any) -> Any:
        return self.model(images, None, *more)

    teacher = student


def seen_of(task: Any, seed: int = 1) -> Seen:
    draw = torch.Generator().manual_seed(seed)
    draws = torch.rand(SAMPLES, task.num_draws, generator=draw)
    images, local, anchors = (torch.randn(count * SAMPLES, 1, side, side, generator=draw) for count, side in ((2, 8), (1, 4), (2, 16)))
    return Seen(images, torch.zeros(SAMPLES, dtype=torch.int64), draws, (local,), (anchors,), on_host=draws.numpy())


def built(task: Any) -> torch.nn.Module:
    model = task.build()
    initialise(model, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def test_a_hidden_patch_reaches_the_teacher_alone():
    task = build_task(MODEL, Ibot(name="ibot", **SMALL, mask_probability=1.0, mask_share=(0.3, 0.5)))
    seen, model = seen_of(task), built(task)
    images, picked, mask, *more = task.inputs(seen)
    shares = 0.3 + 0.2 * seen.draws.double().unflatten(1, (2, -1))[:, :, 1].T.flatten()         # of the first view of all, then the second
    assert mask.sum(dim=1).tolist() == [int(share * 16) for share in shares.tolist()]
    assert picked.tolist() == mask.flatten().nonzero()[:, 0].tolist()
    pixels = mask.unflatten(1, (4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    changed = torch.where(pixels, images + 5, images)
    for found, same in zip(model(images, None, picked, mask, *more), model(changed, None, picked, mask, *more), strict=True):
        assert torch.equal(found, same)
    before, after = (task.survey(Nets(model), dataclasses.replace(seen, images=one)) for one in (images, changed))
    assert not torch.allclose(before["teacher"], after["teacher"])
    assert not torch.allclose(before["patches"].values, after["patches"].values)
    assert before["patches"].owner.tolist() == (picked // 16 % SAMPLES).tolist()


def test_in_an_evaluation_nothing_is_hidden():
    task = build_task(MODEL, Dinov2(name="dinov2", **SMALL, patch_prototypes=7, mask_probability=1.0))
    seen = seen_of(task)
    single = dataclasses.replace(seen, images=seen.images[:SAMPLES], more=())
    _, picked, mask = task.inputs(single)
    assert (len(picked), mask.shape, mask.any().item()) == (0, (SAMPLES, 16), False)
    rows = task.survey(Nets(built(task)), single)
    assert rows["features"].shape == (SAMPLES, 16)


@pytest.mark.parametrize("objective", [
    Ibot(name="ibot", **SMALL), Ibot(name="ibot", **SMALL, patch_weight=0.5, koleo=0.2, koleo_group=2, centring="sinkhorn"),
    Dinov2(name="dinov2", **SMALL, patch_prototypes=7, koleo_group=4, teacher_temp=0.07, gram=2.0, gram_teacher="runs/earlier")],
    ids=["ibot", "weighed", "dinov2"])
def test_the_loss_is_the_sum_of_its_parts(objective):
    """Float64 from the papers: views, hidden patches image by image, KoLeo of each of the teacher's views inside groups, Gram matrices."""
    task = build_task(MODEL, objective)
    anchors = torch.randn(2 * SAMPLES, 16, 5, generator=torch.Generator().manual_seed(8))
    seen, model = seen_of(task), built(task)
    task.teacher = lambda images: anchors if torch.equal(images, seen.anchors[0]) else None      # it is shown its own cuts
    with torch.no_grad():
        surveyed = task.survey(Nets(model), seen)
    rows = Rows(surveyed, torch.ones(SAMPLES), torch.arange(SAMPLES), SAMPLES, lambda sums: sums, lambda values: values)
    told, after = task.couple(rows, task.new_state(), NOW)
    told = {name: one.values if isinstance(one, Ragged) else one for name, one in told.items()}
    images, *more = task.inputs(seen)
    output = model(images, None, *more)
    losses = task.losses(output, dataclasses.replace(seen, coupled=Coupled(NOW, told, {})))

    views, features = (one.double().detach().numpy().reshape(3, SAMPLES, -1) for one in output[:2])
    teacher, patches, answers = told["teacher"].double().numpy(), output[2].double().detach().numpy(), told["patches"].double().numpy()

    def distance(p, logits):
        logits = logits / 0.1
        return -(p * (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))).sum(axis=-1)

    expected = sum(distance(teacher[:, t], views[s]) for t in range(2) for s in range(3) if s != t) / 4
    each, picked = distance(answers, patches), more[0].numpy()
    tokens, wanted = (one / one.norm(dim=2, keepdim=True) for one in (output[3].double().detach(), anchors.double()))
    for sample in range(SAMPLES):
        for view in range(2):
            mine = picked // 16 == view * SAMPLES + sample
            expected[sample] += objective.patch_weight * (each[mine].mean() if mine.any() else 0) / 2
            if objective.gram:
                ours, theirs = (one[view * SAMPLES + sample] for one in (tokens, wanted))
                expected[sample] += objective.gram * ((ours @ ours.T - theirs @ theirs.T) ** 2).mean().item() / 2
            if objective.koleo:
                x = features[view] / np.linalg.norm(features[view], axis=1, keepdims=True)
                first = sample // objective.koleo_group * objective.koleo_group
                near = min(np.linalg.norm(x[sample] - x[j]) for j in range(first, first + objective.koleo_group) if j != sample)
                expected[sample] -= objective.koleo * math.log(near)
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert set(after) == ({"centre", "patch_centre"} if objective.centring == "average" else set())


def test_lejepa_s_loss_is_that_of_the_paper_and_its_gradient_that_of_the_whole_step():
    """The sum over samples of losses that know only the step's sums, against autograd through everything at once."""
    objective = Lejepa(name="lejepa", embedding=5, hidden=8, directions=6, sigreg=0.3)
    task = build_task(MODEL, objective)
    seen, model = seen_of(task), built(task)
    surveyed = {name: row.detach() for name, row in task.survey(Nets(model), seen).items()}
    rows = Rows(surveyed, torch.ones(SAMPLES), torch.arange(SAMPLES), SAMPLES, lambda sums: sums, lambda values: values)
    told, _ = task.couple(rows, {}, NOW)

    def gradients(loss):
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    loss = task.losses(model(seen.images, None, *seen.more), dataclasses.replace(seen, coupled=Coupled(NOW, told, {}))).mean()
    z = model(seen.images, None, *seen.more)[0].double().unflatten(0, (3, SAMPLES))
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    normal = (-t.square() / 2).exp()
    centred = z - z.mean(dim=(0, 1))        # a shift that all embeddings make together is not to be felt, as behind a BatchNorm
    waves = torch.exp(1j * (centred @ told["along"][0].double())[..., None] * t).mean(dim=1)
    statistic = torch.trapezoid((waves - normal).abs().square() * normal, t, dim=-1).mean() * SAMPLES
    whole = 0.7 * (z - z[:2].mean(dim=0)).square().mean() + 0.3 * statistic
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    (of_shift,) = torch.autograd.grad(loss, model.projector.layers[-1].bias, retain_graph=True)
    assert of_shift.abs().max() < 1e-5
    for ours, theirs in zip(gradients(loss), gradients(whole), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


BASE: dict[str, Any] = {
    "name": "bad", "model": {"width": 16, "depth": 1, "heads": 2, "mlp": 24, "patch": 2, "image": 8, "classes": 0},
    "data": {"train": "t-*.tar", "views": [{"name": "global", "count": 2}, {"name": "local", "image": 4}]},
    "optim": {"lr": 1e-3}, "global_batch": 64, "duration": "2 steps"}


@pytest.mark.parametrize(("change", "key", "words"), [
    ({"objective": {"name": "ibot", "mask_share": [0.4, 0.2]}}, "objective.mask_share", "[low, high]"),
    ({"objective": {"name": "ibot"}, "data": {"views": [{"name": "one", "image": 4, "count": 2}]}}, "data.views", "model.image 8"),
    ({"objective": {"name": "ibot", "gram_teacher": "runs/a"}}, "objective.gram_teacher", "above 0"),
    ({"objective": {"name": "ibot"}, "model": {"patch_embed": "overlap"}}, "model.patch_embed", "wants patch"),
    ({"objective": {"name": "lejepa", "sigreg": 1.0}}, "objective.sigreg", "< 1"),
    ({"objective": {"name": "lejepa"}, "data": {"views": [{"name": "one", "count": 2, "image": 7}]}}, "data.views.0.image", "patches of 2"),
    ({"objective": {"name": "lejepa"}, "evaluate": {"features": ["knn"]}, "model": {"classes": 10}}, "evaluate.features", "data.val"),
    ({"objective": {"name": "lejepa"}, "evaluate": {"features": ["knn"]}, "data": {"val": "v.tar"}}, "evaluate.features", "model.classes"),
    ({"objective": {"name": "lejepa"}, "evaluate": {"features": ["segmentation"]}, "data": {"val": "v.tar", "mask_classes": 3}},
     "data.mask", "the member with the mask"),
    ({"objective": {"name": "lejepa"}, "evaluate": {"features": ["segmentation"]}, "data": {"val": "v.tar", "mask": "mask.png"}},
     "data.mask_classes", "number of classes that pixels have"),
    ({"objective": {"name": "mae"}, "evaluate": {"features": ["rankme"]}, "data": {"views": [], "val": "v.tar"}}, "evaluate.features",
     "mae"),
    ({"objective": {"name": "ibot"}, "checkpoint": {"best": "eval_knn"}, "data": {"val": "v.tar"}}, "checkpoint.best", "eval_loss"),
])
def test_a_recipe_that_contradicts_itself_is_refused_with_its_key(change, key, words):
    values = {name: dict(one) if isinstance(one, dict) else one for name, one in BASE.items()}
    for section, keys in change.items():
        values[section] = {**values.get(section, {}), **keys}
    with pytest.raises(RecipeError) as refused:
        check_recipe(values, "here")
    line = next((one for one in str(refused.value).splitlines() if one.split()[0] == key), None)
    assert line is not None, refused.value
    assert words in line
    assert len(str(refused.value).splitlines()) == 2, refused.value


@pytest.mark.parametrize("objective", [
    Ibot(name="ibot", **SMALL, mask_probability=1.0, mask_share=(0.5, 0.5)),
    Dinov2(name="dinov2", **SMALL, patch_prototypes=7, koleo_group=4, mask_probability=1.0, mask_share=(0.25, 0.25)),
    Lejepa(name="lejepa", embedding=5, hidden=8, directions=6)], ids=["ibot", "dinov2", "lejepa"])
def test_the_planner_counts_what_is_trained_and_what_is_looked_at(objective):
    """On meta tensors, where the counter sees attention as its two matrix products; each image hides as many patches as on average."""
    task = build_task(MODEL, objective)
    with torch.device("meta"):
        model = task.build()
    known = seen_of(task)
    one = dataclasses.replace(known, images=known.images[:2].to("meta"), labels=known.labels[:1], more=(known.more[0][:1].to("meta"),),
                              on_host=known.on_host[:1])
    parts = anatomy_of(MODEL, objective, (ViewSet(name="global", count=2), ViewSet(name="local", image=4)))
    assert sum(parts.params.values()) == sum(parameter.numel() for parameter in model.parameters())
    images, *more = task.inputs(one)
    with FlopCounterMode(display=False) as counter:
        model(images, None, *more)
    assert sum(parts.flops.values()) - parts.flops.get("sigreg", 0) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.survey(Nets(model), one)
    assert sum((parts.surveyed | parts.again).values()) == counter.get_total_flops()
