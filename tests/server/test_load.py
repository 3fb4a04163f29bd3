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


def test_more_prompts_than_the_queue_holds_are_no_reason_to_try_again() -> None:
    with World(max_queued_requests=3) as world, world.http() as http:
        answer = http.post("/v1/completions", json={"prompt": ["a", "b", "c", "d"]})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"
        assert "at most 3" in answer.json()["error"]["message"]
        beams = {"prompt": "a", "n": 4, "use_beam_search": True, "temperature": 0}
        answer = http.post("/v1/completions", json=beams)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        answer = http.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 2})
        assert answer.status_code == 200


def test_an_answer_of_many_choices_does_not_hold_up_others() -> None:
    many = {**BODY, "max_tokens": 2, "n": 128}
    plain = {**BODY, "max_tokens": 2}
    # Slow until all of them wait, however slowly they come.
    world = World(step_s=0.5, max_num_seqs=2, max_queued_requests=1024)
    with world, world.listening() as address, ThreadPoolExecutor(9) as pool:
        url = f"{address.url}/v1/completions"
        answers = [pool.submit(httpx.post, url, json=many, timeout=120) for _ in range(8)]
        wait_for(lambda: world.engine.stats().num_waiting > 1000)
        world.runner.step_s = 0.002
        assert httpx.post(url, json=plain, timeout=60).status_code == 200
        assert not any(answer.done() for answer in answers)
        assert world.engine.stats().num_waiting > 800
