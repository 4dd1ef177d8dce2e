"""A stretch of steps as people write it, `steps:20-25`: which of them are profiled."""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

_TEXT = re.compile(r"^steps:([0-9]{1,12})-([0-9]{1,12})$")
LONGEST = 100       # steps: a trace of more is larger than what programs show it


@dataclass(frozen=True)
class Steps:
    """From `first` to `last`, both included; counted from 1 as in metrics.jsonl."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: object) -> "Steps":
        """Raises ValueError with a sentence for the user."""
        if isinstance(text, Steps):
            return text
        match = _TEXT.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("wants a stretch of steps, such as 'steps:20-25'")
        found = cls(int(match[1]), int(match[2]))
        if not 1 <= found.first <= found.last:
            raise ValueError("wants a first step of at least 1, and a last one not before it")
        if found.last - found.first >= LONGEST:
            raise ValueError(f"wants at most {LONGEST} steps")
        return found

    def __str__(self) -> str:
        return f"steps:{self.first}-{self.last}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def validate(value: object) -> Steps:
            try:
                return cls.parse(value)
            except ValueError as error:
                raise PydanticCustomError("steps", "{reason}", {"reason": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate, serialization=core_schema.plain_serializer_function_ser_schema(str))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _TEXT.pattern, "examples": ["steps:20-25"]}
