"""Too much at once: refused before it costs anything, with a word on when to come back."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from jaxserve.server import ServerConfig
from tests.server.world import World, wait_for

BODY = {"prompt": "hello", "max_tokens": 100, "ignore_eos": True}


def assert_refused(response: Any) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "overloaded"


def rejections(world: World, reason: str) -> Any:
    labels = (world.name, reason)
    families = {family.name: dict(family.series) for family in world.metrics.snapshot()}
    return families["vllm:admission_rejections"][labels][0]


def test_a_full_queue_refuses_and_the_rest_is_answered() -> None:
    world = World(step_s=0.003, max_num_seqs=1, max_queued_requests=2)
    with world, world.listening() as address, ThreadPoolExecutor(12) as pool:
        url = f"{address.url}/v1/completions"
        answers = list(pool.map(lambda _: httpx.post(url, json=BODY, timeout=60), range(12)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) >= 5
        for answer in refused:
            assert_refused(answer)
        served = [answer for answer in answers if answer.status_code == 200]
        assert len(served) + len(refused) == 12
        assert all(a.json()["usage"]["completion_tokens"] == 100 for a in served)
        assert rejections(world, "queue") == len(refused)


def test_a_stream_refused_by_the_queue_is_no_stream() -> None:
    world = World(step_s=0.003, max_num_seqs=1, max_queued_requests=1)
    with world, world.listening() as address, ThreadPoolExecutor(8) as pool:
        url = f"{address.url}/v1/completions"
        body = {**BODY, "stream": True}
        answers = list(pool.map(lambda _: httpx.post(url, json=body, timeout=60), range(8)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert_refused(answer)
    assert all(a.text.endswith("data: [DONE]\n\n") for a in answers if a.status_code == 200)


def test_no_more_answers_are_made_at_once_than_the_config_says() -> None:
    world = World(step_s=0.01, config=ServerConfig(port=0, max_concurrent_requests=1))
    with world, world.http() as http:
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert_refused(http.post("/v1/completions", json=BODY))
            assert http.get("/health").status_code == 200
        world.wait_until_idle()
        again = {**BODY, "max_tokens": 1}
        wait_for(lambda: http.post("/v1/completions", json=again).status_code == 200)
        assert rejections(world, "concurrency") >= 1
