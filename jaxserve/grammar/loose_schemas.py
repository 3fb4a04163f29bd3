"""Schemas of functions that are not strict, without what no grammar can follow."""

from typing import Any

# Keywords that llguidance does not know. Without them a schema allows more, and never less.
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
# Keywords whose values are schemas by name, and those whose values are no schemas.
NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
VALUES = frozenset({"const", "default", "enum", "examples", "required"})


def loosened(schema: Any) -> Any:
    """Return a schema without the keywords and formats that no grammar can follow.

    OpenAI binds the arguments of strict functions only, so a schema that is not strict is no reason
    to refuse a request.
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
