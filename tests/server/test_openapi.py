"""/openapi.json says what the server does, and /docs shows it."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from jaxserve.server.admin.openapi import describe_api
from jaxserve.server.admin.operations import OPERATIONS
from jaxserve.server.app import ROUTES
from tests.server.world import World, wait_for

DOCUMENT = describe_api(ROUTES, OPERATIONS)
SCHEMA: Any = schemathesis.openapi.from_dict(DOCUMENT)
DRAWN = [operation.ok() for operation in SCHEMA.get_all_operations()]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**HELLO, "logprobs": True, "top_logprobs": 2, "stop": "x"}),
    ("/v1/chat/completions", {**HELLO, "response_format": {"type": "text"}, "tool_choice": "none"}),
    ("/v1/completions", {"prompt": "hello", "logprobs": 2, "logit_bias": {"5": 1}, "user": "me"}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "stop": ["x"], "echo": True}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 2}),
    ("/v1/responses", {"input": [{"role": "user", "content": "hello"}], "max_output_tokens": 2}),
    ("/v1/messages", {**HELLO, "model": "alias", "system": "hello"}),
    ("/v1/messages/count_tokens", {"model": "alias", "messages": HELLO["messages"]}),
    ("/tokenize", {"prompt": "hello"}),
    ("/tokenize", {"messages": HELLO["messages"]}),
    ("/detokenize", {"tokens": [5, 6]}),
]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    """Return a client of a server that has every route there is."""
    with World(config=ServerConfig(port=0, tokenizer_info=True)) as world, world.http() as client:
        yield client


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_every_route_is_in_the_document(http: TestClient) -> None:
    assert http.get("/openapi.json").json() == DOCUMENT
    for route in ROUTES:
        assert isinstance(route, Route)
        operations = DOCUMENT["paths"][route.path.replace(":path", "")]
        assert {method.upper() for method in operations} >= (route.methods or set()) - {"HEAD"}


@pytest.mark.parametrize("schema", DOCUMENT["components"]["schemas"].values())
def test_every_schema_is_one(schema: Any) -> None:
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("path", "body"), ASKED, ids=range(len(ASKED)))
def test_requests_and_answers_are_as_the_document_says(
    http: TestClient, path: str, body: dict[str, Any]
) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    validator(operation["requestBody"]["content"]["application/json"]["schema"]).validate(body)
    answer = http.post(path, json=body)
    assert answer.status_code == 200
    content = operation["responses"]["200"]["content"]
    validator(content["application/json"]["schema"]).validate(answer.json())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with World() as world, world.listening() as address:
        yield address.url
        wait_for(world.is_idle)


# Not by schemathesis.pytest, which asks for an older pytest.
@pytest.mark.parametrize("operation", DRAWN, ids=[operation.label for operation in DRAWN])
def test_nothing_that_is_sent_breaks_the_document(url: str, operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        case.validate_response(case.call(base_url=url), checks=CHECKS)

    send()


class Page(HTMLParser):
    """The tags of a page, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_page_shows_every_path_and_loads_nothing(http: TestClient) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in DOCUMENT["paths"]:
        assert f"<code>{path}</code>" in answer.text
    page = Page(answer.text)
    assert "script" not in page.tags
    assert page.loads == ["openapi.json"]
