"""Combine JSON schemas into one, keeping the definitions and references of each."""

from collections.abc import Mapping, Sequence
from typing import Any

type Schema = Mapping[str, Any] | bool

# Keywords whose values are not schemas.
VALUES = {"const", "enum", "default", "examples"}
# llguidance reads its options at the root of a schema only.
OPTIONS = "x-guidance"


def schema_or_calls(
    answer: Schema, calls: Sequence[tuple[Mapping[str, Any], Schema]]
) -> dict[str, Any]:
    """Return a schema that accepts either an answer or one function call.

    calls: for each function, the object that calls it, with None in place of the arguments, and
    the schema of the arguments.
    """
    either: list[Schema] = [{"$ref": "#/$defs/answer"}]
    parts = {"answer": answer}
    for number, (call, arguments) in enumerate(calls):
        parts[f"arguments{number}"] = arguments
        reference = {"$ref": f"#/$defs/arguments{number}"}
        properties = {
            key: reference if value is None else {"const": value} for key, value in call.items()
        }
        either.append(
            {
                "type": "object",
                "properties": properties,
                "required": [*properties],
                "additionalProperties": False,
            }
        )
    places = {name: f"#/$defs/{name}" for name in parts}
    whole: dict[str, Any] = {
        "anyOf": either,
        "$defs": {name: _moved(schema, places[name]) for name, schema in parts.items()},
    }
    if isinstance(answer, Mapping) and OPTIONS in answer:
        whole[OPTIONS] = answer[OPTIONS]
    return whole


def _moved(value: Any, place: str) -> Any:
    """Return a schema with its references to the root changed to `place`."""
    match value:
        case Mapping():
            return {
                key: place + inner[1:]
                if key == "$ref" and isinstance(inner, str) and inner.startswith("#")
                else inner
                if key in VALUES
                else _moved(inner, place)
                for key, inner in value.items()
            }
        case list():
            return [_moved(inner, place) for inner in value]
    return value
