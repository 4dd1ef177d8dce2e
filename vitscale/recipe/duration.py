"""A length of training as people write it: `300 epochs`, `90000 steps`, `5e8 images`; and the arithmetic of steps and images."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

Unit = Literal["epochs", "steps", "images"]
_TEXT = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*(epoch|step|image)s?\s*$")


@dataclass(frozen=True)
class Duration:
    """`amount` of `unit`.  Everything the program schedules is counted in images seen; this is how people say it."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """`"90000 steps"` -> Duration(90000, "steps").  Raises ValueError with a sentence for the user."""
        if isinstance(text, Duration):
            return text
        match = _TEXT.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("wants a number and a unit, such as '300 epochs', '90000 steps' or '5e8 images'")
        amount, unit = float(match[1]), match[2] + "s"
        if math.isinf(amount):
            raise ValueError("wants a finite number")
        if unit != "epochs" and amount != int(amount):
            raise ValueError(f"wants a whole number of {unit}")
        return cls(amount, unit)  # type: ignore[arg-type]

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit}"

    def images(self, num_samples: int | None, global_batch: int, repeats: int = 1) -> int:
        """How many images have been seen when this duration has passed.

        An epoch is `num_samples` images and ends with a partial batch when global_batch does not divide it, so `steps` steps are
        whole epochs plus a remainder.  With `repeats` (data.repeats) only the last of that many epochs does.  An endless stream
        (`num_samples` None, a mixture) has no epochs: ValueError for `epochs`.
        """
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
        def validate(value: object) -> Duration:
            try:
                return cls.parse(value)
            except ValueError as error:
                raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate, serialization=core_schema.plain_serializer_function_ser_schema(str))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _TEXT.pattern, "examples": ["300 epochs", "90000 steps", "5e8 images"]}
