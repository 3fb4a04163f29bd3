"""Generate the OpenAPI document of a server.

Requests are described by the pydantic models that validate them, and answers by the Structs that
are encoded, so the document matches the code.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic
from msgspec import Struct
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from starlette.routing import BaseRoute, Route

from jaxserve import __version__
from jaxserve.server.errors import MESSAGES_PATH, ErrorBody

VERSION = "3.1.0"
SUMMARY = "OpenAI's API, and Anthropic's Messages, over one model."
JSON = "application/json"
EVENTS = "text/event-stream"
METHODS = ("GET", "POST", "DELETE")
PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")


class OpenAIError(Struct):
    """An error in OpenAI's form."""

    error: ErrorBody


class AnthropicErrorBody(Struct):
    """The value of the field `error`."""

    type: str
    message: str


class AnthropicError(Struct, tag_field="type", tag="error"):
    """An error in Anthropic's form."""

    error: AnthropicErrorBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Request and response types of an endpoint.

    bodies: alternative models of the body. form: schema of a multipart form, in place of a body.
    answer: type of the JSON answer; None for an answer of another media type, `media`. event: type
    of streamed events. query: schemas of the query parameters, by name.
    """

    bodies: tuple[type[pydantic.BaseModel], ...] = ()
    form: Mapping[str, Any] | None = None
    answer: Any = None
    media: str = JSON
    event: Any = None
    query: Mapping[str, Mapping[str, Any]] | None = None


class BodySchemas(GenerateJsonSchema):
    """Generates schemas of bodies without titles of fields, which would repeat their names."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 (pydantic's)
        """Return False for all fields."""
        return False

    def normalize_name(self, name: str) -> str:
        """Return a name without the package that contains all bodies."""
        return super().normalize_name(name.removeprefix("jaxserve.server."))


def describe_api(
    routes: Sequence[BaseRoute],
    operations: Mapping[Callable[..., Any], Operation],
    *,
    root_path: str = "",
) -> dict[str, Any]:
    """Return the OpenAPI document of routes. Each endpoint must have an operation.

    root_path: prefix of the paths for clients.
    """
    listed = [route for route in routes if isinstance(route, Route)]
    bodies = {body for operation in operations.values() for body in operation.bodies}
    requests, definitions = _request_schemas(sorted(bodies, key=lambda body: body.__name__))
    answers, components = _answer_schemas(operations.values())
    paths: dict[str, dict[str, Any]] = {}
    for route in listed:
        operation = operations[route.endpoint]
        for method in METHODS:
            if method in (route.methods or ()):
                path = PARAMETER.sub(r"{\1}", route.path)
                paths.setdefault(path, {})[method.lower()] = _operation(
                    route, method, operation, requests, answers
                )
    return {
        "openapi": VERSION,
        "info": {"title": "jaxserve", "version": __version__, "summary": SUMMARY},
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "paths": paths,
        "components": {
            "schemas": definitions | components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        # A key is required only if the operator has set any.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(
    route: Route,
    method: str,
    operation: Operation,
    requests: Mapping[type[pydantic.BaseModel], Any],
    answers: Mapping[Any, Any],
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[JSON] = {"schema": answers[operation.answer]}
    else:
        content[operation.media] = {"schema": {"type": "string"}}
    if operation.event is not None:
        # OpenAPI 3.1 cannot describe streams of events; x-event is the schema of their data.
        content[EVENTS] = {"x-event": answers[operation.event]}
    is_anthropics = route.path.startswith(MESSAGES_PATH)
    error = answers[AnthropicError if is_anthropics else OpenAIError]
    summary, _, description = inspect.getdoc(route.endpoint).partition("\n")  # type: ignore[union-attr]
    described: dict[str, Any] = {
        "operationId": f"{route.name}_{re.sub(r'[^a-z0-9]+', '_', route.path)}".strip("_"),
        "summary": summary,
        "description": description.strip(),
        "parameters": [*_path_parameters(route), *_query_parameters(operation)],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {"description": "An error.", "content": {JSON: {"schema": error}}},
        },
    }
    if method == "POST" and (operation.bodies or operation.form is not None):
        media, schema = JSON, _any_of([requests[body] for body in operation.bodies])
        if operation.form is not None:
            media, schema = "multipart/form-data", operation.form
        described["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    return described


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PARAMETER.findall(route.path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in (operation.query or {}).items()
    ]


def _request_schemas(
    bodies: Sequence[type[pydantic.BaseModel]],
) -> tuple[dict[type[pydantic.BaseModel], Any], dict[str, Any]]:
    """Return the schema of each body, and the schemas that they refer to."""
    schemas, document = models_json_schema(
        [(body, "validation") for body in bodies],
        schema_generator=BodySchemas,
        ref_template="#/components/schemas/request.{model}",
    )
    return (
        {body: schemas[body, "validation"] for body in bodies},
        {f"request.{name}": schema for name, schema in document.get("$defs", {}).items()},
    )


def _answer_schemas(operations: Iterable[Operation]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the schema of each answer type, and the schemas that they refer to."""
    types = [OpenAIError, AnthropicError]
    for operation in operations:
        types += [kind for kind in (operation.answer, operation.event) if kind is not None]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        unique, ref_template="#/components/schemas/answer.{name}"
    )
    return (
        dict(zip(unique, schemas, strict=True)),
        {f"answer.{name}": schema for name, schema in components.items()},
    )


def _any_of(schemas: Sequence[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
