"""What bodies ask of the form of an answer: OpenAI's `response_format`, and vLLM's fields."""

import json
from collections.abc import Mapping
from typing import Any

from jaxserve.errors import InvalidRequestError
from jaxserve.server.protocol.parsing import renamed, show
from jaxserve.structured_outputs import KINDS, StructuredOutputsParams

# vLLM's older fields, and what each is of `structured_outputs`.
GUIDED: Mapping[str, str] = {
    "guided_json": "json",
    "guided_json_object": "json_object",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_OPTIONS: Mapping[str, type] = {
    "disable_any_whitespace": bool,
    "disable_additional_properties": bool,
    "whitespace_pattern": str,
    "disable_fallback": bool,  # there is one way to follow a grammar, and so no other to fall to
}
_OF_FORMAT: Mapping[str, frozenset[str]] = {
    "text": frozenset(),
    "json_object": frozenset(),
    "json_schema": frozenset({"json_schema"}),
    "structural_tag": frozenset({"structures", "triggers", "at_least_one", "stop_after_first"}),
}
_OF_SCHEMA = frozenset({"name", "schema", "strict", "description"})


def structured_outputs(
    *,
    response_format: Mapping[str, Any] | None,
    structured: Mapping[str, Any] | None,
    guided: Mapping[str, Any],
) -> StructuredOutputsParams | None:
    """Return what an answer must look like, None if it is free; raises InvalidRequestError.

    guided: the older fields, those that are given.
    """
    asked = {
        "response_format": None if response_format is None else _of_format(response_format),
        "structured_outputs": None if structured is None else _of_fields(structured),
        next(iter(guided), ""): _of_guided(guided) if guided else None,
    }
    given = [name for name, params in asked.items() if params is not None]
    if len(given) > 1:
        raise InvalidRequestError(
            f"{given[1]} cannot be given with {given[0]}: an answer has one form", param=given[1]
        )
    return asked[given[0]] if given else None


def structured_names(
    response_format: Mapping[str, Any] | None, guided: Mapping[str, Any]
) -> dict[str, str]:
    """Return what the fields of `structured_outputs` are called in a body that has them."""
    if response_format is not None:
        return {f"structured_outputs.{kind}": "response_format" for kind in KINDS}
    return {f"structured_outputs.{GUIDED[name]}": name for name in guided if name in GUIDED}


def _of_format(fields: Mapping[str, Any]) -> StructuredOutputsParams | None:
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _OF_FORMAT:
        wanted = ", ".join(_OF_FORMAT)
        raise _bad_format("response_format.type", f"must be one of {wanted}, got {show(kind)}")
    _check_names("response_format", fields, _OF_FORMAT[kind] | {"type"})
    with renamed(structured_names(fields, {})):
        match kind:
            case "text":
                return None
            case "json_object":
                return StructuredOutputsParams(json_object=True)
            case "structural_tag":
                return StructuredOutputsParams(structural_tag=json.dumps(dict(fields)))
    place = "response_format.json_schema"
    inner = fields.get("json_schema")
    if not isinstance(inner, dict):
        raise _bad_format(place, f"must be an object with a name and a schema, got {show(inner)}")
    _check_names(place, inner, _OF_SCHEMA)
    if not isinstance(inner.get("name"), str):
        raise _bad_format(f"{place}.name", f"must be a string, got {show(inner.get('name'))}")
    if not isinstance(inner.get("strict"), bool | None):
        raise _bad_format(f"{place}.strict", f"must be true or false, got {show(inner['strict'])}")
    schema = inner.get("schema")
    if schema is None:
        return StructuredOutputsParams(json_object=True)
    if not isinstance(schema, dict | bool):
        raise _bad_format(f"{place}.schema", f"must be a JSON schema, got {show(schema)}")
    with renamed(structured_names(fields, {})):
        return StructuredOutputsParams(json=schema)


def _of_fields(fields: Mapping[str, Any]) -> StructuredOutputsParams:
    _check_names("structured_outputs", fields, {*KINDS, *_OPTIONS})
    for name, kind in _OPTIONS.items():
        if not isinstance(fields.get(name), kind | None):
            wanted = "a string" if kind is str else "true or false"
            raise _bad_format(
                f"structured_outputs.{name}", f"must be {wanted}, got {show(fields[name])}"
            )
    left = {name: value for name, value in fields.items() if value is not None}
    left.pop("disable_fallback", None)
    if isinstance(left.get("structural_tag"), dict):
        left["structural_tag"] = json.dumps(left["structural_tag"])
    return StructuredOutputsParams(**left)


def _of_guided(fields: Mapping[str, Any]) -> StructuredOutputsParams | None:
    left = {GUIDED[name]: value for name, value in fields.items() if name in GUIDED}
    if not any(left.values()):
        return None
    with renamed(structured_names(None, fields)):
        return StructuredOutputsParams(
            **left, whitespace_pattern=fields.get("guided_whitespace_pattern")
        )


def _check_names(place: str, fields: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    for name in fields:
        if name not in known:
            raise InvalidRequestError(
                f"there is no field {place}.{show(name)}", param=place, code="unknown_field"
            )


def _bad_format(place: str, complaint: str) -> InvalidRequestError:
    return InvalidRequestError(f"{place} {complaint}", param=place)
