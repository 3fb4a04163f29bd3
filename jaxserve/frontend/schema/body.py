"""Base class and shared field types of request bodies."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from jaxserve.api.sampling_params import (
    LIMITS,
    MAX_BAD_WORDS,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
)
from jaxserve.frontend.schema.fields import Place, Unread

INT32_MAX = 2**31 - 1
# As in vLLM: the salt is part of a cache key, so it must not contain separators.
CACHE_SALT = r"^[^@/\\\x00]{1,128}$"
# Maximum number of fields of an object, including unknown ones; the largest model declares 60.
MAX_FIELDS = 256
MAX_METADATA = 16
# Maximum number of parts, or of calls, in a message.
MAX_PARTS = 4096
# Maximum number of token ids in a field without a limit of its own.
MAX_TOKEN_IDS = 2**20
NULL = {"type": "null"}


class Body(BaseModel):
    """Base class of request bodies: strict types, finite numbers, and null counts as absent.

    Unknown fields are ignored here and reported by `IgnoredFields`. unread: known fields that are
    removed before validation.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)
    unread: ClassVar[Unread] = Unread()

    def unread_parts(self) -> Iterable[Place]:
        """Return the places, within the object, of values that are accepted and have no effect."""
        return ()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        if len(fields) > MAX_FIELDS:
            raise wanted(f"an object of at most {MAX_FIELDS} fields")
        return cls.unread.served(fields)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Add null and the unread fields to the schema in the OpenAPI document."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        required = described.get("required", ())
        described["properties"] = {
            name: field if name in required else _or_null(field)
            for name, field in described.get("properties", {}).items()
        } | cls.unread.schemas()
        if cls.model_config["extra"] == "forbid":
            described["additionalProperties"] = NULL
        return schema


class Dropped(Body):
    """Object that this server cannot use. It is reported by its type, and not validated."""

    model_config = ConfigDict(extra="allow")

    type: str


class ExactBody(Body):
    """Body that refuses unknown fields, because a mistyped one would drop a constraint."""

    model_config = ConfigDict(extra="forbid")


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf", [])
    if NULL not in options:
        default = {"default": schema.pop("default")} if "default" in schema else {}
        schema = {"anyOf": [*(options or [schema]), NULL], **default}
    elif schema["default"] is None:
        del schema["default"]
    return schema


def given(name: str, *, otherwise: Sequence[object] = (None,)) -> dict[str, Any]:
    """Return the schema of objects with a field whose value is not one of `otherwise`."""
    return {"required": [name], "properties": {name: {"not": {"enum": [*otherwise]}}}}


def wanted(what: str) -> PydanticCustomError:
    """Return the error for a value that is not `what`, to raise in a validator."""
    return PydanticCustomError("wanted", "wanted", {"wanted": what})


def at_most(limit: int) -> BeforeValidator:
    """Return a validator that limits the entries of an object before they are validated."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > limit:
            raise PydanticCustomError("too_long", "too_long", {"max_length": limit})
        return value

    return BeforeValidator(check)


type Metadata = Annotated[dict[str, str], at_most(MAX_METADATA), Field(max_length=MAX_METADATA)]


def by_type(
    what: str, *, default: str | None = None, kind_of: Callable[[str], str] = str
) -> Discriminator:
    """Return the discriminator of a union by the `type` of an object, in JSON or as a model.

    The members are tagged by their type in parentheses, such as Tag("(text)"), and a string by
    Tag("str"). what: the expected value, for the error message. default: the type of objects
    without one. kind_of: maps types to tags, for members with several types.
    """

    def tag(value: object) -> str | None:
        if isinstance(value, str):
            return "str"
        if isinstance(value, dict):
            kind = value.get("type") or default
        else:
            kind = getattr(value, "type", None)
        return f"({kind_of(kind)})" if isinstance(kind, str) else None

    return Discriminator(
        tag,
        custom_error_type="wanted",
        custom_error_message="wanted",
        custom_error_context={"wanted": what},
    )


def limits_schema(name: str, **otherwise: int) -> WithJsonSchema:
    """Return the schema of a parameter with its limits, which SamplingParams checks."""
    return WithJsonSchema({**LIMITS[name].schema(), **otherwise})


def _strings(value: object) -> tuple[str, ...]:
    """Validate a string or a list of strings, and return a tuple."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise wanted("a string or a list of strings")
    return tuple(values)


def texts_schema(max_count: int, max_chars: int | None = None) -> WithJsonSchema:
    """Return the schema of a list of non-empty strings, which SamplingParams checks."""
    return WithJsonSchema({"type": "array", "items": _text(max_chars), "maxItems": max_count})


def _text(max_chars: int | None) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return text if max_chars is None else text | {"maxLength": max_chars}


def _strings_schema(max_count: int, max_chars: int | None = None) -> WithJsonSchema:
    texts = texts_schema(max_count, max_chars).json_schema
    return WithJsonSchema({"anyOf": [_text(max_chars), texts]})


Int32 = Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX)]


def _ids_at_once(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Validate a list of token ids at once; validate each only to name an invalid one."""
    is_list = isinstance(value, list) and 0 < len(value) <= MAX_TOKEN_IDS
    if is_list and set(map(type, value)) == {int} and min(value) >= 0:
        return value
    return check(value)


type TokenIds = Annotated[
    list[Annotated[int, Field(ge=0)]],
    FailFast(),
    Field(max_length=MAX_TOKEN_IDS),
    WrapValidator(_ids_at_once),
]
# -1 keeps as many tokens as leave room for the answer.
type Truncation = Literal[-1] | Annotated[Int32, Field(ge=1)]
type Stop = Annotated[
    tuple[str, ...],
    BeforeValidator(_strings),
    _strings_schema(MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS),
]
type BadWords = Annotated[
    tuple[str, ...], BeforeValidator(_strings), _strings_schema(MAX_BAD_WORDS)
]
