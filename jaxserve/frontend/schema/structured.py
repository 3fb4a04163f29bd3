"""Request fields for structured outputs: OpenAI's `response_format`, and those of vLLM."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field, Tag

from jaxserve.api.structured_outputs import JSON_OPTIONS, KINDS, MAX_BYTES, StructuredOutputsParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import ExactBody, by_type, given
from jaxserve.frontend.schema.parsing import renamed

# vLLM's deprecated fields, and the fields of `structured_outputs` that replace them.
GUIDED: Mapping[str, str] = {
    "guided_json": "json",
    "guided_json_object": "json_object",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}

# StructuredOutputsParams checks MAX_BYTES; these limits only bound the work of validation.
MAX_CHOICES = 2**16
MAX_TAGS = 1024

type Text = Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]
type Choice = Annotated[list[Text], FailFast(), Field(min_length=1, max_length=MAX_CHOICES)]
type Schema = dict[str, Any] | bool
# Fields whose names pydantic reserves.
KIND_FIELDS: Mapping[str, str] = {"json": "json_"}
WHITESPACE = "guided_whitespace_pattern"


class TextFormat(ExactBody):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(ExactBody):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(ExactBody):
    """A JSON schema; any object if it is absent. The other fields have no effect."""

    name: str
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | Literal[True] | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(ExactBody):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class TaggedPart(ExactBody):
    """JSON that follows a schema, between the texts `begin` and `end`."""

    begin: str
    end: str
    json_schema: Annotated[Schema, Field(alias="schema")] = True


class StructuralTagFormat(ExactBody):
    """Structural tag in xgrammar's formats; see grammar/formats.py."""

    type: Literal["structural_tag"]
    format: dict[str, Any]


class OlderStructuralTagFormat(ExactBody):
    """Structural tag in vLLM's older notation: free text, with tagged JSON after each trigger."""

    type: Literal["structural_tag"]
    structures: Annotated[list[TaggedPart], FailFast(), Field(max_length=MAX_TAGS)]
    triggers: Annotated[list[str], FailFast(), Field(max_length=MAX_TAGS)]
    at_least_one: bool = False
    stop_after_first: bool = False


type ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("(text)")]
    | Annotated[JsonObjectFormat, Tag("(json_object)")]
    | Annotated[JsonSchemaFormat, Tag("(json_schema)")]
    | Annotated[StructuralTagFormat | OlderStructuralTagFormat, Tag("(structural_tag)")],
    by_type("an object of type text, json_object, json_schema or structural_tag"),
]


class StructuredOutputs(ExactBody):
    """The form of an answer, in one of six ways; see StructuredOutputsParams.

    disable_fallback has no effect, because there is only one grammar backend.
    """

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [given(kind, otherwise=(None, False)) for kind in KINDS]}
    )
    json_: Annotated[Schema | Text | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: Choice | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: Text | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: Text | None = None
    disable_fallback: bool = False

    @property
    def leaves_form(self) -> bool:
        """Whether it only sets JSON options, and the form is in another field."""
        names = {KIND_FIELDS.get(kind, kind) for kind in KINDS}
        given = self.model_fields_set
        return names.isdisjoint(given) and not given.isdisjoint(JSON_OPTIONS)

    @property
    def options(self) -> dict[str, Any]:
        """The JSON options that are set."""
        return {name: value for name in JSON_OPTIONS if (value := getattr(self, name))}

    def params(self) -> StructuredOutputsParams:
        """Return the engine's parameters. Raises InvalidRequestError if they are invalid."""
        fields = self.model_dump(exclude={"disable_fallback"}, exclude_none=True, by_alias=True)
        if isinstance(self.structural_tag, dict):
            fields["structural_tag"] = json.dumps(self.structural_tag)
        return StructuredOutputsParams(**fields)


def structured_outputs(
    *,
    response_format: ResponseFormat | None,
    structured: StructuredOutputs | None,
    guided: Mapping[str, Any],
) -> StructuredOutputsParams | None:
    """Return the form of the answer; None if it is free. Raises InvalidRequestError.

    guided: the deprecated fields that are set. The JSON options of structured_outputs and
    guided_whitespace_pattern apply to a form from any of the fields.
    """
    form = None if response_format is None else _of_format(response_format)
    leaves_form = structured is not None and structured.leaves_form
    options = structured.options if structured is not None and leaves_form else {}
    left = {name: value for name, value in guided.items() if name != WHITESPACE}
    asked = {
        "response_format": form,
        "structured_outputs": None if structured is None or leaves_form else structured.params(),
        next(iter(left), ""): _of_guided(left) if left else None,
    }
    given = [name for name, params in asked.items() if params is not None]
    if len(given) > 1:
        raise InvalidRequestError(
            f"{given[1]} cannot be given with {given[0]}: an answer has one form", param=given[1]
        )
    if WHITESPACE in guided:
        options["whitespace_pattern"] = guided[WHITESPACE]
    if not given:
        if structured is not None:
            return structured.params()  # raises, because the form is missing
        if WHITESPACE in guided:
            raise InvalidRequestError(
                f"{WHITESPACE} can only be given with a form of the answer, as in response_format",
                param=WHITESPACE,
            )
        return None
    found = asked[given[0]]
    assert found is not None, given
    names = {"structured_outputs.whitespace_pattern": WHITESPACE} if WHITESPACE in guided else {}
    with renamed(names):
        return replace(found, **options)


def structured_names(
    response_format: ResponseFormat | None, guided: Mapping[str, Any]
) -> dict[str, str]:
    """Return the names in the body for fields of `structured_outputs`, for error messages."""
    names = {f"structured_outputs.{GUIDED[name]}": name for name in guided if name in GUIDED}
    if response_format is not None:
        names = {f"structured_outputs.{kind}": "response_format" for kind in KINDS}
    if WHITESPACE in guided:
        names["structured_outputs.whitespace_pattern"] = WHITESPACE
    return names


def _of_format(form: ResponseFormat) -> StructuredOutputsParams | None:
    with renamed(structured_names(form, {})):
        match form:
            case JsonSchemaFormat() if form.json_schema.json_schema is not None:
                return StructuredOutputsParams(json=form.json_schema.json_schema)
            case JsonObjectFormat() | JsonSchemaFormat():
                return StructuredOutputsParams(json_object=True)
            case StructuralTagFormat() | OlderStructuralTagFormat():
                tag = form.model_dump_json(by_alias=True, exclude_unset=True)
                return StructuredOutputsParams(structural_tag=tag)
        return None


def _of_guided(fields: Mapping[str, Any]) -> StructuredOutputsParams | None:
    left = {GUIDED[name]: value for name, value in fields.items() if name in GUIDED}
    if not any(left.values()):
        return None
    with renamed(structured_names(None, fields)):
        return StructuredOutputsParams(**left)
