"""Folders that timm and transformers save, of any architecture and with any option, brought in: answers are equal, or the reason is named.

A program, since timm needs torchvision, which would change what transformers does beside it; `python tests/export/interchange.py timm` runs
all of timm's cases, one line of JSON each.  timm lies in an environment of its own (`make .venv/peers`), which only this program sees.
"""

import argparse
import contextlib
import functools
import inspect
import io
import itertools
import json
import logging
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from foreign_models import (
    EQUAL,
    Case,
    import_timm,
    save_timm,
    shaken,
    timm_cases,
    timm_model,
    together,
    transformers_answers,
    transformers_cases,
    transformers_model,
)
from torch import Tensor, nn

from vitscale.checkpoint.load import Loaded, load
from vitscale.errors import UserError, said
from vitscale.export.bring import bring
from vitscale.recipe.check_model import model_contradictions

_FLAGGED = ("vit", "vit_mae", "vit_msn", "deit", "ijepa", "siglip", "siglip_vision_model", "clip", "clip_vision_model", "swin", "swinv2")


def at_another_size(model: nn.Module, images: Tensor, loaded: Loaded, answers: Callable[[Any, Tensor], list[Tensor]]) -> float | None:
    """The same error for larger images, which both interpolate; None where theirs takes no others.  timm's Swin makes its windows larger
    with them, which ours leaves as they are."""
    section: Any = loaded.section
    step = 2 * section.patch if section.family in ("vit", "deit") else 32
    larger = torch.randn(2, images.shape[1], images.shape[2] + step, images.shape[3] + step, generator=torch.Generator().manual_seed(5))
    theirs: Any = model
    try:
        if not hasattr(model, "config"):
            if section.family == "swin" or images.shape[2] != images.shape[3]:
                return None
            if hasattr(model, "set_input_size"):
                theirs.set_input_size(img_size=tuple(larger.shape[2:]))
        elif model.config.model_type in _FLAGGED:       # by themselves these refuse other sizes
            inner, plain = model, model.forward
            inner.forward = functools.partial(plain, interpolate_pos_encoding=True)     # type: ignore[method-assign]
        expected = answers(model, larger)
    except (TypeError, ValueError, RuntimeError, AttributeError):       # it is of one size
        return None
    ours = loaded.model(larger)
    return min((float((ours - one).abs().max() / one.std()) for one in expected if one.shape == ours.shape), default=None)


@torch.no_grad()
def outcome(case: Case, build: Callable[[Case], tuple[nn.Module, Tensor]], save: Callable[[nn.Module, Case, Path], None],
            answers: Callable[[Any, Tensor], list[Tensor]], room: Path) -> dict[str, Any]:
    """What became of a folder of a case: its row of the matrix.  `result` is equal, refused, backbone (of which the import says that its
    classifier is left behind), or what must not be: wrong, broken."""
    row: dict[str, Any] = {"library": case.library, "name": case.name, "options": case.options, "shaken": case.shaken}
    generator = torch.Generator().manual_seed(len(case.name))
    torch.manual_seed(0)
    try:
        model, images = build(case)
        model.eval()
        if case.shaken:
            shaken(model, generator)
        expected = answers(model, images)
        save(model, case, room / "theirs")
    except Exception as error:
        return row | {"result": "no model", "words": said(error)[:200]}      # their own library refuses such an option
    before = sorted(path.name for path in room.iterdir())
    try:
        lines = list(bring(room / "theirs", room / "ours"))
        loaded = load(room / "ours")
        ours = loaded.model(images)
    except UserError as error:
        left = sorted(path.name for path in room.iterdir()) != before
        return row | {"result": "wrong" if left else "refused", "words": str(error).replace(str(room), "")[:300]}
    except Exception as error:
        return row | {"result": "broken", "words": said(error)[:300]}
    if alone := [line for line in lines if "the backbone alone is read" in line]:
        return row | {"result": "backbone", "words": alone[0]}
    errors = [float((ours - one).abs().max() / one.std()) for one in expected if one.shape == ours.shape]
    error = min(errors, default=float("nan"))
    checked = any(f"held against {case.library}" in line and "NOT" not in line for line in lines)
    elsewhere = at_another_size(model, images, loaded, answers)
    good = error <= EQUAL and checked and not (elsewhere or 0.0) > EQUAL and not model_contradictions(loaded.section)
    return row | {"result": "equal" if good else "wrong", "error": error, "checked": checked, "elsewhere": elsewhere,
                  "notes": [line for line in lines if "left behind" in line or "alone is read" in line]}


def rows(library: str, sample: int | None = None, seed: int = 0, only: str = "") -> Iterator[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()):
        if library == "timm":
            peer, keep = import_timm()
            cases = timm_cases(peer)
            save, answers = save_timm, lambda model, images: [model(images)]
            build = lambda case: timm_model(peer, case)         # noqa: E731
        else:
            import transformers as peer
            cases, keep = transformers_cases(peer), None
            save, answers = lambda model, _, folder: model.save_pretrained(folder), transformers_answers
            build = lambda case: transformers_model(peer, case)         # noqa: E731
    cases += together(cases, seed)
    if sample is not None:
        cases = random.Random(seed).sample(cases, min(sample, len(cases)))
    for case in cases:
        if only not in str(case):
            continue
        room = Path(tempfile.mkdtemp())
        try:
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield outcome(case, build, save, answers, room)
        finally:
            shutil.rmtree(room)
    del keep


def written() -> Iterator[tuple[str, Loaded, Path]]:
    """What we write for timm, by the name of its section."""
    from test_export_folders import FOR_TIMM, NAMES
    from test_export_folders import shaken as ours

    from vitscale.export.folder import write_timm

    for name, section in FOR_TIMM.items():
        room, loaded = Path(tempfile.mkdtemp()), ours(section, NAMES)
        write_timm(loaded, room / "ours")
        yield name, loaded, room / "ours"
        shutil.rmtree(room)


def goes_on() -> Iterator[dict[str, Any]]:
    """timm's usual next steps with what we wrote for it: other classes, none, grey images; the rest of the weights stay."""
    timm, keep = import_timm()
    for name, loaded, folder in written():
        section, turned = loaded.section, getattr(loaded.section, "rope_type", None) == "mixed"       # heads' numbers in another order
        for change in ({}, {"num_classes": 4}, {"num_classes": 0}, {"in_chans": 1}, {"in_chans": 4}):
            row = {"library": "ours", "name": name, "options": change}
            try:
                model = timm.create_model(f"local-dir:{folder}", pretrained=True, **change).eval()
                images = torch.randn(2, change.get("in_chans", section.channels), section.image, section.image)
                with torch.no_grad():
                    answers = model(images)
                own = dict(loaded.model.named_parameters())
                same = all(torch.equal(value, own[name]) for name, value in model.named_parameters()
                           if name in own and ".blocks." in f".{name}" and not (".qkv." in name and turned))
                right = change or (answers - loaded.model(images)).abs().max() <= EQUAL * answers.std()
                shape = (2, *((change["num_classes"],) if change.get("num_classes") else tuple(answers.shape[1:])))
                yield row | {"result": "equal" if same and right and tuple(answers.shape) == shape else "wrong"}
            except Exception as error:
                yield row | {"result": "broken", "words": said(error)[:300]}
    del keep


def trains_on() -> Iterator[dict[str, Any]]:
    """Its usual next steps after them: recomputed and compiled the gradients of a step are what they are without, and in bf16 about so."""
    timm, keep = import_timm()
    first = True        # one is compiled to machine code, of the others the graphs alone: Swin's takes a minute
    for name, loaded, folder in written():
        images = torch.randn(4, loaded.section.channels, loaded.section.image, loaded.section.image)
        expected = torch.empty(0)
        for step, most in (("plain", 0.0), ("recomputed", 1e-4), ("compiled", 1e-4), ("bf16", 0.3)):
            row = {"library": "ours", "name": name, "options": {"step": step}}
            try:
                torch.manual_seed(0)        # its classifier begins anew
                model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3, drop_path_rate=0.0)
                torch._dynamo.reset()
                model.set_grad_checkpointing(step == "recomputed")
                backend = "inductor" if first else "aot_eager"
                ask = torch.compile(model, fullgraph=True, backend=backend) if step == "compiled" else model
                dtype = torch.bfloat16 if step == "bf16" else torch.float32
                nn.functional.cross_entropy(ask(images.to(dtype)) if dtype == torch.float32 else model.to(dtype)(images.to(dtype)).float(),
                                            torch.tensor([0, 1, 2, 0])).backward()
                gradient = torch.cat([value.grad.flatten().float() for value in model.parameters() if value.grad is not None])
                expected = gradient if step == "plain" else expected
                error = float((gradient - expected).norm() / expected.norm())
                first = first and step != "compiled"
                yield row | {"result": "equal" if error <= most else "wrong", "error": error}
            except Exception as error:
                yield row | {"result": "broken", "words": said(error)[:300]}
    del keep


def defaults() -> Iterator[dict[str, Any]]:
    """What timm's classes take each argument for that is left out, against what is taken for it here."""
    from vitscale.models.foreign_keys import ForeignKeys
    from vitscale.models.timm_section import READERS

    timm, keep = import_timm()
    for name, reader in READERS.items():
        keys, wrong = ForeignKeys({}), dict[str, str]()
        reader(keys)
        theirs = {key: one for kind in reversed(getattr(timm.models, name).__mro__) for key, one in inspect.signature(
            kind.__init__).parameters.items()}
        for key, ours in keys.defaults.items():
            value = getattr(theirs[key].default, "__name__", theirs[key].default) if key in theirs else ours
            if (list(value) if isinstance(value, (tuple, list)) else value) != (list(ours) if isinstance(ours, (tuple, list)) else ours):
                wrong[key] = f"{value!r}, not {ours!r}"
        yield {"library": "ours", "name": f"defaults of {name}", "options": {}, "result": "wrong" if wrong else "equal",
               "words": str(wrong)}
    del keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=("timm", "transformers", "ours", "training"))
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose text has this in it")
    given = parser.parse_args()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    for row in {"ours": lambda: itertools.chain(defaults(), goes_on()), "training": trains_on}.get(
            given.library, lambda: rows(given.library, given.sample, given.seed, given.only))():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
