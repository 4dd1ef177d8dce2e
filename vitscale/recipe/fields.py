"""The kinds of values that keys of a recipe take, what a section of keys is, and where the code of a family of models lies."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from vitscale.metrics import JUDGES, OF_FEATURES


def whole(value: Any) -> Any:
    """`14e6` is a count as people write it; `1.5` is not."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _jitter(value: Any) -> Any:
    """One number for brightness, contrast and saturation, or three numbers, or four with the hue -> a tuple of four."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value] * 3
    if isinstance(value, (list, tuple)):
        return tuple(value) + (0.0,) * (len(value) == 3)
    return value


def plain(value: Any) -> Any:
    """Keys with values as a recipe writes them down: null, true, numbers, text, lists and keys of such."""
    def is_plain(one: Any) -> bool:
        if isinstance(one, dict):
            return all(isinstance(key, str) and is_plain(inner) for key, inner in one.items())
        if isinstance(one, list):
            return all(map(is_plain, one))
        return one is None or isinstance(one, (bool, int, str)) or (isinstance(one, float) and math.isfinite(one))

    if not isinstance(value, dict) or not is_plain(value):
        raise PydanticCustomError("plain", "wants keys with plain values: null, true, finite numbers, text, lists, or keys of such")
    return value


def _urls(value: Any) -> Any:
    """One brace URL or glob, or a list of them -> a tuple."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(url, str) and url for url in value):
        raise PydanticCustomError("urls", "wants a brace URL or glob of shards, or a list of them")
    return tuple(value)


Count = Annotated[int, Field(ge=1), BeforeValidator(whole)]
CountOrZero = Annotated[int, Field(ge=0), BeforeValidator(whole)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Stretch = Annotated[float, Field(gt=1)]
NotNegative = Annotated[float, Field(ge=0)]
_Url = Annotated[str, Field(min_length=1)]
Urls = Annotated[tuple[str, ...], BeforeValidator(_urls, json_schema_input_type=_Url | Annotated[list[_Url], Field(min_length=1)])]
Depths = Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(pair)]
Windows = Annotated[tuple[CountOrZero, ...], Field(min_length=1), BeforeValidator(pair)]
Interval = Annotated[tuple[Positive, Positive], BeforeValidator(pair)]
Colour = Annotated[tuple[float, float, float], BeforeValidator(pair)]
_Turn = Annotated[float, Field(ge=0, le=0.5)]
_Jitters = NotNegative | tuple[NotNegative, NotNegative, NotNegative] | tuple[NotNegative, NotNegative, NotNegative, _Turn]
Jitter = Annotated[
    tuple[NotNegative, NotNegative, NotNegative, _Turn], BeforeValidator(_jitter, json_schema_input_type=_Jitters)]

if TYPE_CHECKING:
    Judge = str
    OneOfFeatures = str
else:
    OneOfFeatures = Literal[tuple(OF_FEATURES)]
    Judge = Literal[tuple(one.column for one in JUDGES)]        # the numbers of evaluations that runs can be judged by


class Section(BaseModel):
    """Frozen; no unknown keys; no silent conversion of text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class Code:
    """Where the code of a family lies: module:function in vitscale/, each given a section of the family.  Imported when it is asked for."""

    build: str                              # -> the backbone
    anatomy: str | None = None              # -> its analytic formulas (plan/anatomy.py); None: nobody has written down what it costs
    problems: str | None = None             # -> [(dotted key, sentence)], what shows to be wrong only once the size is known


def code_at(place: str) -> Callable[[Any], Any]:
    """The function at `module:function`."""
    module, _, name = place.partition(":")
    found: Callable[[Any], Any] = getattr(importlib.import_module(f"vitscale.{module}"), name)
    return found
