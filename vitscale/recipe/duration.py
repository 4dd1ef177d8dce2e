"""A length of training as people write it: `300 epochs`, `90000 steps`, `5e8 images`; and the arithmetic of steps and images.
Where a time is of use too (checkpoint.every): `15 minutes`."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

Unit = Literal["epochs", "steps", "images", "seconds", "minutes", "hours"]
SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
_NUMBER = r"^\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*"
_TEXT = re.compile(rf"{_NUMBER}(epoch|step|image)s?\s*$")
_TEXT_OR_TIME = re.compile(rf"{_NUMBER}(epoch|step|image|second|minute|hour)s?\s*$")


@dataclass(frozen=True)
class Duration:
    """`amount` of `unit`.  Everything the program schedules is counted in images seen; this is how people say it.

    Of a time (`seconds` is not None) nothing is counted: how far a run gets in it is known only as it goes.
    """

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: object, or_time: bool = False) -> "Duration":
        """`"90000 steps"` -> Duration(90000, "steps"); with `or_time` also "15 minutes".  Raises ValueError with a sentence for users."""
        if isinstance(text, Duration):
            text = str(text)
        match = _TEXT_OR_TIME.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("wants a number and a unit, such as '300 epochs', '90000 steps'"
                             + (", '5e8 images' or '15 minutes'" if or_time else " or '5e8 images'"))
        if f"{match[2]}s" in SECONDS and not or_time:
            raise ValueError("wants epochs, steps or images, which come the same each time; a time is for checkpoint.every alone")
        amount, unit = float(match[1]), match[2] + "s"
        if math.isinf(amount):
            raise ValueError("wants a finite number")
        if unit in ("steps", "images") and amount != int(amount):
            raise ValueError(f"wants a whole number of {unit}")
        return cls(amount, unit)  # type: ignore[arg-type]

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit}"

    @property
    def seconds(self) -> float | None:
        """Of a time; None of what is counted."""
        return self.amount * SECONDS[self.unit] if self.unit in SECONDS else None

    def images(self, num_samples: int | None, global_batch: int, repeats: int = 1) -> int:
        """How many images have been seen when this duration has passed.

        An epoch is `num_samples` images and ends with a partial batch when global_batch does not divide it, so `steps` steps are
        whole epochs plus a remainder.  With `repeats` (data.repeats) only the last of that many epochs does.  An endless stream
        (`num_samples` None, a mixture) has no epochs: ValueError for `epochs`, and for a time.
        """
        if self.unit in SECONDS:
            raise ValueError(f"how many images pass in {self} is known only as the run goes")
        if self.unit == "images":
            return int(self.amount)
        if self.unit == "epochs":
            if num_samples is None:
                raise ValueError("a mixture has no epochs; give the duration in steps or images")
            return round(self.amount * num_samples)
        steps = int(self.amount)
        if num_samples is None:
            return steps * global_batch
        stretch = num_samples * repeats
        stretches, rest = divmod(steps, -(-stretch // global_batch))
        return stretches * stretch + rest * global_batch

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _validated(or_time=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _TEXT.pattern, "examples": ["300 epochs", "90000 steps", "5e8 images"]}


class _OrTime:
    """What pydantic makes of the type below."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _validated(or_time=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _TEXT_OR_TIME.pattern, "examples": ["15 minutes", "2 epochs", "5000 steps"]}


DurationOrTime = Annotated[Duration, _OrTime]


def _validated(or_time: bool) -> core_schema.CoreSchema:
    def validate(value: object) -> Duration:
        try:
            return Duration.parse(value, or_time)
        except ValueError as error:
            raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from None

    return core_schema.no_info_plain_validator_function(validate, serialization=core_schema.plain_serializer_function_ser_schema(str))
