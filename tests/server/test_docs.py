"""docs/api.md names every path, field, error code and series that there is."""

import re
from pathlib import Path

import pytest

from jaxserve.frontend.chat import Message
from jaxserve.frontend.schema.fields import IGNORED, REFUSED
from jaxserve.frontend.schema.generation import StreamOptions
from jaxserve.observability.metrics import Metrics
from jaxserve.server.app import ROUTES
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.completions.schema import CompletionBody
from jaxserve.server.tokenize.schema import DetokenizeBody, TokenizeBody, TokenizeChatBody

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text("utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", TEXT))
BODIES = (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    Message,
    StreamOptions,
    TokenizeBody,
    TokenizeChatBody,
)


@pytest.mark.parametrize("body", BODIES)
def test_every_field_is_named(body: type[ChatBody]) -> None:
    assert set(body.model_fields) - NAMED == set()


def test_every_field_that_is_not_served_is_named() -> None:
    assert (IGNORED | REFUSED.keys()) - NAMED == set()


def test_every_path_is_named() -> None:
    for route in ROUTES:
        assert route.path.replace(":path", "") in TEXT


def test_every_error_code_is_named() -> None:
    code = re.compile(
        r'code="(\w+)"|\d{3}: \(.*, "(\w+)"\),?$|"(overloaded|loading|shutting_down)"', re.MULTILINE
    )
    folders = (ROOT / "jaxserve" / "server", ROOT / "jaxserve" / "frontend")
    sources = (path for folder in folders for path in folder.rglob("*.py"))
    found = {
        name
        for path in sources
        for match in code.findall(path.read_text("utf-8"))
        for name in match
    }
    assert {"engine_dead", "not_found", "overloaded", "unknown_field"} <= found
    assert found - {""} - NAMED == set()


def test_every_series_is_named() -> None:
    metrics = Metrics(max_model_len=100)
    metrics.engine("m")
    metrics.observe_http("GET", "/", 200)
    metrics.observe_ignored_field("user")
    metrics.observe_rejection("queue", model_name="m")
    metrics.set_cache_config({}, model_name="m")
    for family in metrics.collect():
        assert {family.name, f"{family.name}_total"} & NAMED, family.name
