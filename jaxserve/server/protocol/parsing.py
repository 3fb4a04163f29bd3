"""From the bytes of a body to a checked request model, with errors in our own words."""

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import pydantic
import pydantic_core
from starlette.requests import Request

from jaxserve.errors import InvalidRequestError
from jaxserve.server.errors import BodyTooLargeError, MediaTypeError
from jaxserve.server.protocol.fields import served_fields

MAX_SHOWN_CHARS = 60
# Bounded in depth and breadth, not only in the end: values come from anybody.
SHORT = reprlib.Repr(maxlevel=2, maxlist=3, maxdict=3, maxstring=MAX_SHOWN_CHARS, maxlong=25)

# What a field wants, by the kind of pydantic's complaint.
WANTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a string",
    "tuple_type": "a list",
}


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Return the body, refusing one that is too long before reading it where it says so.

    Starlette's own limit answers in plain text, which OpenAI's clients cannot read.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLargeError(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError(max_bytes)
    return bytes(body)


async def read_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """Return the body as a JSON object; raises InvalidRequestError when it is none."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError
    return decode(await read_body(request, max_bytes=max_bytes))


def decode(body: bytes) -> dict[str, Any]:
    """Return a JSON object, refusing NaN, infinities, lone surrogates and bad UTF-8."""
    try:
        fields = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            "the body is not JSON: it must be UTF-8, of finite numbers, and not nested too deep",
            param=None,
            code="invalid_json",
        ) from error
    if not isinstance(fields, dict):
        raise InvalidRequestError(
            f"the body must be a JSON object, got {show(fields)}", param=None, code="invalid_json"
        )
    return fields


def parse[T: pydantic.BaseModel](fields: Mapping[str, Any], model: type[T]) -> T:
    """Return a chat's or completion's fields as `model`; see `served_fields` and `validate`."""
    return validate(served_fields(fields), model)


def validate[T: pydantic.BaseModel](fields: Mapping[str, Any], model: type[T]) -> T:
    """Return an object as `model`; raises InvalidRequestError naming the field at fault."""
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _refusal(error) from error


def show(value: object) -> str:
    """Return a short, bounded picture of a bad value for an error message."""
    text = SHORT.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _refusal(error: pydantic.ValidationError) -> InvalidRequestError:
    """Say the first complaint of pydantic in our words."""
    # No more than this one is looked at: a long list of wrong values has as many complaints.
    first = error.errors(include_url=False, include_context=True)[0]
    param = _param(first["loc"])
    context: Mapping[str, Any] = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return InvalidRequestError(
                f"there is no field {param}", param=param, code="unknown_field"
            )
        case "missing":
            return InvalidRequestError(f"{param} is required", param=param, code="missing_field")
        case "literal_error":
            wanted = "one of " + str(context["expected"])
        case "string_too_long":
            wanted = f"at most {context['max_length']} characters"
        case "string_too_short":
            wanted = f"at least {context['min_length']} characters"
        case "too_long":
            wanted = f"at most {context['max_length']} entries"
        case "too_short":
            wanted = f"at least {context['min_length']} entries"
        case "greater_than_equal":
            wanted = f"at least {context['ge']}"
        case "less_than_equal":
            wanted = f"at most {context['le']}"
        case "string_pattern_mismatch":
            wanted = f"text that matches {context['pattern']}"
        case "wanted":
            wanted = context["wanted"]
        case kind:
            wanted = WANTED.get(kind, "a value of another kind")
    return InvalidRequestError(f"{param} must be {wanted}, got {show(first['input'])}", param=param)


def _param(location: tuple[int | str, ...]) -> str:
    """Return a place in the body as `messages[0].content`, without the tags of `kind_of`."""
    place = ""
    for step in location:
        if isinstance(step, str) and step.startswith("("):
            continue
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    return place[:MAX_SHOWN_CHARS]


def wanted(what: str) -> pydantic_core.PydanticCustomError:
    """Return the error that a field's own check raises when the value is not `what`."""
    return pydantic_core.PydanticCustomError("wanted", "wanted", {"wanted": what})


def kind_of(value: object, default: str | None = None) -> str | None:
    """Return the tag of an object, JSON or model, in a union: its `type` in brackets, if any."""
    kind = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", None)
    return f"({kind})" if isinstance(kind, str) else None


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors speak of fields by the names that the body has for them."""
    try:
        yield
    except InvalidRequestError as error:
        name = names.get(error.param or "")
        if name is not None and error.param is not None:
            if error.param != "prompt":
                error.message = error.message.replace(error.param, name)
            error.param = name
        raise
