"""What the bodies of all requests share: strict kinds, and null for what is not given."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from jaxserve.server.protocol.parsing import wanted

INT32_MAX = 2**31 - 1
# A salt becomes part of a cache key: vLLM's rule, no character that could split one.
CACHE_SALT = r"^[^@/\\\x00]{1,128}$"


def _strings(value: object) -> tuple[str, ...]:
    """One string, or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise wanted("a string or a list of strings")
    return tuple(values)


class Body(BaseModel):
    """What all bodies share: strict kinds, finite numbers, no unknown fields, null is absent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


type Int32 = Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX)]
type TokenIds = Annotated[list[int], FailFast()]
type Strings = Annotated[
    tuple[str, ...], BeforeValidator(_strings, json_schema_input_type=str | list[str])
]
