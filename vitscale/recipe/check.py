"""What single keys cannot show: combinations that contradict each other.  Needs no shards and no torch."""

import math

from vitscale.errors import RecipeError
from vitscale.recipe.axes import axis_contradictions
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.check_objective import objective_contradictions
from vitscale.recipe.objectives import Classification, Distillation
from vitscale.recipe.schema import Augment, Recipe, Vit
from vitscale.recipe.teacher import own_model, teacher_classes

BLUR_BELOW = 2.4        # pixels: a Gaussian blur of a larger standard deviation reaches beyond what vitscale/data/policy.py weighs


def mixes(recipe: Recipe) -> bool:
    """Whether samples of a batch are mixed with each other."""
    return recipe.data.augment.mixup > 0 or recipe.data.augment.cutmix > 0


def train_urls(recipe: Recipe) -> tuple[str, ...]:
    """The shards that are trained on: of data.train, or of data.mix one set after the other."""
    return recipe.data.train or tuple(url for one in recipe.data.mix for url in one.shards)


def default_group(recipe: Recipe) -> int:
    """Consecutive positions whose samples depend on each other: 8 if the recipe mixes them, groups of stochastic depth and of the
    objective whole, else 1."""
    return recipe.data.group or math.lcm(8 if mixes(recipe) else 1, drop_group(recipe) or 1, recipe.objective.own_group)


def drop_group(recipe: Recipe) -> int | None:
    """Images of which each residual branch leaves out a fixed share; None: stochastic depth, if any, is by chance."""
    return recipe.model.drop_path_group if isinstance(recipe.model, Vit) else None


def default_lanes(recipe: Recipe, num_samples: int | None = None) -> int:
    """The largest divisor of the batch's distinct samples that is a multiple of the group, at most 1024, and no more than there are
    samples, where that is known.

    A divisor, so that each batch takes equally from every lane; at most 1024, so that few shards are open at once.
    """
    most = min(1024, num_samples or 1024)
    if recipe.data.lanes is not None:
        return recipe.data.lanes
    group, batch = default_group(recipe), recipe.global_batch // recipe.data.repeats
    units = max(batch // group, 1)
    best = max(d for d in range(1, min(units, max(most // group, 1)) + 1) if units % d == 0)
    return best * group


def contradictions(recipe: Recipe) -> list[tuple[str, str]]:
    """(dotted key, sentence) for every combination that cannot work; empty when the recipe is sound."""
    model, data, optim, parallel = recipe.model, recipe.data, recipe.optim, recipe.parallel
    found: list[tuple[str, str]] = []

    def wrong(key: str, sentence: str) -> None:
        found.append((key, sentence))

    found += model_contradictions(model)
    found += objective_contradictions(recipe)
    group, batch, lanes = default_group(recipe), recipe.global_batch, default_lanes(recipe)
    if batch % group:
        wrong("global_batch", f"{batch} is not a multiple of data.group {group}")
    if lanes % group:
        wrong("data.lanes", f"{lanes} is not a multiple of data.group {group}")
    if recipe.micro_batch and recipe.micro_batch % group:
        wrong("micro_batch", f"{recipe.micro_batch} is not a multiple of data.group {group}")
    if recipe.micro_batch and recipe.micro_batch > batch:
        wrong("micro_batch", f"{recipe.micro_batch} is more than global_batch {batch}")
    if data.num_samples is not None and lanes > data.num_samples:
        wrong("data.lanes", f"{lanes} lanes are more than the {data.num_samples} samples of data.num_samples")
    if data.repeats > 1 and batch % (group * data.repeats):
        wrong("data.repeats", f"global_batch {batch} is not a multiple of {data.repeats} repeats of data.group {group}")
    if group % (drop_group(recipe) or 1):
        wrong("data.group", f"{group} is not a multiple of model.drop_path_group {drop_group(recipe)}")
    if group % recipe.objective.own_group:
        wrong("data.group", f"{group} is not a multiple of objective.koleo_group {recipe.objective.own_group}")
    if mixes(recipe) and group < 2:
        wrong("data.group", "mixup and cutmix mix samples of a group, which wants at least 2")
    found += _augment("data.augment", data.augment)
    found += _views(recipe)
    found += _labels(recipe)
    found += _mix(recipe, lanes)
    for key, urls in (("data.mix" if data.mix else "data.train", train_urls(recipe)), ("data.val", data.val or ())):
        if any(url.startswith("pipe:") for url in urls):
            wrong(key, "pipe: URLs run a shell and are refused; give an fsspec URL (s3://, gs://, https://, or a path)")

    found += _schedule(recipe)
    if recipe.evaluate.early_stopping and (data.val is None or recipe.evaluate.every is None):
        wrong("evaluate.early_stopping", "wants data.val and evaluate.every")
    found += _objective(recipe)
    if optim.name == "lamb" and parallel.engine == "zero":
        wrong("optim.name", "lamb wants the lengths of whole tensors, which DeepSpeed's shards cut across; use parallel.engine fsdp or ddp")
    if recipe.ema is not None and parallel.engine == "zero":
        wrong("ema", "DeepSpeed has no fp32 shard of the weights to average in every stage; use parallel.engine fsdp or ddp, or ema: null")
    found += _fine_tuning(recipe)
    if parallel.zero_offload and parallel.engine != "zero":
        wrong("parallel.zero_offload", f"belongs to parallel.engine zero, not to {parallel.engine}")
    found += axis_contradictions(recipe)
    if parallel.compile and parallel.engine == "zero" and parallel.zero_stage == 3:
        wrong("parallel.compile", "is not proven with zero_stage 3, where with recompute selective gradients were wrong by a quarter; use "
              "parallel.engine fsdp, zero_stage 2, or compile false")
    if parallel.recompute_every > 1 and parallel.recompute != "blocks":
        wrong("parallel.recompute_every", f"belongs to parallel.recompute blocks, not to {parallel.recompute}")
    return found


def _schedule(recipe: Recipe) -> list[tuple[str, str]]:
    """What of the learning rate's schedule and of the run's length cannot be."""
    data, optim, batch = recipe.data, recipe.optim, recipe.global_batch
    found: list[tuple[str, str]] = []

    def wrong(key: str, sentence: str) -> None:
        found.append((key, sentence))

    if optim.schedule == "rsqrt" and optim.warmup.amount == 0 and optim.timescale is None:
        wrong("optim.timescale", "rsqrt wants a timescale, or a warm-up to take it from")
    if optim.cooldown is not None and optim.schedule not in ("rsqrt", "wsd"):
        wrong("optim.cooldown", f"belongs to the schedules rsqrt and wsd, not to {optim.schedule}")
    if optim.schedule == "wsd" and optim.cooldown is None:
        wrong("optim.cooldown", "wsd wants a cooldown, such as '10 epochs'")
    if optim.timescale is not None and optim.schedule != "rsqrt":
        wrong("optim.timescale", f"belongs to the schedule rsqrt, not to {optim.schedule}")
    if optim.weight_decay_end is not None and not optim.weight_decay:
        wrong("optim.weight_decay_end", "wants a weight_decay above 0 to begin with")
    if optim.min_lr > optim.lr:
        wrong("optim.min_lr", f"{optim.min_lr:g} is more than optim.lr {optim.lr:g}")
    if recipe.duration.amount == 0:
        wrong("duration", "wants more than 0")
    for key, duration in (("checkpoint.every", recipe.checkpoint.every), ("evaluate.every", recipe.evaluate.every)):
        if duration is not None and duration.amount == 0:
            wrong(key, "wants more than 0; leave it out (null) for 'only at the end'")
    if data.num_samples is not None:
        total = recipe.duration.images(data.num_samples, batch, data.repeats)
        spent = optim.warmup.images(data.num_samples, batch, data.repeats)
        spent += optim.cooldown.images(data.num_samples, batch, data.repeats) if optim.cooldown else 0
        if spent > total:
            wrong("optim.warmup", f"warm-up and cooldown take {spent} images, more than the {total} of the whole run")
    return found


def _fine_tuning(recipe: Recipe) -> list[tuple[str, str]]:
    """What frozen parts and adapters do not go with."""
    optim, engine, found = recipe.optim, recipe.parallel.engine, []
    if optim.freeze and engine == "zero":
        found.append(("optim.freeze", "DeepSpeed keeps no fp32 copy of what does not learn; use parallel.engine ddp or fsdp"))
    if optim.freeze == "backbone" and not recipe.objective.wants_labels:
        found.append(("optim.freeze", f"backbone leaves the head alone to learn, of which {recipe.objective.name} has none that lasts"))
    if recipe.lora is None:
        return found
    if engine != "ddp":
        found.append(("lora", f"adapters stand beside whole layers: they want parallel.engine ddp, not {engine}"))
    if not recipe.objective.wants_labels:
        found.append(("lora", f"adapts a trained model to labels; {recipe.objective.name} has none"))
    if recipe.parallel.compile:
        found.append(("lora", "does not go with parallel.compile"))
    if optim.freeze:
        found.append(("optim.freeze", "with lora all but adapters and head is frozen already"))
    return found


def _objective(recipe: Recipe) -> list[tuple[str, str]]:
    """Models that an objective does not go with."""
    model, objective = recipe.model, recipe.objective
    found: list[tuple[str, str]] = []
    if model.family == "deit" and objective.name != "distillation":
        found.append(("objective.name", f"family deit has a head that learns from a teacher: it wants distillation, not {objective.name}; "
                      "without a teacher use model.family vit"))
    if isinstance(objective, Distillation):
        try:
            classes = teacher_classes(objective.teacher)
            channels = (own_model(objective.teacher) or {}).get("channels", model.channels)
        except RecipeError as error:
            return [*found, ("objective.teacher", str(error))]
        if classes is not None and classes != model.classes:
            found.append(("objective.teacher", f"{objective.teacher} tells {classes} classes apart, model.classes are {model.classes}"))
        if channels != model.channels:
            found.append(("objective.teacher", f"{objective.teacher} wants {channels} channels, model.channels is {model.channels}"))
        if recipe.data.multi_label and objective.kind == "hard":
            found.append(("objective.kind", "a teacher's one choice says nothing of several labels; with data.multi_label use soft"))
    return found


def _mix(recipe: Recipe, lanes: int) -> list[tuple[str, str]]:
    """What a mixture of sets does not go with."""
    data, optim = recipe.data, recipe.optim
    found: list[tuple[str, str]] = []
    if bool(data.train) == bool(data.mix):
        found.append(("data.train", "give shards here, or sets of them in data.mix" + (", not both" if data.mix else "")))
    if not data.mix:
        return found
    if recipe.global_batch % lanes:
        found.append(("data.lanes", f"{lanes} do not divide global_batch {recipe.global_batch}, which data.mix wants"))
    if data.num_samples is not None:
        found.append(("data.num_samples", "a mixture has no epochs; give the num_samples of each set in data.mix"))
    if data.repeats > 1:
        found.append(("data.repeats", "does not go with data.mix"))
    if data.prepare:
        found.append(("data.prepare", "does not go with data.mix"))
    durations = {
        "duration": recipe.duration, "optim.warmup": optim.warmup, "optim.cooldown": optim.cooldown, "optim.timescale": optim.timescale,
        "checkpoint.every": recipe.checkpoint.every, "evaluate.every": recipe.evaluate.every,
    }
    found += [(key, "a mixture (data.mix) has no epochs; give steps or images")
              for key, duration in durations.items() if duration is not None and duration.unit == "epochs" and duration.amount]
    return found


def _views(recipe: Recipe) -> list[tuple[str, str]]:
    """What contradicts itself in data.views, or does not go with the objective or the model."""
    model, views, found = recipe.model, recipe.data.views, []
    if not recipe.objective.wants_views:
        return [("data.views", f"{recipe.objective.name} looks at one view of each image; leave data.views out")] if views else []
    if len({one.name for one in views}) < len(views):
        found.append(("data.views", f"wants a name of its own for each set, got {', '.join(one.name for one in views)}"))
    for number, one in enumerate(views):
        key, size = f"data.views.{number}", one.image or model.image
        patch = getattr(model, "patch", 1)
        if one.image is not None and size % patch:
            found.append((f"{key}.image", f"{size} pixels are no whole patches of {patch}"))
        if size != model.image and isinstance(model, Vit) and model.attention != "full":
            found.append((f"{key}.image", f"attention {model.attention} is laid out for one size, model.image {model.image}"))
        if one.augment is None:
            continue
        found += _augment(f"{key}.augment", one.augment)
        found += [(f"{key}.augment.{name}", "is that of all views: give it in data.augment")
                  for name in ("mean", "std")
                  if getattr(one.augment, name) not in (getattr(recipe.data.augment, name), Augment.model_fields[name].default)]
        found += [(f"{key}.augment.{name}", f"mixes labels, of which {recipe.objective.name} has none; leave it out")
                  for name in ("mixup", "cutmix") if getattr(one.augment, name) > 0]
    return found


def _augment(section: str, augment: Augment) -> list[tuple[str, str]]:
    """What contradicts itself in data.augment, or in that of a set of views."""
    found = []
    areas = {"scale": augment.scale} | ({"erasing.scale": augment.erasing.scale} if augment.erasing else {})
    ratios = {"ratio": augment.ratio} | ({"erasing.ratio": augment.erasing.ratio} if augment.erasing else {})
    for key, (low, high) in (areas | ratios | {"blur_radius": augment.blur_radius}).items():
        if low > high:
            found.append((f"{section}.{key}", f"wants [low, high], got {[low, high]}"))
        elif key in areas and high > 1:
            found.append((f"{section}.{key}", f"is a share of the image's area, at most 1, got {high:g}"))
    if augment.blur_radius[1] >= BLUR_BELOW:
        found.append((f"{section}.blur_radius", f"wants less than {BLUR_BELOW:g} pixels, got {augment.blur_radius[1]:g}"))
    if min(augment.std) <= 0:
        found.append((f"{section}.std", "wants numbers > 0"))
    if augment.rand_augment and augment.three_augment:
        found.append((f"{section}.three_augment", "takes the place of rand_augment; give one of them"))
    return found


def _labels(recipe: Recipe) -> list[tuple[str, str]]:
    """What cannot be a label, or is missing one."""
    label, objective, found = recipe.data.label, recipe.objective, []
    if label is None:
        if recipe.data.class_map:
            found.append(("data.class_map", "names the classes of labels, but data.label is null"))
        if recipe.data.multi_label:
            found.append(("data.multi_label", "is about labels, but data.label is null"))
        return found
    distils = isinstance(objective, Distillation)
    if recipe.data.multi_label and isinstance(objective, Classification) and not distils and objective.loss != "binary_cross_entropy":
        found.append(("data.multi_label", "several labels, or none, are no distribution over classes: it wants objective.loss "
                      f"binary_cross_entropy, got {objective.loss}"))
    fields = label.removeprefix("json:").split(".") if label.startswith("json:") else []
    if not all(fields) or (not fields and (not label or not label.isascii() or "." in label or "/" in label)):
        found.append(("data.label", f"wants the extension of a member, such as cls, or json:path.to.field, got {label!r}"))
    return found
