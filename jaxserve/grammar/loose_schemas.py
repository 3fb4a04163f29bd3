"""Schemas of functions that are not strict, reduced to the supported keywords."""

from typing import Any

# Keywords that llguidance does not support. Removing one never makes a schema stricter.
UNKNOWN = frozenset(
    {
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
)
# Keywords whose values map names to schemas, and keywords whose values are not schemas.
NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
VALUES = frozenset({"const", "default", "enum", "examples", "required"})


def loosened(schema: Any) -> Any:
    """Return a schema without unsupported keywords and formats.

    OpenAI's API enforces the schemas of strict functions only, so an unsupported keyword in any
    other schema is not an error.
    """
    if isinstance(schema, list):
        return [loosened(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    left = {}
    for keyword, value in schema.items():
        if keyword in UNKNOWN or (keyword == "format" and value not in FORMATS):
            continue
        if keyword in VALUES:
            left[keyword] = value
        elif keyword in NAMED and isinstance(value, dict):
            left[keyword] = {name: loosened(inner) for name, inner in value.items()}
        else:
            left[keyword] = loosened(value)
    return left
