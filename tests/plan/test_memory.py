"""First-order memory: closed forms, order relations, and the micro-batch that fits."""

import pytest
import torch

from vitscale.errors import RecipeError
from vitscale.models import build_model, initialise
from vitscale.plan import anatomy_of, count_params, estimate, fitting_micro_batch
from vitscale.plan.memory import activation_bytes, unit_bytes
from vitscale.recipe import Recipe, Vit

GIB = 2**30
HUGE = {"size": "huge", "patch": 14}
SMALL = {"width": 24, "depth": 4, "heads": 2, "mlp": 40, "patch": 4, "image": 20, "classes": 7}


def recipe(model=SMALL, group=None, ema=None, **parallel) -> Recipe:
    return Recipe.model_validate({
        "name": "memory", "model": model, "data": {"train": ("x.tar",), "group": group}, "optim": {"lr": 1e-3}, "global_batch": 64,
        "duration": "1 epochs", "parallel": parallel, "ema": ema,
    })


def test_ddp_in_fp32_holds_sixteen_bytes_per_parameter():
    n = count_params(Vit(**SMALL))
    memory = estimate(recipe(), world_size=8, micro_batch=1, on_gpu=False)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.ema) == (4 * n, 4 * n, 8 * n, 0)
    assert estimate(recipe(ema={"decay": 0.99}), 8, 1).ema == 4 * n
    assert memory.total == 16 * n + activation_bytes(recipe())
    assert memory.context == 0 < estimate(recipe(), 1, 1).context < estimate(recipe(), 8, 1).context    # CUDA, and NCCL


@pytest.mark.parametrize(("stage", "bytes_per_parameter"), [(1, 2 + 6 + 12 / 64), (2, 2 + 18 / 64), (3, 2 + 20 / 64)])
def test_zero_stages_follow_the_papers_formulas(stage, bytes_per_parameter):
    """Rajbhandari et al. 2020, figure 1, with 4 bytes more for the fp32 gradient shard that the update reads; DeepSpeed's stage 1
    accumulates whole gradients in fp32, and its stage 3 keeps up to 1e9 gathered parameters for their next use."""
    section = recipe(HUGE, engine="zero", zero_stage=stage, precision="bf16")
    memory = estimate(section, 64, 1)
    states = memory.weights + memory.gradients + memory.optimizer
    n, block = count_params(section.model), 19_677_440         # a block of ViT-H
    gathered = {1: 0, 2: 2 * block, 3: 2 * (n - 32 * block) + 2 * (block // 3)}[stage]
    assert states == pytest.approx(bytes_per_parameter * n + gathered, abs=8)
    assert memory.communication >= (0 if stage == 1 else 2 * 5e8)       # its buckets, as large as ever


@pytest.mark.parametrize(("engine", "more"), [("ddp", 0), ("zero", 0), ("fsdp", 4)])
def test_fsdp_alone_keeps_whole_gradients_between_micro_steps(engine, more):
    """FSDP2 reduces in the last micro-step, and until then every rank holds all of them in fp32."""
    section = recipe(HUGE, engine=engine, precision="bf16")
    n = count_params(section.model)
    once, twice = (estimate(section, 64, 8, steps) for steps in (1, 2))
    assert twice.total - once.total == pytest.approx(more * n, rel=0.01)


def test_copies_cost_memory_and_so_does_what_is_kept():
    """Of 64 ranks in 8 groups, each holds an eighth; what is kept is all that is computed with, up to the block that is differentiated."""
    section = recipe(HUGE, engine="fsdp", precision="bf16", recompute="blocks")
    copied, kept = (recipe(HUGE, engine="fsdp", precision="bf16", recompute="blocks", **more) for more in (
        {"replicate": 8}, {"gather": "once"}))
    n = count_params(section.model)
    assert estimate(copied, 64, 1).optimizer == pytest.approx(8 * estimate(section, 64, 1).optimizer)
    assert estimate(copied, 64, 1) == estimate(recipe(HUGE, engine="fsdp", precision="bf16", recompute="blocks", replicate="nodes"), 64, 1,
                                               local_size=8)
    for steps in (1, 2):
        assert 0 < estimate(kept, 64, 1, steps).total - estimate(section, 64, 1, steps).total < 2 * n
    assert estimate(kept, 64, 1, 2).weights == pytest.approx(4 * n / 64 + 2 * n, rel=0.05)
    device = int((estimate(section, 64, 256).total + 64) / 0.9)
    assert fitting_micro_batch(kept, 64, device, 256) < fitting_micro_batch(section, 64, device, 256) == 256
    with pytest.raises(RecipeError, match=r"Try parallel\.gather=each, or parallel\.replicate=null"):
        fitting_micro_batch(recipe(HUGE, engine="fsdp", gather="once", replicate=64), 64, 8 * 10**9, 64)


@pytest.mark.parametrize(("name", "moments"), [("lamb", 2), ("lion", 1), ("sgd", 1)])
def test_the_optimizer_s_moments(name, moments):
    section = recipe()
    section = section.model_copy(update={"optim": section.optim.model_copy(update={"name": name})})
    assert estimate(section, 8, 1).optimizer == 4 * moments * count_params(section.model)


def test_offload_takes_the_optimizer_off_the_device():
    assert estimate(recipe(engine="zero", zero_offload=True), 2, 1).optimizer == 0
    assert estimate(recipe(engine="zero"), 2, 1).optimizer == 4 * count_params(Vit(**SMALL))


def test_fsdp_of_huge_agrees_with_a_simulated_run():
    """A memory tracker on fake tensors, 64 ranks, micro-batch 64, bf16: 20.6 GiB; with every block recomputed 2.37 GiB."""
    none = estimate(recipe(HUGE, engine="fsdp", precision="bf16"), 64, 64, on_gpu=False).total
    blocks = estimate(recipe(HUGE, engine="fsdp", precision="bf16", recompute="blocks"), 64, 64, on_gpu=False).total
    assert none / GIB == pytest.approx(20.6, rel=0.02)
    assert blocks / GIB == pytest.approx(2.37, rel=0.05)


@pytest.mark.parametrize("options", [
    {}, {"layer_scale": 0.1}, {"attention": "local", "image": 24, "window": 3, "halo": 0},
    {"attention": "local", "image": 24, "window": 3, "halo": 1, "pool": "mean"},
    {"attention": "local", "image": 24, "window": 2, "halo": 2, "registers": 2}, {"attention": "axial", "heads": 4},
    {"attention": "axial", "heads": 4, "pool": "mean"}, {"attention": "sparse", "sparse_block": 3, "registers": 2},
    {"attention": "sparse", "sparse_block": 5, "sparse_random": 1, "pool": "mean"}, {"attention": "linear"},
    {"hidden_act": "quick_gelu", "key_bias": False}, {"hidden_act": "relu"}, {"hidden_act": "silu", "scale_attn_norm": True},
    {"hidden_act": "gelu_tanh", "scale_mlp_norm": True}, {"post_norm": True},
], ids=str)
def test_a_block_keeps_what_autograd_saves(options):
    """The formula against the distinct storages that autograd really saves in one block, parameters left out."""
    section = recipe({**SMALL, **options})
    model = build_model(section.model)
    initialise(model, 0)
    block = model.units()[0]
    side = section.model.image // 4
    number = side**2 + model.before
    tokens = torch.randn(3, number, 24, requires_grad=True)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(tokens * 1.0, None, model.layout((side, side), tokens.device))
    norms = sum(isinstance(part, torch.nn.LayerNorm) for part in block.modules())
    statistics = norms * 2 * 3 * number * 4     # mean and deviation of each norm: not in the formula
    # who sees whom: once for a whole batch
    masks = sum(num_bytes for num_bytes, tensor in saved.values() if tensor.shape[0] == 1 or not tensor.is_floating_point())
    unit = anatomy_of(section.model).units[0]
    found = sum(num_bytes for num_bytes, _ in saved.values())
    assert masks < found / 10
    assert found - statistics - masks == pytest.approx(3 * unit_bytes(section, unit), abs=64)


def test_a_recomputed_block_keeps_its_input_and_one_is_whole_again():
    none = activation_bytes(recipe())
    every_third = activation_bytes(recipe(recompute="blocks", recompute_every=3))      # blocks 0 and 3 of 4
    block = unit_bytes(recipe(), anatomy_of(recipe().model).units[0])
    assert none - every_third == pytest.approx(block - 26 * 24 * 4, abs=64)         # block 0; block 3 is whole again
    every = activation_bytes(recipe(recompute="blocks"))
    assert none - every == pytest.approx(3 * (block - 26 * 24 * 4), abs=64)         # one of four is whole again


def test_more_of_anything_never_takes_less():
    base = recipe(HUGE, engine="fsdp", precision="bf16")
    totals = [estimate(base, 8, micro_batch).total for micro_batch in range(1, 6)]
    assert totals == sorted(set(totals))
    ranks = [estimate(base, world, 1).total for world in (1, 2, 8, 64)]
    assert ranks == sorted(set(ranks), reverse=True)
    sizes = [estimate(recipe({"size": size}), 1, 1).total for size in ("tiny", "small", "base", "large", "huge", "giant", "gigantic")]
    assert sizes == sorted(set(sizes))
    modes = [estimate(recipe(HUGE, engine="fsdp", recompute=mode), 8, 8).total for mode in ("blocks", "selective", "none")]
    assert modes == sorted(set(modes))
    every = [estimate(recipe(HUGE, engine="fsdp", recompute="blocks", recompute_every=k), 8, 8).total for k in (1, 2, 3, 4)]
    assert every == sorted(set(every))
    for options in ({"dropout": 0.1}, {"layer_scale": 0.1}, {"pool": "attention"}):
        assert activation_bytes(recipe({**SMALL, **options})) > activation_bytes(recipe({**SMALL, "pool": "mean"})), options


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero", "accelerate"])
def test_bf16_computes_in_less_than_fp32(engine):
    assert activation_bytes(recipe(engine=engine, precision="bf16")) < activation_bytes(recipe(engine=engine))


def device_for(section: Recipe, world_size: int, images: int) -> int:
    """The bytes of a device on which exactly `images` fit."""
    return int((estimate(section, world_size, images, 2).total + 64) / 0.9)


@pytest.mark.parametrize(("fits", "local_share", "group", "expected"), [
    (64, 64, None, 64),         # all at once
    (200, 64, None, 64),        # never more than the share
    (63, 64, None, 32),         # two equal steps rather than 63 + 1
    (30, 64, None, 22),         # three steps: 22, 22, 20
    (1, 64, None, 1),
    (30, 64, 8, 24),            # a multiple of the group: 24, 24, 16
    (15, 64, 8, 8),
    (5, 7, None, 4),
])
def test_the_fewest_equal_steps_are_taken(fits, local_share, group, expected):
    section = recipe(group=group)
    assert fitting_micro_batch(section, 2, device_for(section, 2, fits), local_share) == expected


def test_fewer_steps_would_not_fit():
    section = recipe(HUGE, engine="fsdp", precision="bf16")
    for share in (7, 64, 100, 511):
        size = fitting_micro_batch(section, 8, 40 * 10**9, share)
        steps = -(-share // size)
        assert estimate(section, 8, size, steps).total <= 0.9 * 40e9
        assert steps == 1 or estimate(section, 8, -(-share // (steps - 1)), steps - 1).total > 0.9 * 40e9


def test_what_cannot_fit_names_what_to_change():
    with pytest.raises(RecipeError, match=r"1 image at a time would need .* GiB .* Try parallel.engine=fsdp, or .*recompute=blocks.*bf16"):
        fitting_micro_batch(recipe(HUGE), 1, 8 * 10**9, 64)
    with pytest.raises(RecipeError, match=r"8 images \(data\.group\)") as error:
        fitting_micro_batch(recipe(HUGE, group=8, engine="zero", recompute="blocks", precision="bf16"), 1, 4 * 10**9, 64)
    assert "zero_stage=3" in str(error.value)
    assert "engine=fsdp" not in str(error.value)
    assert "recompute" not in str(error.value)
    with pytest.raises(ValueError, match="local_share 0"):
        fitting_micro_batch(recipe(), 1, GIB, 0)
