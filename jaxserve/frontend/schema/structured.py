"""What bodies ask of the form of an answer: OpenAI's `response_format`, and vLLM's fields."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field, Tag

from jaxserve.api.structured_outputs import JSON_OPTIONS, KINDS, MAX_BYTES, StructuredOutputsParams
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import ExactBody, by_type, given
from jaxserve.frontend.schema.parsing import renamed

# vLLM's older fields, and what each is of `structured_outputs`.
GUIDED: Mapping[str, str] = {
    "guided_json": "json",
    "guided_json_object": "json_object",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}

# MAX_BYTES is the limit, which a text of more characters is above in any case.
MAX_CHOICES = 2**16
MAX_TAGS = 1024

type Text = Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]
type Choice = Annotated[list[Text], FailFast(), Field(min_length=1, max_length=MAX_CHOICES)]
type Schema = dict[str, Any] | bool
# What pydantic cannot call by its name.
KIND_FIELDS: Mapping[str, str] = {"json": "json_"}
WHITESPACE = "guided_whitespace_pattern"


class TextFormat(ExactBody):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(ExactBody):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(ExactBody):
    """A JSON schema; without one, any object. Name, description and strict have no effect."""

    name: str
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | Literal[True] | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(ExactBody):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class TaggedPart(ExactBody):
    """A part that begins with `begin` and ends with `end`, between which is JSON of a schema."""

    begin: str
    end: str
    json_schema: Annotated[Schema, Field(alias="schema")] = True


class StructuralTagFormat(ExactBody):
    """Text of xgrammar's formats. See grammar/formats.py, which reads them."""

    type: Literal["structural_tag"]
    format: dict[str, Any]


class OlderStructuralTagFormat(ExactBody):
    """Free text with tagged parts: behind a trigger, a part that begins with it."""

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
    """One of six ways to say what an answer must look like, and how strictly.

    disable_fallback has no effect: there is one way to follow a grammar, and none to fall to.
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
        """Whether it says how JSON is written, and leaves the form to another field."""
        names = {KIND_FIELDS.get(kind, kind) for kind in KINDS}
        given = self.model_fields_set
        return names.isdisjoint(given) and not given.isdisjoint(JSON_OPTIONS)

    @property
    def options(self) -> dict[str, Any]:
        """What it says of how JSON is written."""
        return {name: value for name in JSON_OPTIONS if (value := getattr(self, name))}

    def params(self) -> StructuredOutputsParams:
        """Return the engine's; raises InvalidRequestError for what cannot be."""
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
    """Return what an answer must look like, None if it is free; raises InvalidRequestError.

    guided: the older fields, those that are given. What structured_outputs and
    guided_whitespace_pattern say of JSON holds for a form of any name.
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
            return structured.params()  # which says that a form is missing
        if WHITESPACE in guided:
            raise InvalidRequestError(
                f"{WHITESPACE} can only be given with a form of the answer, as by response_format",
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
    """Return what the fields of `structured_outputs` are called in a body that has them."""
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
