"""What the planner says of a recipe without labels: what autograd really saves, and every reader of the plan asks for the objective."""

import pytest
import torch

from vitscale.models import initialise
from vitscale.objectives import Seen, build_task
from vitscale.plan import anatomy_of, count_params, estimate, training_flops_per_image
from vitscale.plan.memory import activation_bytes
from vitscale.recipe import Recipe
from vitscale.shapes.storage import checkpoint_bytes

MODEL = {"width": 24, "depth": 4, "heads": 2, "mlp": 40, "patch": 4, "image": 20, "classes": 7}
MAE = {"name": "mae", "decoder": {"width": 16, "depth": 2, "heads": 2}}


def recipe(objective: dict, model: dict = MODEL, **parallel) -> Recipe:
    return Recipe.model_validate({
        "name": "memory", "model": model, "data": {"train": ("x.tar",)}, "objective": objective, "optim": {"lr": 1e-3}, "global_batch": 64,
        "duration": "1 epochs", "parallel": parallel})


def saved_bytes(section: Recipe, images: int) -> int:
    """Bytes of the distinct storages that autograd keeps of a forward pass and its loss, parameters and the batch left out."""
    task = build_task(section.model, section.objective)
    model = task.build()
    initialise(model, 0)
    generator = torch.Generator().manual_seed(0)
    seen = Seen(torch.randn(images, 3, 20, 20, generator=generator), torch.zeros(images), torch.rand(images, task.num_draws))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tensor.dtype == torch.float32:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    given, *more = task.inputs(seen)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.losses(model(given, None, *more), seen)
    return sum(num_bytes for num_bytes, _ in saved.values())


@pytest.mark.parametrize("objective", [MAE, {**MAE, "mask_ratio": 0.4}, {"name": "inpainting", "mask_patch": 4}],
                         ids=["mae", "mae-40", "inpainting"])
def test_an_image_keeps_what_autograd_saves(objective):
    section = recipe(objective)
    in_flight = 4 * anatomy_of(section.model, section.objective).units[-1].in_flight
    assert saved_bytes(section, 8) == pytest.approx(8 * (activation_bytes(section) - in_flight), rel=0.05)


def test_hidden_patches_cost_the_encoder_nothing():
    """He et al. 2022: a quarter of the patches is a quarter of the encoder's activations, and 3 times fewer FLOPs of a ViT-L."""
    large = {"size": "large", "position": "sincos"}
    mae, plain = recipe({"name": "mae"}, large), recipe({"name": "classification"}, large)
    units = anatomy_of(mae.model, mae.objective).units
    assert len(units) == 24 + 8
    assert units[0].stream == 50 * 1024
    assert units[-1].stream == 197 * 512
    ratio = training_flops_per_image(plain.model) / training_flops_per_image(mae.model, mae.objective)
    assert 2.8 < ratio < 3.2
    assert activation_bytes(mae) < 0.45 * activation_bytes(plain)


@pytest.mark.parametrize("objective", [MAE, {"name": "inpainting", "mask_patch": 4}, {"name": "rotation"}, {"name": "jigsaw"}],
                         ids=lambda objective: objective["name"])
def test_states_and_checkpoints_are_of_what_is_trained(objective):
    section = recipe(objective, {**MODEL, "image": 16})
    n = count_params(section.model, section.objective)
    assert n != count_params(section.model)
    assert estimate(section, 1, 1).weights == 4 * n
    assert checkpoint_bytes(section, n) == 16 * n
