"""Every export and import held against the other library, or ourselves: the same pictures through both, and how far answers differ."""

import contextlib
import copy
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.checkpoint.facts import read_object
from vitscale.checkpoint.foreign import CONFIG
from vitscale.checkpoint.load import Loaded, load
from vitscale.counts import plural
from vitscale.errors import CheckpointError, UserError, said
from vitscale.models.transformers_names import KINDS, kind_of_file

EQUAL = 1e-5            # of the largest difference, as a share of the answers' standard deviation
ROUNDING = 1e-4         # the same where answers cannot be had in fp64 and deep models round more than that


class NotVerified(Exception):
    """The library that would have to be asked is not installed here."""


@dataclass(frozen=True)
class Peer:
    """A model of another library's, with what it takes to ask it."""

    library: str
    model: nn.Module
    answer: Callable[[Any, Tensor], Tensor]     # (the model, images) -> what ours gives for them
    classifiers: Sequence[nn.Module]


def pictures(loaded: Loaded, count: int = 2) -> Tensor:
    """Normalised noise (count, C, S, S), always the same."""
    transform = loaded.transform
    return torch.randn(count, transform.channels, transform.image, transform.image, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def error_of(loaded: Loaded, theirs: Callable[[Tensor], Tensor], what: str, count: int = 2, most: float = ROUNDING) -> float:
    """The largest difference of any answer, over the standard deviation of ours.  Raises CheckpointError if it is more than `most`."""
    images = pictures(loaded, count)
    return _judged(difference(loaded.model(images), theirs(images), what), what, most)


def difference(ours: Tensor, theirs: Tensor, what: str) -> float:
    """The largest difference over the standard deviation of ours; where all of ours are one number, as it is."""
    if theirs.shape != ours.shape:
        raise CheckpointError(f"{what}: gives {tuple(theirs.shape)} where ours gives {tuple(ours.shape)}")
    error, spread = float((theirs - ours).abs().max()), float(ours.std()) if ours.numel() > 1 else 0.0
    return error / spread if spread > 0 else error


def _judged(error: float, what: str, most: float) -> float:
    if not error <= most:
        raise CheckpointError(f"{what}: answers differ from ours by {error:.1e} of their standard deviation; it is not kept")
    return error


def check_peer(loaded: Loaded, folder: Path, library: str) -> float:
    """Through the library itself: its answers, and what its classifiers are given, against ours.

    Raises NotVerified where it is not installed, CheckpointError if answers differ or the library fails on the folder.
    """
    peer = _PEERS[library](loaded, folder)
    try:
        error = _held(loaded, peer, torch.float32, folder)
        if not error <= EQUAL:      # rounding, or another model?
            try:
                error = _held(loaded, peer, torch.float64, folder)
            except RuntimeError:    # it computes in fp32 whatever it is given
                return _judged(error, str(folder), ROUNDING)
    except UserError:
        raise
    except Exception as broken:
        raise CheckpointError(f"{folder}: {library} itself fails on it ({said(broken)})") from None
    return _judged(error, str(folder), EQUAL)


@torch.no_grad()
def _held(loaded: Loaded, peer: Peer, dtype: torch.dtype, folder: Path) -> float:
    model = loaded.model if dtype == torch.float32 else copy.deepcopy(loaded.model).to(dtype)
    images = pictures(loaded).to(dtype)
    peer.model.to(dtype)
    ours = _answers(lambda: model(images), own_classifiers(model))
    theirs = _answers(lambda: peer.answer(peer.model, images), peer.classifiers)
    if len(ours) != len(theirs):
        raise CheckpointError(f"{folder}: {peer.library} has {plural(len(theirs) - 1, 'classifier')} where ours has {len(ours) - 1}")
    given = [their[..., :our.shape[-1]] for our, their in zip(ours[1:], theirs[1:], strict=True)]      # DINOv2's gives its more besides
    return max(difference(our, their, str(folder)) for our, their in zip(ours, [theirs[0], *given], strict=True))


def own_classifiers(model: nn.Module) -> list[nn.Module]:
    """The last layers of ours, as far as there are some."""
    named = dict(model.named_modules())
    return [named[name] for name in ("head", "head.fc", "head_dist") if isinstance(named.get(name), nn.Linear)]


def _answers(ask: Callable[[], Tensor], classifiers: Sequence[nn.Module]) -> list[Tensor]:
    """What is answered, and what each classifier was given: one that begins at zero would hide everything before it."""
    given: list[Tensor] = []
    hooks = [classifier.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for classifier in classifiers]
    try:
        return [ask(), *given]
    finally:
        for hook in hooks:
            hook.remove()


def _imported(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as absent:
        if absent.name == name:
            raise NotVerified(f"{name} is not installed here; {remedy} to have it checked") from None
        raise _broken(name, absent) from None
    except Exception as broken:     # what it needs besides may be there and not fit
        raise _broken(name, broken) from None


def _broken(name: str, error: Exception) -> NotVerified:
    """Of a library that is there and does not work: nothing is known about what was written."""
    return NotVerified(f"{name} is here but does not work ({said(error)}); usually torchvision was made for another torch: install the one "
                       f"for torch {torch.__version__} from where that torch came, or, for transformers, remove torchvision")


def _of_transformers(loaded: Loaded, folder: Path) -> Peer:
    transformers = _imported("transformers", "pip install 'vitscale[hf]'")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    kind = kind_of_file(read_object(folder / CONFIG))
    known = KINDS[kind]
    changes: dict[str, Any] = {"mask_ratio": 0.0} if known.base == "ViTMAEModel" else {}        # else it hides patches at random
    with _quiet("transformers"):
        try:
            model = getattr(transformers, known.architecture if loaded.section.classes else known.base).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, **changes).eval()
        except ImportError as broken:       # its classes are imported when they are asked for
            raise _broken("transformers", broken) from None
        except Exception as broken:
            raise CheckpointError(f"{folder}: transformers itself cannot load it ({said(broken)})") from None
    named = dict(model.named_modules())
    classifiers = [named[name] for name in ("classifier", "cls_classifier", "distillation_classifier") if name in named]

    def answer(model: Any, images: Tensor) -> Tensor:
        output = model(**_asked(kind, model, images))
        return output.logits if loaded.section.classes else _pooled(loaded, kind, output)

    return Peer("transformers", model, answer, [one for one in classifiers if isinstance(one, nn.Linear)])


def _of_timm(loaded: Loaded, folder: Path) -> Peer:
    timm = _imported("timm", "pip install timm")
    with _quiet("timm"):
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        except Exception as broken:
            raise CheckpointError(f"{folder}: timm itself cannot load it ({said(broken)})") from None
    found = model.get_classifier()
    both = found if isinstance(found, tuple) else (found,)
    return Peer("timm", model, lambda model, images: model(images), [one for one in both if isinstance(one, nn.Linear)])


_PEERS: dict[str, Callable[[Loaded, Path], Peer]] = {"transformers": _of_transformers, "timm": _of_timm}


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing of a library's log but errors."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _asked(kind: str, model: Any, images: Tensor) -> dict[str, Any]:
    """What a model's forward takes: images, or SigLIP 2's rows of patches with their places."""
    if not kind.startswith("siglip2"):
        return {"pixel_values": images, "return_dict": True}
    patch = getattr(model.config, "vision_config", model.config).patch_size
    rows = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)     # (B, h, w, P, P, C)
    grid = torch.tensor(rows.shape[1:3]).expand(len(images), 2)
    return {"pixel_values": rows.flatten(3).flatten(1, 2), "spatial_shapes": grid,
            "pixel_attention_mask": torch.ones(len(images), rows.shape[1] * rows.shape[2], dtype=torch.int64)}


def _pooled(loaded: Loaded, kind: str, output: Any) -> Tensor:
    """Our pooled features, of what a class without a classifier gives."""
    pool = getattr(loaded.section, "pool", "")
    if KINDS[kind].pooler or pool == "attention" or (pool == "mean" and getattr(loaded.section, "pool_norm", False)):
        return output.pooler_output
    tokens: Tensor = output.last_hidden_state
    return tokens[:, 0] if pool == "token" else tokens[:, getattr(loaded.section, "registers", 0):].mean(dim=1)


def check_own(loaded: Loaded, folder: Path) -> float:
    """Read back by ourselves."""
    again = load(folder)
    return error_of(replace(loaded, model=loaded.model.cpu()), again.model, str(folder), most=EQUAL)
