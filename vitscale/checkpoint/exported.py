"""What a folder that was exported from here was exported from: believed where writing that anew gives the same folder, tensor by tensor.

Several sections of ours may be one and the same model to another library, which has fixed positions as a table and says nothing of others.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import UserError
from vitscale.models import parameter_shapes
from vitscale.models.attention import whole_bias
from vitscale.models.timm_config import timm_architecture, to_timm
from vitscale.models.transformers_config import config_of, kind_of
from vitscale.models.transformers_names import to_transformers
from vitscale.recipe import Model
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES

NOTE = "vitscale_model"         # the key of config.json
_MAY_DIFFER = {"id2label", "label2id", "dtype", "torch_dtype", "architectures", "hidden_dropout_prob", "drop_path_rate"}


def note_of(section: Model) -> dict[str, Any]:
    """What an export writes down of its section."""
    return section.model_dump(mode="json", exclude_defaults=True) | {"family": section.family}


def as_exported(config: Mapping[str, Any], weights: Mapping[str, Tensor],
                theirs: Mapping[str, Tensor], check: Callable[[Model], None]) -> tuple[Model, dict[str, Tensor]] | None:
    """(the section that was exported, its weights); None where the folder does not say, or has been changed since.

    `weights` by our names, as they were read without it, and `theirs`, as they stand in the file; `check` raises UserError for a section
    that is too large to be built.
    """
    given = config.get(NOTE)
    if not isinstance(given, Mapping):
        return None
    try:
        section = check_section(FAMILIES[str(given.get("family"))], dict(given), NOTE)
        check(section)
        shapes = parameter_shapes(section)
        mine = {name: _fitted(name, shape, weights) for name, shape in shapes.items()}
        if any(tuple(mine[name].shape) != shape for name, shape in shapes.items()):
            return None
        if "architecture" in config:
            name, arguments = timm_architecture(section)
            again, alike = to_timm(section, mine), config["architecture"] == name and _holds(config.get("model_args"), arguments)
        else:
            kind = kind_of(section)
            again = to_transformers(kind, section, mine)
            alike = _holds(config, config_of(kind, section, tuple(map(str, range(section.classes)))))
    except (UserError, KeyError, ValueError, RuntimeError):
        return None
    same = again.keys() == theirs.keys() and all(torch.equal(value.float(), theirs[name].float()) for name, value in again.items())
    return (section, mine) if alike and same else None


def _fitted(name: str, shape: tuple[int, ...], weights: Mapping[str, Tensor]) -> Tensor:
    """Ours of what was read: without rows that were filled up, and of a norm whose place makes no difference there."""
    other = name.removeprefix("fc_") if name.startswith("fc_norm.") else f"fc_{name}"
    value = weights[name] if name in weights else weights[other]
    if name == "pos_embed":
        return value[:, value.shape[1] - shape[1]:].clone()
    if name.endswith("attn.qkv.bias") and len(value) * 2 == shape[0] * 3:       # keys have none
        query, _, rest = value.chunk(3)
        return torch.cat([query, rest])
    if name.endswith("attn.qkv.bias") and len(value) * 3 == shape[0] * 2:
        return whole_bias(value)
    return value[tuple(slice(0, size) for size in shape)].clone()


def _holds(config: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether a mapping of a file says all that would be written."""
    return isinstance(config, Mapping) and all(
        _holds(config.get(key), value) if isinstance(value, Mapping) else config.get(key) == value
        for key, value in json.loads(json.dumps(wanted)).items() if key not in _MAY_DIFFER)
