"""A contender of gpu_step.py: training steps of one model by vitscale, timm, transformers or torchvision.  Same batch, same optimizer."""

import importlib.util
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from measure import serve

CLASSES, CLIP, LR = 1000, 1.0, 1e-3
SIZES = {       # width, depth, heads, mlp, patch, image
    "L/16": (1024, 24, 16, 4096, 16, 224), "H/14": (1280, 32, 16, 5120, 14, 224), "B/16": (768, 12, 12, 3072, 16, 224),
    "micro": (32, 2, 2, 64, 16, 32),
}
Step = Callable[[], None]
_state: dict[str, Any] = {}


def there(who: str) -> Mapping[str, Any]:
    """Whether a library can be imported; "" or why not."""
    module = {"ours": "vitscale"}.get(who, who)
    if importlib.util.find_spec(module) is None:
        return {"why": "is not installed"}
    try:
        imported = __import__(module)
    except Exception as error:      # a library that is there but broken is left out too
        return {"why": f"cannot be imported: {type(error).__name__}"}
    return {"why": "", "version": getattr(imported, "__version__", "?")}


def prepare(who: str, model: str, batch: int, device: str, precision: str, compiled: bool) -> Mapping[str, Any]:
    """Build, and take two steps: compilation is over then."""
    _state.clear()
    torch.manual_seed(0)
    _state["device"] = torch.device(device)
    make = _ours if who == "ours" else _theirs
    _state["step"] = make(who, model, batch, torch.device(device), precision, compiled)
    began = time.perf_counter()
    for _ in range(2):
        _state["step"]()
    _settle()
    took = time.perf_counter() - began
    _release()
    return {"first_steps_s": took}


def steps(count: int, batch: int) -> Mapping[str, Any]:
    """Seconds of `count` steps after one that fills the caches."""
    step, on_gpu = _state["step"], _state["device"].type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step()
    _settle()
    if on_gpu:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            step()
        end.record()
        _settle()
        took = begin.elapsed_time(end) / 1e3
        peak = torch.cuda.max_memory_allocated()
    else:
        began = time.perf_counter()
        for _ in range(count):
            step()
        took, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _release()
    return {"samples": count * batch, "step_s": took, "peak_bytes": peak}


def peaks(device: str, precision: str) -> Mapping[str, Any]:
    """FLOP/s of a large matrix product here, and of the data sheet (0: none)."""
    from vitscale.bench.step import device_name, measured_peak
    from vitscale.plan.hardware import peak_for

    name = device_name(torch.device(device))
    return {"device": name, "measured": measured_peak(torch.device(device), precision), "sheet": peak_for(name, precision) or 0.0}


def _settle() -> None:
    if _state["device"].type == "cuda":
        torch.cuda.synchronize()


def _release() -> None:
    """Leave the memory of activations to the next contender: weights and optimizer stay."""
    if _state["device"].type == "cuda":
        torch.cuda.empty_cache()


def _recipe(model: str, batch: int, device: str, precision: str, compiled: bool) -> Any:
    from vitscale.recipe.load import check_recipe

    width, depth, heads, mlp, patch, image = SIZES[model]
    return check_recipe({
        "name": "step", "model": {"width": width, "depth": depth, "heads": heads, "mlp": mlp, "patch": patch, "image": image,
                                  "classes": CLASSES},
        "data": {"train": "none.tar", "num_samples": 1 << 20, "lanes": 1}, "optim": {"lr": LR, "clip_norm": CLIP}, "global_batch": batch,
        "micro_batch": batch, "duration": "10 steps",
        "parallel": {"device": device.partition(":")[0], "precision": precision, "compile": compiled},
    }, "benchmark")


def _ours(who: str, model: str, batch: int, device: torch.device, precision: str, compiled: bool) -> Step:
    """The step of `vitscale train`: uint8 images on the host, copied, normalised, exchanged, judged."""
    from vitscale.bench.step import made_inputs, one_step, prepared
    from vitscale.observe.meters import Meters
    from vitscale.parallel.world import World

    recipe = _recipe(model, batch, str(device), precision, compiled)
    world = World(0, 1, 0, 1, device, None)
    coupling, made = prepared(recipe, world, batch, 1)
    inputs, meters = made_inputs(recipe, world, made), Meters()
    meters.begin()
    return lambda: one_step(coupling, made, inputs, LR, meters)


def _theirs(who: str, model: str, batch: int, device: torch.device, precision: str, compiled: bool) -> Step:
    """Images that lie on the device, normalised: what a peer's own loader costs is not counted."""
    net = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}[who](*SIZES[model]).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.9, 0.999), weight_decay=0.05, fused=True)
    forward = torch.compile(net) if compiled else net
    image = SIZES[model][-1]
    images, labels = torch.randn(batch, 3, image, image, device=device), torch.randint(CLASSES, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = forward(images)
            loss = F.cross_entropy((output if isinstance(output, torch.Tensor) else output.logits).float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _timm(width: int, depth: int, heads: int, mlp: int, patch: int, image: int) -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=mlp / width,
                             num_classes=CLASSES)


def _transformers(width: int, depth: int, heads: int, mlp: int, patch: int, image: int) -> torch.nn.Module:
    import transformers as tf

    return tf.ViTForImageClassification(tf.ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp, patch_size=patch, image_size=image,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa", num_labels=CLASSES))


def _torchvision(width: int, depth: int, heads: int, mlp: int, patch: int, image: int) -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=image, patch_size=patch, num_layers=depth, num_heads=heads, hidden_dim=width, mlp_dim=mlp,
                             num_classes=CLASSES)


if __name__ == "__main__":
    serve({"there": there, "prepare": prepare, "steps": steps, "peaks": peaks})
