"""Load reports in the headers of answers."""

import asyncio
import json

import pytest

from jaxserve.observability.series import Family, Kind
from jaxserve.server.http.load_report import gauges_of
from tests.server.world import World

BODY = {"prompt": "hello", "max_tokens": 2}
HEADER = "endpoint-load-metrics"
NAMES = {"kv_cache_usage_perc", "num_requests_waiting"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_report_in_json(stream: bool) -> None:
    headers = {f"{HEADER}-format": "JSON"}
    with World() as world, world.http() as http:
        answer = http.post("/v1/completions", json={**BODY, "stream": stream}, headers=headers)
    word, _, report = answer.headers[HEADER].partition(" ")
    assert word == "JSON"
    assert json.loads(report)["named_metrics"].keys() == NAMES


def test_an_answer_has_a_report_in_text() -> None:
    headers = {f"{HEADER}-format": "text"}
    with World() as world, world.http() as http:
        answer = http.post("/v1/completions", json=BODY, headers=headers)
    word, _, report = answer.headers[HEADER].partition(" ")
    fields = dict(field.split("=") for field in report.split(", "))
    assert word == "TEXT"
    assert fields.keys() == {f"named_metrics.{name}" for name in NAMES}
    assert all(float(value) >= 0 for value in fields.values())


@pytest.mark.parametrize("headers", [{}, {f"{HEADER}-format": "BIN"}])
def test_an_answer_has_no_report_unless_it_is_asked_for_in_a_known_format(
    headers: dict[str, str],
) -> None:
    with World() as world, world.http() as http:
        answer = http.post("/v1/completions", json=BODY, headers=headers)
    assert answer.status_code == 200
    assert HEADER not in answer.headers


def test_a_refused_request_has_no_report() -> None:
    with World() as world, world.http() as http:
        answer = http.post("/v1/completions", json={}, headers={f"{HEADER}-format": "JSON"})
    assert answer.status_code == 400
    assert HEADER not in answer.headers


def test_a_report_is_left_out_if_the_load_cannot_be_read() -> None:
    async def never() -> tuple[Family, ...]:
        await asyncio.sleep(60)
        return ()

    with World() as world, world.http() as http:
        world.app.state.server.scrape = never
        answer = http.post("/v1/completions", json=BODY, headers={f"{HEADER}-format": "JSON"})
    assert answer.status_code == 200
    assert HEADER not in answer.headers


def test_gauges_are_those_of_the_models_engine() -> None:
    family = Family(
        Kind.GAUGE,
        "vllm:num_requests_waiting",
        "",
        ("model_name", "engine"),
        ((("one", "0"), (1.0,)), (("two", "1"), (2.0,))),
    )
    assert gauges_of([family], "two") == {"num_requests_waiting": 2.0}
