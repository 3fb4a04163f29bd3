"""Validate JSON values as pydantic models, with error messages of our own."""

import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pydantic
import pydantic_core

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import Body
from jaxserve.frontend.schema.ignored import IgnoredFields, show_place

MAX_SHOWN_CHARS = 60
MAX_COMPLAINTS = 8
# The name of a top-level field in an error message.
FIELD = re.compile(r"(?<![\w.])\w+(?![\w\[]|\.\w)")


class _Short(reprlib.Repr):
    """A repr that is bounded in depth and breadth, because values are untrusted."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Show the first few fields. reprlib would sort all of them first."""
        few = dict(islice(x.items(), self.maxdict + 1))
        return super().repr_dict(few, level)


SHORT = _Short(maxlevel=2, maxlist=3, maxdict=3, maxstring=MAX_SHOWN_CHARS, maxlong=25)

# Expected values, by pydantic's error type; filled in from the context of the error.
WANTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "one of {expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "string_type": "a string",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "tuple_type": "a list",
    "wanted": "{wanted}",
}


def parse[T: Body](
    fields: Mapping[str, Any], model: type[T], ignored: IgnoredFields | None = None
) -> T:
    """Validate an object as `model`, and add its unread fields to `ignored`.

    ignored: None for an object that the server itself built. Raises InvalidRequestError naming the
    field at fault.
    """
    if ignored is None:
        ignored = IgnoredFields()
    try:
        body = model.model_validate(fields)
    except pydantic.ValidationError as error:
        if not ignored.is_strict:
            # Reported because a mistyped name explains why a field is missing.
            ignored.add_all(fields, model, None)
        raise _refusal(error, fields) from error
    ignored.add_all(fields, model, body)
    return body


def show(value: object) -> str:
    """Return a short repr of a value for an error message."""
    text = SHORT.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _refusal(error: pydantic.ValidationError, body: Mapping[str, Any]) -> InvalidRequestError:
    """Return our error for the first of pydantic's complaints."""
    # Look at few of them, because a long list of wrong values has as many complaints.
    complaints = [
        (_place(complaint, body), complaint)
        for complaint in error.errors(include_url=False, include_context=True)[:MAX_COMPLAINTS]
    ]
    # Each member of a union complains. Report the one that got deepest into the value.
    first, _ = complaints[0]
    complaints = [each for each in complaints if each[0][: len(first)] == first]
    place = max((place for place, _ in complaints), key=len)
    found = [complaint for other, complaint in complaints if other == place]
    param = show_place(place)
    match found[0]["type"]:
        case "unsupported":
            return InvalidRequestError(
                f"{param} {found[0]['ctx']['reason']}", param=param, code="unsupported_field"
            )
        case "extra_forbidden":
            return InvalidRequestError(
                f"there is no field {param}", param=param, code="unknown_field"
            )
        case "missing":
            return InvalidRequestError(f"{param} is required", param=param, code="missing_field")
    wanted = " or ".join(dict.fromkeys(_wanted(complaint) for complaint in found))
    shown = show(found[0]["input"])
    return InvalidRequestError(
        f"{param or 'the body'} must be {wanted}, got {shown}", param=param or None
    )


def _wanted(complaint: pydantic_core.ErrorDetails) -> str:
    """Return a description of the expected value."""
    words = WANTED.get(complaint["type"], "a value of another kind")
    return words.format_map(complaint.get("ctx", {}))


def _place(complaint: pydantic_core.ErrorDetails, body: object) -> tuple[int | str, ...]:
    """Return the place in the body, without the type names that pydantic puts between."""
    location = complaint["loc"]
    place: list[int | str] = []
    for step in location:
        is_inner = step in body if isinstance(body, dict) else False
        if is_inner or (isinstance(body, list) and isinstance(step, int)):
            place.append(step)
            body = body[step]  # type: ignore[index]
    match complaint["type"]:
        case "missing":
            place.append(location[-1])
        case "unsupported":
            place.append(complaint["ctx"]["name"])
    return (*place,)


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Rename fields in errors raised inside the block to their names in the body."""
    try:
        yield
    except InvalidRequestError as error:
        name = names.get(error.param or "")
        if name is not None and error.param is not None:
            if error.param != "prompt":
                error.message = error.message.replace(error.param, name)
            error.param = name
        # Other fields in the message. Names without an underscore could be ordinary words.
        others = {old: new for old, new in names.items() if "_" in old}
        error.message = FIELD.sub(lambda found: others.get(found[0], found[0]), error.message)
        raise
