"""Out and in again is the identity for every section that a format can hold: generated sections of every family."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export_folders import shaken

from vitscale.checkpoint.load import load
from vitscale.errors import RecipeError
from vitscale.export.folder import write_safetensors, write_timm, write_transformers
from vitscale.export.verify import pictures
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, Model

pytest.importorskip("transformers")
TRAINING = {"dropout", "head_dropout", "drop_path", "drop_path_schedule", "drop_path_group"}
WRITERS = {"transformers": write_transformers, "timm": write_timm, "safetensors": write_safetensors}
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "vit": {"classes": (5, 0), "channels": (3, 1), "mlp": (64, 48), "patch": (8, 4), "image": (32, 48), "registers": (0, 1, 3),
            "pool": ("token", "mean", "attention", "token_mean"), "pool_norm": (False, True),
            "position": ("learned", "sincos", "rotary", "relative", "none"),
            "class_position": (True, False), "qkv_bias": (True, False), "qk_norm": (False, True), "gated": (False, True),
            "layer_scale": (None, 0.1), "norm_eps": (1e-6, 1e-12, 1e-5), "hidden_act": ("gelu", "gelu_tanh", "quick_gelu"),
            "pre_norm": (False, True), "final_norm": (True, False), "drop_path": (0.0, 0.1), "key_bias": (True, False),
            "rope_type": (None, "axial", "mixed"), "relative_mlp": (None, 12), "post_norm": (False, True)},
    "deit": {"classes": (5, 0), "class_position": (True, False), "position": ("learned", "sincos"), "registers": (0, 1),
             "layer_scale": (None, 0.1), "qkv_bias": (True, False), "norm_eps": (1e-6, 1e-12), "hidden_act": ("gelu", "gelu_tanh")},
    "swin": {"version": (1, 2), "classes": (5, 0), "channels": (3, 1), "window": (4, 2, 8, 16), "hidden_act": ("gelu", "quick_gelu"),
             "norm_eps": (1e-5, 1e-6), "position": ("none", "learned"), "drop_path": (0.0, 0.2)},
    "convnext": {"version": (1, 2), "classes": (5, 0), "layer_scale": (None, 1e-2), "hidden_act": ("gelu", "gelu_tanh"), "kernel": (7, 5),
                 "stem": ("patch", "overlap"), "use_grn": (None, True), "head_hidden": (None, 12), "head_norm_eps": (None, 1e-12),
                 "norm_eps": (1e-6, 1e-5)},
}
SIZES = {"vit": {"width": 32, "depth": 2, "heads": 4}, "swin": {"width": 16, "depths": (2, 2), "heads": (2, 4), "image": 64},
         "convnext": {"widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "image": 64}}
SIZES["deit"] = SIZES["vit"] | {"mlp": 64, "patch": 8, "image": 32}


def sections(seed: int, count: int) -> list[Model]:
    """Such as a recipe could have: a few keys of each away from their first choices."""
    draw, found = random.Random(seed), list[Model]()
    while len(found) < count:
        family = draw.choice(("vit", "vit", "vit", "deit", "swin", "convnext"))
        choices = CHOICES[family]
        away = draw.sample(sorted(choices), draw.choice((0, 1, 1, 2, 2, 3, 4)))
        values = {key: draw.choice(options) if key in away else options[0] for key, options in choices.items()}
        try:
            found.append(check_section(FAMILIES[family], SIZES[family] | values | {"family": family}, "x"))
            shaken(found[-1])
        except RecipeError:
            found = found[:-1] if len(found) and found[-1].family == family else found
    return found


def told(section: Model) -> dict[str, Any]:
    """What a format has to hold: not what matters in training alone."""
    return {key: value for key, value in section.model_dump().items() if key not in TRAINING}


def differences(form: str, seed: int, count: int, root: Path) -> list[str]:
    found, held = [], 0
    for number, section in enumerate(sections(seed, count)):
        loaded = shaken(section, ("a", "b", "c", "d", "e"))
        try:
            WRITERS[form](loaded, root / f"{form}-{number}")
        except RecipeError:
            continue
        held += 1
        back = load(root / f"{form}-{number}")
        images = pictures(loaded)
        if (error := float((back.model(images) - loaded.model(images)).abs().max())) > 1e-5:
            found.append(f"{form}: answers differ by {error:.1e}: {section}")
        odd = {key: (value, told(back.section).get(key)) for key, value in told(section).items() if told(back.section).get(key) != value}
        if odd:
            found.append(f"{form}: {section.family}: {odd} of {section.model_dump(exclude_defaults=True)}")
        if back.class_names != loaded.class_names or back.transform.pixels(PICTURE).tolist() != loaded.transform.pixels(PICTURE).tolist():
            found.append(f"{form}: names or images are others: {section}")
    assert held >= count / 8, f"{form} held {held} of {count}"
    return found


def _picture() -> bytes:
    import cv2

    image = torch.randint(0, 255, (70, 91, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    done, data = cv2.imencode(".png", image.numpy())
    assert done
    return data.tobytes()


PICTURE = _picture()


@pytest.mark.parametrize("form", WRITERS)
def test_out_and_in_again_is_the_identity(form: str, tmp_path: Path) -> None:
    import datetime

    seed = datetime.date.today().toordinal()
    print(f"seed {seed}")
    assert not differences(form, seed, 24, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("form", WRITERS)
def test_out_and_in_again_is_the_identity_for_many(form: str, tmp_path: Path) -> None:
    assert not differences(form, 1, 400, tmp_path)


def test_a_folder_that_was_changed_since_is_read_as_it_is(tmp_path: Path) -> None:
    """As after training on in the other library: positions that were fixed are a table then, and a head may be another."""
    import json

    from safetensors.torch import load_file, save_file

    section = check_section(FAMILIES["vit"], SIZES["vit"] | {"mlp": 64, "patch": 8, "image": 32, "classes": 5, "position": "sincos"}, "x")
    for form in ("transformers", "timm"):
        folder = tmp_path / form
        WRITERS[form](shaken(section), folder)
        assert told(load(folder).section) == told(section)
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if "pos" in name)
        save_file(weights | {name: weights[name] + 0.1}, folder / "model.safetensors", metadata={"format": "pt"})
        assert load(folder).section.position == "learned"       # type: ignore[attr-defined]
        config = json.loads((folder / "config.json").read_text())
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | {"vitscale_model": {"family": "swin"}}))
        assert load(folder).section.position == "learned"       # type: ignore[attr-defined]


NEXT = {"vit": SIZES["vit"] | {"mlp": 64, "patch": 8, "image": 32, "registers": 2, "layer_scale": 0.1, "classes": 5},
        "swin": SIZES["swin"] | {"window": 4, "classes": 5}, "convnext": SIZES["convnext"] | {"classes": 5},
        "deit": SIZES["deit"] | {"classes": 5}}


@pytest.mark.parametrize("family", NEXT)
def test_transformers_goes_on_with_what_we_wrote(family: str, tmp_path: Path) -> None:
    """Training on with other classes and recomputation, bf16, a pipeline, and its own saving, which we read again."""
    import transformers
    from PIL import Image

    loaded = shaken(check_section(FAMILIES[family], NEXT[family] | {"family": family}, "x"), ("a", "b", "c", "d", "e"))
    write_transformers(loaded, tmp_path / "ours")
    name = transformers.AutoConfig.from_pretrained(tmp_path / "ours").architectures[0]
    known = getattr(transformers, name)
    model = known.from_pretrained(tmp_path / "ours", num_labels=3, ignore_mismatched_sizes=True)
    images = pictures(loaded)
    if name != "DeiTForImageClassificationWithTeacher":         # which is for inference alone
        if model.supports_gradient_checkpointing:       # not ConvNeXt's
            model.gradient_checkpointing_enable()
        model.train()
        output = model(images, labels=torch.tensor([0, 2]))
        output.loss.backward()
        assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)
        assert sum(value.grad is not None for value in model.parameters()) >= len(list(model.parameters())) - 1
    model.eval().save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(back.model(images), model(images).logits, rtol=0, atol=1e-5)
    half = known.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        answers, ours = half(images.bfloat16()).logits.float(), loaded.model(images)
    assert (answers - ours).abs().max() < 0.3 * ours.std()
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "ours"))
    (tmp_path / "photo.png").write_bytes(PICTURE)
    said = {row["label"]: row["score"] for row in classify(Image.open(tmp_path / "photo.png"), top_k=5)}
    expected = loaded.model(loaded.transform(tmp_path / "photo.png")[None]).softmax(-1)[0]
    assert set(said) == set("abcde")
    assert [said[name] for name in "abcde"] == pytest.approx(expected.tolist(), abs=0.05)
