"""From tools to what binds a model to call them as they are declared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxserve.grammar.tags import structural_tag
from jaxserve.structured_outputs import StructuredOutputsParams

type Schema = Mapping[str, Any]

# Keywords that may say something of properties that are not declared beside them.
_SAY_OF_OTHERS = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "minProperties",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that a model may call. parameters: None for any object.

    strict: whether arguments must follow the schema where calling is the model's own choice.
    """

    name: str
    parameters: Schema | None = None
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments.

        Where it declares properties and says nothing of others, there are none: a model that is
        bound to a schema would make some up.
        """
        if self.parameters is None:
            return {"type": "object"}
        schema = dict(self.parameters)
        if "properties" in schema and _SAY_OF_OTHERS.isdisjoint(schema):
            schema["additionalProperties"] = False
        return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTag:
    """How a model writes calls of one function: `begin`, JSON of `schema`, `end`."""

    begin: str
    schema: Schema
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a model writes calls whose arguments, or which themselves, are JSON.

    begin and end: around a call, "{name}" standing for the function's name. trigger: what `begin`
    begins with, and nothing but a call does. name_key, arguments_key: not None where the JSON is
    that of an object of both, and not of the arguments alone.
    """

    trigger: str
    begin: str
    end: str
    name_key: str | None = None
    arguments_key: str | None = None

    def tag(self, function: Function, *, is_strict: bool) -> CallTag:
        """Return how a function is called; of arguments that are not strict, any object will do."""
        schema: Schema = function.schema if is_strict else {"type": "object"}
        if self.name_key is not None and self.arguments_key is not None:
            place = f"#/properties/{self.arguments_key}"
            schema = _object(
                {self.name_key: {"const": function.name}, self.arguments_key: _moved(schema, place)}
            )
        return CallTag(
            begin=self.begin.replace("{name}", function.name), schema=schema, end=self.end
        )


def forced_calls(
    functions: Sequence[Function], *, parallel: bool, reasoning_end: str | None = None
) -> StructuredOutputsParams:
    """Return what makes an answer `[{"name": ..., "arguments": {...}}, ...]` and nothing else.

    For `tool_choice` required, or of one named function, whatever the model's own format is.
    parallel: whether there may be more than one call.
    """
    calls: dict[str, Any] = {
        "type": "array",
        "items": {
            "anyOf": [
                _object(
                    {
                        "name": {"const": function.name},
                        "arguments": _moved(
                            function.schema, f"#/items/anyOf/{index}/properties/arguments"
                        ),
                    }
                )
                for index, function in enumerate(functions)
            ]
        },
        "minItems": 1,
    }
    if not parallel:
        calls["maxItems"] = 1
    return StructuredOutputsParams(
        json=calls, disable_any_whitespace=True, reasoning_end=reasoning_end
    )


def tagged_calls(
    functions: Sequence[Function],
    form: CallFormat,
    *,
    required: bool,
    parallel: bool,
    reasoning_end: str | None = None,
) -> StructuredOutputsParams | None:
    """Return what binds calls that are written in a model's own format.

    required: nothing but calls is written, and all arguments follow their schemas. Otherwise text
    may stand around them, and the strict functions' arguments follow; None if there is none.
    """
    if not required and not any(function.strict for function in functions):
        return None
    tags = [form.tag(function, is_strict=required or function.strict) for function in functions]
    return StructuredOutputsParams(
        structural_tag=structural_tag(
            [{"begin": tag.begin, "schema": tag.schema, "end": tag.end} for tag in tags],
            [form.trigger],
            at_least_one=required,
            stop_after_first=not parallel,
        ),
        reasoning_end=reasoning_end,
    )


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(value: Any, place: str) -> Any:
    """Return a schema whose references to itself are right when it stands at `place`."""
    if isinstance(value, Mapping):
        moved = {key: _moved(inner, place) for key, inner in value.items()}
        reference = moved.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            moved["$ref"] = place + reference[1:]
        return moved
    if isinstance(value, list):
        return [_moved(inner, place) for inner in value]
    return value
