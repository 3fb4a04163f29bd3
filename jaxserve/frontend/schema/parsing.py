"""From plain values to a checked request model, with errors in our own words."""

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
# A field at the top of a body, as errors speak of it.
FIELD = re.compile(r"(?<![\w.])\w+(?![\w\[]|\.\w)")


class _Short(reprlib.Repr):
    """Bounded in depth and breadth, not only in the end: values come from anybody."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Show the first few fields; reprlib would sort all of them."""
        few = dict(islice(x.items(), self.maxdict + 1))
        return super().repr_dict(few, level)


SHORT = _Short(maxlevel=2, maxlist=3, maxdict=3, maxstring=MAX_SHOWN_CHARS, maxlong=25)

# What a field wants, by the kind of pydantic's complaint, with the words of its context.
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
    """Return an object as `model`, and add its fields that nothing reads to `ignored`.

    ignored: None for an object that the server made itself. Raises InvalidRequestError naming the
    field at fault.
    """
    if ignored is None:
        ignored = IgnoredFields()
    try:
        body = model.model_validate(fields)
    except pydantic.ValidationError as error:
        if not ignored.is_strict:
            # A name that is mistyped explains why another is missing.
            ignored.add_all(fields, model, None)
        raise _refusal(error, fields) from error
    ignored.add_all(fields, model, body)
    return body


def show(value: object) -> str:
    """Return a short, bounded picture of a bad value for an error message."""
    text = SHORT.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _refusal(error: pydantic.ValidationError, body: Mapping[str, Any]) -> InvalidRequestError:
    """Say the first complaint of pydantic in our words."""
    # Few are looked at: a long list of wrong values has as many.
    complaints = [
        (_place(complaint, body), complaint)
        for complaint in error.errors(include_url=False, include_context=True)[:MAX_COMPLAINTS]
    ]
    # Where several kinds may stand, each complains. What was meant is the one that goes deepest.
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
    """Return what there should be instead of something."""
    words = WANTED.get(complaint["type"], "a value of another kind")
    return words.format_map(complaint.get("ctx", {}))


def _place(complaint: pydantic_core.ErrorDetails, body: object) -> tuple[int | str, ...]:
    """Return the place in the body: pydantic has names of its own between, of kinds of values."""
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
    """Let errors speak of fields by the names that the body has for them."""
    try:
        yield
    except InvalidRequestError as error:
        name = names.get(error.param or "")
        if name is not None and error.param is not None:
            if error.param != "prompt":
                error.message = error.message.replace(error.param, name)
            error.param = name
        # Another field that the error speaks of; words of plain English are no fields.
        others = {old: new for old, new in names.items() if "_" in old}
        error.message = FIELD.sub(lambda found: others.get(found[0], found[0]), error.message)
        raise
