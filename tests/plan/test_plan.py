"""The whole plan: stable keys, every shipped recipe, order relations, proposals, costs."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.errors import RecipeError
from vitscale.plan import Assumptions, count_params, find_fleet, plan_run
from vitscale.plan.cost import lost_share, young_daly
from vitscale.plan.memory import USABLE
from vitscale.plan.seed import growth
from vitscale.recipe import load_recipe, recipe_files
from vitscale.recipe.load import check_recipe

HUGE = load_recipe("vit_huge")
KEYS = {
    "schema", "recipe",
    *(f"hardware.{key}" for key in ("name", "nodes", "gpus_per_node", "gpus", "peak_flops", "memory_bytes", "memory_bandwidth",
                                    "link_bandwidth", "network_bandwidth", "cores_per_node", "sources")),
    "parameters.total", "parameters.by_component", "flops.per_image", "flops.forward_per_image", "flops.by_component", "flops.run",
    *(f"growth.{key}" for key in ("tokens", "width", "formulas", "attention_flops", "mlp_flops", "attention_share", "mlp_share",
                                  "overtakes_at_tokens", "overtakes_at_pixels", "sentence")),
    *(f"batch.{key}" for key in ("global_batch", "per_gpu", "micro_batch", "micro_steps", "origin")),
    *(f"memory.{key}" for key in ("peak_bytes", "usable_bytes", "fits", "weights", "gradients", "optimizer", "ema", "activations",
                                  "attention", "communication", "loader", "context", "host_bytes_per_node")),
    *(f"time.{key}" for key in ("images", "steps", "images_per_second", "step_seconds", "seconds", "days", "mfu", "basis")),
    *(f"step.{key}" for key in ("compute", "exchange", "exchange_exposed", "optimizer", "loader", "storage")),
    "operations",
    *(f"demand.{key}" for key in ("images_per_second_per_node", "loader_images_per_second_per_node", "cores_needed_per_node",
                                  "storage_bytes_per_second", "data_bytes")),
    "bottleneck.name", "bottleneck.sentence", "scaling.strong", "scaling.weak",
    *(f"cost.{key}" for key in ("gpu_hours", "price_per_gpu_hour", "money", "kwh")),
    *(f"checkpoint.{key}" for key in ("bytes", "retained", "stall_s", "write_s", "mtbf_s", "interval_s", "interval_steps", "lost_share",
                                      "recipe_interval_s", "recipe_lost_share")),
    "alternatives", "proposal", "least_gpus", "assumed", "measured", "unknown", "exact",
}


def dotted(values, before=""):
    for key, value in values.items():
        if isinstance(value, dict) and not key.startswith("by_"):
            yield from dotted(value, f"{before}{key}.")
        else:
            yield before + key


def with_parallel(**more):
    return HUGE.model_copy(update={"parallel": HUGE.parallel.model_copy(update=more)})


def test_the_keys_of_its_json_stay():
    found = json.loads(json.dumps(plan_run(HUGE, find_fleet("4x8xH200"), Assumptions(price=2.0)).as_json(), allow_nan=False))
    assert set(dotted(found)) == KEYS
    assert set(found["scaling"]["strong"][0]) == {
        "gpus", "nodes", "global_batch", "micro_batch", "images_per_second", "days", "efficiency", "peak_bytes", "fits"}
    assert set(found["operations"][0]) == {"name", "flops", "bytes", "forward_s", "backward_s", "bound"}
    assert set(found["alternatives"][0]) == {"changes", "micro_batch", "images_per_second", "days", "peak_bytes"}


TOO_LARGE = {("dinov3_l16_highres", "8xL40S")}


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
@pytest.mark.parametrize("on", ["4x8xH200", "8xA100", "8xL40S", "cpu"])
def test_every_shipped_recipe_has_a_plan(file, on):
    recipe = load_recipe(file)
    if recipe.name == "quickstart" and on == "4x8xH200":
        on = "2x8xH200"
    plan = plan_run(recipe, find_fleet(on), Assumptions(price=1.0))
    assert plan.parameters.total == sum(plan.parameters.by_component.values()) == count_params(recipe.model, recipe.objective)
    assert plan.flops.forward_per_image == sum(plan.flops.by_component.values())
    memory = plan.memory
    assert memory.peak_bytes == sum(getattr(memory, part) for part in (
        "weights", "gradients", "optimizer", "ema", "activations", "attention", "communication", "loader", "context"))
    assert plan.time.images is not None
    if on == "cpu":
        assert (plan.time.seconds, plan.time.basis, memory.fits, plan.cost.gpu_hours, memory.context) == (None, "unknown", None, None, 0)
        return
    if (file.stem, on) in TOO_LARGE:
        assert memory.fits is False
        return
    assert memory.fits is True
    assert memory.peak_bytes <= USABLE * plan.hardware.memory_bytes
    assert 1e-5 < plan.time.mfu < 0.6       # digits are too small for a GPU
    assert plan.time.seconds == pytest.approx(plan.time.images / plan.time.images_per_second)
    assert plan.cost.money == plan.cost.gpu_hours == pytest.approx(plan.time.seconds / 3600 * plan.hardware.gpus)
    assert plan.alternatives
    assert plan.bottleneck.name in ("storage", "loader", "exchange", "memory bandwidth", "matrix units")


def test_assumption_and_measurement_stand_apart():
    from vitscale.plan.measured import Measured

    measured = Measured("bench.json", "vit_huge_in21k", "NVIDIA H200", 400.0, 0.5, "bf16", 64, "2026-01-01", None)
    assumed = plan_run(HUGE, find_fleet("H200"))
    found = plan_run(HUGE, find_fleet("H200"), Assumptions(measured=measured))
    assert (assumed.time.basis, found.time.basis) == ("assumed", "measured")
    assert assumed.measured == ()
    assert "50.0% MFU of one NVIDIA H200" in found.measured[0]
    assert any("layers reach" in line for line in assumed.assumed)
    assert not any("layers reach" in line for line in found.assumed)
    assert found.time.mfu == pytest.approx(0.5, rel=0.01)
    with pytest.raises(RecipeError, match="was measured on H200, and the plan is for H100"):
        plan_run(HUGE, find_fleet("8xH100"), Assumptions(measured=measured))
    with pytest.raises(RecipeError, match="was measured in bf16, and the recipe computes in fp32"):
        plan_run(with_parallel(precision="fp32"), find_fleet("H200"), Assumptions(measured=measured))


FLEETS = st.sampled_from(["H100", "H200", "A100", "L40S", "B200", "MI300X"])


@settings(max_examples=15, deadline=None)
@given(device=FLEETS, nodes=st.sampled_from([1, 2, 4, 8]), size=st.sampled_from(["small", "base", "large", "huge", "giant"]),
       recompute=st.sampled_from(["none", "selective", "blocks"]))
def test_order_relations(device, nodes, size, recompute):
    """More GPUs at the same share of each never need more memory each, nor work better; no way that is proposed breaks the limit;
    nothing proposed is slower than the recipe."""
    recipe = check_recipe({
        "name": "any", "model": {"size": size, "classes": 1000}, "data": {"train": "x.tar", "num_samples": 10**6}, "optim": {"lr": 1e-3},
        "global_batch": 2048, "duration": "10 epochs", "micro_batch": 8, "parallel": {
            "engine": "fsdp", "precision": "bf16", "recompute": recompute}}, "any")
    plan = plan_run(recipe, find_fleet(f"{nodes}x8x{device}"))
    weak = plan.scaling.weak
    # what a larger mesh fills up (positions) grows by as little as half a megabyte for each GPU
    for before, after in itertools.pairwise(weak):
        assert after.peak_bytes <= before.peak_bytes + 2**20 * (after.gpus - before.gpus)
        assert after.efficiency <= before.efficiency * 1.01
    for one in plan.alternatives:
        assert one.peak_bytes <= USABLE * plan.hardware.memory_bytes
    if plan.proposal and plan.memory.fits:
        assert plan.proposal.images_per_second > plan.time.images_per_second


PARALLEL = [{}, {"parallel.compile": "true"}, {"ema": "{decay: 0.99}"}, {"optim.name": "lamb"}, {"micro_batch": "8"},
            {"parallel.engine": "zero", "parallel.zero_stage": "3"}, {"parallel.engine": "zero", "parallel.zero_offload": "true"},
            {"parallel.tensor": "2"}, {"parallel.engine": "fsdp", "parallel.gather": "once"},
            {"parallel.engine": "fsdp", "parallel.replicate": "nodes"}, {"parallel.engine": "fsdp", "parallel.replicate": "2"},
            {"parallel.recompute": "blocks", "parallel.recompute_every": "3"}, {"lora": "{rank: 4}"}]


FLEETS = ["1x1xL4", "1x8xA100", "8x8xH100"]


@given(st.sampled_from(recipe_files()), st.lists(st.sampled_from(PARALLEL), max_size=3), st.sampled_from(FLEETS))
@settings(max_examples=20, deadline=None)
def test_all_that_is_proposed_passes_the_recipe_check(path, overrides, hardware):
    """As words of the command line, as a person types them."""
    words = [f"{key}={value}" for key, value in {key: value for some in overrides for key, value in some.items()}.items()]
    try:
        recipe, fleet = load_recipe(str(path), words), find_fleet(hardware)
        plan = plan_run(recipe, fleet)
    except RecipeError:
        return
    proposed = [*plan.alternatives, *([plan.proposal] if plan.proposal else [])]
    for one in proposed:
        changes = [f"{key}={'null' if value is None else str(value).lower()}" for key, value in one.changes.items()]
        plan_run(load_recipe(str(path), [*words, *changes]), fleet, search=False)
    if plan.bottleneck and "parallel.compile=true" in plan.bottleneck.sentence:
        load_recipe(str(path), [*words, "parallel.compile=true"])


def test_an_engine_that_cannot_be_compiled_is_proposed_without():
    compiled = plan_run(load_recipe("vit_huge", ["parallel.compile=true"]), find_fleet("4x8xH200"))
    stage_3 = [one.changes for one in compiled.alternatives if one.changes.get("parallel.zero_stage") == 3]
    assert stage_3
    assert all(changes["parallel.compile"] is False for changes in stage_3)


def test_what_does_not_fit_is_told_what_would():
    recipe = load_recipe("vit_huge", ["model.size=gigantic", "model.patch=14", "parallel.engine=ddp", "model.depth=96"])
    plan = plan_run(recipe, find_fleet("8xA100 40GB"))
    assert plan.memory.fits is False
    assert plan.proposal is not None
    assert plan.proposal.changes["parallel.engine"] in ("fsdp", "zero")
    assert plan.proposal.peak_bytes <= USABLE * 40e9
    changed = load_recipe("vit_huge", ["model.size=gigantic", "model.patch=14", "model.depth=96", *(
        f"{key}={str(value).lower()}" for key, value in plan.proposal.changes.items())])
    again = plan_run(changed, find_fleet("8xA100 40GB"))
    assert again.memory.fits
    assert again.memory.peak_bytes == plan.proposal.peak_bytes
    assert again.time.images_per_second == pytest.approx(plan.proposal.images_per_second)
    assert again.proposal is None


def test_what_no_way_fits_is_told_how_many_gpus_would():
    recipe = load_recipe("vit_huge", ["model.width=12288", "model.depth=96", "model.heads=96", "model.mlp=49152"])
    plan = plan_run(recipe, find_fleet("8xH100"))
    assert (plan.memory.fits, plan.alternatives, plan.proposal) == (False, (), None)
    assert plan.least_gpus is not None
    assert plan_run(recipe, find_fleet(f"{plan.least_gpus // 8}x8xH100")).alternatives
    assert not plan_run(recipe, find_fleet(f"{plan.least_gpus // 16}x8xH100")).alternatives


def test_more_ranks_than_samples_are_refused():
    with pytest.raises(RecipeError, match="enough for 48 ranks, not for 512"):
        plan_run(load_recipe("quickstart"), find_fleet("64x8xH100"))


def test_a_recipe_s_own_micro_batch_counts():
    plan = plan_run(load_recipe("vit_huge", ["micro_batch=16"]), find_fleet("4x8xH200"))
    assert (plan.batch.micro_batch, plan.batch.micro_steps, plan.batch.origin) == (16, 8, "recipe")
    tight = load_recipe("vit_huge", ["micro_batch=128", "parallel.recompute=none"])
    assert plan_run(tight, find_fleet("4x8xA100 40GB")).memory.fits is False


def test_the_seed_s_formulas():
    """ViT-H/14 at 224: N 256, D 1280, M 5120, 32 blocks.  4 N^2 D L > 4 N D M L from N > M on."""
    found = growth(HUGE)
    assert found.attention_flops == 4 * 32 * 256**2 * 1280
    assert found.mlp_flops == 4 * 32 * 256 * 1280 * 5120
    assert found.overtakes_at_tokens == 5121
    assert found.overtakes_at_pixels == 14 * 72          # 71^2 = 5041 patches are too few, 72^2 enough
    for side, wider in ((71, False), (72, True)):
        section = HUGE.model_copy(update={"model": HUGE.model.model_copy(update={"image": 14 * side})})
        assert (growth(section).attention_flops > growth(section).mlp_flops) is wider
    assert growth(load_recipe("swin_b_in1k")).overtakes_at_tokens is None
    assert growth(load_recipe("convnext_b_in1k")).attention_flops == 0
    gated = load_recipe("vit_huge", ["model.gated=true", "model.image=1232"])       # 88^2 = 7744 tokens; M x 1.5 = 7680
    assert growth(gated).attention_flops > growth(gated).mlp_flops
    assert growth(gated).overtakes_at_tokens == 7681


def test_young_and_daly():
    """Daly 2006: for checkpoints short against failures it is Young's sqrt(2 d M), less a checkpoint."""
    assert young_daly(1.0, 1e8) == pytest.approx(math.sqrt(2e8), rel=1e-4)
    assert young_daly(10.0, 4.0) == 4.0
    best = young_daly(60.0, 86400.0)
    assert lost_share(best, 60.0, 86400.0) < min(lost_share(best * factor, 60.0, 86400.0) for factor in (0.5, 0.8, 1.25, 2.0))


def test_a_failure_is_likelier_with_more_gpus():
    few, many = (plan_run(HUGE, find_fleet(words)).checkpoint for words in ("1x8xH200", "64x8xH200"))
    assert few.mtbf_s == 64 * many.mtbf_s == 50_000 * 3600 / 8
    assert few.interval_s > many.interval_s
    assert many.bytes == few.bytes == 16 * count_params(HUGE.model)


def test_energy_of_whole_nodes():
    plan = plan_run(HUGE, find_fleet("4x8xH200"))
    assert plan.cost.kwh == pytest.approx(plan.cost.gpu_hours * 10.2 / 8)
