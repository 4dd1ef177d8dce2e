"""A backbone that another installed package builds: its options are checked against the builder's signature, and what it gave is too."""

import inspect
import traceback
from collections.abc import Callable
from typing import Annotated, Any, get_origin

from pydantic import BeforeValidator, create_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitscale.errors import RecipeError, UserError
from vitscale.models.backbone import Backbone
from vitscale.recipe.external import entry_of, origin
from vitscale.recipe.fields import Section
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import External


def build(model: External) -> Backbone:
    """builder(model, **options), on torch's current default device.  Imports the package that offers the family, and no other.

    Raises RecipeError where none does, for options that its builder does not take, and for a model that cannot be trained exactly.
    """
    entry = entry_of(model)
    try:
        builder = entry.load()
        built = builder(model, **_options(builder, model))
    except UserError:
        raise
    except Exception as error:      # another's code can raise anything; the same would come of every try, so that it is for people to mend
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RecipeError(f"model.family {model.family}: {origin(entry)} failed, {type(error).__name__}: {error} "
                          f"({place.filename}:{place.lineno})") from error
    if (reason := _unsound(built, model)) is not None:
        raise RecipeError(f"model.family {model.family}: what {origin(entry)} built {reason}")
    assert isinstance(built, Backbone)
    return built


def _options(builder: Callable[..., Any], model: External) -> dict[str, Any]:
    """What the builder takes after the section: by its own names, types and defaults.  One that takes any checks them itself."""
    keys = list(inspect.signature(builder, eval_str=True).parameters.values())[1:]
    if any(key.kind is key.VAR_KEYWORD for key in keys):
        return dict(model.options)
    fields: dict[str, Any] = {}
    for key in keys:
        kind = Any if key.annotation is key.empty else key.annotation
        if get_origin(kind) is tuple:
            kind = Annotated[kind, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
        fields[key.name] = (kind, ... if key.default is key.empty else key.default)
    section = check_section(create_model(model.family, __base__=Section, **fields), model.options, "model.options")
    return {name: getattr(section, name) for name in fields}


def _unsound(built: Any, model: External) -> str | None:
    """Why a model cannot be trained as others are: what is wrong with it, and what to do."""
    if not isinstance(built, Backbone):
        return f"is no vitscale.models.Backbone, but of {type(built).__module__}.{type(built).__name__}"
    for name, module in built.named_modules():
        if isinstance(module, _BatchNorm):
            return (f"has batch statistics ({name}: {type(module).__name__}), with which a step would be another on every number of ranks; "
                    "norm by sample: LayerNorm, GroupNorm")
    buffers = [name for name, _ in built.named_buffers()]
    if buffers and type(built).reset_buffers is Backbone.reset_buffers:
        return f"has buffers ({', '.join(buffers[:5])}) that nobody fills: it is built on the meta device, so give it a reset_buffers()"
    if model.drop_path and not any(built.drop_rates):
        return f"has no stochastic depth (its drop_rates are none), and model.drop_path is {model.drop_path:g}; take 0"
    if model.dropout and not any(isinstance(module, nn.Dropout) and module.p for module in built.modules()):
        return f"has no dropout, and model.dropout is {model.dropout:g}; take 0"
    return None
