"""The document and the server agree about every field: what one allows, the other takes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, validators

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.frontend.schema.body import Body
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.admin.openapi import describe_api
from jaxserve.server.admin.operations import OPERATIONS
from jaxserve.server.app import ROUTES
from jaxserve.server.batches.schema import BatchBody
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.messages.schema import MessagesBody
from jaxserve.server.pooling.schema import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody
from jaxserve.server.responses.schema import ResponsesBody
from jaxserve.server.tokenize.schema import DetokenizeBody, TokenizeBody

DOCUMENT = describe_api(ROUTES, OPERATIONS)
COMPONENTS = DOCUMENT["components"]
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}
DEFAULTS = GenerationDefaults()
# Errors that no schema expresses: JSON within strings, and fields that depend on each other.
BEYOND = (
    "arguments must be",
    "but is not valid JSON",
    "which is an object",
    "levels of nested objects",
    "min_pattern_size must be in [1,",
    "must not be empty, got []",
    "must not be of type",
    "must be that of a tool declared before",
    "must hold more than tools",
    "cannot be given with",
    "can only be given with a form",
    "that a double holds exactly",
    "is not valid Lark",
)


def read_chat(fields: dict[str, Any]) -> None:
    body = parse(fields, ChatBody)
    body.params(DEFAULTS)
    for message in body.messages:
        message.for_template("message")


def read_completion(fields: dict[str, Any]) -> None:
    parse(fields, CompletionBody).params(DEFAULTS)


def read_response(fields: dict[str, Any]) -> None:
    read_chat(parse(fields, ResponsesBody).chat([]))


def read_message(fields: dict[str, Any]) -> None:
    read_chat(parse(fields, MessagesBody).chat())


def reader_of(model: type[Body]) -> Callable[[dict[str, Any]], None]:
    def read(fields: dict[str, Any]) -> None:
        parse(fields, model)

    return read


BODIES: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, Any]]] = {
    "ChatBody": (read_chat, {"messages": HELLO, "tools": [TOOL], "logprobs": True}),
    "CompletionBody": (read_completion, {"prompt": "hello", "max_tokens": 2**31 - 1}),
    "ResponsesBody": (read_response, {"input": "hello"}),
    "MessagesBody": (read_message, {"model": "m", "messages": HELLO, "max_tokens": 5}),
    "EmbeddingBody": (reader_of(EmbeddingBody), {"input": "hello"}),
    "ClassifyBody": (reader_of(ClassifyBody), {"input": "hello"}),
    "ScoreBody": (reader_of(ScoreBody), {"text_1": "a", "text_2": "b"}),
    "RerankBody": (reader_of(RerankBody), {"query": "a", "documents": ["b"]}),
    "TokenizeBody": (reader_of(TokenizeBody), {"prompt": "hello"}),
    "DetokenizeBody": (reader_of(DetokenizeBody), {"tokens": [5]}),
    "BatchBody": (
        reader_of(BatchBody),
        {"input_file_id": "f", "endpoint": "/v1/responses", "completion_window": "24h"},
    ),
}
MAX_EXAMPLES = 150
# 1.0 is an integer in JSON Schema, but not for the server.
Strict = validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([2**31, -(2**31), 2**63, -0.5, 0.5, 1.5, 100.5])
    | st.text(max_size=3)
)
JUNK = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS)


def bent(draw: st.DrawFn, value: Any) -> Any:
    """A value with something in it replaced, added or left out."""
    if not isinstance(value, dict | list) or not value or draw(st.booleans()):
        return draw(JUNK)
    inner = value if isinstance(value, dict) else dict(enumerate(value))
    key = draw(st.sampled_from(list(inner)))
    match draw(st.sampled_from(["replace", "add", "leave out"])):
        case "replace":
            inner = {**inner, key: bent(draw, inner[key])}
        case "add":
            inner = {**inner, "more": draw(JUNK)}
        case _:
            inner = {other: inner[other] for other in inner if other != key}
    return inner if isinstance(value, dict) else [*inner.values()]


@cache
def values_of(name: str, field: str) -> st.SearchStrategy[Any]:
    """Return the schema of a field in the document."""
    schema = COMPONENTS["schemas"][f"request.{name}"]["properties"][field]
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    document = {**DOCUMENT, "paths": {"/": {"post": {"requestBody": body, "responses": {}}}}}
    operation = schemathesis.openapi.from_dict(document)["/"]["post"]
    return operation.as_strategy().map(lambda case: case.body)


@st.composite
def fields_of(draw: st.DrawFn, name: str, base: dict[str, Any]) -> dict[str, Any]:
    """A body with one field replaced, by a valid or an arbitrary value."""
    fields = list(COMPONENTS["schemas"][f"request.{name}"]["properties"])
    field = draw(st.sampled_from(fields))
    value = draw(values_of(name, field))
    return {**base, field: bent(draw, value) if draw(st.booleans()) else value}


def complaint_of(read: Callable[[dict[str, Any]], None], fields: dict[str, Any]) -> str | None:
    """Return the server's error for a body."""
    try:
        read(fields)
    except InvalidRequestError as error:
        return error.message
    return None


@pytest.mark.parametrize("name", BODIES)
def test_the_server_takes_what_the_document_allows_and_nothing_else(name: str) -> None:
    read, base = BODIES[name]
    schema = {"$ref": f"#/components/schemas/request.{name}", "components": COMPONENTS}
    document = Strict(schema)

    @given(fields=fields_of(name, base))
    @settings(
        max_examples=MAX_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def compare(fields: dict[str, Any]) -> None:
        complaint = complaint_of(read, fields)
        assume(complaint is None or not any(words in complaint for words in BEYOND))
        assert (complaint is None) == document.is_valid(fields), complaint

    compare()
